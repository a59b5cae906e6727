"""The rules of the game: what each player minimises, and what keeps the critic tame."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from srlab import losses
from srlab.training.config import AdversarialConfig, ConfigError


def critic_loss(config: AdversarialConfig, real: Tensor, fake: Tensor) -> Tensor:
    """What a critic minimises, without its penalty.

    Args:
        real, fake: its scores of HR and of SR crops, (N, 1) or (N, 1, h, w).

    Returns:
        A scalar, by ``config.adversarial``; see :mod:`srlab.losses`.
    """
    if config.adversarial == "wasserstein":
        return losses.wasserstein_critic(real, fake)
    if config.adversarial == "relativistic":
        return losses.relativistic_critic(real, fake)
    return losses.bce_critic(real, fake)


def generator_loss(config: AdversarialConfig, critic: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
    """The adversarial part of what a generator minimises.

    Args:
        hr, sr: crops, (N, 3, H, W) RGB in [0, 1].

    Returns:
        A scalar, by ``config.adversarial``; see :mod:`srlab.losses`.
    """
    if config.adversarial == "wasserstein":
        return losses.wasserstein_generator(critic(sr))
    if config.adversarial == "relativistic":
        return losses.relativistic_generator(critic(hr), critic(sr))
    return losses.bce_generator(critic(sr))


def columns(config: AdversarialConfig) -> list[str]:
    """The columns of a game's log: only what this configuration measures."""
    found = {
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
        "grid": bool(config.grid_weight),
        "adversarial": True,
        "val_psnr": True,
    }
    return [name for name, measured in found.items() if measured]


def measures_slope(config: AdversarialConfig) -> bool:
    """Whether the critic's slope is measured separately, as no penalty computes it."""
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


@torch.no_grad()
def clip_weights(critic: nn.Module, value: float) -> None:
    """Every trained weight into [-value, value] (Arjovsky et al. 2017, algorithm 1)."""
    for parameter in critic.parameters():
        if parameter.requires_grad:
            parameter.clamp_(-value, value)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for a model's parameters during the body; those that had none stay that way."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def last_turn(config: AdversarialConfig, turn: int) -> bool:
    """Whether the critic's turn may be its last in this step."""
    return turn == config.critic_steps or config.critic_gap is not None


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of a network's weights."""
    return next(model.parameters()).dtype
