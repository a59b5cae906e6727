"""srlab.losses against torch.nn.functional and closed forms."""

import math
from typing import ClassVar

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


def test_relativistic_average_by_its_definition():
    """Equations 8 and 9 of Jolicoeur-Martineau 2018 with f1 = -log sigmoid, written out."""
    real, fake = scores(6, 1), scores(6, 1, seed=1)
    d_real = torch.sigmoid(real - fake.mean())  # more real than the average fake
    d_fake = torch.sigmoid(fake - real.mean())
    critic = -(d_real.log().mean() + (1 - d_fake).log().mean())
    generator = -(d_fake.log().mean() + (1 - d_real).log().mean())
    assert_close(losses.relativistic_critic(real, fake), critic)
    assert_close(losses.relativistic_generator(real, fake), generator)
    assert torch.autograd.gradcheck(
        losses.relativistic_critic, (real.requires_grad_(), fake.requires_grad_())
    )
    assert torch.autograd.gradcheck(losses.relativistic_generator, (real, fake))


def test_the_best_critic_of_slope_one_reads_the_exact_distance():
    """In one dimension scipy computes W1; for these two sets the best critic is -|x - 1|."""
    from scipy.stats import wasserstein_distance

    real = torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64)
    fake = torch.tensor([-1.0, 1.5, 4.0], dtype=torch.float64)
    distance = wasserstein_distance(real, fake)

    def critic(x):  # it may know both sets; its slope is 1 everywhere
        return -(x - 1).abs()

    estimate = -losses.wasserstein_critic(critic(real), critic(fake))
    assert estimate <= distance + 1e-12
    shifted = -losses.wasserstein_critic(real + 7, real)  # critic(x) = x, moved by 7: exact
    assert_close(float(shifted), wasserstein_distance(real + 7, real))
    assert_close(float(losses.wasserstein_generator(fake)), -1.5)
    a, b = scores(4, 1).requires_grad_(), scores(4, 1, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(losses.wasserstein_critic, (a, b))
    assert torch.autograd.gradcheck(losses.wasserstein_generator, (a,))


def pictures(n=3, size=4):
    random = torch.Generator().manual_seed(2)
    return torch.rand(2, n, 3, size, size, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("as_patches", [False, True])
def test_the_penalty_of_a_linear_critic_is_exact(as_patches):
    """D(x) = <w, x> has the gradient w everywhere, so the penalty is (|w| - 1)^2.

    Taken per pixel over the channels, as several repositories do, it would be another number.
    """
    real, fake = pictures()
    w = scores(3, 4, 4)

    def critic(x):
        products = (x * w).flatten(1)
        # A patch critic's score is the mean over its patches.
        return products * products.shape[1] if as_patches else products.sum(1, keepdim=True)

    assert_close(losses.gradient_norms(critic, real, fake), w.norm().expand(3))
    assert_close(losses.gradient_penalty(critic, real, fake), (w.norm() - 1).square())


def test_the_penalty_is_measured_between_real_and_fake():
    """D(x) = |x|^2 / 2 has the gradient x: the norms tell where it was measured."""
    real, fake = torch.zeros(500, 3, 1, 1), torch.full((500, 3, 1, 1), 1 / math.sqrt(3))
    torch.manual_seed(0)
    where = losses.gradient_norms(lambda x: x.square().flatten(1).sum(1) / 2, real, fake)
    assert 0 <= where.min() < 0.02
    assert 0.98 < where.max() <= 1
    assert where.mean().item() == pytest.approx(0.5, abs=0.05)  # uniformly in between


def test_the_penalty_teaches_the_critic_by_its_second_derivative():
    real, fake = pictures()
    critic = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(8, 1)
    ).double()
    names = list(dict(critic.named_parameters()))

    def penalty(*values):
        torch.manual_seed(1)
        named = dict(zip(names, values, strict=True))
        return losses.gradient_penalty(
            lambda x: torch.func.functional_call(critic, named, x), real, fake
        )

    assert torch.autograd.gradcheck(penalty, tuple(critic.parameters()))
    assert real.grad is None
    assert not fake.requires_grad


def test_the_penalty_ignores_autocast():
    real, fake = pictures().float()
    critic = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Tanh(), torch.nn.Flatten())
    torch.manual_seed(1)
    expected = losses.gradient_norms(critic, real, fake)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(losses.gradient_norms(critic, real, fake), expected)


class Eyes(torch.nn.Module):
    """Features that can be computed by hand: the picture itself, and its mean brightness."""

    taps = ("pixels", "mean")

    def forward(self, image):
        return {"pixels": 3 * image, "mean": image.mean((1, 2, 3), keepdim=True)}


def test_the_perceptual_loss_is_relative_to_the_features_own_size():
    hr, sr = pictures()
    loss = losses.Perceptual(Eyes(), {"pixels": 2.0, "mean": 0.5}, hr)
    pixels = (sr - hr).square().mean() / hr.square().mean()  # the factor 3 cancels
    means = hr.mean((1, 2, 3)), sr.mean((1, 2, 3))
    mean = (means[0] - means[1]).square().mean() / means[0].square().mean()
    assert_close(loss(sr, hr), 2 * pixels + 0.5 * mean, rtol=1e-5, atol=1e-6)
    assert loss(hr, hr) == 0
    assert losses.Perceptual(Eyes(), {"pixels": 1.0}, hr)(0 * hr, hr).item() == pytest.approx(1)


def test_the_shifting_window_shows_both_pictures_the_same_place_and_every_place():
    class Places(torch.nn.Module):
        taps, scales = ("pixels",), {"pixels": 1.0}
        seen: ClassVar[list] = []

        def forward(self, image):
            self.seen.append(image)
            return {"pixels": image}

    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    places = torch.stack([rows, columns, 0 * rows])[None]
    loss = losses.Perceptual(Places(), {"pixels": 1.0}, shift=4)
    torch.manual_seed(0)
    corners = set()
    for _ in range(400):
        assert loss(places, places) == 0
        assert Places.seen[-1].shape == (1, 3, 16, 20)
        assert torch.equal(Places.seen[-2], Places.seen[-1])
        corners.add(tuple(Places.seen[-1][0, :2, 0, 0].tolist()))
    assert corners == {(y, x) for y in range(4) for x in range(4)}
    assert loss(places[..., :6, :4], places[..., :6, :4]) == 0  # a tiny crop: half of it is left
    assert Places.seen[-1].shape == (1, 3, 4, 2)


@pytest.mark.parametrize(("size", "window"), [(8, 4), (9, 4), (3, 4), (1, 4)])
def test_the_local_standard_deviation_is_that_of_each_window(size, window):
    x = pictures(size=size)[0]
    side = min(window, size)
    windows = x.unfold(2, side, max(1, side // 2)).unfold(3, side, max(1, side // 2))
    expected = windows.std((-2, -1), correction=0).clamp(min=1e-3)
    assert_close(losses.local_std(x, window), expected, rtol=1e-9, atol=1e-9)


def test_the_texture_term_forgives_a_shift_and_not_a_blur():
    stripes = (torch.arange(33) // 2 % 2).double().expand(1, 3, 16, 33)
    hr, shifted = stripes[..., :32], stripes[..., 1:]
    blurred = torch.full_like(hr, 0.5)
    plain = losses.Perceptual(Eyes(), {"pixels": 1.0}, hr)
    textured = losses.Perceptual(Eyes(), {"pixels": 1.0}, hr, texture=2.0)
    texture = {"shift": shifted, "blur": blurred}
    texture = {name: float(textured(x, hr) - plain(x, hr)) for name, x in texture.items()}
    # Windows hold two dark and two bright columns, so 1/2, over the pictures' root mean square.
    lacking = 0.5 / float(hr.square().mean().sqrt()) - 1e-3
    assert_close(texture["blur"], 2 * lacking**2)
    assert texture["shift"] == pytest.approx(0, abs=1e-12)
    assert plain(blurred, hr) < plain(shifted, hr)  # without it, the blur is preferred
    assert textured(blurred, hr) > textured(shifted, hr)


def test_the_perceptual_loss_teaches_sr_only():
    from srlab.models.vgg import Features

    torch.manual_seed(0)
    features = Features(("relu1_2", "conv2_1"), width=1 / 32).double()
    hr, sr = pictures(2, 6)
    hr.requires_grad_()
    loss = losses.Perceptual(features, {"relu1_2": 1.0, "conv2_1": 0.3}, hr)
    loss(sr.requires_grad_(), hr).backward()
    assert hr.grad is None
    assert sr.grad.abs().sum() > 0
    assert loss.train().features.training is False


def test_the_grid_loss_is_the_size_of_what_every_block_repeats():
    torch.manual_seed(0)
    hr = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    block = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    stamped = hr + block.repeat(1, 1, 8, 12)
    share = block.mean((2, 3), keepdim=True)  # a change of colour is no grid
    for window in (1, 3, 6, 99):
        assert_close(losses.grid(stamped, hr, 4, window), (block - share).abs().mean())
    assert losses.grid(hr + share, hr) < 1e-12


def test_the_grid_loss_lets_texture_pass_that_differs_from_block_to_block():
    torch.manual_seed(0)
    hr = torch.rand(1, 3, 48, 48, dtype=torch.float64)
    block = torch.rand(3, 4, 4, dtype=torch.float64) - 0.5
    signs = (-1.0) ** torch.arange(12)
    board = (signs[:, None] * signs).to(hr).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert losses.grid(hr + block.repeat(1, 12, 12) * board, hr, 4, window=6) < 1e-12
    noise = 0.1 * torch.randn_like(hr)  # a window of 36 blocks averages it to a sixth
    assert_close(losses.grid(hr + noise, hr), noise.abs().mean() / 6, rtol=0.15, atol=0)


def test_the_grid_loss_teaches_sr():
    torch.manual_seed(0)
    hr, sr = (torch.rand(1, 2, 8, 12, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: losses.grid(x, hr, 4, 2), sr.requires_grad_())


def test_a_tap_that_the_features_do_not_have():
    with pytest.raises(ValueError, match="features has no tap relu9_9: it has pixels, mean"):
        losses.Perceptual(Eyes(), {"relu9_9": 1.0}, pictures()[0])
