"""Networks: sizes that papers state, what they see, and how they start."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from srlab.models.blocks import ResidualBlock, UpsampleBlock, icnr_
from srlab.models.critics import Discriminator
from srlab.models.generators import Bicubic, SRResNet


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("n_blocks", "parameters"), [(16, 1_549_462), (5, 734_219)])
def test_srresnet_has_the_papers_parameter_count(n_blocks, parameters):
    assert count(SRResNet(n_blocks)) == parameters


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_srresnet_enlarges(scale):
    model = SRResNet(1, n_features=8, scale=scale)
    assert model(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)


def test_srresnet_refuses_other_scales():
    with pytest.raises(ValueError, match="2, 4 or 8, got 3"):
        SRResNet(scale=3)


@pytest.mark.parametrize(
    "model",
    [SRResNet(1, 8), SRResNet(3, 8), SRResNet(2, 8, scale=2), SRResNet(1, 8, scale=8), Bicubic()],
    ids=["1 block", "3 blocks", "x2", "x8", "bicubic"],
)
def test_receptive_radius_is_as_far_as_gradients_reach(model):
    """Over all sub-pixel phases of one LR pixel; tiles rely on it."""
    model = model.double().eval()
    radius = model.receptive_radius
    centre = radius + 2
    x = torch.rand(1, 3, 2 * centre + 1, 2 * centre + 1, dtype=torch.float64, requires_grad=True)
    s = model.scale
    block = model(x)[0, :, centre * s : (centre + 1) * s, centre * s : (centre + 1) * s]
    weights = torch.rand(block.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((block * weights).sum(), x)
    rows, columns = (gradient[0].abs().sum(0) > 0).nonzero().unbind(1)
    reach = max(int((rows - centre).abs().max()), int((columns - centre).abs().max()))
    assert radius - 1 <= reach <= radius


def test_in_eval_mode_images_do_not_influence_each_other():
    model = SRResNet(2, 8)
    model.train()(torch.rand(4, 3, 8, 8))
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(model.eval()(x)[1:2], model(x[1:2]))


def test_icnr_starts_as_nearest_neighbour_enlargement():
    """Shuffled sub-pixels equal the one kernel's response, repeated."""
    conv = nn.Conv2d(3, 5 * 9, 3, padding=1, bias=False)
    icnr_(conv.weight, 3)
    x = torch.rand(1, 3, 6, 7)
    one = F.conv2d(x, conv.weight[::9], padding=1)
    expected = F.interpolate(one, scale_factor=3, mode="nearest")
    torch.testing.assert_close(F.pixel_shuffle(conv(x), 3), expected)
    assert conv.weight.std() > 0


def test_icnr_keeps_the_variance_of_its_initialiser():
    weight = torch.empty(256, 64, 3, 3)
    icnr_(weight, 2)
    assert weight.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    with pytest.raises(ValueError, match="do not divide"):
        icnr_(torch.empty(6, 2, 3, 3), 2)


def test_fresh_generator_shows_no_checkerboard():
    torch.manual_seed(0)
    block = UpsampleBlock(8)
    y = block(torch.rand(1, 8, 6, 6))
    assert torch.equal(y[..., ::2, ::2], y[..., 1::2, 1::2])


@pytest.mark.parametrize("block", [ResidualBlock(3), UpsampleBlock(3)], ids=["residual", "up"])
def test_gradients_of_blocks(block):
    block = block.double()
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


def test_discriminator_is_the_papers():
    """Parameters in closed form: 3x3 convolutions, batch norm from the second on, two dense."""
    widths = [3, 64, 64, 128, 128, 256, 256, 512, 512]
    convs = sum(9 * a * b + b for a, b in itertools.pairwise(widths))
    norms = 2 * sum(widths[2:])
    dense = (512 * 6 * 6) * 1024 + 1024 + 1024 + 1
    critic = Discriminator(96)
    assert count(critic) == convs + norms + dense
    strides = [m.stride[0] for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [1, 2, 1, 2, 1, 2, 1, 2]
    assert critic(torch.rand(2, 3, 96, 96)).shape == (2, 1)


def test_discriminator_names_the_size_it_was_built_for():
    with pytest.raises(ValueError, match="judges 32 x 32 crops"):
        Discriminator(32, 4)(torch.rand(1, 3, 48, 48))
    with pytest.raises(ValueError, match="multiple of 16, got 40"):
        Discriminator(40)
