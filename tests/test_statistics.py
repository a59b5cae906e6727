import math

import numpy as np
import pytest
import torch
from scipy import stats

from srlab.evaluation.statistics import (
    NO_DIFFERENCE,
    Interval,
    Spread,
    crossed,
    decide,
    seeds_needed,
    simulate,
    spread,
)


@pytest.mark.parametrize("n", [2, 3, 8, 200])
@pytest.mark.parametrize("level", [0.95, 0.9975])
def test_the_mean_of_normal_values_has_students_interval(n, level):
    values = torch.from_numpy(np.random.default_rng(n).normal(5, 2, n))
    found = crossed(values, level=level)
    want = stats.t.interval(level, n - 1, values.mean(), values.std() / math.sqrt(n))
    assert (found.low, found.high) == pytest.approx(want, rel=1e-9)
    assert found.estimate == pytest.approx(values.mean().item())
    assert (found.seeds, found.images) == (n, 1)


def test_many_values_agree_with_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(1, 400)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    found = crossed(torch.from_numpy(values)[None])  # images instead of seeds
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.05 * width)


@pytest.mark.parametrize("level", [0.95, 0.9975])
@pytest.mark.parametrize(("seeds", "images"), [(3, 7), (3, 1), (5, 17), (5, 64), (10, 10)])
def test_the_interval_covers_the_truth_at_least_as_often_as_it_says(seeds, images, level):
    """Whichever part of the noise is the largest."""
    generator = torch.Generator().manual_seed(seeds * images)
    for noise in [(1, 0.7, 0.5), (0.1, 1, 0.5), (1, 0, 0.1), (0.1, 0.1, 1), (0.3, 1, 0)]:
        noise = Spread(noise[0], noise[1] * (images > 1), noise[2])
        low, high = simulate(noise, seeds, images, level=level, n=4000, generator=generator)
        missed = float(((low > 0) | (high < 0)).double().mean())
        chance = 3 * math.sqrt(level * (1 - level) / 4000)  # of 4,000 trials
        assert missed <= 1 - level + chance
        if noise.seeds > 0.9 and noise.rest < 0.2:  # all seeds: Student's own case, exact
            assert missed == pytest.approx(1 - level, abs=1.2 * chance)


def test_an_image_effect_shared_by_all_seeds_counts():
    """With few images the interval must not be that of seeds * images independent values."""
    of_images = torch.tensor([-3.0, -1.0, 1.0, 3.0, 0.5, -0.5])
    found = crossed(of_images.expand(50, 6) + 1)
    want = stats.t.interval(0.95, 5, 1, of_images.std() / math.sqrt(6))
    assert (found.low, found.high) == pytest.approx(want, rel=1e-6)


def test_a_single_value_and_errors_are_told():
    values = torch.arange(12.0).view(3, 4)
    assert crossed(values, level=0.5).high < crossed(values).high
    one = crossed(torch.tensor([2.0]))
    assert (one.estimate, one.low, one.high) == (2.0, -math.inf, math.inf)
    for bad in (torch.empty(0), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="finite values"):
            crossed(bad)


def test_spreads_are_those_that_the_values_were_drawn_with():
    random = np.random.default_rng(3)
    values = (
        random.normal(0, 1.0, (300, 1)) + random.normal(0, 0.5, (1, 300))
        + random.normal(0, 0.2, (300, 300))
    )  # fmt: skip
    found = spread(torch.from_numpy(values))
    assert (found.seeds, found.images, found.rest) == pytest.approx((1.0, 0.5, 0.2), rel=0.1)


def test_the_seeds_that_are_needed_give_the_power_and_one_less_does_not():
    noise, margin = Spread(0.02, 0.02, 0.02), 0.05
    needed = seeds_needed(noise, 64, margin, level=0.9975)

    def power(seeds):
        generator = torch.Generator().manual_seed(7)
        low, high = simulate(noise, seeds, 64, level=0.9975, n=4000, generator=generator)
        return float(((low > -margin) & (high < margin)).double().mean())

    assert power(needed) > 0.76
    assert power(needed - 1) < 0.84
    assert power(needed + 1) > 0.8
    assert seeds_needed(noise, 2, margin, level=0.9975) is None  # pictures are what lacks


@pytest.mark.parametrize(
    ("low", "high", "seeds", "want"),
    [
        (0.1, 0.3, 3, "holds"),
        (-0.3, -0.1, 3, "is refuted"),
        (-0.1, 0.3, 3, "inconclusive"),
        (0.1, 0.3, 2, "inconclusive"),
        (0.01, 0.04, 3, NO_DIFFERENCE),
        (-0.04, 0.04, 3, NO_DIFFERENCE),
        (-0.04, 0.04, 2, "inconclusive"),
        (0.01, 0.06, 3, "holds"),
        (-0.06, 0.04, 3, "inconclusive"),
    ],
)
def test_verdict_on_an_effect_above_zero(low, high, seeds, want):
    found = decide(Interval((low + high) / 2, low, high, seeds, 7), above=0, margin=0.05)
    assert found == want


def test_without_a_margin_every_difference_matters():
    assert decide(Interval(0.02, 0.01, 0.03, 3, 7), above=0) == "holds"
    assert decide(Interval(0.0, -0.01, 0.01, 3, 7), above=0) == "inconclusive"


def test_verdict_on_a_value_between_two_ends():
    near_minus_one = {"above": -1.25, "below": -0.75}
    assert decide(Interval(-1, -1.1, -0.9, 3, 1), **near_minus_one) == "holds"
    assert decide(Interval(-5, -6, -4, 3, 1), **near_minus_one) == "is refuted"
    assert decide(Interval(-1, -1.5, -0.5, 3, 1), **near_minus_one) == "inconclusive"
    assert decide(crossed(torch.tensor([-1.0])), **near_minus_one) == "inconclusive"


def test_the_end_of_an_interval_shows_on_which_side_of_zero_it_lies():
    assert str(Interval(0.0131, 0.00012, 0.0252, 8, 34)) == "+0.013 [+0.0001, +0.025]"
    assert str(Interval(0.0, 0.0, 0.0, 8, 34)) == "+0.000 [+0.000, +0.000]"
    assert str(Interval(0.0, -math.inf, math.inf, 1, 34)) == "+0.000 [-inf, +inf]"
