"""srlab.data.bank: crops are found again in their images, whose pixels say where they lie."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from srlab.data.bank import PatchBank, _shelves, pack_pixels, unpack_pixels
from srlab.data.degradation import resize
from srlab.errors import SrlabError

# (height, width): landscape, portrait, square, and sides that no multiple of 4 fits.
SIZES = [(48, 64), (72, 40), (44, 44), (55, 43)]

# Written with numpy and transposes, on (3, side, side).
SYMMETRIES = [
    lambda a: a,
    lambda a: a[:, ::-1],
    lambda a: a[:, :, ::-1],
    lambda a: a[:, ::-1, ::-1],
    lambda a: a.transpose(0, 2, 1),
    lambda a: a.transpose(0, 2, 1)[:, ::-1],
    lambda a: a.transpose(0, 2, 1)[:, :, ::-1],
    lambda a: a.transpose(0, 2, 1)[:, ::-1, ::-1],
]


def maps(sizes=SIZES):
    """Noise whose six high bits are the coordinates of the 4 x 4 cell and the image's number."""
    random = np.random.default_rng(0)
    images = []
    for number, (h, w) in enumerate(sizes):
        image = random.integers(4, size=(3, h, w), dtype=np.uint8)
        image[0] += (np.arange(h, dtype=np.uint8) // 4 * 4)[:, None]
        image[1] += (np.arange(w, dtype=np.uint8) // 4 * 4)[None, :]
        image[2] += np.uint8(number * 4)
        images.append(image)
    return images


def levels(crops):
    """Float crops in [0, 1] -> their 8-bit levels as an array."""
    levels = crops.numpy() * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    return levels.round().astype(np.uint8)


def places(hr):
    """(N, 3, S, S) levels -> (N, 3): row and column of the first cell, number of the image."""
    return hr.min(axis=(2, 3)) // 4


def bank_of(images, **options):
    return PatchBank([torch.from_numpy(image) for image in images], **options)


def test_lr_and_hr_crops_show_the_same_place_under_the_same_symmetry():
    images, cells = maps(), 9
    # The LR image of the protocol before its rounding: made from the whole image, in double.
    lrs = [
        resize(torch.from_numpy(i[:, : i.shape[1] // 4 * 4, : i.shape[2] // 4 * 4]).double(), 1 / 4)
        for i in images
    ]
    bank = bank_of(images)
    lr, hr = bank.batch(400, cells)
    assert lr.dtype == hr.dtype == torch.float32
    assert lr.shape == (400, 3, 9, 9)
    assert hr.shape == (400, 3, 36, 36)
    lr, hr, counts = levels(lr), levels(hr), np.zeros(8)
    for (y, x, number), lr_crop, hr_crop in zip(places(hr).astype(int), lr, hr, strict=True):
        image, exact = images[number], lrs[number].clamp(0, 255).numpy()
        cut = image[:, y * 4 : (y + cells) * 4, x * 4 : (x + cells) * 4]
        fits = [np.array_equal(turned(cut), hr_crop) for turned in SYMMETRIES]
        assert sum(fits) == 1
        k = fits.index(True)
        cut = SYMMETRIES[k](exact[:, y : y + cells, x : x + cells])
        assert np.abs(cut - lr_crop).max() <= 0.5 + 1e-3
        counts[k] += 1
    assert ((counts - 50) ** 2 / 50).sum() < 24.3  # chi-square, 7 degrees of freedom, 0.1%


def test_every_position_of_every_image_is_equally_likely():
    bank = bank_of(maps())
    hr = torch.cat([bank.batch(100, 8, augment=False)[1] for _ in range(60)])
    found, counts = np.unique(places(levels(hr)), axis=0, return_counts=True)
    expected = [
        (row, column, number)
        for number, (h, w) in enumerate(SIZES)
        for row in range(h // 4 - 7)
        for column in range(w // 4 - 7)
    ]
    assert sorted(map(tuple, found)) == sorted(expected)
    mean = 6000 / len(expected)
    deviation = ((counts - mean) ** 2 / mean).sum()
    degrees = len(expected) - 1
    assert deviation < degrees + 4 * (2 * degrees) ** 0.5


def test_crops_by_detail_are_drawn_as_often_as_the_exponent_says():
    """Left half smooth, right half noise: how often a crop lies on the right is a closed form."""
    random = torch.Generator().manual_seed(0)
    image = torch.full((3, 256, 512), 128, dtype=torch.uint8)
    # Two strengths of noise, in cells far from the borders between them.
    strong = torch.randint(64, 192, (3, 256, 256), generator=random, dtype=torch.uint8)
    image[:, :, 256:] = strong
    image[:, :, :256] = 128 + (strong.int() - 128).div(4, rounding_mode="floor")
    for exponent in (0.5, 1.0):
        bank = PatchBank([image], detail=exponent)
        places = torch.cat([bank._positions(1000, 1)[2] for _ in range(20)])
        # Errors are 1 : 16 (rounding aside), so the halves are drawn as 1 : 16 ** exponent.
        share = float((places >= 64).float().mean())
        assert share == pytest.approx(16**exponent / (1 + 16**exponent), abs=0.02)


def test_crops_by_detail_stay_inside_and_the_seed_decides(files):
    banks = [PatchBank.from_files(files[0], seed=5, detail=0.5) for _ in range(2)]
    smallest = int(banks[0].boxes[:, 2:].min())
    for size in (1, smallest):
        image, y, x = banks[0]._positions(500, size)
        height, width = banks[0].boxes[image, 2:].unbind(1)
        assert ((y >= 0) & (y <= height - size) & (x >= 0) & (x <= width - size)).all()
        assert all(map(torch.equal, (image, y, x), banks[1]._positions(500, size)))
    state = banks[0].state_dict()
    first = banks[0].batch(4, smallest)
    banks[0].load_state_dict(state)
    assert all(map(torch.equal, first, banks[0].batch(4, smallest)))


def test_a_negative_exponent_is_refused():
    with pytest.raises(SrlabError, match="detail must be 0 or a positive exponent, got -1"):
        PatchBank([torch.zeros(3, 64, 64, dtype=torch.uint8)], detail=-1.0)


def test_without_augmentation_landscape_crops_keep_their_orientation():
    images = maps(SIZES[:1])
    _, hr = bank_of(images).batch(20, 6, augment=False)
    hr = levels(hr)
    for (y, x, _), crop in zip(places(hr).astype(int), hr, strict=True):
        assert np.array_equal(crop, images[0][:, y * 4 : y * 4 + 24, x * 4 : x * 4 + 24])


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_other_scales(scale):
    image = torch.randint(256, (3, 48, 48), dtype=torch.uint8)
    lr, hr = PatchBank([image], scale=scale).batch(1, 48 // scale, augment=False)
    assert np.array_equal(levels(hr)[0], image.numpy())
    exact = resize(image.double(), 1 / scale).clamp(0, 255)
    assert (lr[0] * 255 - exact).abs().max() <= 0.5 + 1e-3


def test_the_seed_alone_decides_the_crops():
    def batches(seed):
        bank = bank_of(maps(), seed=seed)
        return torch.cat([bank.batch(4, 6)[1] for _ in range(3)])

    first = batches(1)
    torch.manual_seed(12345)  # the global generator has no say
    assert torch.equal(first, batches(1))
    assert not torch.equal(first, batches(2))


def test_a_restored_bank_goes_on_where_the_saved_one_was():
    bank, other = bank_of(maps(), seed=1), bank_of(maps(), seed=2)
    bank.batch(5, 6)
    other.load_state_dict(bank.state_dict())
    for a, b in zip(bank.batch(5, 6), other.batch(5, 6), strict=True):
        assert torch.equal(a, b)


def test_shelves_hold_every_picture_once():
    random = np.random.default_rng(0)
    for _ in range(50):
        sizes = [tuple(map(int, pair)) for pair in random.integers(1, 30, size=(12, 2))]
        boxes = _shelves(sizes)
        assert [tuple(box) for box in boxes[:, 2:].tolist()] == sizes
        canvas = np.zeros((12 * 30, max(w for _, w in sizes)), int)
        for top, left, h, w in boxes.tolist():
            assert left + w <= canvas.shape[1]
            canvas[top : top + h, left : left + w] += 1
        assert canvas.max() == 1
        assert canvas.sum() == sum(h * w for h, w in sizes)


def test_memory_is_the_pixels_of_both_sides_in_four_bytes_each():
    bank = bank_of(maps([(48, 64)] * 3))
    assert len(bank) == 3
    assert bank.nbytes == 3 * 4 * (48 * 64 + 12 * 16)


def test_batches_lie_as_fast_convolutions_want_them():
    for crops in bank_of(maps([(48, 64)] * 3)).batch(4, 8):
        assert crops.is_contiguous(memory_format=torch.channels_last)


def test_packing_is_undone():
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    words = pack_pixels(image)
    assert words.shape == (5, 7)
    assert torch.equal(unpack_pixels(words[None])[0], image)


def test_the_smallest_image_that_holds_the_crop():
    assert bank_of(maps([(24, 32), (64, 64)])).batch(8, 6)[1].shape == (8, 3, 24, 24)


@pytest.mark.parametrize("size", [(30, 64), (64, 23), (3, 64), (1, 1)])
def test_an_image_smaller_than_the_crop_is_named(tmp_path, size):
    files = [tmp_path / "large.png", tmp_path / "small.png"]
    for file, image in zip(files, maps([(64, 64), size]), strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(file)
    bank = PatchBank.from_files(files)
    h, w = (side // 4 * 4 for side in size)
    with pytest.raises(SrlabError, match=re.escape(str(files[1]))) as error:
        bank.batch(1, 8)
    assert re.search(f"{max(h, w)} x {min(h, w)} pixels", str(error.value))
    assert "32 x 32 crop" in str(error.value)


def test_no_images():
    with pytest.raises(SrlabError, match="name at least one picture"):
        PatchBank([])


@pytest.fixture
def files(tmp_path):
    """Six files and their pixels, each a little different in size, to be decoded in parallel."""
    images = maps([(56 + 8 * i, 96) for i in range(6)])
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return paths, images


def test_from_files_equals_the_decoded_images(files):
    paths, images = files
    bank = PatchBank.from_files(paths, seed=3)
    for a, b in zip(bank.batch(9, 6), bank_of(images, seed=3).batch(9, 6), strict=True):
        assert torch.equal(a, b)


def test_from_files_shrinks(files, pillow_bicubic):
    paths, images = files
    bank = PatchBank.from_files([paths[0], paths[5]], shrink=[1, 2])
    # What is left of the second image, 48 x 48, holds just one crop of its own height.
    _, hr = PatchBank.from_files([paths[5]], shrink=2).batch(1, 12, augment=False)
    half = np.stack([pillow_bicubic(channel, 1 / 2) for channel in images[5]]).clip(0, 255)
    assert hr.shape == (1, 3, 48, 48)
    assert np.abs(hr[0].numpy() * 255 - half).max() <= 0.5 + 1e-3
    assert bank.boxes[:, 2:].tolist() == [[14, 24], [12, 12]]


def test_from_files_wants_one_factor_a_file(files):
    with pytest.raises(ValueError, match="shrink has 2 factors for 6 files"):
        PatchBank.from_files(files[0], shrink=[2, 2])


def test_a_picture_that_shrinks_to_nothing_is_named(files, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    bank = PatchBank.from_files([files[0][0], tmp_path / "dot.png"], shrink=2)
    with pytest.raises(SrlabError, match=r"dot\.png is too small: 0 x 0 pixels"):
        bank.batch(1, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_delivers_the_crops_of_the_cpu(monkeypatch, fits):
    if not fits:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    bank = bank_of(maps(), device="cuda")
    assert bank.hr_atlas.is_cuda == fits
    for gpu, cpu in zip(bank.batch(50, 6), bank_of(maps()).batch(50, 6), strict=True):
        assert gpu.is_cuda
        assert torch.equal(gpu.cpu(), cpu)
