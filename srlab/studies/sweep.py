"""Many runs of a chapter: a grid of parameters, or a study that looks for the best.

A sweep is written down in a small YAML file::

    chapter: 5
    profile: lite
    parameters: {wgan_steps: 100}        # the same in every run
    grid:                                # every combination of
      wgan_lr: [1.0e-5, 1.0e-4]
      seed: [0, 1, 2]

or, in place of ``grid``, a study with Optuna::

    study:
      trials: 20
      maximize: wdrn_vgg_wgan            # or minimize; a key of the chapter's metrics.json
      ranges:
        wgan_lr: {low: 1.0e-6, high: 1.0e-3, log: true}
        critic_steps: {low: 1, high: 5}
        features: [vgg19-slim, vgg19]

Each run is a papermill process of its own in its own folder, ``<out>/<key>``, tried twice if need
be. ``<out>/manifest.json`` knows which are done: the same command goes on where a killed sweep
stopped. ``<out>/results.csv`` holds every run's parameters and metrics.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srlab.course import paths
from srlab.course.paths import CourseError
from srlab.course.run import read_chapters
from srlab.course.settings import check_type, read_profile, read_yaml, refuse_unknown
from srlab.errors import SrlabError
from srlab.files import only_here, write_text

ATTEMPTS = 2
Start = Callable[[dict[str, Any]], Future]


class SweepError(SrlabError):
    """A sweep's file is wrong, or some of its runs failed."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says, checked.

    Attributes:
        chapter: its number, two digits.
        profile: name of a file in ``notebooks/profiles``.
        parameters: values that all runs have in common.
        grid: name -> values; empty for a study.
        ranges: name -> range, see :mod:`srlab.studies.tuning`; empty for a grid.
        trials: of the study.
        metric, direction: what it looks at, ``"maximize"`` or ``"minimize"``.
    """

    chapter: str
    profile: str
    parameters: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    ranges: dict[str, Any] = field(default_factory=dict)
    trials: int = 0
    metric: str = ""
    direction: str = ""

    def runs(self) -> list[dict[str, Any]]:
        """The parameters of each run of a grid."""
        combinations = itertools.product(*self.grid.values())
        return [self.parameters | dict(zip(self.grid, c, strict=True)) for c in combinations]

    def key(self, parameters: dict[str, Any]) -> str:
        """A run's name: a hash of chapter, profile and parameters, whatever their order."""
        what = {"chapter": self.chapter, "profile": self.profile, "parameters": parameters}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def read_sweep(file: Path | str) -> Sweep:
    """Read and check a sweep's file; nothing has been run when this complains.

    Raises:
        SweepError: it is missing, not YAML, or says something that no sweep can be.
        SettingsError: a parameter is misspelt, or a value is of another type than the profile's.
        CourseError: there is no such chapter.
    """
    file = Path(file)
    said = read_yaml(file, SweepError)
    said = _mapping(said, f"{file}", {"chapter", "profile", "parameters", "grid", "study"})
    if "chapter" not in said:
        raise SweepError(f"{file} does not say which chapter to run: add `chapter: 5`.")
    if ("grid" in said) == ("study" in said):
        raise SweepError(f"{file} must hold either `grid:` or `study:`, one of the two.")

    number = paths.chapter_number(said["chapter"])
    chapters = {chapter.number: chapter for chapter in read_chapters()}
    if number not in chapters:
        raise CourseError(f"There is no chapter {number}: choose from {', '.join(chapters)}.")
    profile = str(said.get("profile", "lite"))
    defaults = read_profile(profile)
    parameters = _mapping(said.get("parameters", {}), f"{file}: parameters")
    grid = _mapping(said.get("grid", {}), f"{file}: grid")
    study = _mapping(
        said.get("study", {}), f"{file}: study", {"trials", "maximize", "minimize", "ranges"}
    )
    ranges = _mapping(study.get("ranges", {}), f"{file}: ranges")
    if "study" in said:
        _check_study(study, file)
    elif not grid:
        raise SweepError(f"{file}: grid is empty; write a list of values for each parameter.")

    names = [*parameters, *grid, *ranges]
    valid = {*chapters[number].parameters} - {"profile"}
    refuse_unknown(names, valid, f"chapter {number} in {file.name}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SweepError(f"{file}: {twice[0]} is given twice; keep one of the two.")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise SweepError(f"{file}: {name} needs a list of values, [0, 1], got {values!r}.")
    tried = [(name, [value]) for name, value in parameters.items()]
    for name, values in [*tried, *grid.items(), *_values(ranges)]:
        for value in values:
            if not isinstance(value, str | int | float):
                raise SweepError(f"{file}: {name} cannot be {value!r}; write a number or a text.")
            check_type(name, value, defaults.get(name), profile)
    direction = "minimize" if "minimize" in study else "maximize"
    return Sweep(
        number, profile, parameters, grid, ranges,
        study.get("trials", 0), str(study.get(direction, "")), direction,
    )  # fmt: skip


def run_sweep(
    file: Path | str, out: Path | str | None = None, jobs: int = 1, ray: str | None = None
) -> Path:
    """Run what a sweep's file describes, or what is left of it.

    Args:
        file: the YAML file.
        out: folder for the results; by default ``runs/sweeps/<name of the file>``.
        jobs: runs at a time, on this computer. With ``ray``, as many as the cluster takes for a
            grid; of a study, ``jobs`` trials at a time.
        ray: address of a Ray cluster whose machines see ``out`` and the course under the same path,
            or ``"local"`` for one on this computer.

    Returns:
        The folder with ``manifest.json``, ``results.csv`` and the runs' folders.

    Raises:
        SweepError: the file is wrong (nothing has been run), or runs failed (all others are done).
    """
    sweep = read_sweep(file)
    if jobs < 1:
        raise SweepError(f"--jobs must be at least 1, got {jobs}.")
    folder = Path(out or paths.runs_folder() / "sweeps" / Path(file).stem).resolve()
    paths.make_folder(folder)
    with only_here(folder, "a sweep"), _cluster(ray) if ray else _here(jobs) as start:
        manifest = Manifest(folder / "manifest.json")
        if sweep.grid:
            keys = _run_grid(sweep, folder, manifest, start)
        else:
            keys = _run_study(sweep, folder, manifest, start, jobs)
        _write_results(folder / "results.csv", manifest, keys)
    failed = [key for key in keys if manifest.runs[key]["status"] != "done"]
    print(f"{len(keys) - len(failed)} of {len(keys)} runs done; {folder / 'results.csv'}")
    if failed:
        listed = "".join(f"\n  {key} {manifest.runs[key]['error']}" for key in failed)
        raise SweepError(
            f"{len(failed)} of {len(keys)} runs failed twice (log.txt in each one's folder in "
            f"{folder}); the same command tries them again:{listed}"
        )
    return folder


class Manifest:
    """Which runs are done or failed, by their keys, in one file that is always whole.

    A run is ``{"parameters", "status", "attempts", "seconds", "metrics", "error"}``.
    """

    def __init__(self, path: Path):
        self.path = path
        self.runs = paths.read_json(path)

    def done(self, key: str) -> bool:
        return self.runs.get(key, {}).get("status") == "done"

    def add(self, key: str, entry: dict[str, Any]) -> None:
        self.runs[key] = entry
        paths.write_json(self.path, self.runs)


def _run_grid(sweep: Sweep, folder: Path, manifest: Manifest, start: Start) -> list[str]:
    planned = {sweep.key(parameters): parameters for parameters in sweep.runs()}
    left = [key for key in planned if not manifest.done(key)]
    print(f"{len(planned)} runs, {len(planned) - len(left)} of them done before")
    waiting = {start(_job(sweep, folder, key, planned[key])): key for key in left}
    while waiting:
        for finished in wait(waiting, return_when=FIRST_COMPLETED).done:
            key = waiting.pop(finished)
            _note(manifest, key, planned[key], _outcome(finished))
    return list(planned)


def _run_study(
    sweep: Sweep, folder: Path, manifest: Manifest, start: Start, jobs: int
) -> list[str]:
    import optuna
    from optuna.trial import TrialState

    from srlab.studies.tuning import open_study, suggest

    study = open_study(folder, sweep.ranges, sweep.direction)
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # of a sweep that was killed
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)

    keys: list[str] = []
    waiting: dict[Future, tuple[Any, str, dict[str, Any]]] = {}
    for trial in study.get_trials(states=[TrialState.COMPLETE]):
        keys.append(sweep.key(sweep.parameters | trial.params))
    print(f"{sweep.trials} trials, {len(keys)} of them done before")
    asked = len(keys)
    while asked < sweep.trials or waiting:
        while asked < sweep.trials and len(waiting) < jobs:
            # A sampler with one seed would propose the same in every sweep that goes on.
            study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
            trial = study.ask()
            parameters = sweep.parameters | suggest(trial, sweep.ranges)
            key = sweep.key(parameters)
            asked += 1
            if key not in keys:
                keys.append(key)
            if manifest.done(key):  # a list of few values is soon used up
                _tell(study, trial, sweep, manifest.runs[key])
                continue
            waiting[start(_job(sweep, folder, key, parameters))] = (trial, key, parameters)
        if waiting:
            for finished in wait(waiting, return_when=FIRST_COMPLETED).done:
                trial, key, parameters = waiting.pop(finished)
                outcome = _outcome(finished)
                if outcome["status"] == "done" and _score(sweep, outcome) is None:
                    found = ", ".join(outcome["metrics"]) or "none"
                    outcome |= {
                        "status": "failed",
                        "error": f"its metrics.json has no number {sweep.metric} (it has {found})",
                    }
                _note(manifest, key, parameters, outcome)
                _tell(study, trial, sweep, outcome)
    done = study.get_trials(states=[TrialState.COMPLETE])
    if done:
        print(f"best {sweep.metric}: {study.best_value:.4g} with {study.best_params}")
    return keys


def _outcome(finished: Future) -> dict[str, Any]:
    """Of a run; also of one whose machine was lost so often that its cluster gave up."""
    try:
        return finished.result()
    except Exception as error:  # whatever a cluster throws
        reason = str(error).strip().split("\n")[0]
        return {"status": "failed", "seconds": 0.0, "error": f"{type(error).__name__}: {reason}"}


def _score(sweep: Sweep, outcome: dict[str, Any]) -> float | None:
    value = outcome.get("metrics", {}).get(sweep.metric)
    return value if isinstance(value, int | float) else None


def _tell(study: Any, trial: Any, sweep: Sweep, outcome: dict[str, Any]) -> None:
    from optuna.trial import TrialState

    if outcome["status"] == "done":
        study.tell(trial, _score(sweep, outcome))
    else:
        study.tell(trial, state=TrialState.FAIL)


def _note(manifest: Manifest, key: str, parameters: dict[str, Any], outcome: dict) -> None:
    manifest.add(key, {"parameters": parameters, **outcome})
    print(f"{key} {outcome['status']} in {outcome['seconds']:.0f} s: {parameters}", flush=True)


def _job(sweep: Sweep, folder: Path, key: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """All that a run needs to know, wherever it is run."""
    package = str(Path(__file__).resolve().parents[2])
    data = os.path.expanduser(os.environ.get("SRLAB_DATA", "")).split(os.pathsep)
    return {
        "folder": str(folder / key),
        "metrics": f"{sweep.profile}/{sweep.chapter}/metrics.json",
        "course": {
            "profile": sweep.profile,
            "chapters": [sweep.chapter],
            "out": str(folder / key),
            "parameters": parameters,
            "html": False,
        },
        "environment": {
            "SRLAB_COURSE": str(paths.course_root()),
            "SRLAB_DATA": os.pathsep.join(map(os.path.abspath, filter(None, data))),
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        },
    }


def execute(job: dict[str, Any], stop: threading.Event | None = None) -> dict[str, Any]:
    """Run a job in a process of its own, once more if it fails; how it went and its metrics."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    stop = stop or threading.Event()
    began = time.perf_counter()
    code, attempt = 1, 0
    while code and attempt < ATTEMPTS and not stop.is_set():
        attempt += 1
        code = _attempt(job, folder / "log.txt", stop)
    outcome: dict[str, Any] = {
        "status": "failed" if code else "done",
        "attempts": attempt,
        "seconds": round(time.perf_counter() - began, 1),
        "metrics": paths.read_json(folder / job["metrics"]),
    }
    if code:
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        outcome["error"] = next((line for line in lines[::-1] if line.strip()), "no message")
    return outcome


def _attempt(job: dict[str, Any], log: Path, stop: threading.Event) -> int:
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "srlab.studies.sweep"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | job["environment"],
            text=True,
            start_new_session=True,  # Ctrl-C is for the sweep, which ends its runs itself
        )
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            while process.poll() is None and not stop.wait(0.1):
                pass
        finally:
            process.kill()
            code = process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        return code


def child() -> int:
    """What the process of a run does: its job comes as one line on standard input.

    The line's other end stays open as long as somebody waits for this run. When that one is killed,
    so is this process: no run goes on unseen and meets its own repetition in one folder.
    """
    from srlab.course.run import run_course

    job = json.loads(sys.stdin.readline())

    def leave_with_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        run_course(**job["course"])
    except SrlabError as error:
        print(str(error).split("\n")[0], flush=True)
        return 1
    return 0


@contextlib.contextmanager
def _here(jobs: int) -> Iterator[Start]:
    """Runs as processes of this computer, ``jobs`` at a time."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        yield lambda job: pool.submit(execute, job, stop)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Start]:
    """Runs as tasks of a Ray cluster, one core each; a task whose worker dies is started again."""
    try:
        import ray
    except ImportError as error:
        raise SweepError(
            "--ray needs Ray: install it with `pip install srlab[cluster]`."
        ) from error

    package = str(Path(__file__).resolve().parents[2])
    try:
        ray.init(
            None if address == "local" else address,
            runtime_env={"env_vars": {"PYTHONPATH": package}},
            log_to_driver=False,
            include_dashboard=False if address == "local" else None,
        )
    except Exception as error:  # Ray raises plain ones, too
        reason = str(error).strip().split("\n")[0]
        raise SweepError(f"Cannot start or reach Ray ({address}): {reason}") from error
    try:
        task = ray.remote(num_cpus=1, max_retries=5)(execute)
        yield lambda job: task.remote(job).future()
    finally:
        ray.shutdown()


def _write_results(path: Path, manifest: Manifest, keys: list[str]) -> None:
    """One row a run: key, status, parameters, and those of its metrics that are numbers."""
    runs = {key: manifest.runs[key] for key in keys}
    parameters = list(dict.fromkeys(name for run in runs.values() for name in run["parameters"]))
    flat = {key: dict(_numbers(run.get("metrics", {}))) for key, run in runs.items()}
    metrics = list(dict.fromkeys(name for row in flat.values() for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "status", *parameters, *metrics])
    for key, run in runs.items():
        given = [run["parameters"].get(name, "") for name in parameters]
        writer.writerow([key, run["status"], *given, *(flat[key].get(m, "") for m in metrics)])
    write_text(path, text.getvalue())


def _numbers(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _mapping(value: Any, where: str, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise SweepError(f"{where} must hold `name: value` lines, got {value!r}.")
    if known:
        for name in value:
            if name not in known:
                raise SweepError(
                    f"{where}: unknown {name!r}; it may hold {', '.join(sorted(known))}."
                )
    return value


def _check_study(study: dict[str, Any], file: Path) -> None:
    from srlab.studies.tuning import check_range

    trials = study.get("trials")
    if type(trials) is not int or trials < 1:
        raise SweepError(f"{file}: study needs `trials:`, a whole number above 0, got {trials!r}.")
    if ("maximize" in study) == ("minimize" in study):
        raise SweepError(
            f"{file}: study needs `maximize:` or `minimize:`, one of the two, with a key of the "
            "chapter's metrics.json."
        )
    if not study.get("ranges"):
        raise SweepError(f"{file}: study needs `ranges:`, what may be tried for each parameter.")
    for name, allowed in study["ranges"].items():
        check_range(name, allowed)


def _values(ranges: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """What a range says about its values: all of them, or the two ends."""
    for name, allowed in ranges.items():
        listed = [allowed["low"], allowed["high"]] if isinstance(allowed, dict) else list(allowed)
        yield name, listed


if __name__ == "__main__":
    sys.exit(child())
