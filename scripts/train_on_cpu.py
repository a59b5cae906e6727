"""Play the two games of the released GANs on a CPU, from the released networks.

    python scripts/train_on_cpu.py wdrn-vgg-wgan --data bsds400 --data FOLDER_OF_PHOTOS@2
    python scripts/train_on_cpu.py srgan         ...the same...
    srlab export runs/cpu/srgan srgan.safetensors --half --trained-on "..."

The recipes are those of ``srlab train``; three things make them affordable without a GPU. Crops are
small (16x16 -> 64x64, eight a step). Batch norm is folded away first, whose statistics so few
pixels upset. And the critic moves as often as the generator. A game took under an hour on one
core. A stopped run goes on by the same command.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from srlab.cli import _training_files
from srlab.datasets import find
from srlab.evaluation import protocol
from srlab.models import zoo
from srlab.models.generators import fold
from srlab.patches import PatchBank
from srlab.training import loop
from srlab.training.config import AdversarialConfig
from srlab.training.engine import default_fabric
from srlab.training.recipes import RECIPES, build_critic, build_perceptual

PATCH_SIZE = 16
COMMON = {
    "batch_size": 8,
    "patch_size": PATCH_SIZE,
    "generator_lr": 2e-4,
    "schedule": "cosine",
    "warmup_steps": 100,
    "log_every": 50,
    "validate_every": 500,
    "checkpoint_every": 250,
}
GAMES: dict[str, dict[str, Any]] = {
    "wdrn-vgg-wgan": {"steps": 4000, "critic_steps": 1},
    # Against a discriminator of few steps the paper's weight (2.5e-4 for pictures in [0, 1])
    # makes the generator paint noise.
    "srgan": {"steps": 5000, "adversarial_weight": 1e-4, "critic_lr": 3e-5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("game", choices=GAMES)
    parser.add_argument("--data", action="append", help="set or folder, NAME@2 halves; repeat")
    parser.add_argument("--valid", default="photos-valid", help="set for the log's val_psnr")
    parser.add_argument("--out", type=Path, default=Path("runs/cpu"))
    parser.add_argument("--steps", type=int, help="fewer, to see that it works")
    options = parser.parse_args()

    recipe = RECIPES[options.game]
    files, shrink = _training_files(options.data or ["photos"])
    bank = PatchBank.from_files(files, 4, "cpu", 0, shrink, progress=True)
    torch.manual_seed(0)
    generator = fold(zoo.load(recipe.start))
    critic = build_critic(recipe, PATCH_SIZE * generator.scale)
    perceptual = build_perceptual(recipe, bank.batch(16, PATCH_SIZE)[1])
    bank.generator.manual_seed(0)
    settings = recipe.settings | COMMON | GAMES[options.game]
    if options.steps:
        settings["steps"] = options.steps
    held_out = find(options.valid)
    loop.adversarial(
        generator,
        critic,
        bank,
        AdversarialConfig(**settings),
        options.out / options.game,
        perceptual=perceptual,
        validate=lambda g: protocol.mean(protocol.evaluate(g, held_out)).psnr,
        fabric=default_fabric("cpu", "bf16-mixed"),
    )


if __name__ == "__main__":
    main()
