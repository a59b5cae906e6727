import pytest
import torch

from srlab.errors import SrlabError
from srlab.models.generators import WDRN, SRResNet
from srlab.models.interpolation import interpolate


def test_the_ends_are_the_two_networks_and_the_middle_is_the_mean_of_the_weights():
    torch.manual_seed(0)
    first, second = SRResNet(1, 8).eval(), SRResNet(1, 8).eval()
    for network in (first, second):  # at zero both would only be bicubic
        torch.nn.init.normal_(network.tail.weight, std=0.1)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(interpolate(first, second, 0)(x), first(x))
    assert torch.equal(interpolate(first, second, 1)(x), second(x))
    middle = interpolate(first, second, 0.25).state_dict()
    for name, value in first.state_dict().items():
        if value.is_floating_point():  # not batch norm's counter
            assert torch.allclose(middle[name], 0.75 * value + 0.25 * second.state_dict()[name])


def test_a_linear_network_has_interpolated_outputs():
    """Where the output is linear in the weights, interpolating weights is mixing pictures."""

    torch.manual_seed(0)
    first = SRResNet(1, 8, batch_norm=False).eval()
    second = interpolate(first, first, 0)
    with torch.no_grad():
        second.tail.weight.add_(torch.randn_like(second.tail.weight))
        second.tail.bias.add_(0.3)
    x = torch.rand(1, 3, 8, 8)
    mixed = 0.4 * first(x) + 0.6 * second(x)
    assert torch.allclose(interpolate(first, second, 0.6)(x), mixed, atol=1e-5)


def test_neither_is_changed_and_other_architectures_are_refused():
    first, second = SRResNet(1, 8), SRResNet(1, 8)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    interpolate(first, second, 0.5).tail.weight.data.zero_()
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())
    for other in (SRResNet(2, 8), WDRN(1, n_features=8)):
        with pytest.raises(SrlabError, match="nothing between"):
            interpolate(first, other, 0.5)
    with pytest.raises(SrlabError, match="weighted-concat"):  # same shapes are not enough
        interpolate(WDRN(1, fusion="sum", n_features=8), WDRN(1, n_features=8), 0.5)
