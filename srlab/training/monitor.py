"""What a run reports on its way: a CSV log, a progress bar, an alarm for NaN, a clean stop."""

import csv
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from srlab.errors import SrlabError
from srlab.files import whole
from srlab.training.state import writing

LOG = "log.csv"


class TrainingDiverged(SrlabError):
    """A loss or a weight became NaN or infinite."""


@dataclass
class Monitor:
    """Collects metrics step by step and writes their means to ``log.csv``.

    Values stay on the device until a row is due: one transfer every ``log_every`` steps instead of
    several a step, so a GPU never waits for its log. If TensorBoard is installed, the same values
    go to ``tensorboard/`` beside the log.

    Args:
        folder: where ``log.csv`` lies.
        names: the metrics, in the order of the columns after ``step``.
        log_every: steps to a row.
        steps: the run's length, for the progress bar.
        patches_per_step: for the speed shown.
        progress: show a bar.
        writes: False leaves the files to another process.
        mean: of a tensor over all processes.
    """

    folder: Path
    names: Sequence[str]
    log_every: int
    steps: int
    patches_per_step: int
    progress: bool = True
    writes: bool = True
    mean: Callable[[Tensor], Tensor] = lambda values: values

    def __post_init__(self):
        self.path = self.folder / LOG
        self.columns = ["step", *self.names]
        self.pending: list[Tensor] = []  # one vector of metrics a step since the last row
        self.extra: dict[str, float] = {}

    def open(self, step: int, pending: Sequence[Tensor] = ()) -> None:
        """Begin at ``step``: drop rows that lie beyond it (a killed run may have left some).

        Raises:
            CheckpointError: the folder cannot be written to.
        """
        self.pending = list(pending)
        self.start, self.begin = step, time.perf_counter()
        shown = {"unit": "step", "mininterval": 0.5, "disable": not self.progress}
        self.bar = tqdm(total=self.steps, initial=step, **shown)
        self.board = None
        if not self.writes:
            return
        with writing(self.path):
            rows = [r for r in read_rows(self.path) if int(r["step"]) <= step] if step else []
            with whole(self.path) as temporary, open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
            self.board = _tensorboard(self.path.parent / "tensorboard", step)

    def step(self, step: int, values: dict[str, Tensor]) -> None:
        """Take this step's metrics (0-dim tensors); write a row when one is due."""
        self.names = list(values)
        self.pending.append(torch.stack([v.detach().float() for v in values.values()]))
        self.bar.update()
        if step % self.log_every == 0 or step == self.steps:
            self._write(step)

    def note(self, name: str, value: float) -> None:
        """A number for the next row that isn't measured every step, such as validation PSNR."""
        self.extra[name] = value

    def check(self, step: int) -> Tensor | None:
        """The metrics since the last row, means over all processes; None if there are none.

        A number that is not finite in one process makes the mean so in all of them: all stop, and
        none waits for another.

        Raises:
            TrainingDiverged: a metric is NaN or infinite.
        """
        if not self.pending:
            return None
        values = self.mean(torch.stack(self.pending))
        finite = values.isfinite().cpu()
        if not finite.all():
            row, column = (~finite).nonzero()[0].tolist()
            bad = step - len(self.pending) + 1 + row
            raise self.diverged(self.names[column], bad)
        return values

    def diverged(self, what: str, step: int) -> TrainingDiverged:
        """The error to raise when ``what`` is no longer a number."""
        return TrainingDiverged(
            f"{what} became NaN or infinite at step {step}: lower the learning rate or look at the "
            f"data. The last good checkpoint, if there was one, is kept in {self.path.parent}."
        )

    def _write(self, step: int) -> None:
        values = self.check(step)
        assert values is not None, "a row is written only when steps are pending"
        means = values.mean(dim=0).tolist()
        row = dict(zip(self.names, means, strict=True)) | self.extra
        if self.writes:
            with writing(self.path), open(self.path, "a", newline="") as file:
                cells = {name: f"{value:.6g}" for name, value in row.items()}
                csv.DictWriter(file, self.columns).writerow({"step": step} | cells)
        if self.board:
            for name, value in row.items():
                self.board.add_scalar(name, value, step)
        self.pending, self.extra = [], {}
        speed = (step - self.start) * self.patches_per_step / (time.perf_counter() - self.begin)
        shown = {k: f"{row[k]:.4g}" for k in list(row)[-3:]}
        self.bar.set_postfix({"patches/s": f"{speed:.0f}"} | shown, refresh=False)

    def close(self) -> None:
        self.bar.close()
        if self.board:
            self.board.close()


def read_rows(path: Path | str) -> list[dict[str, str]]:
    """The rows of a log as text; none if there is no file yet, or it is not a log.

    Of a damaged log what is still readable: bytes that are no UTF-8 become question marks.
    """
    if not Path(path).is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]


def read_log(path: Path | str) -> dict[str, tuple[list[int], list[float]]]:
    """A log as curves: metric -> (steps, values), skipping rows where it was not measured."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in read_rows(path):
        for name, text in row.items():
            if name != "step" and text:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(text))
    return curves


class Stop(threading.Event):
    """Set when a run is to end after its step.

    Attributes:
        signal: that asked for it; 0 if none did.
    """

    signal = 0


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """An event that the first Ctrl-C or SIGTERM sets, so that a loop can finish its step and save.

    (Batch systems and containers send SIGTERM some seconds before they kill.) A second Ctrl-C
    interrupts at once. Outside the main thread, where Python delivers no signals, the event is
    never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, frame: object) -> None:
        if stop.signal == signal.SIGINT == signum:
            raise KeyboardInterrupt
        stop.signal = signum
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handle) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)  # hides what a killed run did after
