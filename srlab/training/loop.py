"""The two training loops: pre-training for PSNR, then the adversarial game.

Each reads from top to bottom. Devices, precision and distribution are Lightning Fabric's business;
what has to survive a crash is :mod:`srlab.training.state`'s; what is shown is
:mod:`srlab.training.monitor`'s.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from srlab import losses
from srlab.models.zoo import describe, load_weights
from srlab.patches import PatchBank
from srlab.training.config import AdversarialConfig, ConfigError, PretrainConfig
from srlab.training.engine import (
    Engine,
    default_fabric,
    keep_own_kernels,
    mean_over_processes,
)
from srlab.training.faults import explained
from srlab.training.monitor import Monitor, stop_signal
from srlab.training.optim import MovingAverage
from srlab.training.state import CheckpointError, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT = "checkpoint.safetensors"


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
    """

    generator: nn.Module
    folder: Path
    step: int
    seconds: float
    patches_per_second: float


@explained
def pretrain(
    generator: nn.Module,
    bank: PatchBank,
    config: PretrainConfig,
    folder: Path | str,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    on_step: Callable[[int, nn.Module], bool | None] | None = None,
    fabric: "Fabric | None" = None,
    engine: Engine = Engine(),  # noqa: B008 (frozen)
    progress: bool = True,
) -> Result:
    """Train a generator for PSNR by a pixel loss (SRResNet's training in Ledig et al. 2017).

    Args:
        generator: trained in place.
        bank: where the crops come from.
        config: see :class:`srlab.training.config.PretrainConfig`.
        folder: of this run. If it holds a checkpoint of the same configuration, the run goes on
            from there, and on a CPU ends bit for bit where an unbroken run would have.
        validate: gets the averaged generator and returns its PSNR in dB.
        on_step: gets the number of each step done and the averaged generator, to show how the run
            goes. If it returns True (on any process) the run ends as by Ctrl-C: saved, to go on
            later.
        fabric: device, precision and distribution; by default
            :func:`srlab.training.engine.default_fabric`. Of several processes each draws its own
            ``config.batch_size`` crops a step; rank 0 validates and writes. A run can go on with
            another number of processes.
        engine: see :class:`srlab.training.engine.Engine`.
        progress: show a bar.

    Raises:
        CheckpointError: the folder holds another run, or cannot be written to.
        TrainingDiverged: a loss or a weight became NaN or infinite.
        OutOfMemory: the batch does not fit into memory; names a size that does.
        LostProcess: another process of a distributed run has ended.
    """
    fabric = fabric or default_fabric()
    build = engine.muon if config.optimizer == "muon" else engine.adam
    optimizer = build(generator.parameters(), config.lr, config.betas, fabric.device)
    scheduler = schedule(optimizer, config)
    model, optimizer = engine.setup(fabric, generator, optimizer, lr_shape(config))
    average = MovingAverage(generator, config.ema_decay)
    run = Run(
        folder, config, ["loss", "val_psnr"], fabric, progress,
        generator=generator, average=average, optimizer=optimizer, scheduler=scheduler, bank=bank,
    )  # fmt: skip

    with run, stop_signal() as stop:
        for step in run.remaining_steps():
            engine.begin_step()
            model.train()
            lr, hr = fabric.to_device(bank.batch(config.batch_size, config.patch_size))
            loss = losses.pixel(model(lr), hr, config.loss)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            scheduler.step()
            average.update(generator)

            if validate and run.writes and run.due(step, config.validate_every):
                run.monitor.note("val_psnr", validate(average.module.eval()))
            run.monitor.step(step, {"loss": loss})
            if on_step and on_step(step, average.module):
                stop.set()
            stopping = run.agreed(step, stop.is_set())
            if run.due(step, config.checkpoint_every) or stopping:
                run.save(step)
            if stopping:
                run.say_stopped(step)
                break
    return run.result()


@explained
def adversarial(
    generator: nn.Module,
    critic: nn.Module,
    bank: PatchBank,
    config: AdversarialConfig,
    folder: Path | str,
    *,
    perceptual: nn.Module | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    on_step: Callable[[int, nn.Module], bool | None] | None = None,
    fabric: "Fabric | None" = None,
    engine: Engine = Engine(),  # noqa: B008 (frozen)
    progress: bool = True,
) -> Result:
    """Play the game: the critic learns to tell SR from HR, the generator to fool it.

    The generator should come pre-trained (:func:`pretrain`): from scratch the critic wins at once
    and teaches nothing. Both players are trained in place; the arguments and errors are those of
    :func:`pretrain`, and

    Args:
        critic: (N, 3, H, W) -> scores. One that stands on pre-trained layers names them by a
            method ``trunk_parameters``; they learn at ``config.trunk_lr``.
        perceptual: (SR, HR) -> loss, such as :class:`srlab.losses.Perceptual`; needed if
            ``config.perceptual_weight`` is not 0.

    The log holds

    - ``critic_loss`` (1.386 for a cross-entropy critic that guesses), ``real`` and ``fake``, the
      mean scores, and ``gap``, their difference; for ``"bce"`` also ``d_real`` and ``d_fake``, the
      mean probabilities;
    - ``penalty`` for the gradient penalty, and ``gradient_norm``, the critic's mean slope (for
      other Wasserstein critics measured once a row);
    - ``turns``, the critic's steps, if ``config.critic_gap`` regulates them;
    - ``content``, ``perceptual`` and ``adversarial``: the generator's losses, unweighted.

    Raises:
        ConfigError: critic and configuration do not fit each other.
    """
    check_critic(critic, config)
    if config.perceptual_weight and perceptual is None:
        raise ConfigError(
            "AdversarialConfig.perceptual_weight is not 0, but there is no perceptual loss: pass "
            "adversarial(..., perceptual=losses.Perceptual(...))."
        )
    fabric = fabric or default_fabric()
    if perceptual is not None:
        perceptual.to(fabric.device)
    g_optimizer = engine.adam(
        generator.parameters(), config.generator_lr, config.generator_betas, fabric.device
    )
    c_optimizer = engine.adam(
        critic_groups(critic, config), config.critic_lr, config.critic_betas, fabric.device
    )
    g_scheduler, c_scheduler = schedule(g_optimizer, config), schedule(c_optimizer, config)
    shape = lr_shape(config)
    g_model, g_optimizer = engine.setup(fabric, generator, g_optimizer, shape)
    shape = (*shape[:2], shape[2] * generator.scale, shape[3] * generator.scale)
    c_model, c_optimizer = engine.setup(fabric, critic, c_optimizer, shape)
    average = MovingAverage(generator, config.ema_decay)
    run = Run(
        folder, config, game_metrics(config), fabric, progress,
        generator=generator, average=average, critic=critic,
        g_optimizer=g_optimizer, c_optimizer=c_optimizer,
        g_scheduler=g_scheduler, c_scheduler=c_scheduler, bank=bank,
    )  # fmt: skip

    with run, stop_signal() as stop:
        for step in run.remaining_steps():
            engine.begin_step()
            g_model.train()
            c_model.train()
            row: dict[str, Tensor] = {}

            # The critic's turns. detach(): its loss must not reach the generator.
            for turn in range(1, config.critic_steps + 1):
                lr, hr = fabric.to_device(bank.batch(config.batch_size, config.patch_size))
                # Only the last turn's pictures are the generator's to learn from.
                with torch.set_grad_enabled(last_turn(config, turn)):
                    sr = g_model(lr)
                real, fake = c_model(hr), c_model(sr.detach())
                row["critic_loss"] = critic_loss(config, real, fake)
                total = row["critic_loss"]
                if config.lipschitz == "gradient-penalty":
                    norms = losses.gradient_norms(critic, hr.to(dtype_of(critic)), sr)
                    row["penalty"] = (norms - 1).square().mean()
                    row["gradient_norm"] = norms.mean()
                    total = total + config.penalty_weight * row["penalty"]
                c_optimizer.zero_grad()
                fabric.backward(total)
                if config.max_grad_norm:
                    fabric.clip_gradients(c_model, c_optimizer, max_norm=config.max_grad_norm)
                c_optimizer.step()
                if config.lipschitz == "clip":
                    clip_weights(critic, config.clip_value)
                gap = real.mean() - fake.mean()
                if config.critic_gap is not None:
                    row["turns"] = gap.new_tensor(turn)
                    if gap >= config.critic_gap:
                        break

            # The generator's turn. The frozen critic passes gradients on and keeps none.
            with frozen(critic):
                row["content"] = losses.pixel(sr, hr, config.content)
                total = config.content_weight * row["content"]
                if config.perceptual_weight:
                    with fabric.autocast():
                        row["perceptual"] = perceptual(sr, hr)
                    total = total + config.perceptual_weight * row["perceptual"]
                row["adversarial"] = generator_loss(config, c_model, hr, sr)
                g_optimizer.zero_grad()
                fabric.backward(total + config.adversarial_weight * row["adversarial"])
                if config.max_grad_norm:
                    fabric.clip_gradients(g_model, g_optimizer, max_norm=config.max_grad_norm)
                g_optimizer.step()

            g_scheduler.step()
            c_scheduler.step()
            average.update(generator)

            row |= {"real": real.mean(), "fake": fake.mean(), "gap": gap}
            if config.adversarial == "bce":
                row |= {"d_real": real.sigmoid().mean(), "d_fake": fake.sigmoid().mean()}
            if measures_slope(config) and run.due(step, config.log_every):
                norms = losses.gradient_norms(critic, hr.to(dtype_of(critic)), sr)
                run.monitor.note("gradient_norm", norms.mean().item())
            if validate and run.writes and run.due(step, config.validate_every):
                run.monitor.note("val_psnr", validate(average.module.eval()))
            run.monitor.step(step, row)
            if on_step and on_step(step, average.module):
                stop.set()
            stopping = run.agreed(step, stop.is_set())
            if run.due(step, config.checkpoint_every) or stopping:
                run.save(step)
            if stopping:
                run.say_stopped(step)
                break
    return run.result()


def critic_loss(config: AdversarialConfig, real: Tensor, fake: Tensor) -> Tensor:
    if config.adversarial == "wasserstein":
        return losses.wasserstein_critic(real, fake)
    if config.adversarial == "relativistic":
        return losses.relativistic_critic(real, fake)
    return losses.bce_critic(real, fake)


def generator_loss(config: AdversarialConfig, critic: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
    if config.adversarial == "wasserstein":
        return losses.wasserstein_generator(critic(sr))
    if config.adversarial == "relativistic":
        return losses.relativistic_generator(critic(hr), critic(sr))
    return losses.bce_generator(critic(sr))


def game_metrics(config: AdversarialConfig) -> list[str]:
    """The columns of a game's log: only what this configuration measures."""
    columns = {
        "critic_loss": True,
        "real": True,
        "fake": True,
        "gap": True,
        "d_real": config.adversarial == "bce",
        "d_fake": config.adversarial == "bce",
        "penalty": config.lipschitz == "gradient-penalty",
        "gradient_norm": config.lipschitz == "gradient-penalty" or measures_slope(config),
        "turns": config.critic_gap is not None,
        "content": True,
        "perceptual": bool(config.perceptual_weight),
        "adversarial": True,
        "val_psnr": True,
    }
    return [name for name, measured in columns.items() if measured]


def measures_slope(config: AdversarialConfig) -> bool:
    """Whether the critic's slope is measured apart: nobody else computes it in every step."""
    return config.adversarial == "wasserstein" and config.lipschitz != "gradient-penalty"


def check_critic(critic: nn.Module, config: AdversarialConfig) -> None:
    """Refuse what cannot work.

    Raises:
        ConfigError: a slope of single pictures is asked of a critic with batch norm; spectral norm
            is asked of one built without; or a penalty of half-precision weights.
    """
    needs_slope = config.lipschitz == "gradient-penalty" or measures_slope(config)
    if needs_slope and any(isinstance(m, _BatchNorm) for m in critic.modules()):
        raise ConfigError(
            f"{type(critic).__name__} holds batch norm, which makes one picture's score depend on "
            f"the whole batch: there is no slope at one picture for "
            f"adversarial={config.adversarial!r}, lipschitz={config.lipschitz!r} to bound. Build "
            "it with norm='instance' or norm='none', or use adversarial='bce'."
        )
    if config.lipschitz == "spectral":
        layers = [m for m in critic.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        trained = [m for m in layers if any(p.requires_grad for p in m.parameters())]
        if not all(is_parametrized(m) for m in trained):
            raise ConfigError(
                f"lipschitz='spectral' needs a critic with spectral norm: build "
                f"{type(critic).__name__} with spectral=True."
            )
    if config.lipschitz == "gradient-penalty" and dtype_of(critic).itemsize < 4:
        raise ConfigError(
            "The gradient penalty needs 32-bit weights: use precision bf16-mixed, not bf16-true."
        )


def critic_groups(critic: nn.Module, config: AdversarialConfig) -> list[dict[str, Any]]:
    """Adam's parameter groups: what is pre-trained learns at its own rate."""
    trunk = list(getattr(critic, "trunk_parameters", list)())
    of_trunk = {id(p) for p in trunk}
    head = [p for p in critic.parameters() if id(p) not in of_trunk]
    groups = [{"params": head, "lr": config.critic_lr}, {"params": trunk, "lr": config.trunk_lr}]
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def clip_weights(critic: nn.Module, value: float) -> None:
    """Every trained weight into [-value, value] (Arjovsky et al. 2017, algorithm 1)."""
    for parameter in critic.parameters():
        if parameter.requires_grad:
            parameter.clamp_(-value, value)


def lr_shape(config: PretrainConfig | AdversarialConfig) -> tuple[int, int, int, int]:
    """Of a batch that the generator gets."""
    return config.batch_size, 3, config.patch_size, config.patch_size


def last_turn(config: AdversarialConfig, turn: int) -> bool:
    """Whether the critic's turn may be its last in this step."""
    return turn == config.critic_steps or config.critic_gap is not None


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def schedule(
    optimizer: torch.optim.Optimizer, config: PretrainConfig | AdversarialConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a half cosine down to zero or a constant rate."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for a model's parameters meanwhile; those that had none stay without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


class Run:
    """A run's folder: checkpoint, resume and log, shared by both loops.

    ``parts`` are the things with a state: networks, optimizers, schedulers and the bank.
    """

    def __init__(
        self,
        folder: Path | str,
        config: PretrainConfig | AdversarialConfig,
        metrics: list[str],
        fabric: "Fabric",
        progress: bool,
        **parts: Any,
    ):
        self.folder, self.config, self.parts = Path(folder), config, parts
        self.fabric, self.writes = fabric, fabric.global_rank == 0
        self.path = self.folder / CHECKPOINT
        self.model = describe(parts["generator"])  # a generator that cannot be described fails now
        self.monitor = Monitor(
            self.folder,
            metrics,
            config.log_every,
            config.steps,
            config.batch_size * fabric.world_size,
            progress and self.writes,
            writes=self.writes,
            mean=partial(mean_over_processes, fabric),
        )

    def __enter__(self) -> "Run":
        rank = self.fabric.global_rank
        if rank:  # crops of its own
            bank = self.parts["bank"].generator
            bank.manual_seed(bank.initial_seed() + rank)
        self.start, pending = self._resume() if self.path.is_file() else (0, [])
        start = torch.tensor(float(self.start), device=self.fabric.device)
        if self.fabric.world_size > 1 and self.fabric.all_reduce(start) != self.start:
            raise CheckpointError(
                f"not every process finds the same checkpoint in {self.folder}: all machines of a "
                "run need one folder that they share."
            )
        self.step = self.start
        self.monitor.open(self.start, pending)
        self.begin = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self.begin
        self.monitor.close()

    def remaining_steps(self):
        """The numbers of the steps still to do, from 1 to ``config.steps``."""
        for step in range(self.start + 1, self.config.steps + 1):
            yield step
            self.step = step

    def due(self, step: int, every: int) -> bool:
        """True at every multiple of ``every`` (if positive) and after the last step."""
        return step == self.config.steps or (every > 0 and step % every == 0)

    def save(self, step: int) -> None:
        # Never overwrite a good checkpoint with NaN. This step's update may have spoilt the weights
        # though its loss was still finite.
        self.monitor.check(step)
        networks = {n: part for n, part in self.parts.items() if isinstance(part, nn.Module)}
        for name, network in networks.items():
            if not torch.stack([p.isfinite().all() for p in network.parameters()]).all():
                raise self.monitor.diverged(f"a weight of the {name}", step)
        self.step = step
        pending = self.monitor.pending
        if pending:
            pending = [*mean_over_processes(self.fabric, torch.stack(pending))]
        banks = self._banks()
        if not self.writes:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state["random"] = torch.get_rng_state()
        state["pending"] = pending
        state["banks"] = banks
        info = {
            "step": step,
            "config": {"kind": type(self.config).__name__} | asdict(self.config),
            "model": self.model,
        }
        save_checkpoint(self.path, state, info)

    def agreed(self, step: int, stop: bool) -> bool:
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
        mine = {"kind": type(self.config).__name__} | asdict(self.config)
        theirs = info["config"]
        differing = [
            f"{key} = {theirs.get(key)!r}, now {value!r}"
            for key, value in mine.items()
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
        return info["step"], [row.to(self.fabric.device) for row in state["pending"]]

    def say_stopped(self, step: int) -> None:
        if not self.writes:
            return
        print(
            f"\nStopped after step {step} of {self.config.steps}; saved {self.path}. "
            "Run the same command or cell again to go on from here."
        )

    def result(self) -> Result:
        done = self.step - self.start
        patches = done * self.config.batch_size * self.fabric.world_size
        speed = patches / self.seconds if done else 0.0
        generator = deepcopy(self.parts["average"].module).eval()
        return Result(generator, self.folder, self.step, self.seconds, speed)


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay an optimizer's state out in memory as its parameters are.

    A checkpoint keeps no layout, and steps over unlike ones are slower.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter).copy_(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
