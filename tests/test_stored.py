"""A bank in files: its crops are those of the bank in memory, and half a bank never opens."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from srlab.cli import app
from srlab.data import bank as bank_module
from srlab.data.bank import PatchBank
from srlab.data.stored import BankError, is_bank

# (height, width): landscape, portrait, square, no multiple of 4.
SIZES = [(130, 200), (70, 45), (64, 64), (43, 129), (200, 131), (48, 48)]


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (h, w) in enumerate(SIZES):
        pixels = random.integers(256, size=(h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def assert_same_crops(a, b):
    for patch_size in (1, 4, 8):
        for _ in range(4):
            for x, y in zip(a.batch(40, patch_size), b.batch(40, patch_size), strict=True):
                assert torch.equal(x, y)
    assert (a.contents, a.names, a.nbytes, len(a)) == (b.contents, b.names, b.nbytes, len(b))


def in_memory(files, scale=4, shrink=1, **options):
    """Decoded one by one and handed over as tensors: no file of a bank is involved."""
    shrink = [shrink] * len(files) if isinstance(shrink, int) else shrink
    images = [bank_module.decode(f, s) for f, s in zip(files, shrink, strict=True)]
    return PatchBank(images, scale, names=[str(f) for f in files], **options)


@pytest.mark.parametrize("detail", [0.0, 0.5])
@pytest.mark.parametrize("options", [{}, {"scale": 2, "shrink": [2, 1, 1, 1, 2, 1]}], ids=repr)
def test_the_same_seed_gives_the_crops_of_the_bank_in_memory(files, tmp_path, options, detail):
    in_memory(files, **options).save(tmp_path / "saved")
    built = PatchBank.from_files(files, seed=5, detail=detail, folder=tmp_path / "built", **options)
    opened = PatchBank.open(tmp_path / "saved", seed=5, detail=detail)
    for bank in (opened, built, PatchBank.from_files(files, seed=5, detail=detail, **options)):
        assert_same_crops(in_memory(files, seed=5, detail=detail, **options), bank)
    for name in ("lr.npy", "hr.npy", "errors.npy", "bank.json"):
        contents = [(tmp_path / way / name).read_bytes() for way in ("saved", "built")]
        assert contents[0] == contents[1]


def test_a_state_goes_on_in_memory_and_on_disk(files, tmp_path):
    bank = in_memory(files, seed=1)
    bank.save(tmp_path / "bank")
    bank.batch(3, 6)
    opened = PatchBank.open(tmp_path / "bank", seed=2)
    opened.load_state_dict(bank.state_dict())
    assert torch.equal(bank.batch(3, 6)[0], opened.batch(3, 6)[0])
    bank.load_state_dict(opened.state_dict())
    assert torch.equal(bank.batch(3, 6)[1], opened.batch(3, 6)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("way", ["opened", "built"])
def test_the_pixels_are_the_files_and_no_copy(files, tmp_path, way):
    folder = tmp_path / "bank"
    bank = PatchBank.from_files(files, folder=folder)
    if way == "opened":
        bank = PatchBank.open(folder)
    for name, atlas in (("lr", bank.lr_atlas), ("hr", bank.hr_atlas)):
        for line in Path("/proc/self/maps").read_text().splitlines():
            low, high = (int(end, 16) for end in line.split()[0].split("-"))
            if low <= atlas.data_ptr() < high:
                assert line.endswith(str((folder / f"{name}.npy").resolve()))
                break
        else:
            pytest.fail(f"the pixels of {name} are nowhere")


def test_a_tiny_picture_is_kept_and_named(files, tmp_path):
    Image.new("RGB", (3, 90)).save(tmp_path / "thin.png")
    bank = PatchBank.from_files([*files, tmp_path / "thin.png"], folder=tmp_path / "bank")
    assert len(bank) == len(files) + 1
    with pytest.raises(bank_module.SrlabError, match=r"thin\.png is too small"):
        bank.batch(1, 8)


def build_slowly(files, folder, ready):
    """What the next test kills: two pictures are placed, the third takes forever."""
    decode = bank_module.decode

    def slow(file, shrink):
        if file == files[2]:
            ready.touch()
            time.sleep(600)
        return decode(file, shrink)

    bank_module.decode = slow
    PatchBank.from_files(files, folder=folder)


def test_a_killed_process_leaves_what_was_there_before_and_nothing_half(files, tmp_path):
    def kill_one(folder):
        ready = tmp_path / "ready"
        building = processes.start(build_slowly, files, folder, ready, log=tmp_path / "said")
        while not ready.exists():
            assert building.is_alive(), (tmp_path / "said").read_text()
            time.sleep(0.02)
        building.kill()
        building.join()
        ready.unlink()
        assert any(p.name.startswith(".srlab-") for p in folder.iterdir())

    folder = tmp_path / "bank"
    kill_one(folder)
    assert not is_bank(folder)
    with pytest.raises(BankError, match=r"has no bank\.json: make it again by `srlab pack`"):
        PatchBank.open(folder)
    in_memory(files[:3]).save(folder)
    kill_one(folder)
    assert_same_crops(PatchBank.open(folder), in_memory(files[:3]))
    PatchBank.from_files(files, folder=folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "bank.json", "errors.npy", "hr.npy", "lr.npy",
    ]  # fmt: skip
    assert_same_crops(PatchBank.open(folder), in_memory(files))


def edit(**changes):
    def spoil(folder):
        index = json.loads((folder / "bank.json").read_text())
        (folder / "bank.json").write_text(json.dumps(index | changes))

    return spoil


def truncate(folder):
    content = (folder / "hr.npy").read_bytes()
    (folder / "hr.npy").write_bytes(content[:-10])


def overwrite_header(folder):
    content = (folder / "lr.npy").read_bytes()
    (folder / "lr.npy").write_bytes(b"something" + content[9:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"hr\.npy has [\d,]+ bytes instead of"),
        (lambda folder: (folder / "errors.npy").unlink(), r"errors\.npy has 0 bytes instead of"),
        (overwrite_header, r"lr\.npy is damaged \(ValueError"),
        (edit(version=2), r"bank\.json has version 2, and this srlab reads 1: make it again"),
        (edit(version=None), r"bank\.json has version None"),
        (edit(bytes=3), r"bank\.json is damaged"),
        (edit(bytes={}), r"bank\.json is damaged"),
        (edit(sizes=[[4, 4]]), r"bank\.json is damaged"),
        (edit(sizes=[[10**30, 4]] * 6), r"bank\.json is damaged"),
        (edit(sizes=[[10**6, 10**6]] * 6), r"bank\.json is damaged"),
        (edit(sizes=[[12, -8]] * 6), r"bank\.json is damaged"),
        (edit(names=5), r"bank\.json is damaged"),
        (edit(scale=2), r"bank\.json is damaged"),
        (lambda f: (f / "bank.json").write_text("["), r"bank\.json is damaged \(JSONDecodeE"),
        (lambda f: (f / "bank.json").write_bytes(b"\xff"), r"bank\.json is damaged \(UnicodeD"),
    ],
)
def test_a_spoilt_bank_is_refused_with_the_files_name(files, tmp_path, spoil, message):
    folder = tmp_path / "bank"
    in_memory(files).save(folder)
    spoil(folder)
    with pytest.raises(BankError, match=re.escape(f"{folder}/") + message):
        PatchBank.open(folder)


def test_folders_that_cannot_take_a_bank(files, tmp_path):
    bank = in_memory(files)
    with pytest.raises(BankError, match=r"holds 0\.png: name an empty folder"):
        bank.save(files[0].parent)
    with pytest.raises(BankError, match="is a file: name a folder"):
        bank.save(files[0])
    with pytest.raises(BankError, match="cannot write"):
        bank.save(files[0] / "below")
    with pytest.raises(BankError, match=r"has no bank\.json"):
        PatchBank.open(files[0])
    assert len(list(files[0].parent.iterdir())) == len(SIZES)


def test_a_full_disk(files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(BankError, match=r"No space left on device.*name another folder"):
        PatchBank.from_files(files, folder=tmp_path / "bank")
    assert not (tmp_path / "bank").exists()  # nothing is left, as nothing was there before


def test_the_commands(files, tmp_path):
    """`srlab pack`, then `srlab train --data` on what it made."""
    out, run = tmp_path / "bank", tmp_path / "run"
    call = CliRunner().invoke
    packed = call(app, ["pack", str(files[0].parent), str(out)])
    assert packed.exit_code == 0, packed.output
    assert "6 images" in packed.output
    options = ["--steps", "2", "--batch-size", "2", "--patch-size", "8", "--device", "cpu"]
    options += ["--validate", str(files[0].parent), "--out", str(run), "--log-every", "1"]
    trained = call(app, ["train", "srresnet", "--data", str(out), *options])
    assert trained.exit_code == 0, trained.output
    assert "pixels on disk" in trained.output
    assert (run / "checkpoint.safetensors").is_file()
