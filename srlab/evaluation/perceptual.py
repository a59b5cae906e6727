"""LPIPS: how different two pictures look to a trained network.

The distance's linear heads come with torchmetrics; the network under them does not, and nothing
here downloads it unasked: :func:`load` takes a file that is at hand or says how to get one.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srlab.datasets import data_folders
from srlab.download import download
from srlab.errors import SrlabError


class PerceptualError(SrlabError):
    """LPIPS cannot be measured: its network is missing or damaged."""


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision's and the places in its ``features`` where LPIPS looks."""

    name: str
    ends: tuple[int, ...]  # each slice ends before this layer
    url: str
    checksum: str
    size: str


_WEIGHTS = "https://download.pytorch.org/models/"
BACKBONES = {
    "squeeze": Backbone(
        "squeezenet1_1", (2, 5, 8, 10, 11, 12, 13),
        f"{_WEIGHTS}squeezenet1_1-b8a52dc0.pth", "sha256:b8a52dc0", "5 MB",
    ),
    "alex": Backbone(
        "alexnet", (2, 5, 8, 10, 12),
        f"{_WEIGHTS}alexnet-owt-7be5be79.pth", "sha256:7be5be79", "244 MB",
    ),
}  # fmt: skip


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
        published: whether ``features`` holds torchvision's own weights. With others the heads fit
            less well: the figure ranks pictures, but does not compare with printed ones.

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
        heads = torch.load(_heads_file(net), map_location="cpu", weights_only=True)
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


def load(net: str = "squeeze") -> LPIPS:
    """LPIPS with trained weights that lie on this machine; never touches the network.

    Looked for are torchvision's file where torch keeps downloaded models, then
    ``weights/squeezenet1_1_features_imagenet.safetensors`` (or ``alexnet_...``) in the folders that
    ``SRLAB_DATA`` names.

    Raises:
        PerceptualError: unknown ``net``, no such file, or a file that holds something else.
    """
    backbone = _backbone(net)
    path = torchvision_file(net)
    own = f"{backbone.name}_features_imagenet.safetensors"
    candidates = [path, *(folder / "weights" / own for folder in data_folders())]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise PerceptualError(
            f"LPIPS is not measured: the weights of {backbone.name} are not on this machine. "
            f"`srlab fetch lpips-{net}` gets them ({backbone.size})."
        )
    features = architecture(net)
    try:
        if found == path:
            weights = torch.load(found, map_location="cpu", weights_only=True)
            weights = {k.removeprefix("features."): v for k, v in weights.items()}
        else:
            from safetensors.torch import load_file

            weights = load_file(found)
        features.load_state_dict({key: weights[key].float() for key in features.state_dict()})
    except Exception as error:
        raise PerceptualError(
            f"{found} does not hold the features of {backbone.name} ({type(error).__name__}): "
            f"delete it and run `srlab fetch lpips-{net}`."
        ) from error
    return LPIPS(net, features, published=found == path)


def fetch(net: str = "squeeze", progress: bool = True) -> Path:
    """Download torchvision's weights to where torch keeps its models; at once if they are there.

    Raises:
        SrlabError: unknown ``net``, no connection, no space, no permission, or a wrong checksum.
    """
    backbone, path = _backbone(net), torchvision_file(net)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download(backbone.url, path, backbone.checksum, progress)
    except OSError as error:
        why = error.strerror or error
        raise PerceptualError(
            f"Cannot write to {path.parent} ({why}): name another folder in TORCH_HOME."
        ) from error
    return path


def torchvision_file(net: str) -> Path:
    """Where torch, torchvision and :func:`fetch` keep a backbone's weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _backbone(net).url.rpartition("/")[2]


def architecture(net: str) -> nn.Sequential:
    """Torchvision's ``features`` with random weights."""
    import torchvision

    return getattr(torchvision.models, _backbone(net).name)(weights=None).features


def _backbone(net: str) -> Backbone:
    if net not in BACKBONES:
        raise PerceptualError(f"no LPIPS network {net!r}: choose {' or '.join(BACKBONES)}.")
    return BACKBONES[net]


def _heads_file(net: str) -> Path:
    from importlib.util import find_spec

    folder = Path(find_spec("torchmetrics").origin).parent  # does not import it
    return folder / "functional" / "image" / "lpips_models" / f"{net}.pth"


def _unit(x: Tensor) -> Tensor:
    return x / torch.sqrt(1e-8 + x.square().sum(dim=1, keepdim=True))
