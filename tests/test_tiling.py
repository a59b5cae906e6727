"""srlab.evaluation.tiling: tiles leave no trace in the picture, nor in the model."""

import pytest
import torch
from torch.testing import assert_close

from srlab.errors import SrlabError
from srlab.evaluation.tiling import upscale
from srlab.models.generators import Bicubic, SRResNet


def trained(n_blocks=1, scale=4):
    """An SRResNet in training mode that batch norm has seen some images in."""
    torch.manual_seed(0)
    network = SRResNet(n_blocks, n_features=6, scale=scale)
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # at zero it would only be bicubic
    with torch.no_grad():
        for _ in range(5):
            network(torch.rand(4, 3, 12, 12) ** 2 - 0.3)
    assert all((m.running_var - 1).abs().min() > 0.01 for m in norms(network))
    return network


def norms(network):
    return [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def image(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


MODELS = {"srresnet": trained, "srresnet x2": lambda: trained(2, scale=2), "bicubic": Bicubic}

# LR height and width, tile: odd sizes, tiles that divide them or don't, tiles smaller than what
# the network sees, images smaller than a tile, and images one pixel wide or high.
CASES = [
    ((37, 53), 16),
    ((32, 48), 16),
    ((33, 31), 32),
    ((9, 14), 4),
    ((5, 40), 24),
    ((1, 45), 20),
    ((45, 1), 20),
    ((7, 9), 16),
    ((7, 9), 256),
]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize(("size", "tile"), CASES)
def test_tiled_equals_untiled(make, size, tile):
    """In double precision, where a border one pixel too narrow would show."""
    network = make().double()
    lr = image(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        whole = network.eval()(lr)
    assert_close(upscale(network, lr, tile), whole, atol=1e-11, rtol=0)
    assert_close(upscale(network, lr, None), whole)


def test_tiled_equals_untiled_in_single_precision():
    network, lr = trained(), image(1, 3, 37, 53)
    with torch.no_grad():
        whole = network.eval()(lr)
    assert_close(upscale(network, lr, 16), whole, atol=1e-5, rtol=0)


def test_a_border_that_is_too_narrow_would_show():
    network, lr = trained().double(), image(1, 3, 37, 53, dtype=torch.float64)
    whole = upscale(network, lr, None)
    network.receptive_radius -= 1
    assert (upscale(network, lr, 16) - whole).abs().max() > 1e-9


def test_batches_and_single_images():
    network, batch = trained(), image(3, 3, 21, 30)
    together = upscale(network, batch, 16)
    assert together.shape == (3, 3, 84, 120)
    for i in range(3):
        alone = upscale(network, batch[i], 16)
        assert alone.shape == (3, 84, 120)
        assert_close(alone, together[i], atol=1e-5, rtol=0)


class Watched(Bicubic):
    """Notes what it is given and in which mode."""

    receptive_radius = 5

    def __init__(self):
        super().__init__()
        self.seen, self.modes = [], []

    def forward(self, lr):
        self.seen.append(max(lr.shape[-2:]))
        self.modes.append(self.training)
        return super().forward(lr)


def test_memory_depends_on_the_tile_not_on_the_image():
    network = Watched()
    upscale(network, image(3, 90, 130), 20)
    assert max(network.seen) == 20 + 2 * 5
    assert len(network.seen) == 5 * 7


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tile", [4, None])
def test_runs_in_evaluation_mode_and_leaves_the_mode_as_it_was(training, tile):
    network = Watched().train(training)
    upscale(network, image(3, 9, 9), tile)
    assert not any(network.modes)
    assert network.training == training


def test_layers_frozen_in_evaluation_mode_stay_frozen():
    network = trained()
    frozen, *others = norms(network)
    frozen.eval()
    upscale(network, image(3, 9, 9))
    assert not frozen.training
    assert network.training
    assert all(norm.training for norm in others)


def test_the_mode_comes_back_after_an_error():
    network = trained()
    with pytest.raises(RuntimeError):
        upscale(network, image(4, 9, 9))  # four channels
    assert network.training


def test_neither_statistics_nor_gradients_are_touched():
    network = trained()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sr = upscale(network, image(3, 20, 20).requires_grad_(), 8)
    assert not sr.requires_grad
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize("tile", [0, -5])
def test_a_tile_needs_a_side(tile):
    with pytest.raises(SrlabError, match=f"tile must be at least 1 pixel, got {tile}"):
        upscale(Bicubic(), image(3, 9, 9), tile)


def test_each_tile_is_reported_and_a_report_can_end_the_work():
    shares = []
    upscale(Bicubic(), image(1, 3, 30, 20), 20, shares.append)
    assert shares == [2 / 3, 1]

    def stop(share):
        raise InterruptedError

    network = trained().train()
    with pytest.raises(InterruptedError):
        upscale(network, image(1, 3, 30, 20), 20, stop)
    assert network.training
