"""Losses against torch's own, closed forms and numerical gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from srlab import losses


def scores(seed):
    return torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_bce_equals_cross_entropy_with_logits():
    real, fake = scores(0), scores(1)
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(losses.bce_critic(real, fake), bce(real, ones) + bce(fake, zeros))
    torch.testing.assert_close(losses.bce_generator(fake), bce(fake, ones))


def test_a_critic_that_guesses_scores_two_log_two():
    zero = torch.zeros(3, 1)
    assert losses.bce_critic(zero, zero) == pytest.approx(2 * math.log(2))


def test_certain_critics_give_finite_losses():
    big = torch.full((2, 1), 1e4)
    assert losses.bce_critic(-big, big) == pytest.approx(2e4)
    assert losses.bce_generator(-big) == pytest.approx(1e4)


def test_pixel_losses_in_closed_form():
    hr = torch.zeros(2, 3, 4, 4)
    assert losses.pixel(hr + 0.5, hr, "l1") == pytest.approx(0.5)
    assert losses.pixel(hr + 0.5, hr, "mse") == pytest.approx(0.25)
    with pytest.raises(ValueError, match="'l1' or 'mse'"):
        losses.pixel(hr, hr, "l3")


def test_gradients():
    real, fake = scores(2).requires_grad_(), scores(3).requires_grad_()
    assert torch.autograd.gradcheck(losses.bce_critic, (real, fake))
    assert torch.autograd.gradcheck(losses.bce_generator, (fake,))
    sr = torch.rand(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    hr = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: losses.pixel(x, hr, "mse"), (sr,))
    assert torch.autograd.gradcheck(lambda x: losses.pixel(x, hr, "l1"), (sr,))
