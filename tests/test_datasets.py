"""srlab.data.datasets against a small web server of its own: no test touches the network."""

import csv
import hashlib
import io
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from srlab.data import datasets, download
from srlab.data.datasets import DATASETS, DatasetError, ImageSet, data_folders, fetch, find, status
from srlab.data.images import read_image
from srlab.files import InUse


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """An empty folder that SRLAB_DATA names."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("SRLAB_DATA", str(folder))
    return folder


def put_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i:04d}.png").write_bytes(b"pixels")
    return folder


# --- The registry --------------------------------------------------------------------------------


def test_sets_that_are_downloaded_say_all_that_fetch_needs():
    published = {"div2k-train": 800, "div2k-valid": 100, "set5": 5, "set14": 14}
    published |= {"bsd100": 100, "urban100": 100}
    downloaded = {name: s for name, s in DATASETS.items() if s.url}
    assert {name: s.count for name, s in downloaded.items()} == published
    for image_set in downloaded.values():
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", image_set.checksum)
        assert re.fullmatch(r"https://\S+\.(zip|tar)", image_set.url)
        assert re.fullmatch(r"[\d.]+ [MG]B", image_set.size)
        assert image_set.member
        assert image_set.folders


def test_every_set_says_whose_it_is():
    for name, image_set in DATASETS.items():
        assert image_set.name == name
        if image_set.homepage.startswith("data/"):  # each picture has its own source
            with open(Path(__file__).parents[1] / image_set.homepage, newline="") as file:
                rows = list(csv.DictReader(file))
            assert len(rows) == image_set.count
            assert all(row["source"] and row["licence"] for row in rows)
            assert {len(row["sha256"]) for row in rows} == {64}
        else:
            assert image_set.homepage.startswith("https://")
        assert image_set.licence
        assert image_set.title


def test_photos_are_colour_pictures_that_need_no_network(data, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", None)
    paths = find("photos") + find("photos-valid")
    assert fetch("photos") + fetch("photos-valid") == paths
    assert len(set(paths)) == DATASETS["photos"].count + DATASETS["photos-valid"].count == 7
    assert all(read_image(path).std(0).max() > 0 for path in paths)  # R, G and B differ


# --- Finding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    ["Set5", "set5", "benchmarks/Set5", "Set5/HR", "benchmark/Set5/HR", "a/b/SET5"],
)
def test_find_knows_the_usual_layouts(data, layout):
    folder = put_images(data / layout, 5)
    assert find("set5") == sorted(folder.iterdir())


def test_srlab_data_may_name_the_folder_of_the_set_itself(tmp_path, monkeypatch):
    folder = put_images(tmp_path / "Set5", 5)
    monkeypatch.setenv("SRLAB_DATA", str(folder))
    assert len(find("set5")) == 5


def test_find_does_not_search_deeper_than_it_says(data):
    put_images(data / "a/b/c/Set5", 5)
    assert status("set5") == (None, 0)


@pytest.mark.parametrize("folder", ["BSD100", "B100", "BSDS100"])
def test_find_knows_the_other_names_of_a_set(data, folder):
    put_images(data / folder, 100)
    assert len(find("bsd100")) == 100


def test_srlab_data_may_name_several_folders_and_the_first_complete_copy_wins(
    tmp_path, monkeypatch
):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    put_images(first / "Set5", 3)
    put_images(second / "Set5", 5)
    put_images(third / "Set5", 5)
    monkeypatch.setenv("SRLAB_DATA", os.pathsep.join(map(str, (first, second, third))))
    assert data_folders()[:3] == [first, second, third]
    assert {path.parent for path in find("set5")} == {second / "Set5"}


def test_without_srlab_data_the_clones_own_folder_is_used(monkeypatch):
    monkeypatch.delenv("SRLAB_DATA", raising=False)
    assert data_folders() == [Path(__file__).resolve().parent.parent / "data"]


def test_without_a_clone_the_users_cache_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("SRLAB_DATA", raising=False)
    monkeypatch.setattr(
        datasets, "__file__", str(tmp_path / "site-packages/srlab/data/datasets.py")
    )
    (folder,) = data_folders()
    assert folder.name == "srlab"
    assert tmp_path not in folder.parents


def test_a_missing_set_says_how_to_get_it(data):
    with pytest.raises(DatasetError) as error:
        find("div2k-train")
    assert str(error.value) == (
        "div2k-train is not on this machine: run `srlab fetch div2k-train` (3.5 GB) or point "
        "SRLAB_DATA at a folder that holds DIV2K_train_HR."
    )


@pytest.mark.parametrize("get", [find, fetch])
def test_a_set_without_download_names_its_page_and_where_to_put_it(data, get):
    with pytest.raises(DatasetError) as error:
        get("bsds400")
    assert DATASETS["bsds400"].homepage in str(error.value)
    assert str(data / "BSDS400") in str(error.value)


def test_an_incomplete_set_says_how_much_is_there(data):
    folder = put_images(data / "DIV2K_valid_HR", 7)
    with pytest.raises(DatasetError, match=r"only 7 of 100 images.*srlab fetch div2k-valid` again"):
        find("div2k-valid")
    assert status("div2k-valid") == (folder, 7)


def test_the_training_pictures_of_bsds_hold_none_of_set5(data):
    """BSDS500's 302003 is Set5's `woman`."""
    folder = put_images(data / "BSDS400", 3)
    (folder / "0001.png").rename(folder / "302003.png")
    assert "302003" not in [file.stem for file in find("bsds400")]
    assert status("bsds400") == (folder, 2)


def test_sets_kept_by_hand_may_be_pruned(data):
    put_images(data / "train/BSDS400", 399)
    assert len(find("bsds400")) == 399


@pytest.mark.parametrize("get", [find, fetch])
def test_an_unknown_set_lists_the_known_ones_and_the_closest(data, get):
    with pytest.raises(DatasetError) as error:
        get("Urban10")
    assert "did you mean urban100?" in str(error.value)
    assert all(name in str(error.value) for name in DATASETS)
    assert ("folder" in str(error.value)) == (get is find)  # no folder of one's own is fetched


def test_status_never_raises(data):
    assert status("urban100") == (None, 0)
    assert status("no such set") == (None, 0)
    assert status("photos")[1] == 5


def test_a_folder_or_a_file_of_ones_own(tmp_path):
    folder = put_images(tmp_path / "holiday", 3)
    assert find(folder) == find(str(folder)) == sorted(folder.iterdir())
    assert find(folder / "0001.png") == [folder / "0001.png"]


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path)) + " holds no images"):
        find(tmp_path)


# --- Fetching ------------------------------------------------------------------------------------


@dataclass
class Site:
    """What the web server serves, how it misbehaves, and what it was asked."""

    url: str = ""
    content: bytes = b""
    ranges: bool = True
    length: bool = True
    status: int = 200
    cuts: list[int] = field(default_factory=list)  # bytes after which connections break, in turn
    sent: list[range] = field(default_factory=list)  # which bytes went out with each answer


@pytest.fixture
def site(monkeypatch) -> Site:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(re.findall(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[0])
            size = len(site.content)
            start = start if site.ranges else 0
            code = site.status
            if site.ranges and code == 200:
                code, start = (206, start) if start < size else (416, size)
            stop = min(size, start + site.cuts.pop(0)) if site.cuts else size
            site.sent.append(range(start, stop))
            self.send_response(code)
            if site.length:
                self.send_header("Content-Length", str(size - start))
            self.end_headers()
            self.wfile.write(site.content[start:stop])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0, 0))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()


PICTURES = {f"{i}.png": random.Random(i).randbytes(10_000) for i in range(5)}


def pack(suffix: str, files: dict[str, bytes]) -> bytes:
    """A zip or tar in memory."""
    buffer = io.BytesIO()
    if suffix == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def publish(site: Site, monkeypatch, suffix: str, content: bytes, *names: str) -> None:
    """Let the site serve an archive, and let DATASETS know just the sets that are in it."""
    site.content = content
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    published = {
        name: ImageSet(
            name=name,
            title="",
            count=len(PICTURES),
            licence="",
            homepage="",
            folders=(name.title(),),
            url=f"{site.url}/pictures.{suffix}",
            checksum=checksum,
            member=f"archive/{name}/HR",
        )
        for name in names or ("tiny",)
    }
    monkeypatch.setattr(datasets, "DATASETS", published)


@pytest.fixture(params=["zip", "tar"])
def tiny(request, site, monkeypatch) -> Site:
    """A site with one good set named tiny, as zip and as tar."""
    files = {f"archive/tiny/HR/{name}": content for name, content in PICTURES.items()}
    files |= {"archive/tiny/LR/0.png": b"not wanted", "archive/tiny/HR/._0.png": b"not a picture"}
    publish(site, monkeypatch, request.param, pack(request.param, files))
    return site


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_fetch_downloads_and_unpacks(tiny, data, capfd):
    assert contents(fetch("tiny", progress=False)) == PICTURES
    assert contents(find("tiny")) == PICTURES
    assert visible(data) == {"Tiny"}  # no archive, no part, no scratch folder
    assert capfd.readouterr() == ("", "")


def test_fetch_into_another_folder(tiny, data, tmp_path):
    assert contents(fetch("tiny", into=tmp_path / "new" / "place")) == PICTURES
    assert (tmp_path / "new" / "place" / "Tiny").is_dir()
    assert visible(data) == set()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_what_was_fetched_can_be_shared(tiny, data):
    old = os.umask(0o022)
    try:
        fetch("tiny")
    finally:
        os.umask(old)
    assert stat.S_IMODE((data / "Tiny").stat().st_mode) == 0o755


def test_a_second_fetch_asks_no_server(tiny, data):
    first = fetch("tiny")
    assert fetch("tiny") == first
    assert len(tiny.sent) == 1


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_sets_of_one_archive_come_together(site, data, monkeypatch, suffix):
    names = ("one", "two")
    files = {f"archive/{n}/HR/{p}": c for n in names for p, c in PICTURES.items()}
    publish(site, monkeypatch, suffix, pack(suffix, files), *names)
    fetch("two")
    assert contents(fetch("one")) == contents(fetch("two")) == PICTURES
    assert len(site.sent) == 1


def test_an_archive_that_is_already_there_is_used(tiny, data):
    archive = data / datasets.DATASETS["tiny"].url.rsplit("/")[-1]
    archive.write_bytes(tiny.content)
    assert contents(fetch("tiny")) == PICTURES
    assert tiny.sent == []


def sent_twice(site: Site) -> int:
    """Bytes that went out more often than they had to."""
    return sum(map(len, site.sent)) - len(site.content)


def test_a_cut_download_goes_on_where_it_was(tiny, data):
    tiny.cuts = [download.CHUNK, download.CHUNK]
    assert contents(fetch("tiny")) == PICTURES
    assert len(tiny.sent) == 3
    assert sent_twice(tiny) == 0


def test_a_cut_loses_less_than_a_chunk(tiny, data):
    tiny.cuts = [20_000, 20_000]
    assert contents(fetch("tiny")) == PICTURES
    assert sent_twice(tiny) < 2 * download.CHUNK


def test_after_giving_up_the_next_fetch_goes_on(tiny, data):
    tiny.cuts = [download.CHUNK, 0, 0]
    with pytest.raises(DatasetError, match="could not be downloaded"):
        fetch("tiny")
    assert status("tiny") == (None, 0)
    assert contents(fetch("tiny")) == PICTURES
    assert sent_twice(tiny) == 0


def test_a_server_without_ranges_starts_again(tiny, data):
    tiny.ranges, tiny.cuts = False, [20_000]
    assert contents(fetch("tiny")) == PICTURES
    assert [part.start for part in tiny.sent] == [0, 0]


def test_a_part_longer_than_the_file_is_dropped(tiny, data):
    archive = datasets.DATASETS["tiny"].url.rsplit("/")[-1]
    (data / f"{archive}.part").write_bytes(bytes(len(tiny.content) + 1))
    assert contents(fetch("tiny")) == PICTURES


def test_a_wrong_checksum_leaves_nothing_behind(tiny, data):
    tiny.content = tiny.content[:-1] + b"!"
    with pytest.raises(DatasetError, match="wrong checksum"):
        fetch("tiny")
    assert visible(data) == set()


def test_no_such_address_is_asked_once(tiny, data):
    tiny.status = 404
    with pytest.raises(DatasetError, match=r"pictures\.\w+ could not be downloaded \(HTTP .* 404"):
        fetch("tiny")
    assert len(tiny.sent) == 1


def test_a_server_in_trouble_is_asked_again(tiny, data):
    tiny.status = 503
    with pytest.raises(DatasetError, match="503"):
        fetch("tiny")
    assert len(tiny.sent) == 3


def test_no_network(tiny, data, monkeypatch):
    closed = "http://127.0.0.1:9/pictures.zip"  # the port of the discard service: nobody listens
    moved = replace(datasets.DATASETS["tiny"], url=closed)
    monkeypatch.setitem(datasets.DATASETS, "tiny", moved)
    with pytest.raises(DatasetError, match=re.escape(closed)):
        fetch("tiny")


def test_a_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetError, match="Cannot write to"):
        fetch("tiny", into=tmp_path / "file" / "below")


def test_a_full_disk_is_noticed_beforehand(tiny, data, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DatasetError, match="GB free"):
        fetch("tiny")
    assert visible(data) == set()


def test_killed_while_unpacking_leaves_no_half_set(tiny, data, monkeypatch):
    copy, copied = datasets.shutil.copyfileobj, []

    def killed_at_the_third(*args):
        copied.append(args)
        if len(copied) == 3:
            raise KeyboardInterrupt
        copy(*args)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.shutil, "copyfileobj", killed_at_the_third)
        # A process that is killed tidies nothing up.
        patch.setattr(datasets.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny")
    assert status("tiny") == (None, 0)
    assert not (data / "Tiny").exists()
    # What was downloaded is not lost, and what was left behind is cleared away.
    assert contents(fetch("tiny")) == PICTURES
    assert len(tiny.sent) == 1
    assert visible(data) == {"Tiny"}


def test_an_incomplete_folder_is_filled_up_and_loses_nothing(tiny, data):
    folder = data / "Tiny"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"half a pic")
    (folder / "notes.txt").write_text("mine")
    assert contents(fetch("tiny")) == PICTURES
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize(
    "name", ["../evil.png", "archive/tiny/HR/../../../../evil.png", "/evil.png", "c:\\evil.png"]
)
def test_an_archive_that_leads_out_of_its_folder_is_refused(site, data, monkeypatch, suffix, name):
    files = {f"archive/tiny/HR/{p}": c for p, c in PICTURES.items()} | {name: b"evil"}
    publish(site, monkeypatch, suffix, pack(suffix, files))
    with pytest.raises(DatasetError, match="not safe"):
        fetch("tiny")
    assert visible(data) == {f"pictures.{suffix}"}
    assert not list(data.parent.rglob("*evil*"))


def test_links_are_refused(site, data, monkeypatch):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo("archive/tiny/HR/0.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        publish(site, monkeypatch, "tar", buffer.getvalue())
        with pytest.raises(DatasetError, match="not safe"):
            fetch("tiny")
        (data / "pictures.tar").unlink()

    info = zipfile.ZipInfo("archive/tiny/HR/0.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    publish(site, monkeypatch, "zip", buffer.getvalue())
    with pytest.raises(DatasetError, match="not safe"):
        fetch("tiny")


def test_a_download_without_a_length_ends_somewhere(site, tmp_path, monkeypatch):
    """A server that does not tell how much is coming, and goes on and on."""
    monkeypatch.setattr(download, "CHUNK", 1000)
    monkeypatch.setattr(download, "MOST_BYTES", 20_000)
    site.content, site.length = bytes(100_000), False
    with pytest.raises(download.DownloadError, match="is longer than"):
        download.download(site.url, tmp_path / "a", "md5:0", progress=False)
    assert (tmp_path / "a.part").stat().st_size <= 20_000
    site.length = True
    with pytest.raises(download.DownloadError, match="is longer than"):
        download.download(site.url, tmp_path / "b", "md5:0", progress=False)
    assert not (tmp_path / "b.part").exists()


def test_two_at_once_lose_no_download(tiny, data):
    """The second is refused; the first, or whoever comes later, has the set."""
    data.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {process.pid} is busy there with a download"):
            fetch("tiny")
        process.kill()
    assert tiny.sent == []
    assert contents(fetch("tiny")) == PICTURES


HOLD = """
import sys, time
from pathlib import Path
from srlab.files import only_here
with only_here(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_only_the_published_pictures_are_unpacked(site, data, monkeypatch):
    files = {f"archive/tiny/HR/{name}": content for name, content in PICTURES.items()}
    publish(site, monkeypatch, "zip", pack("zip", files | {"archive/tiny/HR/run.sh": b"#!/bin/sh"}))
    assert contents(fetch("tiny")) == PICTURES
    assert visible(data / "Tiny") == PICTURES.keys()
    shutil.rmtree(data)
    publish(site, monkeypatch, "zip", pack("zip", files | {"archive/tiny/HR/extra.png": b"?"}))
    with pytest.raises(DatasetError, match="holds 6 of the 5 images"):
        fetch("tiny")
    assert not (data / "Tiny").exists()


def test_a_bomb_is_refused(tiny, data, monkeypatch):
    monkeypatch.setattr(datasets, "_MOST_BYTES", 40_000)
    with pytest.raises(DatasetError, match="would come out"):
        fetch("tiny")
    assert not (data / "Tiny").exists()


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_what_is_no_archive_or_not_the_right_one_is_refused(site, data, monkeypatch, suffix):
    publish(site, monkeypatch, suffix, b"<html>maintenance</html>" * 100)
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        fetch("tiny")
    (data / f"pictures.{suffix}").unlink()
    publish(site, monkeypatch, suffix, pack(suffix, {"archive/tiny/HR/0.png": b"alone"}))
    with pytest.raises(DatasetError, match="holds 1 of the 5 images"):
        fetch("tiny")
    assert status("tiny") == (None, 0)
