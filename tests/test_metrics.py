"""PSNR and SSIM against scikit-image and closed forms."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from srlab.evaluation.metrics import psnr, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 40, 33, dtype=torch.float64, generator=generator)
    noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    return x, (x + 0.1 * noise).clamp(0, 1)


def test_psnr_of_a_constant_offset():
    x = torch.full((1, 3, 8, 8), 0.25, dtype=torch.float64)
    assert float(psnr(x, x + 0.01)) == pytest.approx(40)
    assert float(psnr(255 * x, 255 * x + 2.55, data_range=255)) == pytest.approx(40)
    assert float(psnr(x, x)) == math.inf


def test_psnr_equals_scikit_image(pair):
    x, y = pair
    for i, value in enumerate(psnr(x, y)):
        expected = peak_signal_noise_ratio(x[i].numpy(), y[i].numpy(), data_range=1)
        assert float(value) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_scikit_image(pair, channels):
    x, y = (t[:, :channels] for t in pair)
    for i, value in enumerate(ssim(x, y)):
        expected = structural_similarity(
            x[i].numpy(),
            y[i].numpy(),
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(value) == pytest.approx(expected, abs=1e-10)


def test_ssim_of_equal_and_of_scaled_images(pair):
    x, y = pair
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(ssim(255 * x, 255 * y, data_range=255), ssim(x, y))


def test_float32_images_are_scored_in_double_precision(pair):
    x, y = pair
    torch.testing.assert_close(psnr(x.float(), y.float()), psnr(x, y), atol=1e-5, rtol=0)
    assert ssim(x.float(), y.float()).dtype == torch.float64


def test_bad_arguments(pair):
    x, y = pair
    with pytest.raises(ValueError, match="one shape"):
        psnr(x, y[..., :-1])
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(x[..., :10], y[..., :10])
