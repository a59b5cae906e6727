"""scripts/distill_vgg.py: what is kept of a network, and how the rest is found from it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

SCRIPT = Path(__file__).parents[1] / "scripts" / "distill_vgg.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("distill_vgg", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["distill_vgg"] = module
    spec.loader.exec_module(module)
    return module


def test_regression_finds_a_known_map(script):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(500, 6), torch.randn(6, 3), torch.randn(3)
    found = script.regress(x, x @ weight + bias)
    assert_close(found[0], weight, atol=0.05, rtol=0.02)
    assert_close(found[1], bias, atol=0.05, rtol=0.02)


def test_one_of_each_kind_of_channel_is_kept(script):
    """Twelve channels, of which there are but three up to a factor."""
    torch.manual_seed(0)
    kinds = torch.rand(8, 3, 8, 8)
    factors = torch.tensor([1.0, 2.0, 0.5, 3.0]).repeat_interleave(3).view(12, 1, 1)
    maps = kinds.repeat(1, 4, 1, 1) * factors
    kept, gains = script.choose(maps, 3)
    assert sorted(k % 3 for k in kept.tolist()) == [0, 1, 2]
    # With the gains the three are as far from crop to copy as all twelve are.
    crops, copies = maps.chunk(2)
    total = (crops - copies).square().sum()
    own = ((crops - copies)[:, kept] * gains.view(3, 1, 1)).square().sum()
    assert own == pytest.approx(float(total), rel=0.1)


def test_the_student_computes_what_was_kept_of_the_teacher(script):
    """A teacher that has only sixteen different channels in its first layer loses none of it."""
    from srlab.models.vgg import Features

    torch.manual_seed(0)
    teacher = Features(tuple(script.TAPS.values()), net="vgg16")
    first = teacher.layers[0]
    with torch.no_grad():
        for parameter in (first.weight, first.bias):
            parameter.copy_(parameter[:16].repeat(4, *[1] * (parameter.ndim - 1)))
    student = script.Student()
    images = torch.rand(8, 3, 48, 48)
    script.cut_out(student, teacher, images)
    x = (images - teacher.mean) / teacher.std
    kept = student.features.layers[0](x).relu()
    original = first(x).relu()
    # Each kept channel is one of the teacher's up to its gain; the border is zero-padded alike.
    for channel in kept.unbind(1):
        a, b = channel[:, 2:-2, 2:-2].flatten(), original[:, :16, 2:-2, 2:-2].transpose(0, 1)
        likeness = torch.nn.functional.cosine_similarity(a[None], b.flatten(1))
        assert likeness.max() > 0.995
    maps, predicted = student(images)
    assert [p.shape[1] for p in predicted] == [64, 128, 256, 512, 512]
    assert [m.shape[1] for m in maps] == [16, 32, 64, 128, 128]
