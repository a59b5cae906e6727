"""Download one file: resumed when the connection is cut, checked, and only then given its name."""

import hashlib
import shutil
import time
from pathlib import Path

from tqdm.auto import tqdm

from srlab.errors import SrlabError
from srlab.files import only_here

PAUSES = (1, 2, 4, 8)  # seconds between connections
MOST_BYTES = 10**10  # of one file, whatever the server says; several times the largest here
CHUNK = 1 << 14  # bytes; when the connection is cut, the chunk under way is lost


class DownloadError(SrlabError):
    """A file could not be downloaded, or is not the published one."""


def download(url: str, path: Path, checksum: str, progress: bool = True) -> None:
    """Fill ``path`` from ``url``, unless it is there already, and check it.

    What has arrived lies in ``path`` + ``.part`` until it is complete; the next call goes on from
    there.

    Args:
        checksum: ``"algorithm:digest"``; the digest may be a prefix, as in torch's file names.
        progress: show a bar.

    Raises:
        DownloadError: no connection, no space, too long, or a wrong checksum; a wrong file is
            deleted.
        InUse: another process downloads the same file.
    """
    if not path.exists():
        part = path.with_name(path.name + ".part")
        with only_here(path.parent, "a download", f".{path.name}.lock"):
            if not path.exists():  # another process may have got it meanwhile
                _download(url, part, progress)
                part.replace(path)
    if not has_checksum(path, checksum):
        path.unlink()
        raise DownloadError(
            f"{path} had the wrong checksum and was deleted: fetch it again; if it happens again, "
            f"{url} is no longer the published file."
        )


def has_checksum(path: Path, checksum: str) -> bool:
    """Whether a file has a checksum as :func:`download` takes it."""
    algorithm, digest = checksum.split(":")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(digest)


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, nbytes: int) -> None:
    """Raise :class:`DownloadError` if a folder's disk has not that many bytes free."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise DownloadError(
            f"{folder} has {free / 1e9:.1f} GB free but {nbytes / 1e9:.1f} GB are needed: make "
            "room or name another folder."
        )


def _download(url: str, part: Path, progress: bool) -> None:
    """Fill ``part``, over as many connections as it takes."""
    import requests

    for pause in (*PAUSES, None):
        try:
            return _download_rest(url, part, progress)
        except requests.RequestException as error:
            code = 0 if error.response is None else error.response.status_code
            if pause is None or (400 <= code < 500 and code != 416):
                why = f"HTTP status {code}" if code else type(error).__name__
                raise DownloadError(
                    f"{url} could not be downloaded ({why}): check the connection and fetch again, "
                    "it goes on from there."
                ) from error
        time.sleep(pause)


def _download_rest(url: str, part: Path, progress: bool) -> None:
    """One connection; raises requests.RequestException if it ends before the file does."""
    import requests

    done = part.stat().st_size if part.exists() else 0
    # Uncompressed on the way, so that lengths and ranges count bytes of the file itself.
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={done}-"}
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == 416:  # the file ends here or before: not a part of this one
            part.unlink(missing_ok=True)
        response.raise_for_status()
        if response.status_code != 206:  # the server knows no ranges: from the start
            done = 0
        total = done + int(response.headers.get("Content-Length", 0))
        _refuse_endless(url, total)
        require_space(part.parent, total - done)
        units = {"unit": "B", "unit_scale": True, "disable": not progress}
        bar = tqdm(desc=part.stem, total=total, initial=done, **units)
        with bar, part.open("ab" if done else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                _refuse_endless(url, file.tell() + len(chunk))
                file.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size < total:
        raise requests.ConnectionError(f"{url} was cut")


def _refuse_endless(url: str, nbytes: int) -> None:
    if nbytes > MOST_BYTES:
        raise DownloadError(
            f"{url} is longer than {MOST_BYTES / 1e9:.1f} GB: it is not the published file. "
            "Look at the address in a browser."
        )
