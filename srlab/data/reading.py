"""What a picture file holds: grey or RGB, 8 or 16 bits, its alpha and ICC profile, upright.

People have 16 bit, palettes, transparency, CMYK, photos lying on their side, downloads that
stopped half-way. Each is read as a viewer would show it, or refused by an :class:`ImageError`.

Pillow decodes. Around it stand three things that it lacks: a bound on memory, 16-bit colour, and
the refusal of files that it would fill up or misread without a word.
"""

import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from srlab.errors import SrlabError

# Bytes that reading may take. Python and torch hold about 0.6 GB before: 2 GB in all.
MOST_BYTES = 1_350_000_000
ROWS = 256  # worked on at once
# Bytes a pixel that decoders hold beside Pillow's picture: libwebp its canvases, libtiff a strip.
_DECODERS = {"WEBP": 12, "TIFF": 4, "AVIF": 12, "JPEG2000": 20}

# Not all that Pillow knows: it would hand PostScript to an interpreter, for one.
_READABLE = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")
# How files begin that people try all the same; \0 stands for any byte.
_UNREADABLE = {
    b"\0\0\0\0ftyphei": "HEIC, as phones write it",
    b"\0\0\0\0ftypmif1": "HEIF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "PSD",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
}

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

Source = str | Path | BytesIO  # a file, or the bytes of one


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
        for top in range(0, height, ROWS):
            band = self.samples[top : top + ROWS] / np.float32(np.iinfo(result.dtype).max)
            result[top : top + ROWS] = _from_float(on_white(band), result.dtype)
        return Picture(result, self.icc)

    def in_8_bits(self) -> "Picture":
        """With 16 bits rounded to 8."""
        if self.samples.dtype == np.uint8:
            return self
        rounded = (self.samples.astype(np.uint32) + 128) // 257
        return Picture(rounded.astype(np.uint8), self.icc)


def read_picture(source: Source | Image.Image) -> Picture:
    """Read a picture as it is stored: grey or RGB, 8 or 16 bit, with its alpha and ICC profile.

    It is turned as the EXIF orientation says. One bit becomes 8 bits of grey, a palette RGB, float
    TIFF in [0, 1] 16 bits, and CMYK sRGB, as in
    :func:`srlab.data.images.read_image`. Of several frames, the first.
    Pillow decodes AVIF, and JPEG 2000 but for grey, to 8 bits.
    A profile for another number of channels than the picture has is dropped.

    Args:
        source: a file, the bytes of one, or a picture in Pillow's hands, which stays as it is.

    Raises:
        ImageError: as :func:`srlab.data.images.read_image`.
    """
    if isinstance(source, Image.Image):
        with _explained(source):
            image = source.copy()
            samples, icc = _samples(_upright(image), source), image.info.get("icc_profile")
    else:
        samples, icc = file_samples(source)
    if samples.dtype == np.float32:
        samples = _from_float(samples, np.uint16)
    space = b"GRAY" if samples.shape[2] < 3 else b"RGB "
    if not isinstance(icc, bytes) or icc[16:20] != space or icc[36:40] != b"acsp":
        icc = None
    return Picture(samples, icc)


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
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
def _explained(source: Source | Image.Image) -> Iterator[None]:
    """Turn whatever goes wrong in reading into an ImageError that names the source."""
    name = _name(source)
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a readable image: {_what(source)}.") from error
    except Image.DecompressionBombError as error:
        advice = "if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ImageError(f"{name} has too many pixels ({error}): {advice}.") from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise ImageError(f"{name} is damaged or unsupported: {describe(error)}.") from error


def _what(source: Source | Image.Image) -> str:
    """What a file is that Pillow does not take, and what to do about it."""
    start = b""
    with suppress(OSError):
        if isinstance(source, BytesIO):
            start = source.getvalue()[:16]
        elif isinstance(source, str | Path):
            with open(source, "rb") as file:
                start = file.read(16)
    for magic, kind in _UNREADABLE.items():
        if len(start) >= len(magic) and all(
            m in (0, s) for m, s in zip(magic, start, strict=False)
        ):
            return f"it is {kind}. Save it as PNG or JPEG"
    if start[:2] in (b"II", b"MM"):
        with suppress(Exception):  # a damaged one
            import tifffile

            with tifffile.TiffFile(source) as tiff:
                page = tiff.pages.first
                kind = f"{page.samplesperpixel} channels of {page.dtype}"
                packed = page.compression.name.lower().replace("_", " ")
            return f"it is a TIFF of {kind} (compression: {packed}). Save it as 16-bit PNG or TIFF"
    kinds = "PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or JPEG 2000"
    return f"a damaged or rare kind of {kinds}, or none of these"


def _name(source: Source | Image.Image) -> str:
    return str(source) if isinstance(source, str | Path) else "the given picture"


def file_samples(source: Source, more: int | None = None) -> tuple[np.ndarray, bytes | None]:
    """The samples of a file, (H, W, 1 to 4) uint8, uint16, or float32 in [0, 1]; its ICC profile.

    Args:
        more: bytes a pixel that the caller will add, by default those of a copy.
    """
    with opened(source) as image:
        stored, icc = layout(image), image.info.get("icc_profile")
        _refuse_misread(image, source)
        _refuse_partial(image, source)
        _refuse_large(image, source, more)
        # Only where Pillow's zeros stay zeros, and come last, can they be told at a glance.
        plain = image.mode != "P" and not {"interlace", "transparency"} & image.info.keys()
        header = image.format, image.size, plain
        samples = _samples(_upright(image), source)
    del image  # and Pillow's memory with it
    _refuse_filled_up(*header, source, samples)
    if stored in _LOW_BYTE:
        samples = samples.astype(np.uint16)
        samples <<= 8
        with opened(source) as image:
            for rows, low in _bands(_upright(_with_low_bytes(image))):
                samples[rows] |= low[..., [1, 1, 1, 3]] if stored == "LA;16B" else low
    return (samples[..., [0, 3]] if stored == "LA;16B" else samples), icc


def layout(image: Image.Image) -> str | None:
    """Pillow's name for the layout of the samples in a file not yet loaded, as ``RGB;16B``."""
    args = image.tile[0].args if image.tile else None
    return args[0] if isinstance(args, tuple) else args


def _refuse_misread(image: Image.Image, source: Source) -> None:
    """Refuse what Pillow would decode to wrong pixels without a word."""
    path = _name(source)
    bits = image.tag_v2.get(258, (1,)) if image.format == "TIFF" else (1,)
    kind = ""
    if bits[0] == 12:
        kind = "12 bits"
    elif bits[0] == 16 and image.tag_v2.get(262) == 0:
        kind = "16 bits, with white as zero"
    elif bits[0] == 16 and len(bits) > 1 and image.tag_v2.get(284) == 2:
        kind = "16 bits, with colours in separate planes"
    if kind:
        raise ImageError(f"{path} is a rare kind of TIFF ({kind}): save it as 16-bit PNG.")


def _refuse_partial(image: Image.Image, source: Source) -> None:
    """Refuse a file whose strips or frame cover only a part of what its header promises."""
    covered = {tile.extents for tile in image.tile if tile.extents}
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in covered)
    if image.tile and covered and area < image.width * image.height:
        raise _incomplete(source, image.size)


def _refuse_large(image: Image.Image, source: Source, more: int | None) -> None:
    """Refuse a picture that would take more than :data:`MOST_BYTES` to read."""
    wide = image.mode.startswith("I;16")
    held = 1 if image.mode in ("1", "L", "P") else 2 if wide else 4
    samples = {"1": 1, "L": 1, "LA": 2, "CMYK": 3, "F": 4}.get(image.mode, 2 if wide else 3)
    samples += image.has_transparency_data and image.mode != "LA"
    samples *= 1 + (layout(image) in _LOW_BYTE)
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


def _samples(image: Image.Image, source: Source | Image.Image) -> np.ndarray:
    """The samples of a picture that Pillow has decoded, as in :func:`file_samples`."""
    if image.mode == "I":
        raise ImageError(
            f"{_name(source)} holds integers of unknown range: save it as 8 or 16 bit."
        )
    if image.mode.startswith("I;16"):
        return _array(image)
    if image.mode == "F":
        samples = _array(image)
        if not (samples.min() >= 0 and samples.max() <= 1):
            found = f"{samples.min():g} to {samples.max():g}"
            name = _name(source)
            raise ImageError(f"{name} holds floats from {found}: scale them to [0, 1] first.")
        return samples
    if image.mode == "CMYK":
        return _array(image, _cmyk_to_rgb)
    colour = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    mode = colour + "A" * image.has_transparency_data
    return _array(image, lambda band: band.convert(mode))


def _array(image: Image.Image, convert: Callable = lambda band: band) -> np.ndarray:
    """A picture as (H, W, C), converted band by band: Pillow holds 4 bytes for most pixels."""
    samples = np.empty(0)
    for rows, band in _bands(image, convert):
        if not samples.size:
            native = band.dtype.newbyteorder("=")
            samples = np.empty((image.height, *band.shape[1:]), native)
        samples[rows] = band
    return samples


def _bands(
    image: Image.Image, convert: Callable = lambda band: band
) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of a picture, a few at a time, with their place: (rows, W, C)."""
    for top in range(0, image.height, ROWS):
        bottom = min(top + ROWS, image.height)
        band = np.asarray(convert(image.crop((0, top, image.width, bottom))))
        yield slice(top, bottom), band[..., None] if band.ndim == 2 else band


def _upright(image: Image.Image) -> Image.Image:
    """The image itself, its pixels decoded and turned as the EXIF orientation says."""
    image.load()
    with suppress(Exception):  # damaged metadata must not cost an intact picture
        ImageOps.exif_transpose(image, in_place=True)
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


def _with_low_bytes(image: Image.Image) -> Image.Image:
    """A 16-bit colour file just opened, told to give the low bytes where it gives the high ones."""
    stored = layout(image)
    low = (_LOW_BYTE[stored],)
    image.tile = [  # decoder arguments: the raw mode alone (PNG), or first of a tuple (TIFF)
        tile._replace(args=low if tile.args == stored else low + tile.args[1:])
        for tile in image.tile
    ]
    return image


def on_white(samples: np.ndarray) -> np.ndarray:
    """(H, W, colours and alpha) floats in [0, 1] to the colours that one sees on white paper."""
    colour, alpha = samples[..., :-1], samples[..., -1:]
    return colour * alpha + (1 - alpha)


def _from_float(samples: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    return (samples * np.float32(np.iinfo(dtype).max) + np.float32(0.5)).astype(dtype)


def _refuse_filled_up(
    kind: str | None, size: tuple[int, int], plain: bool, source: Source, samples: np.ndarray
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


def _png_reaches_its_end(source: Source) -> bool:
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


def _jpeg_reaches_its_end(source: Source, samples: np.ndarray) -> bool:
    """Whether more data before the end would be ignored: else they were wanted."""
    data = bytes(source.getbuffer()) if isinstance(source, BytesIO) else Path(source).read_bytes()
    end = data.rfind(b"\xff\xd9")
    if end < 0:
        return True
    with opened(BytesIO(data[:end] + bytes(range(1, 128)) + data[end:])) as image:
        if image.mode == "CMYK":  # whose colours have been converted
            return True
        return all((band == samples[rows]).all() for rows, band in _bands(_upright(image)))


def _incomplete(source: Source, size: tuple[int, int]) -> ImageError:
    return ImageError(
        f"{_name(source)} is damaged: it does not hold the {size[0]} x {size[1]} pixels that its "
        "header promises. Copy or download it again."
    )


def describe(error: Exception) -> str:
    """What an exception says, or its kind where it says nothing."""
    return str(error) or type(error).__name__
