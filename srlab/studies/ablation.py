"""The ablation: what each part of the recipe is worth, at equal steps and over several seeds.

:data:`ROWS` lists the trainings that the claims of chapter 06 need. :func:`run` trains and scores
them one after the other into two small CSV files, ``runs.csv`` (a line a training) and
``scores.csv`` (a line a picture); what is in there already is not done again, so a run that was
stopped goes on.
"""

import csv
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srlab.data.bank import PatchBank
from srlab.data.datasets import DATASETS, find, status
from srlab.errors import SrlabError
from srlab.evaluation import perceptual
from srlab.evaluation.scores import measure
from srlab.files import only_here
from srlab.models import vgg, zoo
from srlab.models.critics import Discriminator, NoCritic, VGGCritic
from srlab.models.generators import WDRN, SRResNet, fold
from srlab.training import recipes
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.engine import default_fabric
from srlab.training.monitor import TrainingDiverged, read_log
from srlab.training.recipes import CRITIC_TAP
from srlab.training.run import CHECKPOINT


@dataclass(frozen=True)
class Row:
    """One training of the ablation; repeated for each seed.

    Attributes:
        generator: ``"srresnet"`` or one of WDRN's four fusions.
        content: ``"l1"``, ``"mse"`` or ``"perceptual"`` (L1 and VGG features).
        game: ``"none"``, ``"bce"`` or ``"wasserstein"`` (with gradient penalty).
        critic: ``"plain"`` or ``"vgg"``.
        start: the row whose trained generator goes on here; None starts fresh.
        n_blocks: of the generator.
        critic_rate: the critic's learning rate, as a multiple of the generator's.
        lengths: training steps, as a multiple of the scale's.
    """

    generator: str = "srresnet"
    content: str = "l1"
    game: str = "none"
    critic: str = ""
    start: str | None = None
    n_blocks: int = 5
    critic_rate: float = 1.0
    lengths: float = 1.0


# First from scratch, then for equally many further steps from the first row's generator. Only the
# rows that a claim needs: the full factorial has eighty.
ROWS: dict[str, Row] = {
    "srresnet": Row(),
    "wdrn-sum": Row("sum"),
    "wdrn-scaled-sum": Row("scaled-sum"),
    "wdrn-concat": Row("concat"),
    "wdrn-weighted-concat": Row("weighted-concat"),
    "mse": Row(content="mse"),
    "2-blocks": Row(n_blocks=2),
    "16-blocks": Row(n_blocks=16),
    "twice-as-long": Row(lengths=2),
    "more-l1": Row(start="srresnet"),
    "perceptual": Row(content="perceptual", start="srresnet"),
    "bce": Row(game="bce", critic="plain", start="srresnet"),
    "bce-vgg": Row(game="bce", critic="vgg", start="srresnet"),
    "wasserstein": Row(game="wasserstein", critic="plain", start="srresnet"),
    "wasserstein-vgg": Row(game="wasserstein", critic="vgg", start="srresnet"),
    "bce-fast-critic": Row(game="bce", critic="plain", start="srresnet", critic_rate=4),
    "bce-slow-critic": Row(game="bce", critic="plain", start="srresnet", critic_rate=0.25),
}


@dataclass(frozen=True)
class Scale:
    """How large the ablation is; a profile of the course names one.

    Attributes:
        features: channels of the generators; 64 is their own width.
        critic_features: channels of the critics' first layer.
        steps: of a training from scratch; ``game_steps`` of one that starts from another.
        game_start: ``"released"`` starts games from the released SRResNet, its batch norm folded,
            whatever ``features`` says; ``"own"`` from the row's own ``start``, of the same seed.
        critic_steps: to one of the generator, in the Wasserstein games.
        weights: of the adversarial loss against L1, by game.
    """

    train_set: str = "photos"
    test_sets: tuple[str, ...] = ("photos-valid", "set5")
    features: int = 16
    critic_features: int = 16
    batch_size: int = 4
    patch_size: int = 16
    steps: int = 3200
    game_steps: int = 200
    game_start: str = "released"
    critic_steps: int = 2
    seeds: int = 3
    vgg: str = "vgg19-slim"
    lr: float = 1e-3
    game_lr: float = 1e-4
    weights: dict[str, float] = field(
        default_factory=lambda: {"none": 0.0, "bce": 1e-2, "wasserstein": 2e-3}
    )


SCALES = {
    "smoke": Scale(
        features=8, critic_features=8, batch_size=2, patch_size=8, steps=2, game_steps=2,
        game_start="own", critic_steps=1, seeds=1, test_sets=("photos-valid",),
    ),
    "lite": Scale(),
    "full": Scale(
        train_set="div2k-train", test_sets=("div2k-valid", "set5", "set14", "bsd100"), features=64,
        critic_features=64, batch_size=16, patch_size=24, steps=100_000, game_steps=50_000,
        game_start="own", critic_steps=5, seeds=3, vgg="vgg19", lr=5e-4,
    ),
}  # fmt: skip

RUN_COLUMNS = (
    "row", "seed", "parameters", "steps", "seconds", "swing", "critic_loss", "gap", "slope", "note",
)  # fmt: skip
SCORE_COLUMNS = ("row", "seed", "set", "image", "psnr", "ssim", "lpips", "consistency")


class AblationError(SrlabError):
    """The ablation's files are damaged, or a row is unknown."""


def run(
    folder: Path | str,
    profile: str = "lite",
    rows: Iterable[str] | None = None,
    *,
    trainings: Path | str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Train and score the rows that ``folder``'s files do not hold yet, seed by seed.

    Args:
        folder: of ``runs.csv`` and ``scores.csv``.
        profile: a key of :data:`SCALES`.
        rows: names in :data:`ROWS`; by default all.
        trainings: where checkpoints and logs go, by default ``runs/ablation-PROFILE``.

    Returns:
        The folder.

    Raises:
        AblationError: unknown profile or row, or files that something else wrote.
    """
    names = list(rows or ROWS)
    if profile not in SCALES:
        raise AblationError(f"no profile {profile!r}: choose one of {', '.join(SCALES)}.")
    if unknown := [name for name in names if name not in ROWS]:
        raise AblationError(f"no row {unknown[0]!r}: choose among {', '.join(ROWS)}.")
    folder = Path(folder)
    with only_here(folder, "an ablation"):
        return _run(folder, profile, names, trainings, device, say)


def _run(
    folder: Path,
    profile: str,
    names: list[str],
    trainings: Path | str | None,
    device: str,
    say: Callable[[str], None],
) -> Path:
    scale = SCALES[profile]
    done = {(line["row"], line["seed"]) for line in read(folder / "runs.csv", RUN_COLUMNS)}
    _forget_unfinished(folder / "scores.csv", done)
    todo = [(n, s) for s in range(scale.seeds) for n in names if (n, str(s)) not in done]
    if not todo:
        say(f"{folder} holds all {len(names) * scale.seeds} runs: nothing to do.")
        return folder
    lab = _Lab(scale, Path(trainings or Path("runs") / f"ablation-{profile}"), device)
    for i, (name, seed) in enumerate(todo, start=1):
        started = time.process_time()
        line = {"row": name, "seed": seed, "note": ""}
        try:
            generator, measured = lab.train(name, seed)
            scores = lab.score(generator)
        except TrainingDiverged as error:  # a result like any other
            measured, scores = {"note": f"diverged: {error}".splitlines()[0][:120]}, []
        line |= measured | {"seconds": round(time.process_time() - started)}
        _append(folder / "scores.csv", SCORE_COLUMNS, [line | score for score in scores])
        _append(folder / "runs.csv", RUN_COLUMNS, [line])  # last: now it counts as done
        mean = sum(score["psnr"] for score in scores) / max(1, len(scores))
        say(f"{i} of {len(todo)}: {name}, seed {seed}: {mean:.2f} dB, {line['seconds']} s of CPU")
    return folder


def build_generator(row: Row, features: int) -> nn.Module:
    """A fresh generator; those of five blocks have nearly the same number of parameters.

    None has batch norm: the dense ones are built without it, and a few small crops upset its
    statistics, which would be compared in place of the architectures.
    """
    if row.generator == "srresnet":
        return SRResNet(row.n_blocks, features, batch_norm=False)
    concatenates = row.generator.endswith("concat")
    return WDRN(
        row.n_blocks,
        n_features=features if concatenates else features * 7 // 8,
        growth=features * 3 // 8,
        fusion=row.generator,
    )


def build_critic(row: Row, scale: Scale) -> nn.Module:
    """The row's critic. Instance norm in place of batch norm, so that both games can have it."""
    if row.game == "none":
        return NoCritic()
    if row.critic == "vgg":
        trunk = vgg.load(scale.vgg, [CRITIC_TAP])
        return VGGCritic(trunk, pixel_branch=True, patch=True, n_features=scale.critic_features)
    side = scale.patch_size * 4
    return Discriminator(side, scale.critic_features, norm="instance" if side >= 48 else "none")


def settings(row: Row, scale: Scale) -> PretrainConfig | AdversarialConfig:
    """What a row trains with."""
    common: dict[str, Any] = {
        "batch_size": scale.batch_size,
        "patch_size": scale.patch_size,
        "validate_every": 0,
        "checkpoint_every": 0,
    }
    if row.start is None:
        steps = round(scale.steps * row.lengths)
        return PretrainConfig(steps=steps, lr=scale.lr, loss=row.content, **common)
    wasserstein = row.game == "wasserstein"
    every = max(1, scale.game_steps // 20)
    return AdversarialConfig(
        steps=round(scale.game_steps * row.lengths),
        content="l1",
        perceptual_weight=0.1 if row.content == "perceptual" else 0.0,
        adversarial=row.game if row.game != "none" else "bce",
        adversarial_weight=scale.weights[row.game],
        lipschitz="gradient-penalty" if wasserstein else "none",
        critic_steps=scale.critic_steps if wasserstein else 1,
        critic_betas=(0.0, 0.9) if wasserstein else (0.9, 0.999),
        generator_lr=scale.game_lr,
        critic_lr=scale.game_lr * row.critic_rate,
        **common | {"log_every": every, "validate_every": every},
    )


class _Lab:
    """What all rows share: pictures, device, judges."""

    def __init__(self, scale: Scale, trainings: Path, device: str):
        self.scale, self.trainings = scale, trainings
        self.fabric = default_fabric(device)
        self.device = self.fabric.device
        self.bank = PatchBank.from_files(find(scale.train_set), 4, self.device)
        held_out = PatchBank.from_files(find(scale.test_sets[0]))
        self.held_out = held_out.batch(16, scale.patch_size)
        try:
            self.lpips = perceptual.load("squeeze").to(self.device)
        except perceptual.PerceptualError as error:
            print(f"srlab ablate: {error}", flush=True)
            self.lpips = None

    def train(self, name: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """A row's generator and what its training tells; at once if it is there already."""
        row, scale = ROWS[name], self.scale
        folder = self.trainings / f"{name}-{seed}"
        config = settings(row, scale)
        if row.start is None:
            torch.manual_seed(seed)
            generator = build_generator(row, scale.features)
        else:
            released = scale.game_start == "released"
            generator = fold(zoo.load("srresnet")) if released else self.train(row.start, seed)[0]
        told: dict[str, Any] = {"parameters": sum(p.numel() for p in generator.parameters())}
        told["steps"] = config.steps
        final = folder / "generator.safetensors"
        if final.is_file():
            generator = zoo.load(final)
        else:
            bank = self.bank
            bank.generator.manual_seed(seed)
            recipe = recipes.Recipe("", "" if row.start is None else "critic", asdict(config))
            how: dict[str, Any] = {"features": scale.vgg, "seed": seed, "fabric": self.fabric}
            if row.start is not None:
                torch.manual_seed(seed)
                how["critic"] = build_critic(row, scale)
                how["validate"] = lambda _: self._quick_psnr(generator)
            result = recipes.train(recipe, bank, folder, generator=generator, progress=False, **how)
            if result.step < config.steps:  # Ctrl-C, and the loop has saved
                raise KeyboardInterrupt
            generator = result.generator.cpu()
            zoo.save(generator, final)
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return generator, told | _told_by_log(folder / "log.csv", row)

    @torch.no_grad()
    def _quick_psnr(self, generator: nn.Module) -> float:
        """Of the weights as they are now, not of their average: an average hides the unrest."""
        lr, hr = (x.to(self.device) for x in self.held_out)
        generator.eval()
        error = (generator(lr).clamp(0, 1) - hr).square().mean().log10()
        generator.train()
        return -10 * float(error)

    def score(self, generator: nn.Module) -> list[dict[str, Any]]:
        """A line for each picture of the test sets that are at hand."""
        lines = []
        for name in filter(_at_hand, self.scale.test_sets):
            for f in measure(generator, find(name), self.lpips, device=self.device):
                far = "" if math.isnan(f.distance) else round(f.distance, 5)
                line = {"set": name, "image": f.image, "psnr": round(f.psnr, 4), "lpips": far}
                line |= {"ssim": round(f.ssim, 5), "consistency": round(f.consistency, 3)}
                lines.append(line)
        return lines


def _at_hand(name: str) -> bool:
    return status(name)[1] >= DATASETS[name].needed


def _told_by_log(path: Path, row: Row) -> dict[str, Any]:
    """How restless a game was (swing of the validated PSNR, dB) and what its critic said."""
    log = read_log(path)
    if row.start is None:
        return {}
    second_half = {name: torch.tensor(v[1][len(v[1]) // 2 :]) for name, v in log.items() if v[1]}
    told = {"swing": round(float(second_half["val_psnr"].diff().abs().mean()), 4)}
    if row.game != "none":
        for column, source in (("critic_loss", "critic_loss"), ("gap", "gap")):
            told[column] = round(float(second_half[source].mean()), 4)
        if "gradient_norm" in second_half:
            told["slope"] = round(float(second_half["gradient_norm"].mean()), 4)
    return told


def read(path: Path | str, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The lines of one of the two files; none if it is not there.

    Raises:
        AblationError: other columns than expected.
    """
    path = Path(path)
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    if columns and tuple(reader.fieldnames or ()) != tuple(columns):
        raise AblationError(f"{path} was not written by `srlab ablate`: name another folder.")
    return lines


def _append(path: Path, columns: Sequence[str], lines: Sequence[dict[str, Any]]) -> None:
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(lines)


def _forget_unfinished(path: Path, done: set[tuple[str, str]]) -> None:
    """Drop the pictures of a run that was killed before it was entered in runs.csv."""
    lines = read(path, SCORE_COLUMNS)
    kept = [line for line in lines if (line["row"], line["seed"]) in done]
    if len(kept) < len(lines):
        path.unlink()
        _append(path, SCORE_COLUMNS, kept)
