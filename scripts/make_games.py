"""Measure notebooks/results/games.csv: what each part of SRGAN's recipe does to a picture.

    OMP_NUM_THREADS=1 python scripts/make_games.py

Needs bsds400, set14 and bsd100 (SRLAB_DATA), VGG16 and AlexNet (`srlab fetch vgg16`, `srlab fetch
lpips-alex`), and about twenty minutes of one CPU core. Every game starts from the released
``srresnet``, sees the same crops of BSDS400 in the same order and lasts 100 steps; three seeds. A
line holds the variant, the seed, the share of the way from start (0) to end (1), a picture (the
middle of each of Set14 and of every sixth of BSD100) and its scores: ``psnr`` (dB), ``lpips``
(LPIPS-alex) and ``grid`` (dB, `metrics.grid_level`). A killed run goes on by the same command.
"""

import csv
import tempfile
from pathlib import Path

import torch
from torch import nn

from srlab.data.bank import PatchBank
from srlab.data.datasets import find
from srlab.evaluation import metrics, perceptual, protocol
from srlab.evaluation.tiling import upscale
from srlab.models import zoo
from srlab.models.generators import fold
from srlab.models.interpolation import interpolate
from srlab.studies.tuning import Judge
from srlab.training import recipes
from srlab.training.engine import ENGINES, default_fabric

FILE = Path(__file__).parents[1] / "notebooks" / "results" / "games.csv"
COLUMNS = ("variant", "seed", "share", "image", "psnr", "lpips", "grid")
STEPS, SEEDS, SHARES = 100, 3, (0.25, 0.5, 1.0)
VARIANTS = {  # pooling and texture of the VGG loss, critic, settings that differ from the recipe's
    "L1": ("avg", False, "none", {"perceptual_weight": 0.0, "grid_weight": 0.0}),
    "VGG loss, max pooling": ("max", False, "none", {"grid_weight": 0.0}),
    "VGG loss": ("avg", False, "none", {"grid_weight": 0.0}),
    "VGG and grid loss": ("avg", False, "none", {}),
    "the same with texture": ("avg", True, "none", {}),
    "and with a critic": ("avg", True, "discriminator", {}),
}


def main() -> None:
    torch.set_num_threads(1)
    pairs = Judge.of(find("set14") + find("bsd100")[::6]).pairs
    judge = perceptual.load("alex")
    start = fold(zoo.load("srresnet")).eval()
    FILE.touch()
    with open(FILE, newline="") as file:
        done = {(row["variant"], row["seed"]) for row in csv.DictReader(file)}

    @torch.no_grad()
    def lines(variant: str, seed: int, share: float, generator: nn.Module) -> list[dict]:
        found = []
        for i, (lr, hr) in enumerate(pairs):
            sr = upscale(generator, lr).clamp(0, 1)
            scores = (protocol.compare(sr, hr)[0], judge(sr[None], hr[None]).item())
            scores += (metrics.grid_level(sr, hr),)
            values = (variant, seed, share, i, *(f"{x:.4f}" for x in scores))
            found.append(dict(zip(COLUMNS, values, strict=True)))
        return found

    before = lines("", 0, 0.0, start)
    bank = PatchBank.from_files(find("bsds400"), detail=0.5)
    engine = ENGINES["bf16"]
    for seed in range(SEEDS):
        for variant, (pool, texture, critic, settings) in VARIANTS.items():
            if (variant, str(seed)) in done:
                continue
            bank.generator.manual_seed(seed)
            recipe = recipes.with_critic(recipes.find("srgan"), critic)
            plan = {"steps": STEPS, "validate_every": 0, "checkpoint_every": 0} | settings
            with tempfile.TemporaryDirectory() as folder:
                result = recipes.train(
                    recipe, bank, folder, generator=fold(zoo.load("srresnet")), features="vgg16",
                    critic_width=32, pool=pool, texture=texture, settings=plan, seed=seed,
                    engine=engine.engine, fabric=default_fabric("cpu", engine.precision),
                    progress=False,
                )  # fmt: skip
            found = [line | {"variant": variant, "seed": seed} for line in before]
            for share in SHARES:
                found += lines(variant, seed, share, interpolate(start, result.generator, share))
            with open(FILE, "a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if not file.tell():
                    writer.writeheader()
                writer.writerows(found)
            ends = [[float(line[name]) for line in found[-len(pairs) :]] for name in COLUMNS[4:]]
            psnr, lpips, grid = (sum(values) / len(values) for values in ends)
            print(f"{variant}, seed {seed}: {psnr:.2f} dB, LPIPS {lpips:.3f}, grid {grid:+.1f} dB")


if __name__ == "__main__":
    main()
