import math

import numpy as np
import pytest
import torch
from scipy import stats

from srlab.evaluation.statistics import Interval, bootstrap, decide


@pytest.mark.parametrize("n", [8, 30, 200])
def test_the_mean_of_normal_values_has_students_interval(n):
    values = torch.from_numpy(np.random.default_rng(n).normal(5, 2, n))
    found = bootstrap(values)
    want = stats.t.interval(0.95, n - 1, values.mean(), values.std() / math.sqrt(n))
    width = want[1] - want[0]
    assert found.estimate == pytest.approx(values.mean().item())
    assert found.low == pytest.approx(want[0], abs=0.06 * width)
    assert found.high == pytest.approx(want[1], abs=0.06 * width)
    assert (found.seeds, found.images) == (n, 1)


def test_many_values_need_no_stretching_and_agree_with_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(1, 400)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    found = bootstrap(torch.from_numpy(values)[None])  # images instead of seeds
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.05 * width)


@pytest.mark.parametrize(("seeds", "images"), [(3, 7), (3, 1), (5, 21), (10, 10)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(seeds, images):
    random = np.random.default_rng(seeds * images)
    hits, trials = 0, 600
    for trial in range(trials):
        values = (
            random.normal(0, 1, (seeds, 1))
            + random.normal(0, 0.7 * (images > 1), (1, images))
            + random.normal(0, 0.5, (seeds, images))
        )
        found = bootstrap(torch.from_numpy(values), n=1000, generator_seed=trial)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / trials <= 0.995


def test_an_image_effect_shared_by_all_seeds_counts():
    """With few images the interval must not be that of seeds * images independent values."""
    of_images = torch.tensor([-3.0, -1.0, 1.0, 3.0, 0.5, -0.5])
    found = bootstrap(of_images.expand(50, 6) + 1)
    want = stats.t.interval(0.95, 5, 1, of_images.std() / math.sqrt(6))
    assert (found.low, found.high) == pytest.approx(want, rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_errors_are_told():
    values = torch.arange(12.0).view(3, 4)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, level=0.5).high < bootstrap(values).high
    one = bootstrap(torch.tensor([2.0]))
    assert (one.estimate, one.low, one.high) == (2.0, -math.inf, math.inf)
    for bad in (torch.empty(0), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="finite values"):
            bootstrap(bad)


@pytest.mark.parametrize(
    ("low", "high", "seeds", "want"),
    [
        (0.1, 0.3, 3, "holds"),
        (-0.3, -0.1, 3, "is refuted"),
        (-0.1, 0.3, 3, "inconclusive"),
        (0.1, 0.3, 2, "inconclusive"),
    ],
)
def test_verdict_on_an_effect_above_zero(low, high, seeds, want):
    assert decide(Interval((low + high) / 2, low, high, seeds, 7), above=0) == want


def test_verdict_on_a_value_between_two_ends():
    near_minus_one = {"above": -1.25, "below": -0.75}
    assert decide(Interval(-1, -1.1, -0.9, 3, 1), **near_minus_one) == "holds"
    assert decide(Interval(-5, -6, -4, 3, 1), **near_minus_one) == "is refuted"
    assert decide(Interval(-1, -1.5, -0.5, 3, 1), **near_minus_one) == "inconclusive"
    assert decide(bootstrap(torch.tensor([-1.0])), **near_minus_one) == "inconclusive"
