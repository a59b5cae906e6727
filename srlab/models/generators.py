"""Generators: networks (and one formula) that map an LR image to an SR image.

Every generator takes (N, 3, H, W) RGB in [0, 1] and returns (N, 3, H * scale, W * scale), not
clamped. It tells three things about itself: ``scale``; ``receptive_radius``, how many LR pixels
away an input pixel can still influence an output pixel (tiling needs it); and ``options``, the
arguments that construct it again (weight files keep them).
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from srlab.data.degradation import resize
from srlab.models.blocks import BicubicSkip, DenseBlock, FusionConv, ResidualBlock, UpsampleBlock


class SRResNet(nn.Module):
    """The SRGAN generator: a residual network at LR size with sub-pixel up-scaling at its end.

    C. Ledig et al., "Photo-realistic single image super-resolution using a generative adversarial
    network", CVPR 2017, arXiv:1609.04802, figure 4. With 16 blocks, as in the paper, it has
    1,549,462 parameters; with 5, as in this course, 734,219. Three deviations: inputs are in
    [0, 1]; the last convolution is linear (the paper scales its HR images to [-1, 1]); and the
    network learns only what bicubic interpolation lacks: bicubic(LR) is added to its output, and
    the last convolution starts at zero, so that an untrained network *is* bicubic (J. Kim et al.,
    "Accurate image super-resolution using very deep convolutional networks", CVPR 2016,
    arXiv:1511.04587).

    Args:
        n_blocks: number of residual blocks.
        n_features: channels of every hidden layer.
        scale: 2, 4 or 8: one doubling block for each factor of two.
        batch_norm: False builds the network without it, as :func:`fold` does.
        bicubic_skip: False builds the network of the paper's figure, which has to learn the whole
            picture.
    """

    def __init__(
        self,
        n_blocks: int = 5,
        n_features: int = 64,
        scale: int = 4,
        batch_norm: bool = True,
        bicubic_skip: bool = True,
    ):
        super().__init__()
        doublings = _doublings(scale)
        self.scale = scale
        self.options = {
            "n_blocks": n_blocks,
            "n_features": n_features,
            "scale": scale,
            "batch_norm": batch_norm,
            "bicubic_skip": bicubic_skip,
        }
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        self.head = nn.Sequential(nn.Conv2d(3, n_features, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(
            *[ResidualBlock(n_features, batch_norm) for _ in range(n_blocks)]
        )
        self.fuse = nn.Sequential(nn.Conv2d(n_features, n_features, 3, padding=1), norm(n_features))
        self.upsample = nn.Sequential(*[UpsampleBlock(n_features) for _ in range(doublings)])
        self.tail = nn.Conv2d(n_features, 3, 9, padding=4)
        self.skip = _skip(self.tail, scale) if bicubic_skip else None
        # Radii at LR size, each rounded up to whole pixels: the 9x9 head, two 3x3 a block, the
        # 3x3 fusion, a 3x3 at each size on the way up, and the 9x9 tail at HR size.
        self.receptive_radius = 4 + 2 * n_blocks + 1 + doublings + -(-4 // scale)

    def body(self, lr: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, n_features, H, W): all that happens at LR size."""
        shallow = self.head(lr)
        return self.fuse(self.blocks(shallow)) + shallow

    def forward(self, lr: Tensor) -> Tensor:
        sr = self.tail(self.upsample(self.body(lr)))
        return sr + self.skip(lr) if self.skip else sr


class WDRN(nn.Module):
    """Weighted dense residual network: the SRGAN generator with dense blocks for its body.

    Head, up-sampling and tail are :class:`SRResNet`'s. Its residual blocks give way to
    :class:`~srlab.models.blocks.DenseBlock`, and the outputs of all blocks are joined once more in
    the same manner, as RDN does (Zhang et al. 2018, arXiv:1802.08797). What joins feature maps is
    chosen by ``fusion``; the networks of all four kinds have parameter counts within 1.1% of each
    other and a little below that of SRResNet with five blocks (734,219), so that a comparison is
    one of kinds and not of sizes. All widths are multiples of 8, which GPUs compute fastest.

    Args:
        n_blocks: number of dense blocks.
        n_layers: 3x3 layers in a block.
        n_features: channels between the blocks; by default 64, and 56 for the sums, whose layers
            are wider.
        growth: channels that a layer of a concatenating block adds.
        fusion: ``"weighted-concat"``, ``"concat"``, ``"scaled-sum"`` or ``"sum"``.
        batch_norm: batch norm after every convolution of the body.
        scale: 2, 4 or 8.
        bicubic_skip: as :class:`SRResNet`'s.
    """

    def __init__(
        self,
        n_blocks: int = 5,
        n_layers: int = 3,
        n_features: int | None = None,
        growth: int = 24,
        fusion: str = "weighted-concat",
        batch_norm: bool = False,
        scale: int = 4,
        bicubic_skip: bool = True,
    ):
        super().__init__()
        doublings = _doublings(scale)
        n_features = n_features or (64 if fusion.endswith("concat") else 56)
        self.scale = scale
        self.options = {
            "n_blocks": n_blocks,
            "n_layers": n_layers,
            "n_features": n_features,
            "growth": growth,
            "fusion": fusion,
            "batch_norm": batch_norm,
            "scale": scale,
            "bicubic_skip": bicubic_skip,
        }
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        self.head = nn.Sequential(nn.Conv2d(3, n_features, 9, padding=4), nn.PReLU())
        self.blocks = nn.ModuleList(
            DenseBlock(n_features, growth, n_layers, fusion, batch_norm) for _ in range(n_blocks)
        )
        self.fuse = nn.Sequential(
            FusionConv([n_features] * (n_blocks + 1), n_features, 1, fusion),
            nn.Conv2d(n_features, n_features, 3, padding=1),
            norm(n_features),
        )
        self.upsample = nn.Sequential(*[UpsampleBlock(n_features) for _ in range(doublings)])
        self.tail = nn.Conv2d(n_features, 3, 9, padding=4)
        self.skip = _skip(self.tail, scale) if bicubic_skip else None
        # As SRResNet's, with n_layers 3x3 convolutions a block.
        self.receptive_radius = 4 + n_layers * n_blocks + 1 + doublings + -(-4 // scale)

    def body(self, lr: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, n_features, H, W): all that happens at LR size."""
        shallow = self.head(lr)
        maps = [shallow]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.fuse(maps) + shallow

    def forward(self, lr: Tensor) -> Tensor:
        sr = self.tail(self.upsample(self.body(lr)))
        return sr + self.skip(lr) if self.skip else sr


class Bicubic(nn.Module):
    """Bicubic interpolation as a generator without parameters: the baseline to beat."""

    receptive_radius = 2

    def __init__(self, scale: int = 4):
        super().__init__()
        self.scale = scale
        self.options = {"scale": scale}

    def forward(self, lr: Tensor) -> Tensor:
        return resize(lr, self.scale)


@torch.no_grad()
def fold(generator: nn.Module) -> nn.Module:
    """The same generator with fewer operations, for use after training or in a game.

    Batch norm with fixed statistics is a scale and a shift, and the weights of a weighted
    concatenation are a scale: both are multiplied into the convolution beside them. The output is
    the same up to float rounding.

    Returns:
        A copy in evaluation mode that describes itself as what it now is: a network without batch
        norm, and ``"concat"`` where it was ``"weighted-concat"``. A network of another kind is
        copied as it is.
    """
    source = deepcopy(generator).eval()
    if not isinstance(source, SRResNet | WDRN):
        return source
    for module in source.modules():
        if isinstance(module, FusionConv):
            module.fold_()
    for module in list(source.modules()):
        if isinstance(module, nn.Sequential):
            for i in range(1, len(module)):
                if isinstance(module[i], nn.BatchNorm2d):
                    before, bn = module[i - 1], module[i]
                    conv = before.conv if isinstance(before, FusionConv) else before
                    conv.weight, conv.bias = fuse_conv_bn_weights(
                        conv.weight, conv.bias,
                        bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias,
                    )  # fmt: skip
                    module[i] = nn.Identity()
    options = dict(generator.options)
    if "batch_norm" in options:
        options["batch_norm"] = False
    if options.get("fusion") == "weighted-concat":
        options["fusion"] = "concat"
    source.options = options
    return source


class Polyphase(nn.Module):
    """A generator with its tail before the last pixel shuffle: the same output, sooner.

    A convolution that follows a pixel shuffle treats the 2 x 2 phases of the HR grid each in its
    own fixed way. So it is a convolution of the maps before the shuffle, with a kernel half as wide
    and one output for each phase, whose result is shuffled in their place: the 9x9 kernel from 64
    maps to 3 becomes a 5x5 kernel from 256 maps to 12. Processors are slow at three outputs, and
    64 maps need no longer pass through HR size. (The polyphase decomposition of P. P. Vaidyanathan,
    "Multirate digital filters, filter banks, polyphase networks, and applications: a tutorial",
    Proc. IEEE 78(1), 1990.)

    Args:
        generator: an SRResNet or a WDRN. Its weights are shared, not copied: training one of the
            two trains both.
    """

    def __init__(self, generator: SRResNet | WDRN):
        super().__init__()
        self.generator = generator
        self.scale, self.receptive_radius = generator.scale, generator.receptive_radius

    def forward(self, lr: Tensor) -> Tensor:
        net = self.generator
        *first, last = net.upsample
        maps = net.body(lr)
        for block in first:
            maps = block(maps)
        maps = last.act(last.conv(maps))  # one slope for all: it may come before the shuffle
        # Phase (y, x) reads the kernel y rows and x columns further on.
        phases = [
            F.pixel_unshuffle(F.pad(net.tail.weight, (x, 1 - x, y, 1 - y)), 2)
            for y in (0, 1)
            for x in (0, 1)
        ]
        kernel = torch.stack(phases, dim=1).flatten(0, 1)
        bias = net.tail.bias.repeat_interleave(4)
        sr = last.shuffle(F.conv2d(maps, kernel, bias, padding=2))
        return sr + net.skip(lr) if net.skip else sr


def polyphase(generator: nn.Module) -> nn.Module:
    """:class:`Polyphase` of an SRResNet or a WDRN; another network stays as it is.

    So does a subclass: it may have a ``forward`` of its own.
    """
    return Polyphase(generator) if type(generator) in (SRResNet, WDRN) else generator


def _skip(tail: nn.Conv2d, scale: int) -> BicubicSkip:
    """The way around the network, which begins by adding nothing to it."""
    nn.init.zeros_(tail.weight)
    nn.init.zeros_(tail.bias)
    return BicubicSkip(scale)


def _doublings(scale: int) -> int:
    if scale not in (2, 4, 8):
        raise ValueError(f"scale must be 2, 4 or 8, got {scale}")
    return scale.bit_length() - 1
