"""srlab.training.monitor: the log says what happened, NaN raises an alarm, Ctrl-C stops cleanly."""

import os
import signal
import sys
import threading
import types

import pytest
import torch

from srlab.training.monitor import Monitor, TrainingDiverged, read_log, read_rows, stop_signal
from srlab.training.state import CheckpointError


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    """As if TensorBoard were not installed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def monitor(folder, names=("a", "b"), log_every=2, steps=5):
    return Monitor(folder, [*names, "val"], log_every, steps, patches_per_step=1, progress=False)


def log(m, first, values):
    """Let a monitor see a value of ``a`` and twice that of ``b`` at each step from ``first``."""
    for step, a in enumerate(values, first):
        m.step(step, {"a": torch.tensor(float(a)), "b": torch.tensor(2.0 * a)})


def test_a_row_is_the_mean_over_log_every_steps(tmp_path):
    m = monitor(tmp_path)
    m.open(0)
    log(m, 1, [1, 3, 10])
    m.note("val", 28.5)
    log(m, 4, [20, 7])
    m.close()
    assert read_log(tmp_path / "log.csv") == {
        "a": ([2, 4, 5], [2.0, 15.0, 7.0]),  # the last step has its row in any case
        "b": ([2, 4, 5], [4.0, 30.0, 14.0]),
        "val": ([4], [28.5]),  # not measured at the other steps
    }
    assert os.listdir(tmp_path) == ["log.csv"]


def test_no_log_no_curves(tmp_path):
    assert read_log(tmp_path / "log.csv") == {}


def test_a_resumed_log_is_the_unbroken_one(tmp_path):
    values = [1, 2, 4, 8, 16]
    m = monitor(tmp_path)
    m.open(0)
    log(m, 1, values)
    m.close()
    unbroken = (tmp_path / "log.csv").read_bytes()

    # Stopped at step 3, in the middle of a row; rows beyond it come from a run that was killed.
    pending = [torch.tensor([4.0, 8.0])]
    m = monitor(tmp_path)
    m.open(3, pending)
    assert read_log(tmp_path / "log.csv")["a"] == ([2], [1.5])
    log(m, 4, values[3:])
    m.close()
    assert (tmp_path / "log.csv").read_bytes() == unbroken


def test_a_new_run_begins_a_new_log(tmp_path):
    for _ in range(2):
        m = monitor(tmp_path)
        m.open(0)
        log(m, 1, [1, 3])
        m.close()
    assert read_log(tmp_path / "log.csv")["a"] == ([2], [2.0])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("step,a,dropped\n2,0.5,9\n4,0.25,9\n", {"a": ([2], [0.5])}),  # of another version
        ("step,a\n2,0.5\n\n4,0", {"a": ([2], [0.5])}),  # cut off
        ("not,a,log\n1,2,3\n", {}),
        ("", {}),
    ],
)
def test_a_strange_log_does_not_stop_a_resume(tmp_path, text, kept):
    (tmp_path / "log.csv").write_text(text)
    m = monitor(tmp_path)
    m.open(3)
    m.close()
    assert read_log(tmp_path / "log.csv") == kept


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_alarm_names_metric_and_step(tmp_path, bad):
    m = monitor(tmp_path, log_every=4, steps=100)
    m.open(2, [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])])
    values = {"a": torch.tensor(1.0), "b": torch.tensor(bad)}
    m.step(3, values)
    with pytest.raises(TrainingDiverged, match=r"^b became NaN or infinite at step 3\b"):
        m.step(4, values)  # when a row is due
    m.close()
    assert read_log(tmp_path / "log.csv") == {}


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    m = monitor(tmp_path)
    m.open(0)
    (tmp_path / "log.csv").unlink()
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*log\.csv"):
        log(m, 1, [1, 3])
    m.close()


def test_tensorboard_gets_the_same_values_if_it_is_installed(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    m = monitor(tmp_path)
    m.open(2)
    log(m, 3, [1])
    m.note("val", 30.0)
    log(m, 4, [3])
    m.close()
    assert calls == [
        (str(tmp_path / "tensorboard"), 3),  # what a killed run showed from step 3 on is void
        ("a", 2.0, 4),
        ("b", 4.0, 4),
        ("val", 30.0, 4),
        "closed",
    ]


def test_the_first_ctrl_c_asks_and_the_second_interrupts():
    def press_twice():
        with stop_signal() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.is_set()
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_there_is_no_signal_to_catch():
    seen = []

    def work():
        with stop_signal() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_of_a_damaged_log_the_readable_rows_are_left(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"step,loss\n1,0.5\n\xff\x9f,\x00\n2,0.4\n")
    assert [row["step"] for row in read_rows(tmp_path / "log.csv")] == ["1", "2"]
    (tmp_path / "log.csv").write_bytes(b"\x9fstep,loss\n1,0.5\n")
    assert read_rows(tmp_path / "log.csv") == []
