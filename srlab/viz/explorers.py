"""Three things to play with: aligned crops, ways to shrink a picture, what VGG19 sees."""

from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from srlab.data.bank import PatchBank, dihedral, unpack_pixels
from srlab.data.degradation import crop_to_multiple, quantize, resize
from srlab.errors import SrlabError
from srlab.models.vgg import Features
from srlab.viz.card import Card, beside, choice, controls, png, slider, tile
from srlab.viz.figures import Figure, compare, grid, picture, radial_power, spectrum

TURNS = ("as it is", "90°", "180°", "270°")
ORIENTATIONS = (*TURNS, *(f"{turn}, mirrored" for turn in TURNS))


class CropPicker(Card):
    """Any crop that a bank could draw: its place, LR and HR side by side, its eight orientations.

    Args:
        bank: its pictures are shown as it stores them, portraits lying on their side.
        patch_size: side of the LR crop in pixels.

    Raises:
        SrlabError: no crop of this size fits into one of the bank's pictures.
    """

    alt = "The LR crops of one place in their eight orientations, above the HR crops of that place"
    sharpness = 2

    def __init__(self, bank: PatchBank, patch_size: int = 24):
        for name, (_, _, height, width) in zip(bank.names, bank.boxes.tolist(), strict=True):
            if min(height, width) < patch_size:
                raise SrlabError(
                    f"{name} is too small for an LR crop of {patch_size} pixels: remove the "
                    "picture or lower patch_size."
                )
        self.bank, self.size = bank, patch_size
        self.image = slider("picture", 1, 1, len(bank), "the number of the picture in the bank")
        self.across = slider("across", 0, 0, 1, "left edge of the crop, in LR pixels")
        self.down = slider("down", 0, 0, 1, "upper edge of the crop, in LR pixels")
        turns = [(name, k) for k, name in enumerate(ORIENTATIONS)]
        self.turn = choice("orientation", turns, 0, "quarter turns, then mirrored or not")
        self.view = ipywidgets.HTML()
        self._choose()
        self.image.observe(self._choose, "value")
        for control in (self.across, self.down, self.turn):
            control.observe(self._draw, "value")
        super().__init__(controls(self.image, self.turn, self.across, self.down), self.view)

    @property
    def crops(self) -> tuple[Tensor, Tensor]:
        """The LR crop, (3, P, P), and the HR crop of the same place, not turned; uint8."""
        (top, left, _, _), (y, x) = self._box(), self._place()
        y, x, n, s = top + y, left + x, self.size, self.bank.scale
        lr = self.bank.lr_atlas[y : y + n, x : x + n]
        hr = self.bank.hr_atlas[y * s : (y + n) * s, x * s : (x + n) * s]
        return unpack_pixels(lr[None])[0], unpack_pixels(hr[None])[0]

    def still(self) -> bytes:
        lr, hr = self.crops
        lr = lr.repeat_interleave(self.bank.scale, 1).repeat_interleave(self.bank.scale, 2)
        turned = torch.stack([dihedral(crop, k) for crop in (lr, hr) for k in range(8)])
        return grid(turned, 8, [*ORIENTATIONS, *[""] * 8]).png(self.sharpness)

    def _box(self) -> list[int]:
        return self.bank.boxes[self.image.value - 1].tolist()

    def _place(self) -> tuple[int, int]:
        """Row and column of the crop in its LR picture."""
        _, _, height, width = self._box()
        return min(self.down.value, height - self.size), min(self.across.value, width - self.size)

    def _choose(self, change: object = None) -> None:
        """Another picture: the crop starts in its middle."""
        _, _, height, width = self._box()
        for control, free in ((self.down, height - self.size), (self.across, width - self.size)):
            control.max = free
            control.value = free // 2
        self._draw()

    def _draw(self, change: object = None) -> None:
        top, left, height, width = self._box()
        lr_picture = self.bank.lr_atlas[top : top + height, left : left + width]
        whole = picture(unpack_pixels(lr_picture[None])[0]).copy()  # to be drawn on
        (y, x), n = self._place(), self.size
        whole[y : y + n, [x, x + n - 1]] = whole[[y, y + n - 1], x : x + n] = (230, 159, 0)
        lr, hr = self.crops
        k, side, s = self.turn.value, 216, self.bank.scale
        big = [
            tile(png(whole), f"LR picture, {height} x {width}", 320, round(320 * height / width)),
            tile(png(picture(dihedral(lr, k))), f"LR crop, {n} x {n}", side, side),
            tile(png(picture(dihedral(hr, k))), f"HR crop, {n * s} x {n * s}", side, side),
        ]
        small = [
            tile(png(picture(dihedral(hr, k))), name, 90, 90) for k, name in enumerate(ORIENTATIONS)
        ]
        # The tallest picture of the bank sets the height, so that nothing jumps.
        ratio = float((self.bank.boxes[:, 2] / self.bank.boxes[:, 3]).max())
        self.view.value = (
            f'<div style="min-height: {round(320 * ratio) + 30}px">{"".join(big)}</div>'
            f"<div>{''.join(small)}</div>"
        )


class DegradationExplorer(Card):
    """A picture shrunk in different ways, and what that does to its spectrum.

    Args:
        hr: picture, (3, H, W) float in [0, 1]; cut to a multiple of 24, at least 48 pixels a side.
    """

    sharpness = 2
    kernels = ("bicubic", "bilinear", "box")
    scales = (2, 3, 4, 8)

    def __init__(self, hr: Tensor):
        hr = hr[0] if hr.ndim == 4 else hr
        self.hr = crop_to_multiple(hr.detach().cpu().float(), 24)
        if min(self.hr.shape[-2:]) < 48:
            raise ValueError(
                f"DegradationExplorer needs 48 pixels a side, got {tuple(hr.shape[-2:])}."
            )
        self._drawn: dict[tuple[str, int, bool], str] = {}  # there are few, and they cost time
        power = radial_power(self.hr)[1]
        self.range = float(power.min()) / 10, float(power.max()) * 10
        self.kernel = choice("kernel", list(self.kernels), "bicubic", "what weighs the HR pixels")
        self.antialias = ipywidgets.Checkbox(
            True,
            description="antialiasing",
            tooltip="widen the kernel so that it takes away what the LR picture cannot hold",
        )
        options = [(f"1/{s}", s) for s in self.scales]
        self.scale = choice("scale", options, 4, "LR size over HR size")
        self.view = ipywidgets.HTML()
        for control in (self.kernel, self.antialias, self.scale):
            control.observe(self._draw, "value")
        self._draw()
        super().__init__(controls(self.kernel, self.scale, self.antialias), self.view)

    @property
    def alt(self) -> str:
        filtered = "with" if self.antialias.value else "without"
        return (
            f"A picture shrunk to 1/{self.scale.value} by the {self.kernel.value} kernel "
            f"{filtered} antialiasing, and its power spectrum beside that of the HR picture"
        )

    @property
    def lr(self) -> Tensor:
        """The LR picture as it stands, (3, H / scale, W / scale), rounded to 8 bit."""
        return shrink(self.hr, self.scale.value, self.kernel.value, self.antialias.value)

    def still(self) -> bytes:
        height, width = (self.sharpness * n for n in self._shown())
        pixels = Image.fromarray(picture(self.lr)).resize((width, height), Image.Resampling.NEAREST)
        chart = self._spectrum().png(self.sharpness)
        return beside(png(np.asarray(pixels)), chart, gap=12 * self.sharpness)

    def _shown(self) -> tuple[int, int]:
        height, width = self.hr.shape[-2:]
        factor = min(1, 320 / width, 320 / height)
        return round(height * factor), round(width * factor)

    def _spectrum(self) -> Figure:
        figure = spectrum({"HR": self.hr, "LR": self.lr}, self.scale.value)
        figure.axes[0].set_ylim(*self.range)
        return figure

    def _draw(self, change: object = None) -> None:
        state = self.kernel.value, self.scale.value, self.antialias.value
        if state not in self._drawn:
            (height, width), lr = self._shown(), self.lr
            caption = f"LR, {lr.shape[1]} x {lr.shape[2]} pixels"
            small = tile(png(picture(lr)), caption, width, height, self.alt)
            power = tile(self._spectrum().png(), "power spectrum", 520, 295)
            self._drawn[state] = small + power
        self.view.value = self._drawn[state]


def shrink(hr: Tensor, scale: int, kernel: str = "bicubic", antialias: bool = True) -> Tensor:
    """Shrink (3, H, W) by an integer with one of three kernels; rounded to 8 bit.

    ``bicubic`` is :func:`srlab.data.degradation.resize`. ``bilinear`` weighs by a triangle and
    ``box`` alike: with antialiasing the mean of scale x scale pixels, without it one pixel of them.
    """
    if kernel == "bicubic":
        return quantize(resize(hr, 1 / scale, antialias=antialias))
    size = [n // scale for n in hr.shape[-2:]]
    if kernel == "bilinear":
        return quantize(F.interpolate(hr[None], size, mode="bilinear", antialias=antialias)[0])
    mode = "area" if antialias else "nearest-exact"
    return quantize(F.interpolate(hr[None], size, mode=mode)[0])


class TapExplorer(Card):
    """How the channels of VGG19's layers respond to a picture, one at a time.

    Args:
        features: see :func:`srlab.models.vgg.load`; all of its taps can be chosen.
        image: (3, H, W) float in [0, 1].
    """

    def __init__(self, features: Features, image: Tensor):
        image = image if image.ndim == 4 else image[None]
        with torch.no_grad():
            found = features(image.to(features.mean))
        self.picture = image[0].detach().cpu()
        self.maps: Mapping[str, Tensor] = {tap: x[0].cpu() for tap, x in found.items()}
        taps = list(self.maps)
        self.tap = choice("layer", taps, taps[0], "a layer of VGG19")
        self.channel = slider("channel", 1, 1, 1, "one of the layer's feature maps")
        self.view = ipywidgets.HTML()
        self._choose()
        self.tap.observe(self._choose, "value")
        self.channel.observe(self._draw, "value")
        super().__init__(controls(self.tap, self.channel), self.view)

    @property
    def alt(self) -> str:
        return f"A picture, and channel {self.channel.value} of {self.tap.value} as grey levels"

    @property
    def map(self) -> Tensor:
        """The chosen feature map, (h, w)."""
        return self.maps[self.tap.value][self.channel.value - 1]

    def still(self) -> bytes:
        title = f"{self.tap.value}, channel {self.channel.value}"
        return compare({"picture": self.picture, title: self._grey()}).png()

    def _grey(self) -> Tensor:
        """From black, the map's least value, to white, its largest."""
        low, high = self.map.aminmax()
        return ((self.map - low) / (high - low).clamp(min=1e-12))[None]

    def _choose(self, change: object = None) -> None:
        self.channel.max = len(self.maps[self.tap.value])
        self._draw()

    def _draw(self, change: object = None) -> None:
        height, width = self.picture.shape[-2:]
        factor = min(1, 400 / width, 400 / height)
        size = round(width * factor), round(height * factor)
        low, high = (float(x) for x in self.map.aminmax())
        zeros = 100 * float((self.map == 0).float().mean())
        caption = (
            f"channel {self.channel.value} of {self.channel.max}, "
            f"{self.map.shape[0]} x {self.map.shape[1]}: "
            f"{low:.2f} (black) to {high:.2f} (white), {zeros:.0f} % zeros"
        )
        self.view.value = tile(png(picture(self.picture)), "picture", *size) + tile(
            png(picture(self._grey())), caption, *size, self.alt
        )
