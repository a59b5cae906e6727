"""srlab.viz.widgets: what each shows is read back from its pictures; nothing is left behind."""

import asyncio
import base64
import io
import re
import threading
from datetime import UTC, datetime

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ipywidgets import Widget
from ipywidgets.widgets.widget import _instances
from PIL import Image
from torch.nn import functional as F

from srlab.data.bank import PatchBank
from srlab.data.degradation import downsample, upsample
from srlab.data.images import write_image
from srlab.errors import SrlabError
from srlab.models import vgg, zoo
from srlab.models.critics import Discriminator
from srlab.models.generators import SRResNet
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.engine import default_fabric
from srlab.training.game import adversarial
from srlab.training.monitor import TrainingDiverged, read_log
from srlab.training.pretrain import pretrain
from srlab.viz import figures, widgets
from srlab.viz.card import Card
from srlab.viz.explorers import shrink


@pytest.fixture(autouse=True)
def nothing_left():
    """Every test starts and ends without a widget, and so without a comm."""
    Widget.close_all()
    yield
    Widget.close_all()


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return lambda *size: torch.randint(0, 200, size, dtype=torch.uint8, generator=generator)


def decode(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def pictures(html):
    """alt -> pixels of each <img> in a piece of HTML."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', html)
    return {alt: decode(base64.b64decode(data)) for data, alt in found}


def hwc(picture):
    return picture.permute(1, 2, 0).numpy()


def controls(widget):
    """Everything in it that a reader can move or press."""
    for child in getattr(widget, "children", ()):
        yield from controls(child)
    if hasattr(widget, "description") and hasattr(widget, "disabled"):
        yield widget


@pytest.fixture
def make(photo, noise, tmp_path):
    """name -> a fresh widget of each kind."""
    lr = downsample(photo)
    images = {"LR": lr, "bicubic": upsample(lr), "HR": photo}
    config = PretrainConfig(steps=4, batch_size=1, patch_size=8, log_every=1)
    kinds = {
        "compare": lambda: widgets.Compare(images),
        "lens": lambda: widgets.Lens(images),
        "crops": lambda: widgets.CropPicker(PatchBank([noise(3, 40, 64), noise(3, 36, 36)]), 8),
        "degradation": lambda: widgets.DegradationExplorer(photo),
        "taps": lambda: widgets.TapExplorer(vgg.load(taps=("relu1_1", "relu2_1")), photo),
        "training": lambda: widgets.TrainingPanel(tmp_path / "run", config, lr),
        "upload": lambda: widgets.UploadBox(zoo.load("bicubic")),
    }
    return lambda name: kinds[name]()


KINDS = ["compare", "lens", "crops", "degradation", "taps", "training", "upload"]


# --- What holds for all ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_kernel_there_is_a_picture_and_a_text(make, kind):
    widget = make(kind)
    data, metadata = widget._repr_mimebundle_()
    still = decode(base64.b64decode(data["image/png"]))
    size = metadata["image/png"]["height"], metadata["image/png"]["width"]
    assert still.shape[:2] in (size, (2 * size[0], 2 * size[1]))
    assert metadata["image/png"]["alt"] == widget.alt
    assert min(still.shape[:2]) >= 60
    assert still.std() > 0
    assert len(data["image/png"]) < 400_000
    assert len(data["text/plain"]) > 20
    assert re.search("0x|object at", data["text/plain"]) is None  # the same on every run
    assert data["text/plain"] == make(kind)._repr_mimebundle_()[0]["text/plain"]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_has_a_label_and_says_what_it_does(make, kind):
    found = list(controls(make(kind)))
    assert found
    for control in found:
        assert control.description, control
        assert len(control.tooltip) > 5, control
    assert len({control.description for control in found}) == len(found)


def moves(widget, n):
    """Change the widget's controls n times, each in turn, to a value that it had not before."""
    able = [c for c in controls(widget) if hasattr(c, "options") or hasattr(c, "max")]
    able = [c for c in able if type(c).__name__ != "IntProgress"]
    for i in range(n):
        control = able[i % len(able)]
        if hasattr(control, "options"):
            control.index = (control.index + 1) % len(control.options)
        else:
            span = control.max - control.min + 1
            control.value = control.min + (control.value - control.min + 1) % span
        yield


@pytest.mark.parametrize("kind", ["compare", "lens", "crops", "degradation", "taps", "training"])
def test_two_hundred_moves_leave_nothing_behind(make, kind):
    widget = make(kind)
    before, sizes = len(_instances), set()
    for _ in moves(widget, 200):
        sizes.add(tuple(re.findall(r"aspect-ratio: [\d. /]+", widget.view.value)))
    assert len(_instances) == before
    assert plt.get_fignums() == []
    assert len(sizes) <= (2 if kind == "crops" else 1)  # two pictures of two shapes; else no jump
    widget.close()
    assert _instances == {}


def test_running_a_cell_again_closes_what_it_made_before(noise, monkeypatch):
    import IPython

    class Shell:
        execution_count, cell = 1, "a"

        def get_parent(self):
            return {"metadata": {"cellId": self.cell}}

    shell = Shell()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(Card, "_made", {})
    a, b = noise(3, 8, 16), noise(3, 8, 16)
    first, second = widgets.before_after(a, b), widgets.before_after(a, b)
    shell.cell, shell.execution_count = "b", 2
    other = widgets.before_after(a, b)
    assert first.comm
    assert second.comm
    one = len(_instances) // 3
    for shell.execution_count in range(3, 20):
        shell.cell = "a"
        last = widgets.before_after(a, b)
    assert first.comm is None
    assert other.comm
    assert last.comm
    assert len(_instances) == 2 * one


# --- Compare and Lens -----------------------------------------------------------------------------


def test_any_two_of_several_pictures_can_be_chosen(noise):
    a, b, c = (noise(3, 8, 16) for _ in range(3))
    widget = widgets.Compare({"a": a, "b": b, "c": c})
    widget.right.value = "c"
    widget.slider.value = 0
    assert np.array_equal(decode(widget.still())[:, 1:], hwc(c)[:, 1:])
    widget.left.value = "b"
    widget.slider.value = 100
    assert np.array_equal(decode(widget.still())[:, :-1], hwc(b)[:, :-1])
    assert list(pictures(widget.view.value)) == [widget.alt]
    assert "b on the left" in widget.alt


def test_a_page_without_a_kernel_shows_the_same_detail_of_both_at_twice_the_pixels(noise):
    a, b = noise(3, 100, 120), noise(3, 100, 120)
    printed = decode(widgets.before_after(a, b).printed())
    top, left, *_ = figures.most_different_crop(a, b, 100)
    for picture, x in ((a, 12), (b, 218)):
        detail = hwc(picture)[top : top + 100, left : left + 100]
        assert np.array_equal(printed[30:230, x : x + 200, :3], np.kron(detail, np.ones((2, 2, 1))))


def test_zoom_enlarges_the_same_part_of_both(noise):
    a, b = noise(3, 16, 32), noise(3, 16, 32)
    widget = widgets.before_after(a, b)
    assert widget.across.disabled
    widget.zoom.value = 4
    assert not widget.across.disabled
    widget.across.value, widget.down.value = 0, 100
    shown = decode(widget.still())
    for picture, columns in ((a, slice(0, 15)), (b, slice(17, 32))):
        part = hwc(picture)[12:16, 0:8]
        assert np.array_equal(shown[:, columns], np.kron(part, np.ones((4, 4, 1)))[:, columns])


def test_a_smaller_picture_is_enlarged_by_repeating_its_pixels(noise):
    lr, hr = noise(3, 4, 8), noise(3, 16, 32)
    widget = widgets.Compare({"LR": lr, "HR": hr})
    widget.slider.value = 100
    assert np.array_equal(
        decode(widget.still())[:, :-1], np.kron(hwc(lr), np.ones((4, 4, 1)))[:, :-1]
    )


def test_large_pictures_are_seen_pixel_for_pixel_through_a_window_that_moves(noise):
    a, b = noise(3, 60, 90), noise(3, 60, 90)
    widget = widgets.Compare({"a": a, "b": b}, window=(20, 40))
    assert not widget.across.disabled
    assert not widget.down.disabled
    widget.slider.value, widget.down.value, widget.across.value = 100, 100, 0
    assert np.array_equal(decode(widget.still())[:, :-1], hwc(a)[40:, :39])
    widget.zoom.value = 2  # the corner of the picture, not of the window
    shown = np.kron(hwc(a)[50:, :20], np.ones((2, 2, 1)))
    assert np.array_equal(decode(widget.still())[:, :-1], shown[:, :-1])
    whole = widgets.Compare({"a": a, "b": b}, window=(100, 100))
    assert whole.across.disabled
    assert decode(whole.still()).shape == (60, 90, 3)


def test_what_cannot_be_compared_is_refused(noise):
    for kind in (widgets.Compare, widgets.Lens):
        with pytest.raises(ValueError, match="at least two pictures, got 1"):
            kind({"a": noise(3, 8, 8)})
    with pytest.raises(ValueError, match="two different labels, got 'x' twice"):
        widgets.before_after(noise(3, 8, 8), noise(3, 8, 8), ("x", "x"))


def test_the_lens_shows_the_other_picture_enlarged_about_its_centre():
    base, inside = torch.zeros(3, 300, 400), torch.ones(3, 300, 400) / 5
    inside[:, 150:155, 200:205] = 1  # in the lens's centre
    widget = widgets.Lens({"base": base, "inside": inside})
    shown = decode(widget.still())[..., 0]
    assert shown.shape == (300, 400)
    distance = np.hypot(*(np.indices(shown.shape) - np.array([150, 200]).reshape(2, 1, 1)))
    assert (shown[distance > 100] == 0).all()
    assert (shown[distance < 80] >= 51).all()
    assert (shown == 255).sum() == pytest.approx(25 * 16, rel=0.2)  # 5 x 5 pixels, four times
    widget.across.value = widget.down.value = 0
    assert decode(widget.still())[290:, 390:].max() == 0
    assert decode(widget.still())[10, 10].min() == 51


def test_a_moved_lens_sends_no_picture(make):
    widget = make("lens")
    style, view = widget.style.value, widget.view.value
    widget.across.value = 90
    assert (widget.style.value, widget.view.value) == (style, view)
    assert len(widget.rest.value) < 200


# --- Crops, degradation, taps ---------------------------------------------------------------------


def test_the_crop_picker_shows_the_banks_own_crops(noise):
    images = [noise(3, 40, 64), noise(3, 36, 36)]
    widget = widgets.CropPicker(PatchBank(images), 8)
    widget.image.value = 2
    widget.down.value, widget.across.value = 1, 0
    lr, hr = widget.crops
    assert torch.equal(hr, images[1][:, 4:36, 0:32])
    assert torch.equal(lr, (downsample(images[1] / 255) * 255).round().byte()[:, 1:9, 0:8])

    widget.turn.value = 5  # a quarter turn against the clock, then mirrored: a transposition
    shown = pictures(widget.view.value)
    turned = np.fliplr(np.rot90(hwc(hr)))
    assert np.array_equal(shown["HR crop, 32 x 32"], turned)
    assert np.array_equal(shown["LR crop, 8 x 8"], np.fliplr(np.rot90(hwc(lr))))
    eight = [shown[name] for name in shown if re.match(r"as it is|\d+°", name)]
    assert len({picture.tobytes() for picture in eight}) == len(eight) == 8
    marked = np.argwhere((shown["LR picture, 9 x 9"] == (230, 159, 0)).all(-1))
    assert marked.min(0).tolist() == [1, 0]
    assert marked.max(0).tolist() == [8, 7]


def test_a_picture_too_small_for_the_crop_is_named(noise):
    bank = PatchBank([noise(3, 40, 40), noise(3, 20, 40)], names=["big.png", "small.png"])
    with pytest.raises(SrlabError, match=r"small\.png is too small for an LR crop of 8"):
        widgets.CropPicker(bank, 8)


@pytest.mark.parametrize(
    ("kernel", "pillow"),
    [
        ("bicubic", Image.Resampling.BICUBIC),
        ("bilinear", Image.Resampling.BILINEAR),
        ("box", Image.Resampling.BOX),
    ],
)
def test_pictures_are_shrunk_as_pillow_does(photo, kernel, pillow):
    pixels = Image.fromarray(hwc((photo * 255).round().byte()))
    for scale in (2, 4, 8):
        expected = np.asarray(pixels.resize((128 // scale, 96 // scale), pillow)).astype(int)
        shown = hwc((shrink(photo, scale, kernel) * 255).round().byte())
        inside = slice(2, -2)  # borders: Pillow drops what lies outside, MATLAB mirrors
        assert np.abs(shown - expected)[inside, inside].max() <= 1
    alone = shrink(photo[..., :126], 3, "box", antialias=False)  # one pixel of each block
    assert torch.equal(alone, photo[:, 1:96:3, 1:126:3])


def test_the_degradation_explorer_shows_what_its_controls_say(photo):
    widget = widgets.DegradationExplorer(photo)
    widget.kernel.value, widget.scale.value, widget.antialias.value = "box", 2, False
    shown, spectrum = pictures(widget.view.value).values()
    expected = widget.hr[:, 1::2, 1::2]
    assert np.array_equal(shown, hwc((expected * 255).round().byte()))
    assert torch.equal(widget.lr, expected)
    assert "1/2 by the box kernel without antialiasing" in widget.alt
    assert spectrum.std() > 0


def test_only_antialiasing_keeps_false_detail_out_of_the_spectrum():
    waves = 0.5 + 0.4 * torch.cos(torch.arange(96) * 2 * torch.pi * 0.3)  # too fine for 1/4
    widget = widgets.DegradationExplorer(waves.expand(3, 96, 96))
    inside = slice(3, -3)  # at the border the mirrored wave has a kink
    assert widget.lr[..., inside].std() < 0.01
    widget.antialias.value = False
    assert widget.lr[..., inside].std() > 0.2


def test_the_tap_explorer_shows_the_chosen_map(photo):
    features = vgg.load(taps=("relu1_1", "pool1"))
    widget = widgets.TapExplorer(features, photo)
    widget.tap.value, widget.channel.value = "pool1", 3
    x = (photo - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    first, second = features.layers[0], features.layers[2]
    x = F.relu(F.conv2d(x[None], first.weight, first.bias, padding=1))
    x = F.relu(F.conv2d(x, second.weight, second.bias, padding=1))
    expected = F.max_pool2d(x, 2)[0, 2]
    torch.testing.assert_close(widget.map, expected)
    assert widget.channel.max == features.channels["pool1"]
    shown = pictures(widget.view.value)[widget.alt][..., 0]
    assert shown.shape == expected.shape
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.999
    assert f"{expected.max():.2f} (white)" in widget.view.value
    widget.channel.value = widget.channel.max
    widget.tap.value = "relu1_1"  # fewer or as many channels: the slider follows


# --- Training -------------------------------------------------------------------------------------


def config(**settings):
    small = {"steps": 30, "batch_size": 2, "patch_size": 8, "log_every": 3, "validate_every": 0}
    return PretrainConfig(**small | settings)


def train(panel, noise, **options):
    torch.manual_seed(0)
    bank = PatchBank([noise(3, 64, 64)], seed=1)
    options = {"fabric": default_fabric("cpu")} | options
    return asyncio.run(panel.run(pretrain, SRResNet(n_blocks=1, n_features=4), bank, **options))


@pytest.mark.parametrize("name", ["pretrain", "adversarial"])
def test_both_loops_call_on_step_after_each_step_and_end_saved_when_it_says_so(
    name, noise, tmp_path, capsys
):
    seen = []

    def on_step(step, generator):
        seen.append((step, generator.training, next(generator.parameters()).clone()))
        return step == 4

    def go(steps, on_step=None):
        torch.manual_seed(0)
        settings = {"steps": steps, "batch_size": 2, "patch_size": 8, "log_every": 2}
        settings |= {"validate_every": 0, "schedule": "constant"}
        bank, generator = PatchBank([image], seed=1), SRResNet(n_blocks=1, n_features=4)
        options = {"fabric": default_fabric("cpu"), "progress": False, "on_step": on_step}
        if name == "pretrain":
            return pretrain(generator, bank, PretrainConfig(**settings), tmp_path, **options)
        critic = Discriminator(patch_size=32, n_features=4)
        settings = AdversarialConfig(**settings)
        return adversarial(generator, critic, bank, settings, tmp_path, **options)

    image = noise(3, 64, 64)
    result = go(9, on_step)
    assert result.step == 4
    assert [step for step, *_ in seen] == [1, 2, 3, 4]
    assert not any(training for _, training, _ in seen)
    assert torch.equal(seen[-1][2], next(result.generator.parameters()))  # the average
    assert "Stopped after step 4 of 9" in capsys.readouterr().out
    assert go(6).step == 6  # on from step 4, to the end
    assert next(iter(read_log(tmp_path / "log.csv").values()))[0] == [2, 4, 6]


def test_the_panel_shows_a_run_and_does_not_change_it(noise, tmp_path, photo):
    panel = widgets.TrainingPanel(tmp_path / "a", config(), photo[:, :16, :16], every=0.2)
    image = noise(3, 64, 64)
    result = train(panel, lambda *_: image)
    assert result.step == 30
    assert panel.status.value == "finished after step 30 of 30"
    assert panel.bar.value == 30
    assert panel.button.disabled
    curve, sample = pictures(panel.view.value).values()
    assert curve.std() > 0
    assert sample.shape == (64, 64, 3)
    assert "sample, step 30" in panel.view.value

    torch.manual_seed(0)
    plain = pretrain(
        SRResNet(n_blocks=1, n_features=4), PatchBank([image], seed=1), config(), tmp_path / "b",
        fabric=default_fabric("cpu"), progress=False,
    )  # fmt: skip
    for p, q in zip(result.generator.parameters(), plain.generator.parameters(), strict=True):
        assert torch.equal(p, q)


def test_stop_ends_the_run_after_its_step_and_the_same_call_goes_on(noise, tmp_path, capsys):
    panel = widgets.TrainingPanel(tmp_path, config(steps=100_000), every=0.01)
    threading.Timer(1.0, panel.button.click).start()
    stopped = train(panel, noise)
    assert 0 < stopped.step < 100_000
    assert panel.status.value == f"stopped after step {stopped.step} of 100000"
    assert panel.button.disabled
    assert f"Stopped after step {stopped.step}" in capsys.readouterr().out

    panel = widgets.TrainingPanel(tmp_path, config(steps=stopped.step + 2), every=0.01)
    assert train(panel, noise).step == stopped.step + 2
    assert panel.status.value.startswith("finished")


def test_an_interrupted_kernel_stops_the_run_in_the_same_way(noise, tmp_path):
    panel = widgets.TrainingPanel(tmp_path, config(steps=100_000), every=0.01)

    async def interrupted():
        bank = PatchBank([noise(3, 64, 64)])
        generator = SRResNet(n_blocks=1, n_features=4)
        cell = asyncio.create_task(panel.run(pretrain, generator, bank))
        while not panel.last:
            await asyncio.sleep(0.05)
        cell.cancel()  # what ipykernel does
        return await cell

    result = asyncio.run(interrupted())
    assert 0 < result.step < 100_000
    assert (tmp_path / "checkpoint.safetensors").is_file()


def test_speed_and_time_left_are_told_in_plain_words(tmp_path):
    panel = widgets.TrainingPanel(tmp_path, config(steps=1010, batch_size=4))
    panel.first, panel.last = (0, 100.0), (10, 105.0)  # two steps a second
    panel._tell()
    assert panel.status.value == "step 10 of 1010, 8 patches/s, 8 min 20 s left"


def test_a_run_that_fails_says_so_in_the_panel_and_in_the_cell(noise, tmp_path):
    panel = widgets.TrainingPanel(tmp_path, config(lr=1e30), every=0.01)
    with pytest.raises(TrainingDiverged):
        train(panel, noise)
    assert "became NaN or infinite" in panel.status.value
    assert panel.button.disabled


def test_the_panel_knows_the_games_columns(tmp_path):
    panel = widgets.TrainingPanel(tmp_path, AdversarialConfig())
    assert {"critic_loss", "gap", "content", "val_psnr"} <= set(panel.curve.options)
    panel.curve.value = "gap"
    assert panel.alt.startswith("gap of a training run")


# --- Upload ---------------------------------------------------------------------------------------


def upload(box, name, content, wait=True):
    file = {
        "name": name,
        "type": "image/png",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime.now(UTC),
    }
    box.upload.value = (file,)
    if wait:
        box.work.join(60)


def downloaded(box):
    return decode(
        base64.b64decode(re.search(r'href="data:image/png;base64,([^"]+)"', box.link.value)[1])
    )


def test_a_photo_comes_back_four_times_as_large_with_a_link(photo, tmp_path):
    write_image(photo, tmp_path / "cat.png")
    box = widgets.UploadBox(zoo.load("bicubic"))
    upload(box, "../my <cat>.png", (tmp_path / "cat.png").read_bytes())
    assert 'download="my &lt;cat&gt;-x4.png"' in box.link.value
    result = downloaded(box)
    expected = (upsample(photo) * 255).round().byte()
    assert result.shape == (384, 512, 3)
    assert np.abs(result.astype(int) - hwc(expected)).max() <= 1
    assert "96 x 128 to 384 x 512 pixels" in box.status.value
    assert box.upload.value == ()  # the same file can be chosen again


def test_of_a_large_photo_the_centre_is_taken_and_the_text_says_so(photo, tmp_path):
    write_image(photo, tmp_path / "cat.png")
    box = widgets.UploadBox(zoo.load("bicubic"), max_pixels=24 * 32)
    upload(box, "cat.png", (tmp_path / "cat.png").read_bytes())
    expected = upsample(photo[:, 36:60, 48:80])
    assert np.abs(downloaded(box) / 255 - hwc(expected)).max() < 0.003
    assert "Only the centre was taken from its 96 x 128 pixels" in box.status.value
    assert "srlab upscale cat.png" in box.status.value


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0"])
def test_what_is_no_picture_is_one_sentence(content):
    box = widgets.UploadBox(zoo.load("bicubic"))
    upload(box, "notes.txt", content)
    assert box.status.value.startswith("notes.txt was not enlarged. notes.txt is ")
    assert "/tmp" not in box.status.value
    assert not box.view.children


class Slow(torch.nn.Module):
    """Repeats pixels, one tile each time that it is allowed to; scale and border of a generator."""

    scale, receptive_radius = 4, 0

    def __init__(self):
        super().__init__()
        self.allowed, self.begun, self.tiles = threading.Semaphore(0), threading.Semaphore(0), 0

    def forward(self, lr):
        self.begun.release()
        assert self.allowed.acquire(timeout=60)
        self.tiles += 1
        return F.interpolate(lr, scale_factor=self.scale)


@pytest.fixture
def four_tiles(tmp_path):
    """A photo that takes four tiles, as a file's content and as a tensor."""
    pixels = torch.rand(3, 200, 230, generator=torch.Generator().manual_seed(0))
    write_image(pixels, tmp_path / "noise.png")
    return (tmp_path / "noise.png").read_bytes(), pixels


def test_a_photo_is_enlarged_in_a_thread_and_shown_beside_bicubic_pixel_for_pixel(four_tiles):
    content, pixels = four_tiles
    box = widgets.UploadBox(network := Slow())
    upload(box, "noise.png", content, wait=False)  # returns although no tile is done
    assert network.begun.acquire(timeout=60)
    assert box.status.value == "enlarging noise.png, 200 x 230 ..."
    assert (box.bar.value, box.upload.disabled, box.button.disabled) == (0, True, False)
    network.allowed.release()
    assert network.begun.acquire(timeout=60)
    assert box.bar.value == pytest.approx(192 * 192 / (200 * 230))
    network.allowed.release(3)
    box.work.join(60)
    assert (box.bar.value, box.upload.disabled, box.button.disabled) == (1, False, True)

    large = np.kron(hwc((pixels * 255).round().byte()), np.ones((4, 4, 1)))
    assert np.array_equal(downloaded(box), large)
    (compare,) = box.view.children
    assert (compare.left.value, compare.right.value) == ("bicubic", "enlarged")
    compare.slider.value, compare.down.value, compare.across.value = 0, 0, 100
    (shown,) = pictures(compare.view.value).values()
    height, width = shown.shape[:2]
    assert (height, width) == (420, 840)
    assert "width: 840px" in compare.view.value  # one screen pixel each
    assert np.array_equal(shown[:, 1:], large[:height, -width + 1 :])

    network.allowed.release(4)
    upload(box, "noise.png", content)  # a second photo takes the first one's place
    assert len(box.view.children) == 1
    assert box.view.children != (compare,)
    assert compare.comm is None


def test_enlarging_a_photo_can_be_cancelled_and_begun_again(four_tiles):
    content, _ = four_tiles
    box = widgets.UploadBox(network := Slow())
    upload(box, "noise.png", content, wait=False)
    assert network.begun.acquire(timeout=60)
    box.button.click()
    network.allowed.release(4)
    box.work.join(60)
    assert network.tiles == 1
    assert box.status.value == "noise.png was not enlarged: cancelled."
    assert (box.bar.value, box.link.value, box.view.children) == (0, "", ())
    network.allowed.release(1)  # three are left of those above
    upload(box, "noise.png", content)
    assert network.tiles == 5
    assert "200 x 230 to 800 x 920 pixels" in box.status.value


def test_a_network_that_fails_is_a_sentence_and_a_closed_box_falls_silent(four_tiles):
    content, _ = four_tiles

    class Broken(Slow):
        def forward(self, lr):
            raise RuntimeError("out of memory")

    box = widgets.UploadBox(Broken())
    upload(box, "noise.png", content)
    assert box.status.value == "noise.png was not enlarged. out of memory"
    assert not box.upload.disabled

    box = widgets.UploadBox(network := Slow())
    upload(box, "noise.png", content, wait=False)
    assert network.begun.acquire(timeout=60)
    box.close()
    network.allowed.release(4)
    box.work.join(60)
    assert network.tiles == 1
