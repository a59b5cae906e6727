"""Files that come with the package, and how they are known to be the ones that were released.

``weights/SHA256SUMS`` lists them in the format of ``sha256sum``; ``sha256sum -c SHA256SUMS`` in
that folder checks them too.
"""

import re
from pathlib import Path

from srlab.data.download import sha256
from srlab.errors import SrlabError
from srlab.files import write_text

FOLDER = Path(__file__).parent / "weights"
SUMS = "SHA256SUMS"


class ChecksumError(SrlabError):
    """A released file is not the one that was released."""


def read_sums(folder: Path | None = None) -> dict[str, str]:
    """File name relative to the folder -> SHA-256 in hexadecimal.

    Raises:
        ChecksumError: the list is damaged.
    """
    file = (folder or FOLDER) / SUMS
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = [re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in text.splitlines()]
    if not all(lines):
        raise ChecksumError(
            f"line {lines.index(None) + 1} of {file} is damaged: it must hold a SHA-256, two "
            "spaces and a name. Install srlab again, or `git checkout` the file."
        )
    return {line[2]: line[1] for line in lines if line}


def check(path: Path, name: str | None = None) -> None:
    """Compare a released file with its entry in the list.

    Args:
        name: of the entry, for a copy that lies elsewhere.

    Raises:
        ChecksumError: it differs, or is not listed.
    """
    name = name or path.resolve().relative_to(FOLDER.resolve()).as_posix()
    expected = read_sums().get(name)
    if expected is None:
        raise ChecksumError(
            f"{path} is not listed in {FOLDER / SUMS}: it did not come with the package. Load it "
            "by its path, or add it by `srlab export`."
        )
    if sha256(path) != expected:
        raise ChecksumError(
            f"{path} is not the released file (its SHA-256 differs from that in {SUMS}): it was "
            "changed or damaged. Install srlab again, or `git checkout` the file."
        )


def record(path: Path) -> None:
    """Put a new file of the folder on the list; other files are none of its business."""
    path, folder = path.resolve(), FOLDER.resolve()
    if not path.is_relative_to(folder):
        return
    sums = read_sums() | {path.relative_to(folder).as_posix(): sha256(path)}
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
