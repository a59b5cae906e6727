"""Measure what chapter 07 reads: 07_rates.csv, 07_norms.csv and 07_sample.csv, beside this file.

    OMP_NUM_THREADS=1 python notebooks/results/make_07.py [rates | norms | sample ...]

About 15 minutes on one CPU core for all three. Rows are written as they are found; a killed run
goes on by the same command, and games that are there are not played again.

A row holds a game's seed, the number of its setting and the setting, a step of the game and the
scores there: psnr (dB) and features (distance of VGG features) of the averaged generator on the
middle of photos-valid, see srlab.studies.tuning.Judge. All games start from one small
pre-trained WDRN.
The committed files come from a CPU (x86-64, torch 2.15); another processor rounds otherwise, and
games amplify that.
"""

import csv
import itertools
import sys
import tempfile
from pathlib import Path

import optuna
import torch

from srlab.data.bank import PatchBank
from srlab.data.datasets import find
from srlab.models.generators import WDRN
from srlab.studies.tuning import Judge, play, suggest
from srlab.training.config import PretrainConfig
from srlab.training.monitor import TrainingDiverged
from srlab.training.pretrain import pretrain

HERE = Path(__file__).parent
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
RANGES = {
    "generator_lr": {"low": 3e-5, "high": 3e-3, "log": True},
    "critic_lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "trunk_lr": {"low": 1e-6, "high": 1e-3, "log": True},
    "critic_steps": {"low": 1, "high": 3},
    "adversarial_weight": {"low": 1e-4, "high": 1e-1, "log": True},
    "batch_size": [2, 4, 8],
}


def norms():
    """Norm of the discriminator against batch size, everything else alike."""
    for norm, batch_size in itertools.product(("batch", "group", "instance", "none"), (1, 2, 8)):
        setting = {"norm": norm, "batch_size": batch_size, "lr": 3e-4, "adversarial_weight": 3e-3}
        yield setting, 48, 24


def rates():
    """Learning rates of generator and critic on a grid; its diagonal is one rate for both."""
    for generator_lr, critic_lr in itertools.product(RATES, RATES):
        yield {"generator_lr": generator_lr, "critic_lr": critic_lr}, 48, 24


def sample():
    """Settings drawn at random from RANGES, judged early and late."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        yield suggest(study.ask(), RANGES), 96, 12


def main(names):
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bank = PatchBank.from_files(find("photos"))
    judge = Judge.of(find("photos-valid"))
    torch.manual_seed(0)
    generator = WDRN(n_blocks=2, n_layers=2, n_features=16, growth=8)  # no batch norm of its own
    first = PretrainConfig(
        steps=300, batch_size=8, patch_size=12, lr=2e-3, log_every=50, validate_every=0
    )
    with tempfile.TemporaryDirectory() as folder:
        start = pretrain(generator, bank, first, folder, progress=False).generator
    print("start", judge(start), flush=True)
    for name in names:
        plan = list({"norms": norms, "rates": rates, "sample": sample}[name]())
        columns = ["seed", "number", *plan[0][0], "step", "psnr", "features"]
        path = HERE / f"07_{name}.csv"
        done = set()
        if path.exists():
            with path.open() as file:
                done = {(int(row["seed"]), int(row["number"])) for row in csv.DictReader(file)}
        else:
            path.write_text(",".join(columns) + "\n")
        for seed, (number, (setting, steps, every)) in itertools.product(
            range(3 if name == "rates" else 2), enumerate(plan)
        ):
            if (seed, number) in done:
                continue
            rows = [[seed, number, *setting.values(), 0, *judge(start).values()]]

            def report(step, scores, rows=rows, setting=setting, seed=seed, number=number):
                rows.append([seed, number, *setting.values(), step, *scores.values()])

            with tempfile.TemporaryDirectory() as folder:
                try:
                    play(
                        setting, folder, generator=start, bank=bank, judge=judge, steps=steps,
                        every=every, seed=seed, report=report,
                    )  # fmt: skip
                except TrainingDiverged:
                    rows.append([seed, number, *setting.values(), steps, "nan", "nan"])
            with path.open("a", newline="") as file:
                short = [[f"{x:.5g}" if isinstance(x, float) else x for x in r] for r in rows]
                csv.writer(file, lineterminator="\n").writerows(short)
            print(name, seed, number, rows[-1][-3:], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["rates", "norms", "sample"])
