"""Tuning: what a setting is worth in a short game, and a search that survives being killed.

A *setting* is a dict of numbers by name; *ranges* say what may be tried::

    ranges = {
        "critic_lr": {"low": 1e-5, "high": 1e-2, "log": True},
        "critic_steps": {"low": 1, "high": 4},  # two whole numbers: whole numbers between them
        "norm": ["batch", "instance"],  # a list: one of these
    }

:func:`play` turns a setting into scores, :func:`search` looks for a good one with Optuna.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from srlab.data.bank import PatchBank
from srlab.data.degradation import crop_to_multiple, downsample
from srlab.data.images import read_image
from srlab.errors import SrlabError, require
from srlab.evaluation import protocol
from srlab.evaluation.tiling import upscale
from srlab.losses import Perceptual
from srlab.models import vgg
from srlab.models.critics import Discriminator, VGGCritic
from srlab.training.config import AdversarialConfig
from srlab.training.game import adversarial
from srlab.training.monitor import TrainingDiverged

if TYPE_CHECKING:
    import optuna

Ranges = Mapping[str, Mapping[str, Any] | Sequence[Any]]
Report = Callable[[int, dict[str, float]], None]
# Beside the fields of AdversarialConfig, a setting may hold these.
OTHERS = ("lr", "norm")


class TuningError(SrlabError):
    """A range, a setting or a study that cannot be."""


@dataclass(frozen=True)
class Judge:
    """Scores a generator on the middle of held-out pictures, in memory: many times, fast.

    Attributes:
        pairs: (LR, HR) pictures, each (3, H, W) in [0, 1].
        perceptual: the distance in the space of VGG features.
    """

    pairs: list[tuple[Tensor, Tensor]]
    perceptual: Perceptual

    @classmethod
    def of(cls, files: Sequence[Path], size: int = 192, device: str = "cpu") -> "Judge":
        """Of image files, each cut to ``size`` x ``size`` HR pixels at its middle if larger."""
        pairs = []
        for file in files:
            hr = read_image(file)
            top, left = (max(n - size, 0) // 2 for n in hr.shape[-2:])
            hr = crop_to_multiple(hr[:, top : top + size, left : left + size], 4).to(device)
            pairs.append((downsample(hr), hr))
        features = vgg.load("vgg19-slim", ["relu2_2"])
        return cls(pairs, Perceptual(features, {"relu2_2": 1.0}).to(device))

    @torch.no_grad()
    def __call__(self, generator: nn.Module) -> dict[str, float]:
        """``psnr`` in dB (luma, 4 pixels shaved; the higher the better) and ``features``, the
        perceptual distance (0 for a perfect picture), each the mean over the pictures."""
        training = generator.training
        psnr, features = [], []
        for lr, hr in self.pairs:
            sr = upscale(generator.eval(), lr)
            psnr.append(protocol.compare(sr, hr)[0])
            features.append(float(self.perceptual(sr.clamp(0, 1)[None], hr[None])))
        generator.train(training)
        return {"psnr": sum(psnr) / len(psnr), "features": sum(features) / len(features)}


def play(
    setting: Mapping[str, Any],
    folder: Path | str,
    *,
    generator: nn.Module,
    bank: PatchBank,
    judge: Callable[[nn.Module], dict[str, float]],
    steps: int,
    every: int,
    seed: int = 0,
    report: Report = lambda step, scores: None,
) -> dict[str, float]:
    """Play a short adversarial game by a setting, from the same start each time.

    The critic stands on fine-tuned VGG features (so that there is a ``trunk_lr``), or, if the
    setting names a ``norm``, it is SRGAN's discriminator with that norm.

    Args:
        setting: fields of :class:`srlab.training.config.AdversarialConfig`; ``lr`` sets the
            learning rates of generator and critic together.
        folder: of the run.
        generator: pre-trained; a copy of it plays.
        steps: length of the game.
        judge: scores a generator; see :class:`Judge`.
        every: steps between two calls of ``report``, which gets the step and the judge's scores.
        seed: of weights and crops.

    Returns:
        The scores after the last step.

    Raises:
        TuningError: a name that no game knows.
        TrainingDiverged: the game broke down; many a setting of a wide range does that.
    """
    known = [f.name for f in fields(AdversarialConfig)]
    for name in setting:
        if name not in (*known, *OTHERS):
            raise TuningError(
                f"unknown name {name!r} in a setting: choose from {', '.join((*known, *OTHERS))}."
            )
    options = {"content": "l1", "batch_size": 4, "patch_size": 12, **setting}
    if "lr" in options:
        options["generator_lr"] = options["critic_lr"] = options.pop("lr")
    norm = options.pop("norm", None)
    config = AdversarialConfig(
        **options, steps=steps, log_every=every, validate_every=0, checkpoint_every=0
    )
    torch.manual_seed(seed)
    bank.generator.manual_seed(seed)
    if norm:
        critic: nn.Module = Discriminator(4 * config.patch_size, n_features=8, norm=norm)
    else:
        eyes = vgg.load("vgg19-slim", ["relu2_2"])
        critic = VGGCritic(eyes, finetune=True, pixel_branch=True, patch=True, n_features=16)
    scores: dict[str, float] = {}

    def on_step(step: int, average: nn.Module) -> None:
        if step % every == 0 or step == steps:
            scores.update(judge(average))
            report(step, dict(scores))

    adversarial(deepcopy(generator), critic, bank, config, folder, on_step=on_step, progress=False)
    return scores


def suggest(trial: "optuna.Trial", ranges: Ranges) -> dict[str, Any]:
    """One setting, each value drawn by an Optuna trial from its range."""
    setting = {}
    for name, allowed in ranges.items():
        check_range(name, allowed)
        if not isinstance(allowed, Mapping):
            setting[name] = trial.suggest_categorical(name, list(allowed))
            continue
        low, high = allowed["low"], allowed["high"]
        whole = isinstance(low, int) and isinstance(high, int)
        draw = trial.suggest_int if whole else trial.suggest_float
        setting[name] = draw(name, low, high, log=bool(allowed.get("log", False)))
    return setting


def check_range(name: str, allowed: Any) -> None:
    """Raise :class:`TuningError` for what is neither a list of values nor low and high."""
    if isinstance(allowed, Mapping):
        numbers: list[Any] = [allowed.get("low"), allowed.get("high")]
        real = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
        if real and allowed.keys() <= {"low", "high", "log"} and numbers[0] < numbers[1]:
            if allowed.get("log") and numbers[0] <= 0:
                raise TuningError(f"{name}: a logarithmic range needs low > 0, got {numbers[0]}.")
            return
    elif isinstance(allowed, Sequence) and not isinstance(allowed, str) and len(allowed):
        return
    raise TuningError(
        f"{name}: {allowed!r} is no range. Write a list of values, or low < high and perhaps log, "
        "as in {low: 1.0e-5, high: 1.0e-2, log: true} (YAML takes 1e-5 for a text)."
    )


def search(
    objective: Callable[[dict[str, Any], Path, Callable[[int, float], None]], float],
    ranges: Ranges,
    folder: Path | str,
    *,
    trials: int,
    seed: int = 0,
    direction: str = "maximize",
    startup: int = 5,
) -> "optuna.Study":
    """Look for the setting with the best score, with Optuna (Akiba et al. 2019, arXiv:1907.10902).

    Everything that is found out goes to a journal on disk at once. A killed study goes on by the
    same call and loses no more than the trial it was in; several processes that name one folder
    share the work, also from several machines on a shared file system. A trial whose score lies
    below the median of the others' at the same step is pruned.

    Args:
        objective: (setting, folder of the trial, report) -> score. It calls ``report(step, score)``
            on its way, which raises ``optuna.TrialPruned`` where going on would be a waste.
        ranges: what may be tried.
        folder: holds ``study.journal`` and the trials' folders.
        trials: how many should be finished (pruned ones included), those of earlier calls and of
            other processes included.
        seed: every trial draws from random numbers of its own, of this seed and its number.
        direction: ``"maximize"`` or ``"minimize"``.
        startup: trials before TPE (Bergstra et al. 2011), which learns from the trials before,
            stops drawing at random and the pruner begins to prune.

    Raises:
        TuningError: a range is no range, or the folder holds a study of other ranges.
    """
    require("course", "optuna")
    import optuna

    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup)
    study = open_study(folder, ranges, direction, pruner)
    folder = Path(folder)

    def run(trial: optuna.Trial) -> float:
        # A sampler with one seed would draw the same settings again in every process.
        own = int(np.random.SeedSequence([seed, trial.number]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=startup, seed=own)
        setting = suggest(trial, ranges)

        def report(step: int, score: float) -> None:
            trial.report(score, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            return objective(setting, folder / f"trial-{trial.number:04}", report)
        except TrainingDiverged as error:
            trial.set_user_attr("diverged", str(error))
            raise optuna.TrialPruned from error

    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    enough = optuna.study.MaxTrialsCallback(trials, states=finished)
    if len(study.get_trials(deepcopy=False, states=finished)) < trials:
        study.optimize(run, callbacks=[enough])
    return study


def open_study(
    folder: Path | str,
    ranges: Ranges,
    direction: str,
    pruner: "optuna.pruners.BasePruner | None" = None,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> "optuna.Study":
    """The Optuna study of a folder, from its journal if there is one.

    Args:
        about: what else all trials of the folder have in common, by name.

    Raises:
        TuningError: a range is no range, or the journal is that of another study.
    """
    require("course", "optuna")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    for name, allowed in ranges.items():
        check_range(name, allowed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    journal = str(folder / "study.journal")
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal))),
        study_name="study",
        direction=direction,
        pruner=pruner,
        load_if_exists=True,
    )
    plain = {n: dict(r) if isinstance(r, Mapping) else list(r) for n, r in ranges.items()}
    common = {"ranges": plain, **about}
    same = all(study.user_attrs.get(name, value) == value for name, value in common.items())
    if not same or study.direction.name != direction.upper():
        raise TuningError(
            f"{folder} holds a study with another objective or other {', '.join(common)}: choose "
            "another folder, or delete it."
        )
    for name, value in common.items():
        study.set_user_attr(name, value)
    return study


def importance(
    settings: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    ranges: Ranges,
    share: float = 0.25,
) -> dict[str, float]:
    """How much each name decides whether a setting is among the best; shares that sum to 1.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) by Optuna: a name matters if its values among
    the better settings are spread otherwise than among all.

    Args:
        settings: drawn from ``ranges`` at random.
        scores: the higher the better.
        share: of the settings that count as good, at least five of them; the answer can depend on
            it a great deal.
    """
    import warnings

    require("course", "optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for setting, score in zip(settings, scores, strict=True):
        drawn = optuna.trial.FixedTrial(dict(setting))
        suggest(drawn, ranges)
        kinds = drawn.distributions
        study.add_trial(optuna.create_trial(params=drawn.params, distributions=kinds, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: shares[name] for name in ranges}


def rank_correlation(
    a: Sequence[float], b: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's rank correlation of two scores of the same settings, with its uncertainty.

    Returns:
        (rho, low, high): the correlation in [-1, 1] and its 95% interval by bootstrap over the
        settings (Efron and Tibshirani 1993, chapter 13).

    Raises:
        TuningError: the lengths differ, or fewer than three pairs.
    """
    from scipy.stats import rankdata

    first, second = np.asarray(a, float), np.asarray(b, float)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 3:
        raise TuningError(
            f"a rank correlation needs two scores of each of at least three settings, "
            f"got shapes {first.shape} and {second.shape}."
        )

    def correlation(rows: np.ndarray) -> np.ndarray:
        x, y = (rankdata(v[rows], axis=-1) for v in (first, second))
        x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
        with np.errstate(invalid="ignore"):  # all drawn alike: no correlation to speak of
            return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))

    draws = np.random.default_rng(seed).integers(0, len(a), (resamples, len(a)))
    low, high = np.nanquantile(correlation(draws), [0.025, 0.975])
    return float(correlation(np.arange(len(a)))), float(low), float(high)
