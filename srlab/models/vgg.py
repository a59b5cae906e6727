"""VGG's features: what the perceptual loss compares, and what the VGG critic stands on.

K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015, arXiv:1409.1556. Three sets of weights go by name:

- ``vgg19``: torchvision's, trained on ImageNet; 548 MB, fetched by ``srlab fetch vgg19``;
- ``vgg16``: likewise; three convolutions less, so that its deepest layers are ``relu3_3``,
  ``relu4_3`` and ``relu5_3``;
- ``vgg19-slim``: a network of our own with the same layers at a quarter of the channels, which
  comes with the package. How it was made is told beside its file, in ``weights/features``.
"""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srlab.models import pretrained, released
from srlab.models.pretrained import FeatureError

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five blocks
CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # in each
# The names of the layers in torchvision's order: conv1_1, relu1_1, conv1_2, relu1_2, pool1, ...
NAMES = {
    net: tuple(
        name
        for block, n in enumerate(convolutions, start=1)
        for name in [f"{kind}{block}_{i}" for i in range(1, n + 1) for kind in ("conv", "relu")]
        + [f"pool{block}"]
    )
    for net, convolutions in CONVOLUTIONS.items()
}
LAYERS = NAMES["vgg19"]  # VGG16's are among them, in the same order
POOLS = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
PRETRAINED = {"vgg16": pretrained.VGG16, "vgg19": pretrained.VGG19}


class Features(nn.Module):
    """VGG up to the deepest layer that is asked for; frozen, and always in evaluation mode.

    Gradients flow through it to the image, never into its weights.

    Args:
        taps: names of layers. ``relu5_4`` is SRGAN's VGG54 (torchvision's ``features[:36]``),
            ``conv5_4`` the same before the activation, as in ESRGAN (``features[:35]``).
        width: factor on the number of channels; 1 is VGG's own, 1/4 the slim network's.
        net: ``"vgg19"`` or ``"vgg16"``: which layers there are.
        pool: ``"max"`` as it was trained, or ``"avg"``. A maximum passes its gradient to one pixel
            of four, an average to all: the better choice where pictures are made by that gradient
            (Gatys et al. 2016, "Image style transfer using convolutional neural networks").

    Attributes:
        names: of the network's layers, also of those beyond the deepest tap.
        channels: of each tap.
        scales: of each tap, how large its values are on photographs; see :func:`calibrate`.

    Shape: (N, 3, H, W) RGB in [0, 1] -> {tap: (N, C, h, w)}; h = H // 2 ** (block - 1), and half
    of that behind the block's ``pool``.

    Raises:
        ValueError: unknown layer, or none.
    """

    def __init__(
        self,
        taps: Sequence[str] = ("relu5_4",),
        width: float = 1.0,
        net: str = "vgg19",
        pool: str = "max",
    ):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool must be 'max' or 'avg', got {pool!r}")
        self.taps = (taps,) if isinstance(taps, str) else tuple(taps)
        self.width = width
        self.net = net
        self.pool = pool
        self.names = NAMES[net]
        depth = max((_depth(tap, net) for tap in self.taps), default=0)
        if not depth:
            raise ValueError("taps is empty: name at least one layer, such as 'relu2_2'")
        layers: list[nn.Module] = []
        channels = {}
        before = 3
        for name in self.names[:depth]:
            block = int(name[4]) - 1
            after = max(1, round(WIDTHS[block] * width))
            if name.startswith("conv"):
                layers.append(nn.Conv2d(before, after, 3, padding=1))
                before = after
            elif name.startswith("relu"):
                layers.append(nn.ReLU())  # not in place: a tap before it keeps its values
            else:
                layers.append(POOLS[pool](2))
            channels[name] = before
        self.layers = nn.Sequential(*layers)
        self.channels = {tap: channels[tap] for tap in self.taps}
        self.scales = dict.fromkeys(self.taps, 1.0)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = (image - self.mean) / self.std  # the ImageNet normalisation that it was trained with
        found = {}
        for name, layer in zip(self.names, self.layers, strict=False):
            x = layer(x)
            if name in self.taps:
                found[name] = x
        return found

    def train(self, mode: bool = True) -> "Features":
        return super().train(False)

    def up_to(self, tap: str) -> "Features":
        """A copy that ends at one tap and shares no weights with this network.

        Raises:
            ValueError: unknown tap, or one deeper than this network's layers.
        """
        if (depth := _depth(tap, self.net)) > len(self.layers):
            raise ValueError(
                f"these features end at {self.names[len(self.layers) - 1]}, before {tap}: load "
                f"them with taps=[{tap!r}]"
            )
        weights = self.layers[:depth].state_dict()
        copy = Features((tap,), self.width, self.net, self.pool)
        copy.to(self.mean.device, self.mean.dtype)
        copy.layers.load_state_dict(weights)
        copy.scales[tap] = self.scales.get(tap, 1.0)
        return copy


def _depth(tap: str, net: str) -> int:
    """Number of layers up to and with a tap."""
    names = NAMES[net]
    if tap not in names:
        close = get_close_matches(tap, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(names)
        raise ValueError(f"{net.upper()} has no layer {tap!r}: choose among {known}{hint}")
    return names.index(tap) + 1


@torch.no_grad()
def calibrate(features: Features, images: Tensor) -> dict[str, float]:
    """Measure, store and return ``features.scales``: each tap's root mean square on photographs.

    Features have no natural unit; torchvision's are of another size than the Caffe features whose
    squared error SRGAN divides by 12.75 squared. Divided by its scale, every tap of every network
    has mean square 1, and one weight means the same everywhere. ``vgg19-slim`` comes calibrated;
    for ``vgg19`` and ``vgg16`` a few dozen HR crops of the training set do: the figure differs
    little between one set of photographs and another.

    Args:
        images: (N, 3, H, W) RGB in [0, 1].
    """
    there = next((t.device for t in features.state_dict().values()), images.device)
    found = features(images.to(there))
    sizes = {tap: found[tap].float().square().mean().sqrt() for tap in features.taps}
    features.scales = {tap: float(size) for tap, size in sizes.items()}
    return features.scales


def load(
    name: str | Path = "vgg19-slim", taps: Sequence[str] = ("relu5_4",), pool: str = "max"
) -> Features:
    """A feature extractor with trained weights.

    Args:
        name: ``vgg19-slim``, ``vgg19``, ``vgg16``, or a ``.safetensors`` file that :func:`save`
            wrote.
        taps, pool: see :class:`Features`. The scales that come with ``vgg19-slim`` are those of
            ``"max"``.

    Raises:
        FeatureError: unknown name, or weights that are missing, incomplete or not the published
            ones.
        ChecksumError: the released file is not the one that was released.
        ValueError: unknown tap.
    """
    scales: dict[str, float] = {}
    if str(name) in PRETRAINED:
        features = Features(taps, net=str(name), pool=pool)
        weights = _published(PRETRAINED[str(name)])
    else:
        path = SLIM if str(name) == "vgg19-slim" else Path(name)
        if not path.is_file():
            raise FeatureError(
                f"there are no features {str(name)!r}: choose vgg19-slim, vgg19, vgg16, or a file."
            )
        if path == SLIM:
            released.check(path)
        width, scales, weights = _read(path)
        features = Features(taps, width, pool=pool)
    own = features.layers.state_dict()
    for key, value in own.items():
        if key not in weights or weights[key].shape != value.shape:
            raise FeatureError(
                f"the weights of {name} are not {features.net.upper()}'s: features.{key} does not "
                "fit."
            )
    features.layers.load_state_dict({key: weights[key].float() for key in own})
    features.scales |= {tap: scales[tap] for tap in features.taps if tap in scales}
    return features


def _published(network: pretrained.Pretrained) -> dict[str, Tensor]:
    if network.find() is None:
        raise FeatureError(
            f"{network.name.upper()}'s weights are not on this machine ({network.file}): run "
            f"`srlab fetch {network.command}` ({network.size}), or use vgg19-slim, which comes "
            "with srlab."
        )
    weights, published = network.read()
    if not published:
        raise FeatureError(
            f"{network.find()} does not hold the weights that torchvision published: delete it "
            f"and run `srlab fetch {network.command}`."
        )
    return weights


def save(features: Features, path: Path | str, notes: Mapping[str, Any] = {}) -> None:
    """Write weights in half precision under torchvision's names, and the taps' scales.

    Args:
        notes: anything that JSON can hold: data, steps, figures.
    """
    from safetensors.torch import save_file

    weights = {
        f"features.{name}": t.half().contiguous()
        for name, t in features.layers.state_dict().items()
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    header = {"width": features.width, "scales": features.scales, "notes": dict(notes)}
    save_file(weights, path, {"format": "pt"} | {k: json.dumps(v) for k, v in header.items()})


SLIM = Path(__file__).parent / "weights" / "features" / "vgg19-slim.safetensors"


def _read(path: Path) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """Width, scales and weights of a file that :func:`save` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            width, scales = (json.loads((file.metadata() or {})[k]) for k in ("width", "scales"))
            weights = {
                name.removeprefix("features."): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }
        return float(width), dict(scales), weights
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FeatureError(
            f"{path} holds no features of srlab ({type(error).__name__}: {error}): give a file "
            "that srlab wrote, or reinstall srlab if it is its own."
        ) from error
