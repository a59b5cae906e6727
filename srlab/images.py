"""Files to tensors and back: RGB in [0, 1], channels first; luma; the 8-bit rounding of files.

People have 16 bit, palettes, transparency, CMYK, photos lying on their side, downloads that
stopped half-way. Each is read as a viewer would show it, or refused by an :class:`ImageError`.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from srlab.errors import SrlabError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

# Not all that Pillow knows: it would hand PostScript to an interpreter, for one.
_READABLE = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_JPEG = {"quality": 95, "subsampling": 0}
_SAVE_OPTIONS = {".jpg": _JPEG, ".jpeg": _JPEG, ".webp": {"lossless": True}}

# Pillow has no 16-bit colour: its unpackers keep the high byte of each sample. The unpacker for
# the opposite byte order keeps the low byte, so that decoding twice recovers all 16 bits. Grey
# with alpha lacks that unpacker, but its two samples fill the four bytes of a plain RGBA pixel.
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LOW_BYTE = {"LA;16B": "RGBA"} | {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, other in _SWAPPED.items()
}

# Pillow warns from half its size limit on, but large photos are welcome here. Set once for the
# process, because warnings.catch_warnings around each file is not safe among threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(SrlabError):
    """A file that cannot be read as a picture or written as one; the message names it."""


def list_images(folder: str | Path) -> list[Path]:
    """The :data:`IMAGE_SUFFIXES` files directly in ``folder``, sorted, without hidden ones.

    (macOS puts a ``._name.png`` that is no picture beside each picture.)

    Raises:
        ImageError: no such folder, or no images in it.
    """
    try:
        paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise ImageError(f"{folder} cannot be listed as a folder: {error.strerror}.") from error
    paths = [p for p in paths if p.is_file() and not p.name.startswith(".")]
    if not paths:
        raise ImageError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return paths


def read_image(path: str | Path) -> Tensor:
    """Read a picture as (3, H, W) float32 RGB in [0, 1], turned as its EXIF orientation says.

    Grey is repeated over the channels, transparency composited over white. 16-bit grey and RGB
    keep their 16 bits. CMYK goes to sRGB through the file's own profile if it has one; an RGB
    profile is not applied, as in every published benchmark. Float TIFF must lie in [0, 1]
    already, for nothing in the file says what white is. Of several frames, the first.

    Raises:
        ImageError: a missing, empty, damaged or unsupported file, or one with more than twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` (in all about 179 million) pixels.
    """
    pixels = _decode(path)
    return to_float(pixels) if pixels.dtype == torch.uint8 else pixels


def read_image_u8(path: str | Path) -> Tensor:
    """As :func:`read_image`, but (3, H, W) uint8: a quarter of the memory, 16 bits rounded to 8."""
    pixels = _decode(path)
    return pixels if pixels.dtype == torch.uint8 else to_uint8(pixels)


def is_grey(path: str | Path) -> bool:
    """Whether the file holds a single luminance channel, with or without alpha, by its header.

    An RGB file whose pixels all happen to be grey says False.

    Raises:
        ImageError: as :func:`read_image`, but damage behind the header goes unnoticed.
    """
    with _opened(path) as image:
        colour = len(image.getbands()) > 2 or image.mode[0] == "P"
        return not colour or _rawmode(image) == "LA;16B"  # which Pillow widens to RGBA


def write_image(image: Tensor, path: str | Path) -> None:
    """Write a picture with 8 bits per channel in the format that the suffix names (none: PNG).

    The file appears whole or not at all: a failure leaves an older file of that name as it was.
    Missing folders are made. JPEG has quality 95 and full chroma resolution; WebP is lossless.

    Args:
        image: (3, H, W) or (1, H, W), also with a leading axis of 1; uint8, or float in [0, 1],
            which :func:`to_uint8` clamps and rounds. On any device.
        path: ends in one of :data:`IMAGE_SUFFIXES`.

    Raises:
        ImageError: an unknown suffix, NaN pixels, or a place that cannot be written.
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
    if image.isnan().any():
        raise ImageError(f"{path} was not written: the image holds NaN, so its model has diverged.")
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    pixels = pixels.permute(1, 2, 0).cpu().numpy()
    temporary = path.with_name(f".{uuid4().hex}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        picture.save(temporary, **_SAVE_OPTIONS.get(suffix, {}))
        os.replace(temporary, path)
    except Exception as error:
        raise ImageError(f"{path} could not be written: {_describe(error)}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


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


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a file with Pillow; what goes wrong here or in the body ends in an ImageError."""
    try:
        if os.path.isdir(path):
            raise ImageError(f"{path} is a folder: name an image file in it.")
        if not os.path.isfile(path):
            raise ImageError(f"There is no file {path}: check its name and folder.")
        if os.path.getsize(path) == 0:
            raise ImageError(f"{path} is empty (0 bytes): copy or download it again.")
        with Image.open(path, formats=_READABLE) as image:
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        kinds = "a damaged or rare kind of PNG, JPEG, WebP, BMP, TIFF or GIF, or none of these"
        raise ImageError(f"{path} is not a readable image: {kinds}.") from error
    except Image.DecompressionBombError as error:
        advice = "if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ImageError(f"{path} has too many pixels ({error}): {advice}.") from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise ImageError(f"{path} is damaged or unsupported: {_describe(error)}.") from error


def _decode(path: str | Path) -> Tensor:
    """(3, H, W) RGB: uint8, or float32 in [0, 1] where 8 bits would round something away."""
    with _opened(path) as image:
        rawmode = _rawmode(image)
        _refuse_misread(image, path)
        _load(image)
        if rawmode in _LOW_BYTE:
            pixels = np.array(image).astype(np.uint16) << 8 | _low_bytes(path)
        elif image.mode.startswith("I;16"):
            pixels = np.array(image).astype(np.uint16)  # in native byte order
        elif image.mode == "F":
            pixels = np.array(image)
            if not (pixels.min() >= 0 and pixels.max() <= 1):
                found = f"{pixels.min():g} to {pixels.max():g}"
                raise ImageError(f"{path} holds floats from {found}: scale them to [0, 1] first.")
        elif image.mode == "CMYK":
            pixels = np.array(_cmyk_to_rgb(image))
        else:
            pixels = np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=2)
    if pixels.dtype == np.uint16 or pixels.shape[2] == 4:
        pixels = pixels / np.float32(np.iinfo(pixels.dtype).max)
    if pixels.shape[2] == 4:
        colour, alpha = pixels[..., :3], pixels[..., 3:]
        pixels = colour * alpha + (1 - alpha)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _rawmode(image: Image.Image) -> str | None:
    """Pillow's name for the layout of the samples in a file not yet loaded, as ``RGB;16B``."""
    args = image.tile[0].args if image.tile else None
    return args[0] if isinstance(args, tuple) else args


def _refuse_misread(image: Image.Image, path: str | Path) -> None:
    """Refuse what Pillow would decode to wrong pixels without a word."""
    if image.mode == "I":
        raise ImageError(f"{path} holds integers of unknown range: save it as 8 or 16 bit.")
    bits = image.tag_v2.get(258, (1,)) if image.format == "TIFF" else (1,)
    if bits[0] == 16:  # white as zero, or one plane per colour
        odd = image.tag_v2.get(262) == 0 or (len(bits) > 1 and image.tag_v2.get(284) == 2)
    else:
        odd = bits[0] == 12
    if odd:
        kind = "12 bits, or 16 with white as zero or colours in separate planes"
        raise ImageError(f"{path} is a rare kind of TIFF ({kind}): save it as 16-bit PNG.")


def _load(image: Image.Image) -> None:
    """Decode the pixels and turn them as the EXIF orientation says."""
    image.load()
    with suppress(Exception):  # damaged metadata must not cost an intact picture
        ImageOps.exif_transpose(image, in_place=True)


def _low_bytes(path: str | Path) -> np.ndarray:
    """The low bytes of a 16-bit colour file, in the layout in which Pillow gives the high ones."""
    with _opened(path) as image:
        rawmode = _rawmode(image)
        low = (_LOW_BYTE[rawmode],)
        image.tile = [  # decoder arguments: the raw mode alone (PNG), or first of a tuple (TIFF)
            tile._replace(args=low if tile.args == rawmode else low + tile.args[1:])
            for tile in image.tile
        ]
        _load(image)
        return np.array(image)[..., [1, 1, 1, 3] if rawmode == "LA;16B" else slice(None)]


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """Through the embedded profile, with the settings usual in print; without one, plainly."""
    try:
        return ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"])),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (KeyError, ImportError, OSError, ImageCms.PyCMSError):  # no profile, or a broken one
        return image.convert("RGB")


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
