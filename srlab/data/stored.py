"""Arrays in a folder, mapped into memory: written whole or not at all, checked when opened.

Each array is a ``.npy`` file, which NumPy opens anywhere; ``bank.json`` is written last and knows
their sizes. The operating system keeps as much of them in memory as fits (its page cache, which all
processes share) and reads the rest when it is needed.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from srlab.errors import SrlabError
from srlab.files import LOCK, only_here, whole, write_text

INDEX = "bank.json"
VERSION = 1
AGAIN = "make it again by `srlab pack`"


class BankError(SrlabError):
    """A bank's folder cannot be written, is damaged, or comes from another version."""


def is_bank(folder: Path | str) -> bool:
    """Whether a folder was made by :func:`create`."""
    return (Path(folder) / INDEX).is_file()


@contextmanager
def create(
    folder: Path | str, facts: Mapping[str, Any], arrays: Mapping[str, tuple[tuple[int, ...], Any]]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Write arrays that need not fit into memory.

    An earlier bank in the folder can be opened until the body is over, and is then replaced.

    Args:
        facts: whatever else is to be stored, as JSON.
        arrays: name -> shape and type.

    Yields:
        Name -> array, mapped into memory and filled by the body. Keep no views of them.

    Raises:
        BankError: the folder holds something else or cannot be written to, or there is no room.
    """
    folder = Path(folder)
    names = {INDEX, LOCK, *(f"{name}.npy" for name in arrays)}
    try:
        if folder.exists() and not folder.is_dir():
            raise BankError(f"{folder} is a file: name a folder.")
        with only_here(folder, "the writing of a bank"):
            foreign = [p.name for p in folder.iterdir() if p.name not in names]
            if foreign := sorted(name for name in foreign if not name.startswith(".srlab-")):
                raise BankError(f"{folder} holds {foreign[0]}: name an empty folder.")
            with ExitStack() as stack:
                parts, sizes = {}, {}
                written: dict[str, np.memmap] = {}
                for name, (shape, kind) in arrays.items():
                    parts[name] = stack.enter_context(whole(folder / f"{name}.npy"))
                    written[name] = np.lib.format.open_memmap(parts[name], "w+", kind, shape)
                    sizes[name] = parts[name].stat().st_size
                    # Take the room now: a mapped file that meets a full disk would end the process.
                    if hasattr(os, "posix_fallocate"):
                        with open(parts[name], "r+b") as file:
                            os.posix_fallocate(file.fileno(), 0, sizes[name])
                yield written
                for array in written.values():
                    array.flush()
                written.clear()
                (folder / INDEX).unlink(missing_ok=True)  # of an earlier bank
            index = {"version": VERSION, "bytes": sizes, **facts}
            write_text(folder / INDEX, json.dumps(index))
    except OSError as error:
        raise BankError(
            f"cannot write {folder} ({error}): make room or name another folder."
        ) from error


def read(folder: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The facts and the arrays of a folder; what is written into the arrays stays in memory.

    Raises:
        BankError: no bank is there, or it is truncated, damaged or of another version.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BankError(f"{folder} has no {INDEX}: {AGAIN}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder / INDEX, error) from error
    version = index.get("version") if isinstance(index, dict) else None
    if version != VERSION:
        raise BankError(
            f"{folder / INDEX} has version {version!r}, and this srlab reads {VERSION}: {AGAIN}."
        )
    sizes = index.get("bytes")
    if not isinstance(sizes, dict):
        raise damaged(folder / INDEX, KeyError("bytes"))
    arrays = {}
    for name, size in sizes.items():
        path = folder / f"{name}.npy"
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise BankError(f"{path} has {found:,} bytes instead of {size!r}: {AGAIN}.")
        try:
            arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise damaged(path, error) from error
    return index, arrays


def damaged(path: Path, error: Exception) -> BankError:
    """What to say of a file that does not hold what it should."""
    return BankError(f"{path} is damaged ({type(error).__name__}): {AGAIN}.")
