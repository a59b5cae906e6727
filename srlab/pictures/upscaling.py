"""Upscale one picture: a tensor, a PIL image or a file; tile by tile, strip by strip.

A generator runs over a picture in tiles, and the result leaves in strips, so that memory holds the
small picture and a few tiles, whatever becomes of the strips.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from srlab.data.images import to_float, to_uint8
from srlab.data.reading import Picture, read_picture
from srlab.errors import SrlabError
from srlab.evaluation import tiling
from srlab.models import zoo
from srlab.models.generators import Bicubic, fold, polyphase

MODEL = "srresnet"
TILE = 192  # LR pixels; SRResNet then takes 0.6 GB, 29% of its work being borders

_TOLERANCE = 1 / 255  # by which floats may leave [0, 1]
_DIVERGED = "the model's result is not finite: its training has diverged."


class UpscaleError(SrlabError):
    """Pictures that could not be upscaled; the message says which, why and what to do."""


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
        picture = picture.in_8_bits()
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
    place = usable(device)
    return polyphase(fold(network)).eval().to(place, memory_format=torch.channels_last)


def usable(device: str) -> str:
    """The device's name; for ``auto`` the best one here.

    Raises:
        SrlabError: no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            device = "mps"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UpscaleError(f"device {device} cannot be used ({why}): try cpu.") from error
    return device


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


def _fill_hidden(samples: np.ndarray) -> np.ndarray:
    """Give fully transparent pixels, (H, W, C), the mean colour of their visible neighbours.

    Nobody has seen the colour that a file holds there, often black; a network would smear it into
    the visible edge. Farther than four pixels from it colours stay as they are.
    """
    if samples[..., -1].all():
        return samples
    radius, rows = 4, 512  # rows worked on at once
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
