"""srlab.files: whole files, one process at a time in a folder, names that do no harm."""

import os
import signal
import subprocess
import sys
import time

import pytest

from srlab import files
from srlab.files import InUse, only_here, printable, whole, write_text

HOLD = """
import sys, time
from pathlib import Path
from srlab.files import only_here
with only_here(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in the folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "before\n")

    def fail():
        with whole(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "before\n"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before\n"
    assert os.listdir(path.parent) == ["a.txt"]


def test_what_the_killed_left_is_removed_and_nothing_else(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()  # its number is free now
    dead, alive = (
        tmp_path / f".srlab-{files._COMPUTER}-{n}-00000000.png" for n in (process.pid, os.getpid())
    )
    elsewhere, old = (tmp_path / f".srlab-00000000-{n}-00000000" for n in (1, 2))
    others = [tmp_path / name for name in (".hidden", "srlab-1", f"{dead.name}.mine.txt")]
    for file in (dead, alive, elsewhere, old, *others):
        file.touch()
    os.utime(old, (0, time.time() - 2 * 86_400))
    write_text(tmp_path / "a", "")
    left = {alive, elsewhere, tmp_path / "a", *others}
    assert {tmp_path / name for name in os.listdir(tmp_path)} == left


def test_the_second_process_is_refused_and_told_of_the_first(holder, tmp_path):
    with (
        pytest.raises(InUse, match=rf"process {holder.pid} is busy there with a test"),
        only_here(tmp_path / "run", "a test"),
    ):
        pass


def test_the_lock_of_the_dead_is_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with only_here(tmp_path / "run", "a test"), only_here(tmp_path / "run", "a test within"):
        assert (tmp_path / "run" / files.LOCK).read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path / "run") == []


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    with only_here(tmp_path / "a" / "b", "a test"):
        assert (tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path) == []
    with only_here(tmp_path / "a" / "b", "a test"):
        (tmp_path / "a" / "kept").touch()
    assert os.listdir(tmp_path / "a") == ["kept"]


def test_names_do_not_write_to_the_terminal():
    assert printable("é\x1b[31m\udcff\n") == "é\\x1b[31m\\udcff\n"
