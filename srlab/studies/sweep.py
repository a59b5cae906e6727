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

Either way the runs are trials of an Optuna study in ``<out>/study.journal``, each with its
``parameters``, ``metrics`` and ``error`` as attributes and with its folder, ``<out>/run-0003``. The
same command goes on where a killed sweep stopped. ``<out>/results.csv`` holds a row for each run.
"""

import contextlib
import csv
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlab.course import paths
from srlab.course.paths import CourseError
from srlab.course.run import environment, read_chapters, run_course
from srlab.course.settings import check_type, read_profile, read_yaml, refuse_unknown
from srlab.errors import SrlabError, require
from srlab.files import only_here, whole

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 2
Start = Callable[[dict[str, Any]], Future]


class SweepError(SrlabError):
    """A sweep's file is wrong, or some of its runs failed."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says, checked: a grid, or ranges and the other fields of a study."""

    chapter: str
    profile: str
    parameters: dict[str, Any]
    grid: dict[str, list[Any]]
    ranges: dict[str, Any]
    trials: int
    metric: str
    direction: str

    def runs(self) -> list[dict[str, Any]]:
        """The parameters of each run of a grid."""
        combinations = itertools.product(*map(dict.fromkeys, self.grid.values()))
        runs = [self.parameters | dict(zip(self.grid, c, strict=True)) for c in combinations]
        return runs if self.grid else []


def read_sweep(file: Path | str) -> Sweep:
    """Read and check a sweep's file; nothing has been run when this complains.

    Raises:
        SweepError: it is missing, not YAML, or says something that no sweep can be.
        TuningError: a range of a study is no range.
        SettingsError: a parameter is misspelt, or a value is of another type than the profile's.
        CourseError: there is no such chapter.
    """
    file = Path(file)

    def mapping(value: Any, where: str, *known: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise SweepError(f"{file}{where} must hold `name: value` lines, got {value!r}.")
        if known and (unknown := [name for name in value if name not in known]):
            raise SweepError(
                f"{file}{where}: unknown {unknown[0]!r}; it may hold {', '.join(known)}."
            )
        return value

    said = read_yaml(file, SweepError)
    said = mapping(said, "", "chapter", "grid", "parameters", "profile", "study")
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
    parameters = mapping(said.get("parameters", {}), ": parameters")
    grid = mapping(said.get("grid", {}), ": grid")
    study = mapping(said.get("study", {}), ": study", "maximize", "minimize", "ranges", "trials")
    ranges = mapping(study.get("ranges", {}), ": ranges")
    direction = "minimize" if "minimize" in study else "maximize"
    trials, metric = study.get("trials", 0), study.get(direction, "")
    if "grid" in said and not grid:
        raise SweepError(f"{file}: grid is empty; write a list of values for each parameter.")
    if "study" in said:
        one = isinstance(metric, str) and metric and not {"maximize", "minimize"} <= study.keys()
        if type(trials) is not int or trials < 1 or not one or not ranges:
            raise SweepError(
                f"{file}: study needs `trials:`, a whole number above 0, `maximize:` or "
                "`minimize:`, one of the two, with a key of the chapter's metrics.json, and "
                "`ranges:`, what may be tried of each parameter."
            )

    names = [*parameters, *grid, *ranges]
    valid = {*chapters[number].parameters} - {"profile"}
    refuse_unknown(names, valid, f"chapter {number} in {file.name}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise SweepError(f"{file}: {twice[0]} is given twice; keep one of the two.")
    listed = {name: [value] for name, value in parameters.items()} | grid
    for name, allowed in ranges.items():
        from srlab.studies.tuning import check_range

        check_range(name, allowed)
        ends = isinstance(allowed, dict)
        listed[name] = [allowed["low"], allowed["high"]] if ends else allowed
    for name, values in listed.items():
        if not isinstance(values, list) or not values:
            raise SweepError(f"{file}: {name} needs a list of values, [0, 1], got {values!r}.")
        for value in values:
            finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max
            if not finite and not isinstance(value, str):
                raise SweepError(f"{file}: {name} cannot be {value!r}; write a number or a text.")
            check_type(name, value, defaults.get(name), profile)
    return Sweep(number, profile, parameters, grid, ranges, trials, metric, direction)


def run_sweep(
    file: Path | str, out: Path | str | None = None, jobs: int = 1, ray: str | None = None
) -> Path:
    """Run what a sweep's file describes, or what is left of it.

    Args:
        file: the YAML file. Later, values may be added to a grid, and trials to a study.
        out: folder for the results; by default ``runs/sweeps/<name of the file>``.
        jobs: runs at a time, on this computer. With ``ray``, as many as the cluster takes for a
            grid; of a study, ``jobs`` trials at a time.
        ray: address of a Ray cluster whose machines see ``out`` and the course under the same path,
            or ``"local"`` for one on this computer.

    Returns:
        The folder with ``study.journal``, ``results.csv`` and the runs' folders.

    Raises:
        SweepError: the file is wrong (nothing has been run), or runs failed (all others are done).
        TuningError: the folder holds runs of another chapter, profile or study.
        InUse: another process does a sweep in that folder.
    """
    from srlab.studies.tuning import open_study

    sweep = read_sweep(file)
    if jobs < 1:
        raise SweepError(f"--jobs must be at least 1, got {jobs}.")
    folder = Path(out or paths.runs_folder() / "sweeps" / Path(file).stem).resolve()
    paths.make_folder(folder)
    about: dict[str, Any] = {"chapter": sweep.chapter, "profile": sweep.profile}
    if sweep.ranges:
        about |= {"parameters": sweep.parameters, "metric": sweep.metric}
    with only_here(folder, "a sweep"), _cluster(ray) if ray else _here(jobs) as start:
        study = open_study(folder, sweep.ranges, sweep.direction, about=about)
        todo = _trials(study, sweep)
        at_once = len(sweep.runs()) if ray and sweep.grid else jobs
        running: dict[Future, optuna.Trial] = {}
        while True:
            for trial in itertools.islice(todo, at_once - len(running)):
                job = {"profile": sweep.profile, "chapters": [sweep.chapter], "html": False}
                job["out"] = str(folder / trial.user_attrs["run"])
                job["parameters"] = trial.user_attrs["parameters"]
                running[start(job)] = trial
            if not running:
                break
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                _tell(study, sweep, running.pop(finished), finished)
        runs = _runs(study, sweep)
        _write_results(folder / "results.csv", runs)
    failed = [trial.user_attrs for trial in runs if not _done(trial)]
    print(f"{len(runs) - len(failed)} of {len(runs)} runs done; {folder / 'results.csv'}")
    if sweep.ranges and len(failed) < len(runs):
        print(f"best {sweep.metric}: {study.best_value:.4g} with {study.best_params}")
    if failed:
        listed = "".join(f"\n  {run['run']} {run['error']}" for run in failed)
        raise SweepError(
            f"{len(failed)} of {len(runs)} runs failed twice (log.txt in each one's folder in "
            f"{folder}); the same command tries them again:{listed}"
        )
    return folder


def _done(trial: "optuna.trial.FrozenTrial") -> bool:
    return trial.state.name == "COMPLETE"


def _runs(study: "optuna.Study", sweep: Sweep) -> list["optuna.trial.FrozenTrial"]:
    """The last trial of each run that was begun; of a grid, as far as it is still in the file."""
    trials = study.get_trials(deepcopy=False)
    last = {trial.user_attrs["run"]: trial for trial in trials if "run" in trial.user_attrs}
    planned = sweep.runs()
    return [t for t in last.values() if sweep.ranges or t.user_attrs["parameters"] in planned]


def _trials(study: "optuna.Study", sweep: Sweep) -> Iterator["optuna.Trial"]:
    """Ask for what is left, one trial after another, each with ``parameters`` and ``run``."""
    import optuna
    from optuna.trial import TrialState

    from srlab.studies.tuning import suggest

    # Optuna's journal has no heartbeat, and needs none here: whoever holds the folder's lock knows
    # that a trial which was begun and not finished belongs to a sweep that was killed.
    while study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.ask()
    for dead in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.tell(dead.number, state=TrialState.FAIL)
    runs, planned = _runs(study, sweep), sweep.runs()
    begun = [trial.user_attrs["parameters"] for trial in runs]
    left = [trial.user_attrs["parameters"] for trial in runs if not _done(trial)]
    left += [parameters for parameters in planned if parameters not in begun]
    done = sum(map(_done, runs if planned else study.get_trials(deepcopy=False)))
    print(f"{len(planned) or sweep.trials} runs, {done} of them done before")
    new = sweep.trials - done - len(left)
    for given in itertools.chain(left, (None for _ in range(new))):
        if given:
            study.enqueue_trial({name: given[name] for name in sweep.ranges})
        # A sampler with one seed would propose the same in every sweep that goes on.
        study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        parameters = (given or sweep.parameters) | suggest(trial, sweep.ranges)
        finished = [run for run in _runs(study, sweep) if run.state.is_finished()]
        known = next((t for t in finished if t.user_attrs["parameters"] == parameters), None)
        if known and _done(known):  # a list of few values is soon used up
            study.tell(trial, known.value)
            continue
        trial.set_user_attr("parameters", parameters)
        trial.set_user_attr("run", known.user_attrs["run"] if known else f"run-{trial.number:04}")
        yield trial


def _tell(study: "optuna.Study", sweep: Sweep, trial: "optuna.Trial", finished: Future) -> None:
    from optuna.trial import TrialState

    try:
        metrics, error = finished.result()
    except Exception as lost:  # whatever a cluster throws that gives up
        metrics, error = {}, f"{type(lost).__name__}: {lost}".split("\n")[0]
    score = metrics.get(sweep.metric) if sweep.ranges else 0.0  # a grid has no objective
    if not error and not (isinstance(score, int | float) and math.isfinite(score)):
        found = ", ".join(metrics) or "none"
        error = f"its metrics.json has no number {sweep.metric} (it has {found})"
    trial.set_user_attr("metrics", metrics)
    trial.set_user_attr("error", error)
    state = TrialState.FAIL if error else TrialState.COMPLETE
    told = study.tell(trial, None if error else score, state)
    run, parameters = (told.user_attrs[name] for name in ("run", "parameters"))
    seconds = told.duration.total_seconds()
    print(f"{run} {'failed' if error else 'done'} in {seconds:.0f} s: {parameters}", flush=True)


def execute(job: dict[str, Any], stop: threading.Event | None = None) -> tuple[dict[str, Any], str]:
    """Run a chapter in a process of its own, once more if it fails.

    Args:
        job: arguments of :func:`srlab.course.run.run_course`.
        stop: ends the process when it is set.

    Returns:
        Its metrics, and why it failed; ``""`` if it did not.
    """
    folder, stop = Path(job["out"]), stop or threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        with (
            (folder / "log.txt").open("ab") as log,
            subprocess.Popen(
                [sys.executable, "-m", "srlab.studies.sweep", json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | environment(),
                start_new_session=True,  # Ctrl-C is for the sweep, which ends its runs itself
            ) as process,
        ):
            while process.poll() is None and not stop.wait(0.1):
                pass
            process.kill()
        if process.returncode == 0 or stop.is_set():
            break
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    error = next(filter(str.strip, reversed(lines)), "no message") if process.returncode else ""
    metrics = paths.read_json(folder / job["profile"] / job["chapters"][0] / "metrics.json")
    return metrics, error


def child(job: str) -> int:
    """What the process of a run does; when nobody waits for it any more, it ends.

    So a killed sweep leaves no run behind that would write into the folder of its repetition:
    whoever started the run holds the other end of its standard input, and lets go when killed.
    """

    def leave_with_parent() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        run_course(**json.loads(job))
    except SrlabError as error:
        print(str(error).split("\n")[0], flush=True)
        return 1
    return 0


@contextlib.contextmanager
def _here(jobs: int) -> Iterator[Start]:
    """Runs as processes of this computer, ``jobs`` at a time."""
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield lambda job: pool.submit(execute, job, stop)
        finally:
            stop.set()


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Start]:
    """Runs as tasks of a Ray cluster, one core each; a task whose worker dies is started again."""
    require("cluster", "ray")
    import ray

    try:
        ray.init(
            None if address == "local" else address,
            runtime_env={"env_vars": environment()},
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


def _write_results(path: Path, runs: list["optuna.trial.FrozenTrial"]) -> None:
    """One row a run: its name, status, parameters, and those of its metrics that are numbers."""
    rows = []
    for trial in runs:
        row = {"run": trial.user_attrs["run"], "status": "done" if _done(trial) else "failed"}
        row |= trial.user_attrs["parameters"]
        metrics = _numbers(trial.user_attrs["metrics"])
        rows.append(row | {name: value for name, value in metrics if name not in row})
    names = dict.fromkeys(name for row in rows for name in row)
    with whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _numbers(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


if __name__ == "__main__":
    sys.exit(child(sys.argv[1]))
