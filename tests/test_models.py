"""srlab.models: blocks, generators and critics against the papers' figures and closed forms."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from srlab.data.degradation import resize
from srlab.models import zoo
from srlab.models.blocks import (
    FUSIONS,
    DenseBlock,
    FusionConv,
    ResidualBlock,
    UpsampleBlock,
    icnr_,
)  # fmt: skip
from srlab.models.critics import Discriminator
from srlab.models.generators import WDRN, Bicubic, SRResNet, fold, polyphase


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def jittered(network):
    """As after some training: no kernel, bias, slope or statistic at its neutral start."""
    for name, tensor in network.state_dict().items():
        if "running" in name or tensor.ndim == 1:
            tensor.copy_(0.5 + torch.rand_like(tensor))
        elif tensor.ndim > 1 and not tensor.any():  # the tail, which began by adding nothing
            tensor.copy_(0.1 * torch.randn_like(tensor))
    return network


# --- Blocks ---------------------------------------------------------------------------------------


def test_residual_block_is_figure_4_of_ledig():
    block = jittered(ResidualBlock(4)).double().eval()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    p = list(block.parameters())  # in the order of the figure
    means = [b for n, b in block.named_buffers() if "mean" in n]
    variances = [b for n, b in block.named_buffers() if "var" in n]
    y = F.conv2d(x, p[0], p[1], padding=1)
    y = F.batch_norm(y, means[0], variances[0], p[2], p[3])
    y = torch.where(y > 0, y, p[4] * y)
    y = F.conv2d(y, p[5], p[6], padding=1)
    y = F.batch_norm(y, means[1], variances[1], p[7], p[8])
    assert_close(block(x), x + y)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_fresh_upsample_block_is_a_convolution_and_nearest_neighbours(factor):
    block = UpsampleBlock(5, factor)
    x = torch.randn(2, 5, 7, 6)
    one_kernel_a_channel = block.conv.weight[:: factor**2]
    small = F.conv2d(x, one_kernel_a_channel, padding=1)
    large = F.interpolate(small, scale_factor=factor, mode="nearest")
    assert_close(block(x), F.prelu(large, block.act.weight))
    assert small.std() > 0.1  # it does start with something


def test_icnr_refuses_channels_that_do_not_divide():
    with pytest.raises(ValueError, match=r"10 output channels do not divide by factor\*\*2 = 4"):
        icnr_(torch.empty(10, 3, 3, 3), 2)


def expected_join(fusion, sources, weights):
    if fusion.endswith("concat"):
        return torch.cat([w * s for w, s in zip(weights, sources, strict=True)], dim=1)
    return torch.stack([w * s for w, s in zip(weights, sources, strict=True)]).sum(0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_conv_joins_its_sources_then_convolves(fusion):
    conv = FusionConv([3, 3, 3], 2, 3, fusion).double()
    sources = list(torch.randn(3, 2, 3, 5, 6, dtype=torch.float64))
    weights = torch.ones(3)
    if fusion in ("scaled-sum", "weighted-concat"):
        assert torch.equal(conv.weights.detach().float(), weights)  # starts as the unweighted kind
        weights = torch.tensor([0.5, -1.0, 2.0])
        conv.weights.data.copy_(weights)
    else:
        assert conv.weights is None
    joined = expected_join(fusion, sources, weights)
    assert_close(conv(sources), F.conv2d(joined, conv.conv.weight, conv.conv.bias, padding=1))


@pytest.mark.parametrize(
    ("channels", "fusion", "message"),
    [
        ([4, 4], "weighted", "unknown fusion 'weighted': choose one of sum, scaled-sum, concat"),
        ([4, 8], "sum", r"sum needs sources of one width, got \(4, 8\)"),
    ],
)
def test_impossible_fusions(channels, fusion, message):
    with pytest.raises(ValueError, match=message):
        FusionConv(channels, 4, 1, fusion)


def test_a_dense_block_hands_every_map_to_every_later_layer():
    """Layer by layer by hand; weighted concatenation, two layers."""
    block = jittered(DenseBlock(4, growth=3, n_layers=2)).double()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    p = dict(block.named_parameters())

    def layer(name, sources, padding):
        joined = expected_join("concat", sources, p[f"{name}.0.weights"])
        return F.conv2d(joined, p[f"{name}.0.conv.weight"], p[f"{name}.0.conv.bias"], 1, padding)

    a = F.prelu(layer("layers.0", [x], 1), p["layers.0.2.weight"])
    b = F.prelu(layer("layers.1", [x, a], 1), p["layers.1.2.weight"])
    assert a.shape[1] == b.shape[1] == 3
    assert_close(block(x), x + layer("fuse", [x, a, b], 0))


def dense(fusion, batch_norm=False):
    return lambda width: DenseBlock(width, 3, 2, fusion, batch_norm)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "block",
    [ResidualBlock, UpsampleBlock, *[dense(f) for f in FUSIONS], dense("weighted-concat", True)],
)
def test_gradients_of_blocks(block, training):
    network = jittered(block(2)).double().train(training)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, x)
    parameters = dict(network.named_parameters())

    def loss(*values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(network, named, x.detach())

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()), fast_mode=True)


# --- Generators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_blocks", "count"), [(16, 1_549_462), (5, 734_219)])
def test_srresnet_has_the_published_number_of_parameters(n_blocks, count):
    assert n_parameters(SRResNet(n_blocks)) == count


def test_srresnet_has_the_layers_of_figure_4():
    convs = [m for m in SRResNet(2).modules() if isinstance(m, nn.Conv2d)]
    plain = [(9, 64)] + 5 * [(3, 64)] + 2 * [(3, 256)] + [(9, 3)]
    assert [(c.kernel_size[0], c.out_channels) for c in convs] == plain
    assert all(c.stride == (1, 1) and c.kernel_size[0] == 2 * c.padding[0] + 1 for c in convs)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_kinds_of_wdrn_are_as_large_as_srresnet(fusion):
    assert 0.975 * 734_219 < n_parameters(WDRN(fusion=fusion)) < 734_219
    assert n_parameters(WDRN(fusion=fusion)) == pytest.approx(n_parameters(WDRN()), rel=0.011)
    assert len(WDRN(fusion=fusion).blocks) == 5


def test_wdrn_16_is_as_large_as_srresnet_16():
    """Counted by hand: 16 blocks of three 3x3 layers and a 1x1, with a weight a source."""
    n, growth, layers, blocks = 64, 24, 3, 16
    widths = [n + growth * i for i in range(layers + 1)]
    block = sum(9 * width * growth + growth + 1 for width in widths[:-1])  # bias, PReLU
    block += widths[-1] * n + n + sum(range(1, layers + 2))  # 1x1, weights of the fusions
    fuse = (blocks + 1) * n * n + n + (blocks + 1) + 9 * n * n + n
    head, tail = 81 * 3 * n + n + 1, 81 * n * 3 + 3
    upsample = 2 * (9 * n * 4 * n + 4 * n + 1)
    count = n_parameters(zoo.build("wdrn-16"))
    assert count == head + blocks * block + fuse + upsample + tail
    assert 0.955 * 1_549_462 < count < 1_549_462


def test_wdrn_has_the_head_and_the_tail_of_srgan():
    """What is not dense block or fusion has SRResNet's layers."""
    shapes = [
        [tuple(p.shape) for part in (g.head, g.upsample, g.tail) for p in part.parameters()]
        for g in (WDRN(), SRResNet())
    ]
    assert shapes[0] == shapes[1]


def test_wdrn_joins_the_outputs_of_all_blocks():
    """Cut off one block's way into the fusion: the picture changes, whichever block it was."""
    generator = jittered(WDRN(n_blocks=3, n_layers=1, n_features=4, growth=2)).eval()
    lr = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        whole = generator(lr)
        for source in range(4):
            generator.fuse[0].weights[source] = 0
            assert not torch.allclose(generator(lr), whole, atol=1e-5)
            generator.fuse[0].weights[source] = 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: SRResNet(2, 8),
        *[
            lambda f=f, b=b: WDRN(2, 2, 8, 4, fusion=f, batch_norm=b)
            for f in FUSIONS
            for b in (False, True)
        ],
    ],
)
def test_folding_changes_the_work_and_not_the_picture(build):
    generator = jittered(build()).eval()
    before = {name: t.clone() for name, t in generator.state_dict().items()}
    folded = fold(generator)
    lr = torch.rand(2, 3, 12, 10)
    with torch.no_grad():
        sr = generator(lr)
        # jittered() leaves outputs in the hundreds: 1e-5 of what a picture's range would be.
        assert_close(folded(lr) / sr.abs().max(), sr / sr.abs().max(), rtol=0, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    joins = [m for m in folded.modules() if isinstance(m, FusionConv) and m.concatenates]
    assert all(m.weights is None for m in joins)
    assert n_parameters(folded) <= n_parameters(generator)
    # It can be built again from its description, and the original is as it was.
    rebuilt = type(folded)(**folded.options).eval()
    rebuilt.load_state_dict(folded.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(lr), folded(lr))
    assert all(torch.equal(t, before[name]) for name, t in generator.state_dict().items())


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("make", [SRResNet, WDRN])
def test_a_polyphase_tail_gives_the_same_picture_and_gradients(make, scale):
    torch.manual_seed(0)
    generator = jittered(make(1, n_features=8, scale=scale)).double()
    fast = polyphase(generator)
    assert list(fast.parameters()) == list(generator.parameters())  # shared, not copied
    for shape in ((2, 3, 9, 7), (2, 3, 1, 5)):  # also where the kernel hangs over the border
        lr = torch.rand(shape, dtype=torch.float64)
        sr = generator(lr)
        assert_close(fast(lr), sr, rtol=0, atol=1e-12)
        weights = torch.rand_like(sr)
        expected = torch.autograd.grad((sr * weights).sum(), list(generator.parameters()))
        gradients = torch.autograd.grad((fast(lr) * weights).sum(), list(generator.parameters()))
        assert_close(gradients, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(AttributeError, match="options"):  # nobody writes it to a file by mistake
        zoo.describe(fast)


def test_polyphase_leaves_other_networks_alone():
    bicubic = Bicubic()
    assert polyphase(bicubic) is bicubic

    class Negative(SRResNet):
        def forward(self, lr):
            return -super().forward(lr)

    negative = Negative(1, 8)
    assert polyphase(negative) is negative  # its own forward counts


def generators(scale):
    dense = [WDRN(1, 2, 4, 3, fusion=fusion, scale=scale) for fusion in ("sum", "weighted-concat")]
    return [SRResNet(n_blocks=1, n_features=4, scale=scale), *dense, Bicubic(scale)]


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_generators_enlarge_by_their_scale(scale):
    for generator in generators(scale):
        assert generator.scale == scale
        assert generator(torch.rand(2, 3, 7, 9)).shape == (2, 3, 7 * scale, 9 * scale)
        rebuilt = type(generator)(**generator.options)
        assert rebuilt.scale == scale
        assert n_parameters(rebuilt) == n_parameters(generator)


@pytest.mark.parametrize("scale", [1, 3, 16])
@pytest.mark.parametrize("network", [SRResNet, WDRN])
def test_other_scales_are_refused(network, scale):
    with pytest.raises(ValueError, match=f"scale must be 2, 4 or 8, got {scale}"):
        network(scale=scale)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_receptive_radius_is_how_far_gradients_reach(scale):
    for generator in map(jittered, generators(scale)):
        generator.double().eval()
        radius = generator.receptive_radius
        middle = radius + 1  # so that one pixel lies beyond the radius on each side
        lr = torch.rand(1, 3, 2 * middle + 1, 2 * middle + 1, dtype=torch.float64)
        lr.requires_grad_()
        sr = generator(lr)
        reach = 0
        for i in range(scale):  # the output pixels of the LR pixel in the middle, on the diagonal
            j = middle * scale + i
            (gradient,) = torch.autograd.grad(sr[0, :, j, j].sum(), lr, retain_graph=True)
            touched = gradient[0].abs().sum(0).nonzero() - middle
            reach = max(reach, int(touched.abs().max()))
        if scale == 8 and not isinstance(generator, Bicubic):
            assert reach <= radius  # rounded up at each of three sizes
        else:
            assert reach == radius


@pytest.mark.parametrize("scale", [2, 4])
def test_srresnet_starts_without_a_checkerboard(scale):
    """Far from the border a constant image gives a constant image."""
    generator = SRResNet(n_blocks=2, n_features=8, scale=scale).eval()
    size = 2 * generator.receptive_radius + 3
    sr = generator(torch.full((1, 3, size, size), 0.4))
    border = generator.receptive_radius * scale
    inside = sr[..., border:-border, border:-border]
    assert inside.shape[-1] == 3 * scale
    assert_close(inside, inside[..., :1, :1].expand_as(inside))


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("make", [SRResNet, WDRN])
def test_a_fresh_network_is_bicubic(make, scale):
    for size in ((1, 1), (2, 5), (9, 12)):  # also where every neighbour is mirrored
        lr = torch.rand(2, 3, *size)
        for training in (True, False):
            network = make(1, n_features=8, scale=scale).train(training)
            bicubic = resize(lr, scale)
            assert_close(network(lr), bicubic, rtol=0, atol=1e-6)
            with torch.autocast("cpu", torch.bfloat16):  # 32 bits all the same
                assert_close(network(lr), bicubic, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [SRResNet, WDRN])
def test_without_the_skip_a_network_has_to_learn_the_whole_picture(make):
    """What is added is bicubic(LR), no more and no less: with the same weights."""
    network = jittered(make(1, n_features=8)).eval()
    bare = make(1, n_features=8, bicubic_skip=False).eval()
    bare.load_state_dict(network.state_dict())  # no entry of the file belongs to the skip
    lr = torch.rand(1, 3, 7, 6)
    assert_close(network(lr) - bare(lr), resize(lr, 4), rtol=0, atol=1e-5)
    fresh = make(1, n_features=8, bicubic_skip=False)
    assert fresh.tail.weight.any()  # at zero it would stay black for long


def test_in_evaluation_images_of_a_batch_do_not_mix():
    generator = jittered(SRResNet(n_blocks=2, n_features=8)).double().eval()
    lr = torch.rand(3, 3, 6, 7, dtype=torch.float64)
    together = generator(lr)
    for i in range(3):
        assert_close(together[i : i + 1], generator(lr[i : i + 1]))
    generator.train()
    assert not torch.allclose(generator(lr)[:1], generator(lr[:1]), atol=1e-3)


# --- Critics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 96])
def test_discriminator_is_figure_4_of_ledig(side):
    critic = Discriminator(patch_size=side)
    convs = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in convs] == [1, 2, 1, 2, 1, 2, 1, 2]
    widths = [3] + [c.out_channels for c in convs]
    count = sum((9 * a + 1) * b for a, b in pairwise(widths))
    count += 2 * sum(widths[2:])  # batch norm after all but the first convolution
    count += (512 * (side // 16) ** 2 + 1) * 1024 + 1024 + 1
    assert n_parameters(critic) == count
    slopes = {m.negative_slope for m in critic.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_discriminator_halves_four_times_and_gives_one_logit_an_image():
    critic = Discriminator(patch_size=48, n_features=4)
    sides = []
    for module in critic.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: sides.append(out.shape[-1]))
    scores = critic(torch.rand(5, 3, 48, 48))
    assert sides == [48, 24, 24, 12, 12, 6, 6, 3]
    assert scores.shape == (5, 1)
    assert (scores.min() < 0) | (scores.max() > 1)  # no sigmoid


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 3, 48, 32)])
def test_discriminator_refuses_crops_of_another_size(shape):
    with pytest.raises(ValueError, match=r"judges 48 x 48 crops, got \(2, 3, .*patch_size"):
        Discriminator(patch_size=48, n_features=4)(torch.rand(shape))


@pytest.mark.parametrize("side", [0, -16, 8, 90])
def test_discriminator_refuses_sides_that_do_not_halve_four_times(side):
    with pytest.raises(ValueError, match=f"positive multiple of 16, got {side}"):
        Discriminator(patch_size=side)
