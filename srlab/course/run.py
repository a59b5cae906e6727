"""Run the chapters by papermill, as a learner would by hand."""

import contextlib
import logging
import os
import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from srlab.course import paths
from srlab.course.paths import CourseError
from srlab.course.report import duration, write_index, write_page
from srlab.course.settings import check_type, declared, read_profile, refuse_unknown
from srlab.errors import require
from srlab.files import only_here

# Whose results a chapter reads if they are there: it waits for them.
READS = {"03": {"02"}, "06": {"02", "03", "05"}}
# The same where the setting `adversarial_start` is "own".
STARTS_FROM = {"04": {"03"}, "05": {"03"}}


@dataclass(frozen=True)
class Chapter:
    """A numbered notebook of the course and the names in its ``parameters`` cell."""

    number: str
    title: str
    notebook: Path
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.number} {self.title}"


class ChapterFailed(Exception):
    """A chapter stopped; ``details`` are the lines that help to put it right."""

    def __init__(self, message: str, details: str):
        super().__init__(message)
        self.details = details


def run_course(
    profile: str = "lite",
    chapters: Sequence[int | str] | None = None,
    start: int | str | None = None,
    out: Path | str | None = None,
    parameters: dict[str, Any] | None = None,
    html: bool = True,
    jobs: int = 1,
) -> Path:
    """Run chapters in order, each in a fresh kernel of this very interpreter.

    With several ``jobs``, chapters that need nothing from each other run side by side.

    Leaves in ``runs/<profile>``: the executed notebooks, a page for each and ``index.html``, and
    ``times.json`` with each chapter's status and wall time in seconds. Every chapter works in its
    own folder there, see :func:`srlab.course.paths.chapter_run`.

    Args:
        profile: name of a file in ``notebooks/profiles``.
        chapters: numbers of the chapters to run; all if not given.
        start: skip the chapters before this one.
        out: folder to use in place of ``runs``.
        parameters: values that override the profile's. Each chapter gets those it declares.
        html: make the pages.
        jobs: chapters at a time; they share the processor's cores among them.

    Returns:
        The folder with the results.

    Raises:
        SrlabError: a chapter, profile or parameter is unknown; nothing has been run.
        CourseError: a chapter failed. Its notebook up to the failing cell, its page and the index
            are there, and no chapter was begun after that.
    """
    require("course", "ipykernel", "nbconvert", "papermill")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    course = read_chapters()
    selected = _select(course, chapters, start)
    values = {**_validated(parameters or {}, selected, profile), "profile": profile}
    runs = Path(out).resolve() if out else paths.runs_folder()
    folder = runs / profile
    paths.make_folder(folder)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    done: set[Chapter] = set()
    failed: tuple[Chapter, BaseException] | None = None
    count = f"{len(selected)} chapter{'s' * (len(selected) != 1)}"
    console.print(f"{count}, profile {profile}, results in {folder}")
    width = max(len(str(chapter)) for chapter in selected)
    columns = ("{task.description}", BarColumn(), "cell", MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not console.is_terminal
    with (
        only_here(folder, "a run of the course"),
        _quiet("papermill", "traitlets"),
        Progress(*columns, console=console, transient=True, disable=hidden) as bar,
    ):
        times = {
            number: entry
            for number, entry in paths.read_json(folder / "times.json").items()
            if isinstance(entry, dict) and {"status", "seconds"} <= entry.keys()
        }
        earlier = [times.get(chapter.number, {}) for chapter in selected]
        if all(entry.get("status") == "done" for entry in earlier):
            took = duration(sum(entry["seconds"] for entry in earlier))
            console.print(f"Last time the chapters took {took}, added up.")

        def run(chapter: Chapter) -> None:
            task = bar.add_task(str(chapter), total=None)
            began = time.perf_counter()
            status, details = "stopped", ""
            try:
                _execute(chapter, values, kernels, folder, partial(bar.update, task))
                status = "done"
            except ChapterFailed as failure:
                if not kernels.stopped:
                    status, details = "failed", failure.details
                raise
            finally:
                seconds = round(time.perf_counter() - began, 1)
                bar.remove_task(task)
                with reporting:
                    if details:
                        console.print(details)
                    console.print(f"{chapter!s:{width}}   {status} in {duration(seconds)}")
                    times[chapter.number] = {"status": status, "seconds": seconds}
                    paths.write_json(folder / "times.json", times)
                    if html:
                        write_page(folder / chapter.notebook.name, chapter.notebook.parent)
                        entries = {str(c): (c.notebook.stem, times.get(c.number)) for c in course}
                        write_index(folder, entries)

        own_start = (read_profile(profile) | values).get("adversarial_start") == "own"
        reads = READS | (STARTS_FROM if own_start else {})
        kernels, reporting = Kernels(runs, jobs), threading.Lock()
        waiting, running = list(selected), dict[Future[None], Chapter]()
        with ThreadPoolExecutor(jobs) as pool, kernels:
            while waiting or running:
                for chapter in _ready(waiting, running.values(), reads)[: jobs - len(running)]:
                    waiting.remove(chapter)
                    running[pool.submit(run, chapter)] = chapter
                for finished in wait(running, return_when=FIRST_COMPLETED).done:
                    chapter = running.pop(finished)
                    if failure := finished.exception():
                        failed = failed or (chapter, failure)
                        waiting.clear()
                    else:
                        done.add(chapter)
        if failed:
            chapter, failure = failed
            if not isinstance(failure, ChapterFailed):
                raise failure
            first = next(chapter.number for chapter in selected if chapter not in done)
            same = ", with this run's other options" if parameters or out or chapters else ""
            raise CourseError(
                f"Chapter {chapter} {failure}. Put it right, then go on with "
                f"`srlab course run --from {first} --profile {profile}`{same}."
            )
    return folder


def _ready(
    waiting: Sequence[Chapter], running: Iterable[Chapter], reads: Mapping[str, set[str]]
) -> list[Chapter]:
    """Those that wait for no other one."""
    to_come = {chapter.number for chapter in (*waiting, *running)}
    return [chapter for chapter in waiting if not reads.get(chapter.number, set()) & to_come]


def read_chapters() -> list[Chapter]:
    """The chapters of this course, in order.

    Raises:
        CourseError: there are none.
    """
    files = paths.notebooks()
    if not files:
        raise CourseError(f"There are no chapters in {paths.course_root() / 'notebooks'}.")
    return [Chapter(file.name[:2], _title(file), file, tuple(declared(file))) for file in files]


def _title(notebook: Path) -> str:
    """The first heading, without the chapter's number."""
    for cell in paths.read_json(notebook).get("cells", ()):
        heading = re.match(r"# (?:chapter\s+)?(?:\d+\W+)?(.+)", "".join(cell["source"]), re.I)
        if cell["cell_type"] == "markdown" and heading:
            return heading[1].strip()
    return notebook.stem[3:].replace("_", " ").capitalize()


def _select(
    course: list[Chapter], chapters: Sequence[int | str] | None, start: int | str | None
) -> list[Chapter]:
    valid = [chapter.number for chapter in course]
    wanted = valid if chapters is None else [paths.chapter_number(c) for c in chapters]
    first = valid[0] if start is None else paths.chapter_number(start)
    for number in (*wanted, first):
        if number not in valid:
            raise CourseError(f"There is no chapter {number}: choose from {', '.join(valid)}.")
    selected = [c for c in course if c.number in wanted and c.number >= first]
    if not selected:
        raise CourseError(f"No chapter is left to run: none of those named is {first} or later.")
    return selected


def _validated(parameters: dict[str, Any], selected: list[Chapter], profile: str) -> dict[str, Any]:
    defaults = read_profile(profile)
    valid = {name for chapter in selected for name in chapter.parameters} - {"profile"}
    refuse_unknown(parameters, valid, "the chapters to run")
    values = dict(parameters)
    for name, value in parameters.items():
        check_type(name, value, defaults.get(name), profile)
        # A path is meant from where the user is, and a chapter works in its own folder.
        if isinstance(value, str) and os.sep in value and Path(value).exists():
            values[name] = str(Path(value).resolve())
    return values


def _execute(
    chapter: Chapter,
    values: dict[str, Any],
    kernels: "Kernels",
    folder: Path,
    progress: Callable[..., None],
) -> None:
    """Run one chapter in its own folder, or raise :class:`ChapterFailed`."""
    from papermill import PapermillExecutionError, execute_notebook

    output = folder / chapter.notebook.name
    work = folder / chapter.number
    paths.make_folder(work)
    given = {name: values[name] for name in chapter.parameters if name in values}
    cells = len(paths.read_json(chapter.notebook)["cells"]) + bool(given)
    current = 0

    def on_cell_start(cell: Any, cell_index: int) -> None:
        nonlocal current
        if kernels.stopped:
            raise ChapterFailed("was stopped", "")
        current = cell_index + 1
        progress(completed=cell_index, total=cells)

    try:
        execute_notebook(
            _literal(chapter.notebook),
            _literal(output),
            parameters=given,
            # papermill's own `cwd` would move this whole process, and chapters that run beside it
            resources={"metadata": {"path": str(work)}},
            kernel_name="python3",
            language="python",
            kernel_manager_class=kernels.manager,
            on_cell_start=on_cell_start,
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        at = f"cell [{error.exec_count}]"
        message = f"{error.ename}: {error.evalue}"
        source = error.source.splitlines()
        source = source[:5] + ["..."] * (len(source) > 5)
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
        lines = "\n".join([*source, "", *(trace[-8:] or [message])])
        raise ChapterFailed(
            f"stopped in {at} with {message.splitlines()[0]}",
            f"{at} of {output}:\n{textwrap.indent(lines, '    ')}",
        ) from None
    except RuntimeError as error:
        raise ChapterFailed(
            f"lost its kernel in cell {current} of {cells}, most often because memory ran out",
            f"{output}: {error}",
        ) from None


def _literal(path: Path) -> str:
    """papermill takes braces in a path for a template."""
    return str(path).replace("{", "{{").replace("}", "}}")


def environment() -> dict[str, str]:
    """Variables by which a process, wherever it starts, finds this course, its data, this srlab."""
    package = str(Path(__file__).resolve().parents[2])
    data = os.path.expanduser(os.environ.get("SRLAB_DATA", "")).split(os.pathsep)
    return {
        "SRLAB_COURSE": str(paths.course_root()),
        "SRLAB_DATA": os.pathsep.join(map(os.path.abspath, filter(None, data))),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }


class Kernels:
    """Kernels of this interpreter, whatever kernels are registered for the user, and its srlab.

    When the ``with`` block is left early, by Ctrl-C for example, those that still run are killed.
    """

    def __init__(self, runs: Path, jobs: int):
        from ipykernel.kernelspec import get_kernel_dict
        from jupyter_client import AsyncKernelManager
        from jupyter_client.kernelspec import KernelSpec

        env = {**environment(), "SRLAB_RUNS": str(runs)}
        if jobs > 1:
            env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        command = get_kernel_dict(extra_arguments=["--log-level=CRITICAL"])
        managers: list[AsyncKernelManager] = []
        self._managers, self.stopped = managers, False

        class ThisInterpreter(AsyncKernelManager):
            kernel_spec = KernelSpec(**command, env=env)

            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(*args, **kwargs)
                managers.append(self)

        self.manager = ThisInterpreter

    def __enter__(self) -> "Kernels":
        return self

    def __exit__(self, *problem: object) -> None:
        self.stopped = problem[0] is not None
        for manager in self._managers:
            process = getattr(manager.provisioner, "process", None)
            if process and process.poll() is None:
                process.kill()


@contextlib.contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    before = [(logger, logger.level) for logger in map(logging.getLogger, loggers)]
    try:
        for logger, _ in before:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
