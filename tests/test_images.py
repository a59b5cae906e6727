"""srlab.data.images and reading against Pillow, tifffile, scikit-image, EXIF, hand-made files."""

import io
import os
import runpy
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, features
from skimage.color import rgb2ycbcr

from srlab.data import reading
from srlab.data.images import (
    is_grey,
    list_images,
    luma,
    read_image,
    read_image_u8,
    to_float,
    to_uint8,
    write_image,
)
from srlab.data.reading import ImageError, read_picture


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def chw(array):
    """(H, W, 3) array to the layout of the library."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def png16(samples):
    """A 16-bit PNG of (H, W, channels) uint16, written by the specification (ISO/IEC 15948)."""
    height, width, channels = samples.shape

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def over_white(rgba):
    """(H, W, 4) floats in [0, 1] on white paper."""
    return chw(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]).float()


# Reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".gif", ".PNG"])
def test_lossless_formats_give_the_exact_pixels(tmp_path, rng, suffix):
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    x = read_image(path)
    assert x.dtype == torch.float32
    assert x.shape == (3, 5, 7)
    assert x.is_contiguous()
    assert torch.equal(x, chw(pixels) / 255)
    assert torch.equal(read_image_u8(str(path)), chw(pixels))


def test_jpeg_gives_what_pillow_decodes(tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert torch.equal(read_image_u8(tmp_path / "a.jpg"), chw(expected))


def test_a_file_is_recognised_by_its_content_not_its_suffix(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.jpg", "PNG")
    assert read_image_u8(tmp_path / "a.jpg")[:, 0, 0].tolist() == [1, 2, 3]


def test_of_several_frames_the_first(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for suffix in (".gif", ".tif", ".png", ".webp"):
        path = tmp_path / f"a{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert read_image(path).mean(dim=(1, 2)) == pytest.approx([1, 0, 0], abs=0.02)


def test_grey_and_one_bit(tmp_path, rng):
    grey = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert torch.equal(read_image_u8(tmp_path / "grey.png"), torch.from_numpy(grey).expand(3, 5, 7))
    Image.fromarray(grey > 127).save(tmp_path / "bit.tif")
    assert torch.equal(read_image(tmp_path / "bit.tif")[0] == 1, torch.from_numpy(grey > 127))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_all_bits(tmp_path, rng, channels):
    samples = rng.integers(0, 65536, (9, 13, channels), dtype=np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png16(samples))
    if channels in (1, 2):
        rgba = np.concatenate([samples[..., :1].repeat(3, 2), samples[..., 1:]], axis=2)
    else:
        rgba = samples
    if channels in (1, 3):
        rgba = np.concatenate([rgba, np.full_like(rgba[..., :1], 65535)], axis=2)
    x = read_image(path)
    assert torch.allclose(x, over_white(rgba / 65535), rtol=0, atol=2e-7)
    if channels in (1, 3):
        assert torch.equal(x.mul(65535).round().int(), chw(rgba[..., :3].astype(np.int32)))
    assert torch.equal(read_image_u8(path), to_uint8(x))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff_keeps_all_bits(tmp_path, rng, byteorder, tile, compression):
    how = {"byteorder": byteorder, "tile": tile, "compression": compression}
    rgb = rng.integers(0, 65536, (21, 37, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb", **how)
    exact = read_image(tmp_path / "rgb.tif").mul(65535).round().int()
    assert torch.equal(exact, chw(rgb.astype(np.int32)))
    tifffile.imwrite(tmp_path / "grey.tif", rgb[..., 0], **how)
    exact = read_image(tmp_path / "grey.tif").mul(65535).round().int()
    assert torch.equal(exact, torch.from_numpy(rgb[..., 0].astype(np.int32)).expand(3, -1, -1))


def test_16_bit_tiff_with_alpha_and_lzw(tmp_path, rng):
    rgba = rng.integers(0, 65536, (8, 9, 4), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    expected = over_white(rgba / 65535)
    assert torch.allclose(read_image(tmp_path / "a.tif"), expected, rtol=0, atol=2e-7)
    # tifffile writes LZW only with another package, Pillow only in grey.
    grey = rgba[..., 0]
    Image.fromarray(grey).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    exact = read_image(tmp_path / "lzw.tif")[1].mul(65535).round().int()
    assert torch.equal(exact, torch.from_numpy(grey.astype(np.int32)))


def test_float_tiff_is_taken_as_it_is_and_refused_outside_0_to_1(tmp_path, rng):
    grey = rng.random((6, 5), dtype=np.float32)
    tifffile.imwrite(tmp_path / "a.tif", grey)
    assert torch.equal(read_image(tmp_path / "a.tif")[2], torch.from_numpy(grey))
    for bad in (grey * 255, grey - 2, np.full_like(grey, np.nan)):
        tifffile.imwrite(tmp_path / "bad.tif", bad)
        with pytest.raises(ImageError, match=r"bad\.tif.*floats"):
            read_image(tmp_path / "bad.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
def test_transparency_is_composited_over_white(tmp_path, mode):
    """Black at alpha 0 is white paper, at alpha 51 it is 4/5 of white, at 255 it stays black."""
    path = tmp_path / "a.png"
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = 0, 51, 255
    expected = [1.0, 0.8, 0.0]
    if mode in ("P", "PA"):
        image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
        image.putpalette([0, 0, 0] * 3)
        image.save(path, transparency=bytes([0, 51, 255]))
    elif mode in ("RGB", "L"):  # one colour is declared transparent
        image = Image.fromarray(np.array([[7, 9, 0]], dtype=np.uint8)).convert(mode)
        image.save(path, transparency=7 if mode == "L" else (7, 7, 7))
        expected = [1.0, 9 / 255, 0.0]
    else:
        Image.fromarray(rgba).convert(mode).save(path)
    assert torch.allclose(read_image(path), torch.tensor(expected).expand(3, 1, 3), atol=1e-6)


def test_palette_without_transparency_keeps_its_colours(tmp_path):
    image = Image.fromarray(np.array([[1, 0]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "a.png")
    assert read_image_u8(tmp_path / "a.png")[:, 0].T.tolist() == [[200, 100, 50], [10, 20, 30]]


def test_opaque_alpha_changes_nothing(tmp_path, rng):
    rgba = rng.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert torch.equal(read_image_u8(tmp_path / "a.png"), chw(rgba[..., :3]))


# (side on which row 0 of the file belongs, side on which column 0 belongs), EXIF 2.32, tag 0x0112.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


def corner(x, *sides):
    return x[:, -1 if "bottom" in sides else 0, -1 if "right" in sides else 0].tolist()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["png", "webp", "tif", "16-bit png", "16-bit tif"])
def test_exif_orientation(tmp_path, orientation, kind):
    stored = np.zeros((4, 6, 3), dtype=np.uint8)
    stored[0, 0] = 255, 0, 0  # red: row 0, column 0
    stored[0, -1] = 0, 255, 0  # green: the other end of row 0
    stored[-1, 0] = 0, 0, 255  # blue: the other end of column 0
    path = tmp_path / f"a.{kind.split()[-1]}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "16-bit png":
        body = png16(stored.astype(np.uint16) * 257)
        tag = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(tag) - 4) + tag + struct.pack(">I", zlib.crc32(tag))
        path.write_bytes(body[:33] + chunk + body[33:])  # behind the signature and IHDR
    elif kind == "16-bit tif":
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(path, stored.astype(np.uint16) * 257, photometric="rgb", extratags=[tag])
    else:
        options = {"lossless": True} if kind == "webp" else {}
        Image.fromarray(stored).save(path, exif=exif, **options)

    x = read_image(path)
    row, column = ORIENTATIONS[orientation]
    assert x.shape == ((3, 4, 6) if orientation <= 4 else (3, 6, 4))
    assert corner(x, row, column) == [1, 0, 0]
    assert corner(x, row, OPPOSITE[column]) == [0, 1, 0]
    assert corner(x, OPPOSITE[row], column) == [0, 0, 1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    image = Image.new("RGB", (8, 6), (9, 99, 199))
    for exif in (b"Exif\0\0rubbish", b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff"):
        image.save(tmp_path / "a.jpg", exif=exif, quality=95)
        assert read_image(tmp_path / "a.jpg").shape == (3, 6, 8)


def cmyk_profile():
    """A CMYK profile after ICC.1:2001-04 by which cyan, magenta and yellow are plain grey inks.

    Each takes away half of the lightness, black all of it, and a = b = 0 throughout.
    """
    ink = np.indices((2, 2, 2, 2)).reshape(4, -1).T
    lightness = 100 * np.where(ink[:, 3] == 1, 0, 0.5 ** ink[:, :3].sum(axis=1))
    lab = np.stack([lightness * 2.55, *np.full((2, 16), 128.0)], axis=1)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1" + struct.pack(">4x4B", 4, 3, 2, 0) + matrix + 4 * ramp
    table += lab.round().astype(np.uint8).tobytes() + 3 * ramp
    white = b"XYZ " + struct.pack(">4x3i", 63190, 65536, 54061)
    tags = b"".join(
        name + struct.pack(">2I", offset, size)
        for name, offset, size in (
            (b"wtpt", 156, len(white)),
            (b"A2B0", 156 + len(white), len(table)),
        )
    )
    size = 156 + len(white) + len(table)
    header = struct.pack(">I4x4s4s4s4s12x4s28x3i48x", size, b"\x02\x20\0\0", b"prtr", b"CMYK",
                         b"Lab ", b"acsp", 63190, 65536, 54061)  # fmt: skip
    return header + struct.pack(">I", 2) + tags + white + table


def test_cmyk_goes_through_its_profile(tmp_path):
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (255, 0, 255, 0), (0, 0, 0, 255)]
    image = Image.fromarray(np.array([inks], dtype=np.uint8), "CMYK")
    image.save(tmp_path / "a.tif", icc_profile=cmyk_profile())
    # CIE L* 100, 50, 25, 0 as sRGB grey (IEC 61966-2-1).
    luminance = [1.0, (66 / 116) ** 3, (41 / 116) ** 3, 0.0]
    grey = [1.055 * y ** (1 / 2.4) - 0.055 if y > 0.0031308 else 12.92 * y for y in luminance]
    expected = torch.tensor(grey).expand(3, 1, 4)
    assert torch.allclose(read_image(tmp_path / "a.tif"), expected, atol=2.5 / 255)


@pytest.mark.parametrize("profile", [None, b"not a profile"])
def test_cmyk_without_a_usable_profile_is_converted_plainly(tmp_path, profile):
    path = tmp_path / "a.jpg"
    options = {} if profile is None else {"icc_profile": profile}
    Image.new("CMYK", (16, 16), (255, 0, 255, 0)).save(path, quality=100, **options)
    red, green, blue = read_image(path).mean(dim=(1, 2)).tolist()
    assert green > 0.97
    assert max(red, blue) < 0.03


def test_is_grey_asks_the_file_not_the_pixels(tmp_path, rng):
    for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
        Image.new(mode, (4, 4)).save(tmp_path / f"{mode[0:2]}.png".replace(";", ""))
    for channels in (2, 3):
        samples = rng.integers(0, 65536, (4, 4, channels), dtype=np.uint16)
        (tmp_path / f"wide{channels}.png").write_bytes(png16(samples))
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
    Image.new("L", (4, 4)).save(tmp_path / "l.jpg")
    Image.new("LAB", (4, 4)).save(tmp_path / "lab.tif")
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.webp")
    grey = {p.name for p in tmp_path.iterdir() if is_grey(p)}
    assert grey == {"1.png", "L.png", "LA.png", "I.png", "wide2.png", "l.jpg"}


# What cannot be read ------------------------------------------------------------------------------


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<html>404 Not Found</html>")
    (tmp_path / "postscript.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for read in (read_image, read_image_u8, is_grey):
        for name, why in {
            "missing.png": "There is no file",
            "text.png/a.png": "There is no file",
            "folder.png": "is a folder",
            "empty.png": "empty",
            "text.png": "not a readable image",
            "postscript.png": "not a readable image",
            "n" * 300 + ".png": "There is no file",
        }.items():
            with pytest.raises(ImageError) as caught:
                read(tmp_path / name)
            message = str(caught.value)
            assert name in message
            assert why in message
            assert "\n" not in message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_truncated_files(tmp_path, rng, suffix):
    path = tmp_path / f"whole{suffix}"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.8):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match=rf"cut\{suffix}"):
            read_image(cut)


def png(width, height, rows, interlaced=0):
    """An 8-bit RGB PNG with these bytes for rows, be they enough or not."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return bytearray(file.getvalue())


def files_that_end_early(rng):
    """Whole files by their structure, whose headers promise more than they hold."""
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(noise))
    yield "tall.png", png(64, 13_000, rows)
    yield "cut.png", png(64, 64, rows[: 193 * 63])  # all rows but one
    yield "interlaced.png", png(64, 64, bytes(6000), interlaced=1)
    palette = encoded(noise.quantize(16), "PNG", bits=8)
    start = palette.index(b"IDAT") + 4
    length = struct.unpack(">I", palette[start - 8 : start - 4])[0]
    kept = zlib.compress(zlib.decompress(palette[start : start + length])[:2000])
    chunk = b"IDAT" + kept
    chunk = struct.pack(">I", len(kept)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    yield "palette.png", palette[: start - 8] + chunk + palette[start + length + 4 :]
    jpeg = encoded(noise, "JPEG")
    yield "cut.jpg", jpeg[: len(jpeg) // 2] + b"\xff\xd9"
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 2000, 2000)
    yield "large.jpg", jpeg
    gif = encoded(noise.quantize(16), "GIF")
    gif[6:10] = struct.pack("<HH", 13_000, 13_000)
    yield "screen.gif", gif
    tiff = encoded(noise, "TIFF")
    height = tiff.index(struct.pack("<HHI", 257, 4, 1)) + 8
    tiff[height : height + 4] = struct.pack("<I", 13_000)
    yield "tall.tif", tiff


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_header_cannot_promise_more_than_the_file_holds(tmp_path, rng):
    for name, data in files_that_end_early(rng):
        (tmp_path / name).write_bytes(data)
        for read in (read_image, read_image_u8, read_picture):
            with pytest.raises(ImageError, match=rf"{name} .*(promises|truncated)"):
                read(tmp_path / name)


def test_what_ends_in_black_or_grey_is_whole(tmp_path):
    """These look as if they had been filled up, and were not."""
    for value in (0, 128):
        image = Image.new("RGB", (40, 24), (value,) * 3)
        for name, options in (("a.png", {}), ("a.jpg", {"quality": 95}), ("b.jpg", {})):
            image.save(tmp_path / name, **options)
            assert (read_image_u8(tmp_path / name) == value).all()
        (tmp_path / "c.png").write_bytes(png(3, 5, bytes(5 * 10 + 4 * 4), interlaced=1))
        assert (read_image_u8(tmp_path / "c.png") == 0).all()


PEAK = r"""
import re, sys
from pathlib import Path
from srlab.data import images
print(tuple(getattr(images, sys.argv[1])(sys.argv[2]).shape))
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_largest_picture_needs_less_than_2_gb(tmp_path):
    row = b"\0" + bytes([1, 2, 3]) * 13_300
    (tmp_path / "a.png").write_bytes(png(13_300, 13_300, row * 13_300))
    command = [sys.executable, "-c", PEAK, "read_image_u8", tmp_path / "a.png"]
    shape, peak = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    assert shape == "(3, 13300, 13300)"
    assert int(peak) * 1024 < 2e9
    with pytest.raises(ImageError, match=r"a\.png has too many pixels: .* takes 2\.7 GB"):
        read_image(tmp_path / "a.png")


def test_the_memory_of_a_picture_is_bounded_by_its_header(tmp_path, monkeypatch, rng):
    """Measured by what the arrays hold, at a limit that is soon reached."""
    monkeypatch.setattr(reading, "MOST_BYTES", 12 * 90 * 90)
    for side, fits in ((90, True), (91, False)):
        samples = rng.integers(0, 65536, (side, side, 4), dtype=np.uint16)
        (tmp_path / "a.png").write_bytes(png16(samples))
        if fits:
            assert read_image_u8(tmp_path / "a.png").shape == (3, 90, 90)
        else:
            with pytest.raises(ImageError, match="too many pixels"):
                read_image_u8(tmp_path / "a.png")


def test_the_cause_is_chained(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").write_bytes((tmp_path / "a.bmp").read_bytes()[:999])
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "a.bmp")
    assert isinstance(caught.value.__cause__, OSError)


def test_size_limit(tmp_path, monkeypatch):
    """Twice Pillow's MAX_IMAGE_PIXELS is refused; up to there, there is not even a warning."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in (".png", ".tif", ".jpg"):
        Image.new("RGB", (12, 12)).save(tmp_path / f"large{suffix}")
        Image.new("RGB", (15, 15)).save(tmp_path / f"bomb{suffix}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fresh = runpy.run_path(reading.__file__)  # pytest drops filters set while collecting
            read = fresh["read_picture"](tmp_path / f"large{suffix}")
            assert read.samples.shape == (12, 12, 3)
        with pytest.raises(ImageError, match=rf"bomb\{suffix}.*too many pixels"):
            read_image(tmp_path / f"bomb{suffix}")


def test_no_pixels(tmp_path):
    (tmp_path / "none.png").write_bytes(png16(np.zeros((0, 4, 3), dtype=np.uint16)))
    with pytest.raises(ImageError, match=r"none\.png"):
        read_image(tmp_path / "none.png")


def test_tiffs_that_pillow_would_misread_are_refused(tmp_path, rng):
    planes = rng.integers(0, 65536, (3, 8, 9), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "b.tif", planes[0], photometric="miniswhite")
    tifffile.imwrite(tmp_path / "c.tif", planes[0].astype(np.int32))
    for name, why in {"a.tif": "separate planes", "b.tif": "white as zero", "c.tif": ""}.items():
        with pytest.raises(ImageError, match=f"{name}.*{why}.*: save it as"):
            read_image(tmp_path / name)


def test_what_cannot_be_read_is_called_by_its_name(tmp_path, rng):
    floats = rng.random((8, 9, 3), dtype=np.float32)
    tifffile.imwrite(tmp_path / "float.tif", floats, photometric="rgb", compression="zlib")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "new.jxl").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n")
    for name, why in {
        "float.tif": r"a TIFF of 3 channels of float32 \(.*deflate\)\. Save it as 16-bit PNG",
        "phone.jpg": "it is HEIC, as phones write it. Save it as PNG or JPEG",
        "new.jxl": "it is JPEG XL",
    }.items():
        with pytest.raises(ImageError, match=f"{name} is not a readable image: .*{why}"):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="it is HEIC"):
        read_picture(io.BytesIO((tmp_path / "phone.jpg").read_bytes()))


@pytest.mark.parametrize(
    ("kind", "suffix", "options"),
    [("AVIF", ".avif", {"quality": 100, "subsampling": "4:4:4"}), ("JPEG2000", ".jp2", {})],
)
def test_avif_and_jpeg_2000(tmp_path, photo, kind, suffix, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]):
            pytest.skip(f"this Pillow lacks {kind}")
    pixels = (photo.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", kind, **options)
    assert (read_image(tmp_path / f"a{suffix}") - photo).abs().max() < 0.03
    assert list_images(tmp_path) == [tmp_path / f"a{suffix}"]
    whole = (tmp_path / f"a{suffix}").read_bytes()
    for share in (0.02, 0.3, 0.8):
        (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match="cut"):
            read_image(tmp_path / "cut")


def read_or_none(path):
    """None for an ImageError; any other exception fails the test."""
    with suppress(ImageError):
        return read_image(path)


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_files_give_an_image_or_an_image_error(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # damaged sizes must not fill the memory
    ramp = np.linspace(0, 255, 24 * 32 * 4).reshape(24, 32, 4).astype(np.uint8)
    seeds = [png16(ramp.astype(np.uint16) * 257)]
    for mode, file_format, options in (
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
        ("CMYK", "JPEG", {"icc_profile": cmyk_profile()}),
        ("RGB", "TIFF", {}),
        ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
        ("RGBA", "WEBP", {}),
    ):
        seeds.append(io.BytesIO())
        Image.fromarray(ramp).convert(mode).save(seeds[-1], file_format, **options)
        seeds[-1] = seeds[-1].getvalue()

    path, read = tmp_path / "fuzz.png", 0
    for turn in range(320):
        data = bytearray(seeds[turn % len(seeds)])
        # Most structure lies in the first bytes, and TIFF keeps its own at the end.
        span = min(len(data), int(rng.choice([64, 256, len(data)])))
        start = int(rng.choice([0, len(data) - span]))
        for where in rng.integers(start, start + span, int(rng.integers(1, 5))):
            data[where] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        if rng.random() < 0.2:
            del data[int(rng.integers(1, len(data))) :]
        path.write_bytes(data)
        if (x := read_or_none(path)) is not None:
            read += 1
            assert x.dtype == torch.float32
            assert x.ndim == 3
            assert len(x) == 3
            assert x.min() >= 0
            assert x.max() <= 1
    assert 30 < read < 290  # the damage must neither miss nor spare nothing


# Writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file_format"),
    [
        ("a.png", "PNG"),
        ("a.WEBP", "WEBP"),
        ("a.bmp", "BMP"),
        ("a.tif", "TIFF"),
        ("a.tiff", "TIFF"),
        ("no_suffix", "PNG"),
    ],
)
def test_write_is_lossless_in_the_format_of_the_suffix(tmp_path, rng, name, file_format):
    pixels = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    path = tmp_path / "made" / "on the way" / name
    for image in (chw(pixels), chw(pixels)[None], chw(pixels) / 255, (chw(pixels) / 255).double()):
        write_image(image, path)
        with Image.open(path) as written:
            assert written.format == file_format
            assert np.array_equal(np.asarray(written.convert("RGB")), pixels)
    assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg"])
def test_jpeg_keeps_full_chroma(tmp_path, name):
    stripes = torch.zeros(3, 32, 32)
    stripes[0, :, ::2] = 1  # red and blue columns: half-resolution chroma would mix them
    stripes[2, :, 1::2] = 1
    write_image(stripes, tmp_path / name)
    with Image.open(tmp_path / name) as written:
        assert written.format == "JPEG"
        error = np.asarray(written).astype(float) - stripes.permute(1, 2, 0).numpy() * 255
    assert np.sqrt(np.mean(error**2)) < 6


def test_write_grey(tmp_path, rng):
    grey = torch.from_numpy(rng.integers(0, 256, (1, 5, 7), dtype=np.uint8))
    write_image(grey, str(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as written:
        assert written.mode == "L"
        assert np.array_equal(np.asarray(written), grey[0].numpy())


def test_write_clamps_overshoot_and_takes_a_network_output(tmp_path):
    output = torch.tensor([-0.2, 0.5, 1.3]).view(3, 1, 1).expand(3, 4, 4).requires_grad_()
    write_image(output, tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, 0].tolist() == [0, 128, 255]


def test_write_gives_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_image(torch.zeros(3, 2, 2), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_write_refuses_what_it_cannot_do(tmp_path):
    image = torch.rand(3, 4, 4)
    (tmp_path / "file").touch()
    for name in ("a.xyz", "a.x4", "file/a.png", ""):
        with pytest.raises(ImageError) as caught:
            write_image(image, tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(ImageError, match=r"nan\.png.*NaN"):
        write_image(image / 0 * 0, tmp_path / "nan.png")
    with pytest.raises(ImageError, match=r"inf\.png.*infinity"):
        write_image(image / 0, tmp_path / "inf.png")
    with pytest.raises(ImageError, match=r"255\.png.*divide it by 255"):
        write_image(image * 255, tmp_path / "255.png")
    for bad in (image[0], image[:2], image[None].repeat(2, 1, 1, 1), image[:, :0], image > 0.5):
        with pytest.raises(ValueError, match="got"):
            write_image(bad, tmp_path / "bad.png")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["encoding", "disk", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, largest_file, failing
):
    path = tmp_path / "a.jpg"
    write_image(torch.zeros(3, 4, 4), path)
    before = path.read_bytes()

    def refuse(*args, **options):
        raise OSError(28, "No space left on device")

    image, disk = torch.ones(3, 4, 4), nullcontext()
    if failing == "encoding":
        image = torch.ones(1, 1, 70_000)  # JPEG ends at 65,535 pixels a side
    elif failing == "disk":
        disk = largest_file(100)
    else:
        monkeypatch.setattr(os, "replace", refuse)
    with disk, pytest.raises(ImageError, match=r"a\.jpg could not be written"):
        write_image(image, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.jpg"]


# Tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_luma_is_that_of_scikit_image(rng, dtype):
    rgb = rng.random((2, 8, 9, 3))
    rgb[0, 0, 0], rgb[0, 0, 1] = 0, 1
    x = torch.from_numpy(rgb).permute(0, 3, 1, 2).to(dtype)
    y = luma(x)
    assert y.shape == (2, 1, 8, 9)
    assert y.dtype == dtype
    atol = 1e-6 if dtype == torch.float32 else 1e-12
    assert np.allclose(y[:, 0].numpy() * 255, rgb2ycbcr(rgb)[..., 0], rtol=0, atol=atol * 255)
    assert y[0, 0, 0, :2].tolist() == pytest.approx([16 / 255, 235 / 255], abs=atol)
    assert torch.equal(luma(x[0]), y[0])


def test_luma_refuses_what_is_not_float_rgb():
    for bad in (torch.rand(1, 4, 4), torch.rand(3, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="luma needs"):
            luma(bad)


def test_to_uint8_rounds_halves_up_and_clamps():
    x = torch.tensor([-1.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 0.5, 254.4 / 255, 1.0, 2.0]).double()
    assert to_uint8(x).tolist() == [0, 1, 2, 3, 128, 254, 255, 255]
    with pytest.raises(ValueError, match="float"):
        to_uint8(torch.zeros(1, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uint8_survives_the_way_through_float(dtype):
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert x.dtype == torch.float32
    assert torch.equal(x * 255, torch.arange(256.0))
    # Half precision may round a level away, but never to another than its nearest.
    rounded = x.to(dtype).double()
    assert torch.equal(to_uint8(x.to(dtype)), (rounded * 255 + 0.5).floor().to(torch.uint8))
    if dtype != torch.bfloat16:
        assert torch.equal(to_uint8(x.to(dtype)), levels)
    with pytest.raises(ValueError, match="uint8"):
        to_float(x)


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "._a.jpg", "c.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "inner.png").touch()
    assert [p.name for p in list_images(str(tmp_path))] == ["a.jpg", "b.PNG", "c.tiff"]
    (tmp_path / "nothing").mkdir()
    for name in ("missing", "nothing", "a.jpg"):
        with pytest.raises(ImageError, match=name):
            list_images(tmp_path / name)
