"""Tiled upscaling gives what the network gives in one piece."""

import pytest
import torch

from srlab.evaluation.upscale import upscale
from srlab.models.generators import Bicubic, SRResNet


@pytest.fixture(scope="module")
def srresnet():
    """Batch-norm statistics far from their start, so that a forgotten border would show."""
    torch.manual_seed(0)
    model = SRResNet(2, 8)
    for _ in range(3):
        model.train()(2 * torch.rand(4, 3, 16, 16) - 0.5)
    return model.eval()


@pytest.mark.parametrize("size", [(37, 53), (1, 70), (70, 1), (16, 16), (5, 4), (48, 47)])
@pytest.mark.parametrize("tile", [16, 24])
def test_tiled_equals_untiled(srresnet, size, tile):
    lr = torch.rand(1, 3, *size)
    for model in (srresnet, Bicubic()):
        whole = upscale(model, lr, tile=None)
        assert whole.shape == (1, 3, 4 * size[0], 4 * size[1])
        torch.testing.assert_close(upscale(model, lr, tile), whole, atol=1e-5, rtol=0)


def test_one_picture_and_a_batch(srresnet):
    lr = torch.rand(2, 3, 20, 30)
    batch = upscale(srresnet, lr, tile=16)
    torch.testing.assert_close(upscale(srresnet, lr[1], tile=16), batch[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_runs_in_evaluation_mode_and_leaves_the_mode_as_it_was(srresnet, training):
    lr = torch.rand(1, 3, 20, 20)
    expected = upscale(srresnet, lr)
    before = {name: t.clone() for name, t in srresnet.state_dict().items()}
    srresnet.train(training)
    torch.testing.assert_close(upscale(srresnet, lr, tile=8), expected, atol=1e-5, rtol=0)
    assert srresnet.training is training
    assert all(torch.equal(t, before[name]) for name, t in srresnet.state_dict().items())
    srresnet.eval()


def test_no_gradients_are_kept(srresnet):
    assert not upscale(srresnet, torch.rand(1, 3, 8, 8)).requires_grad
