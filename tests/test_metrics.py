"""srlab.evaluation.metrics against scikit-image and closed forms."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from srlab.evaluation.metrics import grid_level, psnr, ssim


@pytest.fixture
def pairs(photo):
    """Two photographs and what noise and blur make of them, as batches in double precision."""
    noise = 0.1 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    x = torch.stack([photo, photo.flip(-1)]).double()
    y = torch.stack([(photo + noise).clamp(0, 1), photo.flip(-1).roll(1, -1)]).double()
    return x[..., :45, :60], y[..., :45, :60]


@pytest.mark.parametrize("offset", [0.5, 0.1, 1 / 255])
def test_psnr_of_a_constant_offset(offset):
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    assert_close(psnr(x, x + offset).item(), -20 * math.log10(offset))


def test_psnr_averages_the_error_over_channels_before_the_logarithm():
    x = torch.zeros(1, 3, 8, 8)
    y = x + torch.tensor([0.3, 0.0, 0.0]).view(3, 1, 1)
    assert_close(psnr(x, y).item(), -10 * math.log10(0.09 / 3))


def test_psnr_equals_scikit_image(pairs):
    x, y = pairs
    for i in range(2):
        expected = peak_signal_noise_ratio(x[i].numpy(), y[i].numpy(), data_range=1)
        assert_close(psnr(x, y)[i].item(), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_scikit_image(pairs, channels):
    x, y = (z[:, :channels] for z in pairs)
    for i in range(2):
        expected = structural_similarity(
            x[i].numpy(),
            y[i].numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=0,
        )
        assert abs(ssim(x, y)[i].item() - expected) < 1e-10


def test_the_range_of_the_data_cancels(pairs):
    x, y = pairs
    assert_close(psnr(255 * x, 255 * y, data_range=255), psnr(x, y))
    assert_close(ssim(255 * x, 255 * y, data_range=255), ssim(x, y))


def test_equal_images(pairs):
    x, _ = pairs
    assert psnr(x, x).tolist() == [math.inf, math.inf]
    assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_float32_images_are_measured_in_double(pairs):
    x, y = (z.float() for z in pairs)
    for metric in (psnr, ssim):
        assert metric(x, y).dtype == torch.float64
        assert torch.equal(metric(x, y), metric(x.double(), y.double()))


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("other", [(1, 3, 16, 17), (1, 1, 16, 16), (3, 16, 16)])
def test_shapes_must_agree(metric, other):
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(other))


def test_images_without_a_batch_axis_are_refused():
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        psnr(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


def test_ssim_needs_its_window():
    x = torch.rand(1, 3, 11, 11)
    assert ssim(x, x).item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, got \(1, 3, 11, 10\)"):
        ssim(x[..., :10], x[..., :10])


def test_the_level_of_a_grid_in_noise():
    """One wave of period 4 along the rows, in white noise: one of eight frequencies stands out.

    Its peak under a Hann window, and the median of the noise's exponential power, in closed form.
    """
    torch.manual_seed(0)
    side, sigma, amplitude = 256, 0.05, 0.02
    hr = 0.5 + sigma * torch.randn(1, side, side).expand(3, -1, -1)
    wave = amplitude * torch.cos(torch.pi / 2 * torch.arange(side))
    hann = torch.hann_window(side, dtype=torch.float64)
    total, power = hann.sum() ** 2, hann.square().sum() ** 2
    peak = 0.25 * (amplitude / 2 * total) ** 2  # the mean of nine places, of which the middle is 1
    expected = 10 * torch.log10(1 + peak / (sigma**2 * power * math.log(2)))
    assert grid_level(hr + wave, hr) == pytest.approx(float(expected) / 8, abs=0.3)
    assert grid_level(hr, hr) == 0
    assert grid_level(hr + 0.2, hr) == pytest.approx(0, abs=1e-3)  # brighter
    other = 0.5 + sigma * torch.randn(1, side, side).expand(3, -1, -1)
    assert abs(grid_level(other, hr)) < 2  # other texture of the same kind
    with pytest.raises(ValueError, match="at least 32 a side"):
        grid_level(hr[:, :31], hr[:, :31])
