"""The parts that generators are built from."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srlab.data.degradation import resize_weights

FUSIONS = ("sum", "scaled-sum", "concat", "weighted-concat")


class ResidualBlock(nn.Module):
    """conv - BN - PReLU - conv - BN, added to the input (Ledig et al. 2017, figure 4).

    Args:
        n_features: channels.
        batch_norm: False leaves batch norm out, as EDSR does (Lim et al. 2017, arXiv:1707.02921).

    Shape: (N, n_features, H, W) -> the same.
    """

    def __init__(self, n_features: int = 64, batch_norm: bool = True):
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        self.body = nn.Sequential(
            nn.Conv2d(n_features, n_features, 3, padding=1),
            norm(n_features),
            nn.PReLU(),
            nn.Conv2d(n_features, n_features, 3, padding=1),
            norm(n_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class FusionConv(nn.Module):
    """A convolution over several feature maps (*sources*) that are joined first.

    How they are joined is the whole difference between the dense networks of this package:

    ================= ============================== ==========================================
    fusion            what the convolution sees      relatives
    ================= ============================== ==========================================
    sum               s1 + s2 + ...                  ResNet (He et al. 2016)
    scaled-sum        w1 s1 + w2 s2 + ...            AWSRN (Wang et al. 2019, arXiv:1904.02358)
    concat            [s1, s2, ...]                  RDN (Zhang et al. 2018, arXiv:1802.08797)
    weighted-concat   [w1 s1, w2 s2, ...]            ADCSR (Xie et al. 2019, arXiv:1912.08002)
    ================= ============================== ==========================================

    The weights w are learned scalars, one a source, and start at 1.

    Args:
        in_channels: of each source; all the same for the sums.
        out_channels: of the convolution.
        kernel_size: odd; the size of the picture is kept.
        fusion: one of the four.

    Shape: a list of (N, in_channels[i], H, W) -> (N, out_channels, H, W).

    Raises:
        ValueError: unknown fusion, or a sum of unlike sources.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: int,
        fusion: str = "weighted-concat",
    ):
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"unknown fusion {fusion!r}: choose one of {', '.join(FUSIONS)}")
        self.in_channels = tuple(in_channels)
        self.concatenates = fusion.endswith("concat")
        if not self.concatenates and len(set(in_channels)) > 1:
            raise ValueError(f"{fusion} needs sources of one width, got {self.in_channels}")
        weighted = fusion in ("scaled-sum", "weighted-concat")
        self.weights = nn.Parameter(torch.ones(len(in_channels))) if weighted else None
        joined = sum(in_channels) if self.concatenates else in_channels[0]
        self.conv = nn.Conv2d(joined, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        if self.weights is not None:
            sources = [w * s for w, s in zip(self.weights, sources, strict=True)]
        joined = torch.cat(list(sources), dim=1) if self.concatenates else sum(sources)
        return self.conv(joined)

    @torch.no_grad()
    def fold_(self) -> None:
        """Multiply the concatenation's weights into the convolution and drop them, in place.

        conv([w1 s1, w2 s2]) and [w1 W1, w2 W2] applied to [s1, s2] are the same sum. The weights
        of a scaled sum cannot be folded: all its sources share one kernel.
        """
        if self.weights is not None and self.concatenates:
            of_channel = self.weights.repeat_interleave(
                torch.tensor(self.in_channels, device=self.weights.device)
            )
            self.conv.weight.mul_(of_channel.view(1, -1, 1, 1))
            self.weights = None


class DenseBlock(nn.Module):
    """Densely connected residual block: every layer receives all preceding feature maps.

    Layer i is a 3x3 convolution and PReLU over the input and the outputs of layers 1 ... i-1; a
    1x1 convolution over everything closes the block, and the input is added to what it gives
    (Huang et al. 2017, DenseNet, arXiv:1608.06993; Zhang et al. 2018, RDN, arXiv:1802.08797). Each
    of these joins is a :class:`FusionConv`.

    Args:
        n_features: channels of input and output.
        growth: channels that a layer adds; the sums need as many as the input has and ignore it.
        n_layers: number of 3x3 layers.
        fusion: see :class:`FusionConv`.
        batch_norm: batch norm after every convolution; off, as in RDN and ESRGAN.

    Shape: (N, n_features, H, W) -> the same.
    """

    def __init__(
        self,
        n_features: int = 64,
        growth: int = 24,
        n_layers: int = 3,
        fusion: str = "weighted-concat",
        batch_norm: bool = False,
    ):
        super().__init__()
        width = growth if fusion.endswith("concat") else n_features
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        channels = [n_features] + [width] * n_layers
        self.layers = nn.ModuleList(
            nn.Sequential(FusionConv(channels[:i], width, 3, fusion), norm(width), nn.PReLU())
            for i in range(1, n_layers + 1)
        )
        self.fuse = nn.Sequential(FusionConv(channels, n_features, 1, fusion), norm(n_features))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps))
        return x + self.fuse(maps)


class UpsampleBlock(nn.Module):
    """Sub-pixel convolution (Shi et al. 2016): conv to factor^2 times the channels, then shuffle.

    The convolution starts with ICNR weights, so that a fresh network shows no checkerboard.

    Shape: (N, n_features, H, W) -> (N, n_features, H * factor, W * factor).
    """

    def __init__(self, n_features: int = 64, factor: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(n_features, n_features * factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)
        self.act = nn.PReLU()
        icnr_(self.conv.weight, factor)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shuffle(self.conv(x)))


@torch.no_grad()
def icnr_(
    weight: Tensor,
    factor: int,
    init: Callable[[Tensor], Tensor] = nn.init.kaiming_normal_,
) -> Tensor:
    """Fill a sub-pixel convolution's weight so that it starts as nearest-neighbour resizing.

    The ``factor**2`` kernels that feed one output channel begin equal, so neighbouring sub-pixels
    agree until training teaches them to differ ("initialised to convolution NN resize", Aitken et
    al. 2017, arXiv:1707.02937).

    Args:
        weight: (C * factor**2, C_in, k, k), changed in place.
        factor: of the pixel shuffle that follows.
        init: fills a (C, C_in, k, k) tensor in place.

    Returns:
        The same tensor.
    """
    if weight.shape[0] % factor**2:
        raise ValueError(
            f"{weight.shape[0]} output channels do not divide by factor**2 = {factor**2}"
        )
    if weight.is_meta:  # nothing to fill; to normal_ it would import the compiler, for seconds
        return weight
    kernels = init(weight.new_empty(weight.shape[0] // factor**2, *weight.shape[1:]))
    return weight.copy_(kernels.repeat_interleave(factor**2, dim=0))


class BicubicSkip(nn.Module):
    """Bicubic interpolation as a layer: the way around a network that learns only the rest.

    An output pixel reads the same neighbours with the same weights in every LR pixel's cell, so
    bicubic up-scaling is a fixed 5x5 convolution with ``scale**2`` outputs and a pixel shuffle:
    quick on small crops, the same for every size of picture, and known to ONNX. The result is that
    of :func:`srlab.data.degradation.resize`, mirrored borders included, and is computed in 32 bits
    also under autocast: eight bits of mantissa would show.

    Args:
        scale: HR size / LR size.

    Shape: (N, C, H, W) -> (N, C, H * scale, W * scale), not clamped.
    """

    def __init__(self, scale: int = 4):
        super().__init__()
        self.scale = scale
        # The taps of the middle one of five pixels: nothing there is mirrored.
        index, weight = resize_weights(5, scale)
        rows = slice(2 * scale, 3 * scale)
        taps = weight.new_zeros(scale, 5).scatter_add_(1, index[rows], weight[rows])
        kernel = torch.einsum("iy,jx->ijyx", taps, taps).reshape(scale**2, 1, 5, 5)
        self.register_buffer("kernel", kernel.float(), persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        n, c, h, w = lr.shape
        with torch.autocast(lr.device.type, enabled=False):
            x = _mirror(_mirror(lr, 2), 3).reshape(n * c, 1, h + 4, w + 4)
            sr = F.pixel_shuffle(F.conv2d(x, self.kernel.to(x.dtype)), self.scale)
        return sr.reshape(n, c, h * self.scale, w * self.scale)


def _mirror(x: Tensor, axis: int) -> Tensor:
    """Two pixels more at both ends of an axis, mirrored with the edge pixel included."""
    size = x.shape[axis]
    index = torch.arange(-2, size + 2, device=x.device)
    index = torch.where(index < 0, -1 - index, index)
    index = torch.where(index < size, index, 2 * size - 1 - index)
    return x.index_select(axis, index.clamp(min=0))  # one pixel alone is all its neighbours
