"""The claims that the course grew out of, each with the experiment that can tell.

A claim compares two rows of the ablation (:data:`srlab.studies.ablation.ROWS`), or asks for a value
of one.
:func:`judge` reads the CSV files; nothing here is a result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srlab.evaluation.statistics import Interval, bootstrap, decide
from srlab.studies import ablation


@dataclass(frozen=True)
class Claim:
    """A sentence that an interval can confirm or refute.

    Attributes:
        text: the claim.
        treatment, control: rows of the ablation; without a control the value itself is judged.
        metric: a column of ``scores.csv`` (taken over seeds and pictures) or of ``runs.csv``.
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


# A tenth of a decibel is what papers call a gain. LPIPS and unrest are better when smaller.
CLAIMS = (
    Claim("Five residual blocks suffice", "srresnet", "16-blocks", "psnr", above=-0.1),
    Claim("Five residual blocks beat two", "srresnet", "2-blocks", "psnr", above=0),
    Claim("Dense blocks help", "wdrn-concat", "srresnet", "psnr", above=0),
    Claim("Concatenation beats the sum", "wdrn-concat", "wdrn-sum", "psnr", above=0),
    Claim("Weights on it help", "wdrn-weighted-concat", "wdrn-concat", "psnr", above=0),
    Claim("L1 beats MSE", "srresnet", "mse", "psnr", above=0),
    Claim("A VGG loss looks better", "perceptual", "more-l1", "lpips", below=0),
    Claim("A VGG loss costs no PSNR", "perceptual", "more-l1", "psnr", above=-0.1),
    Claim("A VGG critic looks better", "bce-vgg", "bce", "lpips", below=0),
    Claim(
        "A VGG critic looks better, Wasserstein", "wasserstein-vgg", "wasserstein", "lpips", below=0
    ),
    Claim("Wasserstein calms the training", "wasserstein", "bce", "swing", below=0),
    Claim("Wasserstein looks better", "wasserstein", "bce", "lpips", below=0),
    Claim(
        "The critic's loss is near -1", "wasserstein", None, "critic_loss", above=-1.25, below=-0.75
    ),
    Claim("The training is long enough", "twice-as-long", "srresnet", "psnr", below=0.1),
    Claim("A faster critic helps", "bce-fast-critic", "bce", "lpips", below=0),
    Claim("A slower critic helps", "bce-slow-critic", "bce", "lpips", below=0),
)


@dataclass(frozen=True)
class Judged:
    """A claim, the effect with its 95% interval, and the verdict."""

    claim: Claim
    interval: Interval | None  # None: not measured
    verdict: str


def judge(folder: Path | str, claims: Sequence[Claim] = CLAIMS) -> list[Judged]:
    """Judge claims by the results in a folder of the ablation's.

    Raises:
        AblationError: the folder's files were written by something else.
    """
    scores = ablation.read(Path(folder) / "scores.csv", ablation.SCORE_COLUMNS)
    runs = ablation.read(Path(folder) / "runs.csv", ablation.RUN_COLUMNS)
    done = {(line["row"], line["seed"]) for line in runs}  # a killed run may have left pictures
    scores = [line for line in scores if (line["row"], line["seed"]) in done]
    judged = []
    for claim in claims:
        lines = runs if claim.metric in ablation.RUN_COLUMNS else scores
        effect = paired(lines, claim.treatment, claim.control, claim.metric)
        if effect.numel():
            interval = bootstrap(effect)
            judged.append(Judged(claim, interval, decide(interval, claim.above, claim.below)))
        else:
            judged.append(Judged(claim, None, "inconclusive"))
    return judged


def paired(
    lines: Sequence[dict[str, str]], treatment: str, control: str | None, metric: str
) -> Tensor:
    """Treatment less control, for the same seed and the same picture.

    Args:
        lines: of ``scores.csv``, or of ``runs.csv``, where a training counts as one picture.
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
