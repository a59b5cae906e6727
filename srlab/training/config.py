"""Every number that a training run depends on, in two plain dataclasses."""

from dataclasses import dataclass

from srlab.errors import SrlabError


class ConfigError(SrlabError, ValueError):
    """A setting that no run can have."""


@dataclass(frozen=True)
class PretrainConfig:
    """Training a generator for PSNR: content loss only.

    Attributes:
        steps: optimizer steps.
        batch_size: crops a step (on each device).
        patch_size: side of the LR crop in pixels.
        loss: ``"l1"`` or ``"mse"``.
        lr: peak learning rate of Adam.
        betas: of Adam.
        warmup_steps: steps over which the learning rate rises from zero.
        schedule: ``"cosine"`` falls to zero at the last step, ``"constant"`` stays.
        ema_decay: of the exponential moving average of the weights, which is what gets
            evaluated and released; early on the average follows faster.
        log_every: steps averaged into one row of the log.
        validate_every: steps between validations, a multiple of ``log_every``; 0 for only after
            the last step.
        checkpoint_every: steps between checkpoints; there is always one after the last step.
    """

    steps: int = 1000
    batch_size: int = 16
    patch_size: int = 24
    loss: str = "l1"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 20
    schedule: str = "cosine"
    ema_decay: float = 0.999
    log_every: int = 20
    validate_every: int = 100
    checkpoint_every: int = 500

    def __post_init__(self):
        _check(self, "loss", positive=("steps", "batch_size", "patch_size", "lr", "log_every"))


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial game of SRGAN (Ledig et al. 2017).

    Attributes:
        content: pixel loss, ``"l1"`` or ``"mse"``.
        adversarial_weight: of the adversarial loss beside the content loss.
        generator_lr, critic_lr: peak learning rates of the two Adam optimizers.

    The other fields mean what they mean in :class:`PretrainConfig`.
    """

    steps: int = 1000
    batch_size: int = 16
    patch_size: int = 24
    content: str = "mse"
    adversarial_weight: float = 1e-3
    generator_lr: float = 1e-4
    critic_lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: str = "constant"
    ema_decay: float = 0.999
    log_every: int = 20
    validate_every: int = 100
    checkpoint_every: int = 500

    def __post_init__(self):
        _check(
            self,
            "content",
            positive=(
                "steps",
                "batch_size",
                "patch_size",
                "generator_lr",
                "critic_lr",
                "log_every",
            ),
        )


def _check(
    config: PretrainConfig | AdversarialConfig, loss: str, positive: tuple[str, ...]
) -> None:
    kind = type(config).__name__
    for name in positive:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{kind}.{name} must be positive, got {getattr(config, name)!r}")
    if getattr(config, loss) not in ("l1", "mse"):
        raise ConfigError(f"{kind}.{loss} must be 'l1' or 'mse', got {getattr(config, loss)!r}")
    if config.schedule not in ("cosine", "constant"):
        raise ConfigError(
            f"{kind}.schedule must be 'cosine' or 'constant', got {config.schedule!r}"
        )
    if config.validate_every % config.log_every:
        raise ConfigError(
            f"{kind}.validate_every ({config.validate_every}) must be a multiple of log_every "
            f"({config.log_every}), so that each figure finds its row in the log"
        )
    if not 0 <= config.ema_decay < 1:
        raise ConfigError(f"{kind}.ema_decay must lie in [0, 1), got {config.ema_decay!r}")
