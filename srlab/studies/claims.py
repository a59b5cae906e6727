"""The claims that the course grew out of, each with the experiment that can tell.

A claim compares two rows of the ablation (:data:`srlab.studies.ablation.ROWS`), or asks for a value
of one. :func:`judge` reads the CSV files; nothing here is a result.

Fixed before the study:

- **Margins** (:data:`MARGINS`): a difference that certainly lies within 0.05 dB, or within 0.005
  LPIPS, matters to nobody.
- **Multiplicity**: all intervals hold *together* with 95% confidence; each has the level
  1 - 0.05 / (number of claims).
- **Unit of analysis**: a seed's paired difference on a picture; seeds and pictures are both
  samples (:func:`srlab.evaluation.statistics.crossed`).
- **LPIPS at equal PSNR** (:data:`COST`): every game is read on the way from its start to its end,
  where it has cost 0.2 dB, so that no game wins by having gone farther.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from srlab.evaluation.statistics import Interval, bound, crossed, decide, seeds_needed, spread
from srlab.studies import ablation

MARGINS = {"psnr": 0.05, "lpips": 0.005, "swing": 0.05}  # dB, LPIPS-alex, dB
COST = 0.2  # dB below its start, where a game's LPIPS is read


@dataclass(frozen=True)
class Claim:
    """A sentence that an interval can confirm or refute.

    Attributes:
        text: the claim.
        treatment, control: rows of the ablation; without a control the value itself is judged.
        metric: ``"psnr"`` or ``"lpips"`` (over seeds and pictures), or a column of ``runs.csv``.
        above, below: the claim says that the effect lies between these.
    """

    text: str
    treatment: str
    control: str | None
    metric: str
    above: float = -math.inf
    below: float = math.inf

    @property
    def experiment(self) -> str:
        """What is compared and what the claim says of it, in a few words."""
        compared = f"{self.treatment} - {self.control}" if self.control else self.treatment
        ends = [f"> {self.above:g}"] * (self.above > -math.inf)
        ends += [f"< {self.below:g}"] * (self.below < math.inf)
        return f"{self.metric}: {compared} {' and '.join(ends)}"

    @property
    def margin(self) -> float:
        """What does not matter; 0 for a claim that has a tolerance of its own."""
        return MARGINS.get(self.metric, 0.0) if 0 in (self.above, self.below) else 0.0


# A tenth of a decibel is what papers call a gain. LPIPS and unrest are better when smaller.
CLAIMS = (
    Claim("Five residual blocks suffice", "srresnet", "16-blocks", "psnr", above=-0.1),
    Claim("Five residual blocks beat two", "srresnet", "2-blocks", "psnr", above=0),
    Claim("Dense blocks help", "wdrn-concat", "srresnet", "psnr", above=0),
    Claim("Concatenation beats the sum", "wdrn-concat", "wdrn-sum", "psnr", above=0),
    Claim("Weights on it help", "wdrn-weighted-concat", "wdrn-concat", "psnr", above=0),
    Claim("L1 beats MSE", "srresnet", "mse", "psnr", above=0),
    Claim("Batch norm helps", "batch-norm", "srresnet", "psnr", above=0),
    Claim("The training is long enough", "twice-as-long", "srresnet", "psnr", below=0.1),
    Claim("A VGG loss looks better", "perceptual", "more-l1", "lpips", below=0),
    Claim("A VGG loss costs no PSNR", "perceptual", "more-l1", "psnr", above=-0.1),
    Claim("A game looks better than more L1", "bce", "more-l1", "lpips", below=0),
    Claim("A game looks better than a VGG loss", "bce", "perceptual", "lpips", below=0),
    Claim("A VGG critic looks better", "bce-vgg", "bce", "lpips", below=0),
    Claim(
        "A VGG critic looks better, Wasserstein", "wasserstein-vgg", "wasserstein", "lpips", below=0
    ),
    Claim("Wasserstein looks better", "wasserstein", "bce", "lpips", below=0),
    Claim("Wasserstein calms the training", "wasserstein", "bce", "swing", below=0),
    Claim("Wasserstein bears four times the rate", "wasserstein-hot", "bce-hot", "lpips", below=0),
    Claim("The critic's loss stays near -1", "wasserstein", None, "near", above=0.5),
    Claim("It does, with a VGG critic", "wasserstein-vgg", None, "near", above=0.5),
    Claim("A faster critic helps", "bce-fast-critic", "bce", "lpips", below=0),
    Claim("A slower critic helps", "bce-slow-critic", "bce", "lpips", below=0),
)

# What the studies after the first large one ask, each of its own seeds.
_ARCHITECTURES = ("Dense blocks help", "Concatenation beats the sum", "Weights on it help")
_ASKED = {
    "again": (
        "Five residual blocks suffice",
        "Batch norm helps",
        "A game looks better than a VGG loss",
        "Wasserstein bears four times the rate",
        "It does, with a VGG critic",
    ),
    "wide": _ARCHITECTURES,
    "wider": _ARCHITECTURES,
    "long": _ARCHITECTURES,
}


def asked(profile: str) -> tuple[Claim, ...]:
    """The claims that a study of this profile is to decide, all at a time."""
    texts = _ASKED.get(profile)
    return CLAIMS if texts is None else tuple(c for c in CLAIMS if c.text in texts)


@dataclass(frozen=True)
class Judged:
    """A claim, the effect with its interval (simultaneous with the others), and the verdict."""

    claim: Claim
    interval: Interval | None  # None: not measured
    verdict: str


def judge(folder: Path | str, claims: Sequence[Claim] = CLAIMS) -> list[Judged]:
    """Judge claims by the results in a folder of the ablation's.

    Raises:
        AblationError: the folder's files were written by something else.
    """
    effects = measured(folder, claims)
    judged = []
    for claim in claims:
        if effects[claim].numel():
            interval = crossed(effects[claim], level=level(claims))
            verdict = decide(interval, claim.above, claim.below, margin=claim.margin)
            judged.append(Judged(claim, interval, verdict))
        else:
            judged.append(Judged(claim, None, "inconclusive"))
    return judged


def verdicts(results: Path | str) -> list[Judged]:
    """Each claim as the course's studies judged it: the large one or, if it is done, the second.

    Args:
        results: the folder that holds ``ablation-lite`` and ``ablation-again``.
    """
    results = Path(results)
    scale, again = ablation.SCALES["again"], results / "ablation-again"
    complete = ablation.finished(again).issuperset(ablation.plan(scale, scale.rows))
    later = {j.claim: j for j in judge(again, asked("again"))} if complete else {}
    return [later.get(j.claim, j) for j in judge(results / "ablation-lite")]


def level(claims: Sequence[Claim] = CLAIMS) -> float:
    """Of each interval, so that all hold together with 95% confidence (Bonferroni)."""
    return 1 - 0.05 / len(claims)


def report(judged: Sequence[Judged]) -> str:
    """Verdict, claim, comparison and effect of each claim, three lines each, and the count."""
    entries = []
    for j in judged:
        seen = j.interval and f"seeds: {j.interval.seeds}, pictures: {j.interval.images}"
        effect = f"{j.interval}   {seen}" if seen else "not measured yet"
        entries += [f"{j.claim.text}: {j.verdict}", f"  {j.claim.experiment}", f"  {effect}"]
    several = {"holds": "hold", "is refuted": "are refuted"}
    found = Counter(j.verdict for j in judged)
    counts = [f"{n} {several.get(v, v) if n > 1 else v}" for v, n in found.items()]
    return "\n".join([*entries, f"{len(judged)} claims: {', '.join(counts)}"])


def table(judged: Sequence[Judged]) -> str:
    """The verdicts in Markdown, a line for each claim, as the README shows them."""
    lines = ["| claim | verdict | effect | seeds |", "|---|---|---|---|"]
    for j in judged:
        unit = {"psnr": " dB", "swing": " dB", "lpips": " LPIPS"}.get(j.claim.metric, "")
        digits = 3 if j.claim.metric == "lpips" else 2
        found, seeds = "not measured", ""
        if i := j.interval:
            low, high = bound(i.low, digits), bound(i.high, digits)
            found, seeds = f"{i.estimate:+.{digits}f}{unit}", str(i.seeds)
            found += f" ({low} to {high})" if math.isfinite(i.high) else ""
        lines.append(f"| {j.claim.text} | {j.verdict} | {found} | {seeds} |")
    return "\n".join(lines)


def in_margins(judged: Sequence[Judged]) -> dict[str, tuple[float, float, float]]:
    """Effects as multiples of the margin, positive where the claim says so, the largest first.

    Returns:
        ``"claim: verdict"`` -> (estimate, low, high), for claims about differences.
    """
    found: dict[str, tuple[float, float, float]] = {}
    for j in judged:
        if j.interval and j.claim.metric in MARGINS and j.interval.seeds > 1:
            unit = MARGINS[j.claim.metric] * (1 if j.claim.above > -math.inf else -1)
            low, high = sorted((j.interval.low / unit, j.interval.high / unit))
            found[f"{j.claim.text}: {j.verdict}"] = (j.interval.estimate / unit, low, high)
    return dict(sorted(found.items(), key=lambda effect: -effect[1][0]))


def measured(folder: Path | str, claims: Sequence[Claim] = CLAIMS) -> dict[Claim, Tensor]:
    """Each claim's paired differences, (seeds, pictures) float64; empty if there are none.

    Raises:
        AblationError: the folder's files were written by something else.
    """
    scores = ablation.read(Path(folder) / "scores.csv", ablation.SCORE_COLUMNS)
    runs = ablation.read(Path(folder) / "runs.csv", ablation.RUN_COLUMNS)
    done = ablation.finished(folder)  # a killed run may have left pictures
    scores = [line for line in scores if (line["row"], int(line["seed"])) in done]
    lines = {
        "psnr": [line for line in scores if float(line["share"]) == 1],
        "lpips": at_equal_cost([line for line in scores if line["lpips"]]),
    }
    return {c: paired(lines.get(c.metric, runs), c.treatment, c.control, c.metric) for c in claims}


def at_equal_cost(lines: Sequence[dict[str, str]], cost: float = COST) -> list[dict[str, str]]:
    """Games read where they have cost ``cost`` dB, or at their end if they never cost as much.

    A game was scored at several shares of the way from its start (share 0) to its end (1). The mean
    PSNR of its pictures says between which two the cost is reached; every figure is interpolated
    linearly there.

    Args:
        lines: of ``scores.csv``; games only.

    Returns:
        A line for each row, seed and picture, its ``share`` the place that was read.
    """
    games: dict[tuple[str, str], dict[float, dict[tuple[str, str], dict[str, str]]]] = {}
    for line in lines:
        game = games.setdefault((line["row"], line["seed"]), defaultdict(dict))
        game[float(line["share"])][line["set"], line["image"]] = line
    return [read for game in games.values() for read in _read(game, cost)]


def _read(
    game: dict[float, dict[tuple[str, str], dict[str, str]]], cost: float
) -> list[dict[str, str]]:
    shares = sorted(game)
    psnr = {s: sum(float(li["psnr"]) for li in game[s].values()) / len(game[s]) for s in shares}
    wanted = psnr[shares[0]] - cost
    last = (*shares[-2:], 1.0)
    before, after, way = next(
        (
            (a, b, (psnr[a] - wanted) / (psnr[a] - psnr[b]))
            for a, b in pairwise(shares)
            if psnr[b] <= wanted < psnr[a]
        ),
        last if len(shares) > 1 else (shares[0], shares[0], 1.0),
    )
    found = []
    for picture, line in game[after].items():
        other = game[before][picture]
        mixed = {
            key: str(float(other[key]) + way * (float(line[key]) - float(other[key])))
            for key in ("share", "psnr", "lpips")
        }
        found.append(line | mixed)
    return found


def paired(
    lines: Sequence[dict[str, str]], treatment: str, control: str | None, metric: str
) -> Tensor:
    """Treatment less control, for the same seed and the same picture.

    Args:
        lines: of ``scores.csv``, a share each, or of ``runs.csv``, where a training counts as one
            picture.
        control: None leaves the treatment's values as they are.

    Returns:
        (seeds, pictures) float64: only seeds that both rows have, and pictures that all of these
        have. Empty if there are none. A training that diverged has no pictures.
    """
    found: dict[str, dict[tuple[str, ...], float]] = {treatment: {}, control or treatment: {}}
    for line in lines:
        if line["row"] in found and line[metric]:
            key = (line["seed"], line.get("set", ""), line.get("image", ""))
            found[line["row"]][key] = float(line[metric])
    first, second = found[treatment], found[control or treatment]
    common = first.keys() & second.keys()
    seeds = sorted({seed for seed, *_ in common})
    pictures = sorted({tuple(p) for _, *p in common if all((s, *p) in common for s in seeds)})
    effect = [[first[s, *p] - (second[s, *p] if control else 0.0) for p in pictures] for s in seeds]
    return torch.tensor(effect, dtype=torch.float64)


def power_table(pilot: Path | str, claims: Sequence[Claim] = CLAIMS) -> list[dict[str, object]]:
    """What a trial's spread asks of a study: a line for each claim that the trial measured.

    ``seeds`` is how many a claim needs for its interval to lie within the margin, four times out of
    five, if there is no difference (for a claim with a tolerance of its own: within 0.1 dB); empty
    if twenty would not do. The spreads are standard deviations of the paired differences, between
    seeds, between pictures and of the rest.
    """
    table = []
    for claim, values in measured(pilot, claims).items():
        if min(values.shape) < 2:
            continue
        noise, margin = spread(values), claim.margin or max(abs(claim.above), abs(claim.below))
        margin = margin if math.isfinite(margin) else 0.1
        needed = seeds_needed(noise, values.shape[1], margin, level=level(claims))
        table.append(
            {"claim": claim.text, "pilot_seeds": len(values), "pictures": values.shape[1],
             "between_seeds": noise.seeds, "between_pictures": noise.images, "rest": noise.rest,
             "margin": margin, "seeds": needed or ""}
        )  # fmt: skip
    return table
