"""Widgets that work: a training run to watch and to stop, a photo to enlarge."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from srlab.data.datasets import find
from srlab.data.degradation import resize
from srlab.data.images import read_image, write_image
from srlab.errors import SrlabError
from srlab.evaluation.tiling import upscale
from srlab.training import rules
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.monitor import LOG, read_log
from srlab.training.run import Result
from srlab.viz.card import WIDE, Card, beside, choice, controls, data_uri, note, png, tile
from srlab.viz.compare import Compare
from srlab.viz.figures import Figure, compare, curves, picture

TILE = 192  # LR pixels: a click on Cancel waits for one tile, a second or two
WINDOW = 420, 840  # height and width of the enlarged photo that is seen at a time
# FileUpload writes the number of its files behind its name, always "(0)" here: the name is drawn
# anew without it. A screen reader hears only the first name.
PLAIN_BUTTON = """<style>button.srlab-upload { font-size: 0 } .srlab-upload i { font-size: 14px }
.srlab-upload::after { font-size: 13px; content: "Choose a photo"; content: "Choose a photo" / "" }
</style>"""


class TrainingPanel(Card):
    """A training run while it goes: curves, a sample picture, speed, time left, a Stop button.

    ::

        panel = TrainingPanel(folder, config, sample=lr)
        result = await panel.run(pretrain, generator, bank)

    Stop, like the kernel's interrupt button, ends the run after its step and saves it; the same
    cell goes on from there. The training works in a thread of its own while the cell waits for it,
    so that the click can arrive (from ipykernel 7.4 on; before that, interrupt the kernel).

    Args:
        folder, config: of the run.
        sample: an LR picture, (3, h, w) in [0, 1], that the averaged generator enlarges now and
            then.
        every: seconds between two drawings, at least; drawing takes at most a tenth of the time.
    """

    sharpness = 2

    def __init__(
        self,
        folder: Path | str,
        config: PretrainConfig | AdversarialConfig,
        sample: Tensor | None = None,
        every: float = 1.0,
    ):
        self.folder, self.config, self.sample, self.every = Path(folder), config, sample, every
        self.stopped = threading.Event()
        self._rewind()
        self.enlarged: tuple[int, Tensor] | None = None  # the step and the sample's SR picture
        words = {"description": "steps", "tooltip": "steps done of the whole run"}
        self.bar = ipywidgets.IntProgress(0, 0, config.steps, layout=WIDE, **words)
        self.button = _button("Stop", "end the run after this step and save it", self._stop)
        game = isinstance(config, AdversarialConfig)
        names = rules.columns(config) if game else ["loss", "val_psnr"]
        self.curve = choice("curve", names, names[0], "which column of the log is drawn")
        self.curve.observe(self._draw, "value")
        self.status = ipywidgets.HTML("not started")
        self.view = ipywidgets.HTML()
        self._draw()
        super().__init__(controls(self.bar, self.button, self.curve), self.status, self.view)

    @property
    def alt(self) -> str:
        sample = "" if self.enlarged is None else ", and a sample picture by the generator"
        return f"{self.curve.value} of a training run against its steps{sample}"

    async def run(self, train: Callable[..., Result], *parts: Any, **options: Any) -> Result:
        """Show the panel, train, and return what the training function returns.

        Args:
            train: :func:`~srlab.training.pretrain.pretrain` or
                :func:`~srlab.training.game.adversarial`.
            parts: its arguments before the configuration: networks and bank.
            options: more of its arguments, by name.

        Raises:
            SrlabError: as ``train`` does.
        """
        from IPython.display import display

        self._rewind()
        self.button.disabled, self.status.value = False, "starting"
        page = display(self, display_id=True)
        options = {"progress": False} | options | {"on_step": self._step}
        work = asyncio.create_task(
            asyncio.to_thread(train, *parts, self.config, self.folder, **options)
        )
        try:
            while not work.done():
                begin = time.perf_counter()
                self._tell()
                self._draw()
                pause = max(self.every, 10 * (time.perf_counter() - begin))
                try:
                    await asyncio.wait([work], timeout=pause)
                except asyncio.CancelledError:  # the kernel was interrupted
                    self._stop()
            result = work.result()
            ended = "finished" if result.step == self.config.steps else "stopped"
            self.bar.value = result.step
            self.status.value = f"{ended} after step {result.step} of {self.config.steps}"
            return result
        except Exception as error:
            self.status.value = escape(f"ended early: {error or type(error).__name__}")
            raise
        finally:
            self.button.disabled = True
            self._draw()
            if page:  # what is left in the notebook when the kernel is gone
                page.update(self)

    def still(self) -> bytes:
        files = [self._curve().png(self.sharpness)]
        if self.enlarged is not None:
            pixels = picture(self.enlarged[1]).repeat(self.sharpness, 0)
            files.append(png(pixels.repeat(self.sharpness, 1)))
        return beside(*files, gap=12 * self.sharpness)

    def _rewind(self) -> None:
        self.stopped.clear()
        # The step and the moment of the first and of the latest call of _step.
        self.first: tuple[int, float] | None = None
        self.last: tuple[int, float] | None = None
        self.due = 0.0  # when the sample is enlarged next

    def _step(self, step: int, generator: nn.Module) -> bool:
        """Called by the training after each step, in its thread."""
        now = time.perf_counter()
        self.last = step, now
        self.first = self.first or self.last
        if self.sample is not None and (now >= self.due or step == self.config.steps):
            device = next(generator.parameters()).device
            self.enlarged = step, upscale(generator, self.sample.to(device)).cpu()
            end = time.perf_counter()
            self.due = end + max(self.every, 20 * (end - now))
        return self.stopped.is_set()

    def _tell(self) -> None:
        """How far the run is, how fast, and how long it will still take."""
        if not self.last or self.last == self.first or self.stopped.is_set():
            return
        step, steps = self.last[0], self.config.steps
        speed = (step - self.first[0]) / (self.last[1] - self.first[1])
        self.bar.value = step
        self.status.value = (
            f"step {step} of {steps}, {speed * self.config.batch_size:.0f} patches/s, "
            f"{_clock((steps - step) / speed)} left"
        )

    def _curve(self) -> Figure:
        name = self.curve.value
        row = read_log(self.folder / LOG).get(name)
        if row is None:
            text = f"{name}: the first row of the log comes after step {self.config.log_every}"
            return note(text, self.alt)
        return curves({name: row}, "step", name, alt=self.alt)

    def _draw(self, change: object = None) -> None:
        tiles = tile(self._curve().png(), self.curve.value, 540, 306)
        if self.sample is not None:
            height, width = self.sample.shape[-2:]
            factor = 300 / max(height, width)
            size = round(factor * width), round(factor * height)
            step, shown = self.enlarged or ("LR", self.sample)
            caption = f"sample, {'step ' * bool(self.enlarged)}{step}"
            tiles += tile(png(picture(shown)), caption, *size)
        self.view.value = tiles

    def _stop(self, button: object = None) -> None:
        self.stopped.set()
        self.button.disabled = True
        self.status.value = "stopping after this step"


class UploadBox(Card):
    """A box for a photo of your own: it shows it enlarged, beside bicubic, and offers a download.

    The work is done in a thread, tile by tile: other cells run meanwhile, a bar tells how far it
    is, and a button cancels it. The result is shown pixel for pixel, through a window to move.

    Args:
        model: a generator, see :func:`srlab.models.zoo.load`.
        max_pixels: of a larger photo only the centre is enlarged, so that the download stays
            small enough for a notebook; the text says so and names the command for all of it.
    """

    alt = "A button to upload a photo, which comes back enlarged, with a link to download it"

    def __init__(self, model: nn.Module, max_pixels: int = 2**20):
        self.model, self.max_pixels = model, max_pixels
        self.work: threading.Thread | None = None
        self.cancelled = threading.Event()
        self.upload = ipywidgets.FileUpload(
            accept="image/*",
            description="Choose a photo",
            tooltip="PNG, JPEG, WebP or TIFF, up to 10 MB",
            layout={"width": "200px"},
        ).add_class("srlab-upload")
        self.upload.observe(self._take, "value")
        self.bar = ipywidgets.FloatProgress(
            0, max=1, description="enlarged", tooltip="how much of the photo is enlarged"
        )
        self.button = _button("Cancel", "stop enlarging this photo", self._cancel)
        self.status = ipywidgets.HTML(f"{self.upload.tooltip}. It stays with this kernel.")
        self.link, self.view = ipywidgets.HTML(), ipywidgets.VBox()
        self.hint = ipywidgets.HTML(
            "<center>Your photo will appear here, "
            f"{model.scale} times as wide and as high, beside bicubic.</center>"
        )
        stage = ipywidgets.VBox(
            [self.hint, self.view],
            layout={
                "min_height": "420px", "justify_content": "center", "border": "1px dashed #999"
            },
        )  # fmt: skip
        inputs = controls(self.upload, self.bar, self.button)
        plain = ipywidgets.HTML(PLAIN_BUTTON, layout={"display": "none"})
        super().__init__(inputs, controls(self.status, self.link), stage, plain)

    def still(self) -> bytes:
        """The photo beside bicubic; before there is one, an example by the same network."""
        for card in self.view.children:
            return card.printed()
        lr = read_image(find("photos-valid")[-1])[:, 216:266, 340:415]
        with torch.no_grad():
            parameter = next(self.model.parameters(), lr)
            sr = upscale(self.model, lr.to(parameter), TILE).float().cpu()
        pictures = {"an example": lr, "bicubic": resize(lr, self.model.scale), "enlarged": sr}
        captions = {name: f"{p.shape[1]} x {p.shape[2]} pixels" for name, p in pictures.items()}
        captions["enlarged"] += "; run the cell for yours"
        return compare(pictures, captions=captions, alt=self.alt).png()

    def close(self) -> None:
        self.cancelled.set()
        super().close()

    def _take(self, change: object) -> None:
        if not self.upload.value or self.upload.disabled:
            return
        file = self.upload.value[0]
        self.upload.value = ()  # the same file can be chosen again
        self.upload.disabled, self.button.disabled = True, False
        self.cancelled.clear()
        self._clear()
        name = Path(file["name"].replace("\\", "/")).name or "photo"
        job = name, bytes(file["content"])
        self.work = threading.Thread(target=self._run, args=job, daemon=True)
        self.work.start()

    def _cancel(self, button: object = None) -> None:
        self.cancelled.set()
        self.button.disabled = True
        self.status.value = "stopping after this tile"

    def _clear(self) -> None:
        self.bar.value, self.link.value, self.hint.layout.display = 0, "", None
        shown, self.view.children = self.view.children, ()
        for card in shown:
            card.close()

    def _run(self, name: str, content: bytes) -> None:
        """Enlarge a photo, in a thread of its own; whatever goes wrong becomes a sentence."""
        try:
            self._enlarge(name, content)
        except _Cancelled:
            self._clear()
            self.status.value = escape(f"{name} was not enlarged: cancelled.")
        except Exception as error:  # a thread has nobody to raise it to
            self._clear()
            self.status.value = escape(f"{name} was not enlarged. {error or type(error).__name__}")
        finally:
            self.upload.disabled, self.button.disabled = False, True

    def _enlarge(self, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            try:
                path.write_bytes(content)
                lr = read_image(path)
            except (SrlabError, OSError) as error:
                raise SrlabError(str(error).replace(f"{folder}/", "")) from error
            before = lr.shape[-2:]
            lr, hint = self._centre(lr), ""
            if lr.shape[-2:] != before:
                hint = (
                    f" Only the centre was taken from its {before[0]} x {before[1]} pixels; for "
                    f"all of it run: srlab upscale {name}"
                )
            self.status.value = escape(f"enlarging {name}, {lr.shape[1]} x {lr.shape[2]} ...")
            begin = time.perf_counter()
            parameter = next(self.model.parameters(), lr)
            sr = upscale(self.model, lr.to(parameter), TILE, self._told).float().cpu()
            seconds = time.perf_counter() - begin
            bicubic = resize(lr, self.model.scale)
            self._told(1)
            write_image(sr, Path(folder) / "sr.png")
            result = (Path(folder) / "sr.png").read_bytes()
        compared = Compare({"bicubic": bicubic, "enlarged": sr}, WINDOW)
        self._told(1)
        self.hint.layout.display, self.view.children = "none", (compared,)
        title = escape(f"{Path(name).stem}-x{self.model.scale}.png")
        style = "width: auto; margin: 0 1em; text-decoration: none"
        self.link.value = (
            f'<a class="jupyter-button mod-primary" style="{style}" download="{title}" '
            f'href="{data_uri(result)}">Download {title} ({len(result) / 1e6:.1f} MB)</a>'
        )
        (low, wide), (height, width) = lr.shape[-2:], sr.shape[-2:]
        self.status.value = escape(
            f"{name}: {low} x {wide} to {height} x {width} pixels in {seconds:.1f} s.{hint}"
        )

    def _told(self, share: float) -> None:
        """Move the bar; called after each tile."""
        if self.cancelled.is_set():
            raise _Cancelled
        self.bar.value = share

    def _centre(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        factor = min(1.0, (self.max_pixels / (height * width)) ** 0.5)
        h, w = (max(1, int(n * factor)) for n in (height, width))
        top, left = (height - h) // 2, (width - w) // 2
        return lr[:, top : top + h, left : left + w]


def _button(name: str, tooltip: str, act: Callable[[object], None]) -> ipywidgets.Button:
    """A button that ends some work; off until there is some."""
    button = ipywidgets.Button(description=name, icon="stop", disabled=True, tooltip=tooltip)
    button.on_click(act)
    return button


class _Cancelled(Exception):
    """Somebody pressed Cancel."""


def _clock(seconds: float) -> str:
    """``45 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
