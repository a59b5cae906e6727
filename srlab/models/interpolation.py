"""Network interpolation: a generator between two others."""

from copy import deepcopy

import torch
from torch import nn

from srlab.errors import SrlabError
from srlab.models.zoo import describe


@torch.no_grad()
def interpolate(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
    """The generator whose every weight lies between those of two others.

    (1 - share) * first + share * second. Between a network trained for PSNR and the GAN that was
    fine-tuned from it this gives a continuous choice between distortion and perception, without
    training (Wang et al. 2018, ESRGAN, arXiv:1809.00219, section 3.4). Of two networks that were
    trained apart, the mean is noise: their features do not correspond.

    Args:
        first, second: generators of one architecture; neither is changed.
        share: of the second; 0 gives the first, 1 the second, outside of that it extrapolates.

    Returns:
        A new generator in evaluation mode.

    Raises:
        SrlabError: the two are of different architectures.
    """
    ours, theirs = first.state_dict(), second.state_dict()
    shapes, others = ({n: w.shape for n, w in weights.items()} for weights in (ours, theirs))
    if describe(first) != describe(second) or shapes != others:
        raise SrlabError(
            f"there is nothing between {describe(first)} and {describe(second)}: interpolate a "
            "generator and what was fine-tuned from it."
        )
    between = deepcopy(first)
    for name, value in between.state_dict().items():
        if value.is_floating_point():
            value.lerp_(theirs[name].to(value), share)
    return between.eval()
