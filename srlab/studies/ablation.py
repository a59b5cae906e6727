"""The ablation: what each part of the recipe is worth, at equal steps and over several seeds.

:data:`ROWS` lists the trainings that the claims of chapter 06 need. :func:`run` trains and scores
them one after the other into two small CSV files, ``runs.csv`` (a line a training) and
``scores.csv`` (a line a picture and share of the way); what is in there already is not done again,
so a run that was stopped goes on.

Trainings of one seed see the same crops in the same order, and begin with the same weights where
their shapes agree; games begin from their own seed's generator. What is left of a difference is
the treatment, and some luck.
"""

import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srlab.data.bank import PatchBank
from srlab.data.datasets import find
from srlab.data.degradation import crop_to_multiple, downsample, quantize
from srlab.data.images import is_grey, read_image
from srlab.errors import SrlabError
from srlab.evaluation import perceptual, protocol
from srlab.evaluation.metrics import psnr
from srlab.evaluation.tiling import upscale
from srlab.files import only_here
from srlab.models import zoo
from srlab.models.critics import Discriminator, NoCritic
from srlab.models.generators import WDRN, SRResNet
from srlab.models.interpolation import interpolate
from srlab.training import recipes
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.engine import ENGINES, default_fabric
from srlab.training.monitor import LOG, TrainingDiverged, read_log
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
        batch_norm: in the generator.
        rate: factor on the learning rates of both players.
        critic_rate: one more on the critic's.
        length: training steps, as a multiple of the scale's.
    """

    generator: str = "srresnet"
    content: str = "l1"
    game: str = "none"
    critic: str = ""
    start: str | None = None
    n_blocks: int = 5
    batch_norm: bool = False
    rate: float = 1.0
    critic_rate: float = 1.0
    length: float = 1.0


# First from scratch, then for equally many further steps from the first row's generator. Only the
# rows that a claim needs: the full factorial has eighty.
ROWS: dict[str, Row] = {
    "srresnet": Row(),
    "wdrn-sum": Row("sum"),
    "wdrn-concat": Row("concat"),
    "wdrn-weighted-concat": Row("weighted-concat"),
    "mse": Row(content="mse"),
    "2-blocks": Row(n_blocks=2),
    "16-blocks": Row(n_blocks=16),
    "twice-as-long": Row(length=2),
    "batch-norm": Row(batch_norm=True),
    "more-l1": Row(start="srresnet"),
    "perceptual": Row(content="perceptual", start="srresnet"),
    "bce": Row(game="bce", critic="plain", start="srresnet"),
    "bce-vgg": Row(game="bce", critic="vgg", start="srresnet"),
    "wasserstein": Row(game="wasserstein", critic="plain", start="srresnet"),
    "wasserstein-vgg": Row(game="wasserstein", critic="vgg", start="srresnet"),
    "bce-fast-critic": Row(game="bce", critic="plain", start="srresnet", critic_rate=4),
    "bce-slow-critic": Row(game="bce", critic="plain", start="srresnet", critic_rate=0.25),
    "bce-hot": Row(game="bce", critic="plain", start="srresnet", rate=4),
    "wasserstein-hot": Row(game="wasserstein", critic="plain", start="srresnet", rate=4),
}


@dataclass(frozen=True)
class Scale:
    """How large the ablation is; a profile of the course names one.

    Attributes:
        test_sets: every k-th picture of these, from the first, judges trainings from scratch (by
            PSNR), and of ``game_sets`` those that start from another (by LPIPS too).
        features: channels of the generators; 64 is their own width.
        critic_features: channels of the critics' first layer.
        steps: of a training from scratch; ``game_steps`` of one that starts from another.
        rows: keys of :data:`ROWS`.
        first_seed, seeds: each row is trained with ``seeds`` consecutive ones, or with the first
            few of them, where ``few`` says how many.
        vgg: the features of the VGG loss and the VGG critic.
        shares: places on the way from a game's start to its end, where it is scored; see
            :func:`srlab.models.interpolation.interpolate`.
        weights: of the adversarial loss against L1, by game and critic, each so that the game costs
            0.2 dB or some more by its end; ``perceptual_weight``, of the VGG loss, likewise.
        penalty: weight of the gradient penalty.
        engine: a key of :data:`srlab.training.engine.ENGINES`.
    """

    train_set: str = "bsds400"
    test_sets: Mapping[str, int] = field(default_factory=lambda: {"set14": 1, "bsd100": 1})
    game_sets: Mapping[str, int] = field(default_factory=lambda: {"set14": 1, "bsd100": 5})
    detail: float = 0.5
    features: int = 16
    critic_features: int = 16
    batch_size: int = 4
    patch_size: int = 16
    steps: int = 3200
    game_steps: int = 100
    critic_steps: int = 1
    rows: Sequence[str] = tuple(ROWS)
    first_seed: int = 0
    seeds: int = 8
    few: Mapping[str, int] = field(default_factory=dict)
    vgg: str = "vgg16"
    lr: float = 2e-3
    game_lr: float = 2e-4
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "none": 0.0,
            "bce": 1e-2,
            "bce-vgg": 5e-3,
            "wasserstein": 6e-2,
            "wasserstein-vgg": 1.5e-2,
        }
    )
    perceptual_weight: float = 0.15
    penalty: float = 1.0
    engine: str = "bf16"


_COSTLY = {"16-blocks": 5, "twice-as-long": 5, "batch-norm": 5}
_LITE = Scale(first_seed=10, few=_COSTLY)  # seeds that the study before it, "first", has not used
_ARCHITECTURES = ("srresnet", "wdrn-sum", "wdrn-concat", "wdrn-weighted-concat")
_PHOTOS = {"photos-valid": 1}
SCALES = {
    "smoke": Scale(
        train_set="photos", test_sets=_PHOTOS, game_sets=_PHOTOS, features=8, critic_features=8,
        batch_size=2, patch_size=8, steps=2, game_steps=2, seeds=1, vgg="vgg19-slim",
        shares=(0.0, 1.0), engine="fp32",
    ),
    "lite": _LITE,
    # Before the study: what spread is there, and how many seeds and pictures does a claim need?
    "first": replace(
        _LITE, first_seed=0, seeds=5,
        test_sets={"set14": 1, "bsd100": 2}, game_sets={"set14": 2, "bsd100": 10},
    ),
    # After it, five of the claims that it left open, with seeds of their own. How many follows from
    # the effects and spreads of "lite": enough to decide each claim four times out of five.
    "again": replace(
        _LITE, first_seed=40, seeds=18,
        rows=("srresnet", "16-blocks", "batch-norm", "perceptual", "bce", "wasserstein-vgg",
              "bce-hot", "wasserstein-hot"),
        few={"16-blocks": 6, "batch-norm": 12, "perceptual": 12, "bce": 12, "wasserstein-vgg": 12},
    ),
    # Do architectures differ more in wider networks, or in longer trainings?
    "wide": replace(_LITE, first_seed=20, seeds=4, features=32, rows=_ARCHITECTURES),
    "wider": replace(_LITE, first_seed=24, seeds=3, features=64, rows=_ARCHITECTURES),
    "long": replace(_LITE, first_seed=30, seeds=3, steps=12_800, rows=_ARCHITECTURES),
    "full": Scale(
        train_set="div2k-train", test_sets={"set14": 1, "bsd100": 1, "div2k-valid": 1},
        game_sets={"set14": 1, "bsd100": 1}, features=64, critic_features=64, batch_size=16,
        patch_size=24, steps=100_000, game_steps=50_000, critic_steps=5, vgg="vgg19", lr=1e-3,
        few=_COSTLY,
    ),
}  # fmt: skip

RUN_COLUMNS = (
    "row", "seed", "parameters", "steps", "seconds", "swing", "critic_loss", "near", "slope",
    "note",
)  # fmt: skip
SCORE_COLUMNS = ("row", "seed", "share", "set", "image", "psnr", "lpips")
NEAR = (-1.25, -0.75)  # a critic's loss "near -1"


class AblationError(SrlabError):
    """The ablation's files are damaged, or a row is unknown."""


def run(
    folder: Path | str,
    profile: str = "lite",
    rows: Iterable[str] | None = None,
    *,
    seeds: Iterable[int] | None = None,
    trainings: Path | str | None = None,
    device: str = "auto",
    log: Callable[[str], None] = print,
) -> Path:
    """Train and score the rows that ``folder``'s files do not hold yet, seed by seed.

    Args:
        folder: of ``runs.csv`` and ``scores.csv``.
        profile: a key of :data:`SCALES`.
        rows: names in :data:`ROWS`; by default the profile's.
        seeds: only these of the profile's, for a study in several parts; by default all.
        trainings: where checkpoints and logs go, by default ``runs/ablation-PROFILE``.

    Returns:
        The folder.

    Raises:
        AblationError: unknown profile or row, or files that something else wrote.
    """
    if profile not in SCALES:
        raise AblationError(f"no profile {profile!r}: choose one of {', '.join(SCALES)}.")
    names, seeds = list(rows or SCALES[profile].rows), list(seeds or [])
    if unknown := [name for name in names if name not in ROWS]:
        raise AblationError(f"no row {unknown[0]!r}: choose among {', '.join(ROWS)}.")
    folder = Path(folder)
    with only_here(folder, "an ablation"):
        return _run(folder, profile, names, seeds, trainings, device, log)


def _run(
    folder: Path,
    profile: str,
    names: list[str],
    seeds: list[int],
    trainings: Path | str | None,
    device: str,
    log: Callable[[str], None],
) -> Path:
    scale, done = SCALES[profile], finished(folder)
    _forget_unfinished(folder / "scores.csv", done)
    wanted = [(n, s) for n, s in plan(scale, names) if not seeds or s in seeds]
    todo = [training for training in wanted if training not in done]
    if not todo:
        log(f"{folder} holds all {len(wanted)} runs: nothing to do.")
        return folder
    lab = _Lab(scale, Path(trainings or Path("runs") / f"ablation-{profile}"), device)
    for i, (name, seed) in enumerate(todo, start=1):
        started = time.process_time()
        line = {"row": name, "seed": seed, "note": ""}
        try:
            generator, measured = lab.train(name, seed)
            scores = lab.score(generator, ROWS[name], seed)
        except TrainingDiverged as error:  # a result like any other
            measured, scores = {"note": f"diverged: {error}".splitlines()[0][:120]}, []
        line |= measured | {"seconds": round(time.process_time() - started)}
        _append(folder / "scores.csv", SCORE_COLUMNS, [line | score for score in scores])
        _append(folder / "runs.csv", RUN_COLUMNS, [line])  # last: now it counts as done
        ends = [score["psnr"] for score in scores if score["share"] == 1]
        mean = sum(ends) / max(1, len(ends))
        log(f"{i} of {len(todo)}: {name}, seed {seed}: {mean:.3f} dB, {line['seconds']} s of CPU")
    return folder


def plan(scale: Scale, names: Iterable[str]) -> list[tuple[str, int]]:
    """All trainings, (row, seed), seed by seed."""
    names = list(names)
    return [
        (name, scale.first_seed + i)
        for i in range(scale.seeds)
        for name in names
        if i < scale.few.get(name, scale.seeds)
    ]


def finished(folder: Path | str) -> set[tuple[str, int]]:
    """The trainings, (row, seed), that a folder's ``runs.csv`` holds.

    Raises:
        AblationError: something else wrote the file.
    """
    lines = read(Path(folder) / "runs.csv", RUN_COLUMNS)
    return {(line["row"], int(line["seed"])) for line in lines}


def build_generator(row: Row, features: int) -> nn.Module:
    """A fresh generator; those of five blocks have nearly the same number of parameters.

    None but the row that asks for it has batch norm: the dense ones are built without it, and a few
    small crops upset its statistics, which would be compared in place of the architectures.
    """
    if row.generator == "srresnet":
        return SRResNet(row.n_blocks, features, batch_norm=row.batch_norm)
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
    side = scale.patch_size * 4
    if row.critic == "vgg":
        recipe = recipes.Recipe("", "vgg")
        return recipes.build_critic(recipe, side, scale.vgg, scale.critic_features)
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
        steps = round(scale.steps * row.length)
        lr = scale.lr * row.rate
        return PretrainConfig(steps=steps, lr=lr, loss=row.content, optimizer="muon", **common)
    wasserstein = row.game == "wasserstein"
    game = row.game + "-vgg" * (row.critic == "vgg")
    every = max(1, scale.game_steps // 20)
    return AdversarialConfig(
        steps=round(scale.game_steps * row.length),
        content="l1",
        perceptual_weight=scale.perceptual_weight if row.content == "perceptual" else 0.0,
        adversarial=row.game if row.game != "none" else "bce",
        adversarial_weight=scale.weights[game],
        lipschitz="gradient-penalty" if wasserstein else "none",
        penalty_weight=scale.penalty,
        critic_steps=scale.critic_steps if wasserstein else 1,
        critic_betas=(0.0, 0.9) if wasserstein else (0.9, 0.999),
        generator_lr=scale.game_lr * row.rate,
        critic_lr=scale.game_lr * row.rate * row.critic_rate,
        schedule="cosine",
        **common | {"log_every": every, "validate_every": every},
    )


class _Picture(NamedTuple):
    """A test picture, ready to be enlarged and compared."""

    set: str
    image: str
    lr: Tensor
    hr: Tensor
    grey: bool


class _Lab:
    """What all rows share: pictures, device, judges."""

    def __init__(self, scale: Scale, trainings: Path, device: str):
        self.scale, self.trainings = scale, trainings
        how = ENGINES[scale.engine]
        self.engine, self.fabric = how.engine, default_fabric(device, how.precision)
        self.device = self.fabric.device
        files = find(scale.train_set)
        self.bank = PatchBank.from_files(files, 4, self.device, detail=scale.detail)
        # A game's unrest is seen on crops that it does not learn from.
        held_out = PatchBank.from_files(find("photos-valid"))
        self.held_out = held_out.batch(16, scale.patch_size)
        self.pictures: dict[tuple[str, int], list[_Picture]] = {}
        self.start_scores: dict[tuple[str | None, int], list[dict[str, Any]]] = {}
        try:
            self.lpips = perceptual.load("alex").to(self.device)
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
            generator = self.train(row.start, seed)[0]
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
            how |= {"pool": "max", "texture": False}  # as when the study was planned
            if row.start is not None:
                torch.manual_seed(seed)
                how["critic"] = build_critic(row, scale)
                how["validate"] = lambda _: self._quick_psnr(generator)
            how["engine"] = self.engine
            result = recipes.train(recipe, bank, folder, generator=generator, progress=False, **how)
            if result.step < config.steps:  # Ctrl-C, and the loop has saved
                raise KeyboardInterrupt
            generator = result.generator.cpu()
            zoo.save(generator, final)
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return generator, told | _told_by_log(folder / LOG, row)

    @torch.no_grad()
    def _quick_psnr(self, generator: nn.Module) -> float:
        """Of the weights as they are now, not of their average: an average hides the unrest."""
        lr, hr = (x.to(self.device) for x in self.held_out)
        generator.eval()
        error = (generator(lr).clamp(0, 1) - hr).square().mean().log10()
        generator.train()
        return -10 * float(error)

    def score(self, generator: nn.Module, row: Row, seed: int) -> list[dict[str, Any]]:
        """A line for each picture; for a game, at each share of the way from its start."""
        if row.start is None:
            return self._score(generator, self.scale.test_sets, 1.0)
        start = self.train(row.start, seed)[0]
        lines: list[dict[str, Any]] = []
        for share in self.scale.shares:
            key = (row.start, seed)
            if share or key not in self.start_scores:  # the start is scored once for all games
                between = interpolate(start, generator, share)
                found = self._score(between, self.scale.game_sets, share, self.lpips)
                if not share:
                    self.start_scores[key] = found
            lines += found if share else self.start_scores[key]
        return lines

    @torch.no_grad()
    def _score(
        self, generator: nn.Module, sets: Mapping[str, int], share: float, judge: Any = None
    ) -> list[dict[str, Any]]:
        """PSNR by the published protocol, and LPIPS of the whole picture, at 8 bit."""
        network, lines = generator.eval().to(self.device), []
        for p in (p for name, every in sets.items() for p in self._test_pictures(name, every)):
            sr = quantize(upscale(network, p.lr, None))
            pair = protocol.prepare(sr, p.hr, protocol.PUBLISHED, p.grey)
            line = {"share": share, "set": p.set, "image": p.image}
            line["psnr"] = round(float(psnr(*pair)), 4)
            line["lpips"] = round(float(judge(sr[None], p.hr[None])), 5) if judge else ""
            lines.append(line)
        return lines

    def _test_pictures(self, name: str, every: int) -> list[_Picture]:
        if (name, every) not in self.pictures:
            found = []
            for file in find(name)[::every]:
                hr = crop_to_multiple(read_image(file), 4).to(self.device)
                found.append(_Picture(name, file.stem, downsample(hr), hr, is_grey(file)))
            self.pictures[name, every] = found
        return self.pictures[name, every]


def _told_by_log(path: Path, row: Row) -> dict[str, Any]:
    """How restless a game was (swing of the validated PSNR, dB) and what its critic said.

    All is of the game's second half. ``near`` is the share of the logged steps whose critic loss
    lies between the values of :data:`NEAR`.
    """
    if row.start is None:
        return {}
    log = read_log(path)
    second_half = {name: torch.tensor(v[1][len(v[1]) // 2 :]) for name, v in log.items() if v[1]}
    told = {"swing": round(float(second_half["val_psnr"].diff().abs().mean()), 4)}
    if row.game != "none":
        loss = second_half["critic_loss"]
        told["critic_loss"] = round(float(loss.mean()), 4)
        told["near"] = round(float(((loss > NEAR[0]) & (loss < NEAR[1])).double().mean()), 3)
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


def _forget_unfinished(path: Path, done: set[tuple[str, int]]) -> None:
    """Drop the pictures of a run that was killed before it was entered in runs.csv."""
    lines = read(path, SCORE_COLUMNS)
    kept = [line for line in lines if (line["row"], int(line["seed"])) in done]
    if len(kept) < len(lines):
        path.unlink()
        _append(path, SCORE_COLUMNS, kept)
