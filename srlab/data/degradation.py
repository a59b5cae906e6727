"""How a high-resolution image becomes a low-resolution one: MATLAB's antialiased bicubic.

Published super-resolution figures rest on LR images made by MATLAB's ``imresize``. PIL, OpenCV
and ``torch.nn.functional.interpolate`` give other pixels, and with them other decibels; so the
resize is written out here. It is separable: one small matrix for the rows, one for the columns,
and an image of any size on any device is resized by two matrix products.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor


def cubic(x: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -1/2 (Keys 1981), the one that MATLAB uses."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_weights(size: int, scale: float, antialias: bool = True) -> tuple[Tensor, Tensor]:
    """For each output pixel on one axis: which input pixels it reads and with what weight.

    Args:
        size: number of input pixels.
        scale: output size / input size; the output has ``ceil(size * scale)`` pixels.
        antialias: when shrinking, widen the kernel by 1/scale so that it also acts as the
            low-pass filter that down-sampling needs.

    Returns:
        ``index`` (out, taps) int64 and ``weight`` (out, taps) float64, whose rows sum to 1.
        Pixels beyond the border are mirrored, the edge pixel included, as in MATLAB.
    """
    stretch = 1 / scale if antialias and scale < 1 else 1.0
    out = math.ceil(size * scale)
    # Pixel centres lie at half-integers, and both images cover the same extent.
    centre = (torch.arange(out, dtype=torch.float64, device="cpu") + 0.5) / scale - 0.5
    taps = math.ceil(4 * stretch) + 2
    first = torch.floor(centre - 2 * stretch).long()
    index = first[:, None] + torch.arange(taps, device="cpu")
    weight = cubic((centre[:, None] - index) / stretch)
    weight = weight / weight.sum(dim=1, keepdim=True)
    mirrored = index % (2 * size)
    return torch.where(mirrored < size, mirrored, 2 * size - 1 - mirrored), weight


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must also serve a later call that needs gradients
def _blocks(
    size: int, scale: float, antialias: bool, dtype: torch.dtype, device: torch.device
) -> list[tuple[int, int, Tensor]]:
    """The resize matrix of one axis cut along its diagonal: (start, stop, matrix) per block.

    An output pixel reads a handful of neighbours, so the full (out, size) matrix is nearly all
    zeros; blocks keep the cost linear in the image's size.
    """
    index, weight = resize_weights(size, scale, antialias)
    blocks = []
    for rows in range(0, len(index), 128):
        idx, w = index[rows : rows + 128], weight[rows : rows + 128]
        start, stop = int(idx.min()), int(idx.max()) + 1
        matrix = torch.zeros(len(idx), stop - start, dtype=torch.float64)
        matrix.scatter_add_(1, idx - start, w)
        blocks.append((start, stop, matrix.to(device, dtype)))
    return blocks


def resize(x: Tensor, scale: float, *, antialias: bool = True) -> Tensor:
    """Resize images by bicubic interpolation exactly as MATLAB's ``imresize(x, scale)``.

    Args:
        x: (..., H, W) float, any range. The result may overshoot that range slightly.
        scale: output size / input size, for instance 1/4 or 4.
        antialias: as MATLAB's option of that name; matters only when shrinking.

    Returns:
        (..., ceil(H * scale), ceil(W * scale)), same dtype and device.

    Raises:
        ValueError: integer images, an empty axis, or a scale that is not positive.

    Reference: R. Keys, "Cubic convolution interpolation for digital image processing", IEEE
    Trans. ASSP 29(6), 1981; MATLAB documentation of ``imresize``.
    """
    if not x.is_floating_point():
        raise ValueError(f"resize needs a float image, got {x.dtype}: use images.to_float first")
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"resize needs a non-empty (..., H, W) image, got shape {tuple(x.shape)}")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be a positive number, got {scale}")
    for axis in (-2, -1):
        blocks = _blocks(x.shape[axis], float(scale), antialias, x.dtype, x.device)
        parts = []
        for start, stop, matrix in blocks:
            band = x.narrow(axis, start, stop - start)
            parts.append(matrix @ band if axis == -2 else band @ matrix.T)
        x = torch.cat(parts, dim=axis)
    return x


def crop_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Cut the right and bottom edge of (..., H, W) so that both sides divide by ``multiple``."""
    h, w = x.shape[-2:]
    return x[..., : h - h % multiple, : w - w % multiple]


def quantize(x: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to the 256 values an 8-bit file can hold."""
    return x.clamp(0, 1).mul(255).add(0.5).floor().div(255)


def downsample(hr: Tensor, scale: int = 4) -> Tensor:
    """The LR image of the published protocol: bicubic at 1/scale, then rounded to 8 bits.

    Args:
        hr: (..., 3, H, W) float in [0, 1]; H and W should divide by ``scale``
            (see :func:`crop_to_multiple`), else LR and HR pixels do not line up.
        scale: the factor, 4 throughout the course.

    Returns:
        (..., 3, H / scale, W / scale) float in [0, 1].

    Raises:
        ValueError: a scale that is not a whole number from 1 on.
    """
    if scale != int(scale) or scale < 1:
        raise ValueError(f"scale must be a whole number from 1 on, got {scale}: 4 is usual")
    return quantize(resize(hr, 1 / scale))


def upsample(lr: Tensor, scale: int = 4) -> Tensor:
    """Bicubic up-scaling clamped to [0, 1]: the baseline that every network has to beat."""
    return resize(lr, scale).clamp(0, 1)
