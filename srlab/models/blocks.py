"""The parts that generators are built from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """conv - BN - PReLU - conv - BN, added to the input (Ledig et al. 2017, figure 4).

    Shape: (N, n_features, H, W) -> the same.
    """

    def __init__(self, n_features: int = 64):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_features, n_features, 3, padding=1),
            nn.BatchNorm2d(n_features),
            nn.PReLU(),
            nn.Conv2d(n_features, n_features, 3, padding=1),
            nn.BatchNorm2d(n_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


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
    kernels = init(weight.new_empty(weight.shape[0] // factor**2, *weight.shape[1:]))
    return weight.copy_(kernels.repeat_interleave(factor**2, dim=0))
