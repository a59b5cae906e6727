import math

import pytest
import torch

from srlab.datasets import find
from srlab.degradation import crop_to_multiple, downsample
from srlab.evaluation import protocol, scores
from srlab.images import read_image
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
