"""Measure what chapter 07 reads: 07_rates, 07_norms, 07_sample, 07_confirm in notebooks/results.

    OMP_NUM_THREADS=1 python scripts/make_07.py [rates | norms | sample | confirm ...]

About half an hour of one CPU core. Needs bsds400, set14 and bsd100 (SRLAB_DATA) and AlexNet
(`srlab fetch lpips-alex`). Rows are written as they are found; a killed run goes on by the same
command. ``confirm`` comes last: it reads what the others found.

All games start from one small SRResNet, pre-trained for 3,200 steps by the course's recipe, and
learn on BSDS400. A row holds a game's seed, the number of its setting and the setting, a step of
the game, and the scores of the averaged generator there, on the middle of every other Set14
picture: ``psnr`` (dB), ``lpips`` (LPIPS-alex), and ``at_cost``, the LPIPS read on the way from the
start to these weights, where it has cost 0.2 dB (or at its end, if it never costs as much): a game
cannot win by going farther. The committed files come from a CPU (x86-64, torch 2.15); another
processor rounds otherwise, and games amplify that.
"""

import csv
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn

from srlab.data.bank import PatchBank
from srlab.data.datasets import find
from srlab.evaluation import perceptual, protocol
from srlab.evaluation.tiling import upscale
from srlab.models import zoo
from srlab.models.generators import SRResNet, fold
from srlab.models.interpolation import interpolate
from srlab.studies.claims import at_equal_cost
from srlab.studies.tuning import Judge, play, suggest
from srlab.training.config import PretrainConfig
from srlab.training.monitor import TrainingDiverged
from srlab.training.pretrain import pretrain

RESULTS = Path(__file__).parents[1] / "notebooks" / "results"
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
WEIGHT = 1e-2  # of the adversarial loss, where it is not varied
COST = 0.2  # dB
STEPS = 96
RANGES = {
    "generator_lr": {"low": 3e-5, "high": 3e-3, "log": True},
    "critic_lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "trunk_lr": {"low": 1e-6, "high": 1e-3, "log": True},
    "critic_steps": {"low": 1, "high": 3},
    "adversarial_weight": {"low": 1e-4, "high": 1e-1, "log": True},
    "batch_size": [2, 4, 8],
}
# SRGAN's rates (Ledig et al. 2017), which are also AdversarialConfig's.
DEFAULT = {"generator_lr": 1e-4, "critic_lr": 1e-4, "adversarial_weight": WEIGHT}
SCORES = ("psnr", "lpips", "at_cost")
SEEDS = {"rates": 3, "norms": 3, "sample": 2}
FRESH = range(10, 16)  # seeds of `confirm`


def norms() -> Iterator[tuple[dict[str, Any], int]]:
    """Norm of the discriminator against batch size, everything else alike."""
    for norm, batch_size in itertools.product(("batch", "group", "instance", "none"), (1, 2, 8)):
        setting = {"norm": norm, "batch_size": batch_size, "lr": 3e-4}
        yield setting | {"adversarial_weight": WEIGHT}, STEPS


def rates() -> Iterator[tuple[dict[str, Any], int]]:
    """Learning rates of generator and critic on a grid; its diagonal is one rate for both."""
    for generator_lr, critic_lr in itertools.product(RATES, RATES):
        setting = {"generator_lr": generator_lr, "critic_lr": critic_lr}
        yield setting | {"adversarial_weight": WEIGHT}, STEPS


def sample() -> Iterator[tuple[dict[str, Any], int]]:
    """Settings drawn at random from RANGES, judged early and late."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(32):
        yield suggest(study.ask(), RANGES), STEPS // 4


PLANS = {"rates": rates, "norms": norms, "sample": sample}


class Scorer:
    """PSNR and LPIPS of pictures, and LPIPS at equal cost; see the module."""

    def __init__(self, start: nn.Module, files: list[Path]):
        self.start, self.pairs = start, Judge.of(files).pairs
        self.lpips = perceptual.load("alex")
        self.before = self.of(start)

    @torch.no_grad()
    def of(self, generator: nn.Module) -> list[tuple[float, float]]:
        """(PSNR, LPIPS) of each picture."""
        found = []
        for lr, hr in self.pairs:
            sr = upscale(generator.eval(), lr).clamp(0, 1)
            found.append((protocol.compare(sr, hr)[0], float(self.lpips(sr[None], hr[None]))))
        return found

    def pictures(self, generator: nn.Module) -> list[dict[str, float]]:
        """The three scores of each picture."""
        training = generator.training
        road = {0.0: self.before}
        for share in (0.25, 0.5, 0.75):
            if self.cost(road[max(road)]) < COST:
                road[share] = self.of(interpolate(self.start, generator, share))
        road[1.0] = self.of(generator)
        generator.train(training)
        lines = [
            {"row": "", "seed": "", "set": "", "image": str(i), "share": str(share)}
            | {"psnr": str(psnr), "lpips": str(lpips)}
            for share, found in road.items()
            for i, (psnr, lpips) in enumerate(found)
        ]
        at_cost = [float(line["lpips"]) for line in at_equal_cost(lines, COST)]
        return [
            dict(zip(SCORES, (*end, lpips), strict=True))
            for end, lpips in zip(road[1.0], at_cost, strict=True)
        ]

    def cost(self, found: list[tuple[float, float]]) -> float:
        """dB below the start, the mean over the pictures."""
        return statistics.mean(a[0] - b[0] for a, b in zip(self.before, found, strict=True))

    def __call__(self, generator: nn.Module) -> dict[str, float]:
        """The means over the pictures."""
        found = self.pictures(generator)
        return {name: statistics.mean(scores[name] for scores in found) for name in SCORES}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bank = PatchBank.from_files(find("bsds400"), detail=0.5)
    start = pretrained(bank)
    scorer = Scorer(start, find("set14")[::2])
    print("start", scorer(start), flush=True)
    for name in names:
        if name == "confirm":
            confirm(bank, start)
        else:
            measure(name, bank, start, scorer)


def pretrained(bank: PatchBank) -> nn.Module:
    """The start of all games."""
    torch.manual_seed(0)
    bank.generator.manual_seed(0)
    network = SRResNet(n_features=16, batch_norm=False)
    config = PretrainConfig(
        steps=3200, batch_size=4, patch_size=16, lr=2e-3, optimizer="muon", log_every=100,
        validate_every=0, checkpoint_every=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = pretrain(network, bank, config, folder, progress=False)
    return result.generator.requires_grad_(True)


def measure(name: str, bank: PatchBank, start: nn.Module, scorer: Scorer) -> None:
    plan = list(PLANS[name]())
    columns = ["seed", "number", *plan[0][0], "step", *SCORES]
    path, done = begun(RESULTS / f"07_{name}.csv", columns, ("seed", "number"))
    for seed, (number, (setting, every)) in itertools.product(range(SEEDS[name]), enumerate(plan)):
        if (str(seed), str(number)) in done:
            continue
        rows = [[seed, number, *setting.values(), 0, *scorer(start).values()]]

        def report(step, scores, rows=rows, setting=setting, seed=seed, number=number):
            rows.append([seed, number, *setting.values(), step, *scores.values()])

        with tempfile.TemporaryDirectory() as folder:
            try:
                play(
                    setting, folder, generator=start, bank=bank, judge=scorer, steps=STEPS,
                    every=every, seed=seed, report=report,
                )  # fmt: skip
            except TrainingDiverged:
                rows.append([seed, number, *setting.values(), STEPS, *["nan"] * len(SCORES)])
        write(path, rows)
        print(name, seed, number, rows[-1][-4:], flush=True)


def chosen() -> dict[str, dict[str, Any]]:
    """The settings that are confirmed: the default, and the best found by grid and by sample."""
    found = {"default": DEFAULT}
    for name in ("rates", "sample"):
        with (RESULTS / f"07_{name}.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) == STEPS]
        by_number: dict[int, list[float]] = {}
        for row in rows:
            by_number.setdefault(int(row["number"]), []).append(float(row["at_cost"]))
        best = min(by_number, key=lambda n: statistics.mean(by_number[n]))
        found[f"best of {name}"] = list(PLANS[name]())[best][0]
    return found


def confirm(bank: PatchBank, start: nn.Module) -> None:
    """Do the chosen settings keep their advantage, with other seeds and on other pictures?

    Once more from the small start, and then from the released SRResNet, of 64 channels.
    """
    columns = ["start", "setting", "seed", "picture", *SCORES]
    path, done = begun(RESULTS / "07_confirm.csv", columns, ("start", "setting", "seed"))
    starts = {"16 channels": start, "released srresnet": fold(zoo.load("srresnet"))}
    files = find("bsd100")[::4]
    for (place, network), seeds in zip(starts.items(), (6, 3), strict=True):
        scorer = Scorer(network, files)
        for seed, (name, setting) in itertools.product(FRESH[:seeds], chosen().items()):
            if (place, name, str(seed)) in done:
                continue
            ends: list[nn.Module] = []
            with tempfile.TemporaryDirectory() as folder:
                play(
                    setting, folder, generator=network.requires_grad_(True), bank=bank,
                    judge=lambda model, ends=ends: ends.append(model) or {}, steps=STEPS,
                    every=STEPS, seed=seed,
                )  # fmt: skip
            found = scorer.pictures(ends[-1])
            key = [place, name, seed]
            names = [file.stem for file in files]
            write(path, [[*key, n, *s.values()] for n, s in zip(names, found, strict=True)])
            print(*key, {n: statistics.mean(s[n] for s in found) for n in SCORES}, flush=True)


def begun(
    path: Path, columns: list[str], key: tuple[str, ...]
) -> tuple[Path, set[tuple[str, ...]]]:
    """The file, with its head, and the games that it holds."""
    if not path.exists():
        path.write_text(",".join(columns) + "\n")
    with path.open() as file:
        return path, {tuple(row[name] for name in key) for row in csv.DictReader(file)}


def write(path: Path, rows: list[list[Any]]) -> None:
    with path.open("a", newline="") as file:
        short = [[f"{x:.5g}" if isinstance(x, float) else x for x in row] for row in rows]
        csv.writer(file, lineterminator="\n").writerows(short)


if __name__ == "__main__":
    main(sys.argv[1:] or ["rates", "norms", "sample", "confirm"])
