"""Named games: which players, which losses. `srlab train NAME` and the chapters use them."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from srlab.losses import Perceptual
from srlab.models import vgg
from srlab.models.critics import Discriminator, VGGCritic


@dataclass(frozen=True)
class Recipe:
    """What a game is made of, beside data and length.

    Attributes:
        start: the released model that enters the game if no other is given.
        critic: ``"discriminator"`` or ``"vgg"``.
        settings: fields of :class:`srlab.training.config.AdversarialConfig`.
    """

    start: str
    critic: str
    settings: dict[str, Any] = field(default_factory=dict)


# The generator's batch norm is folded before any of these games (`generators.fold`): its running
# statistics follow the last few crops, which chapter 02 shows to cost decibels by itself.
RECIPES = {
    # Ledig et al. 2017, with the pixel loss for content.
    "srgan": Recipe("srresnet", "discriminator"),
    # WDRN, perceptual loss, a critic on VGG features, Wasserstein with gradient penalty. The slope
    # of a Wasserstein critic is 1 for a whole picture, that of a mean over pixels far less: hence
    # the small weight. With the usual penalty of 10, a critic that starts from a warm generator
    # spends its first hundred steps on its slope and prefers the fakes meanwhile.
    "wdrn-vgg-wgan": Recipe(
        "wdrn",
        "vgg",
        {
            "content": "l1",
            "perceptual_weight": 0.1,
            "adversarial": "wasserstein",
            "adversarial_weight": 1e-3,
            "lipschitz": "gradient-penalty",
            "penalty_weight": 1.0,
            "critic_lr": 1e-3,
            "critic_steps": 5,
            "critic_betas": (0.0, 0.9),
        },
    ),
}
# What the perceptual loss compares: edges, strokes and textures. The layers behind know little in
# vgg19-slim; with relu2_2 and relu4_4 a short trial ended lower in PSNR and farther by LPIPS.
PERCEPTUAL_TAPS = {"relu1_2": 0.3, "relu2_2": 0.3, "relu3_4": 0.4}
# What the VGG critic judges: deep enough for textures, shallow enough to see single strokes.
CRITIC_TAP = "relu3_4"


def build_critic(recipe: Recipe, hr_size: int, features: str = "vgg19-slim") -> nn.Module:
    """The recipe's critic, fresh but for the pre-trained trunk.

    Args:
        hr_size: side of the HR crops that it will see.
        features: for the VGG critic; see :func:`srlab.models.vgg.load`.
    """
    if recipe.critic == "vgg":
        return VGGCritic(vgg.load(features, [CRITIC_TAP]), pixel_branch=True, patch=True)
    return Discriminator(hr_size)


def build_perceptual(
    recipe: Recipe, images: Tensor, features: str = "vgg19-slim"
) -> Perceptual | None:
    """The recipe's perceptual loss, calibrated on HR crops; None if it has none."""
    if not recipe.settings.get("perceptual_weight"):
        return None
    return Perceptual(vgg.load(features, list(PERCEPTUAL_TAPS)), PERCEPTUAL_TAPS, images)
