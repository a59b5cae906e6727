"""Files that appear whole or not at all, folders for one process at a time, names safe to print.

A temporary file is called ``.srlab-<computer>-<process>-<random>``. A killed process leaves it
behind; the next write into the same folder removes it.
"""

import os
import platform
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from srlab.errors import SrlabError

LOCK = ".srlab.lock"
_COMPUTER = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\.srlab-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}(\.\w+)?$")
_A_DAY = 86_400  # seconds without a change: its writer, on whatever computer, is gone


class InUse(SrlabError):
    """Another process works in the same folder."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place if the body succeeds.

    Whatever happens, no half-written file bears the name ``path``. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    temporary = path.with_name(f".srlab-{_COMPUTER}-{os.getpid()}-{uuid4().hex[:8]}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader, or a crash, never meets half of it."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


@contextmanager
def only_here(folder: Path, work: str, file: str = LOCK) -> Iterator[None]:
    """Keep other processes from doing the same in ``folder`` until the body is over.

    The system lets go of the lock when its holder ends, however that happens. Within one process
    the lock may be taken several times. Where files cannot be locked at all, nothing is.

    Args:
        folder: made if it is missing, and then removed again if nothing lies in it at the end.
        work: what the message calls it, such as ``"a training"``.
        file: name of the lock, if it is for only a part of the folder.

    Raises:
        InUse: another process holds the lock; names it.
        OSError: the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / file
    lock = FileLock(path, timeout=0, is_singleton=True, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(errors="replace").strip()
        who = f"process {holder}" if holder.isdecimal() else "another process"
        raise InUse(
            f"{folder} is in use: {who} is busy there with {work}. Wait until it has ended, "
            "stop it, or name another folder."
        ) from error
    except NotImplementedError:  # a network drive without locks
        yield
        return
    try:
        with suppress(OSError):  # Windows lets nobody write into it, and the message names nobody
            path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                path.unlink()  # while it is held: a process that waits for it makes a new one
        lock.release()
        with suppress(OSError):  # unless something lies in it
            for place in new:
                place.rmdir()


def printable(text: object) -> str:
    """A text as it can go to a terminal: control characters, which a file name may hold, escaped.

    So are halves of characters, as in names that are not UTF-8; line feeds stay.
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def _remove_leftovers(folder: Path) -> None:
    with suppress(OSError):
        for name in os.listdir(folder):
            if found := _TEMPORARY.match(name):
                file = folder / name
                with suppress(OSError):
                    old = time.time() - file.stat().st_mtime > _A_DAY
                    if old or (found[1] == _COMPUTER and not _runs(int(found[2]))):
                        file.unlink()


def _runs(process: int) -> bool:
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True
