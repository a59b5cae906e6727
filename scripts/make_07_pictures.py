"""Measure notebooks/results/07_pictures.csv: what limits a training, its pictures or its steps?

    OMP_NUM_THREADS=1 python scripts/make_07_pictures.py --data bsds400 --data wallpapers@2

A quarter of an hour of one CPU core. Each row is a training of SRResNet with 16 features, from
scratch and by the course's recipe, with all pictures or a random part of them (another for each
seed), and the mean PSNR (dB, luma) of the averaged generator on the sets at hand. Several may run
side by side, with one ``--seed`` each; a killed run goes on by the same command.
"""

import argparse
import csv
import random
import tempfile
from pathlib import Path

import torch

from srlab.data.bank import PatchBank
from srlab.data.datasets import DATASETS, find, status, training_files
from srlab.evaluation import protocol
from srlab.models.generators import SRResNet
from srlab.training.config import PretrainConfig
from srlab.training.engine import default_fabric
from srlab.training.pretrain import pretrain

FILE = Path(__file__).parents[1] / "notebooks" / "results" / "07_pictures.csv"
PICTURES = (5, 50, None)  # None: all
STEPS = (800, 3200)
SETS = ("photos-valid", "set5", "set14")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, help="as of srlab train")
    parser.add_argument("--seed", type=int, action="append", help="default: 0, 1 and 2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files, shrink = training_files(options.data)
    sets = [name for name in SETS if status(name)[1] >= DATASETS[name].needed]
    if not FILE.exists():
        FILE.write_text(",".join(["seed", "pictures", "steps", *sets]) + "\n")
    for seed in options.seed or (0, 1, 2):
        order = random.Random(seed).sample(range(len(files)), len(files))
        for count in PICTURES:
            chosen = order[:count]
            todo = [n for n in STEPS if (seed, len(chosen), n) not in done()]
            if not todo:
                continue
            bank = PatchBank.from_files(
                [files[i] for i in chosen], 4, "cpu", seed, [shrink[i] for i in chosen], detail=0.5
            )
            for steps in todo:
                row = [seed, len(chosen), steps, *train(bank, seed, steps, sets)]
                with FILE.open("a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerow(row)
                print(row, flush=True)


def done():
    with FILE.open() as file:
        rows = csv.DictReader(file)
        return {tuple(int(row[n]) for n in ("seed", "pictures", "steps")) for row in rows}


def train(bank, seed, steps, sets):
    """Mean PSNR on each set after so many steps."""
    torch.manual_seed(seed)
    bank.generator.manual_seed(seed)
    config = PretrainConfig(
        steps=steps, batch_size=4, patch_size=16, lr=2e-3, optimizer="muon", log_every=100,
        validate_every=0, checkpoint_every=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        generator = pretrain(
            SRResNet(n_features=16, batch_norm=False), bank, config, folder,
            fabric=default_fabric("cpu", "bf16-mixed"), progress=False,
        ).generator  # fmt: skip
    scores = [protocol.mean_psnr(generator, find(name)) for name in sets]
    return [round(score, 3) for score in scores]


if __name__ == "__main__":
    main()
