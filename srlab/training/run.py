"""A run's folder: checkpoint, resume, log, validation and a clean stop, shared by both loops."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from srlab.files import only_here
from srlab.models.zoo import describe, load_weights
from srlab.training.budget import PLAN
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.engine import Engine, keep_own_kernels, threads_for
from srlab.training.monitor import LOG, Monitor, read_rows, stop_signal
from srlab.training.optim import match_layout
from srlab.training.state import CheckpointError, load_checkpoint, save_checkpoint, writing

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT = "checkpoint.safetensors"
# Validation is free for this many seconds of a run; afterwards it gets this share of the time.
FREE_VALIDATION, VALIDATION_SHARE = 30.0, 0.02


@dataclass(frozen=True)
class Result:
    """What a training function returns.

    Attributes:
        generator: the moving average of the generator's weights, in evaluation mode.
        folder: holds ``checkpoint.safetensors`` and ``log.csv``.
        step: the last step done; below the configured one if the run was stopped.
        seconds: wall time of this call.
        patches_per_second: over this call, of all processes together; 0 if there was nothing left
            to do.
        signal: that stopped the run, SIGINT or SIGTERM; 0 if none did.
    """

    generator: nn.Module
    folder: Path
    step: int
    seconds: float
    patches_per_second: float
    signal: int = 0


class Run:
    """What goes on around the steps of a training.

    Args:
        folder: of the checkpoint and the log.
        config: of the loop.
        metrics: the columns of the log.
        fabric, engine, validate, on_step, progress: as the loops have them.
        parts: the things with a state, by name: networks, optimizers, schedulers and the bank;
            among them ``generator`` and ``average``.
        more: settings beside those of ``config`` that the run goes on with.
    """

    def __init__(
        self,
        folder: Path | str,
        config: PretrainConfig | AdversarialConfig,
        metrics: list[str],
        fabric: "Fabric",
        *,
        engine: Engine,
        validate: Callable[[nn.Module], float] | None,
        on_step: Callable[[int, nn.Module], bool | None] | None,
        progress: bool,
        parts: dict[str, Any],
        more: Mapping[str, Any] = {},
    ):
        self.folder, self.config, self.parts = Path(folder), config, parts
        self.fabric, self.writes = fabric, fabric.global_rank == 0
        self.engine, self.validate, self.on_step = engine, validate, on_step
        self.average = parts["average"].module
        self.stopped = False
        self.validating = 0.0  # seconds spent so far
        self.path = self.folder / CHECKPOINT
        self.model = describe(parts["generator"])  # a generator that cannot be described fails now
        crops = {"data": parts["bank"].contents, "seed": parts["bank"].seed}
        self.settings = {"kind": type(config).__name__} | asdict(config) | crops | {**more}
        self.told_later = {*crops, *more}  # settings that checkpoints of before did not tell
        self.monitor = Monitor(
            self.folder, metrics, config.log_every, config.steps,
            config.batch_size * fabric.world_size, progress and self.writes,
            writes=self.writes, mean=fabric.all_reduce,
        )  # fmt: skip

    def __enter__(self) -> "Run":
        with ExitStack() as held:  # let go of if anything fails here
            if self.writes:
                with writing(self.path):
                    held.enter_context(only_here(self.folder, "a training"))
            self._begin()
            held.enter_context(threads_for(self.parts["generator"], self.config.lr_shape))
            self.stop = held.enter_context(stop_signal())
            self.held = held.pop_all()
        self.begin = time.perf_counter()
        return self

    def _begin(self) -> None:
        rank = self.fabric.global_rank
        if rank:  # crops of its own
            self.parts["bank"].generator.manual_seed(self.settings["seed"] + rank)
        self.start, pending = self._resume() if self.path.is_file() else (0, [])
        start = torch.tensor(float(self.start), device=self.fabric.device)
        if self.fabric.all_reduce(start) != self.start:
            raise CheckpointError(
                f"not every process finds the same checkpoint in {self.folder}: all machines of a "
                "run need one folder that they share."
            )
        self.step = self.start
        self.monitor.open(self.start, pending)

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self.begin
        self.monitor.close()
        self.held.close()

    def steps(self) -> Iterator[int]:
        """The numbers of the steps still to do, until the last one is done or somebody stops."""
        for step in range(self.start + 1, self.config.steps + 1):
            self.engine.begin_step()
            yield step
            self.step = step
            if self.stopped:
                return

    def end_step(self, step: int, row: dict[str, Tensor]) -> None:
        """Log, validate, show and save what is due after a step.

        Args:
            row: this step's metrics, 0-dim tensors, in the order of the log's columns.
        """
        if self.validate and self.writes and self._validates(step):
            begin = time.perf_counter()
            self.monitor.note("val_psnr", self.validate(self.average.eval()))
            self.validating += time.perf_counter() - begin
        self.monitor.step(step, row)
        if self.on_step and self.on_step(step, self.average):
            self.stop.set()
        self.stopped = self._agreed(step, self.stop.is_set())
        if self.due(step, self.config.checkpoint_every) or self.stopped:
            self.save(step)
        if self.stopped and self.writes:
            print(
                f"\nStopped after step {step} of {self.config.steps}; saved {self.path}. "
                "Run the same command or cell again to go on from here."
            )

    def _validates(self, step: int) -> bool:
        """A validation that is due, unless they have taken too much of the run's time already."""
        if step == self.config.steps:
            return True
        allowed = FREE_VALIDATION + VALIDATION_SHARE * (time.perf_counter() - self.begin)
        return self.due(step, self.config.validate_every) and self.validating <= allowed

    def due(self, step: int, every: int) -> bool:
        """True at every multiple of ``every`` (if positive) and after the last step."""
        return step == self.config.steps or (every > 0 and step % every == 0)

    def save(self, step: int) -> None:
        # Never overwrite a good checkpoint with NaN. This step's update may have spoilt the weights
        # though its loss was still finite.
        pending = self.monitor.check(step)
        average = {"moving average": self.average}
        networks = {n: part for n, part in self.parts.items() if isinstance(part, nn.Module)}
        for name, network in (networks | average).items():
            if not torch.stack([p.isfinite().all() for p in network.parameters()]).all():
                raise self.monitor.diverged(f"a weight of the {name}", step)
        self.step = step
        banks = self._banks()
        if not self.writes:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state["random"] = torch.get_rng_state()
        if self.fabric.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.fabric.device)
        state["pending"] = [] if pending is None else [*pending]
        state["banks"] = banks
        info = {"step": step, "config": self.settings, "model": self.model}
        save_checkpoint(self.path, state, info)

    def _agreed(self, step: int, stop: bool) -> bool:
        """Whether to stop now. Several processes ask each other when a row of the log is due."""
        if self.fabric.world_size == 1:
            return stop
        if not self.due(step, self.config.log_every):
            return False
        asked = torch.tensor(float(stop), device=self.fabric.device)
        return bool(self.fabric.all_reduce(asked, reduce_op="sum") > 0)

    def _banks(self) -> list[dict[str, Tensor]]:
        """The random states of the other processes' banks, in the order of their ranks."""
        if self.fabric.world_size == 1:
            return []
        found = self.fabric.all_gather(self.parts["bank"].state_dict())
        ranks = range(1, self.fabric.world_size)
        return [{name: states[rank].cpu() for name, states in found.items()} for rank in ranks]

    def _resume(self) -> tuple[int, list[Tensor]]:
        state, info = load_checkpoint(self.path)
        theirs = {key: self.settings[key] for key in self.told_later} | info["config"]
        differing = [
            f"{key} = {theirs.get(key)!r}, now {value!r}"
            for key, value in self.settings.items()
            if _plain(value) != _plain(theirs.get(key)) and key != "steps"
        ]
        if differing or info["step"] > self.config.steps:
            why = "; ".join(differing) or f"{info['step']} steps done, now {self.config.steps}"
            raise CheckpointError(
                f"{self.folder} holds a run with other settings ({why}): choose another folder, "
                "the same settings, or delete the folder to start again."
            )
        for name, part in self.parts.items():
            if isinstance(part, nn.Module):
                load_weights(part, state[name], self.path)
            elif isinstance(part, torch.optim.Optimizer):
                part.load_state_dict(keep_own_kernels(part, state[name]))
                match_layout(part)
            elif name != "bank":
                part.load_state_dict(state[name])
        # As many processes as before go on with their own crops, additional ones with new ones.
        banks = [state["bank"], *state.get("banks", [])]
        rank = self.fabric.global_rank
        if rank < len(banks):
            self.parts["bank"].load_state_dict(banks[rank])
        torch.set_rng_state(state["random"])
        if self.fabric.device.type == "cuda" and "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self.fabric.device)
        return info["step"], [row.to(self.fabric.device) for row in state["pending"]]

    def result(self) -> Result:
        done = self.step - self.start
        patches = done * self.config.batch_size * self.fabric.world_size
        speed = patches / self.seconds if done else 0.0
        generator = deepcopy(self.average).eval()
        return Result(generator, self.folder, self.step, self.seconds, speed, self.stop.signal)


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Remove what a training has written into ``folder`` if the body fails too early for any use.

    Without a checkpoint the plan would only bind the next try; and a log without rows says nothing.
    What was there before stays.
    """
    new = [file for file in (folder / PLAN, folder / LOG) if not file.exists()]
    try:
        yield
    except BaseException:
        if not (folder / CHECKPOINT).exists():
            for file in new:
                if file.name == PLAN or not read_rows(file):
                    file.unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
