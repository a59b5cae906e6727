"""PSNR, SSIM and the level of a grid, one number an image, computed in double precision."""

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


def grid_level(sr: Tensor, hr: Tensor, period: int = 4) -> float:
    """How far a generator's grid stands out, in dB above HR: 0 without a grid, 10 is easy to see.

    A pattern that repeats every ``period`` pixels has its power at multiples of 1/period cycles a
    pixel. There it is compared with the surroundings in the spectrum of the luma (Hann window), in
    SR and in HR; the level is the mean difference over these frequencies. A measure of our own.

    Args:
        sr, hr: (3, H, W) RGB in [0, 1], at least 8 periods a side; what exceeds a multiple of that
            is cut off.

    Raises:
        ValueError: shapes differ, or a picture is too small.
    """
    _check(sr[None], hr[None])
    height, width = (side // (8 * period) * 8 * period for side in sr.shape[-2:])
    if not height or not width:
        raise ValueError(
            f"a grid of {period} pixels needs at least {8 * period} a side, got {tuple(sr.shape)}"
        )
    weights = sr.new_tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    options = {"dtype": torch.float64, "device": sr.device}
    hann = torch.hann_window(height, **options)[:, None] * torch.hann_window(width, **options)
    around = torch.ones(13, 13, dtype=torch.bool, device=sr.device)
    around[4:9, 4:9] = False  # where the window spreads the peak
    offsets = torch.arange(-6, 7, device=sr.device)

    def peaks(rgb: Tensor) -> Tensor:
        luma = torch.tensordot(weights, rgb[:, :height, :width].double(), 1)
        power = torch.fft.fft2((luma - luma.mean()) * hann).abs().square() + 1e-9
        found = []
        for i in range(period // 2 + 1):
            for j in range(period // 2 + 1):
                rows = (i * height // period + offsets) % height
                part = power[rows][:, (j * width // period + offsets) % width]
                if i or j:
                    found.append(part[5:8, 5:8].mean() / part[around].median())
        return 10 * torch.stack(found).log10()

    return float((peaks(sr) - peaks(hr)).mean())


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            f"two (N, C, H, W) batches of one shape are needed, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
