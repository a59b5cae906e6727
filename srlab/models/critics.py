"""Critics: networks that look at an image and say how real it seems."""

from copy import deepcopy
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from srlab.models.vgg import LAYERS, Features

NORMS = {
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    # Groups of 16 channels, one of the sizes in Wu and He 2018, arXiv:1803.08494, or fewer.
    "group": lambda channels: nn.GroupNorm(channels // gcd(channels, 16), channels),
    "none": lambda channels: nn.Identity(),
}


class Discriminator(nn.Module):
    """The SRGAN discriminator: eight convolutions, every second one with stride 2.

    C. Ledig et al., CVPR 2017, arXiv:1609.04802, figure 4. The score is a logit: the paper's
    closing sigmoid belongs to the loss (:func:`srlab.losses.bce_critic`), where it is stable.

    Args:
        patch_size: side of the HR crops that it will see, in pixels, a multiple of 16 (96 in the
            paper). The dense layer needs to know it.
        n_features: channels of the first layer; doubled three times on the way.
        norm: ``"batch"`` as in the paper, ``"instance"``, ``"group"`` (16 channels each) or
            ``"none"``. With batch norm one picture's score depends on the others, and a gradient
            penalty has no meaning.
        spectral: divide each layer's weight by its largest singular value (Miyato et al. 2018,
            arXiv:1802.05957), which bounds the slope of the whole network.

    Shape: (N, 3, patch_size, patch_size) RGB in [0, 1] -> (N, 1).
    """

    def __init__(
        self,
        patch_size: int = 96,
        n_features: int = 64,
        norm: str = "batch",
        spectral: bool = False,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if patch_size % 16 or patch_size < 16:
            raise ValueError(f"patch_size must be a positive multiple of 16, got {patch_size}")
        if norm == "instance" and patch_size < 32:
            raise ValueError(
                "norm='instance' needs patch_size=32 or more: of 16 x 16 pixels one is left at the "
                "end, with nothing to average over"
            )
        self.patch_size = patch_size
        widths = [n_features * m for m in (1, 1, 2, 2, 4, 4, 8, 8)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, 8):
            stride = 2 if i % 2 else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 3, stride, padding=1),
                NORMS[norm](widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * (patch_size // 16) ** 2, 1024),
            nn.LeakyReLU(0.2),
            nn.Linear(1024, 1),
        )
        if spectral:
            add_spectral_norm(self)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.patch_size, self.patch_size):
            raise ValueError(
                f"this Discriminator judges {self.patch_size} x {self.patch_size} crops, got "
                f"{tuple(image.shape)}: build it with Discriminator(patch_size=...)"
            )
        return self.classifier(self.features(image))


class VGGCritic(nn.Module):
    """A critic that looks through a pre-trained network's eyes.

    The trunk turns the picture into VGG features, which know edges, textures and parts of objects
    from the start; a small head learns what is wrong with them. There is no batch norm anywhere, so
    a gradient penalty is allowed.

    Args:
        features: the trunk (see :func:`srlab.models.vgg.load`); its last tap is judged. ``relu3_4``
            sees textures, deeper ones see objects.
        finetune: train the trunk too, at a rate of its own (:meth:`trunk_parameters`). The critic
            then works on a copy, so that a perceptual loss may go on using ``features``.
        pixel_branch: beside the features, strided convolutions on the picture itself: what VGG was
            trained to ignore, such as noise and colour shifts, is not lost.
        patch: score every place by itself (Isola et al. 2017, PatchGAN) in place of the picture.
        n_features: channels of the head.
        spectral: spectral norm in all layers that learn. It rescales the weights of a fine-tuned
            trunk, and does not bound a frozen one.

    Shape: (N, 3, H, W) RGB in [0, 1] -> (N, 1), or with ``patch`` (N, 1, H / s, W / s), where s is
    the tap's stride.
    """

    def __init__(
        self,
        features: Features,
        *,
        finetune: bool = False,
        pixel_branch: bool = False,
        patch: bool = False,
        n_features: int = 64,
        spectral: bool = False,
    ):
        super().__init__()
        self.tap = max(features.taps, key=LAYERS.index)
        self.trunk = features
        self.finetune = finetune
        self.patch = patch
        if finetune:
            self.trunk = deepcopy(features).requires_grad_(True)
        channels = features.channels[self.tap]
        # Features have no common scale: one of all channels together, for each picture by itself.
        self.norm = nn.GroupNorm(1, channels)
        self.pixels = None
        if pixel_branch:
            halvings = sum(n.startswith("pool") for n in LAYERS[: LAYERS.index(self.tap) + 1])
            self.pixels = nn.Sequential(nn.Conv2d(3, n_features, 3, padding=1), nn.LeakyReLU(0.2))
            for _ in range(halvings):
                self.pixels.append(nn.Conv2d(n_features, n_features, 4, 2, padding=1))
                self.pixels.append(nn.LeakyReLU(0.2))
            channels += n_features
        self.head = nn.Sequential(
            nn.Conv2d(channels, n_features, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(n_features, n_features, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(n_features, 1, 1),
        )
        if spectral:
            add_spectral_norm(self.head)
            if self.pixels is not None:
                add_spectral_norm(self.pixels)
            if finetune:
                add_spectral_norm(self.trunk)
        self.train()

    def train(self, mode: bool = True) -> "VGGCritic":
        super().train(mode)
        # Features stay in evaluation mode, but spectral norm follows its weights in training only.
        self.trunk.layers.train(mode and self.finetune)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "VGGCritic":
        super().requires_grad_(requires_grad)
        self.trunk.requires_grad_(requires_grad and self.finetune)  # frozen stays frozen
        return self

    def forward(self, image: Tensor) -> Tensor:
        seen = self.norm(self.trunk(image)[self.tap])
        if self.pixels is not None:
            seen = torch.cat([seen, self.pixels(image)], dim=1)
        scores = self.head(seen)
        return scores if self.patch else scores.mean(dim=(2, 3))

    def trunk_parameters(self) -> list[nn.Parameter]:
        """What was pre-trained and is fine-tuned; empty if the trunk is frozen."""
        return list(self.trunk.parameters()) if self.finetune else []


def add_spectral_norm(model: nn.Module) -> None:
    """Spectral norm on every convolution and dense layer."""
    for module in list(model.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            spectral_norm(module)


class NoCritic(nn.Module):
    """Takes the critic's place where there is no game: it scores every picture alike.

    What a generator gains in a game shows only beside one that was trained as long without.

    Shape: (N, 3, H, W) -> (N, 1).
    """

    def __init__(self):
        super().__init__()
        self.score = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.score.expand(len(image), 1)
