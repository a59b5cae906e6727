"""srlab.data.shards: the crops from disk are those of the bank in memory."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from srlab.cli import app
from srlab.data import shards
from srlab.data.bank import PatchBank
from srlab.data.shards import ShardBank, ShardError, pack

# (height, width): larger and smaller than a tile, landscape, portrait, no multiple of 4.
SIZES = [(130, 200), (70, 45), (64, 64), (33, 129), (200, 131), (48, 48)]


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (h, w) in enumerate(SIZES):
        pixels = random.integers(256, size=(h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def in_three(files, out):
    """Shards of a size that spreads the pictures over three files."""
    pack(files, out, shard_bytes=150_000)
    assert len(sorted(out.glob("*.shard"))) >= 3
    return out


def assert_same_crops(folder, files, **options):
    bank, shard_bank = PatchBank.from_files(files, seed=5, **options), ShardBank(folder, seed=5)
    for patch_size in (1, 4, 8):
        for _ in range(5):
            pairs = zip(bank.batch(40, patch_size), shard_bank.batch(40, patch_size), strict=True)
            for a, b in pairs:
                assert torch.equal(a, b)
    assert len(bank) == len(shard_bank)


def test_the_same_seed_gives_the_crops_of_the_bank_in_memory(files, tmp_path):
    assert_same_crops(in_three(files, tmp_path / "shards"), files)


def test_other_scales_and_shrunk_pictures(files, tmp_path):
    pack(files[:2], tmp_path / "two", scale=2)
    assert_same_crops(tmp_path / "two", files[:2], scale=2)
    chosen = [files[0], files[4]]
    pack(chosen, tmp_path / "half", shrink=[2, 1])
    assert_same_crops(tmp_path / "half", chosen, shrink=[2, 1])


def test_a_restored_bank_goes_on(files, tmp_path):
    folder = in_three(files, tmp_path / "shards")
    a, b = ShardBank(folder, seed=1), ShardBank(folder, seed=2)
    a.batch(3, 6)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.batch(3, 6)[0], b.batch(3, 6)[0])


def test_tiles_are_pages():
    """A crop of 96 x 96 words touches at most 4 x 4 pages of 4096 bytes."""
    start, width = torch.tensor([4096]), torch.tensor([1000])
    for y, x in ((0, 0), (31, 31), (17, 500)):
        words = shards._tiles(start, torch.tensor([y]), torch.tensor([x]), width, 96)
        assert len((words * 4 // 4096).unique()) <= 16
        assert len(words.unique()) == 96 * 96


def test_packing_goes_on_where_it_was_interrupted(files, tmp_path, monkeypatch):
    whole, broken = in_three(files, tmp_path / "whole"), tmp_path / "broken"
    decode, decoded = shards.decode, []

    def dies(file, factor):
        if file == files[4]:
            raise KeyboardInterrupt
        return decode(file, factor)

    def counted(file, factor):
        decoded.append(file)
        return decode(file, factor)

    monkeypatch.setattr(shards, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        pack(files, broken, shard_bytes=150_000)
    with pytest.raises(ShardError, match=r"holds \d of 6 pictures: run `srlab pack` again"):
        ShardBank(broken)
    (broken / "00001.part").write_bytes(b"left behind")
    monkeypatch.setattr(shards, "decode", counted)
    pack(files, broken, shard_bytes=150_000)
    assert 0 < len(decoded) < 6
    for file in whole.glob("*.*"):
        assert file.read_bytes() == (broken / file.name).read_bytes()


def spoil(folder, how):
    file = sorted(folder.glob("*.shard"))[1]
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[:-10]
    elif how == "one bit":
        content[5000] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"has [\d,]+ bytes instead of"),
        ("missing", "has 0 bytes instead of"),
        ("one bit", "is damaged: its SHA-256"),
    ],
)
def test_bad_shards_are_refused_and_mended(files, tmp_path, how, message):
    folder = in_three(files, tmp_path / "shards")
    file = spoil(folder, how)
    with pytest.raises(ShardError, match=re.escape(str(file)) + " " + message) as error:
        ShardBank(folder)
    assert "Run `srlab pack` again, it mends the folder." in str(error.value)
    pack(files, folder, shard_bytes=150_000)
    assert_same_crops(folder, files)


def test_folders_that_are_something_else(files, tmp_path):
    folder = in_three(files, tmp_path / "shards")
    with pytest.raises(ShardError, match="holds the shards of other pictures"):
        pack(files[:2], folder, shard_bytes=150_000)
    with pytest.raises(ShardError, match="holds something else: name an empty folder"):
        pack(files, files[0].parent)
    with pytest.raises(ShardError, match="make it by `srlab pack`"):
        ShardBank(tmp_path)
    (folder / "index.json").write_text(json.dumps({"scale": 4}))
    with pytest.raises(ShardError, match=r"index\.json is damaged \(KeyError\): delete the folder"):
        ShardBank(folder)
    with pytest.raises(ShardError, match="no pictures to pack"):
        pack([], tmp_path / "none")


def test_a_full_disk(files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ShardError, match=r"No space left on device.*name another folder"):
        pack(files, tmp_path / "shards")


def test_a_picture_too_small_for_the_crop_is_named(files, tmp_path):
    Image.new("RGB", (3, 90)).save(tmp_path / "thin.png")
    pack([*files, tmp_path / "thin.png"], tmp_path / "shards")
    with pytest.raises(shards.SrlabError, match=r"thin\.png is too small"):
        ShardBank(tmp_path / "shards").batch(1, 8)


def test_the_commands(files, tmp_path):
    """`srlab pack`, then `srlab train --data` on what it made."""
    out, run = tmp_path / "shards", tmp_path / "run"
    call = CliRunner().invoke
    packed = call(app, ["pack", str(files[0].parent), str(out), "--shard-mb", "1"])
    assert packed.exit_code == 0, packed.output
    assert "6 images" in packed.output
    options = ["--steps", "2", "--batch-size", "2", "--patch-size", "8", "--device", "cpu"]
    options += ["--validate", str(files[0].parent), "--out", str(run), "--log-every", "1"]
    trained = call(app, ["train", "srresnet", "--data", str(out), *options])
    assert trained.exit_code == 0, trained.output
    assert "pixels on disk" in trained.output
    assert (run / "checkpoint.safetensors").is_file()
