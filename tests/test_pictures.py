"""srlab.pictures: any picture in, a larger one out, and never a lost, half or wrong file."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from torch import nn
from torch.testing import assert_close

import srlab
from srlab import cli
from srlab.data.degradation import resize
from srlab.data.images import list_images
from srlab.data.reading import Picture, read_picture
from srlab.data.writing import FORMATS, write_strips
from srlab.errors import SrlabError
from srlab.models import zoo
from srlab.models.generators import Bicubic, Polyphase, SRResNet
from srlab.pictures import jobs as batch
from srlab.pictures.jobs import Job, plan
from srlab.pictures.upscaling import prepare, strips

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LIMITS = {np.uint8: 255, np.uint16: 65535}


class Nearest(nn.Module):
    """Repeats each pixel, so that every result is known exactly."""

    def __init__(self, scale=4):
        super().__init__()
        self.scale, self.receptive_radius, self.options = scale, 0, {}

    def forward(self, lr):
        return lr.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def run(monkeypatch, capfdbinary):
    """Call ``srlab upscale`` in this process; returns (exit status, stdout bytes, stderr text)."""

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["srlab", "upscale", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            cli.main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code or 0
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return call


BICUBIC = ("--model", "bicubic", "--device", "cpu")


def photo(path, size=(7, 5), mode="RGB", **options):
    """A picture with structure in every direction; ``size`` is (width, height) as in Pillow."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    colours = [x, y, (x + y) / 2] if mode.startswith("RGB") else [x]
    alpha = [1 - x * y / 2] if mode.endswith("A") else []  # opaque to half transparent
    pixels = (np.stack(colours + alpha, 2) * 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode).save(path, **options)
    return path


def repeated(samples):
    return samples.repeat(4, axis=0).repeat(4, axis=1)


def convert(source, target, **options):
    """One job through :func:`batch.run` with the repeating network."""
    target = Path(target)
    job = Job(source, target, FORMATS[target.suffix])
    (outcome,) = batch.run([job], prepare(Nearest()), **options)
    assert outcome.error is None
    return outcome


# The network and its tiles ------------------------------------------------------------------------


def trained(scale=4):
    torch.manual_seed(0)
    network = SRResNet(2, n_features=8, scale=scale)
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # at zero it would only be bicubic
    with torch.no_grad():
        for _ in range(5):  # so that batch norm has something to fold
            network(torch.rand(4, 3, 12, 12) ** 2)
    return network


@pytest.mark.parametrize("size", [(37, 53), (1, 45), (45, 1), (1, 1), (9, 14), (33, 64)])
@pytest.mark.parametrize("scale", [2, 4])
def test_strips_equal_the_network_on_the_whole_picture(rng, size, scale):
    """16 bits on both sides, so that a fault of 1e-5 would show, and odd sizes, lines and dots."""
    network = trained(scale)
    samples = rng.integers(0, 65536, (*size, 3)).astype(np.uint16)
    lr = torch.from_numpy(samples / np.float32(65535)).permute(2, 0, 1)[None]
    with torch.no_grad():
        whole = network.eval()(lr)[0].clamp(0, 1).permute(1, 2, 0).double().numpy()
    for tile in (16, 33, 1000):
        parts = list(strips(prepare(network), Picture(samples), tile))
        assert len(parts) == -(-size[0] // tile)
        result = np.concatenate(parts)
        assert result.dtype == np.uint16
        assert np.abs(result / 65535 - whole).max() < 1e-5 + 0.5 / 65535


def test_grey_goes_in_as_rgb_and_comes_back_as_luma(rng):
    network = trained()
    grey = rng.integers(0, 256, (9, 11, 1), dtype=np.uint8)
    lr = torch.from_numpy(grey / np.float32(255)).permute(2, 0, 1).expand(3, -1, -1)[None]
    with torch.no_grad():
        r, g, b = network.eval()(lr)[0]
    luma = (0.299 * r + 0.587 * g + 0.114 * b).clamp(0, 1) * 255  # ITU-R BT.601
    result = np.concatenate(list(strips(prepare(network), Picture(grey), 8)))
    assert result.shape == (36, 44, 1)
    assert np.abs(result[..., 0] - luma.numpy()).max() < 0.51


def test_alpha_is_upscaled_with_the_picture(rng):
    rgba = rng.integers(1, 256, (9, 13, 4), dtype=np.uint8)
    result = np.concatenate(list(strips(prepare(Nearest()), Picture(rgba), 5)))
    assert np.array_equal(result[..., :3], repeated(rgba[..., :3]))
    alpha = torch.from_numpy(rgba[..., 3] / np.float32(255))
    expected = resize(alpha, 4).clamp(0, 1) * 255
    assert np.abs(result[..., 3] - expected.numpy()).max() < 0.51


def test_colours_hidden_under_transparency_do_not_leak():
    """A white disc on transparent black stays white up to its very edge."""
    y, x = np.mgrid[:24, :24]
    inside = (x - 12) ** 2 + (y - 12) ** 2 < 60
    rgba = np.zeros((24, 24, 4), np.uint8)
    rgba[inside] = 255
    result = np.concatenate(list(strips(prepare(Bicubic()), Picture(rgba), 192)))
    assert result[result[..., 3] > 0][:, :3].min() >= 254
    assert result[..., 3].min() == 0


def test_prepare_makes_it_fast_and_leaves_the_model_as_it_was():
    network = trained()
    assert network.training
    ready = prepare(network, "cpu")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())
    assert isinstance(ready, Polyphase)
    assert ready.generator.head[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not ready.training
    assert network.training
    with pytest.raises(SrlabError, match="device marble"):
        prepare(network, "marble")
    with pytest.raises(SrlabError, match="no model 'srresnut'"):
        prepare("srresnut")


def test_a_model_that_diverged_or_a_tile_too_large_is_told(tmp_path, monkeypatch):
    source = photo(tmp_path / "a.png")
    jobs = plan([source])
    diverged, greedy = Nearest(), Nearest()
    monkeypatch.setattr(diverged, "forward", lambda lr: Nearest()(lr) * float("nan"))
    (outcome,) = batch.run(jobs, diverged)
    assert "not finite" in outcome.error

    def refuse(lr):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    monkeypatch.setattr(greedy, "forward", refuse)
    (outcome,) = batch.run(jobs, greedy)
    assert "--tile" in outcome.error
    assert str(source) in outcome.error
    assert os.listdir(tmp_path) == ["a.png"]


# Files and what they hold -------------------------------------------------------------------------


def decode_png(data):
    """Samples of a PNG with 8 or 16 bits and filter 4 (Paeth) by ISO/IEC 15948, byte by byte."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        assert data[at + 8 + size : at + 12 + size] == checksum
        chunks.append((kind, body))
        at += 12 + size
    assert chunks[0][0] == b"IHDR"
    assert chunks[-1] == (b"IEND", b"")
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert rest == [0, 0, 0]
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
    step = channels * depth // 8
    raw = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    above, rows = [0] * (width * step), b""
    for begin in range(0, len(raw), width * step + 1):
        assert raw[begin] == 4
        row = []
        for i, x in enumerate(raw[begin + 1 : begin + 1 + width * step]):
            a, b, c = row[i - step] if i >= step else 0, above[i], above[i - step] * (i >= step)
            p = a + b - c
            best = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row.append((x + best) % 256)
        above, rows = row, rows + bytes(row)
    return np.frombuffer(rows, f">u{depth // 8}").reshape(height, width, channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_lossless_formats_read_by_others(rng, channels, dtype, kind):
    """The standard's own recipe and tifffile read what was written in strips of any heights."""
    for height, width in ((70, 5), (1, 1), (3, 1), (130, 33)):
        samples = rng.integers(0, LIMITS[dtype] + 1, (height, width, channels)).astype(dtype)
        samples[height // 2 :] = samples[height // 2]  # something that compresses
        cuts = np.split(samples, sorted(set(range(1, height)) & {1, 40, 100}))
        file = io.BytesIO()
        write_strips(file, kind, iter(cuts), samples.shape, dtype, None)
        if kind == "PNG":
            read = decode_png(file.getvalue())
        else:
            file.seek(0)
            read = tifffile.imread(file).reshape(height, width, channels)
        assert read.dtype.itemsize == np.dtype(dtype).itemsize
        assert np.array_equal(read, samples)
        if (kind, dtype, channels) != ("TIFF", np.uint16, 2):  # which Pillow cannot read
            assert np.array_equal(read_picture(file).samples, samples)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_and_profiles_survive(tmp_path, suffix, mode):
    source = photo(tmp_path / "a.png", mode=mode, icc_profile=SRGB)
    convert(source, tmp_path / f"b{suffix}")
    colour = "RGB" if suffix == ".webp" else mode.rstrip("A")  # WebP has no grey, JPEG no alpha
    alpha = "A" * (mode.endswith("A") and suffix != ".jpg")
    with Image.open(tmp_path / f"b{suffix}") as large:
        assert large.size == (28, 20)
        assert large.mode == colour + alpha
        # A profile for RGB says nothing of grey.
        assert large.info.get("icc_profile") == (SRGB if "RGB" in mode else None)
        small = Image.open(source)
        if suffix != ".jpg":
            expected = repeated(np.asarray(small.convert(colour)))
            assert np.array_equal(np.asarray(large.convert(colour)), expected)
        elif not mode.endswith("A"):
            expected = repeated(np.asarray(small).astype(float))
            assert np.abs(np.asarray(large) - expected).mean() < 2


def test_what_a_file_holds_is_kept_or_made_plain(tmp_path, rng):
    """Palette to RGB, one bit to grey, float to 16 bit, CMYK to sRGB without its own profile."""

    def read(image, suffix, **options):
        image.save(tmp_path / f"a{suffix}", **options)
        return read_picture(tmp_path / f"a{suffix}")

    palette = Image.fromarray(np.array([[1, 0]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert read(palette, ".png", icc_profile=SRGB).samples.tolist() == [
        [[200, 100, 50], [10, 20, 30]]
    ]
    assert read_picture(tmp_path / "a.png").icc == SRGB
    assert read(Image.new("1", (2, 1), 1), ".png").samples.tolist() == [[[255], [255]]]
    transparent = read(palette, ".png", transparency=bytes([255, 7])).samples
    assert transparent.tolist() == [[[200, 100, 50, 7], [10, 20, 30, 255]]]
    floats = rng.random((4, 5), dtype=np.float32)
    wide = read(Image.fromarray(floats), ".tif").samples
    assert wide.dtype == np.uint16
    assert np.abs(wide[..., 0] - floats * 65535.0).max() < 0.51
    cmyk = read(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), ".jpg", icc_profile=SRGB)
    assert cmyk.samples.shape == (8, 8, 3)
    assert cmyk.samples.min() > 250
    assert cmyk.over_white() is cmyk


def test_transparency_becomes_white_in_jpeg(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    convert(tmp_path / "a.png", tmp_path / "a.jpg")
    assert np.asarray(Image.open(tmp_path / "a.jpg")).min() > 253


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_kept_where_the_format_can(tmp_path, rng, suffix):
    samples = rng.integers(0, 65536, (18, 35, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", iccprofile=SRGB)
    convert(tmp_path / "a.tif", tmp_path / f"b{suffix}", tile=16)
    large = read_picture(tmp_path / f"b{suffix}")
    assert np.array_equal(large.samples, repeated(samples))
    assert large.icc == SRGB
    convert(tmp_path / "a.tif", tmp_path / "b.webp")
    eight = np.asarray(Image.open(tmp_path / "b.webp"))
    assert np.array_equal(eight, repeated(np.floor(samples / 257 + 0.5).astype(np.uint8)))


def test_exif_orientation_is_applied_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # row 0 belongs on the right, column 0 on the top
    photo(tmp_path / "a.png", size=(7, 5), exif=exif)
    stored = np.asarray(Image.open(tmp_path / "a.png"))
    convert(tmp_path / "a.png", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as large:
        assert large.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(large), repeated(np.rot90(stored, -1)))
    assert np.array_equal(np.asarray(srlab.upscale(tmp_path / "a.png", Nearest())), large)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_quality(tmp_path, rng, suffix):
    noise = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    sizes = []
    for quality in (20, 80, None):
        convert(tmp_path / "a.png", tmp_path / f"{quality}{suffix}", quality=quality)
        sizes.append((tmp_path / f"{quality}{suffix}").stat().st_size)
    assert sizes == sorted(set(sizes))
    for bad in (0, 101):
        with pytest.raises(SrlabError, match=f"got {bad}"):
            batch.run([], Nearest(), quality=bad)


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65_500), (".webp", 16_383)])
def test_a_format_too_small_for_the_result(tmp_path, suffix, side):
    Image.new("L", (side // 4 + 1, 1)).save(tmp_path / "a.png")
    job = Job(tmp_path / "a.png", tmp_path / f"a{suffix}", FORMATS[suffix])
    (outcome,) = batch.run([job], Nearest())
    assert f"{side:,}" in outcome.error
    assert "PNG or TIFF" in outcome.error
    Image.new("L", (side // 4, 1)).save(tmp_path / "a.png")
    convert(tmp_path / "a.png", tmp_path / f"a{suffix}")
    assert Image.open(tmp_path / f"a{suffix}").width == side // 4 * 4


# What becomes what --------------------------------------------------------------------------------


def test_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("in/a.JPG", "in/b.bmp", "in/c.tif", "d.webp", "e.gif"):
        Path(name).touch()

    def targets(*arguments, **options):
        return [str(job.target) for job in plan(*arguments, **options)]

    assert targets(["d.webp", "e.gif", "gone"]) == ["d_x4.webp", "e_x4.png", "gone_x4.png"]
    beside = [Path(t) for t in targets(["in"])]
    assert [t.name for t in beside] == ["a_x4.JPG", "b_x4.png", "c_x4.tif"]
    assert {t.parent for t in beside} == {tmp_path / "in_x4"}
    assert targets(["in/*.[bt]*"], format="jpeg", scale=2) == ["in/b_x2.jpg", "in/c_x2.jpg"]
    assert targets(["in"], "out") == ["out/a_x4.JPG", "out/b_x4.png", "out/c_x4.tif"]
    assert targets(["d.webp"], "x.exe/") == ["x.exe/d_x4.webp"]
    assert targets(["d.webp"], "out/new.tiff") == ["out/new.tiff"]
    assert targets(["d.webp"], "in") == ["in/d_x4.webp"]
    assert targets(["-"]) == targets(["d.webp"], "-") == ["-"]
    assert targets(["-"], "in") == ["in/stdin_x4.png"]
    assert [job.kind for job in plan(["in", "d.webp"])] == ["JPEG", "PNG", "TIFF", "WEBP"]
    for sources, options, message in (
        (["in"], {"out": "one.png"}, "one file, not 3"),
        (["in"], {"out": "-"}, "one picture, not 3"),
        (["d.webp"], {"out": "a.bmp"}, "a.bmp"),
        (["d.webp"], {"out": "a.png", "format": "tiff"}, r"\.tif"),
        (["d.webp"], {"format": "gif"}, "png, jpeg, webp or tiff"),
        (["d.webp"], {"out": "x.exe"}, r"x\.exe does not end as a picture does"),
    ):
        with pytest.raises(SrlabError, match=message):
            plan(sources, **options)


# The command --------------------------------------------------------------------------------------


def test_a_folder_with_a_bad_file(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "c.jpg"):
        photo(folder / name)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    status, out, err = run(folder, tmp_path / "gone.png", *BICUBIC)
    assert status == 1
    assert sorted(os.listdir(tmp_path / "in_x4")) == ["a_x4.png", "c_x4.jpg"]
    assert out.count(b"28 x 20 pixels") == 2
    assert "2 of 4 pictures failed" in err
    assert "b.png is damaged" in err
    assert f"There is no file {tmp_path / 'gone.png'}" in err
    assert "Traceback" not in err


def test_an_empty_folder_fails_alone(run, tmp_path):
    (tmp_path / "empty").mkdir()
    photo(tmp_path / "a.png")
    status, _, err = run(tmp_path / "empty", *BICUBIC)
    assert status == 1
    assert err.startswith(f"srlab: {tmp_path / 'empty'} holds no images (.png")
    status, out, err = run(tmp_path / "empty", tmp_path / "a.png", *BICUBIC)
    assert status == 1
    assert out.count(b"28 x 20 pixels") == 1
    assert "1 of 2 pictures failed" in err
    assert f"{tmp_path / 'empty'} holds no images (.png" in err
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a_x4.png", "empty"]


def test_tiles_that_are_mostly_border_are_refused(run, tmp_path, monkeypatch):
    photo(tmp_path / "a.png")
    status, _, err = run(tmp_path / "a.png", "--tile", 1)
    assert status == 1
    assert err.startswith("srlab: tile must be at least 18 pixels with this model")
    assert os.listdir(tmp_path) == ["a.png"]
    assert run(tmp_path / "a.png", "--tile", 18)[0] == 0
    command = ["srlab", "evaluate", "srresnet", "--dataset", str(tmp_path), "--tile", "17"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        cli.main()


def test_json_report(run, tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    status, out, err = run(tmp_path / "*.png", "--json", *BICUBIC)
    report = json.loads(out)
    assert status == 1
    assert (report["model"], report["scale"]) == ("bicubic", 4)
    good, bad = report["pictures"]
    assert (good["width"], good["height"], good["error"]) == (28, 20, None)
    assert good["target"] == str(tmp_path / "a_x4.png")
    assert bad["error"] in err


def test_nothing_is_overwritten_without_force(run, tmp_path):
    source = photo(tmp_path / "a.png")
    target = tmp_path / "a_x4.png"
    target.write_bytes(b"precious")
    status, _, err = run(source, *BICUBIC)
    assert status == 1
    assert "--force" in err
    assert target.read_bytes() == b"precious"
    assert run(source, "--force", *BICUBIC)[0] == 0
    assert Image.open(target).size == (28, 20)
    before = source.read_bytes()
    for itself in (source, tmp_path / "link.png"):
        if not itself.exists():
            itself.symlink_to(source)
        status, _, err = run(source, "--out", itself, "--force", *BICUBIC)
        assert status == 1
        assert "is the picture itself" in err
    assert source.read_bytes() == before


def test_a_result_never_takes_the_place_of_another_picture_of_the_batch(run, tmp_path):
    """By whatever name: neither without --force nor with it has anything been done."""
    photo(tmp_path / "q.png")
    other = photo(tmp_path / "q_x4.png", size=(3, 3))
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    before = other.read_bytes()
    for folder in (tmp_path, tmp_path / "link"):
        for force in ([], ["--force"]):
            status, _, err = run(tmp_path / "q.png", other, "--out", folder, *force, *BICUBIC)
            assert status == 1
            assert "which is to be upscaled itself" in err
    assert other.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["link", "q.png", "q_x4.png"]


def test_a_result_is_as_private_as_its_source(run, tmp_path):
    for mode in (0o600, 0o640, 0o444):
        source = photo(tmp_path / "a.png")
        source.chmod(mode)
        assert run(source, "--force", *BICUBIC)[0] == 0
        assert (tmp_path / "a_x4.png").stat().st_mode & 0o777 == mode | 0o200
        source.unlink()


def test_names_that_write_to_the_terminal(run, tmp_path):
    source = photo(tmp_path / "[bold]\x1b[31m.png")
    status, out, err = run(source, *BICUBIC)
    assert status == 0
    assert b"[bold]\\x1b[31m_x4.png" in out
    status, out, err = run(source, *BICUBIC)
    assert "[bold]\\x1b[31m_x4.png is there already" in err


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    source, network = photo(tmp_path / "a.png"), Nearest()

    def forward(lr):
        (tmp_path / "a_x4.png").write_bytes(b"precious")
        return Nearest()(lr)

    monkeypatch.setattr(network, "forward", forward)
    (outcome,) = batch.run(plan([source]), network)
    assert "--force" in outcome.error
    assert (tmp_path / "a_x4.png").read_bytes() == b"precious"
    assert len(os.listdir(tmp_path)) == 2


def test_two_pictures_never_become_one_file(tmp_path):
    sources = [photo(tmp_path / "a.png"), photo(tmp_path / "a.jpg", size=(3, 3))]
    jobs = plan(sources, format="tiff")
    jobs[1] = replace(jobs[1], target=tmp_path / "b" / ".." / "a_x4.tif")
    first, second = batch.run(jobs, Nearest(), force=True)
    assert first.error is None
    assert "a.jpg was left out" in second.error
    assert Image.open(tmp_path / "a_x4.tif").size == (28, 20)


def test_streams(run, tmp_path):
    data = photo(tmp_path / "a.png").read_bytes()
    expected = np.asarray(srlab.upscale(tmp_path / "a.png", "bicubic"))
    for suffix in ("png", "tiff"):
        status, out, _ = run("-", "--format", suffix, *BICUBIC, stdin=data)
        assert status == 0
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(out))), expected)
    status, out, _ = run(tmp_path / "a.png", "--out", "-", *BICUBIC)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(out))), expected)
    assert run("-", "--out", tmp_path / "b.png", *BICUBIC, stdin=data)[0] == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), expected)
    for rubbish, why in ((b"rubbish", "not a readable image"), (b"", "empty")):
        status, out, err = run("-", *BICUBIC, stdin=rubbish)
        assert (status, out) == (1, b"")
        assert "standard input" in err
        assert why in err
    assert "--json" in run("-", "--json", *BICUBIC, stdin=data)[2]


def test_names_that_no_file_can_have(run, tmp_path):
    photo(tmp_path / "a.png")
    for arguments in (["n" * 300 + ".png"], [tmp_path / "a.png", "--out", "n" * 300 + ".png"]):
        status, _, err = run(*arguments, *BICUBIC)
        assert status == 1
        assert "nnn.png" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("option", [("--tile", 0), ("--quality", 0), ("--device", "marble")])
def test_wrong_options_are_one_sentence(run, tmp_path, option):
    photo(tmp_path / "a.png")
    status, _, err = run(tmp_path / "a.png", "--model", "bicubic", *option)
    assert status == 1
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["a.png"]


# When things go wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("old", [None, b"precious"])
def test_a_disk_that_is_full(tmp_path, rng, largest_file, suffix, old):
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    target = tmp_path / f"b{suffix}"
    if old:
        target.write_bytes(old)
    job = Job(tmp_path / "a.png", target, FORMATS[suffix])
    with largest_file(5000):
        (outcome,) = batch.run([job], Nearest(), force=True)
    assert outcome.error == f"{target} could not be written: [Errno 27] File too large."
    assert (target.read_bytes() if target.exists() else None) == old
    assert set(os.listdir(tmp_path)) == {"a.png"} | ({target.name} if old else set())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_standard_output_that_is_full(tmp_path, monkeypatch):
    source = photo(tmp_path / "a.png")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        (outcome,) = batch.run(plan([source], "-"), Nearest())
    assert outcome.error.endswith("standard output could not be written: No space left on device.")


KILLED = """
import sys, time
from pathlib import Path
from srlab.models.generators import Bicubic
from srlab.pictures.jobs import plan, run

class Slow(Bicubic):
    def forward(self, lr):
        time.sleep(0.2)
        return super().forward(lr)

run(plan(sys.argv[1:]), Slow(), tile=16, force=True)
"""


def test_killed_in_the_middle(tmp_path, rng):
    """What was there before stays, and no half picture gets its name."""
    noise = Image.fromarray(rng.integers(0, 256, (640, 128, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    (tmp_path / "a_x4.png").write_bytes(b"precious")
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "a.png"])
    try:
        for _ in range(600):
            half = [p for p in tmp_path.iterdir() if p.name.startswith(".")]
            if half and half[0].stat().st_size > 50_000:
                break
            assert process.poll() is None
            time.sleep(0.1)
        else:
            pytest.fail("nothing was written")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "a_x4.png").read_bytes() == b"precious"
    assert len(list_images(tmp_path)) == 2  # the remains are hidden


MEMORY = r"""
import re, sys
from pathlib import Path
from srlab.data.writing import FORMATS
from srlab.pictures.jobs import Job, run
from srlab.pictures.upscaling import prepare

job = Job(Path(sys.argv[1]), Path(sys.argv[2]), FORMATS[Path(sys.argv[2]).suffix])
(outcome,) = run([job], prepare("bicubic", "cpu"))
assert outcome.error is None and outcome.width * outcome.height == 10**8, outcome
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))
"""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_100_megapixels_need_less_than_2_gb(tmp_path):
    """JPEG needs the most: Pillow holds 4 bytes for each pixel of it.

    The peak is the process's own (VmHWM): ``ru_maxrss`` starts at that of pytest, its parent.
    """
    photo(tmp_path / "a.png", size=(2500, 2500))
    command = [sys.executable, "-c", MEMORY, tmp_path / "a.png", tmp_path / "b.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2e6  # kB
    with Image.open(tmp_path / "b.jpg") as large:
        assert large.size == (10_000, 10_000)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_strips_are_not_collected(tmp_path, kind):
    """Of a 30 MB picture in strips of 0.3 MB, memory never sees more than a few strips."""
    strip = np.zeros((10, 10_000, 3), np.uint8)
    tracemalloc.start()
    with open(tmp_path / "a", "wb") as file:
        write_strips(file, kind, (strip + 1 for _ in range(100)), (1000, 10_000, 3), "u1")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6
    assert Image.open(tmp_path / "a").size == (10_000, 1000)


# Damaged files ------------------------------------------------------------------------------------


def seeds(kind):
    """Small files of one kind, of the modes that it has."""
    ramp = np.linspace(0, 255, 12 * 16 * 4).reshape(12, 16, 4).astype(np.uint8)
    modes = {"PNG": ["RGB", "P", "LA"], "JPEG": ["RGB", "L", "CMYK"], "WEBP": ["RGB", "RGBA"]}
    for mode in modes.get(kind, ["RGB", "L", "RGBA"]):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(ramp).convert(mode).save(file, kind, exif=exif, icc_profile=SRGB[:200])
        yield file.getvalue()
    if kind in ("PNG", "TIFF"):  # 16 bits
        file = io.BytesIO()
        wide = ramp.astype(np.uint16) * 257
        write_strips(file, kind, [wide], wide.shape, np.uint16)
        yield file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_damaged_files_end_in_a_message_or_a_picture(monkeypatch, rng, kind, capfd):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)  # damaged sizes must not cost time
    originals, network, messages, read = list(seeds(kind)), prepare("bicubic", "cpu"), [], 0
    for turn in range(1500):
        data = bytearray(originals[turn % len(originals)])
        # Most structure lies in the first bytes, and TIFF keeps its own at the end.
        span = min(len(data), int(rng.choice([64, 256, len(data)])))
        start = int(rng.choice([0, len(data) - span]))
        for where in rng.integers(start, start + span, int(rng.integers(1, 5))):
            data[where] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        if rng.random() < 0.2:
            del data[int(rng.integers(0, len(data))) :]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
                picture = read_picture(io.BytesIO(data))
        except SrlabError as error:
            messages.append(str(error))
            continue
        read += 1
        height, width, channels = picture.samples.shape
        assert picture.samples.dtype in (np.uint8, np.uint16)
        if turn % 5 == 0 and height * width < 1000:
            result = np.concatenate(list(strips(network, picture)))
            assert result.shape == (4 * height, 4 * width, channels)
    assert read > 100  # the damage must neither miss nor spare nothing
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


# In Python ----------------------------------------------------------------------------------------


def test_a_tensor_gives_a_tensor():
    network = trained()
    x = torch.rand(3, 21, 30)
    with torch.no_grad():
        expected = network.eval()(x[None])[0].clamp(0, 1)
    sr = srlab.upscale(x, network, tile=8)
    assert_close(sr, expected, atol=1e-5, rtol=0)
    assert_close(srlab.upscale(x.double(), network), expected.double(), atol=1e-5, rtol=0)
    (sr * torch.ones(1, requires_grad=True)).sum().backward()  # an ordinary tensor
    u8 = torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8)
    assert torch.equal(srlab.upscale(u8, Nearest()), Nearest()(u8))
    for bad in (x[0], x[:2], x[:, :0], x.long(), x[None], "a", 3):
        with pytest.raises(SrlabError):
            srlab.upscale(bad, network)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_pil_image_or_a_path_gives_a_pil_image(tmp_path, mode):
    path = photo(tmp_path / "a.png", mode=mode, icc_profile=SRGB)
    given = Image.open(path)
    large = srlab.upscale(given, Nearest())
    assert (given.mode, given.size) == (mode, (7, 5))
    assert (large.mode, large.size) == (mode, (28, 20))
    assert np.array_equal(np.asarray(large), np.asarray(srlab.upscale(str(path), Nearest())))
    assert large.info.get("icc_profile") == (SRGB if "RGB" in mode else None)
    grey = Image.fromarray(np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4))
    assert np.array_equal(np.asarray(srlab.upscale(grey, Nearest())), repeated(np.asarray(grey)))


@pytest.mark.parametrize("value", [2.0, 255.0, -1.0, float("nan"), float("inf")])
def test_a_tensor_beyond_0_to_1_is_refused(value):
    image = torch.rand(3, 5, 5)
    image[1, 2, 3] = value
    with pytest.raises(SrlabError, match=r"must lie in \[0, 1\]"):
        srlab.upscale(image, "bicubic")


def test_integers_of_unknown_range_are_refused():
    with pytest.raises(SrlabError, match="integers of unknown range"):
        srlab.upscale(Image.new("I", (5, 5), 40_000), "bicubic")


def test_the_default_model_beats_bicubic(tmp_path):
    """The released network on a sharp edge, which interpolation blurs."""
    hr = torch.zeros(3, 96, 96)
    hr[:, 24:72, 24:72] = 0.9
    lr = resize(hr, 1 / 4).clamp(0, 1)
    error = {m: (srlab.upscale(lr, m) - hr).square().mean() for m in ("srresnet", "bicubic")}
    assert error["srresnet"] < 0.8 * error["bicubic"]
    assert "srresnet" in zoo.released()
    assert_close(srlab.upscale(lr), srlab.upscale(lr, "srresnet"))


def test_importing_srlab_still_imports_nothing():
    code = "import sys, srlab; assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'downscale'"):
        _ = srlab.downscale
