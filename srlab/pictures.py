"""Upscale pictures of any kind and size: one in Python, or files, folders and streams.

A generator runs over a picture in tiles, and the result goes to its file strip by strip, so that
memory holds the small picture, a few tiles and at most 4 bytes for each pixel of the large one.
"""

import glob
import os.path
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from srlab.data.images import (
    FORMATS,
    Picture,
    check_size,
    list_images,
    picture_size,
    read_picture,
    replacing,
    to_float,
    to_uint8,
    write_strips,
)
from srlab.errors import SrlabError
from srlab.evaluation import tiling
from srlab.files import printable
from srlab.models import zoo
from srlab.models.generators import Bicubic, fold, polyphase

MODEL = "srresnet"
TILE = 192  # LR pixels; SRResNet then takes 0.6 GB, 29% of its work being borders

_TOLERANCE = 1 / 255  # by which floats may leave [0, 1]
_DIVERGED = "the model's result is not finite: its training has diverged."

STREAM = "-"  # the file name of standard input and output


class UpscaleError(SrlabError):
    """Pictures that could not be upscaled; the message says which, why and what to do."""


@dataclass(frozen=True)
class Job:
    """One picture to upscale.

    Attributes:
        source: its file, or ``"-"`` for standard input.
        target: the file to write, or ``"-"`` for standard output.
        kind: the target's format, one of PNG, JPEG, WEBP and TIFF.
    """

    source: Path | str
    target: Path | str
    kind: str


@dataclass(frozen=True)
class Outcome:
    """What became of a :class:`Job`: the result's size in pixels, or why there is none."""

    source: str
    target: str
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str | None = None


def upscale(
    image: Tensor | Image.Image | str | Path,
    model: str | Path | nn.Module = MODEL,
    *,
    tile: int = TILE,
    device: str = "auto",
) -> Any:
    """Upscale one picture: ``srlab.upscale("photo.jpg").save("large.png")``.

    Args:
        image: a (3, H, W) tensor, float in [0, 1] or uint8; a PIL image; or a file.
        model: a name, file or run that :func:`srlab.models.zoo.load` takes, or a generator.
        tile: side of a tile in pixels of ``image``.
        device: auto, cpu, cuda or mps.

    Returns:
        For a tensor a tensor, (3, H * scale, W * scale), of its dtype, on its device, clamped to
        [0, 1]. Otherwise a PIL image with the mode, alpha and ICC profile of the one given, upright
        and in sRGB if it was CMYK. PIL has no colour of 16 bits: such a file comes back in 8 (the
        command line keeps 16).

    Raises:
        SrlabError: an image that cannot be read, an unknown model, a tile below 1, no such device.
    """
    tiling.check_tile(tile)
    network = prepare(model, device)
    if isinstance(image, Tensor):
        return _upscale_tensor(network, image, tile)
    if not isinstance(image, Image.Image | str | Path):
        got = type(image).__name__
        raise UpscaleError(f"a {got} cannot be upscaled: give a tensor, a PIL image or a file.")
    picture = read_picture(image)
    if picture.samples.shape[2] > 1:
        picture = _in_8_bits(picture)
    height, width, channels = picture.samples.shape
    shape = height * network.scale, width * network.scale, channels
    result, top = np.empty(shape, picture.samples.dtype), 0
    for strip in strips(network, picture, tile):
        result[top : top + len(strip)] = strip
        top += len(strip)
    large = Image.fromarray(result[..., 0] if result.shape[2] == 1 else result)
    if picture.icc:
        large.info["icc_profile"] = picture.icc
    return large


def plan(
    sources: Sequence[str | Path],
    out: str | Path | None = None,
    format: str | None = None,
    scale: int = 4,
) -> list[Job]:
    """Say which files become which.

    ``photo.jpg`` becomes ``photo_x4.jpg`` beside it, and the pictures of a folder ``photos`` go to
    ``photos_x4``. A result has the format of its source, or PNG where that is BMP, GIF or a stream.

    Args:
        sources: files, folders, glob patterns, or ``"-"`` for standard input.
        out: a file for one picture, a folder for more; ``"-"`` is standard output.
        format: png, jpeg, webp or tiff.

    Raises:
        UpscaleError: contradictions among these.
        ImageError: a folder without pictures.
    """
    suffix = _suffix(format)
    found: list[tuple[Path | str, Path | None]] = []  # with the folder for results, if not beside
    for source in map(str, sources):
        if source == STREAM:
            found.append((source, None))
        elif os.path.isdir(source):
            folder = Path(source).resolve()
            into = folder.with_name(f"{folder.name}_x{scale}")
            found += [(file, into) for file in list_images(source)]
        elif glob.has_magic(source) and not os.path.exists(source):
            matches = sorted(Path(m) for m in glob.glob(source, recursive=True))
            found += [(m, None) for m in matches if os.path.isfile(m)] or [(Path(source), None)]
        else:
            found.append((Path(source), None))

    if str(out) == STREAM or (out is None and [source for source, _ in found] == [STREAM]):
        if len(found) != 1:
            raise UpscaleError(f"standard output takes one picture, not {len(found)}: add --out.")
        return [Job(found[0][0], STREAM, FORMATS[suffix or _kept_suffix(found[0][0])])]

    file = Path(out) if out is not None else None
    if file and not os.path.isdir(file) and file.suffix.lower() in {*FORMATS, ".bmp", ".gif"}:
        if len(found) != 1:
            raise UpscaleError(f"--out {file} is one file, not {len(found)}: name a folder.")
        kind = FORMATS.get(file.suffix.lower())
        if kind is None or (suffix and FORMATS[suffix] != kind):
            raise UpscaleError(
                f"--out {file} does not end as a picture in {format or 'a known format'} does: "
                f"use one of {', '.join(s for s in FORMATS if suffix in (None, s))}."
            )
        return [Job(found[0][0], file, kind)]

    if file and file.suffix and not os.path.isdir(file) and str(out)[-1] not in "/\\":
        raise UpscaleError(
            f"--out {file} does not end as a picture does: use one of {', '.join(FORMATS)}, or "
            f"write {file}{os.sep} for a folder of that name."
        )
    jobs = []
    for source, into in found:
        stem = "stdin" if source == STREAM else Path(source).stem
        ending = suffix or _kept_suffix(source)
        folder = file or into or Path(source).parent
        jobs.append(Job(source, folder / f"{stem}_x{scale}{ending}", FORMATS[ending.lower()]))
    return jobs


def run(
    jobs: Sequence[Job],
    network: nn.Module,
    *,
    tile: int = TILE,
    quality: int | None = None,
    force: bool = False,
    progress: bool = False,
) -> list[Outcome]:
    """Upscale pictures one after the other; one that fails does not stop the rest.

    A result appears whole or not at all, never takes the place of its own source, and takes that of
    another file only by ``force``.

    Args:
        jobs: see :func:`plan`.
        network: see :func:`prepare`.
        quality: of JPEG (default 95) and WebP (default: lossless), 1 to 100.
        force: overwrite files that are there from before.
        progress: show megapixels, megapixels a second and the time left, on standard error.

    Returns:
        One :class:`Outcome` a job.

    Raises:
        UpscaleError: a wrong tile or quality, or a result that would take the place of a picture
            still to be read; nothing has been done.
    """
    tiling.check_tile(tile)
    if quality is not None and not 1 <= quality <= 100:
        raise UpscaleError(f"quality must be from 1 to 100, got {quality}: 95 is a good one.")
    outcomes: list[Outcome] = []
    made: set[str] = set()
    _refuse_destroying_sources(jobs)
    sizes = [_expected_pixels(job, network.scale) for job in jobs]
    with _bar(sum(sizes), progress) as bar:
        task = bar.task_ids[0]
        for job, expected in zip(jobs, sizes, strict=True):
            bar.update(task, description=printable(Path(job.source).name))
            begin, before = time.perf_counter(), bar.tasks[0].completed
            name, target = _name(job.source), str(job.target)
            try:
                if os.path.abspath(target) in made:
                    raise UpscaleError(
                        f"{name} was left out: {target} has just been made from another picture. "
                        "Upscale it into another folder."
                    )
                height, width = _upscale_job(
                    job, network, tile, quality, force, lambda n: bar.advance(task, n)
                )
            except SrlabError as error:
                named = name in str(error) or target in str(error)
                why = str(error) if named else f"{name}: {error}"
                outcomes.append(Outcome(name, target, error=why))
                bar.update(task, completed=before, total=bar.tasks[0].total - expected)
            else:
                seconds = time.perf_counter() - begin
                outcomes.append(Outcome(name, target, width, height, seconds))
                made.add(os.path.abspath(target))
    return outcomes


def prepare(model: str | Path | nn.Module, device: str = "auto") -> nn.Module:
    """A generator as it runs fastest with the same result, in evaluation mode, on the device.

    Folded, with a polyphase tail, channels last.

    Args:
        model: a name, file or run that :func:`srlab.models.zoo.load` takes; or a generator, which
            stays as it is.
        device: auto, cpu, cuda or mps.

    Raises:
        SrlabError: no such model or device.
    """
    network = model if isinstance(model, nn.Module) else zoo.load(model)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            device = "mps"
    try:
        return polyphase(fold(network)).eval().to(device, memory_format=torch.channels_last)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UpscaleError(f"device {device} cannot be used ({why}): try cpu.") from error


@torch.inference_mode()
def strips(
    network: nn.Module,
    picture: Picture,
    tile: int = TILE,
    advance: Callable[[int], None] = lambda pixels: None,
) -> Iterator[np.ndarray]:
    """The upscaled picture in strips, each a row of tiles.

    Grey goes through the network as RGB and comes back as its luma; alpha is upscaled by bicubic
    interpolation.

    Args:
        network: see :func:`prepare`.
        advance: is told how many pixels of the result are new.

    Yields:
        (rows, W * scale, C) arrays of the picture's dtype, from top to bottom.

    Raises:
        UpscaleError: no memory for a tile, or a result that is not finite.
    """
    samples, scale = picture.samples, network.scale
    dtype, channels, width = samples.dtype, samples.shape[2], samples.shape[1] * scale
    limit, grey = float(np.iinfo(dtype).max), channels < 3
    alphas = None
    if picture.has_alpha:
        samples = _fill_hidden(samples)
        alphas = tiling.tiles(_OnSamples(Bicubic(scale), limit), _planes(samples[..., -1:]), tile)
        samples = samples[..., :-1]
    parts = tiling.tiles(_OnSamples(network, limit), _planes(samples), tile)
    strip = np.empty((0, width, channels), dtype)
    for _, left, sr in _explained(parts, tile):
        if not sr.sum().isfinite():
            raise UpscaleError(_DIVERGED)
        if grey:
            sr = (sr * sr.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        if alphas:
            alpha = next(alphas)[2][:, :1]
            sr = torch.cat([sr, alpha.to(sr.device)], dim=1)
        part = sr[0].clamp(0, 1).mul(limit).add(0.5).int().permute(1, 2, 0).cpu().numpy()
        if left == 0:
            strip = np.empty((len(part), width, channels), dtype)
        strip[:, left : left + part.shape[1]] = part
        advance(part.shape[0] * part.shape[1])
        if left + part.shape[1] == width:
            yield strip


def _explained(parts: Iterator[Any], tile: int) -> Iterator[Any]:
    """Turn what goes wrong inside the network into an UpscaleError."""
    try:
        yield from parts
    except (MemoryError, RuntimeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UpscaleError(
            f"the model failed ({why}). If memory ran out, make --tile smaller than {tile}."
        ) from error


class _OnSamples(nn.Module):
    """A generator for a file's own integers, of which only one tile at a time becomes floats.

    Shape: (1, 1 or 3, H, W), from 0 to ``limit`` -> (1, 3, H * scale, W * scale), from 0 to 1.
    """

    def __init__(self, network: nn.Module, limit: float):
        super().__init__()
        self.network, self.limit = network, limit
        self.scale, self.receptive_radius = network.scale, network.receptive_radius
        self.device = next(iter(network.parameters()), torch.empty(0)).device

    def forward(self, samples: Tensor) -> Tensor:
        lr = samples.to(torch.float32).div(self.limit).expand(-1, 3, -1, -1)
        return self.network(lr.contiguous(memory_format=torch.channels_last).to(self.device))


def _planes(samples: np.ndarray) -> Tensor:
    """(H, W, C) to (1, C, H, W), the same memory."""
    return torch.from_numpy(samples).permute(2, 0, 1)[None]


def _fill_hidden(samples: np.ndarray, radius: int = 4, rows: int = 512) -> np.ndarray:
    """Give fully transparent pixels the mean colour of their visible neighbours.

    Nobody has seen the colour that a file holds there, often black; a network would smear it into
    the visible edge.

    Args:
        samples: (H, W, colours and alpha).
        radius: how far from a visible pixel colours are filled in; beyond, they stay.
        rows: worked on at once.
    """
    if samples[..., -1].all():
        return samples
    filled = samples.copy()
    for top in range(0, len(samples), rows):
        first = max(top - radius, 0)
        band = _planes(samples[first : top + rows + radius]).float()
        colour, known = band[:, :-1], (band[:, -1:] > 0).float()
        for _ in range(radius):
            weight = F.avg_pool2d(known, 3, stride=1, padding=1)
            mean = F.avg_pool2d(colour * known, 3, stride=1, padding=1) / weight.clamp_min(0.1)
            colour = torch.where((known == 0) & (weight > 0), mean, colour)
            known = (weight > 0).float()
        inner = colour[0, :, top - first : top - first + rows].permute(1, 2, 0)
        filled[top : top + rows, :, :-1] = inner.round().numpy()
    return filled


def _upscale_tensor(network: nn.Module, image: Tensor, tile: int) -> Tensor:
    kind = image.dtype
    if image.ndim != 3 or len(image) != 3 or image.numel() == 0:
        raise UpscaleError(f"a tensor must be (3, H, W), got shape {tuple(image.shape)}.")
    if not (image.is_floating_point() or kind == torch.uint8):
        raise UpscaleError(f"a tensor must hold floats in [0, 1] or uint8, got {kind}.")
    if kind != torch.uint8:
        least, most = (x.item() for x in image.detach().aminmax())
        if not (least >= -_TOLERANCE and most <= 1 + _TOLERANCE):  # NaN is neither
            raise UpscaleError(
                f"a tensor of floats must lie in [0, 1], got {least:g} to {most:g}: divide by what "
                "white is, such as 255, or clamp it."
            )
    device = next(iter(network.parameters()), image).device
    lr = (to_float(image) if kind == torch.uint8 else image.float()).to(device)
    sr = tiling.upscale(network, lr, tile)
    if not sr.sum().isfinite():
        raise UpscaleError(_DIVERGED)
    sr = sr.clamp(0, 1).to(image.device)
    return to_uint8(sr) if kind == torch.uint8 else sr.to(kind)


def _upscale_job(
    job: Job,
    network: nn.Module,
    tile: int,
    quality: int | None,
    force: bool,
    advance: Callable[[int], None],
) -> tuple[int, int]:
    """Do one job; returns the result's height and width."""
    _refuse_overwriting(job, force)
    source = BytesIO(sys.stdin.buffer.read()) if job.source == STREAM else job.source
    picture = read_picture(source)
    if job.kind == "JPEG":
        picture = picture.over_white()
    if job.kind in ("JPEG", "WEBP"):
        picture = _in_8_bits(picture)
    if job.kind == "WEBP" and picture.samples.shape[2] < 3:  # which has no grey
        samples = picture.samples
        samples = np.concatenate([samples[..., :1]] * 3 + [samples[..., 1:]], axis=2)
        picture = Picture(samples)
    height, width, channels = picture.samples.shape
    shape = height * network.scale, width * network.scale, channels
    check_size(job.kind, *shape[:2])

    def write(file: Any) -> None:
        rows = strips(network, picture, tile, advance)
        write_strips(file, job.kind, rows, shape, picture.samples.dtype, picture.icc, quality)

    if job.target == STREAM:
        _to_stdout(write)
    else:
        with replacing(Path(job.target)) as temporary:
            with temporary.open("wb") as file:
                if job.source != STREAM:  # nobody sees the result who may not see the source
                    mode = os.stat(job.source).st_mode & os.stat(temporary).st_mode
                    os.chmod(temporary, stat.S_IMODE(mode) | stat.S_IWUSR)
                write(file)
            _refuse_overwriting(job, force)  # it may have come while this one was made
    return shape[:2]


def _refuse_destroying_sources(jobs: Sequence[Job]) -> None:
    """Refuse a batch in which one picture's result is another picture's file."""

    def identity(file: Path | str) -> tuple[int, int] | None:
        with suppress(OSError, ValueError):
            if file != STREAM:
                status = os.stat(file)
                return status.st_dev, status.st_ino
        return None

    sources = {identity(job.source): job for job in jobs}
    sources.pop(None, None)
    for job in jobs:
        other = sources.get(identity(job.target), job)
        if other is not job:
            raise UpscaleError(
                f"the result of {_name(job.source)} would be {job.target}, which is to be upscaled "
                "itself: leave one of the two out, or name another folder by --out."
            )


def _refuse_overwriting(job: Job, force: bool) -> None:
    target, source = job.target, job.source
    if target == STREAM or not os.path.exists(target):
        return
    if source != STREAM and os.path.exists(source) and os.path.samefile(source, target):
        raise UpscaleError(f"{target} is the picture itself: write the result somewhere else.")
    if not force:
        raise UpscaleError(f"{target} is there already: add --force to overwrite it.")


def _to_stdout(write: Callable[[Any], None]) -> None:
    """All or nothing, by way of a temporary file, in which TIFF can also go back."""
    try:
        with tempfile.NamedTemporaryFile() as file:  # tifffile wants a name
            write(file)
            file.seek(0)
            with open(sys.stdout.fileno(), "wb", closefd=False) as out:  # leaves no unsent rest
                shutil.copyfileobj(file, out)
    except OSError as error:
        why = error.strerror or error
        raise UpscaleError(f"standard output could not be written: {why}.") from error


def _in_8_bits(picture: Picture) -> Picture:
    if picture.samples.dtype == np.uint8:
        return picture
    return Picture(((picture.samples.astype(np.uint32) + 128) // 257).astype(np.uint8), picture.icc)


def _name(source: Path | str) -> str:
    return "standard input" if source == STREAM else str(source)


def _suffix(format: str | None) -> str | None:
    """Of a format by its name: ``jpeg`` -> ``.jpg``."""
    if format is None:
        return None
    names = {"png": ".png", "jpeg": ".jpg", "jpg": ".jpg", "webp": ".webp"}
    names |= {"tiff": ".tif", "tif": ".tif"}
    if format.lower() not in names:
        raise UpscaleError(f"--format {format} is unknown: use png, jpeg, webp or tiff.")
    return names[format.lower()]


def _kept_suffix(source: Path | str) -> str:
    suffix = Path(source).suffix
    return suffix if suffix.lower() in FORMATS else ".png"


def _expected_pixels(job: Job, scale: int) -> int:
    """By the file's header; 0 for one that cannot be read, or not twice."""
    with suppress(SrlabError):
        if job.source != STREAM:
            height, width = picture_size(job.source)
            return height * width * scale**2
    return 0


def _bar(total: int, visible: bool) -> Any:
    """A rich progress bar, counting pixels, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Megapixels(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = f", {task.speed / 1e6:.2f} MP/s" if task.speed else ""
            return Text(f"{task.completed / 1e6:.1f} of {task.total / 1e6:.1f} MP{speed}")

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Megapixels(),
        TimeRemainingColumn(),
        console=console,
        disable=not (visible and console.is_terminal),
        redirect_stdout=False,
        transient=True,
    )
    bar.add_task("", total=total)
    return bar
