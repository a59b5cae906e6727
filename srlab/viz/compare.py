"""Pictures of one scene on top of each other, with a line or a lens to move."""

import math
from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from srlab.viz.card import WIDE, Card, choice, controls, data_uri, img, png, slider
from srlab.viz.figures import grid, most_different_crop, picture

DETAIL = 160  # largest side of the detail on a page without a kernel, in pixels of the pictures


class Compare(Card):
    """Two of several pictures with a dividing line that a slider moves, and a common zoom.

    Args:
        images: title -> picture, as in :func:`srlab.viz.figures.compare`: smaller ones (the LR)
            are enlarged to the size of the largest by repeating pixels. The first two are shown
            at the start.
        window: (height, width): of larger pictures only so much is shown, pixel for pixel, and
            the sliders move it.

    Raises:
        ValueError: fewer than two pictures.
    """

    def __init__(self, images: Mapping[str, Tensor], window: tuple[int, int] | None = None):
        self.pictures = _same_size(images, "Compare")
        titles = list(self.pictures)
        self.size = self.pictures[titles[0]].shape[:2]
        self.window = tuple(map(min, self.size, window or self.size))
        self.left, self.right = (
            choice(side, titles, title, f"the picture {side} of the line", "380px")
            for side, title in zip(("left", "right"), titles, strict=False)
        )
        self.slider = slider("line at", 50, 0, 100, "where the line stands, in percent")
        self.zoom = ipywidgets.SelectionSlider(
            options=[("1x", 1), ("2x", 2), ("4x", 4), ("8x", 8)],
            description="zoom",
            tooltip="how much both pictures are enlarged",
            layout=WIDE,
        )
        self.across = slider("across", 50, 0, 100, "which part is shown: 0 left, 100 right")
        self.down = slider("down", 50, 0, 100, "which part is shown: 0 top, 100 bottom")
        self.view = ipywidgets.HTML()
        inputs = self.left, self.right, self.slider, self.zoom, self.across, self.down
        for control in inputs:
            control.observe(self._draw, "value")
        self._draw()
        super().__init__(controls(*inputs), self.view)

    @property
    def alt(self) -> str:
        return f"The same scene: {self.left.value} on the left, {self.right.value} on the right"

    def still(self) -> bytes:
        left, right = (self._zoomed(self.pictures[c.value]) for c in (self.left, self.right))
        at = round(left.shape[1] * self.slider.value / 100)
        joined = np.concatenate([left[:, :at], right[:, at:]], axis=1)
        joined[:, max(at - 1, 0) : at + 1] = 255
        return png(joined)

    def printed(self) -> bytes:
        """The same detail of both pictures, the one where they differ most, at twice the pixels."""
        names = self.left.value, self.right.value
        pair = torch.stack([torch.tensor(self.pictures[n]).permute(2, 0, 1) for n in names])
        side = min(DETAIL, *(n // 4 * 4 for n in pair.shape[-2:]))
        if side:
            top, left, *_ = most_different_crop(*pair, side)
            pair = pair[..., top : top + side, left : left + side]
        pair = pair.repeat_interleave(2, -2).repeat_interleave(2, -1)
        return grid(pair, 2, names).png()

    def _zoomed(self, pixels: np.ndarray) -> np.ndarray:
        """The chosen part of a picture at the size of the window, by repeating pixels."""
        for axis, place in enumerate((self.down.value, self.across.value)):
            part = math.ceil(self.window[axis] / self.zoom.value)
            first = round((self.size[axis] - part) * place / 100)
            pixels = pixels.take(first + np.arange(self.window[axis]) // self.zoom.value, axis)
        return pixels

    def _draw(self, change: object = None) -> None:
        still = self.zoom.value == 1 and self.window == self.size
        self.across.disabled = self.down.disabled = still
        height, width = self.window
        shown = min(width, 900)
        self.view.value = img(self.still(), self.alt, shown, round(height * shown / width))


def before_after(a: Tensor, b: Tensor, labels: tuple[str, str] = ("before", "after")) -> Compare:
    """A slider that moves the line between two pictures of the same size.

    Args:
        a, b: (3, H, W) float in [0, 1] or uint8: shown left and right of the line.
        labels: what they are.

    Raises:
        ValueError: their sizes differ, or their labels do not.
    """
    if picture(a).shape != picture(b).shape:
        raise ValueError(
            f"before_after needs two pictures of one size, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    if labels[0] == labels[1]:
        raise ValueError(f"before_after needs two different labels, got {labels[0]!r} twice.")
    return Compare(dict(zip(labels, (a, b), strict=True)))


LENS, CELL = 180, 10  # the lens's diameter and the step of its movement, in screen pixels


class Lens(Card):
    """A lens that follows the mouse over one picture and shows another in it, enlarged.

    It moves without the kernel: the picture is covered by a net of small invisible cells, and the
    browser draws the lens where the mouse is over one. Two sliders move it by keyboard.

    Args:
        images: as in :class:`Compare`. The first is the picture, the last is in the lens.

    Raises:
        ValueError: fewer than two pictures.
    """

    def __init__(self, images: Mapping[str, Tensor]):
        self.pictures = _same_size(images, "Lens")
        titles = list(self.pictures)
        height, width, _ = self.pictures[titles[0]].shape
        self.shown = min(width, 640), round(height * min(width, 640) / width)
        self.columns, self.rows = (math.ceil(n / CELL) for n in self.shown)
        self.base = choice("picture", titles, titles[0], "the picture under the lens")
        self.inside = choice("in the lens", titles, titles[-1], "the picture that the lens shows")
        zooms = [("2x", 2), ("4x", 4), ("8x", 8)]
        self.zoom = choice("zoom", zooms, 4, "how much the lens enlarges")
        where = "where the lens rests while the mouse is away, in percent"
        self.across = slider("across", 50, 0, 100, where)
        self.down = slider("down", 50, 0, 100, where)
        row = f"<b>{'<i></i>' * self.columns}</b>"
        # Two invisible style sheets, so that a moved slider sends a few bytes and no picture.
        self.style, self.rest = (ipywidgets.HTML(layout={"display": "none"}) for _ in range(2))
        self.view = ipywidgets.HTML()
        self.name = f"lens-{self.view.model_id}"
        self.view.value = (
            f'<div id="{self.name}" role="img" aria-label="a picture under a lens">'
            f"{row * self.rows}</div>"
        )
        for control in (self.base, self.inside, self.zoom):
            control.observe(self._draw, "value")
        for control in (self.across, self.down):
            control.observe(self._move, "value")
        self._draw()
        self._move()
        inputs = self.base, self.inside, self.zoom, self.across, self.down
        super().__init__(controls(*inputs), self.view, self.style, self.rest)

    @property
    def alt(self) -> str:
        return (
            f"{self.base.value}, and over it a round lens that shows {self.inside.value} "
            f"enlarged {self.zoom.value} times"
        )

    def still(self) -> bytes:
        base, inside = (
            Image.fromarray(self.pictures[c.value]).resize(self.shown)
            for c in (self.base, self.inside)
        )
        spot = [
            (n - 1) * c.value / 100 * CELL + CELL / 2
            for n, c in ((self.columns, self.across), (self.rows, self.down))
        ]
        radius = LENS / 2 / self.zoom.value
        box = [int(c - radius) for c in spot] + [int(c + radius) for c in spot]
        lens = inside.crop(box).resize((LENS, LENS), Image.Resampling.NEAREST)
        mask = Image.new("L", (LENS, LENS))
        ImageDraw.Draw(mask).ellipse((0, 0, LENS - 1, LENS - 1), fill=255)
        base.paste(lens, [round(c - LENS / 2) for c in spot], mask)
        return png(np.asarray(base))

    def _draw(self, change: object = None) -> None:
        width, height = self.shown
        base, inside = (data_uri(png(self.pictures[c.value])) for c in (self.base, self.inside))
        me, zoom, half = f"#{self.name}", self.zoom.value, LENS / 2
        x, y = f"(var(--i) + .5) * {CELL}px", f"(var(--j) + .5) * {CELL}px"
        places = [f"{me} i:nth-child({i + 1}) {{ --i: {i} }}" for i in range(self.columns)]
        places += [f"{me} b:nth-child({j + 1}) {{ --j: {j} }}" for j in range(self.rows)]
        self.style.value = f"""<style>
        {me} {{ position: relative; overflow: hidden; width: {width}px; height: {height}px;
            background: url({base}) 0 0 / {width}px {height}px; cursor: crosshair }}
        {me} b {{ display: flex; height: {CELL}px }}
        {me} i {{ flex: none; width: {CELL}px }}
        {me} i:hover::after, {me}:not(:hover)::after {{
            content: ""; position: absolute; pointer-events: none; box-sizing: border-box;
            width: {LENS}px; height: {LENS}px; border-radius: 50%;
            left: calc({x} - {half}px); top: calc({y} - {half}px);
            box-shadow: 0 0 0 2px white, 0 0 6px 2px black; image-rendering: pixelated;
            background: url({inside}) no-repeat black;
            background-size: {width * zoom}px {height * zoom}px;
            background-position: calc({half}px - {x} * {zoom}) calc({half}px - {y} * {zoom}) }}
        {" ".join(places)}</style>"""

    def _move(self, change: object = None) -> None:
        i = (self.columns - 1) * self.across.value / 100
        j = (self.rows - 1) * self.down.value / 100
        self.rest.value = f"<style>#{self.name} {{ --i: {i:.1f}; --j: {j:.1f} }}</style>"


def _same_size(images: Mapping[str, Tensor], who: str) -> dict[str, np.ndarray]:
    if len(images) < 2:
        raise ValueError(f"{who} needs at least two pictures, got {len(images)}.")
    pictures = {title: picture(image) for title, image in images.items()}
    height, width, _ = max((p.shape for p in pictures.values()), key=math.prod)
    return {
        title: p
        if p.shape[:2] == (height, width)
        else np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.NEAREST))
        for title, p in pictures.items()
    }
