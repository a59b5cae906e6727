"""PSNR and SSIM, one number an image, computed in double precision."""

import torch
from torch import Tensor
from torch.nn import functional as F


def psnr(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB: 10 log10(data_range^2 / mean squared error).

    Args:
        x, y: (N, C, H, W) float images in [0, data_range]. The error is averaged over channels
            and pixels of each image before the logarithm is taken.

    Returns:
        (N,) float64; infinite where two images are equal.

    Raises:
        ValueError: shapes differ.
    """
    _check(x, y)
    mse = (x.double() - y.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / mse)


def ssim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean structural similarity with the published constants.

    11x11 Gaussian window with sigma 1.5, K1 = 0.01, K2 = 0.03, only windows that lie inside the
    image (Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE TIP 13(4), 2004). Channels are scored apart, then averaged.

    Args:
        x, y: (N, C, H, W) float images in [0, data_range], H and W at least 11.

    Returns:
        (N,) float64, at most 1.

    Raises:
        ValueError: shapes differ, or an image is smaller than the window.
    """
    _check(x, y)
    if min(x.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images of at least 11 x 11 pixels, got {tuple(x.shape)}")
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    n, c, h, w = x.shape
    x = x.double().reshape(n * c, 1, h, w)
    y = y.double().reshape(n * c, 1, h, w)
    taps = torch.arange(-5, 6, dtype=torch.float64, device=x.device)
    window = torch.exp(-(taps**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(z: Tensor) -> Tensor:
        z = F.conv2d(z, window.view(1, 1, 11, 1))
        return F.conv2d(z, window.view(1, 1, 1, 11))

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    similarity = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.reshape(n, -1).mean(dim=1)


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            f"two (N, C, H, W) batches of one shape are needed, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
