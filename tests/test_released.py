"""srlab.models.released: files of the package are the released ones, or are refused."""

import shutil
import subprocess

import pytest

from srlab.models import released, vgg, zoo
from srlab.models.released import ChecksumError


def test_every_released_file_is_listed_and_checked():
    files = {p.relative_to(released.FOLDER).as_posix() for p in released.FOLDER.rglob("*.safe*")}
    assert files == released.read_sums().keys()
    for name in files:
        released.check(released.FOLDER / name)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_the_list_is_that_of_sha256sum():
    command = ["sha256sum", "--check", "--strict", released.SUMS]
    assert subprocess.run(command, cwd=released.FOLDER, capture_output=True).returncode == 0


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's weights that may be spoilt."""
    folder = tmp_path / "weights"
    shutil.copytree(released.FOLDER, folder)
    monkeypatch.setattr(released, "FOLDER", folder)
    monkeypatch.setattr(vgg, "SLIM", folder / "features" / "vgg19-slim.safetensors")
    return folder


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_changed_file_is_refused(package):
    zoo.load("srresnet")
    flip_a_bit(package / "srresnet.safetensors")
    with pytest.raises(ChecksumError, match=r"srresnet\.safetensors is not the released file"):
        zoo.load("srresnet")
    vgg.load("vgg19-slim", ["relu2_2"])
    flip_a_bit(vgg.SLIM)
    with pytest.raises(ChecksumError, match=r"vgg19-slim\.safetensors is not the released"):
        vgg.load("vgg19-slim", ["relu2_2"])


def test_a_changed_file_is_refused_by_whatever_path_and_wherever_it_lies(
    package, tmp_path, monkeypatch
):
    monkeypatch.chdir(package)
    copy = tmp_path / "copy.safetensors"
    shutil.copyfile("srresnet.safetensors", copy)
    (tmp_path / "link.safetensors").symlink_to(package / "srresnet.safetensors")
    files = ["srresnet.safetensors", "../weights/srresnet.safetensors", copy]
    files.append(tmp_path / "link.safetensors")
    for file in files:
        zoo.load(file)
    flip_a_bit(package / "srresnet.safetensors")
    flip_a_bit(copy)
    for file in files:
        with pytest.raises(ChecksumError, match="is not the released file"):
            zoo.load(file)


@pytest.mark.parametrize("line", ["garbage", "", "0" * 63 + "  a", "\x00\xff", "0" * 64])
def test_a_garbled_list_is_told(package, line):
    with (package / "SHA256SUMS").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ChecksumError, match=r"line 6 of .*SHA256SUMS is damaged"):
        zoo.load("srresnet")


def test_a_file_that_was_put_there_is_refused_until_it_is_recorded(package, tmp_path):
    file = package / "mine.safetensors"
    zoo.save(zoo.load("srresnet"), file)
    with pytest.raises(ChecksumError, match=r"mine\.safetensors is not listed in .*SHA256SUMS"):
        zoo.load("mine")
    released.record(file)
    zoo.load("mine")
    released.check(package / "srresnet.safetensors")  # the others stay listed


def test_files_elsewhere_need_no_entry(package, tmp_path):
    file = tmp_path / "own.safetensors"
    zoo.save(zoo.build("srresnet"), file)
    released.record(file)
    assert "own.safetensors" not in (package / "SHA256SUMS").read_text()
    zoo.load(file)
