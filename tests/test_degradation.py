"""srlab.data.degradation against Pillow, a sum written out, and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from srlab.data.degradation import (
    crop_to_multiple,
    downsample,
    quantize,
    resize,
    resize_weights,
    upsample,
)

SCALES = [1 / 4, 1 / 2, 1 / 3, 0.37, 1, 1.7, 2, 4]


def noise(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


# 700 outputs are more than one block of the matrix; 3 pixels are fewer than the kernel reads.
@pytest.mark.parametrize("size", [(40, 52), (37, 61), (5, 700), (3, 2), (1, 1)])
@pytest.mark.parametrize("scale", SCALES)
def test_resize_equals_pillow_on_the_mirrored_image(size, scale, pillow_bicubic):
    x = noise(*size)
    sized = resize(x, scale).numpy()
    assert sized.shape == tuple(math.ceil(n * scale) for n in size)
    np.testing.assert_allclose(sized, pillow_bicubic(x.numpy(), scale), atol=1e-5)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("scale", [1 / 4, 0.6, 1.7])
def test_one_row_equals_the_sum_over_all_pixels(scale, antialias):
    def keys(t):
        t = abs(t)
        if t < 1:
            return (3 * t**3 - 5 * t**2 + 2) / 2
        return (-(t**3) + 5 * t**2 - 8 * t + 4) / 2 if t < 2 else 0

    row = noise(30, dtype=torch.float64)
    around = np.pad(row.numpy(), 30, mode="symmetric")  # pixel j of the row is around[30 + j]
    stretch = 1 / scale if antialias and scale < 1 else 1
    expected = []
    for i in range(math.ceil(30 * scale)):
        centre = (i + 0.5) / scale - 0.5
        weights = np.array([keys((centre - j) / stretch) for j in range(-30, 60)])
        expected.append((weights * around).sum() / weights.sum())
    sized = resize(row.expand(5, 30), scale, antialias=antialias)
    assert_close(sized[0], torch.tensor(expected, dtype=torch.float64))


def test_halving_without_antialiasing_is_keys_kernel_at_the_midpoints():
    row = noise(20, dtype=torch.float64)
    inner = (9 * (row[2:-3:2] + row[3:-2:2]) - row[1:-4:2] - row[4:-1:2]) / 16
    assert_close(resize(row.expand(4, 20), 0.5, antialias=False)[0, 1:-1], inner)


@pytest.mark.parametrize("size", [1, 2, 7, 300])
@pytest.mark.parametrize("scale", SCALES)
def test_weights_sum_to_one_and_read_only_pixels_that_exist(size, scale):
    index, weight = resize_weights(size, scale)
    assert index.shape == weight.shape
    assert 0 <= index.min() <= index.max() < size
    assert_close(weight.sum(1), torch.ones(math.ceil(size * scale), dtype=torch.float64))


@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_image_stays_constant(scale):
    sized = resize(torch.full((3, 19, 150), 0.3), scale)
    assert_close(sized, torch.full_like(sized, 0.3))


def test_images_of_a_batch_do_not_mix():
    batch = noise(2, 3, 17, 13)
    together = resize(batch, 0.4)
    assert together.shape == (2, 3, 7, 6)
    for i in range(2):
        for c in range(3):
            assert_close(together[i, c], resize(batch[i, c], 0.4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x = noise(3, 9, 9)
    sized = resize(x.to(dtype), 2)
    assert sized.dtype == dtype
    atol = max(4 * torch.finfo(dtype).eps, 1e-6)
    assert_close(sized.float(), resize(x, 2), atol=atol, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_pixels():
    x = noise(3, 60, 500)
    on_gpu = resize(x.cuda(), 1 / 4)
    assert on_gpu.is_cuda
    assert_close(on_gpu.cpu(), resize(x, 1 / 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.4, 2])
def test_gradients(scale):
    x = noise(5, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize(x, scale), x)


def test_gradients_after_a_first_call_in_inference_mode():
    with torch.inference_mode():
        resize(noise(123, 45), 0.5)
    x = noise(123, 45).requires_grad_()
    resize(x, 0.5).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("x", "scale", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 0.5, "needs a float image, got torch.uint8"),
        (torch.zeros(3, 0, 8), 0.5, r"non-empty .* got shape \(3, 0, 8\)"),
        (torch.zeros(8), 0.5, r"got shape \(8,\)"),
        (torch.zeros(3, 8, 8), 0, "scale must be a positive number, got 0"),
        (torch.zeros(3, 8, 8), -2, "got -2"),
        (torch.zeros(3, 8, 8), math.nan, "got nan"),
        (torch.zeros(3, 8, 8), math.inf, "got inf"),
    ],
)
def test_bad_arguments(x, scale, message):
    with pytest.raises(ValueError, match=message):
        resize(x, scale)


def test_downsample_gives_the_nearest_8_bit_image(photo):
    lr = downsample(photo)
    exact = resize(photo.double(), 1 / 4).clamp(0, 1)
    assert lr.shape == (3, 24, 32)
    assert_close(lr * 255, (lr * 255).round())
    assert (lr - exact).abs().max() <= 0.5 / 255 + 1e-6


def test_upsample_stays_in_range():
    edges = torch.tensor([0.0, 1.0]).repeat_interleave(4).expand(3, 8, 8)
    assert resize(edges, 4).max() > 1
    sr = upsample(edges)
    assert sr.shape == (3, 32, 32)
    assert sr.min() == 0
    assert sr.max() == 1


def test_quantize_rounds_halves_up_and_clamps():
    levels = torch.arange(255, dtype=torch.float64)
    halves = (levels + 0.5) / 255
    exact = halves * 255 == levels + 0.5  # most survive the division
    assert exact[::2].any()  # half to even would round these down
    assert_close((quantize(halves) * 255)[exact], (levels + 1)[exact])
    assert_close(quantize(halves - 1e-6) * 255, levels)
    assert quantize(torch.tensor([-0.2, 1.3])).tolist() == [0, 1]


def test_crop_to_multiple_cuts_right_and_bottom():
    x = noise(3, 23, 41)
    assert torch.equal(crop_to_multiple(x, 4), x[:, :20, :40])
    assert crop_to_multiple(x[:, :3], 4).shape == (3, 0, 40)


@pytest.mark.parametrize("scale", [0, 2.5, -1])
def test_downsample_takes_whole_scales_only(scale):
    with pytest.raises(ValueError, match="scale must be a whole number"):
        downsample(torch.zeros(3, 8, 8), scale)
