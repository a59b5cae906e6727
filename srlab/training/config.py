"""Every number that a training run depends on, in two plain dataclasses."""

from dataclasses import dataclass

from srlab.errors import SrlabError


class ConfigError(SrlabError, ValueError):
    """A setting that no run can have."""


@dataclass(frozen=True)
class _Config:
    """What both kinds of training have in common; see :class:`PretrainConfig`."""

    steps: int = 1000
    batch_size: int = 16
    patch_size: int = 24
    ema_decay: float = 0.999
    log_every: int = 20
    validate_every: int = 100
    checkpoint_every: int = 500

    @property
    def lr_shape(self) -> tuple[int, int, int, int]:
        """Of the batch that the generator gets."""
        return self.batch_size, 3, self.patch_size, self.patch_size

    def _check(self, *positive: str, **choices: tuple[str, ...]) -> None:
        """Raise :class:`ConfigError` for the first field that is not positive, or no choice."""
        kind = type(self).__name__
        for name in ("steps", "batch_size", "patch_size", "log_every", *positive):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{kind}.{name} must be positive, got {getattr(self, name)!r}")
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{kind}.{name} must not be negative, got {getattr(self, name)}")
        for name, known in (choices | {"schedule": ("cosine", "constant")}).items():
            if getattr(self, name) not in known:
                *first, last = map(repr, known)
                listed = f"{', '.join(first)} or {last}"
                raise ConfigError(f"{kind}.{name} must be {listed}, got {getattr(self, name)!r}")
        if self.validate_every % self.log_every:
            raise ConfigError(
                f"{kind}.validate_every ({self.validate_every}) must be a multiple of log_every "
                f"({self.log_every}), so that each figure finds its row in the log"
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"{kind}.ema_decay must lie in [0, 1), got {self.ema_decay!r}")


@dataclass(frozen=True)
class PretrainConfig(_Config):
    """Training a generator for PSNR: content loss only.

    Attributes:
        steps: optimizer steps.
        batch_size: crops a step (on each device).
        patch_size: side of the LR crop in pixels.
        loss: ``"l1"`` or ``"mse"``.
        optimizer: ``"adam"``, or ``"muon"`` (:class:`srlab.training.optim.Muon`).
        lr: peak learning rate.
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

    loss: str = "l1"
    optimizer: str = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 20
    schedule: str = "cosine"

    def __post_init__(self):
        self._check("lr", loss=("l1", "mse"), optimizer=("adam", "muon"))


@dataclass(frozen=True)
class AdversarialConfig(_Config):
    """The adversarial game: which loss, what keeps the critic tame, who moves how often.

    The defaults are SRGAN's (Ledig et al. 2017). For WGAN-GP take ``adversarial="wasserstein"``,
    ``lipschitz="gradient-penalty"``, ``critic_steps=5`` and ``critic_betas=(0, 0.9)`` (Gulrajani et
    al. 2017).

    Attributes:
        content: pixel loss, ``"l1"`` or ``"mse"``.
        content_weight, perceptual_weight, adversarial_weight: of the three parts of the generator's
            loss.
        grid_weight: of a fourth, :func:`srlab.losses.grid`, against the grid that the perceptual
            loss invites.
        adversarial: ``"bce"``, ``"relativistic"`` or ``"wasserstein"``; see :mod:`srlab.losses`.
        lipschitz: what bounds the critic's slope: ``"none"``, ``"clip"`` (each weight into
            [-clip_value, clip_value] after every step), ``"gradient-penalty"``, or ``"spectral"``
            (the critic is built with spectral norm).
        clip_value: for ``"clip"``.
        penalty_weight: lambda of the gradient penalty.
        critic_steps: critic steps to one of the generator, each on a fresh batch.
        critic_gap: if given, the critic stops before ``critic_steps`` as soon as E[D(real)] -
            E[D(fake)] has reached this: it is trained until it can teach, and no longer.
        generator_lr, critic_lr: peak learning rates of the two Adam optimizers.
        trunk_lr: of pre-trained layers that the critic stands on, if they are fine-tuned.
        generator_betas, critic_betas: of the two Adam optimizers.
        max_grad_norm: gradients of either player are scaled down to this norm; None leaves them.

    The other fields mean what they mean in :class:`PretrainConfig`.
    """

    content: str = "mse"
    content_weight: float = 1.0
    perceptual_weight: float = 0.0
    grid_weight: float = 0.0
    adversarial: str = "bce"
    adversarial_weight: float = 1e-3
    lipschitz: str = "none"
    clip_value: float = 0.01
    penalty_weight: float = 10.0
    critic_steps: int = 1
    critic_gap: float | None = None
    generator_lr: float = 1e-4
    critic_lr: float = 1e-4
    trunk_lr: float = 1e-5
    generator_betas: tuple[float, float] = (0.9, 0.999)
    critic_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = None
    warmup_steps: int = 0
    schedule: str = "constant"

    def __post_init__(self):
        self._check(
            *("critic_steps", "clip_value", "generator_lr", "critic_lr", "trunk_lr"),
            content=("l1", "mse"),
            adversarial=("bce", "relativistic", "wasserstein"),
            lipschitz=("none", "clip", "gradient-penalty", "spectral"),
        )
