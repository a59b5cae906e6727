"""MATLAB's bicubic against Pillow's, against a direct sum, and against closed forms."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from srlab.degradation import (
    crop_to_multiple,
    downsample,
    quantize,
    resize,
    resize_weights,
    upsample,
)


def image(h, w, channels=3, seed=0):
    return torch.rand(channels, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("h", "w"), [(64, 96), (61, 47)])
@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 1 / 2, 2, 4])
def test_interior_equals_pillow(h, w, scale):
    """Pillow's BICUBIC has the same kernel and antialiasing; only its borders differ."""
    h, w = (round(side * scale) / scale for side in (h, w))
    h, w = int(h // 12 * 12), int(w // 12 * 12)
    x = image(h, w, channels=1)
    size = (round(w * scale), round(h * scale))
    expected = np.asarray(Image.fromarray(x[0].numpy(), mode="F").resize(size, Image.BICUBIC))
    got = resize(x, scale)[0].numpy()
    border = math.ceil(3 * max(scale, 1))
    inside = (slice(border, -border), slice(border, -border))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got[inside], expected[inside], atol=2e-6)


@pytest.mark.parametrize("scale", [1 / 4, 0.37, 4])
def test_borders_are_those_of_the_mirrored_image(scale):
    x = image(40, 52)
    pad = 100  # so wide that the padded image's own border does not matter; 37 / 100 divides it
    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (pad, pad), (pad, pad)), "symmetric"))
    got, whole = resize(x, scale), resize(padded, scale)
    top = round(pad * scale)
    expected = whole[:, top : top + got.shape[1], top : top + got.shape[2]]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("scale", [1 / 4, 0.6, 1.7])
def test_one_row_equals_the_direct_sum(scale, antialias):
    """The definition, written as a double loop over output and input pixels (Keys 1981)."""

    def keys(t):
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    row = image(1, 30, channels=1, seed=1).double()[0]
    n, stretch = row.shape[1], (1 / scale if antialias and scale < 1 else 1)
    expected = []
    for i in range(math.ceil(n * scale)):
        u = (i + 0.5) / scale - 0.5
        total = weight = 0.0
        for j in range(-n, 2 * n):
            k = keys((u - j) / stretch)
            mirrored = j if 0 <= j < n else (-1 - j if j < 0 else 2 * n - 1 - j)
            total, weight = total + k * float(row[0, mirrored]), weight + k
        expected.append(total / weight)
    got = resize(row.expand(30, -1), scale, antialias=antialias)[0]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("size", [1, 2, 7, 300])
@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 3.0])
def test_weights_sum_to_one_and_stay_inside(size, scale):
    index, weight = resize_weights(size, scale)
    assert index.shape == weight.shape
    assert len(index) == math.ceil(size * scale)
    assert 0 <= index.min() <= index.max() < size
    torch.testing.assert_close(weight.sum(1), torch.ones(len(weight), dtype=torch.float64))


def test_wide_images_are_resized_in_blocks_without_seams():
    x = image(3, 1500).double()
    index, weight = resize_weights(1500, 0.5)
    expected = (x[..., index] * weight).sum(-1)
    got = resize(x.mT.contiguous().mT, 0.5)  # rows shrink as well: compare along one axis
    rows_index, rows_weight = resize_weights(3, 0.5)
    expected = (expected.mT[..., rows_index] * rows_weight).sum(-1).mT
    torch.testing.assert_close(got, expected)


def test_constants_identity_batches_and_dtype():
    assert torch.allclose(resize(torch.full((1, 9, 9), 0.3), 0.4), torch.tensor(0.3))
    x = image(13, 17)
    torch.testing.assert_close(resize(x, 1.0), x)
    batch = torch.stack([x, x.flip(-1)])
    torch.testing.assert_close(resize(batch, 0.5)[1], resize(x.flip(-1), 0.5))
    assert resize(x.double(), 0.5).dtype == torch.float64
    assert resize(x, 0.5).shape == (3, 7, 9)


def test_gradients():
    x = image(9, 8, channels=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: resize(t, 0.5), x)
    assert torch.autograd.gradcheck(lambda t: resize(t, 2.0), x)


@pytest.mark.parametrize(
    ("x", "scale", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 0.5, "float"),
        (torch.zeros(3, 0, 8), 0.5, "non-empty"),
        (torch.zeros(8), 0.5, "non-empty"),
        (torch.zeros(3, 8, 8), 0.0, "positive"),
        (torch.zeros(3, 8, 8), float("nan"), "positive"),
    ],
)
def test_bad_arguments(x, scale, message):
    with pytest.raises(ValueError, match=message):
        resize(x, scale)


def test_the_protocols_pictures_are_8_bit():
    hr = image(48, 64)
    lr = downsample(hr)
    assert lr.shape == (3, 12, 16)
    torch.testing.assert_close((lr * 255).round() / 255, lr)
    assert 0 <= lr.min() <= lr.max() <= 1
    sr = upsample(torch.tensor([0.0, 1.0]).repeat(3, 8, 8))
    assert 0 <= sr.min() <= sr.max() <= 1


def test_quantize_rounds_half_up_and_clamps():
    x = torch.tensor([-0.2, 0.4 / 255, 0.5 / 255, 1.2]).double()
    assert (quantize(x) * 255).round().tolist() == [0, 0, 1, 255]


def test_crop_to_multiple():
    assert crop_to_multiple(torch.zeros(3, 23, 41), 4).shape == (3, 20, 40)
    assert crop_to_multiple(torch.zeros(3, 3, 41), 4).shape == (3, 0, 40)
