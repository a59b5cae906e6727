"""How sure a measured difference is: intervals over seeds and images, verdicts, and power."""

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
        return f"{self.estimate:+.3f} [{bound(self.low, 3)}, {bound(self.high, 3)}]"


def bound(x: float, digits: int) -> str:
    """An end of an interval, signed; one that rounds to 0 and is not 0 gets one digit more."""
    rounds_to_zero = x and not float(f"{x:.{digits}f}")
    return f"{x:+.{digits + bool(rounds_to_zero)}f}"


def crossed(values: Tensor, *, level: float = 0.95) -> Interval:
    """Confidence interval of the mean over seeds and images, both of which are random samples.

    Every seed meets every image, so a value is a mean plus something of its seed, something of its
    image and a rest. The means of the seeds alone have Student's interval, and so have the means of
    the images; the half-widths of the two are added in quadrature, as for a sum of two independent
    means (W. G. Howe, "Approximate confidence limits on the mean of X + Y where X and Y are two
    tabled independent random variables", JASA 69, 1974, pp. 789-794). The rest is counted twice,
    once in each, which errs to the safe side, and by little where there are many images.

    Args:
        values: (seeds, images), or (seeds,) for what is measured once a run. For a comparison pass
            *paired* differences: the same seed, the same image, one treatment less the other.
        level: of confidence. If all of m intervals are to hold at 95%, take 1 - 0.05 / m
            (Bonferroni).

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
            f"crossed needs finite values (seeds, images), at least one, got the shape "
            f"{tuple(values.shape)}, {int((~values.isfinite()).sum())} of them not finite"
        )
    seeds, images = values.shape
    mean = float(values.mean())
    half = math.inf if values.numel() == 1 else float(half_width(values, level))
    return Interval(mean, mean - half, mean + half, seeds, images)


def half_width(values: Tensor, level: float) -> Tensor:
    """Of :func:`crossed`'s interval, for many tables at once: (..., seeds, images) -> (...)."""
    of_seeds = _students(values.mean(dim=-1), level)
    return torch.hypot(of_seeds, _students(values.mean(dim=-2), level))


def _students(means: Tensor, level: float) -> Tensor:
    """Half-width of Student's interval, (..., k) -> (...); 0 for a single value."""
    from scipy.stats import t

    k = means.shape[-1]
    if k == 1:
        return means.new_zeros(means.shape[:-1])
    return float(t.ppf((1 + level) / 2, k - 1)) * means.std(dim=-1) / math.sqrt(k)


NO_DIFFERENCE = "no difference that matters"


def decide(
    interval: Interval,
    above: float = -math.inf,
    below: float = math.inf,
    *,
    margin: float = 0.0,
    seeds: int = 3,
) -> str:
    """Whether a claim "the true value lies between ``above`` and ``below``" can be kept.

    Args:
        margin: differences smaller than this matter to nobody; to be fixed before the study.
        seeds: with fewer, every claim is inconclusive.

    Returns:
        ``"no difference that matters"`` if the whole interval lies between ``-margin`` and
        ``margin``; ``"holds"`` if all of it lies inside of the claim, ``"is refuted"`` if all of it
        lies outside; else ``"inconclusive"``.
    """
    if interval.seeds < seeds or not above < below:
        return "inconclusive"
    if -margin < interval.low and interval.high < margin:
        return NO_DIFFERENCE
    if above < interval.low and interval.high < below:
        return "holds"
    if interval.high < above or below < interval.low:
        return "is refuted"
    return "inconclusive"


@dataclass(frozen=True)
class Spread:
    """Standard deviations of paired differences: between seeds, between images, and of the rest."""

    seeds: float
    images: float
    rest: float


def spread(values: Tensor) -> Spread:
    """Method of moments for a crossed table, (seeds, images), two or more of each."""
    values = torch.as_tensor(values, dtype=torch.float64)
    n_seeds, n_images = values.shape
    of_seeds, of_images = values.mean(1, keepdim=True), values.mean(0, keepdim=True)
    rest = (values - of_seeds - of_images + values.mean()).square().sum()
    rest = rest / ((n_seeds - 1) * (n_images - 1))
    seeds = (of_seeds.var() - rest / n_images).clamp(min=0)
    images = (of_images.var() - rest / n_seeds).clamp(min=0)
    return Spread(*(float(x.sqrt()) for x in (seeds, images, rest)))


def simulate(
    noise: Spread,
    seeds: int,
    images: int,
    *,
    level: float,
    effect: float = 0.0,
    n: int = 2000,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Ends of the intervals that ``n`` studies of this size would find, (n,) each.

    Args:
        effect: the true mean.
    """
    generator = generator or torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    values = effect + noise.seeds * normal(seeds, 1)
    values = values + noise.images * normal(1, images) + noise.rest * normal(seeds, images)
    mean, half = values.mean(dim=(1, 2)), half_width(values, level)
    return mean - half, mean + half


def seeds_needed(
    noise: Spread, images: int, margin: float, *, level: float, power: float = 0.8, most: int = 20
) -> int | None:
    """The fewest seeds (3 or more) with which two equal treatments are found equal.

    That is, with probability ``power`` the whole interval lies within the margin if the true effect
    is 0. None if ``most`` seeds are too few: then only more images could help.
    """
    for seeds in range(3, most + 1):
        low, high = simulate(noise, seeds, images, level=level, n=1000)
        if float(((-margin < low) & (high < margin)).double().mean()) >= power:
            return seeds
    return None
