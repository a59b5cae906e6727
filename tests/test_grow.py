"""srlab.models.grow: more blocks, the same function, and all of it learns."""

import pytest
import torch
from torch.testing import assert_close

from srlab.models import zoo
from srlab.models.blocks import FUSIONS
from srlab.models.generators import WDRN, Bicubic, SRResNet
from srlab.models.grow import grow, grows_into

SMALL = {
    "srresnet": lambda n: SRResNet(n, 8),
    "srresnet without batch norm": lambda n: SRResNet(n, 8, batch_norm=False),
    "wdrn with batch norm": lambda n: WDRN(n, 2, 8, 4, batch_norm=True),
    **{f: lambda n, f=f: WDRN(n, 2, 8, 4, fusion=f) for f in FUSIONS if f != "sum"},
}


def trained(network):
    """No tensor at a neutral start."""
    torch.manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.2 * torch.rand_like(tensor) + 0.05)
    return network


@pytest.mark.parametrize("name", SMALL)
def test_a_grown_network_gives_the_same_pictures(name):
    small = trained(SMALL[name](2)).double().eval()
    large = grow(small.float(), 5).double()
    small = small.double()
    lr = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    assert_close(large(lr), small(lr), rtol=1e-6, atol=1e-6)
    assert zoo.describe(large) == zoo.describe(SMALL[name](5))
    assert grows_into(small, zoo.describe(large))
    assert not large.training


@pytest.mark.parametrize("name", SMALL)
def test_every_new_block_learns(name):
    large = grow(trained(SMALL[name](1)), 3).train()
    optimizer = torch.optim.SGD(large.parameters(), 1e-3)
    for _ in range(2):  # the first step moves what is zero, the second all that feeds it
        optimizer.zero_grad()
        large(torch.rand(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    for block in list(large.blocks)[1:]:
        for parameter in block.parameters():
            # A bias before batch norm has no effect.
            assert parameter.grad is not None
        kernels = [p for p in block.parameters() if p.ndim == 4]
        assert all(p.grad.any() for p in kernels)


def test_what_cannot_grow_is_refused():
    with pytest.raises(zoo.ModelError, match="Bicubic has no blocks"):
        grow(Bicubic(), 5)
    with pytest.raises(zoo.ModelError, match="at least the network's own 3, got 2"):
        grow(SRResNet(3, 8), 2)
    with pytest.raises(zoo.ModelError, match="cannot leave out the new ones"):
        grow(WDRN(1, 2, 8, 4, fusion="sum"), 2)
    assert not grows_into(SRResNet(3, 8), zoo.describe(SRResNet(5, 16)))
    assert not grows_into(SRResNet(5, 8), zoo.describe(SRResNet(3, 8)))
