"""How sure a measured difference is: bootstrap intervals over seeds and images, and verdicts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value lies with the chosen confidence.

    Attributes:
        estimate: the mean.
        low, high: the interval's ends; infinite where nothing was repeated.
        seeds, images: over how many of each it was taken.
    """

    estimate: float
    low: float
    high: float
    seeds: int
    images: int

    def __str__(self) -> str:
        return f"{self.estimate:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap(
    values: Tensor, *, level: float = 0.95, n: int = 10_000, generator_seed: int = 0
) -> Interval:
    """Confidence interval of the mean over seeds and images, both of which are random samples.

    Seeds and images are drawn again, independently of each other, with replacement (the bootstrap
    of crossed factors, Owen 2007, arXiv:0711.1877); the interval is as wide as that of the
    resampled means' percentiles, and centred on the mean. A bootstrap of a handful of values is far
    too narrow: three seeds seem to vary by a factor sqrt(2/3) too little, and nothing in it knows
    of Student's t. Both are mended by the
    expansion of Hesterberg 2015, doi:10.1080/00031305.2015.1089789: the part of each resample's
    deviation that is due to seeds is stretched by sqrt(k / (k - 1)) t / z for k seeds, and the part
    that is due to images likewise.

    Args:
        values: (seeds, images), or (seeds,) for what is measured once a run. For a comparison pass
            *paired* differences: the same seed, the same image, one treatment less the other.
        level: of confidence.
        n: resamples.
        generator_seed: the same seed gives the same interval.

    Returns:
        With a single seed the ends cover images only, and :func:`decide` will not decide on them;
        with a single value they are infinite.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not values.numel() or not values.isfinite().all():
        raise ValueError(
            f"bootstrap needs finite values (seeds, images), at least one, got the shape "
            f"{tuple(values.shape)}, {int((~values.isfinite()).sum())} of them not finite"
        )
    seeds, images = values.shape
    mean = values.mean()
    if values.numel() == 1:
        return Interval(float(mean), -math.inf, math.inf, 1, 1)
    generator = torch.Generator().manual_seed(generator_seed)
    rows, columns = _shares(seeds, n, generator), _shares(images, n, generator)
    centred = values - mean
    of_seeds = rows @ centred.mean(1)
    of_images = columns @ centred.mean(0)
    both = ((rows @ centred) * columns).sum(1) - of_seeds - of_images
    spread = _stretch(seeds, level) * of_seeds + _stretch(images, level) * of_images + both
    tail = (1 - level) / 2
    ends = torch.quantile(spread, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    half = (ends[1] - ends[0]) / 2
    return Interval(float(mean), float(mean - half), float(mean + half), seeds, images)


def decide(
    interval: Interval, above: float = -math.inf, below: float = math.inf, seeds: int = 3
) -> str:
    """Whether a claim "the true value lies between ``above`` and ``below``" can be kept.

    Args:
        seeds: with fewer, every claim is inconclusive.

    Returns:
        ``"holds"`` if the whole interval lies inside, ``"is refuted"`` if all of it lies outside,
        else ``"inconclusive"``.
    """
    if interval.seeds < seeds or not above < below:
        return "inconclusive"
    if above < interval.low and interval.high < below:
        return "holds"
    if interval.high < above or below < interval.low:
        return "is refuted"
    return "inconclusive"


def _shares(k: int, n: int, generator: torch.Generator) -> Tensor:
    """(n, k): how much each of k values weighs in each of n resamples; rows add up to 1."""
    drawn = torch.randint(k, (n, k), generator=generator)
    ones = torch.full((n, k), 1 / k, dtype=torch.float64)
    return torch.zeros(n, k, dtype=torch.float64).scatter_add_(1, drawn, ones)


def _stretch(k: int, level: float) -> float:
    """What a percentile bootstrap of k values has to be stretched by."""
    if k == 1:
        return 0.0
    from scipy.stats import norm, t

    tail = (1 + level) / 2
    return float(math.sqrt(k / (k - 1)) * t.ppf(tail, k - 1) / norm.ppf(tail))
