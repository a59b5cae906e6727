"""PatchBank: aligned crops from everywhere, in all eight orientations, reproducibly."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from srlab.degradation import downsample
from srlab.errors import SrlabError
from srlab.images import to_float, to_uint8, write_image
from srlab.patches import PatchBank, _shelves, dihedral, pack_pixels, unpack_pixels


def photo(h, w, seed=0):
    """Random 8-bit pixels: no two crops of it are alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, h, w), dtype=torch.uint8, generator=generator)


def crops_of(image, size, step=1):
    """Every crop of a picture by its top left corner, as bytes."""
    _, h, w = image.shape
    return {
        image[:, y : y + size, x : x + size].contiguous().numpy().tobytes(): (y, x)
        for y in range(0, h - size + 1, step)
        for x in range(0, w - size + 1, step)
    }


def place(crop, table):
    """Where in the picture a crop was cut and how it was turned: [(k, (y, x)), ...]."""
    found = []
    for k in range(8):
        inverse = dihedral(crop, k if k >= 4 else (4 - k) % 4)
        key = inverse.contiguous().numpy().tobytes()
        if key in table:
            found.append((k, table[key]))
    return found


@pytest.mark.parametrize("shape", [(36, 52), (53, 38)], ids=["landscape", "portrait"])
def test_lr_and_hr_crops_are_aligned(shape):
    hr_image = photo(*shape)
    h, w = (side - side % 4 for side in shape)
    hr_image = hr_image[:, :h, :w]
    lr_image = to_uint8(downsample(to_float(hr_image)))
    lr_table, hr_table = crops_of(lr_image, 5), crops_of(hr_image, 20, step=4)
    lr, hr = PatchBank([photo(*shape)]).batch(64, patch_size=5)
    symmetries = set()
    for lr_crop, hr_crop in zip(to_uint8(lr), to_uint8(hr), strict=True):
        ((k_hr, (y_hr, x_hr)),) = place(hr_crop, hr_table)
        ((k_lr, (y_lr, x_lr)),) = place(lr_crop, lr_table)
        assert (k_lr, 4 * y_lr, 4 * x_lr) == (k_hr, y_hr, x_hr)
        symmetries.add(k_hr)
    assert symmetries == set(range(8))


def test_without_augmentation_crops_come_as_they_are():
    image = photo(32, 48)
    _, hr = PatchBank([image]).batch(32, patch_size=4, augment=False)
    table = crops_of(image, 16, step=4)
    assert all(place(crop, table)[0][0] == 0 for crop in to_uint8(hr))


def test_the_eight_symmetries_differ():
    x = photo(4, 4)
    turned = [dihedral(x, k) for k in range(8)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(turned, 2))


def test_every_position_of_every_image_is_equally_likely():
    images = [photo(24, 32, seed=1), photo(20, 48, seed=2)]
    tables = [crops_of(image, 16, step=4) for image in images]
    counts = {(i, where): 0 for i, table in enumerate(tables) for where in table.values()}
    _, hr = PatchBank(images).batch(4000, patch_size=4, augment=False)
    for crop in to_uint8(hr):
        key = crop.contiguous().numpy().tobytes()
        (i,) = (i for i, table in enumerate(tables) if key in table)
        counts[i, tables[i][key]] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_batches_are_float_images_of_the_right_shape():
    lr, hr = PatchBank([photo(96, 120), photo(120, 96)]).batch(7, patch_size=12)
    assert lr.shape == (7, 3, 12, 12)
    assert hr.shape == (7, 3, 48, 48)
    assert lr.dtype == hr.dtype == torch.float32
    torch.testing.assert_close((hr * 255).round() / 255, hr)
    assert 0 <= lr.min() <= lr.max() <= 1


def test_same_seed_same_batches_and_the_state_can_be_carried_on():
    images = [photo(64, 64), photo(64, 80)]
    a, b = PatchBank(images, seed=5), PatchBank(images, seed=5)
    assert torch.equal(a.batch(8, 8)[1], b.batch(8, 8)[1])
    state = a.state_dict()
    following = a.batch(8, 8)
    c = PatchBank(images, seed=6)
    assert not torch.equal(c.batch(8, 8)[1], following[1])
    c.load_state_dict(state)
    assert all(torch.equal(x, y) for x, y in zip(c.batch(8, 8), following, strict=True))


def test_pixels_survive_packing():
    image = photo(5, 7)
    assert torch.equal(unpack_pixels(pack_pixels(image)[None])[0], image)


def test_shelves_hold_every_picture_apart():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 40, (50, 2), generator=generator).tolist()
    boxes = _shelves([tuple(size) for size in sizes])
    bottom, right = (int(n) for n in (boxes[:, :2] + boxes[:, 2:]).amax(0))
    assert right <= max(width for _, width in sizes)
    canvas = torch.zeros(bottom, right)
    for (top, left, h, w), size in zip(boxes.tolist(), sizes, strict=True):
        assert [h, w] == size
        canvas[top : top + h, left : left + w] += 1
    assert canvas.max() == 1


def test_files_are_decoded_and_shrunk(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for i, file in enumerate(files):
        write_image(photo(64, 96, seed=i), file)
    assert PatchBank.from_files(files).hr_atlas.numel() == 2 * 64 * 96
    half = PatchBank.from_files(files[:1], shrink=2)
    expected = to_uint8(downsample(to_float(photo(64, 96)), 2))
    assert torch.equal(unpack_pixels(half.hr_atlas[None])[0], expected)
    mixed = PatchBank.from_files(files, shrink=[1, 2])
    assert mixed.boxes[:, 2:].tolist() == [[16, 24], [8, 12]]


def test_a_picture_smaller_than_the_crop_is_named(tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    write_image(photo(30, 200), small)
    write_image(photo(128, 128), large)
    bank = PatchBank.from_files([large, small])
    with pytest.raises(SrlabError, match=r"small\.png is too small: 200 x 28 .* 32 x 32 crop"):
        bank.batch(4, patch_size=8)
    bank.batch(4, patch_size=7)


def test_a_picture_smaller_than_one_lr_pixel_is_named():
    with pytest.raises(SrlabError, match="image 1 is too small"):
        PatchBank([photo(64, 64), photo(3, 64)]).batch(4, patch_size=8)


def test_no_images():
    with pytest.raises(SrlabError, match="no images"):
        PatchBank([])
