"""srlab.losses against torch.nn.functional and closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from srlab import losses


def scores(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=random, dtype=torch.float64)


def test_pixel_losses_of_a_constant_error():
    hr = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    sr = hr + torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64).view(3, 1, 1)
    assert_close(float(losses.pixel(sr, hr)), 0.2)
    assert_close(float(losses.pixel(sr, hr, "l1")), 0.2)
    assert_close(float(losses.pixel(sr, hr, "mse")), 0.14 / 3)


def test_an_unknown_pixel_loss():
    with pytest.raises(ValueError, match="unknown pixel loss 'l3': choose 'l1' or 'mse'"):
        losses.pixel(torch.zeros(1), torch.zeros(1), "l3")


def test_both_players_equal_binary_cross_entropy():
    real, fake = scores(8, 1), scores(8, 1, seed=1)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    bce = F.binary_cross_entropy_with_logits
    assert_close(losses.bce_critic(real, fake), bce(real, ones) + bce(fake, zeros))
    assert_close(losses.bce_generator(fake), bce(fake, ones))


def test_a_critic_that_knows_nothing_scores_2_log_2():
    zero = torch.zeros(5, 1)
    assert_close(float(losses.bce_critic(zero, zero)), 2 * math.log(2))
    assert_close(float(losses.bce_generator(zero)), math.log(2))


def test_large_scores_stay_finite_and_keep_their_gradient():
    """log(sigmoid(-1000)) taken in two steps would be minus infinity."""
    wrong = torch.full((1,), 1000.0, requires_grad=True)
    assert losses.bce_critic(-wrong, wrong).item() == 2000
    assert losses.bce_critic(wrong, -wrong).item() == 0
    loss = losses.bce_generator(-wrong)
    loss.backward()
    assert loss.item() == 1000
    assert wrong.grad.item() == 1


def test_gradients():
    a, b = scores(4, 1).requires_grad_(), scores(4, 1, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(losses.bce_critic, (a, b))
    assert torch.autograd.gradcheck(losses.bce_generator, (a,))
    assert torch.autograd.gradcheck(losses.pixel, (a, b, "l1"))
    assert torch.autograd.gradcheck(losses.pixel, (a, b, "mse"))
