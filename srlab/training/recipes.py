"""Named recipes, and the one place where a training is put together.

`srlab train NAME`, the scripts, the benchmark, the ablation and the chapters all call
:func:`train`: recipe -> generator, critic and perceptual loss -> configuration -> loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srlab.data.bank import PatchBank
from srlab.errors import SrlabError
from srlab.evaluation import protocol
from srlab.losses import Perceptual
from srlab.models import vgg, zoo
from srlab.models.critics import Discriminator, NoCritic, VGGCritic
from srlab.models.generators import fold
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.engine import default_fabric
from srlab.training.game import adversarial
from srlab.training.pretrain import pretrain
from srlab.training.run import Result

# What the perceptual loss compares: edges, strokes and textures. In vgg19-slim the layers behind
# order pictures less as their teacher does (notebooks/results/vgg_slim.csv).
PERCEPTUAL_TAPS = {"relu1_2": 0.3, "relu2_2": 0.3, "relu3_4": 0.4}
# The same with a network that learned on ImageNet itself: its deeper layers know what things are.
DEEP_TAPS = {
    "vgg16": {"relu2_2": 0.2, "relu3_3": 0.3, "relu4_3": 0.5},
    "vgg19": {"relu2_2": 0.2, "relu3_4": 0.3, "relu4_4": 0.5},
}
# Where it also compares how strong the texture is: strokes and patterns more than parts of things.
# (Not tried with vgg19-slim.)
TEXTURE_TAPS = {
    "vgg16": {"relu1_2": 0.3, "relu2_2": 0.3, "relu3_3": 0.3, "relu4_3": 0.1},
    "vgg19": {"relu1_2": 0.3, "relu2_2": 0.3, "relu3_4": 0.3, "relu4_4": 0.1},
}
TEXTURE = 2.0  # weight of this comparison, beside 1 for that of the features themselves
# What the VGG critic judges: deep enough for textures, shallow enough to see single strokes.
CRITIC_TAP = "relu3_4"  # relu3_3 in VGG16


@dataclass(frozen=True)
class Recipe:
    """What a training is made of, beside data and length.

    Attributes:
        generator: the architecture that is trained from scratch or, in a game, the released model
            that enters it.
        critic: empty trains for PSNR alone; ``"discriminator"`` or ``"vgg"`` plays a game;
            ``"none"`` plays it without an opponent, the control that a game is compared with.
        settings: fields of :class:`~srlab.training.config.PretrainConfig` or, for a game, of
            :class:`~srlab.training.config.AdversarialConfig`.
    """

    generator: str
    critic: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_game(self) -> bool:
        """Whether a generator that is trained already goes on against (or without) a critic."""
        return bool(self.critic)


# Muon and 4 crops a step: chosen on pictures held out of the training sets (studies of chapter 07).
_PSNR = {"optimizer": "muon", "batch_size": 4}
# A little of the usual pixel loss beside the features, and rates that fall to zero at the end. The
# weights come from short trials on Set5, one seed each: with a third of this weight on the features
# SRGAN's game lost a decibel more and came no closer; with twice as much it came less close. The
# perceptual loss invites a grid of the generator's period, and losses.grid turns it down.
_GAME = {
    "content": "l1",
    "content_weight": 0.1,
    "perceptual_weight": 0.3,
    "grid_weight": 9.0,
    "generator_lr": 2e-4,
    "batch_size": 4,
    "schedule": "cosine",
    "warmup_steps": 20,
}
# The generator's batch norm is folded before any game (`generators.fold`): its running statistics
# follow the last few crops, which chapter 02 shows to cost decibels by themselves.
RECIPES: dict[str, Recipe] = {
    **{name: Recipe(name, settings=_PSNR) for name in zoo.ARCHITECTURES if name != "bicubic"},
    # Ledig et al. 2017: content by VGG features, cross-entropy. Their features are VGG54 alone;
    # several layers and a little L1 keep colours and edges in a game far shorter than theirs.
    "srgan": Recipe(
        "srresnet",
        "discriminator",
        {**_GAME, "adversarial_weight": 5e-3, "critic_lr": 2e-4},
    ),
    # WDRN, perceptual loss, a critic on VGG features, Wasserstein with gradient penalty. The slope
    # of a Wasserstein critic is 1 for a whole picture, that of a mean over pixels far less: hence
    # the small weight. With the usual penalty of 10, a critic that starts from a warm generator
    # spends its first hundred steps on its slope and prefers the fakes meanwhile.
    "wdrn-vgg-wgan": Recipe(
        "wdrn",
        "vgg",
        {
            **_GAME,
            "adversarial": "wasserstein",
            "adversarial_weight": 2e-3,
            "lipschitz": "gradient-penalty",
            "penalty_weight": 1.0,
            "critic_lr": 1e-3,
            "critic_betas": (0.0, 0.9),
        },
    ),
}


def find(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        SrlabError: unknown; lists the names.
    """
    if name not in RECIPES:
        raise SrlabError(f"unknown model {name!r}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def with_critic(recipe: Recipe, critic: str) -> Recipe:
    """The same game against another critic, or against none: then nothing of it is adversarial.

    Raises:
        SrlabError: the recipe is no game, or there is no such critic.
    """
    if not recipe.is_game:
        raise SrlabError("--critic is for games: srgan, wdrn-vgg-wgan.")
    if critic not in ("discriminator", "vgg", "none"):
        raise SrlabError(f"--critic must be discriminator, vgg or none, got {critic!r}.")
    alone = {"adversarial": "bce", "adversarial_weight": 0.0, "lipschitz": "none"}
    settings = {**recipe.settings, **(alone if critic == "none" else {})}
    return replace(recipe, critic=critic, settings=settings)


def train(
    recipe: Recipe | str,
    bank: PatchBank,
    folder: Path | str,
    *,
    generator: nn.Module | None = None,
    critic: nn.Module | None = None,
    features: str = "vgg19-slim",
    critic_features: str | None = None,
    critic_width: int = 64,
    pool: str = "avg",
    texture: bool = True,
    settings: Mapping[str, Any] = {},
    seed: int = 0,
    held_out: Sequence[Path] = (),
    **options: Any,
) -> Result:
    """Train by a recipe: build what is missing, then run the loop.

    Args:
        recipe: or its name.
        bank: where the crops come from.
        folder: of the run.
        generator: trained in place; by default a fresh network, or the released one that the
            game starts from, folded.
        critic: by default the recipe's, fresh but for a pre-trained trunk.
        features: of the perceptual loss; see :func:`srlab.models.vgg.load`.
        critic_features: what a VGG critic stands on, by default the same.
        pool: of the perceptual loss's network; see :class:`srlab.models.vgg.Features`.
        texture: whether that loss also compares how strong the texture is, see
            :class:`srlab.losses.Perceptual`.
        critic_width: channels of a fresh critic's first layer (VGG critic: of its head).
        settings: fields of the configuration that differ from the recipe's.
        seed: of fresh weights. (The crops have the bank's.)
        held_out: picture files; the log's ``val_psnr`` is measured on them.
        options: ``validate`` (in place of ``held_out``), ``fabric``, ``engine``, ``on_step`` and
            ``progress`` of :func:`~srlab.training.pretrain.pretrain`.

    Raises:
        SrlabError: an unknown recipe, and what the loops raise.
    """
    recipe = find(recipe) if isinstance(recipe, str) else recipe
    fabric = options.setdefault("fabric", None) or default_fabric()
    options["fabric"] = fabric
    if held_out:
        options.setdefault(
            "validate", lambda model: protocol.mean_psnr(model, held_out, fabric.device)
        )
    torch.manual_seed(seed)
    if not recipe.is_game:
        generator = generator or zoo.build(recipe.generator)
        plan = PretrainConfig(**{**recipe.settings, **settings})
        return pretrain(generator, bank, plan, folder, **options)
    generator = generator or fold(zoo.load(recipe.generator))
    config = AdversarialConfig(**{**recipe.settings, **settings})
    hr_size = config.patch_size * generator.scale
    critic = critic or build_critic(recipe, hr_size, critic_features or features, critic_width)
    if config.perceptual_weight:
        state = bank.state_dict()  # looking at pictures leaves the order of the crops as it is
        pictures = bank.batch(16, config.patch_size)[1]
        bank.load_state_dict(state)
        options["perceptual"] = build_perceptual(pictures, features, pool, texture)
    return adversarial(generator, critic, bank, config, folder, **options)


def build_critic(
    recipe: Recipe, hr_size: int, features: str = "vgg19-slim", width: int = 64
) -> nn.Module:
    """The recipe's critic, fresh but for the pre-trained trunk.

    Args:
        hr_size: side of the HR crops that it will see.
        features: for the VGG critic; see :func:`srlab.models.vgg.load`.
        width: channels of its first layer, or of the VGG critic's head.
    """
    if recipe.critic == "none":
        return NoCritic()
    if recipe.critic == "vgg":
        tap = "relu3_3" if features == "vgg16" else CRITIC_TAP
        trunk = vgg.load(features, [tap])
        return VGGCritic(trunk, pixel_branch=True, patch=True, n_features=width)
    return Discriminator(hr_size, width)


def build_perceptual(
    images: Tensor, features: str = "vgg19-slim", pool: str = "avg", texture: bool = True
) -> Perceptual:
    """The perceptual loss of the recipes, calibrated on (N, 3, H, W) HR crops in [0, 1]."""
    taps = DEEP_TAPS.get(features, PERCEPTUAL_TAPS)
    if texture := texture and features in TEXTURE_TAPS:
        taps = TEXTURE_TAPS[features]
    network = vgg.load(features, list(taps), pool)
    return Perceptual(network, taps, images, shift=8, texture=TEXTURE * texture)
