"""Upscale files, folders and streams: which becomes which, and what became of each.

A result goes to its file strip by strip, so that memory holds at most 4 bytes for each pixel of it.
"""

import glob
import os.path
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from srlab.data.images import list_images, picture_size
from srlab.data.reading import ImageError, Picture, read_picture
from srlab.data.writing import FORMATS, check_size, replacing, write_strips
from srlab.errors import SrlabError
from srlab.evaluation import tiling
from srlab.files import printable
from srlab.pictures.upscaling import TILE, UpscaleError, strips

STREAM = "-"  # the file name of standard input and output


@dataclass(frozen=True)
class Job:
    """One picture to upscale.

    Attributes:
        source: its file, or ``"-"`` for standard input.
        target: the file to write, or ``"-"`` for standard output.
        kind: the target's format, one of PNG, JPEG, WEBP and TIFF.
    """

    source: Path | str
    target: Path | str
    kind: str


@dataclass(frozen=True)
class Outcome:
    """What became of a :class:`Job`: the result's size in pixels, or why there is none."""

    source: str
    target: str
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str | None = None


def plan(
    sources: Sequence[str | Path],
    out: str | Path | None = None,
    format: str | None = None,
    scale: int = 4,
) -> list[Job]:
    """Say which files become which.

    ``photo.jpg`` becomes ``photo_x4.jpg`` beside it, and the pictures of a folder ``photos`` go to
    ``photos_x4``. A result has the format of its source, or PNG where that is BMP, GIF or a stream.
    A folder without pictures is a job of its own, which fails.

    Args:
        sources: files, folders, glob patterns, or ``"-"`` for standard input.
        out: a file for one picture, a folder for more; ``"-"`` is standard output.
        format: png, jpeg, webp or tiff.

    Raises:
        UpscaleError: contradictions among these.
    """
    suffix, found = _suffix(format), _found(sources, scale)
    if str(out) == STREAM or (out is None and [source for source, _ in found] == [STREAM]):
        if len(found) != 1:
            raise UpscaleError(f"standard output takes one picture, not {len(found)}: add --out.")
        return [Job(found[0][0], STREAM, FORMATS[suffix or _kept_suffix(found[0][0])])]

    file = Path(out) if out is not None else None
    if file and not os.path.isdir(file) and file.suffix.lower() in {*FORMATS, ".bmp", ".gif"}:
        if len(found) != 1:
            raise UpscaleError(f"--out {file} is one file, not {len(found)}: name a folder.")
        kind = FORMATS.get(file.suffix.lower())
        if kind is None or (suffix and FORMATS[suffix] != kind):
            raise UpscaleError(
                f"--out {file} does not end as a picture in {format or 'a known format'} does: "
                f"use one of {', '.join(s for s in FORMATS if suffix in (None, s))}."
            )
        return [Job(found[0][0], file, kind)]

    if file and file.suffix and not os.path.isdir(file) and str(out)[-1] not in "/\\":
        raise UpscaleError(
            f"--out {file} does not end as a picture does: use one of {', '.join(FORMATS)}, or "
            f"write {file}{os.sep} for a folder of that name."
        )
    jobs = []
    for source, into in found:
        stem = "stdin" if source == STREAM else Path(source).stem
        ending = suffix or _kept_suffix(source)
        folder = file or into or Path(source).parent
        jobs.append(Job(source, folder / f"{stem}_x{scale}{ending}", FORMATS[ending.lower()]))
    return jobs


def run(
    jobs: Sequence[Job],
    network: nn.Module,
    *,
    tile: int = TILE,
    quality: int | None = None,
    force: bool = False,
    progress: bool = False,
) -> list[Outcome]:
    """Upscale pictures one after the other; one that fails does not stop the rest.

    A result appears whole or not at all, never takes the place of its own source, and takes that of
    another file only by ``force``.

    Args:
        jobs: see :func:`plan`.
        network: see :func:`srlab.pictures.upscaling.prepare`.
        quality: of JPEG (default 95) and WebP (default: lossless), 1 to 100.
        force: overwrite files that are there from before.
        progress: show megapixels, megapixels a second and the time left, on standard error.

    Returns:
        One :class:`Outcome` a job.

    Raises:
        SrlabError: a wrong tile or quality, or a result that would take the place of a picture
            still to be read; nothing has been done.
    """
    tiling.check_cost(tile, network)
    if quality is not None and not 1 <= quality <= 100:
        raise UpscaleError(f"quality must be from 1 to 100, got {quality}: 95 is a good one.")
    _refuse_destroying_sources(jobs)
    outcomes: list[Outcome] = []
    sizes = [_expected_pixels(job, network.scale) for job in jobs]
    with _bar(sum(sizes), progress) as bar:
        task = bar.task_ids[0]
        for job, expected in zip(jobs, sizes, strict=True):
            bar.update(task, description=printable(Path(job.source).name))
            begin, before = time.perf_counter(), bar.tasks[0].completed
            name, target = _name(job.source), str(job.target)
            try:
                _refuse_making_twice(job, outcomes)
                advance = partial(bar.advance, task)
                height, width = _upscale_job(job, network, tile, quality, force, advance)
            except SrlabError as error:
                named = name in str(error) or target in str(error)
                why = str(error) if named else f"{name}: {error}"
                outcomes.append(Outcome(name, target, error=why))
                bar.update(task, completed=before, total=bar.tasks[0].total - expected)
            else:
                seconds = time.perf_counter() - begin
                outcomes.append(Outcome(name, target, width, height, seconds))
    return outcomes


def _found(sources: Sequence[str | Path], scale: int) -> list[tuple[Path | str, Path | None]]:
    """The files that are meant, each with the folder for its result, if that is not beside it."""
    found: list[tuple[Path | str, Path | None]] = []
    for source in map(str, sources):
        if source == STREAM:
            found.append((source, None))
        elif os.path.isdir(source):
            folder = Path(source).resolve()
            into = folder.with_name(f"{folder.name}_x{scale}")
            try:
                found += [(file, into) for file in list_images(source)]
            except ImageError:  # told by its job, so that the others are done
                found.append((folder, None))
        elif glob.has_magic(source) and not os.path.exists(source):
            matches = sorted(Path(m) for m in glob.glob(source, recursive=True))
            found += [(m, None) for m in matches if os.path.isfile(m)] or [(Path(source), None)]
        else:
            found.append((Path(source), None))
    return found


def _suffix(format: str | None) -> str | None:
    """Of a format by its name: ``jpeg`` -> ``.jpg``."""
    if format is None:
        return None
    suffix = {"jpeg": ".jpg", "tiff": ".tif"}.get(format.lower(), f".{format.lower()}")
    if suffix not in FORMATS:
        raise UpscaleError(f"--format {format} is unknown: use png, jpeg, webp or tiff.")
    return suffix


def _kept_suffix(source: Path | str) -> str:
    suffix = Path(source).suffix
    return suffix if suffix.lower() in FORMATS else ".png"


def _upscale_job(
    job: Job, network: nn.Module, tile: int, quality: int | None, force: bool, advance: Callable
) -> tuple[int, int]:
    """Do one job; returns the result's height and width."""
    if os.path.isdir(job.source):
        list_images(job.source)  # says why there are none
    _refuse_overwriting(job, force)
    source = BytesIO(sys.stdin.buffer.read()) if job.source == STREAM else job.source
    picture = _as_the_format_holds(read_picture(source), job.kind)
    height, width, channels = picture.samples.shape
    shape = height * network.scale, width * network.scale, channels
    check_size(job.kind, *shape[:2])

    def write(file: Any) -> None:
        rows = strips(network, picture, tile, advance)
        write_strips(file, job.kind, rows, shape, picture.samples.dtype, picture.icc, quality)

    if job.target == STREAM:
        _to_stdout(write)
    else:
        with replacing(Path(job.target)) as temporary:
            with temporary.open("wb") as file:
                if job.source != STREAM:  # nobody sees the result who may not see the source
                    mode = os.stat(job.source).st_mode & os.stat(temporary).st_mode
                    os.chmod(temporary, stat.S_IMODE(mode) | stat.S_IWUSR)
                write(file)
            _refuse_overwriting(job, force)  # it may have come while this one was made
    return shape[:2]


def _as_the_format_holds(picture: Picture, kind: str) -> Picture:
    """Without what JPEG and WebP lack: 16 bits, and the one its alpha, the other its grey."""
    if kind == "JPEG":
        picture = picture.over_white()
    if kind in ("JPEG", "WEBP"):
        picture = picture.in_8_bits()
    if kind == "WEBP" and picture.samples.shape[2] < 3:
        samples = picture.samples
        picture = Picture(np.concatenate([samples[..., :1]] * 3 + [samples[..., 1:]], axis=2))
    return picture


def _refuse_destroying_sources(jobs: Sequence[Job]) -> None:
    """Refuse a batch in which one picture's result is another picture's file."""

    def identity(file: Path | str) -> tuple[int, int] | None:
        with suppress(OSError, ValueError):
            if file != STREAM:
                status = os.stat(file)
                return status.st_dev, status.st_ino
        return None

    sources = {identity(job.source): job for job in jobs}
    sources.pop(None, None)
    for job in jobs:
        other = sources.get(identity(job.target), job)
        if other is not job:
            raise UpscaleError(
                f"the result of {_name(job.source)} would be {job.target}, which is to be upscaled "
                "itself: leave one of the two out, or name another folder by --out."
            )


def _refuse_making_twice(job: Job, outcomes: Sequence[Outcome]) -> None:
    made = {os.path.abspath(outcome.target) for outcome in outcomes if not outcome.error}
    if os.path.abspath(job.target) in made:
        raise UpscaleError(
            f"{_name(job.source)} was left out: {job.target} has just been made from another "
            "picture. Upscale it into another folder."
        )


def _refuse_overwriting(job: Job, force: bool) -> None:
    target, source = job.target, job.source
    if target == STREAM or not os.path.exists(target):
        return
    if source != STREAM and os.path.exists(source) and os.path.samefile(source, target):
        raise UpscaleError(f"{target} is the picture itself: write the result somewhere else.")
    if not force:
        raise UpscaleError(f"{target} is there already: add --force to overwrite it.")


def _to_stdout(write: Callable[[Any], None]) -> None:
    """All or nothing, by way of a temporary file, in which TIFF can also go back."""
    try:
        with tempfile.NamedTemporaryFile() as file:  # tifffile wants a name
            write(file)
            file.seek(0)
            with open(sys.stdout.fileno(), "wb", closefd=False) as out:  # leaves no unsent rest
                shutil.copyfileobj(file, out)
    except OSError as error:
        why = error.strerror or error
        raise UpscaleError(f"standard output could not be written: {why}.") from error


def _name(source: Path | str) -> str:
    return "standard input" if source == STREAM else str(source)


def _expected_pixels(job: Job, scale: int) -> int:
    """By the file's header; 0 for one that cannot be read, or not twice."""
    with suppress(SrlabError):
        if job.source != STREAM:
            height, width = picture_size(job.source)
            return height * width * scale**2
    return 0


def _bar(total: int, visible: bool) -> Any:
    """A rich progress bar, counting pixels, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Megapixels(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = f", {task.speed / 1e6:.2f} MP/s" if task.speed else ""
            return Text(f"{task.completed / 1e6:.1f} of {task.total / 1e6:.1f} MP{speed}")

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Megapixels(),
        TimeRemainingColumn(),
        console=console,
        disable=not (visible and console.is_terminal),
        redirect_stdout=False,
        transient=True,
    )
    bar.add_task("", total=total)
    return bar
