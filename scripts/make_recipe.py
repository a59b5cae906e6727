"""Measure notebooks/results/recipe.csv: what makes a small network learn in a minute?

    OMP_NUM_THREADS=1 python scripts/make_recipe.py [VARIANT ...]

Needs bsds400 and wallpapers (SRLAB_DATA), from which every 20th and every 10th picture is held out:
recipes are chosen on those, not on the test sets. Each training is one of SRResNet with 16 features
for 3,200 steps of four 16x16 crops, about a minute of one core. A row holds the variant, the seed,
a step, the mean PSNR (dB, luma) of the averaged generator on the held-out pictures there, and in
the last row of a training the seconds it took and Set5, Set14 and BSD100. The first four variants
are trained with three seeds, the others with one. A killed run goes on by the same command.
"""

import csv
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from srlab.data.bank import PatchBank, decode
from srlab.data.datasets import find
from srlab.data.degradation import crop_to_multiple
from srlab.data.images import read_image, write_image
from srlab.evaluation import protocol
from srlab.models.generators import SRResNet
from srlab.training.config import PretrainConfig
from srlab.training.engine import ENGINES, default_fabric
from srlab.training.pretrain import pretrain

FILE = Path(__file__).parents[1] / "notebooks" / "results" / "recipe.csv"
COLUMNS = ("variant", "seed", "step", "held_out", "seconds", "set5", "set14", "bsd100")
STEPS = 3200
MARKS = (1, 100, 200, 400, 800, 1600, 2400, STEPS)


@dataclass(frozen=True)
class Variant:
    """A training; ``seeds`` of it."""

    skip: bool = True
    detail: float = 0.0
    batch_norm: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1


MUON = {"optimizer": "muon", "lr": 2e-3}
VARIANTS = {
    "no skip": Variant(skip=False, seeds=3),
    "skip": Variant(seeds=3),
    "skip, detail": Variant(detail=0.5, seeds=3),
    "skip, detail, Muon": Variant(detail=0.5, settings=MUON, seeds=3),
    "no skip, detail, Muon": Variant(skip=False, detail=0.5, settings=MUON),
    "batch norm": Variant(detail=0.5, settings=MUON, batch_norm=True),
    "detail 1": Variant(detail=1.0, settings=MUON),
    "Muon at 1e-3": Variant(detail=0.5, settings=MUON | {"lr": 1e-3}),
    "Muon at 4e-3": Variant(detail=0.5, settings=MUON | {"lr": 4e-3}),
    "Adam at 2e-3": Variant(detail=0.5, settings={"lr": 2e-3}),
    "MSE": Variant(detail=0.5, settings=MUON | {"loss": "mse"}),
    "constant rate": Variant(detail=0.5, settings=MUON | {"schedule": "constant"}),
    "16 crops, 800 steps": Variant(detail=0.5, settings=MUON | {"batch_size": 16, "steps": 800}),
    "average of 0.99": Variant(detail=0.5, settings=MUON | {"ema_decay": 0.99}),
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    bsds, photos = find("bsds400"), find("wallpapers")
    held = [(file, 1) for file in bsds[::20]] + [(file, 2) for file in photos[::10]]
    out = {file for file, _ in held}
    files = [f for f in bsds if f not in out] + [f for f in photos if f not in out]
    shrink = [1 if f in bsds else 2 for f in files]
    bank = PatchBank.from_files(files, 4, "cpu", 0, shrink, detail=0.5)
    by_half = bank.cells
    with tempfile.TemporaryDirectory() as folder:
        held_out = [small(file, factor, Path(folder)) for file, factor in held]
        if not FILE.exists():
            FILE.write_text(",".join(COLUMNS) + "\n")
        with FILE.open() as file:
            done = {(r["variant"], int(r["seed"])) for r in csv.DictReader(file) if r["set5"]}
        for name in names or VARIANTS:
            variant = VARIANTS[name]
            bank.detail = variant.detail
            weights = by_half[0].diff(prepend=by_half[0].new_zeros(1))
            if variant.detail:  # cells are all but a few of one size
                bank.cells = ((weights ** (variant.detail / 0.5)).cumsum(0), by_half[1])
            for seed in range(variant.seeds):
                if (name, seed) not in done:
                    rows = train(name, variant, seed, bank, held_out)
                    with FILE.open("a", newline="") as file:
                        csv.writer(file, lineterminator="\n").writerows(rows)
                    print(rows[-1], flush=True)


def small(path: Path, factor: int, folder: Path) -> Path:
    """The middle of a held-out picture, as a file: at most 320 x 320 pixels."""
    write_image(decode(path, factor) / 255, target := folder / f"{path.stem}.png")
    image = read_image(target)
    height, width = image.shape[1:]
    y, x = max(height - 320, 0) // 2, max(width - 320, 0) // 2
    write_image(crop_to_multiple(image[:, y : y + 320, x : x + 320], 4), target)
    return target


def train(
    name: str, variant: Variant, seed: int, bank: PatchBank, held_out: list[Path]
) -> list[list[Any]]:
    torch.manual_seed(seed)
    bank.generator.manual_seed(seed)
    network = SRResNet(n_features=16, batch_norm=variant.batch_norm, bicubic_skip=variant.skip)
    steps = variant.settings.get("steps", STEPS)
    settings = {
        "steps": steps, "batch_size": 4, "patch_size": 16, "log_every": 100,
        "validate_every": 0, "checkpoint_every": 0,
    }  # fmt: skip
    config = PretrainConfig(**settings | variant.settings)
    rows: list[list[Any]] = []
    spent = [0.0]

    def on_step(step: int, average: torch.nn.Module) -> None:
        if step in MARKS or step == steps:
            begin = time.process_time()
            psnr = protocol.mean_psnr(average.eval(), held_out)
            rows.append([name, seed, step, f"{psnr:.3f}", "", "", "", ""])
            spent[0] += time.process_time() - begin

    how, begin = ENGINES["bf16-compiled"], time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = pretrain(
            network, bank, config, folder, fabric=default_fabric("cpu", how.precision),
            engine=how.engine, on_step=on_step, progress=False,
        )  # fmt: skip
    rows[-1][4] = round(time.process_time() - begin - spent[0])
    tests = [protocol.mean_psnr(result.generator, find(s)) for s in ("set5", "set14", "bsd100")]
    rows[-1][5:] = [f"{psnr:.3f}" for psnr in tests]
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
