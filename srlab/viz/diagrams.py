"""Drawn networks: boxes and arrows, in the style of :mod:`srlab.viz.figures`.

Coordinates are pixels from a drawing's top left corner.
"""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from srlab.viz.figures import COLOURS, GREY, INK, STYLE, Figure

PICTURE, LAYER, MOVING, SCORE = "#F0F0F0", "#D6E6F2", "#FBE3CF", "#DDEFE6"
Point = tuple[float, float]


@matplotlib.rc_context(STYLE)
def srresnet() -> Figure:
    """SRResNet with its long skip and bicubic skip, and one residual block below it."""
    figure, axes = _canvas(
        400,
        "SRResNet: LR passes a convolution, five residual blocks at LR size, two up-sampling "
        "stages and a last convolution; one skip connection goes around the blocks, another one "
        "adds the bicubic enlargement of LR to the output. Below, one residual block: its input "
        "is added to what two convolutions make of it.",
    )
    y = 120
    parts = [
        (42, 60, "LR", PICTURE),
        (146, 84, "conv 9x9\nPReLU", LAYER),
        (276, 104, "5 residual\nblocks", MOVING),
        (396, 84, "conv 3x3\nBN", LAYER),
        (556, 108, "conv 3x3\nshuffle x2\nPReLU", LAYER),
        (684, 108, "conv 3x3\nshuffle x2\nPReLU", LAYER),
        (804, 84, "conv 9x9", LAYER),
        (922, 52, "SR", PICTURE),
    ]
    for x, width, text, colour in parts:
        _box(axes, x, y, width, 58, text, colour)
    _chain(axes, y, [72, 104, 188, 224, 328, 354, 438, 456])
    _chain(axes, y, [484, 502, 610, 630, 738, 762, 846, 862])
    _arrow(axes, (884, y), (896, y))
    _plus(axes, 470, y)
    _plus(axes, 873, y)
    _detour(axes, [(206, y), (206, 66), (470, 66), (470, y - 12)])
    axes.text(338, 55, "long skip", ha="center", color=GREY)
    _detour(axes, [(42, y + 29), (42, 196), (873, 196), (873, y + 12)])
    _box(axes, 470, 196, 120, 34, "bicubic x4", SCORE)
    axes.text(276, 24, "at LR size", ha="center", color=GREY)
    axes.text(684, 24, "2x, then 4x the LR size", ha="center", color=GREY)
    axes.plot([494, 494], [34, 172], color=GREY, linewidth=1, linestyle=(0, (4, 3)))

    y = 320
    axes.text(42, y - 62, "one residual block", color=INK, weight="bold", ha="left")
    _box(axes, 70, y, 40, 40, "x", MOVING)
    texts = ["conv 3x3", "BN", "PReLU", "conv 3x3", "BN"]
    for x, text in zip((200, 306, 400, 506, 612), texts, strict=True):
        _box(axes, x, y, 76, 44, text, LAYER)
    _chain(axes, y, [90, 162, 238, 268, 344, 362, 438, 468, 544, 574, 650, 708])
    _plus(axes, 722, y)
    _arrow(axes, (734, y), (792, y))
    axes.text(798, y, "x + F(x)", va="center")
    _detour(axes, [(126, y), (126, y + 46), (722, y + 46), (722, y + 12)])
    axes.text(424, y + 60, "skip connection", ha="center", color=GREY)
    return figure


@matplotlib.rc_context(STYLE)
def discriminator() -> Figure:
    """SRGAN's discriminator: maps shrink and multiply, then two dense layers give one number."""
    figure, axes = _canvas(
        250,
        "SRGAN's discriminator: eight convolutions, during which the maps shrink four times by "
        "two while their number grows from 64 to 512, two dense layers, and one number, the logit.",
    )
    y, side = 118, 96
    _box(axes, 50, y, 64, 128, "HR\nor SR\ncrop", PICTURE)
    x = 82.0
    for i, channels in enumerate((64, 64, 128, 128, 256, 256, 512, 512)):
        side //= 1 + i % 2
        height, width = 120 * (side / 96) ** 0.5, 26 + channels / 18
        _arrow(axes, (x, y), (x + 22, y))
        x += 22 + width / 2
        _box(axes, x, y, width, height, "", MOVING if i % 2 else LAYER)
        axes.text(x, y - height / 2 - 10, str(channels), ha="center")
        axes.text(x, y + height / 2 + 12, f"{side}x{side}", ha="center", color=GREY, size=9.5)
        x += width / 2
    for text, width in (("dense\n1024", 60), ("dense\n1", 52)):
        _arrow(axes, (x, y), (x + 22, y))
        _box(axes, x + 22 + width / 2, y, width, 50, text, SCORE)
        x += 22 + width
    _arrow(axes, (x, y), (x + 24, y))
    axes.text(x + 30, y, "logit $s$", va="center")
    legend = "each box: convolution 3x3, batch norm (not in the first), LeakyReLU; orange: stride 2"
    axes.text(480, 226, legend, ha="center", color=GREY)
    return figure


@matplotlib.rc_context(STYLE)
def game() -> Figure:
    """The two turns of one step of the adversarial game, with the way that gradients take."""
    figure, axes = _canvas(
        330,
        "Two turns. In the critic's turn gradients reach only the discriminator, because the fake "
        "is detached from the generator. In the generator's turn gradients flow back through the "
        "discriminator, which is frozen, and from the pixel loss into the generator.",
    )
    for left, title in ((0, "1  The critic's turn"), (490, "2  The generator's turn")):
        axes.text(left + 20, 22, title, weight="bold", ha="left", va="center")
    axes.plot([480, 480], [14, 316], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    moved = {"edgecolor": COLOURS[1], "linewidth": 2.4}

    _box(axes, 48, 100, 50, 40, "LR", PICTURE)
    _box(axes, 146, 100, 74, 48, "generator", LAYER)
    _box(axes, 248, 100, 50, 40, "SR", PICTURE)
    _box(axes, 248, 210, 50, 40, "HR", PICTURE)
    _box(axes, 350, 155, 84, 60, "discrimi-\nnator", MOVING, **moved)
    axes.text(444, 142, "loss\n$L_D$", ha="center", va="center")
    _chain(axes, 100, [73, 109, 183, 223])
    _arrow(axes, (273, 104), (308, 140), linestyle=(0, (3, 2)))
    axes.text(298, 92, "detach()", ha="left", color=GREY)
    _arrow(axes, (273, 206), (308, 170))
    _arrow(axes, (392, 146), (426, 146))
    _arrow(axes, (426, 170), (396, 170), color=COLOURS[1], linewidth=2.2)
    axes.text(240, 288, "only the discriminator learns", ha="center", color=COLOURS[1])

    _box(axes, 536, 100, 50, 40, "LR", PICTURE)
    _box(axes, 634, 100, 74, 48, "generator", MOVING, **moved)
    _box(axes, 736, 100, 50, 40, "SR", PICTURE)
    _box(axes, 736, 230, 50, 40, "HR", PICTURE)
    _box(axes, 842, 100, 84, 60, "discrimi-\nnator", LAYER)
    axes.text(930, 90, "$-\\log D$", ha="center", va="center")
    axes.text(736, 168, "pixel loss", ha="center", va="center")
    _chain(axes, 92, [561, 597, 671, 711, 761, 800, 884, 902])
    _arrow(axes, (736, 120), (736, 156))
    _arrow(axes, (736, 210), (736, 180))
    red = {"color": COLOURS[1], "linewidth": 2.2}
    for start, end in ((902, 888), (800, 765), (711, 675)):
        _arrow(axes, (start, 110), (end, 110), **red)
    _detour(axes, [(706, 168), (634, 168), (634, 128)], **red)
    text = "only the generator learns; gradients pass through the discriminator"
    axes.text(726, 288, text, ha="center", color=COLOURS[1])
    return figure


@matplotlib.rc_context(STYLE)
def dense_block() -> Figure:
    """A dense weighted block: every joint sees all maps before it, each with its own weight."""
    n_layers = 3
    figure, axes = _canvas(
        300,
        f"A dense weighted block: each of {n_layers} layers and the closing 1x1 convolution "
        "receive the input and the maps of all layers before them, each multiplied by a learned "
        "weight; the input is added to the result.",
    )
    y, step = 190, 680 / (n_layers + 1)
    places = [60 + i * step for i in range(n_layers + 2)]
    names = ["input $x$", *[f"layer {i}" for i in range(1, n_layers + 1)], "1x1 conv"]
    for i, (x, name) in enumerate(zip(places, names, strict=True)):
        _box(axes, x, y, 84, 46, name, PICTURE if i == 0 else LAYER)
    for j in range(1, n_layers + 2):
        for i in range(j):
            colour = COLOURS[i % len(COLOURS)]
            end = places[j] - 28 + 14 * i
            if i == j - 1:
                _arrow(axes, (places[i] + 42, y), (places[j] - 42, y), color=colour)
                where = ((places[i] + places[j]) / 2, y)
            else:
                top = y - 15 - 34 * (j - i) - 9 * i
                way = [(places[i] + 6 * (j - i), y - 23), (places[i] + 6 * (j - i), top)]
                _detour(axes, [*way, (end, top), (end, y - 23)], color=colour)
                where = ((places[i] + end) / 2 + 3 * (j - i), top)
            style = {"ha": "center", "va": "center", "color": colour}
            style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text(*where, f"$w_{{{j}{i}}}$", **style)
    x = places[-1] + 84
    _arrow(axes, (places[-1] + 42, y), (x - 12, y))
    _plus(axes, x, y)
    _arrow(axes, (x + 12, y), (x + 46, y))
    axes.text(x + 50, y, "output", va="center")
    _detour(axes, [(places[0], y + 23), (places[0], y + 66), (x, y + 66), (x, y + 12)])
    axes.text((places[0] + x) / 2, y + 82, "skip connection", ha="center", color=GREY)
    return figure


def _canvas(height: int, alt: str) -> tuple[Figure, Axes]:
    figure = Figure(960, height, alt)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 960), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, **style
) -> None:
    """A box by its centre."""
    style = {"edgecolor": GREY, "linewidth": 1.0, **style}
    style |= {"boxstyle": "round,pad=0,rounding_size=5", "facecolor": colour, "zorder": 3}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    axes.text(x, y, text, ha="center", va="center", size=10.5, linespacing=1.25, zorder=4)


def _arrow(axes: Axes, start: Point, end: Point, **style) -> None:
    style = {"color": INK, "linewidth": 1.3, "arrowstyle": "-|>", "mutation_scale": 10, **style}
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))


def _chain(axes: Axes, y: float, ends: Sequence[float]) -> None:
    """Arrows along one line: from the first to the second x, from the third to the fourth, ..."""
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        _arrow(axes, (start, y), (end, y))


def _detour(axes: Axes, points: Sequence[Point], **style) -> None:
    """A line with corners that ends in an arrow."""
    style = {"color": INK, "linewidth": 1.3, **style}
    axes.plot(*zip(*points[:-1], strict=True), solid_capstyle="round", **style)
    _arrow(axes, points[-2], points[-1], **style)


def _plus(axes: Axes, x: float, y: float) -> None:
    axes.add_patch(Circle((x, y), 11, facecolor="white", edgecolor=INK, linewidth=1.2, zorder=3))
    axes.text(x, y, "+", ha="center", va="center", size=13, zorder=4)
