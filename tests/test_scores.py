import csv
import math

import pytest
import torch

from srlab.data.datasets import find
from srlab.data.degradation import crop_to_multiple, downsample
from srlab.data.images import read_image
from srlab.evaluation import protocol, scores
from srlab.models import zoo


def test_figures_are_the_protocols_and_the_judge_sees_the_same_picture():
    files, bicubic = find("photos-valid"), zoo.load("bicubic")
    seen = []

    def judge(sr, hr):
        seen.append((sr, hr))
        return (sr - hr).abs().mean()

    found = scores.measure(bicubic, files, judge)
    for figures, want, file, (sr, hr) in zip(
        found, protocol.evaluate(bicubic, files), files, seen, strict=True
    ):
        assert (figures.image, figures.psnr, figures.ssim) == (want.image, want.psnr, want.ssim)
        original = crop_to_multiple(read_image(file), 4)
        assert torch.equal(hr[0], original)
        assert torch.equal((sr * 255).round() / 255, sr)  # as a file would hold it
        assert figures.distance == pytest.approx(float((sr - hr).abs().mean()))
        lr = downsample(original)
        assert figures.consistency == pytest.approx(protocol.consistency(sr[0], lr))
    mean = scores.mean(found)
    assert mean.psnr == pytest.approx(sum(f.psnr for f in found) / len(found))
    assert math.isnan(scores.mean(scores.measure(bicubic, files[:1])).distance)


def test_the_protocols_rules_and_tiles_reach_it():
    files, bicubic = find("photos-valid")[:1], zoo.load("bicubic")
    rules = protocol.Protocol(channel="rgb", shave=7)
    (found,) = scores.measure(bicubic, files, rules=rules, tile=40)
    (wanted,) = protocol.evaluate(bicubic, files, rules)
    assert (found.psnr, found.ssim) == pytest.approx((wanted.psnr, wanted.ssim), abs=1e-4)


def test_a_set_distance_sees_the_same_pairs():
    class Count:
        def __init__(self):
            self.pairs = []

        def update(self, sr, hr):
            self.pairs.append((sr, hr))

    seen, count = [], Count()

    def judge(sr, hr):
        seen.append((sr, hr))
        return 0.0

    scores.measure(zoo.load("bicubic"), find("photos-valid"), judge, frechet=count)
    for pair, same in zip(count.pairs, seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, same, strict=True))


@pytest.mark.parametrize("distance", [None, "LPIPS-alex"])
def test_csv_keeps_every_digit(tmp_path, distance):
    figures = [
        scores.Figures("a, b", 27.123456789012345, 1 / 3, 0.1, 50.0),
        scores.Figures("köln", math.inf, 1.0, 2 / 7, 50.0),
    ]
    scores.write_csv(figures, tmp_path / "new" / "scores.csv", distance)
    with open(tmp_path / "new" / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "psnr", "ssim", *([distance] if distance else [])]
    for row, want in zip(rows, [*figures, scores.mean(figures)], strict=True):
        assert (row["image"], float(row["psnr"]), float(row["ssim"])) == (
            want.image, want.psnr, want.ssim,
        )  # fmt: skip
        assert not distance or float(row[distance]) == want.distance
