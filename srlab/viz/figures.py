"""Figures: pictures side by side with an enlarged crop, curves, bars and spectra.

Every function returns a :class:`Figure` and leaves pyplot alone, so nothing stays registered,
nothing is drawn twice and matplotlib's global settings are as they were. Pictures are tensors
(3, H, W) or (1, 3, H, W) on any device, float in [0, 1] (values outside are clamped) or uint8; one
channel in place of three is shown as grey.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

import matplotlib
import matplotlib.figure
import matplotlib.patheffects
import matplotlib.ticker
import matplotlib.tri
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from srlab.data.images import luma, to_uint8

DPI = 80
LARGE = 300_000  # bytes of a figure with photographs above which it stays at one pixel to a pixel
# Okabe and Ito's colours, which colour-blind readers can tell apart, less the yellow, which is
# hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"
DASHED = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 1.2}  # a line of reference
# The white card is part of the picture: it reads the same on a light and on a dark page.
STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "savefig.bbox": None,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so every machine draws it alike
    "font.size": 11,
    "text.color": INK,
    "axes.facecolor": "white",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that says in words what it shows.

    In a notebook it appears as a PNG whose plain text is ``alt``: a text that neither a rerun nor
    another machine changes, and that a screen reader can read. It holds no measured numbers.
    """

    def __init__(self, width: float, height: float, alt: str):
        """``width`` and ``height`` in pixels."""
        super().__init__(figsize=(width / DPI, height / DPI), dpi=DPI)
        self.alt = alt

    @matplotlib.rc_context(STYLE)
    def savefig(self, fname: str | PathLike | io.IOBase, **options) -> None:
        """As in matplotlib, always in the course's style and without matplotlib's version."""
        name = str(options.get("format") or getattr(fname, "name", fname)).lower()
        if name.endswith("png"):
            options.setdefault("metadata", {"Software": None})
        super().savefig(fname, **options)

    def png(self, scale: int = 1) -> bytes:
        """The figure as a PNG file; the same figure always gives the same bytes.

        Args:
            scale: pixels of the file to one of the figure.
        """
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=scale * DPI, pil_kwargs={"compress_level": 9})
        if self._holds_photographs():
            return buffer.getvalue()
        # Lines and letters need few colours, and with a palette a third of the bytes.
        few = {"method": Image.Quantize.MAXCOVERAGE, "dither": Image.Dither.NONE}
        flat = Image.open(buffer).convert("RGB").quantize(256, **few)
        buffer = io.BytesIO()
        flat.save(buffer, format="png", optimize=True)
        return buffer.getvalue()

    def _holds_photographs(self) -> bool:
        images = [image for axes in self.axes for image in axes.images]
        return any(image.get_array().ndim == 3 for image in images)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        """Twice the pixels, for screens that have them, shown at the figure's own size.

        A notebook must stay small enough to open: large photographs come as they are.
        """
        png = self.png(2)
        if len(png) > LARGE and self._holds_photographs():
            png = self.png()
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": self.alt}
        width, height = self.bbox.size.astype(int).tolist()
        return data, {"image/png": {"alt": self.alt, "width": width, "height": height}}

    def __repr__(self) -> str:
        return f"<Figure: {self.alt}>"

    __str__ = __repr__


Style = tuple[str, str]  # colour and marker
Point = tuple[float, float]


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A colour and a marker for each name, to keep through all figures of a chapter.

    Neither colour nor shape alone: together they tell 28 points apart.
    """
    shapes = "osD^vP*"
    return {
        n: (COLOURS[i % len(COLOURS)], shapes[(i // 2 + i // 14) % len(shapes)])
        for i, n in enumerate(names)
    }


_styles = styles  # where an argument bears its name


@matplotlib.rc_context(STYLE)
def compare(
    images: Mapping[str, Tensor],
    crop: tuple[int, int, int, int] | None = None,
    captions: Mapping[str, str] | None = None,
    *,
    alt: str | None = None,
) -> Figure:
    """Pictures of one scene in a row, with the same detail of each enlarged beneath.

    Args:
        images: title -> picture. Smaller ones (the LR) are enlarged to the extent of the largest
            by repeating pixels, so what is seen is what they hold.
        crop: (top, left, height, width) of the detail, in pixels of the largest picture. Each of
            its pixels is drawn as a square of whole screen pixels. See
            :func:`most_different_crop`.
        captions: title -> a second line, for instance ``"27.31 dB"``.
        alt: the figure in words; by default it names the pictures.

    Raises:
        ValueError: no images, or a crop that does not lie inside the largest one.
    """
    if not images:
        raise ValueError("compare needs at least one picture: images is empty.")
    pictures = {title: picture(image) for title, image in images.items()}
    rows, columns = max((p.shape[:2] for p in pictures.values()), key=math.prod)
    top, left, height, width = crop or (0, 0, rows, columns)
    if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
        raise ValueError(
            f"crop (top, left, height, width) = {crop} does not lie inside the largest picture, "
            f"{rows} x {columns} pixels (height x width)."
        )

    pad, gap, head = 12, 10, 44 if captions else 24
    panel = min(320, max(150, (960 - 2 * pad) // len(pictures) - gap), int(360 * columns / rows))
    if crop and width <= panel:
        panel = round(panel / width) * width  # a crop pixel becomes a whole number of pixels
    tall, detail = round(panel * rows / columns), round(panel * height / width) if crop else -gap
    if not alt:
        detailed = ", with an enlarged detail of each" * bool(crop)
        alt = f"Comparison of {_listed(pictures)}{detailed}"
    size = 2 * pad + len(pictures) * (panel + gap) - gap, head + tall + gap + detail + pad
    figure = Figure(*size, alt)
    for i, (title, image) in enumerate(pictures.items()):
        x = pad + i * (panel + gap)
        whole = _panel(figure, x, head, panel, tall)
        # Repeating whole pixels first keeps them crisp when matplotlib fits the picture in.
        step = max(1, round(columns / image.shape[1]))
        image = image.repeat(step, 0).repeat(step, 1)
        extent = (0, columns, rows, 0)
        overview = image
        if panel < image.shape[1]:  # no more pixels than a panel has: the detail shows the rest
            shrunk = Image.fromarray(image).resize((panel, tall), Image.Resampling.HAMMING)
            overview = np.asarray(shrunk)
        kind = "antialiased" if overview is image else "nearest"
        whole.imshow(overview, extent=extent, aspect="auto", interpolation=kind)
        _write(figure, x, 15, title, weight="bold", size=_fit(pictures, panel, 0.7))
        if captions and title in captions:
            _write(figure, x, 33, captions[title], color=GREY)
        if crop:
            for colour, line in (("white", 3.2), (COLOURS[4], 1.6)):
                style = {"fill": False, "edgecolor": colour, "linewidth": line}
                whole.add_patch(Rectangle((left, top), width, height, **style))
            zoom = _panel(figure, x, head + tall + gap, panel, detail)
            zoom.imshow(image, extent=extent, aspect="auto", interpolation="nearest")
            zoom.set(xlim=(left, left + width), ylim=(top + height, top))
    return figure


def most_different_crop(a: Tensor, b: Tensor, size: int = 64) -> tuple[int, int, int, int]:
    """Where two pictures differ most: a rule to choose a detail by, in place of taste.

    Args:
        a, b: pictures of the same size.
        size: height and width of the crop, a multiple of 4.

    Returns:
        (top, left, height, width) of the square with the largest mean absolute difference. Its
        corner lies on a multiple of 4, so that the crop covers whole LR pixels too.

    Raises:
        ValueError: sizes differ, ``size`` is no multiple of 4, or the pictures are smaller.
    """
    a, b = (_double(x).clamp(0, 1) for x in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"the two pictures differ in size: {tuple(a.shape)} and {tuple(b.shape)}.")
    if size < 4 or size % 4 or size > min(a.shape[-2:]):
        raise ValueError(
            f"size must be a multiple of 4 that fits into {tuple(a.shape[-2:])} pixels, got {size}."
        )
    cells = F.avg_pool2d((a - b).abs().mean(0, keepdim=True), 4)
    means = F.avg_pool2d(cells, size // 4, stride=1)[0]
    top, left = divmod(int(means.argmax()), means.shape[1])
    return 4 * top, 4 * left, size, size


@matplotlib.rc_context(STYLE)
def grid(
    batch: Tensor, ncol: int = 8, titles: Sequence[str] | None = None, *, alt: str | None = None
) -> Figure:
    """A batch of patches, (N, 3, H, W), row by row, each drawn in whole screen pixels.

    Raises:
        ValueError: the batch is empty or has the wrong shape, titles are not N, or ncol < 1.
    """
    if batch.ndim != 4 or len(batch) == 0:
        raise ValueError(f"grid needs a batch (N, 3, H, W), got shape {tuple(batch.shape)}.")
    if titles is not None and len(titles) != len(batch):
        raise ValueError(f"grid got {len(titles)} titles for {len(batch)} pictures.")
    if ncol < 1:
        raise ValueError(f"ncol must be at least 1, got {ncol}.")
    n, height, width = len(batch), *batch.shape[-2:]
    ncol = min(ncol, n)
    pad, gap, head = 12, 6, 18 if titles else 0
    zoom = max(1, round(min(160, 936 / ncol - gap) / width))
    wide, tall = zoom * width, zoom * height
    figure = Figure(
        2 * pad + ncol * (wide + gap) - gap,
        2 * pad + math.ceil(n / ncol) * (head + tall + gap) - gap,
        alt or f"Grid of {n} pictures" + (f": {_listed(titles)}" if titles else ""),
    )
    size, titles = 10.0, titles or []  # a title may reach across empty ones to its right
    for i, title in enumerate(titles):
        row = titles[i + 1 : (i // ncol + 1) * ncol]
        free = next((k for k, other in enumerate(row) if other), len(row))
        size = min(size, _fit([title], wide + free * (wide + gap)))
    for i, image in enumerate(batch):
        x, y = pad + i % ncol * (wide + gap), pad + i // ncol * (head + tall + gap)
        panel = _panel(figure, x, y + head, wide, tall)
        panel.imshow(picture(image), aspect="auto", interpolation="nearest")
        if titles:
            _write(figure, x, y + 8, titles[i], size=size)
    return figure


@matplotlib.rc_context(STYLE)
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    hlines: Mapping[str, float] | None = None,
    logy: bool = False,
    *,
    styles: Mapping[str, Style] | None = None,
    alt: str | None = None,
) -> Figure:
    """Lines such as learning curves, with dashed lines of reference.

    Args:
        series: label -> (x, y), lists, arrays or tensors of equal length.
        hlines: label -> y, for instance ``{"bicubic": 26.7}``.
        logy: logarithmic y axis.
        styles: label -> (colour, marker), as :func:`styles` gives them; the colour is used.

    Raises:
        ValueError: no series.
    """
    if not series:
        raise ValueError("curves has nothing to draw: series is empty.")
    figure, axes = _chart(600, 340, alt or f"{ylabel} against {xlabel}: {_listed(series)}")
    for label, (x, y) in series.items():
        x, y = _numbers(x), _numbers(y)
        colour = (styles or {}).get(label, (None, ""))[0]
        again = not colour and len(axes.lines) >= len(COLOURS)
        style = {"marker": "o" if len(x) <= 25 else None, "linestyle": "--" if again else "-"}
        axes.plot(x, y, label=label, color=colour, **style)
    if logy:
        axes.set_yscale("log")
    for label, y in (hlines or {}).items():
        axes.axhline(y, zorder=1, **DASHED)
        place = (1, y), (6, 0), ("axes fraction", "data"), "offset points"
        axes.annotate(label, *place, va="center", color=GREY)
    _name_axes(axes, xlabel, ylabel)
    if len(series) > 1:
        columns = 570 // (50 + 7.5 * max(map(len, series)))
        columns = min(4, len(series), max(1, int(columns)))
        figure.legend(loc="outside upper left", ncols=columns, handlelength=1.4)
    return figure


@matplotlib.rc_context(STYLE)
def bars(
    values: Mapping[str, float],
    xlabel: str,
    fmt: str = ".2f",
    highlight: str | None = None,
    *,
    alt: str | None = None,
) -> Figure:
    """Horizontal bars from zero, the number written beside each.

    Args:
        values: label -> length, drawn from top to bottom.
        fmt: how a number is written, as in ``format(x, fmt)``.
        highlight: the label of one bar in a second colour.

    Raises:
        ValueError: no values.
    """
    figure, axes = _rows("Bars", values, xlabel, alt, 60)
    colours = [COLOURS[label == highlight] for label in values]
    drawn = axes.barh(list(values), list(values.values()), height=0.66, color=colours)
    axes.bar_label(drawn, [format(v, fmt) for v in values.values()], padding=4)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=1)
    _name_rows(axes, xlabel)
    return figure


@matplotlib.rc_context(STYLE)
def dots(
    values: Mapping[str, Sequence[float]],
    xlabel: str,
    vlines: Mapping[str, float] | None = None,
    *,
    alt: str | None = None,
) -> Figure:
    """Repeated measurements: one dot each, a row for each label, the row's mean as a bar.

    Args:
        values: label -> measurements, drawn from top to bottom.
        vlines: label -> x of a dashed line of reference.

    Raises:
        ValueError: no values.
    """
    figure, axes = _rows("Dots", values, xlabel, alt)
    for y, row in enumerate(map(_numbers, values.values())):
        axes.plot(row, np.full(len(row), y), "o", color=COLOURS[0], alpha=0.7, clip_on=False)
        axes.vlines(row.mean(), y - 0.28, y + 0.28, color=COLOURS[1], linewidth=2)
    _label_rows(axes, values, xlabel, vlines)
    return figure


@matplotlib.rc_context(STYLE)
def intervals(
    values: Mapping[str, tuple[float, float, float]],
    xlabel: str,
    vlines: Mapping[str, float] | None = None,
    *,
    band: tuple[float, float] | None = None,
    alt: str | None = None,
) -> Figure:
    """Estimates with their intervals: a dot and a line for each label.

    Args:
        values: label -> (estimate, low, high), drawn from top to bottom.
        vlines: label -> x of a dashed line of reference.
        band: (low, high) of a shaded range, such as that of differences that do not matter.

    Raises:
        ValueError: no values.
    """
    figure, axes = _rows("Intervals", values, xlabel, alt)
    if band:
        axes.axvspan(*band, color=GREY, alpha=0.18, linewidth=0, zorder=0)
    for y, (middle, low, high) in enumerate(values.values()):
        axes.hlines(y, low, high, color=COLOURS[0], linewidth=3, alpha=0.6)
        axes.plot([middle], [y], "o", color=COLOURS[0], markersize=8, clip_on=False)
    _label_rows(axes, values, xlabel, vlines)
    return figure


@matplotlib.rc_context(STYLE)
def plane(
    points: Mapping[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    paths: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    alt: str | None = None,
) -> Figure:
    """Named points in a plane, such as models by distortion and perception.

    Y. Blau, T. Michaeli, "The perception-distortion tradeoff", CVPR 2018, arXiv:1711.06077.

    Args:
        points: name -> (x, y); the name is written beside the point.
        paths: label -> points (x, y) of a line, for instance of interpolated networks.
        styles: name -> (colour, marker); by default those of :func:`styles`.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("plane has nothing to draw: points is empty.")
    figure, axes = _chart(760, 420, alt or f"{ylabel} against {xlabel}: {_listed(points)}")
    styles = _styles(points) | dict(styles or {})
    for label, line in (paths or {}).items():
        x, y = _numbers(list(zip(*line, strict=True)))
        axes.plot(x, y, color=GREY, label=label, marker=".", linewidth=1.2, zorder=1)
    for name, at in points.items():
        colour, marker = styles[name]
        style = {"color": colour, "marker": marker, "edgecolors": "white"}
        axes.scatter(*at, s=80, linewidths=0.8, zorder=2, label=name, **style)
    axes.margins(0.14)
    roads = [at for line in (paths or {}).values() for at in line]
    for name, (x, y, side) in _room(axes, points, roads).items():
        axes.annotate(
            name, points[name], xytext=(x, y), textcoords="offset points", ha=side, va="center",
            color=styles[name][0], weight="bold", size=9.5, zorder=3,
            path_effects=[matplotlib.patheffects.withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    _name_axes(axes, xlabel, ylabel)
    return figure


def _room(
    axes: Axes, points: Mapping[str, Point], others: Sequence[Point]
) -> dict[str, tuple[float, float, str]]:
    """Where each name covers least of what is there: its offset in points and its alignment."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    width, height = axes.get_figure().bbox.size - (90, 70)  # about what the labels leave

    def place(at: Point) -> Point:
        return (at[0] - left) / (right - left) * width, (at[1] - low) / (high - low) * height

    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in map(place, points.values())]
    taken += [(x - 3, y - 3, x + 3, y + 3) for x, y in map(place, others)]
    found = {}
    for name, (x, y) in zip(points, map(place, points.values()), strict=True):
        long, sides = 8.2 * len(name), {"left": 0.0, "center": -0.5, "right": -1.0}
        best = math.inf
        for dx, dy, side in _PLACES:
            begin, middle = x + dx * DPI / 72 + sides[side] * long, y + dy * DPI / 72
            box = begin, middle - 8, begin + long, middle + 8
            outside = max(0, -box[0], box[2] - width, -box[1], box[3] - height)
            cost = 1000 * outside + sum(_overlap(box, other) for other in taken)
            if cost < best:
                best, found[name], chosen = cost, (dx, dy, side), box
        taken.append(chosen)
    return found


# Offsets of a name from its mark in points, the preferred first.
_PLACES = [
    (10, 6, "left"), (-10, 6, "right"), (10, -7, "left"), (-10, -7, "right"),
    (0, 16, "center"), (0, -16, "center"), (6, 22, "left"), (-6, 22, "right"),
    (6, -22, "left"), (-6, -22, "right"), (0, 34, "center"), (0, -34, "center"),
]  # fmt: skip


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area in which two boxes (left, bottom, right, top) overlap."""
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, tall)


@matplotlib.rc_context(STYLE)
def heatmap(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str = "",
    ylabel: str = "",
    fmt: str = ".2f",
    *,
    alt: str | None = None,
) -> Figure:
    """A matrix as coloured cells with the number written in each; NaN leaves a cell empty.

    Args:
        values: (len(rows), len(columns)).

    Raises:
        ValueError: the labels do not fit the matrix.
    """
    matrix = _numbers(values)
    if matrix.shape != (len(rows), len(columns)):
        raise ValueError(
            f"heatmap needs a label for each row and column: values has the shape "
            f"{matrix.shape}, labels are {len(rows)} and {len(columns)}."
        )
    alt = alt or f"Heat map of {_listed(rows)} against {_listed(columns)}"
    figure, axes = _chart(150 + 64 * len(columns), 110 + 34 * len(rows), alt)
    drawn = axes.imshow(matrix, cmap="cividis", aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            colour = "white" if drawn.norm(value) < 0.55 else INK
            axes.text(j, i, format(value, fmt), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    _name_axes(axes, xlabel, ylabel)
    return figure


@matplotlib.rc_context(STYLE)
def contour(
    x: Sequence[float],
    y: Sequence[float],
    values: Sequence[float],
    xlabel: str,
    ylabel: str,
    label: str,
    log: bool = True,
    *,
    alt: str | None = None,
) -> Figure:
    """A surface over two parameters, drawn between the places where it was measured.

    Straight interpolation between neighbours (Delaunay's triangles), nothing outside of them. Each
    measured place is a dot: how much of the picture is guessed can be seen.

    Args:
        x, y: the places, at least three that are not on one line.
        values: at each place; brighter is larger.
        label: of the values.
        log: logarithmic axes.

    Raises:
        ValueError: fewer than three places, or the lengths differ.
    """
    x, y, values = _numbers(x), _numbers(y), _numbers(values)
    if not len(x) == len(y) == len(values) or len(x) < 3:
        raise ValueError(
            f"contour needs three places or more, each with x, y and a value; got {len(x)}, "
            f"{len(y)} and {len(values)} of them."
        )
    figure, axes = _chart(600, 380, alt or f"Contours of {label} over {xlabel} and {ylabel}")
    # Logarithms are taken here, not by the axes: straight lines of the drawn plane are meant.
    x, y = (np.log10(x), np.log10(y)) if log else (x, y)
    scaled = [(v - v.min()) / (np.ptp(v) or 1) for v in (x, y)]
    triangles = matplotlib.tri.Triangulation(*scaled).triangles
    mesh = matplotlib.tri.Triangulation(x, y, triangles)
    surface = axes.tricontourf(mesh, values, levels=8, cmap="cividis")
    axes.plot(x, y, "o", color="white", markeredgecolor=INK, markersize=6, clip_on=False)
    if log:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
            axis.set_major_formatter(lambda power, _: f"{10**power:.2g}")
    axes.grid(False)
    _name_axes(axes, xlabel, ylabel)
    bar = figure.colorbar(surface, ax=axes)
    bar.set_label(label, size=_fit([label], 320))
    bar.outline.set_visible(False)
    return figure


def radial_power(image: Tensor) -> tuple[Tensor, Tensor]:
    """Power spectral density of a picture's luma, averaged over all directions.

    The mean is taken off and a Hann window keeps the jump between opposite borders out of the
    spectrum (Harris, "On the use of windows for harmonic analysis", Proc. IEEE 66(1), 1978).
    White noise of variance v has the density v at every frequency.

    Returns:
        ``frequency`` in cycles/pixel, from 1/n to 1/2 where n is the shorter side, and ``power``,
        both (n // 2,) float64.
    """
    image = _double(image)
    y = (luma(image) if len(image) == 3 else image)[0]
    height, width = y.shape
    window = torch.outer(
        *(torch.hann_window(n, dtype=y.dtype, device=y.device) for n in (height, width))
    )
    y = (y - (y * window).sum() / window.sum()) * window
    power = torch.fft.fft2(y).abs().square() / window.square().sum()
    fy, fx = (torch.fft.fftfreq(n, dtype=y.dtype, device=y.device) for n in (height, width))
    n = min(height, width)
    ring = (torch.hypot(fy[:, None], fx) * n).round().long().flatten()
    total, count = torch.bincount(ring, power.flatten()), torch.bincount(ring)
    rings = torch.arange(1, n // 2 + 1)
    return rings.double() / n, (total / count).cpu()[rings]


@matplotlib.rc_context(STYLE)
def spectrum(
    images: Mapping[str, Tensor],
    scale: int | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    alt: str | None = None,
) -> Figure:
    """How much detail of each size pictures hold: power of the luma against frequency.

    Args:
        images: title -> picture. The axis counts in pixels of the largest picture; a smaller one
            (the LR) is put on the same footing, and its curve ends at its own finest detail.
        scale: mark the finest detail that an LR picture of 1/scale the size can hold, at
            0.5/scale cycles/pixel.
        styles: as in :func:`curves`.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("spectrum has nothing to draw: images is empty.")
    widest = max(image.shape[-1] for image in images.values())
    series = {}
    for title, image in images.items():
        step = widest / image.shape[-1]
        frequency, power = radial_power(image)
        series[title] = (frequency / step, power * step**2)
    names = "frequency (cycles/pixel)", "power of luma"
    alt = alt or f"Power spectrum of {_listed(images)}"
    figure = curves(series, *names, logy=True, styles=styles, alt=alt)
    axes = figure.axes[0]
    for line in axes.lines:
        line.set_marker("")
    axes.set_xlim(0, 0.5)
    if scale:
        axes.axvline(0.5 / scale, **DASHED)
        text, place = f" finest detail of the 1/{scale} picture", ("data", "axes fraction")
        axes.annotate(text, (0.5 / scale, 0.98), xycoords=place, va="top", color=GREY)
    return figure


def picture(image: Tensor) -> np.ndarray:
    """A picture as matplotlib and PIL take it: (H, W, 3) uint8."""
    image = _chw(image)
    if image.dtype != torch.uint8:
        image = to_uint8(image.float().nan_to_num(0))
    return image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()


def _chw(image: Tensor) -> Tensor:
    """Drop a batch axis of one; complain about anything that is not a picture."""
    chw = image.detach()[0] if image.ndim == 4 and len(image) == 1 else image.detach()
    if chw.ndim != 3 or chw.shape[0] not in (1, 3) or 0 in chw.shape:
        raise ValueError(
            f"a picture has the shape (3, H, W) or (1, 3, H, W), got {tuple(image.shape)}."
        )
    return chw


def _double(image: Tensor) -> Tensor:
    """(C, H, W) float64 in [0, 1], where white is 1 in 8-bit pictures too."""
    chw = _chw(image).double()
    return chw / 255 if image.dtype == torch.uint8 else chw


def _panel(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes for a picture at pixels counted from the figure's top left corner."""
    w, h = figure.get_size_inches() * DPI
    axes = figure.add_axes((x / w, 1 - (y + height) / h, width / w, height / h))
    axes.set_axis_off()
    return axes


def _chart(width: int, height: int, alt: str) -> tuple[Figure, Axes]:
    """A figure that makes room for all its labels."""
    figure = Figure(width, height, alt)
    figure.set_layout_engine("constrained", w_pad=6 / DPI, h_pad=6 / DPI)
    return figure, figure.add_subplot()


def _rows(
    kind: str, values: Mapping[str, object], xlabel: str, alt: str | None, head: int = 80
) -> tuple[Figure, Axes]:
    """A chart with a row for each value, below ``head`` pixels."""
    if not values:
        raise ValueError(f"{kind.lower()} has nothing to draw: values is empty.")
    alt = alt or f"{kind} of {xlabel}: {_listed(values)}"
    return _chart(600, head + 34 * len(values), alt)


def _fit(texts: Iterable[str], length: float, letter: float = 0.63) -> float:
    """The size in points at which the longest text fits in so many pixels, at most the usual one.

    Args:
        letter: mean width of a letter as a part of the size; 0.7 in bold type.
    """
    longest = max(map(len, texts)) or 1
    return min(STYLE["font.size"], length * 72 / DPI / (letter * longest))


def _name_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Name both axes, in letters small enough for the figure."""
    width, height = axes.get_figure().bbox.size
    axes.set_xlabel(xlabel, size=_fit([xlabel], 0.9 * width))
    axes.set_ylabel(ylabel, size=_fit([ylabel], 0.95 * height))


def _name_rows(axes: Axes, xlabel: str) -> None:
    """Rows have only a lower axis: it is short beside long labels, so its name ends there."""
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    size = _fit([xlabel], 0.95 * axes.get_figure().bbox.width)
    axes.set_xlabel(xlabel, loc="right", size=size)


def _write(figure: Figure, x: float, y: float, text: str, **style) -> None:
    w, h = figure.get_size_inches() * DPI
    figure.text(x / w, 1 - y / h, text, va="center", **style)


def _numbers(x: Sequence[float] | Tensor) -> np.ndarray:
    return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=float)


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _label_rows(
    axes: Axes, labels: Iterable[str], xlabel: str, vlines: Mapping[str, float] | None
) -> None:
    """One row for each label, from top to bottom, and dashed lines of reference."""
    for label, x in (vlines or {}).items():
        axes.axvline(x, zorder=1, **DASHED)
        place = (x, 1), (0, 3), ("data", "axes fraction"), "offset points"
        axes.annotate(label, *place, ha="center", color=GREY)
    names = list(labels)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    _name_rows(axes, xlabel)
