"""Picture files written whole or not at all, and strip by strip.

PNG and TIFF are encoded here: Pillow and libvips (as its wheel comes) want a picture that is there
as a whole. OpenImageIO takes rows, but if the disk fills up, its PNG writer may not notice, and
its JPEG writer ends the process (tried with 3.2.2).
"""

import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from srlab.data.reading import ImageError, describe
from srlab.errors import SrlabError
from srlab.files import whole

Strips = Iterable[np.ndarray]  # (rows, W, C) each, from top to bottom
Shape = tuple[int, int, int]
Kind = np.dtype | type

# What write_strips writes, under Pillow's names, and the largest side that a format can hold.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF"}
_LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}

# How Pillow saves where nobody says otherwise.
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """:func:`srlab.files.whole`, with what goes wrong in one sentence.

    Raises:
        ImageError: any error of the body that is not an SrlabError already.
    """
    try:
        with whole(path) as temporary:
            yield temporary
    except SrlabError:
        raise
    except Exception as error:
        raise ImageError(f"{path} could not be written: {describe(error)}.") from error


def check_size(kind: str, height: int, width: int) -> None:
    """Raise :class:`ImageError` if a format of :data:`FORMATS` cannot hold so many pixels."""
    largest = _LARGEST_SIDE.get(kind, 2**31 - 1)
    if max(height, width) > largest:
        size = f"{width} x {height} pixels are too many for {kind}"
        raise ImageError(f"{size}, which ends at {largest:,} a side: choose PNG or TIFF.")


def write_strips(
    file: BinaryIO,
    kind: str,
    strips: Strips,
    shape: Shape,
    dtype: Kind,
    icc: bytes | None = None,
    quality: int | None = None,
) -> None:
    """Write a picture whose rows arrive strip by strip, so that it need never exist as a whole.

    PNG and TIFF are compressed strip by strip. Pillow encodes the others from one piece, in which
    the strips are collected at up to 4 bytes a pixel.

    Args:
        file: open for writing; TIFF also seeks.
        kind: PNG or TIFF; or with 8 bits JPEG (no alpha), WEBP (grey becomes RGB) or BMP.
        strips: (rows, W, C) arrays from top to bottom, together ``shape``, of any heights.
        shape: (H, W, C), with C as in :class:`srlab.data.reading.Picture`.
        dtype: uint8 or uint16.
        quality: of JPEG (default 95) and WebP (default: lossless), 1 to 100.
    """
    if kind == "PNG":
        _write_png(file, strips, shape, dtype, icc)
    elif kind == "TIFF":
        _write_tiff(file, strips, shape, dtype, icc)
    else:
        _write_by_pillow(file, kind, strips, shape, icc, quality)


def _write_png(
    file: BinaryIO, strips: Strips, shape: Shape, dtype: Kind, icc: bytes | None
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
    above: np.ndarray = np.zeros((1, width * channels * depth), np.uint8)
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

    (n, bytes) uint8, of ``step`` bytes a pixel, and the row above them, (1, bytes), zero at the top
    of the picture -> (n, 1 + bytes); the first byte of a row names the filter.
    """
    up = np.concatenate([above, rows[:-1]])
    left, corner = (np.pad(x[:, :-step], ((0, 0), (step, 0))) for x in (rows, up))
    a, b, c = (x.astype(np.int16) for x in (left, up, corner))
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    best = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, up, corner))
    return np.pad(rows - best, ((0, 0), (1, 0)), constant_values=4)


def _write_tiff(
    file: BinaryIO, strips: Strips, shape: Shape, dtype: Kind, icc: bytes | None
) -> None:
    """TIFF with Deflate and horizontal differences, which all readers know."""
    import tifffile

    dtype, rows = np.dtype(dtype).newbyteorder("<"), 64

    def encode() -> Iterator[bytes]:
        for strip in _regroup(strips, rows):
            differences = np.diff(strip, axis=1, prepend=strip.dtype.type(0))
            deflate = _deflater()
            yield deflate.compress(np.ascontiguousarray(differences, dtype)) + deflate.flush()

    tifffile.imwrite(
        file, encode(), shape=shape if shape[2] > 1 else shape[:2], dtype=dtype, byteorder="<",
        bigtiff=math.prod(shape) * dtype.itemsize > 2**32 - 2**25,
        photometric="rgb" if shape[2] > 2 else "minisblack",
        planarconfig="contig" if shape[2] > 1 else None,
        extrasamples=["unassalpha"] if shape[2] in (2, 4) else None,
        compression="adobe_deflate", predictor=2, rowsperstrip=rows, iccprofile=icc, metadata=None,
    )  # fmt: skip


def _deflater() -> Any:
    """For differences of neighbours, where looking for anything but runs costs ten times the time.

    (On upscaled photographs it saves 3% of the size.)
    """
    return zlib.compressobj(strategy=zlib.Z_RLE)


def _write_by_pillow(
    file: BinaryIO, kind: str, strips: Strips, shape: Shape, icc: bytes | None, quality: int | None
) -> None:
    """Collect the strips, and encode them in one piece."""
    mode = ("L", "LA", "RGB", "RGBA")[shape[2] - 1]
    canvas, top = Image.new(mode, (shape[1], shape[0])), 0
    for strip in strips:
        canvas.paste(Image.fromarray(strip[..., 0] if mode == "L" else strip), (0, top))
        top += len(strip)
    options = _OPTIONS.get(kind, {}) | ({"quality": quality, "lossless": False} if quality else {})
    encoded = BytesIO()  # Pillow hides why a file could not be written; file.write() tells
    canvas.save(encoded, kind, icc_profile=icc, **options)
    file.write(encoded.getbuffer())


def _regroup(strips: Strips, rows: int) -> Iterator[np.ndarray]:
    """The same rows in strips of ``rows`` each, but for the last."""
    kept: list[np.ndarray] = []
    for strip in strips:
        strip = np.concatenate([*kept, strip])
        whole = len(strip) - len(strip) % rows
        yield from (strip[top : top + rows] for top in range(0, whole, rows))
        kept = [strip[whole:]]
    if kept and len(kept[0]):
        yield kept[0]
