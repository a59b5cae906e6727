"""LPIPS: how different two pictures look to a trained network.

The judge is LPIPS on AlexNet, which papers quote; where AlexNet is not at hand, LPIPS on the far
smaller SqueezeNet stands in, with other numbers. The linear heads come with torchmetrics; the
networks under them do not, and nothing here downloads them unasked: :func:`load` takes a file that
is at hand or says how to get one.
"""

from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srlab.errors import SrlabError
from srlab.models import pretrained


class PerceptualError(SrlabError):
    """LPIPS cannot be measured: its network is missing or damaged."""


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision's and the places in its ``features`` where LPIPS looks."""

    network: pretrained.Pretrained
    ends: tuple[int, ...]  # each slice ends before this layer


BACKBONES = {  # the better judge first
    "alex": Backbone(pretrained.ALEXNET, (2, 5, 8, 10, 12)),
    "squeeze": Backbone(pretrained.SQUEEZENET, (2, 5, 8, 10, 11, 12, 13)),
}


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, version 0.1: 0 for equal pictures, less is better.

    Features of both pictures are set to length 1 at every place; the squared difference of each
    channel is weighted by what people's judgements taught the heads, averaged over the picture and
    summed over the layers. R. Zhang et al., "The unreasonable effectiveness of deep features as a
    perceptual metric", CVPR 2018, arXiv:1801.03924.

    Args:
        net: ``"alex"``, which papers quote, or ``"squeeze"``, fifty times smaller. The two give
            different numbers.
        features: torchvision's ``features`` of that network, trained.
        published: whether ``features`` holds torchvision's own weights, for which the heads were
            made. With others they fit less well: the figure ranks pictures, but does not compare
            with printed ones.

    Shape: two (N, 3, H, W) RGB in [0, 1] (clamped), at least 32 pixels a side -> (N,).
    """

    def __init__(self, net: str, features: nn.Sequential, published: bool = True):
        super().__init__()
        self.net = net
        self.published = published
        ends = BACKBONES[net].ends
        self.slices = nn.ModuleList(
            features[start:end] for start, end in zip((0, *ends), ends, strict=False)
        )
        folder = Path(str(distribution("torchmetrics").locate_file("torchmetrics")))  # no import
        file = folder / "functional" / "image" / "lpips_models" / f"{net}.pth"
        heads = torch.load(file, map_location="cpu", weights_only=True)
        self.heads = nn.ParameterList(heads[f"lin{i}.model.1.weight"] for i in range(len(ends)))
        # From [0, 1] to [-1, 1], then the ImageNet normalisation that is used there.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    @property
    def label(self) -> str:
        """What a table's column should be called."""
        return f"LPIPS-{self.net}" + ("" if self.published else " (relative)")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < 32:
            raise ValueError(
                "LPIPS needs two (N, 3, H, W) batches of one shape, at least 32 pixels a side, got "
                f"{tuple(x.shape)} and {tuple(y.shape)}"
            )
        x, y = ((2 * z.clamp(0, 1) - 1 - self.shift) / self.scale for z in (x, y))
        distance = x.new_zeros(len(x))
        for part, head in zip(self.slices, self.heads, strict=True):
            x, y = part(x), part(y)
            difference = (_unit(x) - _unit(y)).square()
            distance = distance + F.conv2d(difference, head).mean(dim=(1, 2, 3))
        return distance


def load(net: str | None = None) -> LPIPS:
    """LPIPS with trained weights that lie on this machine; never touches the network.

    Looked for are torchvision's file where torch keeps downloaded models, then
    ``weights/alexnet_features_imagenet.safetensors`` (or ``squeezenet1_1_...``) in the folders that
    ``SRLAB_DATA`` names. Whether a file holds torchvision's own weights is decided by its content.

    Args:
        net: ``"alex"`` or ``"squeeze"``; by default the first of them that is at hand.

    Raises:
        PerceptualError: unknown ``net``, no such file, or a file that holds something else.
    """
    if net is None:
        net = next((name for name, b in BACKBONES.items() if b.network.find()), "alex")
    network = _backbone(net).network
    try:
        weights, published = network.read()
    except pretrained.FeatureError as error:
        raise PerceptualError(f"LPIPS is not measured: {error}") from error
    features = architecture(net)
    try:
        features.load_state_dict({key: weights[key] for key in features.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise PerceptualError(
            f"LPIPS is not measured: {network.find()} does not hold the features of "
            f"{network.name}: delete it and run `srlab fetch {network.command}`."
        ) from error
    return LPIPS(net, features, published)


def architecture(net: str) -> nn.Sequential:
    """Torchvision's ``features`` with random weights."""
    import torchvision

    return getattr(torchvision.models, _backbone(net).network.name)(weights=None).features


def _backbone(net: str) -> Backbone:
    if net not in BACKBONES:
        raise PerceptualError(f"no LPIPS network {net!r}: choose {' or '.join(BACKBONES)}.")
    return BACKBONES[net]


def _unit(x: Tensor) -> Tensor:
    return x / torch.sqrt(1e-8 + x.square().sum(dim=1, keepdim=True))
