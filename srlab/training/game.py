"""The adversarial game: a critic learns to tell SR from HR, the generator to fool it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from srlab import losses
from srlab.data.bank import PatchBank
from srlab.training import rules
from srlab.training.config import AdversarialConfig, ConfigError
from srlab.training.engine import Engine, default_fabric
from srlab.training.faults import explained
from srlab.training.optim import MovingAverage, critic_groups, schedule
from srlab.training.run import Result, Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
    - ``content``, ``perceptual``, ``grid`` and ``adversarial``: the generator's losses, unweighted,
      as far as they have a weight.

    Raises:
        ConfigError: critic and configuration do not fit each other.
    """
    rules.check_critic(critic, config)
    if config.perceptual_weight and perceptual is None:
        raise ConfigError(
            "AdversarialConfig.perceptual_weight is not 0, but there is no perceptual loss: pass "
            "adversarial(..., perceptual=losses.Perceptual(...))."
        )
    fabric = fabric or default_fabric()
    if perceptual is not None:
        perceptual.to(fabric.device)
    g_optimizer = engine.optimizer(
        "adam", generator.parameters(), config.generator_lr, config.generator_betas, fabric.device
    )
    c_optimizer = engine.optimizer(
        "adam", critic_groups(critic, config), config.critic_lr, config.critic_betas, fabric.device
    )
    g_scheduler, c_scheduler = schedule(g_optimizer, config), schedule(c_optimizer, config)
    g_model, g_optimizer = engine.setup(fabric, generator, g_optimizer, config.lr_shape)
    n, c, h, w = config.lr_shape
    shape = (n, c, h * generator.scale, w * generator.scale)
    c_model, c_optimizer = engine.setup(fabric, critic, c_optimizer, shape)
    average = MovingAverage(generator, config.ema_decay)
    parts = {
        "generator": generator, "average": average, "critic": critic,
        "g_optimizer": g_optimizer, "c_optimizer": c_optimizer,
        "g_scheduler": g_scheduler, "c_scheduler": c_scheduler, "bank": bank,
    }  # fmt: skip
    run = Run(
        folder, config, rules.columns(config), fabric, parts=parts,
        engine=engine, validate=validate, on_step=on_step, progress=progress,
        more=getattr(perceptual, "settings", {}),
    )  # fmt: skip

    with run:
        for step in run.steps():
            g_model.train()
            c_model.train()
            row: dict[str, Tensor] = {}

            # The critic's turns. detach(): its loss must not reach the generator.
            for turn in range(1, config.critic_steps + 1):
                lr, hr = fabric.to_device(bank.batch(config.batch_size, config.patch_size))
                # Only the last turn's pictures are the generator's to learn from.
                with torch.set_grad_enabled(rules.last_turn(config, turn)):
                    sr = g_model(lr)
                real, fake = c_model(hr), c_model(sr.detach())
                row["critic_loss"] = rules.critic_loss(config, real, fake)
                total = row["critic_loss"]
                if config.lipschitz == "gradient-penalty":
                    norms = losses.gradient_norms(critic, hr.to(rules.dtype_of(critic)), sr)
                    row["penalty"] = (norms - 1).square().mean()
                    row["gradient_norm"] = norms.mean()
                    total = total + config.penalty_weight * row["penalty"]
                c_optimizer.zero_grad()
                fabric.backward(total)
                if config.max_grad_norm:
                    fabric.clip_gradients(c_model, c_optimizer, max_norm=config.max_grad_norm)
                c_optimizer.step()
                if config.lipschitz == "clip":
                    rules.clip_weights(critic, config.clip_value)
                gap = real.mean() - fake.mean()
                if config.critic_gap is not None:
                    row["turns"] = gap.new_tensor(turn)
                    if gap >= config.critic_gap:
                        break

            # The generator's turn. The frozen critic passes gradients on and keeps none.
            with rules.frozen(critic):
                row["content"] = losses.pixel(sr, hr, config.content)
                total = config.content_weight * row["content"]
                if perceptual is not None and config.perceptual_weight:
                    with fabric.autocast():
                        row["perceptual"] = perceptual(sr, hr)
                    total = total + config.perceptual_weight * row["perceptual"]
                if config.grid_weight:
                    row["grid"] = losses.grid(sr, hr, generator.scale)
                    total = total + config.grid_weight * row["grid"]
                row["adversarial"] = rules.generator_loss(config, c_model, hr, sr)
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
            if rules.measures_slope(config) and run.due(step, config.log_every):
                norms = losses.gradient_norms(critic, hr.to(rules.dtype_of(critic)), sr)
                run.monitor.note("gradient_norm", norms.mean().item())
            run.end_step(step, row)
    return run.result()
