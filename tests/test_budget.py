"""srlab.training.budget: steps from minutes, engines by measurement, on a clock of its own."""

import pytest
import torch

from srlab.errors import SrlabError
from srlab.training import budget
from srlab.training.budget import Plan

CPU = torch.device("cpu")
# Seconds of a step by precision and compiler.
SPEED = {("32-true", "off"): 2.0, ("bf16-mixed", "off"): 0.5, ("bf16-mixed", "default"): 0.25}


@pytest.fixture
def machine(monkeypatch):
    """A clock and a trial on it; ``tried`` lists the engines, ``speed`` may be changed."""
    now = [100.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])

    def trial(precision, engine, steps, folder, on_step):
        trial.tried.append((precision, engine.compile))
        assert folder.is_dir()
        if (precision, engine.compile) not in trial.speed:
            raise RuntimeError("not on this processor")
        for step in range(1, steps + 1):
            # The first steps take longer: nobody should take them for the speed.
            now[0] += trial.speed[precision, engine.compile] * (5 if step <= 3 else 1)
            on_step(step, None)

    trial.tried, trial.speed = [], dict(SPEED)
    return trial


def test_minutes_become_steps_of_the_fastest_engine(tmp_path, machine):
    plan = budget.make(tmp_path, machine, CPU, minutes=30)
    assert machine.tried == list(SPEED)
    assert (plan.engine, plan.seconds_per_step) == ("bf16-compiled", 0.25)
    # What is left after three trials of 20 steps, of which three count five times.
    left = 30 * 60 - sum(SPEED.values()) * (17 + 3 * 5)
    assert (plan.steps, plan.minutes) == (int(0.97 * left / 0.25), 30)


def test_going_on_keeps_to_the_plan(tmp_path, machine):
    first = budget.make(tmp_path, machine, CPU, minutes=30)
    machine.tried.clear()
    machine.speed = {("32-true", "off"): 1.0}
    assert budget.make(tmp_path, machine, CPU, minutes=30) == first
    assert machine.tried == []


def test_another_budget_or_engine_is_not_taken_for_the_plans(tmp_path, machine):
    first = budget.make(tmp_path, machine, CPU, minutes=30)
    with pytest.raises(SrlabError, match="planned for 30 minutes, not for 40 minutes"):
        budget.make(tmp_path, machine, CPU, minutes=40)
    with pytest.raises(SrlabError, match="with the engine bf16-compiled, not fp32"):
        budget.make(tmp_path, machine, CPU, minutes=30, engine="fp32")
    assert budget.read(tmp_path) == first


def test_processes_agree_on_what_each_measured(tmp_path, machine):
    """The other one is twice as slow in all that is measured; it writes no file."""
    both = {"minutes": 30, "agree": lambda mine: 1.5 * mine}
    plan = budget.make(tmp_path, machine, CPU, writes=False, **both)
    assert plan.seconds_per_step == 1.5 * 0.25
    left = 30 * 60 - 1.5 * sum(SPEED.values()) * (17 + 3 * 5)
    assert plan.steps == int(0.97 * left / (1.5 * 0.25))
    assert budget.read(tmp_path) is None


def test_a_short_run_does_not_wait_for_a_compiler(tmp_path, machine):
    assert budget.make(tmp_path, machine, CPU, minutes=4).engine == "bf16"
    assert ("bf16-mixed", "default") not in machine.tried


def test_what_a_machine_cannot_do_is_left_out(tmp_path, machine):
    del machine.speed["bf16-mixed", "off"]
    del machine.speed["bf16-mixed", "default"]
    assert budget.make(tmp_path / "a", machine, CPU, minutes=30).engine == "fp32"
    machine.speed.clear()
    with pytest.raises(SrlabError, match="no engine works here: not on this processor"):
        budget.make(tmp_path / "b", machine, CPU, minutes=30)


def test_slow_half_precision_is_not_taken(tmp_path, machine):
    machine.speed |= {("bf16-mixed", "off"): 7.0, ("bf16-mixed", "default"): 6.0}
    assert budget.make(tmp_path, machine, CPU, steps=1000).engine == "fp32"


def test_steps_that_are_given_stay(tmp_path, machine):
    plan = budget.make(tmp_path / "a", machine, CPU, steps=5000)
    assert (plan.engine, plan.steps) == ("bf16-compiled", 5000)
    machine.tried.clear()
    assert budget.make(tmp_path / "b", machine, CPU, steps=50) == Plan("fp32", 50)
    assert budget.make(tmp_path / "c", machine, CPU, steps=5000, engine="bf16") == Plan(
        "bf16", 5000
    )
    assert machine.tried == []  # nothing to choose


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_no_time_at_all(tmp_path, machine, minutes):
    with pytest.raises(SrlabError, match="--minutes must be positive"):
        budget.make(tmp_path, machine, CPU, minutes=minutes)


def test_an_unknown_engine(tmp_path, machine):
    with pytest.raises(SrlabError, match="--engine must be auto or one of plain"):
        budget.make(tmp_path, machine, CPU, steps=5, engine="fast")


def test_a_damaged_plan_is_made_again(tmp_path, machine):
    (tmp_path / budget.PLAN).write_text('{"engine": ')
    assert budget.make(tmp_path, machine, CPU, minutes=30).steps > 1000
