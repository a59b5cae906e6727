"""srlab.viz: what is drawn is read back from the PNG; spectra and crops against closed forms."""

import base64
import hashlib
import io
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from torch.testing import assert_close

from srlab.viz import diagrams, figures
from srlab.viz.widgets import before_after

CLONE = Path(__file__).parents[1]
BLUE, VERMILION = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's


@pytest.fixture
def noise():
    """(channels, height, width) -> uint8 noise, none of it white."""
    generator = torch.Generator().manual_seed(0)
    return lambda *size: torch.randint(0, 200, size, dtype=torch.uint8, generator=generator)


def decode(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def hwc(picture):
    return picture.permute(1, 2, 0).numpy()


def bounds(mask):
    """The first and last row and column where the mask holds."""
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max(), columns.min(), columns.max()


def find(canvas, tile):
    """(zoom, row, column) where the pixels of tile (H, W, 3) stand as zoom x zoom squares."""
    first = np.pad((canvas == tile[0, 0]).all(-1), ((1, 0), (1, 0)))
    corners = np.argwhere(first[1:, 1:] & ~first[:-1, 1:] & ~first[1:, :-1])
    for row, column in corners:
        run = canvas[row, column:] == tile[0, 0]
        zoom = int(run.all(-1).argmin())
        square = np.kron(tile, np.ones((zoom, zoom, 1), np.uint8))
        height, width, _ = square.shape
        if np.array_equal(canvas[row : row + height, column : column + width], square):
            yield zoom, int(row), int(column)


def near(canvas, colour):
    return (np.abs(canvas.astype(int) - colour) <= 8).all(-1)


def shown(figure):
    """The PNG file that a notebook stores, its size in pixels and the size that it is shown at."""
    data, metadata = figure._repr_mimebundle_()
    file = base64.b64decode(data["image/png"])
    told = metadata["image/png"]
    return file, Image.open(io.BytesIO(file)).size, (told["width"], told["height"])


def texts(figure):
    return [t.get_text() for t in figure.texts] + [
        t.get_text() for axes in figure.axes for t in axes.texts
    ]


# --- every figure


def test_large_photographs_are_stored_as_they_are_and_lines_in_few_bytes(noise):
    figure = figures.compare({f"{i}": noise(3, 250, 250) for i in range(3)})
    file, pixels, size = shown(figure)
    assert file == figure.png()
    assert pixels == size
    lines = figures.curves({"a": (range(9), range(9)), "b": (range(9), range(9, 0, -1))}, "x", "y")
    plain = io.BytesIO()
    lines.savefig(plain, format="png", dpi=2 * figures.DPI)
    assert len(lines.png(2)) < len(plain.getvalue()) / 2
    assert np.abs(decode(lines.png(2)).astype(int) - decode(plain.getvalue())).max() <= 4


FIGURES = {
    "compare": lambda x: figures.compare({"LR": x[:, ::2, ::2], "HR": x}, (4, 8, 8, 8)),
    "grid": lambda x: figures.grid(x.unfold(2, 8, 8).permute(2, 0, 1, 3), ncol=2),
    "curves": lambda x: figures.curves({"train": ([0, 1], [3, 2])}, "step", "loss"),
    "bars": lambda x: figures.bars({"bicubic": 1.0, "SRResNet": 2.0}, "PSNR (dB)"),
    "spectrum": lambda x: figures.spectrum({"LR": x[:, ::2, ::2], "HR": x}, scale=2),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_png_and_says_in_words_what_it_shows(name, noise):
    x = noise(3, 24, 32)
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name](x)
    data, metadata = figure._repr_mimebundle_()
    assert isinstance(figure, matplotlib.figure.Figure)
    assert set(data) == {"image/png", "text/plain"}
    file, pixels, size = shown(figure)
    assert file == figure.png(2) == FIGURES[name](x).png(2)
    assert pixels == (2 * size[0], 2 * size[1])
    assert Image.open(io.BytesIO(figure.png())).size == size
    assert data["text/plain"] == metadata["image/png"]["alt"] == figure.alt
    assert figure.alt in repr(figure)
    assert decode(figure.png()).shape[:2] == tuple(reversed(figure.bbox.size.astype(int)))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("compare", ["LR", "HR"]),
        ("grid", ["4"]),
        ("curves", ["train", "step", "loss"]),
        ("bars", ["bicubic", "SRResNet", "PSNR (dB)"]),
        ("spectrum", ["LR", "HR"]),
    ],
)
def test_the_words_name_what_is_drawn(name, named, noise):
    alt = FIGURES[name](noise(3, 24, 32)).alt
    assert all(word in alt for word in named)


def test_the_words_can_be_chosen(noise):
    x = noise(3, 8, 8)
    for figure in (
        figures.compare({"a": x}, alt="A cat."),
        figures.grid(x[None], alt="A cat."),
        figures.curves({"a": ([1], [1])}, "x", "y", alt="A cat."),
        figures.bars({"a": 1}, "x", alt="A cat."),
        figures.spectrum({"a": x}, alt="A cat."),
    ):
        assert figure._repr_mimebundle_()[0]["text/plain"] == "A cat."


def test_another_process_without_a_display_draws_the_same_bytes():
    code = (
        "import sys, hashlib, torch\n"
        "from srlab.viz import figures\n"
        "x = torch.linspace(0, 1, 768).view(3, 16, 16)\n"
        "png = figures.compare({'HR': x}, (4, 4, 8, 8), {'HR': '27.31 dB'}).png()\n"
        "print(hashlib.sha256(png).hexdigest(), 'matplotlib.pyplot' in sys.modules)\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env.pop("MPLBACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CLONE, env=env, capture_output=True, text=True
    )
    x = torch.linspace(0, 1, 768).view(3, 16, 16)
    png = figures.compare({"HR": x}, (4, 4, 8, 8), {"HR": "27.31 dB"}).png()
    assert done.stdout.split() == [hashlib.sha256(png).hexdigest(), "False"], done.stderr


def test_a_saved_figure_is_the_one_shown(tmp_path, noise):
    figure = figures.compare({"HR": noise(3, 16, 16)}, (4, 4, 8, 8))
    figure.savefig(tmp_path / "figure.png")
    assert np.array_equal(decode((tmp_path / "figure.png").read_bytes()), decode(figure.png()))
    assert "Software" not in Image.open(tmp_path / "figure.png").info


def test_the_package_imports_neither_matplotlib_nor_ipywidgets():
    code = (
        "import sys, srlab, srlab.models, srlab.models.generators, srlab.training.recipes\n"
        "print({'matplotlib', 'ipywidgets', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CLONE, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


# --- picture


def test_a_picture_is_clamped_and_rounded():
    x = torch.tensor([-1.0, 0.0, 0.2, 1.0, 7.0, math.nan]).view(1, 2, 3)
    expected = np.array([[0, 0, 51], [255, 255, 0]], np.uint8)
    for image in (x, x[None], x.expand(3, 2, 3), x.double().requires_grad_()):
        assert np.array_equal(figures.picture(image), expected[..., None].repeat(3, 2))


def test_a_uint8_picture_is_shown_as_it_is(noise):
    x = noise(3, 5, 7)
    assert np.array_equal(figures.picture(x), hwc(x))
    assert np.array_equal(figures.picture(x / 255), hwc(x))


@pytest.mark.parametrize("shape", [(8, 9), (2, 8, 9), (8, 9, 3), (2, 3, 8, 9), (3, 0, 9)])
def test_what_is_no_picture_is_refused_by_its_shape(shape):
    bad, good = torch.zeros(shape), torch.zeros(3, 8, 9)
    for call in (
        lambda: figures.picture(bad),
        lambda: figures.compare({"good": good, "bad": bad}),
        lambda: figures.most_different_crop(good, bad, 4),
        lambda: figures.radial_power(bad),
        lambda: before_after(good, bad),
    ):
        with pytest.raises(ValueError, match=r"\(3, H, W\)") as error:
            call()
        assert str(shape) in str(error.value)


# --- compare


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("size", "crop"), [((4, 4), (1, 0, 2, 3)), ((37, 53), (3, 2, 7, 5)), ((90, 60), (82, 56, 8, 4))]
)
def test_compare_draws_the_pixels_of_a_crop_as_whole_squares(count, size, crop, noise):
    images = {f"picture {i}": noise(3, *size) for i in range(count)}
    canvas = decode(figures.compare(images, crop).png())
    top, left, height, width = crop
    places = []
    for image in images.values():
        tile = hwc(image)[top : top + height, left : left + width]
        places.append(max(find(canvas, tile), default=None))
    assert None not in places
    zooms, rows, columns = zip(*places, strict=True)
    assert zooms[0] > 1
    assert len(set(zooms)) == len(set(rows)) == 1
    assert list(columns) == sorted(set(columns))  # in the order given, side by side


def test_compare_enlarges_the_small_picture_by_repeating_its_pixels(noise):
    hr, lr = noise(3, 32, 48), noise(3, 8, 12)
    canvas = decode(figures.compare({"LR": lr, "HR": hr}, (8, 16, 8, 12)).png())
    small = max(find(canvas, hwc(lr)[2:4, 4:7]))
    large = max(find(canvas, hwc(hr)[8:16, 16:28]))
    assert small[0] == 4 * large[0]
    assert small[1] == large[1]


def test_compare_marks_the_crop_where_it_is():
    image = torch.zeros(3, 40, 60)
    image[2] = 1
    canvas = decode(figures.compare({"blue": image}, (8, 12, 20, 24)).png()).astype(int)
    blue = near(canvas, (0, 0, 255))
    top, _, left, right = bounds(blue)
    scale = (right + 1 - left) / 60
    frame = bounds((canvas[..., 0] > 200) & (canvas[..., 2] < 60))  # neither blue nor grey
    expected = top + 8 * scale, top + 28 * scale, left + 12 * scale, left + 36 * scale
    assert frame == pytest.approx(expected, abs=2)
    first, last, left, right = frame
    assert blue[first + 4 : last - 3, left + 4 : right - 3].all()
    whole = decode(figures.compare({"blue": image}).png()).astype(int)
    assert not ((whole[..., 0] > 200) & (whole[..., 2] < 60)).any()


def test_compare_writes_titles_and_captions_above_the_pictures():
    blue = torch.zeros(3, 16, 16)
    blue[2] = 1
    images = {"bicubic": blue, "HR": blue}
    one, other = (figures.compare(images, captions={"bicubic": x}) for x in ("27.31 dB", "8 dB"))
    assert texts(one) == ["bicubic", "27.31 dB", "HR"]
    assert texts(figures.compare(images)) == ["bicubic", "HR"]
    one, other = decode(one.png()), decode(other.png())
    _, written, _, _ = bounds((one != other).any(-1))
    top, _, _, _ = bounds(near(one, (0, 0, 255)))
    assert written < top


@pytest.mark.parametrize(
    "crop", [(0, 0, 9, 4), (0, 0, 4, 13), (5, 0, 4, 4), (-1, 0, 4, 4), (0, 9, 4, 4), (0, 0, 0, 4)]
)
def test_compare_refuses_a_crop_that_does_not_lie_inside(crop):
    with pytest.raises(ValueError, match="largest picture, 8 x 12 pixels") as error:
        figures.compare({"LR": torch.zeros(3, 4, 6), "HR": torch.zeros(3, 8, 12)}, crop)
    assert str(crop) in str(error.value)


def test_compare_needs_a_picture():
    with pytest.raises(ValueError, match="images is empty"):
        figures.compare({})


# --- most_different_crop


def brute_force(a, b, size):
    a, b = (x.numpy().astype(float).clip(0, 1) for x in (a, b))
    places = [
        (np.abs(a - b)[:, top : top + size, left : left + size].mean(), top, left)
        for top in range(0, a.shape[1] - size + 1, 4)
        for left in range(0, a.shape[2] - size + 1, 4)
    ]
    return *max(places)[1:], size, size


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(16, 16, 4), (32, 24, 8), (24, 40, 24), (37, 53, 12), (30, 30, 28), (16, 16, 16)],
)
def test_most_different_crop_equals_a_search_everywhere(height, width, size):
    generator = torch.Generator().manual_seed(height)
    for _ in range(5):
        a, b = 1.4 * torch.rand(2, 3, height, width, generator=generator) - 0.2
        assert figures.most_different_crop(a, b, size) == brute_force(a, b, size)
        assert figures.most_different_crop(a[None], b[None], size) == brute_force(a, b, size)


def test_most_different_crop_of_8_bit_pictures_is_that_of_their_floats(noise):
    for _ in range(5):
        a, b = noise(3, 32, 40), noise(3, 32, 40)
        expected = brute_force(a / 255, b / 255, 8)
        assert figures.most_different_crop(a, b, 8) == expected
        assert figures.most_different_crop(a, b / 255, 8) == expected


def test_most_different_crop_refuses_different_sizes():
    with pytest.raises(ValueError, match=r"\(3, 16, 16\) and \(3, 16, 20\)"):
        figures.most_different_crop(torch.zeros(3, 16, 16), torch.zeros(3, 16, 20), 8)


@pytest.mark.parametrize("size", [0, -4, 6, 20])
def test_most_different_crop_refuses_a_size_that_does_not_fit(size):
    x = torch.zeros(3, 16, 24)
    with pytest.raises(ValueError, match=rf"multiple of 4 .* \(16, 24\) pixels, got {size}\."):
        figures.most_different_crop(x, x, size)


# --- grid


@pytest.mark.parametrize("titled", [False, True])
@pytest.mark.parametrize(
    ("count", "ncol", "rows", "columns"), [(6, 3, 2, 3), (7, 3, 3, 3), (1, 8, 1, 1), (8, 8, 1, 8)]
)
def test_grid_draws_row_by_row(count, ncol, rows, columns, titled, noise):
    batch = noise(count, 3, 10, 7)
    titles = [f"patch {i}" for i in range(count)] if titled else None
    figure = figures.grid(batch, ncol, titles)
    canvas = decode(figure.png())
    places = [max(find(canvas, hwc(image)))[1:] for image in batch]
    assert len({row for row, _ in places}) == rows
    assert len({column for _, column in places}) == columns
    assert places == sorted(places)
    assert texts(figure) == (titles or [])


def test_grid_refuses_what_it_cannot_lay_out():
    batch = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\), got shape \(3, 8, 8\)"):
        figures.grid(batch[0])
    with pytest.raises(ValueError, match=r"got shape \(0, 3, 8, 8\)"):
        figures.grid(batch[:0])
    with pytest.raises(ValueError, match="3 titles for 2 pictures"):
        figures.grid(batch, titles=["a", "b", "c"])
    with pytest.raises(ValueError, match="ncol must be at least 1, got 0"):
        figures.grid(batch, ncol=0)


# --- curves and bars


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_curves_draws_the_points_it_is_given(kind):
    x, y = [0, 10, 20], [3.0, 2.0, 1.5]
    series = {"train": (kind(x), kind(y)), "valid": (kind(x[1:]), kind(y[:2]))}
    figure = figures.curves(series, "step", "loss", {"bicubic": 2.5}, logy=True)
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[0, 3], [10, 2], [20, 1.5]]
    assert axes.lines[1].get_xydata().tolist() == [[10, 3], [20, 2]]
    assert set(axes.lines[2].get_ydata()) == {2.5}
    assert "bicubic" in texts(figure)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["train", "valid"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("step", "loss", "log")


def test_curves_leaves_a_gap_where_there_is_no_number():
    y = torch.ones(101, requires_grad=True) + 0
    y[41:60] = math.nan  # nothing between 40 and 60
    canvas = decode(figures.curves({"loss": (range(101), y)}, "step", "loss").png())
    drawn = np.unique(np.nonzero(near(canvas, BLUE))[1])
    gap, extent = np.diff(drawn).max(), drawn[-1] - drawn[0]
    assert gap / extent == pytest.approx(0.2, abs=0.01)


def test_bars_are_as_long_as_their_numbers():
    values = {"bicubic": 10.0, "SRResNet": 30.0, "SRGAN": 20.0}
    figure = figures.bars(values, "time (ms)", fmt=".1f", highlight="SRResNet")
    canvas = decode(figure.png())
    blue, vermilion = near(canvas, BLUE), near(canvas, VERMILION)
    top, bottom, *_ = bounds(blue)
    first, last, left, right = bounds(vermilion)
    assert top < first < last < bottom  # in the order given
    longest = right - left
    assert blue[:first].sum(1).max() / longest == pytest.approx(1 / 3, abs=0.02)
    assert blue[last:].sum(1).max() / longest == pytest.approx(2 / 3, abs=0.02)
    assert texts(figure) == ["10.0", "30.0", "20.0"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(values)
    assert figure.axes[0].get_xlabel() == "time (ms)"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.curves({}, "x", "y"),
        lambda: figures.bars({}, "x"),
        lambda: figures.spectrum({}),
    ],
)
def test_nothing_to_draw_is_said_plainly(draw):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw()


# --- spectra


def rings(height, width):
    """How many frequencies of an image lie nearest to each multiple of 1/n."""
    n = min(height, width)
    fy, fx = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    return np.array([(np.round(n * np.hypot(fy, fx)) == k).sum() for k in range(1, n // 2 + 1)])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (33, 47)])
def test_frequencies_go_up_to_half_a_cycle_per_pixel(height, width):
    frequency, power = figures.radial_power(torch.rand(3, height, width))
    n = min(height, width)
    assert_close(frequency, torch.arange(1, n // 2 + 1).double() / n)
    assert frequency.shape == power.shape == (n // 2,)
    assert power.dtype == torch.float64


def test_the_spectrum_of_white_noise_is_flat_at_its_variance():
    x = 0.5 + 0.1 * torch.randn(1, 384, 512, generator=torch.Generator().manual_seed(0))
    x = x.expand(3, -1, -1)
    variance = (rgb2ycbcr(x.permute(1, 2, 0).double().numpy())[..., 0] / 255).var()
    power = figures.radial_power(x)[1] / variance
    octaves = [power[start : 2 * start].mean().item() for start in (12, 24, 48, 96)]
    assert octaves == pytest.approx([1, 1, 1, 1], abs=0.1)
    assert octaves[2:] == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("cycles", [5, 16, 26])
def test_the_spectrum_of_a_wave(cycles, transposed):
    """The peak is at the wave's frequency, and by Parseval's theorem all of it amounts to its mean
    square, once per pixel. A Hann window spreads it to the next frequencies and no further."""
    amplitude, n = 0.3, 64
    wave = 0.5 + amplitude * torch.cos(2 * torch.pi * cycles * torch.arange(n) / n)
    x = wave.double().expand(3, n, n)
    frequency, power = figures.radial_power(x.mT if transposed else x)
    assert frequency[power.argmax()] == cycles / n
    luma = amplitude * 219 / 255
    total = power.numpy() * rings(n, n)
    assert total.sum() == pytest.approx(n * n * luma**2 / 2, rel=1e-5)
    assert total[cycles - 2 : cycles + 1].sum() == pytest.approx(total.sum(), rel=1e-5)


def test_a_plain_picture_has_no_spectrum():
    assert figures.radial_power(torch.full((3, 32, 32), 0.7))[1].max() < 1e-20


def test_the_spectrum_of_an_8_bit_picture_is_that_of_its_floats(noise):
    x = noise(3, 32, 40)
    for image in (x, x[:1]):
        assert_close(figures.radial_power(image)[1], figures.radial_power(image.double() / 255)[1])


def test_spectrum_puts_pictures_of_different_sizes_on_one_footing():
    """Every second sample of a scene without fine detail holds the same waves."""
    t = torch.arange(96).double() / 96
    wave = 0.5 + 0.2 * torch.cos(2 * torch.pi * 6 * t) + 0.2 * torch.cos(2 * torch.pi * 15 * t)
    hr = wave.expand(3, 96, 96)
    figure = figures.spectrum({"LR": hr[:, ::2, ::2], "HR": hr}, scale=2)
    lr, hr = (line.get_xydata() for line in figure.axes[0].lines[:2])
    assert (lr[-1, 0], hr[-1, 0]) == (0.25, 0.5)
    held = hr[: len(lr), 1] > 1e-6
    assert_close(lr[:, 0], hr[: len(lr), 0])
    assert_close(lr[held, 1], hr[: len(lr)][held, 1])
    assert held[[5, 14]].all()
    assert set(figure.axes[0].lines[2].get_xdata()) == {0.25}


# --- before_after


def still(widget):
    """The PNG file in the widget's <img>, which must have an alternative text."""
    data, alt = re.fullmatch(
        r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)" style="[^"]+">', widget.view.value
    ).groups()
    assert alt == widget.alt
    return base64.b64decode(data)


@pytest.mark.parametrize("value", [0, 50, 100, 37])
def test_left_of_a_white_line_is_one_picture_and_right_of_it_the_other(value, noise):
    a, b = noise(3, 20, 64), noise(3, 20, 64)
    widget = before_after(a, b / 255)
    widget.slider.value = value
    shown = decode(still(widget))
    (line,) = np.nonzero((shown == 255).all((0, 2)))
    first, last = line[0], line[-1] + 1
    assert len(line) == last - first <= 2
    assert first <= 0.64 * value + 0.5
    assert last >= 0.64 * value - 0.5
    assert np.array_equal(shown[:, :first], hwc(a)[:, :first])
    assert np.array_equal(shown[:, last:], hwc(b)[:, last:])


def test_the_line_starts_in_the_middle_and_moves_with_the_slider(noise):
    widget = before_after(noise(3, 8, 16), noise(3, 8, 16))
    assert widget.slider.value == 50
    middle = widget.view.value
    widget.slider.value = 75
    moved = widget.view.value
    widget.slider.value = 50
    assert moved != middle == widget.view.value


def test_where_no_kernel_runs_a_still_picture_is_shown(noise):
    widget = before_after(noise(3, 8, 16), noise(3, 8, 16), labels=("bicubic", "SRGAN"))
    data, _ = widget._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == widget.printed()
    assert all(label in data["text/plain"] for label in ("bicubic", "SRGAN"))
    view = data["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == widget.model_id
    caption = " ".join(child.value for child in widget.children if hasattr(child, "placeholder"))
    assert all(label in caption for label in ("bicubic", "SRGAN"))


def test_before_after_uses_nothing_that_ipywidgets_is_about_to_drop(noise):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        before_after(noise(3, 8, 16), noise(3, 8, 16))


def test_before_after_needs_pictures_of_one_size():
    with pytest.raises(ValueError, match=r"\(3, 8, 16\) and \(3, 8, 12\)"):
        before_after(torch.zeros(3, 8, 16), torch.zeros(3, 8, 12))


# --- Repeated measurements and heat maps ----------------------------------------------------------


def test_dots_stand_at_their_numbers_and_the_bar_at_their_mean():
    values = {"a": [1.0, 2.0, 6.0], "b": [4.0, 4.0, 4.0]}
    figure = figures.dots(values, "PSNR (dB)", vlines={"bicubic": 5.0}, alt="dots")
    axes = figure.axes[0]
    assert figure.alt == "dots"
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == list(values.values())
    means = [segments.get_segments()[0][0][0] for segments in axes.collections]
    assert means == pytest.approx([3.0, 4.0])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    assert texts(figure) == ["bicubic"]
    # In the order given, the first on top, and drawn: blue dots at two heights.
    rows = np.flatnonzero(near(decode(figure.png()), VERMILION).any(1))
    assert rows.max() - rows.min() > 40
    with pytest.raises(ValueError, match="values is empty"):
        figures.dots({}, "x")


def test_a_heatmap_writes_each_number_and_leaves_nan_empty():
    values = torch.tensor([[1.0, math.nan], [0.25, 2.0]])
    figure = figures.heatmap(values, ["r1", "r2"], ["c1", "c2"], "source", "joint", fmt=".2f")
    axes = figure.axes[0]
    assert texts(figure) == ["1.00", "0.25", "2.00"]
    assert [t.get_position() for t in axes.texts] == [(0, 0), (0, 1), (1, 1)]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["c1", "c2"]
    drawn = axes.images[0].get_array()
    assert np.ma.getmaskarray(np.ma.masked_invalid(drawn)).tolist() == [[0, 1], [0, 0]]
    assert figure.png() == figure.png()
    with pytest.raises(ValueError, match=r"shape \(2, 2\), labels are 3 and 2"):
        figures.heatmap(values, ["a", "b", "c"], ["c1", "c2"])


def test_intervals_stand_at_their_numbers():
    values = {"a": (1.0, 0.5, 2.0), "b": (3.0, 2.5, 3.25)}
    figure = figures.intervals(values, "correlation", vlines={"none": 0.0})
    axes = figure.axes[0]
    assert [line.get_xdata()[0] for line in axes.lines[:2]] == [1.0, 3.0]
    ends = [tuple(lines.get_segments()[0][:, 0]) for lines in axes.collections]
    assert ends == [(0.5, 2.0), (2.5, 3.25)]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    assert texts(figure) == ["none"]
    assert figure.alt == "Intervals of correlation: a and b"
    assert figure.png() == figure.png()
    shaded = figures.intervals(values, "correlation", band=(-1.0, 1.5)).axes[0].patches
    assert [(p.get_x(), p.get_x() + p.get_width()) for p in shaded] == [(-1.0, 1.5)]
    with pytest.raises(ValueError, match="values is empty"):
        figures.intervals({}, "x")


@pytest.mark.parametrize("log", [True, False])
def test_a_contour_is_brightest_where_the_value_is_largest(log):
    x, y = np.meshgrid([1.0, 10.0, 100.0], [1.0, 10.0, 100.0])
    figure = figures.contour(
        x.ravel(), y.ravel(), x.ravel(), "x", "y", "value", log=log, alt="rises to the right"
    )
    axes = figure.axes[0]
    (dots,) = axes.lines
    scale = np.log10 if log else np.asarray
    places = sorted(zip(scale(x).flat, scale(y).flat, strict=True))
    assert sorted(zip(*dots.get_data(), strict=True)) == places
    canvas = decode(figure.png())
    ticks = [float(tick.get_text()) for tick in axes.get_xticklabels()]
    assert scale(ticks) == pytest.approx(axes.get_xticks(), abs=0.02)
    places = axes.transData.transform(scale([(3.0, 30.0), (60.0, 30.0)])).round().astype(int)
    left, right = (canvas[len(canvas) - 1 - row, column].sum() for column, row in places)
    assert right > left + 60
    with pytest.raises(ValueError, match="three places or more"):
        figures.contour([1, 2], [1, 2], [1, 2], "x", "y", "value")


def test_no_two_of_28_models_look_alike():
    assert len(set(figures.styles(str(i) for i in range(28)).values())) == 28


def test_points_of_a_plane_stand_at_their_numbers_under_their_names():
    points = {"bicubic": (26.0, 0.5), "GAN": (25.5, 0.2), "net": (27.0, 0.4)}
    path = [(27.0, 0.4), (26.5, 0.3), (25.5, 0.2)]
    figure = figures.plane(points, "PSNR", "LPIPS", {"between": path})
    axes = figure.axes[0]
    found = {dot.get_label(): tuple(dot.get_offsets()[0]) for dot in axes.collections}
    assert found == points
    looks = {
        (tuple(d.get_facecolor()[0]), len(d.get_paths()[0].vertices)) for d in axes.collections
    }
    assert len(looks) == len(points)
    assert {t.get_text(): t.xy for t in axes.texts} == points
    assert len({t.get_color() for t in axes.texts}) == len(points)
    same = figures.plane({"net": (27.0, 0.4)}, "PSNR", "LPIPS", styles=figures.styles(points))
    assert same.axes[0].texts[0].get_color() == axes.texts[2].get_color()
    assert list(zip(*axes.lines[0].get_data(), strict=True)) == path
    assert figure.alt == "LPIPS against PSNR: bicubic, GAN and net"
    assert figure.png() == figure.png()
    with pytest.raises(ValueError, match="points is empty"):
        figures.plane({}, "x", "y")


def test_names_of_near_points_and_of_short_axes_can_be_read():
    figure = figures.plane(
        {"srresnet": (28.06, 0.108), "wdrn": (28.01, 0.1085), "far": (26, 0.2)}, "x", "y"
    )
    figure.png()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    rows = {"a claim that needs very many words: inconclusive": (0.0, -1.0, 1.0)}
    figure = figures.intervals(rows, "effect in margins (0.05 dB, 0.005 LPIPS); right: as claimed")
    figure.png()
    box = figure.axes[0].xaxis.label.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_no_two_lines_of_eight_look_alike():
    figure = figures.curves({str(i): ([0, 1], [i, i]) for i in range(8)}, "step", "loss")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 8


@pytest.mark.parametrize("draw", ["srresnet", "discriminator", "game", "dense_block"])
def test_a_drawn_network_fills_its_card_and_says_what_it_shows(draw):
    figure = getattr(diagrams, draw)()
    ink = (decode(figure.png()) < 200).any(-1)
    top, bottom, left, right = bounds(ink)
    height, width = ink.shape
    assert min(top, left) > 2  # nothing is cut off
    assert bottom < height - 3
    assert right < width - 3
    assert right - left > 0.8 * width
    assert len(figure.alt) > 80
