"""srlab.evaluation.protocol: the published bicubic figures, and each choice by itself."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from srlab.data.datasets import DatasetError, find
from srlab.data.images import write_image
from srlab.errors import SrlabError
from srlab.evaluation.protocol import PUBLISHED, Protocol, Score, compare, evaluate, mean
from srlab.evaluation.scores import Figures, write_csv
from srlab.models.generators import Bicubic


@pytest.fixture
def file(tmp_path, photo):
    """The photograph as a file; its sides, 94 x 127, do not divide by 4."""
    path = tmp_path / "cat.png"
    write_image(photo[:, :94, :127], path)
    return path


@pytest.mark.parametrize(
    ("name", "psnr", "ssim"),
    [("set5", 28.42, 0.8104), ("set14", 26.00, 0.7027), ("bsd100", 25.96, 0.6675)],
)
def test_bicubic_reads_the_published_figures(name, psnr, ssim):
    """The figures that papers have quoted for bicubic x4 since VDSR (Kim et al. 2016)."""
    try:
        files = find(name)
    except DatasetError as error:
        pytest.skip(str(error))
    score = mean(evaluate(Bicubic(), files))
    assert abs(score.psnr - psnr) < 0.02
    assert abs(score.ssim - ssim) < 0.002


def independent(file, bicubic, channel, shave, round_luma):
    """PSNR and SSIM of bicubic x4 with nothing but Pillow, numpy and scikit-image."""

    def resized(pixels, scale):
        planes = [bicubic(pixels[..., c].astype(float), scale) for c in range(3)]
        return np.floor(np.stack(planes, -1).clip(0, 255) + 0.5).astype(np.uint8)

    hr = np.array(Image.open(file))
    h, w = (side // 4 * 4 for side in hr.shape[:2])
    hr = hr[:h, :w]
    sr = resized(resized(hr, 1 / 4), 4)
    inside = (slice(shave, h - shave), slice(shave, w - shave))
    if channel == "y":
        hr, sr = rgb2ycbcr(hr)[..., :1], rgb2ycbcr(sr)[..., :1]
        if round_luma:
            hr, sr = np.floor(hr + 0.5), np.floor(sr + 0.5)
    hr, sr = hr[inside].astype(float), sr[inside].astype(float)
    ssim = structural_similarity(
        hr,
        sr,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1,
    )
    return peak_signal_noise_ratio(hr, sr, data_range=255), ssim


@pytest.mark.parametrize("shave", [0, 4])
@pytest.mark.parametrize(("channel", "round_luma"), [("y", True), ("y", False), ("rgb", True)])
def test_one_image_measured_independently(file, pillow_bicubic, channel, shave, round_luma):
    rules = Protocol(channel=channel, shave=shave, round_luma=round_luma)
    (score,) = evaluate(Bicubic(), [file], rules)
    psnr, ssim = independent(file, pillow_bicubic, channel, shave, round_luma)
    assert score.image == "cat"
    assert abs(score.psnr - psnr) < 1e-3  # a pixel may fall on the other side of a half
    assert abs(score.ssim - ssim) < 1e-5


def test_shaved_pixels_do_not_count(photo):
    rules, sr = Protocol(channel="rgb", shave=4), photo.clone()
    sr[:, :4], sr[:, -4:], sr[:, :, :4], sr[:, :, -4:] = 0, 0, 1, 1
    assert compare(sr, photo, rules) == (math.inf, 1)
    sr[:, 4, 4] = 1 - photo[:, 4, 4].round()
    assert compare(sr, photo, rules)[0] < math.inf


def test_the_sr_image_is_clamped_and_rounded_as_in_a_file(photo):
    sr = photo + 0.4 / 255
    assert compare(sr, photo, Protocol("rgb")) == (math.inf, 1)
    unrounded, _ = compare(sr, photo, Protocol("rgb", round_8bit=False))
    assert unrounded == pytest.approx(20 * math.log10(255 / 0.4), abs=1e-3)
    black, white = torch.zeros(3, 20, 20), torch.ones(3, 20, 20)
    for round_8bit in (True, False):
        rules = Protocol("rgb", round_8bit=round_8bit)
        assert compare(white + 0.5, white, rules) == compare(black - 0.5, black, rules)
        assert compare(white + 0.5, white, rules)[0] == math.inf


def test_luma_spans_219_of_255_levels():
    black, white = torch.zeros(3, 20, 20), torch.ones(3, 20, 20)
    assert compare(black, white)[0] == pytest.approx(20 * math.log10(255 / 219), abs=1e-5)
    assert compare(black, white, Protocol("rgb"))[0] == 0


SQUEEZE = 20 * math.log10(255 / 219)  # 1.32 dB: 0..255 as an RGB picture becomes 16..235


def test_a_grey_file_is_its_own_luma(tmp_path, photo):
    grey, colour = tmp_path / "grey.png", tmp_path / "colour.png"
    write_image(photo[:1], grey)
    write_image(photo[:1].expand(3, -1, -1), colour)
    (luma,) = evaluate(Bicubic(), [grey])
    (rgb,) = evaluate(Bicubic(), [grey], Protocol(channel="rgb"))
    assert (luma.psnr, luma.ssim) == pytest.approx((rgb.psnr, rgb.ssim))
    unrounded = Protocol(grey="rgb", round_luma=False)
    (squeezed,) = evaluate(Bicubic(), [grey], unrounded)
    assert squeezed.psnr == pytest.approx(luma.psnr + SQUEEZE, abs=1e-4)
    (coloured,) = evaluate(Bicubic(), [colour], Protocol(round_luma=False))
    assert coloured.psnr == squeezed.psnr


def test_bridge_of_set14_is_grey():
    try:
        (bridge,) = (f for f in find("set14") if f.stem == "bridge")
    except DatasetError as error:
        pytest.skip(str(error))
    (luma,) = evaluate(Bicubic(), [bridge])
    (rgb,) = evaluate(Bicubic(), [bridge], Protocol(grey="rgb"))
    assert rgb.psnr - luma.psnr == pytest.approx(SQUEEZE, abs=0.01)


def test_colour_that_a_model_adds_to_a_grey_picture_counts_as_its_luma(photo):
    hr = (photo[:1] * 0.5 + 0.25).mul(255).round().div(255).expand(3, -1, -1)  # nothing clips
    sr = hr + torch.tensor([20, -20, 10]).view(3, 1, 1) / 255
    error = 0.299 * 20 - 0.587 * 20 + 0.114 * 10
    psnr, _ = compare(sr, hr, Protocol(round_luma=False), grey=True)
    assert psnr == pytest.approx(20 * math.log10(255 / abs(error)), abs=1e-3)


class Nearest(nn.Module):
    scale, receptive_radius = 4, 0

    def forward(self, lr):
        return nn.functional.interpolate(lr, scale_factor=4, mode="nearest")


def test_any_model_that_knows_its_scale_and_radius(file):
    for tile in (None, 256, 7):
        (score,) = evaluate(Nearest(), [file], tile=tile)
        assert score.psnr < evaluate(Bicubic(), [file])[0].psnr
    assert evaluate(Bicubic(2), [file])[0].psnr > evaluate(Bicubic(4), [file])[0].psnr + 2


def test_a_better_model_reads_better_and_the_order_of_files_is_kept(tmp_path, photo):
    files = [tmp_path / f"{name}.png" for name in "cab"]
    for i, file in enumerate(files):
        write_image(photo[:, : 40 + 4 * i], file)
    assert [s.image for s in evaluate(Bicubic(), files)] == ["c", "a", "b"]


@pytest.mark.parametrize("size", [(19, 40), (40, 16), (3, 3)])
def test_an_image_too_small_for_ssim_is_named(tmp_path, size):
    path = tmp_path / "tiny.png"
    write_image(torch.rand(3, *size), path)
    with pytest.raises(SrlabError, match=r"tiny\.png is too small .* needs 19 pixels a side"):
        evaluate(Bicubic(), [path])


def test_the_smallest_image_that_can_be_scored(tmp_path):
    path = tmp_path / "small.png"
    write_image(torch.rand(3, 20, 23), path)
    assert len(evaluate(Bicubic(), [path])) == 1


def test_mean_is_of_the_decibels():
    scores = [Score("a", 20, 0.5), Score("b", 40, 0.9)]
    assert mean(scores) == Score("mean", 30, 0.7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": "Y"}, "channel must be 'y' or 'rgb', got 'Y'"),
        ({"grey": "yes"}, "grey must be 'luma' or 'rgb', got 'yes'"),
        ({"shave": -1}, "shave must not be negative, got -1"),
    ],
)
def test_impossible_protocols(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**options)


def test_the_default_is_the_published_protocol():
    assert Protocol("y", 4, True, True, "luma") == PUBLISHED


def test_a_network_that_diverged_gets_no_score(photo):
    with pytest.raises(SrlabError, match="is not finite"):
        compare(photo * float("nan"), photo)


def test_scores_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "scores.csv"
    file.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SrlabError, match=r"scores\.csv could not be written: .*No space left"):
        write_csv([Figures("a", 30.0, 0.9, 0.1, 50.0)], file)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]
    assert file.read_text() == "before"
