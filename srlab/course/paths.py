"""Where the course lies and where it keeps its results, from whatever folder it is run."""

import json
import os
from pathlib import Path

from srlab.errors import SrlabError
from srlab.files import write_text


class CourseError(SrlabError):
    """A chapter, a profile or a folder of the course is missing, misnamed or failed."""


def course_root() -> Path:
    """The clone: the folder that holds ``notebooks/profiles``.

    It is ``$SRLAB_COURSE`` if that is set, else the folder of the ``srlab`` package, else the
    nearest parent of the working folder.

    Raises:
        CourseError: there is none.
    """
    if chosen := os.environ.get("SRLAB_COURSE"):
        root = Path(chosen).resolve()
        if not _holds_the_course(root):
            raise CourseError(
                f"SRLAB_COURSE is {chosen}, which holds no notebooks/profiles: "
                "set it to your clone of the course, or unset it."
            )
        return root
    here = Path.cwd()
    for root in (Path(__file__).resolve().parents[2], here, *here.parents):
        if _holds_the_course(root):
            return root
    raise CourseError(
        "The course's notebooks were not found: work inside your clone of the course, "
        "or set SRLAB_COURSE to its folder."
    )


def _holds_the_course(folder: Path) -> bool:
    return (folder / "notebooks" / "profiles").is_dir()


def notebooks() -> list[Path]:
    """The numbered chapters, in order."""
    return sorted((course_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def runs_folder() -> Path:
    """Where results go: ``$SRLAB_RUNS``, else ``runs`` in the clone."""
    chosen = os.environ.get("SRLAB_RUNS")
    return Path(chosen).resolve() if chosen else course_root() / "runs"


def chapter_run(chapter: int | str, profile: str) -> Path:
    """Where a chapter keeps its checkpoints and ``metrics.json``: ``runs/<profile>/<NN>``.

    Created on demand. A later chapter finds an earlier one's results by the same call.

    Raises:
        CourseError: the folder cannot be created.
    """
    folder = runs_folder() / profile / chapter_number(chapter)
    make_folder(folder)
    return folder


def chapter_number(chapter: int | str) -> str:
    """``2`` and ``"2"`` are chapter ``"02"``."""
    return str(chapter).zfill(2)


def make_folder(folder: Path) -> None:
    """Create a folder for results, or raise :class:`CourseError` that says what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(
            f"Cannot create {folder} ({error.strerror}): set SRLAB_RUNS to a folder that you "
            "can write to."
        ) from error


def read_json(path: Path) -> dict:
    """What :func:`write_json` wrote; empty if there is no such file, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict) -> None:
    """Write a small JSON file as a whole."""
    write_text(path, json.dumps(content, indent=2) + "\n")
