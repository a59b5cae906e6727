"""Files to tensors and back: RGB in [0, 1], channels first; luma; the 8-bit rounding of files.

For training and measuring. What else a person's own picture holds is in :mod:`srlab.data.reading`
and :mod:`srlab.data.writing`.
"""

import os
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from srlab.data.reading import ROWS, ImageError, file_samples, layout, on_white, opened
from srlab.data.writing import FORMATS, replacing, write_strips

IMAGE_SUFFIXES = (*FORMATS, ".bmp")  # written, and read
READ_SUFFIXES = (*IMAGE_SUFFIXES, ".avif", ".jp2")


def list_images(folder: str | Path) -> list[Path]:
    """The :data:`READ_SUFFIXES` files directly in ``folder``, sorted, without hidden ones.

    (macOS puts a ``._name.png`` that is no picture beside each picture.)

    Raises:
        ImageError: no such folder, or no images in it.
    """
    try:
        paths = sorted(p for p in Path(folder).iterdir() if is_picture(p) and p.is_file())
    except OSError as error:
        raise ImageError(f"{folder} cannot be listed as a folder: {error.strerror}.") from error
    if not paths:
        raise ImageError(f"{folder} holds no images ({', '.join(READ_SUFFIXES)}).")
    return paths


def is_picture(path: PurePath) -> bool:
    """Whether a file is one of :data:`READ_SUFFIXES` by its name, and not hidden."""
    return path.suffix.lower() in READ_SUFFIXES and not path.name.startswith(".")


def read_image(path: str | Path) -> Tensor:
    """Read a picture as (3, H, W) float32 RGB in [0, 1], turned as its EXIF orientation says.

    Grey is repeated over the channels, transparency composited over white. 16-bit grey and RGB
    keep their 16 bits. CMYK goes to sRGB through the file's own profile if it has one; an RGB
    profile is not applied, as in every published benchmark. Float TIFF must lie in [0, 1]
    already, for nothing in the file says what white is. Of several frames, the first.

    Raises:
        ImageError: a missing, empty, damaged or unsupported file, one that ends before its picture
            does, or one with more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` (in all about 179
            million) pixels or so many that they would take more than
            :data:`srlab.data.reading.MOST_BYTES`.
    """
    return _decode(path, torch.float32)


def read_image_u8(path: str | Path) -> Tensor:
    """As :func:`read_image`, but (3, H, W) uint8: a quarter of the memory, 16 bits rounded to 8."""
    return _decode(path, torch.uint8)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width in the file's header, before any EXIF orientation.

    Raises:
        ImageError: as :func:`read_image`, but damage behind the header goes unnoticed.
    """
    with opened(path) as image:
        return image.height, image.width


def is_grey(path: str | Path) -> bool:
    """Whether the file holds a single luminance channel, with or without alpha, by its header.

    An RGB file whose pixels all happen to be grey says False.

    Raises:
        ImageError: as :func:`read_image`, but damage behind the header goes unnoticed.
    """
    with opened(path) as image:
        colour = len(image.getbands()) > 2 or image.mode[0] == "P"
        return not colour or layout(image) == "LA;16B"  # which Pillow widens to RGBA


def write_image(image: Tensor, path: str | Path) -> None:
    """Write a picture with 8 bits per channel in the format that the suffix names (none: PNG).

    The file appears whole or not at all: a failure leaves an older file of that name as it was.
    Missing folders are made. JPEG has quality 95 and full chroma resolution; WebP is lossless.

    Args:
        image: (3, H, W) or (1, H, W), also with a leading axis of 1; uint8, or float in [0, 1],
            which :func:`to_uint8` clamps and rounds. On any device.
        path: ends in one of :data:`IMAGE_SUFFIXES`.

    Raises:
        ImageError: an unknown suffix, pixels that are not finite or go up to 255, or a place that
            cannot be written.
        ValueError: another shape or dtype.
    """
    path = Path(path)
    suffix = path.suffix.lower() or ".png"
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3 or len(image) not in (1, 3) or image.numel() == 0:
        raise ValueError(f"image must be (3, H, W) or (1, H, W), got shape {tuple(image.shape)}")
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder: give the image a file name in it.")
    if suffix not in IMAGE_SUFFIXES:
        raise ImageError(f"{path} cannot be written: use one of {', '.join(IMAGE_SUFFIXES)}.")
    if image.is_floating_point():
        if not image.isfinite().all():
            why = "the image holds NaN or infinity, so its model has diverged"
            raise ImageError(f"{path} was not written: {why}.")
        if (most := image.amax().item()) > 2:  # more than any overshoot
            why = f"the image holds {most:g}; divide it by 255, floats are from 0 to 1"
            raise ImageError(f"{path} was not written: {why}.")
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    pixels = pixels.permute(1, 2, 0).cpu().numpy()
    with replacing(path) as temporary, temporary.open("wb") as file:
        write_strips(file, FORMATS.get(suffix, "BMP"), [pixels], pixels.shape, np.uint8)


def to_uint8(x: Tensor) -> Tensor:
    """Float to uint8 as MATLAB's ``uint8(255 * x)``: clamped to [0, 1], halves rounded up."""
    if not x.is_floating_point():
        raise ValueError(f"to_uint8 needs a float image in [0, 1], got {x.dtype}")
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision cannot hold k + 0.5
    return x.clamp(0, 1).mul(255).add(0.5).floor().to(torch.uint8)


def to_float(x: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [0, 1]."""
    if x.dtype != torch.uint8:
        raise ValueError(f"to_float needs a uint8 image, got {x.dtype}")
    return x.to(torch.float32).div(255)


def luma(rgb: Tensor) -> Tensor:
    """The Y of studio-range YCbCr, on which super-resolution is measured.

    ``(65.481 R + 128.553 G + 24.966 B + 16) / 255``: ITU-R BT.601 as MATLAB's ``rgb2ycbcr``
    applies it to float images, not rounded.

    Args:
        rgb: (..., 3, H, W) float32 or float64 in [0, 1].

    Returns:
        (..., 1, H, W), same dtype and device, from 16/255 (black) to 235/255 (white).

    Raises:
        ValueError: another shape or dtype.
    """
    if rgb.dtype not in (torch.float32, torch.float64) or rgb.ndim < 3 or rgb.shape[-3] != 3:
        got = f"{rgb.dtype} {tuple(rgb.shape)}"
        raise ValueError(f"luma needs float32 or float64 of shape (..., 3, H, W), got {got}")
    r, g, b = rgb.unbind(-3)
    return ((65.481 * r + 128.553 * g + 24.966 * b + 16) / 255).unsqueeze(-3)


def _decode(path: str | Path, dtype: torch.dtype) -> Tensor:
    """(3, H, W) RGB, as uint8 or as float32 in [0, 1]."""
    samples, _ = file_samples(path, 3 * dtype.itemsize)
    height, width, channels = samples.shape
    pixels = torch.empty(3, height, width, dtype=dtype)
    for top in range(0, height, ROWS):
        band = samples[top : top + ROWS]
        if band.dtype == np.uint16 or channels in (2, 4):
            band = band / np.float32(np.iinfo(band.dtype).max)
        if channels in (2, 4):
            band = on_white(band)
        part = torch.from_numpy(band).permute(2, 0, 1)
        if part.dtype != dtype:
            part = to_float(part) if part.dtype == torch.uint8 else to_uint8(part)
        pixels[:, top : top + ROWS] = part
    return pixels
