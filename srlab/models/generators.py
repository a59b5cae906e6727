"""Generators: networks (and one formula) that map an LR image to an SR image.

Every generator takes (N, 3, H, W) RGB in [0, 1] and returns (N, 3, H * scale, W * scale), not
clamped. It tells three things about itself: ``scale``; ``receptive_radius``, how many LR pixels
away an input pixel can still influence an output pixel (tiling needs it); and ``options``, the
arguments that construct it again (weight files keep them).
"""

from torch import Tensor, nn

from srlab.degradation import resize
from srlab.models.blocks import ResidualBlock, UpsampleBlock


class SRResNet(nn.Module):
    """The SRGAN generator: a residual network at LR size with sub-pixel up-scaling at its end.

    C. Ledig et al., "Photo-realistic single image super-resolution using a generative adversarial
    network", CVPR 2017, arXiv:1609.04802, figure 4. With 16 blocks, as in the paper, it has
    1,549,462 parameters; with 5, as in this course, 734,219. Two deviations: inputs are in [0, 1]
    and the last convolution is linear (the paper scales its HR images to [-1, 1]).

    Args:
        n_blocks: number of residual blocks.
        n_features: channels of every hidden layer.
        scale: 2, 4 or 8: one doubling block for each factor of two.
    """

    def __init__(self, n_blocks: int = 5, n_features: int = 64, scale: int = 4):
        super().__init__()
        if scale not in (2, 4, 8):
            raise ValueError(f"scale must be 2, 4 or 8, got {scale}")
        self.scale = scale
        self.options = {"n_blocks": n_blocks, "n_features": n_features, "scale": scale}
        doublings = scale.bit_length() - 1
        self.head = nn.Sequential(nn.Conv2d(3, n_features, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*[ResidualBlock(n_features) for _ in range(n_blocks)])
        self.fuse = nn.Sequential(
            nn.Conv2d(n_features, n_features, 3, padding=1), nn.BatchNorm2d(n_features)
        )
        self.upsample = nn.Sequential(*[UpsampleBlock(n_features) for _ in range(doublings)])
        self.tail = nn.Conv2d(n_features, 3, 9, padding=4)
        # Radii at LR size, each rounded up to whole pixels: the 9x9 head, two 3x3 a block, the
        # 3x3 fusion, a 3x3 at each size on the way up, and the 9x9 tail at HR size.
        self.receptive_radius = 4 + 2 * n_blocks + 1 + doublings + -(-4 // scale)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.head(lr)
        deep = self.fuse(self.blocks(shallow)) + shallow
        return self.tail(self.upsample(deep))


class Bicubic(nn.Module):
    """Bicubic interpolation as a generator without parameters: the baseline to beat."""

    receptive_radius = 2

    def __init__(self, scale: int = 4):
        super().__init__()
        self.scale = scale
        self.options = {"scale": scale}

    def forward(self, lr: Tensor) -> Tensor:
        return resize(lr, self.scale)
