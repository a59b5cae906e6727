"""The protocol: published figures, independent arithmetic, and what each choice does."""

import csv
import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from srlab import datasets
from srlab.degradation import crop_to_multiple, downsample
from srlab.errors import SrlabError
from srlab.evaluation import protocol
from srlab.evaluation.protocol import Protocol, Score, compare, evaluate
from srlab.images import read_image, write_image
from srlab.models.generators import Bicubic


def at_hand(name):
    try:
        return datasets.find(name)
    except SrlabError as error:
        pytest.skip(f"needs a benchmark set: {error}")


# Kim et al. (VDSR, CVPR 2016) and Lim et al. (EDSR, CVPRW 2017): bicubic x4, luma, shave 4.
PUBLISHED = {
    "set5": (28.42, 0.8104),
    "set14": (26.00, 0.7027),
    "bsd100": (25.96, 0.6675),
    "urban100": (23.14, 0.6577),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_bicubic_reads_the_published_figures(name):
    mean = protocol.mean(evaluate(Bicubic(), at_hand(name)))
    psnr, ssim = PUBLISHED[name]
    assert mean.psnr == pytest.approx(psnr, abs=0.02)
    assert mean.ssim == pytest.approx(ssim, abs=0.002)


def test_grey_files_are_scored_as_luma_unless_asked_otherwise():
    """Set14's bridge is grey: taken as RGB it is squeezed into 16..235 and gains 20 log 255/219."""
    (bridge,) = (f for f in at_hand("set14") if "bridge" in f.stem)
    luma, rgb = (evaluate(Bicubic(), [bridge], Protocol(grey=g))[0].psnr for g in ("luma", "rgb"))
    assert rgb - luma == pytest.approx(20 * math.log10(255 / 219), abs=0.03)


@pytest.fixture(scope="module")
def pair():
    hr = crop_to_multiple(read_image(datasets.find("photos-valid")[0]), 4)[:, :120, :160]
    sr = Bicubic()(downsample(hr)[None])[0]
    return sr, hr


def as_uint8(x):
    return np.floor(x.clamp(0, 1).permute(1, 2, 0).double().numpy() * 255 + 0.5).astype(np.uint8)


def test_equals_the_same_steps_in_numpy_and_scikit_image(pair):
    sr, hr = (np.round(rgb2ycbcr(as_uint8(x))[4:-4, 4:-4, 0]) for x in pair)
    psnr, ssim = compare(*pair)
    assert psnr == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-3)
    expected = structural_similarity(
        hr, sr, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim == pytest.approx(expected, abs=1e-4)


def test_rgb_without_shaving(pair):
    sr, hr = (as_uint8(x) for x in pair)
    psnr, _ = compare(*pair, Protocol(channel="rgb", shave=0))
    assert psnr == pytest.approx(peak_signal_noise_ratio(hr, sr), abs=1e-6)


def test_what_lies_in_the_shaved_border_does_not_count(pair):
    sr, hr = pair
    spoiled = sr.clone()
    spoiled[:, :4] = spoiled[:, -4:] = 0
    spoiled[:, :, :4] = spoiled[:, :, -4:] = 1
    assert compare(spoiled, hr) == compare(sr, hr)
    assert compare(spoiled, hr, Protocol(shave=3)) < compare(sr, hr, Protocol(shave=3))


def test_rounding_hides_what_no_file_can_hold(pair):
    _, hr = pair
    faint = hr + 0.3 / 255
    assert compare(faint, hr)[0] == math.inf
    exact = Protocol(channel="rgb", round_8bit=False, round_luma=False)
    assert compare(faint * 0.99, hr * 0.99, exact)[0] < 60


def test_the_mean_is_the_mean_of_the_decibels():
    mean = protocol.mean([Score("a", 20, 0.5), Score("b", 30, 0.7)])
    assert (mean.psnr, mean.ssim) == (25, pytest.approx(0.6))


def test_evaluate_keeps_order_and_csv_keeps_precision(tmp_path):
    files = list(reversed(datasets.find("photos-valid")))
    scores = evaluate(Bicubic(), files)
    assert [s.image for s in scores] == [f.stem for f in files]
    protocol.write_csv(scores, tmp_path / "new" / "scores.csv")
    with open(tmp_path / "new" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [*(f.stem for f in files), "mean"]
    assert float(rows[0]["psnr"]) == scores[0].psnr
    assert float(rows[-1]["ssim"]) == protocol.mean(scores).ssim


def test_a_picture_too_small_for_ssim_is_named(tmp_path):
    write_image(torch.rand(3, 16, 64), tmp_path / "tiny.png")
    with pytest.raises(SrlabError, match=r"tiny\.png is too small"):
        evaluate(Bicubic(), [tmp_path / "tiny.png"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"channel": "luma"}, "'y' or 'rgb'"), ({"grey": "y"}, "'luma'"), ({"shave": -1}, "negative")],
)
def test_bad_choices(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**options)
