"""Files to tensors and back: RGB in [0, 1], channels first; luma; the 8-bit rounding of files.

:func:`read_image` and :func:`write_image` are for training and measuring. :func:`read_picture` and
:func:`write_strips` are for a person's own pictures: what a file holds besides RGB is kept, and
the pixels may be made while they are written.

People have 16 bit, palettes, transparency, CMYK, photos lying on their side, downloads that
stopped half-way. Each is read as a viewer would show it, or refused by an :class:`ImageError`.
"""

import math
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from srlab.errors import SrlabError
from srlab.files import whole

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

# What write_strips writes, under Pillow's names, and the largest side that a format can hold.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF"}
_LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}

# Bytes that reading may take. Python and torch hold about 0.6 GB before: 2 GB in all.
MOST_BYTES = 1_350_000_000
_ROWS = 256  # worked on at once
# Bytes a pixel that decoders hold beside Pillow's picture: libwebp its canvases, libtiff a strip.
_DECODERS = {"WEBP": 12, "TIFF": 4}

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


@dataclass(frozen=True)
class Picture:
    """A picture as its file stores it, but upright.

    Attributes:
        samples: (H, W, C) uint8 or uint16. C is 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for
            RGB and alpha; alpha is not multiplied into the colours.
        icc: the ICC profile of the colours, or None.
    """

    samples: np.ndarray
    icc: bytes | None = None

    @property
    def has_alpha(self) -> bool:
        return self.samples.shape[2] in (2, 4)

    def over_white(self) -> "Picture":
        """Without alpha, as it looks on white paper."""
        if not self.has_alpha:
            return self
        height, width, channels = self.samples.shape
        result = np.empty((height, width, channels - 1), self.samples.dtype)
        for top in range(0, height, _ROWS):
            band = self.samples[top : top + _ROWS] / np.float32(np.iinfo(result.dtype).max)
            result[top : top + _ROWS] = _from_float(_on_white(band), result.dtype)
        return Picture(result, self.icc)


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
        ImageError: a missing, empty, damaged or unsupported file, one that ends before its picture
            does, or one with more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` (in all about 179
            million) pixels or so many that they would take more than :data:`MOST_BYTES`.
    """
    return _decode(path, torch.float32)


def read_image_u8(path: str | Path) -> Tensor:
    """As :func:`read_image`, but (3, H, W) uint8: a quarter of the memory, 16 bits rounded to 8."""
    return _decode(path, torch.uint8)


def read_picture(source: str | Path | BytesIO | Image.Image) -> Picture:
    """Read a picture as it is stored: grey or RGB, 8 or 16 bit, with its alpha and ICC profile.

    It is turned as the EXIF orientation says. One bit becomes 8 bits of grey, a palette RGB, float
    TIFF in [0, 1] 16 bits, and CMYK sRGB, as in :func:`read_image`. Of several frames, the first.
    A profile for another number of channels than the picture has is dropped.

    Args:
        source: a file, the bytes of one, or a picture in Pillow's hands, which stays as it is.

    Raises:
        ImageError: as :func:`read_image`.
    """
    if isinstance(source, Image.Image):
        with _explained(source):
            image = source.copy()
            samples, icc = _samples(_upright(image), source), image.info.get("icc_profile")
    else:
        samples, icc = _file_samples(source)
    if samples.dtype == np.float32:
        samples = _from_float(samples, np.uint16)
    space = b"GRAY" if samples.shape[2] < 3 else b"RGB "
    if not isinstance(icc, bytes) or icc[16:20] != space or icc[36:40] != b"acsp":
        icc = None
    return Picture(samples, icc)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width in the file's header, before any EXIF orientation.

    Raises:
        ImageError: as :func:`read_image`, but damage behind the header goes unnoticed.
    """
    with _opened(path) as image:
        return image.height, image.width


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
    with replacing(path, suffix) as temporary:
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        picture.save(temporary, **_SAVE_OPTIONS.get(suffix, {}))


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """:func:`srlab.files.whole`, with what goes wrong in one sentence.

    Raises:
        ImageError: any error of the body that is not an SrlabError already.
    """
    try:
        with whole(path, suffix) as temporary:
            yield temporary
    except SrlabError:
        raise
    except Exception as error:
        raise ImageError(f"{path} could not be written: {_describe(error)}.") from error


def check_size(kind: str, height: int, width: int) -> None:
    """Raise :class:`ImageError` if a format of :data:`FORMATS` cannot hold so many pixels."""
    largest = _LARGEST_SIDE.get(kind, 2**31 - 1)
    if max(height, width) > largest:
        size = f"{width} x {height} pixels are too many for {kind}"
        raise ImageError(f"{size}, which ends at {largest:,} a side: choose PNG or TIFF.")


def write_strips(
    file: BinaryIO,
    kind: str,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype | type,
    icc: bytes | None = None,
    quality: int | None = None,
) -> None:
    """Write a picture whose rows arrive strip by strip, so that it need never exist as a whole.

    PNG and TIFF are compressed strip by strip. Pillow encodes JPEG and WebP from one piece, in
    which the strips are collected at up to 4 bytes a pixel.

    Args:
        file: open for writing; TIFF also seeks.
        kind: PNG or TIFF; or JPEG (no alpha) or WEBP (no grey channel: it becomes RGB), 8 bit both.
        strips: (rows, W, C) arrays from top to bottom, together ``shape``, of any heights.
        shape: (H, W, C), with C as in :class:`Picture`.
        dtype: uint8 or uint16.
        quality: of JPEG (default 95) and WebP (default: lossless), 1 to 100.
    """
    if kind == "PNG":
        _write_png(file, strips, shape, dtype, icc)
    elif kind == "TIFF":
        _write_tiff(file, strips, shape, dtype, icc)
    else:
        options = _JPEG if kind == "JPEG" else {"lossless": quality is None}
        options = options | ({"quality": quality} if quality else {})
        mode = ("L", "LA", "RGB", "RGBA")[shape[2] - 1]
        canvas, top = Image.new(mode, (shape[1], shape[0])), 0
        for strip in strips:
            canvas.paste(Image.fromarray(strip[..., 0] if mode == "L" else strip), (0, top))
            top += len(strip)
        encoded = BytesIO()  # Pillow hides why a file could not be written; file.write() tells
        canvas.save(encoded, kind, icc_profile=icc, **options)
        file.write(encoded.getbuffer())


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
def _opened(source: str | Path | BytesIO) -> Iterator[Image.Image]:
    """Open a file with Pillow; what goes wrong here or in the body ends in an ImageError."""
    with _explained(source):
        if isinstance(source, BytesIO):
            source.seek(0)
            size = len(source.getbuffer())
        elif os.path.isdir(source):
            raise ImageError(f"{source} is a folder: name an image file in it.")
        elif not os.path.isfile(source):
            raise ImageError(f"There is no file {source}: check its name and folder.")
        else:
            size = os.path.getsize(source)
        if size == 0:
            raise ImageError(f"{_name(source)} is empty (0 bytes): copy or download it again.")
        with Image.open(source, formats=_READABLE) as image:
            yield image


@contextmanager
def _explained(source: str | Path | BytesIO | Image.Image) -> Iterator[None]:
    """Turn whatever goes wrong in reading into an ImageError that names the source."""
    name = _name(source)
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        kinds = "a damaged or rare kind of PNG, JPEG, WebP, BMP, TIFF or GIF, or none of these"
        raise ImageError(f"{name} is not a readable image: {kinds}.") from error
    except Image.DecompressionBombError as error:
        advice = "if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ImageError(f"{name} has too many pixels ({error}): {advice}.") from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise ImageError(f"{name} is damaged or unsupported: {_describe(error)}.") from error


def _name(source: str | Path | BytesIO | Image.Image) -> str:
    return str(source) if isinstance(source, str | Path) else "the given picture"


def _decode(path: str | Path, dtype: torch.dtype) -> Tensor:
    """(3, H, W) RGB, as uint8 or as float32 in [0, 1]."""
    samples, _ = _file_samples(path, 3 * dtype.itemsize)
    height, width, channels = samples.shape
    pixels = torch.empty(3, height, width, dtype=dtype)
    for top in range(0, height, _ROWS):
        band = samples[top : top + _ROWS]
        if band.dtype == np.uint16 or channels in (2, 4):
            band = band / np.float32(np.iinfo(band.dtype).max)
        if channels in (2, 4):
            band = _on_white(band)
        part = torch.from_numpy(band).permute(2, 0, 1)
        if part.dtype != dtype:
            part = to_float(part) if part.dtype == torch.uint8 else to_uint8(part)
        pixels[:, top : top + _ROWS] = part
    return pixels


def _file_samples(
    source: str | Path | BytesIO, more: int | None = None
) -> tuple[np.ndarray, bytes | None]:
    """The samples of a file, (H, W, 1 to 4) uint8, uint16, or float32 in [0, 1]; its ICC profile.

    Args:
        more: bytes a pixel that the caller will add, by default those of a copy.
    """
    with _opened(source) as image:
        rawmode, icc = _rawmode(image), image.info.get("icc_profile")
        _refuse_misread(image, source)
        _refuse_partial(image, source)
        _refuse_large(image, source, more)
        # Only where Pillow's zeros stay zeros, and come last, can they be told at a glance.
        plain = image.mode != "P" and not {"interlace", "transparency"} & image.info.keys()
        header = image.format, image.size, plain
        samples = _samples(_upright(image), source)
    del image  # and Pillow's memory with it
    _refuse_filled_up(*header, source, samples)
    if rawmode in _LOW_BYTE:
        samples = samples.astype(np.uint16)
        samples <<= 8
        with _opened(source) as image:
            for rows, low in _bands(_upright(_with_low_bytes(image))):
                samples[rows] |= low[..., [1, 1, 1, 3]] if rawmode == "LA;16B" else low
    return (samples[..., [0, 3]] if rawmode == "LA;16B" else samples), icc


def _samples(image: Image.Image, source: str | Path | BytesIO | Image.Image) -> np.ndarray:
    """The samples of a picture that Pillow has decoded, as in :func:`_file_samples`."""
    if image.mode == "I":
        raise ImageError(
            f"{_name(source)} holds integers of unknown range: save it as 8 or 16 bit."
        )
    if image.mode.startswith("I;16"):
        return _array(image, np.uint16)  # in native byte order
    if image.mode == "F":
        samples = _array(image, np.float32)
        if not (samples.min() >= 0 and samples.max() <= 1):
            found = f"{samples.min():g} to {samples.max():g}"
            name = _name(source)
            raise ImageError(f"{name} holds floats from {found}: scale them to [0, 1] first.")
        return samples
    if image.mode == "CMYK":
        return _array(image, np.uint8, _cmyk_to_rgb)
    colour = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    mode = colour + "A" * image.has_transparency_data
    return _array(image, np.uint8, lambda band: band.convert(mode))


def _array(
    image: Image.Image,
    dtype: np.dtype | type,
    convert: Callable[[Image.Image], Image.Image] = lambda band: band,
) -> np.ndarray:
    """A picture as (H, W, C), converted band by band: Pillow holds 4 bytes for most pixels."""
    samples = np.empty(0, dtype)
    for rows, band in _bands(image, convert):
        if not samples.size:
            samples = np.empty((image.height, *band.shape[1:]), dtype)
        samples[rows] = band
    return samples


def _bands(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image] = lambda band: band
) -> Iterator[tuple[slice, np.ndarray]]:
    for top in range(0, image.height, _ROWS):
        bottom = min(top + _ROWS, image.height)
        band = np.asarray(convert(image.crop((0, top, image.width, bottom))))
        yield slice(top, bottom), band[..., None] if band.ndim == 2 else band


def _on_white(samples: np.ndarray) -> np.ndarray:
    """(H, W, colours and alpha) floats in [0, 1] to the colours that one sees on white paper."""
    colour, alpha = samples[..., :-1], samples[..., -1:]
    return colour * alpha + (1 - alpha)


def _from_float(samples: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    return (samples * np.float32(np.iinfo(dtype).max) + np.float32(0.5)).astype(dtype)


def _rawmode(image: Image.Image) -> str | None:
    """Pillow's name for the layout of the samples in a file not yet loaded, as ``RGB;16B``."""
    args = image.tile[0].args if image.tile else None
    return args[0] if isinstance(args, tuple) else args


def _refuse_misread(image: Image.Image, source: str | Path | BytesIO) -> None:
    """Refuse what Pillow would decode to wrong pixels without a word."""
    path = _name(source)
    bits = image.tag_v2.get(258, (1,)) if image.format == "TIFF" else (1,)
    if bits[0] == 16:  # white as zero, or one plane per colour
        odd = image.tag_v2.get(262) == 0 or (len(bits) > 1 and image.tag_v2.get(284) == 2)
    else:
        odd = bits[0] == 12
    if odd:
        kind = "12 bits, or 16 with white as zero or colours in separate planes"
        raise ImageError(f"{path} is a rare kind of TIFF ({kind}): save it as 16-bit PNG.")


def _refuse_large(image: Image.Image, source: str | Path | BytesIO, more: int | None) -> None:
    """Refuse a picture that would take more than :data:`MOST_BYTES` to read."""
    wide = image.mode.startswith("I;16")
    held = 1 if image.mode in ("1", "L", "P") else 2 if wide else 4
    samples = {"1": 1, "L": 1, "LA": 2, "CMYK": 3, "F": 4}.get(image.mode, 2 if wide else 3)
    samples += image.has_transparency_data and image.mode != "LA"
    samples *= 1 + (_rawmode(image) in _LOW_BYTE)
    decoder = _DECODERS.get(image.format or "", 6 * ("progressive" in image.info))
    turned = image.getexif().get(274, 1) != 1
    each = max(
        held + max(decoder, held * turned, samples), samples + (samples if more is None else more)
    )
    nbytes = image.width * image.height * each
    if nbytes > MOST_BYTES:
        raise ImageError(
            f"{_name(source)} has too many pixels: to read {image.width} x {image.height} of its "
            f"kind takes {nbytes / 1e9:.1f} GB, and {MOST_BYTES / 1e9:.1f} is the most. Cut it "
            "into parts, or save it with 8 bits and without transparency."
        )


def _refuse_partial(image: Image.Image, source: str | Path | BytesIO) -> None:
    """Refuse a file whose strips or frame cover only a part of what its header promises."""
    covered = {tile.extents for tile in image.tile if tile.extents}
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in covered)
    if image.tile and covered and area < image.width * image.height:
        raise _incomplete(source, image.size)


def _refuse_filled_up(
    kind: str | None,
    size: tuple[int, int],
    plain: bool,
    source: str | Path | BytesIO,
    samples: np.ndarray,
) -> None:
    """Refuse a PNG or JPEG whose data end early: Pillow gives zeros there, libjpeg grey.

    Only a picture that ends so is looked at again.
    """
    edges = samples[0], samples[-1], samples[:, 0], samples[:, -1]  # EXIF may have turned it
    if kind == "PNG" and not (plain and all(edge.any() for edge in edges)):
        whole = _png_reaches_its_end(source)
    elif kind == "JPEG" and (samples[:: len(samples) - 1 or 1, [0, -1]] == 128).all(2).any():
        whole = _jpeg_reaches_its_end(source, samples)
    else:
        return
    if not whole:
        raise _incomplete(source, size)


def _incomplete(source: str | Path | BytesIO, size: tuple[int, int]) -> ImageError:
    return ImageError(
        f"{_name(source)} is damaged: it does not hold the {size[0]} x {size[1]} pixels that its "
        "header promises. Copy or download it again."
    )


def _png_reaches_its_end(source: str | Path | BytesIO) -> bool:
    """Whether a PNG's compressed data hold all rows (ISO/IEC 15948, 7.2 and 8.2)."""
    inflate, found, expected = zlib.decompressobj(), 0, 0
    with BytesIO(source.getbuffer()) if isinstance(source, BytesIO) else open(source, "rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            left, kind = struct.unpack(">I4s", header)
            if kind == b"IHDR":
                width, height, depth, colour, *_, interlaced = struct.unpack(
                    ">IIBBBBB", file.read(13)
                )
                bits, left = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour], left - 13
                for x, y, dx, dy in _ADAM7 if interlaced else [(0, 0, 1, 1)]:
                    columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
                    if columns > 0 and rows > 0:
                        expected += rows * (1 + -(-columns * bits // 8))
            while kind == b"IDAT" and left and (block := file.read(min(left, 1 << 12))):
                found += len(inflate.decompress(block))
                left -= len(block)
            file.seek(left + 4, 1)
    return found >= expected


# Where the passes of an interlaced PNG begin, and their steps: x, y, x, y.
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
_ADAM7 += [(0, 1, 1, 2)]


def _jpeg_reaches_its_end(source: str | Path | BytesIO, samples: np.ndarray) -> bool:
    """Whether more data before the end would be ignored: else they were wanted."""
    data = bytes(source.getbuffer()) if isinstance(source, BytesIO) else Path(source).read_bytes()
    end = data.rfind(b"\xff\xd9")
    if end < 0:
        return True
    with _opened(BytesIO(data[:end] + bytes(range(1, 128)) + data[end:])) as image:
        if image.mode == "CMYK":  # whose colours have been converted
            return True
        return all((band == samples[rows]).all() for rows, band in _bands(_upright(image)))


def _upright(image: Image.Image) -> Image.Image:
    """The image itself, its pixels decoded and turned as the EXIF orientation says."""
    image.load()
    with suppress(Exception):  # damaged metadata must not cost an intact picture
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _with_low_bytes(image: Image.Image) -> Image.Image:
    """A 16-bit colour file just opened, told to give the low bytes where it gives the high ones."""
    rawmode = _rawmode(image)
    low = (_LOW_BYTE[rawmode],)
    image.tile = [  # decoder arguments: the raw mode alone (PNG), or first of a tuple (TIFF)
        tile._replace(args=low if tile.args == rawmode else low + tile.args[1:])
        for tile in image.tile
    ]
    return image


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


def _write_png(
    file: BinaryIO,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype | type,
    icc: bytes | None,
) -> None:
    """PNG after ISO/IEC 15948: Pillow can neither write 16-bit colour nor row by row."""
    height, width, channels = shape
    depth = np.dtype(dtype).itemsize

    def chunk(kind: bytes, body: bytes) -> None:
        file.write(struct.pack(">I", len(body)) + kind + body)
        file.write(struct.pack(">I", zlib.crc32(kind + body)))

    file.write(b"\x89PNG\r\n\x1a\n")
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * depth, colour_type, 0, 0, 0))
    if icc:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    deflate = _deflater()
    above = np.zeros((1, width * channels * depth), np.uint8)
    for strip in strips:
        rows = np.ascontiguousarray(strip, f">u{depth}").reshape(len(strip), -1).view(np.uint8)
        for top in range(0, len(rows), 32):  # few enough to stay in the processor's cache
            block = rows[top : top + 32]
            if data := deflate.compress(_paeth(block, above, channels * depth)):
                chunk(b"IDAT", data)
            above = block[-1:]
    chunk(b"IDAT", deflate.flush())
    chunk(b"IEND", b"")


def _paeth(rows: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """PNG's filter 4 (ISO/IEC 15948, 9.4): each byte less the neighbour that predicts it best.

    Args:
        rows: (n, bytes) uint8.
        above: (1, bytes) the row before them, zero at the top of the picture.
        step: bytes a pixel.

    Returns:
        (n, 1 + bytes) uint8; the first byte of a row names the filter.
    """
    up = np.concatenate([above, rows[:-1]])
    left, corner = (np.pad(x[:, :-step], ((0, 0), (step, 0))) for x in (rows, up))
    a, b, c = (x.astype(np.int16) for x in (left, up, corner))
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    best = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, up, corner))
    return np.pad(rows - best, ((0, 0), (1, 0)), constant_values=4)


def _write_tiff(
    file: BinaryIO,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype | type,
    icc: bytes | None,
) -> None:
    """TIFF with Deflate and horizontal differences, which all readers know."""
    import tifffile

    dtype, rows = np.dtype(dtype).newbyteorder("<"), 64

    def encode() -> Iterator[bytes]:
        for strip in _regroup(strips, rows):
            differences = np.diff(strip, axis=1, prepend=strip.dtype.type(0))
            deflate = _deflater()
            yield deflate.compress(differences.astype(dtype)) + deflate.flush()

    tifffile.imwrite(
        file,
        encode(),
        shape=shape if shape[2] > 1 else shape[:2],
        dtype=dtype,
        byteorder="<",
        bigtiff=math.prod(shape) * dtype.itemsize > 2**32 - 2**25,
        photometric="rgb" if shape[2] > 2 else "minisblack",
        planarconfig="contig" if shape[2] > 1 else None,
        extrasamples=["unassalpha"] if shape[2] in (2, 4) else None,
        compression="adobe_deflate",
        predictor=2,
        rowsperstrip=rows,
        iccprofile=icc,
        metadata=None,
    )


def _deflater() -> Any:
    """For differences of neighbours, where looking for anything but runs costs ten times the time.

    (On upscaled photographs it saves 3% of the size.)
    """
    return zlib.compressobj(strategy=zlib.Z_RLE)


def _regroup(strips: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in strips of ``rows`` each, but for the last."""
    kept: list[np.ndarray] = []
    for strip in strips:
        strip = np.concatenate([*kept, strip])
        whole = len(strip) - len(strip) % rows
        yield from (strip[top : top + rows] for top in range(0, whole, rows))
        kept = [strip[whole:]]
    if kept and len(kept[0]):
        yield kept[0]
