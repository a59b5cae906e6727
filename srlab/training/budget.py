"""Minutes in place of steps, and this machine's fastest engine: both by a short measurement."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from srlab.errors import SrlabError
from srlab.files import write_text
from srlab.training.engine import ENGINES, Engine
from srlab.training.state import writing

PLAN = "plan.json"
WARM_UP, MEASURED = 10, 10  # steps; the first ones set up what later ones find ready
# A compiler takes half a minute before it gains anything.
WORTH_COMPILING = 300.0  # seconds of training


@dataclass(frozen=True)
class Plan:
    """How a run is to go; kept in its folder, so that it goes on in the same way.

    Attributes:
        engine: a name in :data:`srlab.training.engine.ENGINES`.
        steps: of the whole run.
        seconds_per_step: as measured; 0 if nothing was.
        minutes: the budget that the steps come from; None if they were given.
    """

    engine: str
    steps: int
    seconds_per_step: float = 0.0
    minutes: float | None = None


# Trains so many steps with this precision and engine in this folder, and calls on_step after each.
Trial = Callable[[str, Engine, int, Path, Callable[[int, Any], None]], Any]
Mean = Callable[[float], float]


def make(
    folder: Path,
    trial: Trial,
    device: torch.device,
    *,
    engine: str = "auto",
    steps: int | None = None,
    minutes: float | None = None,
    agree: Mean = float,
    writes: bool = True,
) -> Plan:
    """The plan that the folder holds already, or a new one.

    A few steps with each engine tell which is the fastest; the compiled ones are tried if the run
    is long enough to pay for the compiler. What is left of the minutes after measuring is divided
    by the time of a step.

    Args:
        folder: of the run. The plan is kept there as ``plan.json``.
        engine: a name, or ``"auto"`` to measure.
        steps, minutes: one of the two; the other is None.
        agree: the mean over all processes of a number of each, so that all plan the same.
        writes: False leaves the file, and the line about what was chosen, to another process.

    Raises:
        SrlabError: an unknown engine, no positive budget, another budget or engine than the
            folder's plan, or no engine works.
        CheckpointError: the folder cannot be written to.
    """
    begin = time.perf_counter()
    if engine != "auto" and engine not in ENGINES:
        raise SrlabError(f"--engine must be auto or one of {', '.join(ENGINES)}, got {engine!r}.")
    if minutes is not None and not minutes > 0:
        raise SrlabError(f"--minutes must be positive, got {minutes}.")
    if kept := read(folder):
        if minutes is not None and minutes != kept.minutes:
            had = f"{kept.minutes:g} minutes" if kept.minutes else f"{kept.steps:,} steps"
            raise SrlabError(
                f"{folder} holds a run planned for {had}, not for {minutes:g} minutes: give the "
                "same budget to go on with it, or choose another folder."
            )
        if engine not in ("auto", kept.engine):
            raise SrlabError(
                f"{folder} holds a run with the engine {kept.engine}, not {engine}: leave "
                "--engine out to go on with it, or choose another folder."
            )
        return kept
    chosen, seconds = engine, 0.0
    if engine == "auto" and minutes is None and steps is not None and steps < 200:
        chosen = "fp32"  # over before it is measured
    elif engine == "auto" or minutes is not None:
        found = _measured(trial, device, engine, steps, minutes, agree)
        chosen = min(found, key=lambda name: found[name])
        seconds = found[chosen]
        if writes:
            listed = ", ".join(f"{name} {1e3 * found[name]:.1f}" for name in found)
            print(f"engine {chosen} (ms a step: {listed})", flush=True)
    if minutes is not None:
        left = 60 * minutes - agree(time.perf_counter() - begin)
        steps = max(int(0.97 * left / seconds), 1)  # 3 % for validation and checkpoints
    plan = Plan(chosen, int(steps or 0), seconds, minutes)
    if writes:
        with writing(folder / PLAN):
            write_text(folder / PLAN, json.dumps(asdict(plan), indent=2) + "\n")
    return plan


def read(folder: Path) -> Plan | None:
    """The plan in a run's folder; None if there is none that can be read."""
    try:
        return Plan(**json.loads((folder / PLAN).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _measured(
    trial: Trial,
    device: torch.device,
    engine: str,
    steps: int | None,
    minutes: float | None,
    agree: Mean,
) -> dict[str, float]:
    """Seconds a step of the engines that are worth trying and work here."""
    suited = [name for name, choice in ENGINES.items() if device.type in choice.devices]
    names = suited if engine == "auto" else [engine]
    found: dict[str, float] = {}
    problem = ""
    for name in names:
        choice = ENGINES[name]
        if found and choice.engine.compile != "off":
            best = min(found.values())
            seconds = 60 * minutes if minutes is not None else best * (steps or 0)
            if seconds < WORTH_COMPILING:
                continue
        try:
            found[name] = agree(_seconds_per_step(trial, choice.precision, choice.engine))
        except SrlabError:  # the pictures or the settings are wrong, not the engine
            raise
        except Exception as error:  # what a machine cannot do is left out
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        finally:
            torch.compiler.reset()
    if not found:
        raise SrlabError(f"no engine works here: {problem}")
    return found


def _seconds_per_step(trial: Trial, precision: str, engine: Engine) -> float:
    marks: list[float] = []

    def on_step(step: int, _: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trial(precision, engine, WARM_UP + MEASURED, Path(folder), on_step)
    return statistics.median(b - a for a, b in pairwise(marks[WARM_UP - 1 :]))
