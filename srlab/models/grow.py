"""A deeper generator that begins as the same function as a trained one."""

import torch
from torch import nn

from srlab.models.blocks import FusionConv, ResidualBlock
from srlab.models.generators import WDRN, SRResNet
from srlab.models.zoo import ModelError, describe


@torch.no_grad()
def grow(generator: nn.Module, n_blocks: int) -> nn.Module:
    """The same network with more blocks behind its own, which add nothing yet.

    A new residual block ends in a convolution of zeros (in batch norm with a scale of zero, where
    there is one), a new dense block in a fusion of zeros; and where all blocks' outputs are joined,
    the new ones have no weight. So training goes on from where it was, with more to work with
    ("Net2Net", Chen et al. 2016, arXiv:1511.05641).

    Args:
        generator: an SRResNet or a WDRN; it is not changed.
        n_blocks: of the result, at least as many as it has.

    Returns:
        A new network: the same pictures, up to rounding.

    Raises:
        ModelError: another kind of network, one that sums its blocks, or fewer blocks than it has.
    """
    if not isinstance(generator, SRResNet | WDRN):
        raise ModelError(f"{type(generator).__name__} has no blocks that could become more.")
    old = len(generator.blocks)
    fusion = generator.options.get("fusion")
    if fusion == "sum":
        raise ModelError("a WDRN that adds its blocks' outputs cannot leave out the new ones.")
    if n_blocks < old:
        raise ModelError(f"n_blocks must be at least the network's own {old}, got {n_blocks}.")
    grown = type(generator)(**generator.options | {"n_blocks": n_blocks})
    weights = generator.state_dict()
    for name, tensor in grown.state_dict().items():
        if name not in weights:
            continue  # of a new block
        if tensor.shape == weights[name].shape:
            tensor.copy_(weights[name])
        else:  # where all blocks are joined: the new ones come last
            # A new source's weight in a concatenation starts at 1, as all do, and its kernel at 0.
            tensor.fill_(1.0 if fusion == "weighted-concat" and tensor.ndim == 1 else 0.0)
            tensor[tuple(slice(n) for n in weights[name].shape)] = weights[name]
    for block in list(grown.blocks)[old:]:
        silence(block)
    return grown.train(generator.training)


def silence(block: nn.Module) -> None:
    """Make a residual or dense block give back its input."""
    *_, conv, last = block.body if isinstance(block, ResidualBlock) else block.fuse
    if isinstance(last, nn.Identity):  # built without batch norm
        last = conv.conv if isinstance(conv, FusionConv) else conv
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def grows_into(generator: nn.Module, description: dict[str, object]) -> bool:
    """Whether a described network is this one with more blocks."""
    mine = describe(generator)
    fewer = mine.get("n_blocks", 0) <= description.get("n_blocks", 0)
    return fewer and mine | {"n_blocks": 0} == dict(description) | {"n_blocks": 0}
