"""Network interpolation: a generator between two others."""

from copy import deepcopy

import torch
from torch import Tensor, nn

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
    if describe(first) != describe(second) or _shapes(ours) != _shapes(theirs):
        raise SrlabError(
            f"there is nothing between {describe(first)} and {describe(second)}: interpolate a "
            "generator and what was fine-tuned from it."
        )
    between = deepcopy(first)
    between.load_state_dict(
        {
            name: torch.lerp(value, theirs[name].to(value), share)
            if value.is_floating_point()
            else value
            for name, value in ours.items()
        }
    )
    return between.eval()


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}
