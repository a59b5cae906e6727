"""srlab.training under torchrun: two gloo processes on the CPU against one."""

import math
import os
import signal
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from PIL import Image
from processes import start
from safetensors.torch import load_file
from torch.testing import assert_close

from srlab.data.bank import PatchBank
from srlab.models.critics import Discriminator
from srlab.models.generators import WDRN, SRResNet
from srlab.training import budget, engine, faults, run
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.game import adversarial
from srlab.training.monitor import TrainingDiverged, read_log
from srlab.training.pretrain import pretrain
from srlab.training.run import CHECKPOINT
from srlab.training.state import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32", reason="needs gloo"
)
STEPS = 60


def make_bank(seed=4):
    random = torch.Generator().manual_seed(3)
    # Smooth pictures: half of the loss can be learnt in a few steps.
    coarse = torch.rand(2, 3, 6, 8, generator=random)
    images = torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic")
    return PatchBank([*(images.clamp(0, 1) * 255).byte()], seed=seed)


class Shared(PatchBank):
    """Rank r of n gets the r-th part of the batch that a single process would get."""

    def __init__(self, rank, world):
        self.__dict__ = make_bank().__dict__ | {"rank": rank, "world": world}
        self.drawn = torch.Generator().manual_seed(4)

    def batch(self, batch_size, *args):
        mine, self.generator = self.generator, self.drawn
        pair = super().batch(batch_size * self.world, *args)
        self.generator = mine
        return tuple(t.chunk(self.world)[self.rank] for t in pair)


def settings(batch_size, **more):
    small = {
        "steps": STEPS, "patch_size": 8, "lr": 2e-3, "log_every": 10, "validate_every": 0,
        "checkpoint_every": 0,
    }  # fmt: skip
    return PretrainConfig(batch_size=batch_size, **small | more)


def train(folder, batch_size, bank, kind=SRResNet, on_step=None, **more):
    torch.manual_seed(1)
    network = kind(n_blocks=1, n_features=8, bicubic_skip=False)  # more to learn
    options = {"fabric": fabric(), "on_step": on_step, "progress": False}
    return pretrain(network, bank, settings(batch_size, **more), folder, **options)


def fabric(made=[]):  # noqa: B006
    if not made:
        made.append(engine.default_fabric("cpu"))
    return made[0]


def play(folder):
    """A game whose critic holds batch norm and sees two batches before its step."""
    torch.manual_seed(1)
    g, c = SRResNet(n_blocks=1, n_features=8), Discriminator(patch_size=32, n_features=8)
    config = AdversarialConfig(
        steps=4, batch_size=4, patch_size=8, critic_steps=2, adversarial="relativistic",
        log_every=2, validate_every=0, generator_lr=1e-3,
    )  # fmt: skip
    adversarial(g, c, make_bank(), config, folder, fabric=fabric(), progress=False)
    return g, c


def work(out):
    """What both processes do."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    train(out / "halves", 8, Shared(rank, world), WDRN, steps=20, log_every=1)
    train(out / "own", 8, make_bank())

    stop = {"on_step": lambda step, _: step == 25}
    result = train(out / "stopped", 8, make_bank(), **stop)
    assert result.step == 30  # the processes agree when a row is due
    train(out / "to one", 8, make_bank(), **stop)
    train(out / "stopped", 8, make_bank())

    g, c = play(out / "game")
    weights = torch.cat([p.detach().flatten() for m in (g, c) for p in m.parameters()])
    assert torch.equal(*fabric().all_gather(weights))
    train(out / "from one", 8, make_bank())


def die(out):
    """Rank 1 is killed in the middle."""

    def on_step(step, _):
        if step == 25 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    train(out / "killed", 8, make_bank(), on_step=on_step, checkpoint_every=20)


def spoil(out):
    """One process's loss is NaN, which its neighbour only hears of."""
    bank, rank = make_bank(), os.environ["RANK"]
    draw, drawn = bank.batch, []

    def batch(*args):
        lr, hr = draw(*args)
        drawn.append(1)
        return (lr.fill_(math.nan), hr) if rank == "1" and len(drawn) == 25 else (lr, hr)

    bank.batch = batch
    try:
        train(out / "spoilt", 8, bank, checkpoint_every=20)
    except TrainingDiverged as error:
        print(error)
        sys.exit(7)


def environment(**more):
    return {"PYTHONPATH": str(Path(run.__file__).parents[2]), "OMP_NUM_THREADS": "1"} | more


def member(work, *arguments):
    """One of the processes."""
    try:
        work(*arguments)
    except faults.LostProcess as error:  # as the command line does
        sys.exit(f"srlab: {error}")


def two_processes(work, *arguments, logs):
    """Two processes as torchrun would start them, without its own; exit codes and what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    started = []
    for rank in "01":
        variables = environment(**common, RANK=rank, LOCAL_RANK=rank)
        log = logs / f"rank-{rank}.txt"
        started.append(start(member, work, *arguments, log=log, environment=variables))
    for process in started:
        process.join(600)
    told = [(logs / f"rank-{rank}.txt").read_text() for rank in "01"]
    return [process.exitcode for process in started], told


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of all runs; one of them is begun by a single process and finished by two."""
    folder = tmp_path_factory.mktemp("runs")
    stopped = train(folder / "from one", 16, make_bank(), on_step=lambda step, _: step == 30)
    assert stopped.step == 30
    # As two processes count, each had half of the batch.
    file = folder / "from one" / CHECKPOINT
    state, info = load_checkpoint(file)
    info["config"]["batch_size"] = 8
    save_checkpoint(file, state, info)
    codes, told = two_processes(work, folder, logs=folder)
    assert codes == [0, 0], told
    return folder


def losses(folder):
    steps, values = read_log(folder / "log.csv")["loss"]
    assert steps == sorted(set(steps))
    return values


def test_half_a_batch_each_is_the_whole_batch(out, tmp_path):
    """The same crops, no batch norm: the mean of two means is the mean, up to rounding.

    Adam divides by the gradient's size, so that rounding (1e-7) of vanishing gradients can move a
    weight by up to its learning rate; over 20 steps that stays far below a thousandth of the loss.
    """
    train(tmp_path, 16, Shared(0, 1), WDRN, steps=20, log_every=1)
    together, alone = losses(out / "halves"), losses(tmp_path)
    assert len(alone) == 20
    assert alone[-1] < 0.7 * alone[0]
    assert together == pytest.approx(alone, rel=1e-3)


def test_the_loss_of_two_at_batch_8_is_that_of_one_at_batch_16(out, tmp_path):
    """Each with its own crops, and batch norm over its own eight.

    Tolerance: how much the curve of one process varies with the seed of its crops, in each row.
    The mean of six runs and a seventh differ by less than 4 standard deviations (of a difference:
    times sqrt(1 + 1/6)), but for one in 16,000; and 2% for the statistics of batch norm.
    """
    runs = []
    for seed in range(6):
        train(tmp_path / str(seed), 16, make_bank(seed))
        runs.append(losses(tmp_path / str(seed)))
    for two, *one in zip(losses(out / "own"), *runs, strict=True):
        mean = statistics.mean(one)
        spread = 4 * (1 + 1 / 6) ** 0.5 * statistics.stdev(one)
        assert two == pytest.approx(mean, abs=spread + 0.02 * mean)
    assert mean < 0.5 * runs[0][0]


def test_each_process_draws_its_own_crops(out):
    state, _ = load_checkpoint(out / "own" / CHECKPOINT)
    first, second = state["bank"], *state["banks"]
    assert not torch.equal(first["random"], second["random"])


def test_two_processes_resume_exactly(out):
    a, b = (load_file(out / name / CHECKPOINT) for name in ("own", "stopped"))
    assert_close(a, b, rtol=0, atol=0)
    logs = [(out / name / "log.csv").read_bytes() for name in ("own", "stopped")]
    assert logs[0] == logs[1]


def test_a_run_goes_on_with_another_number_of_processes(out, capsys):
    assert load_checkpoint(out / "to one" / CHECKPOINT)[1]["step"] == 30
    result = train(out / "to one", 8, make_bank())
    assert result.step == STEPS
    for name in ("to one", "from one"):
        values = losses(out / name)
        assert len(values) == STEPS // 10
        assert max(values[3:]) < 0.6 * values[0]
        assert len(load_checkpoint(out / name / CHECKPOINT)[0]["banks"]) == (
            1 if name == "from one" else 0
        )


def test_a_killed_process_ends_the_others_with_a_message(tmp_path):
    codes, told = two_processes(die, tmp_path, logs=tmp_path)
    assert codes == [1, -signal.SIGKILL]
    assert "srlab: another process of this run has ended, so rank 0 stops, too" in told[0]
    assert str(tmp_path / "killed") in told[0]
    assert "Traceback" not in told[0]
    assert load_checkpoint(tmp_path / "killed" / CHECKPOINT)[1]["step"] == 20


def test_a_process_with_nan_stops_the_others_too(tmp_path):
    """At the next row of the log, with the same sentence, and the checkpoint before is kept."""
    codes, told = two_processes(spoil, tmp_path, logs=tmp_path)
    assert codes == [7, 7], told
    for said in told:
        assert "loss became NaN or infinite at step 25" in said
    assert load_checkpoint(tmp_path / "spoilt" / CHECKPOINT)[1]["step"] == 20


@pytest.fixture
def command(tmp_path):
    """`srlab train` in ``tmp_path / "run"``, but for its length."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(2):
        Image.effect_noise((64, 48), 50).convert("RGB").save(pictures / f"{i}.png")
    return [
        "train", "srresnet", "--data", pictures, "--validate", pictures, "--out", tmp_path / "run",
        "--batch-size", "2", "--patch-size", "8", "--device", "cpu", "--log-every", "1",
        "--validate-every", "1",
    ]  # fmt: skip


def assert_one_run(folder, said):
    """One writer, one voice, and one plan from what each process measured."""
    plan = budget.read(folder)
    assert said.count(f"{plan.steps} steps in") == 1
    assert said.count("ms a step") == (1 if plan.minutes else 0)
    log = read_log(folder / "log.csv")
    assert log["loss"][0] == log["val_psnr"][0] == [*range(1, plan.steps + 1)]


def test_the_command_under_torchrun(tmp_path, command):
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "srlab"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, *map(str, command), "--steps", "2"],
        env=os.environ | environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert_one_run(tmp_path / "run", done.stdout)


def test_two_processes_plan_minutes_together(tmp_path, command):
    codes, told = two_processes(processes.srlab, *command, "--minutes", "0.1", logs=tmp_path)
    assert codes == [0, 0], told
    assert_one_run(tmp_path / "run", "".join(told))
