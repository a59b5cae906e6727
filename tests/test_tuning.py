"""srlab.studies.tuning: against functions whose optimum is known; games on tiny networks."""

import time

import numpy as np
import optuna
import pytest
import torch
from processes import start
from scipy.stats import rankdata, spearmanr

from srlab.data.bank import PatchBank
from srlab.data.datasets import find
from srlab.models.generators import WDRN
from srlab.studies.tuning import (
    Judge,
    TuningError,
    check_range,
    importance,
    play,
    rank_correlation,
    search,
    suggest,
)
from srlab.training.monitor import TrainingDiverged

RANGES = {"x": {"low": 0.0, "high": 4.0}, "n": {"low": 1, "high": 3}, "kind": ["a", "b"]}


def bowl(setting, folder, report):
    return (setting["x"] - 2) ** 2 + setting["n"] + (setting["kind"] == "b")


def test_a_search_finds_the_lowest_point_within_its_ranges(tmp_path):
    study = search(bowl, RANGES, tmp_path, trials=40, direction="minimize")
    assert len(study.trials) == 40
    assert study.best_params["n"] == 1
    assert study.best_params["kind"] == "a"
    assert abs(study.best_params["x"] - 2) < 0.3
    assert {type(t.params["n"]) for t in study.trials} == {int}


def test_a_killed_search_goes_on_where_an_unbroken_one_would_have(tmp_path):
    unbroken = search(bowl, RANGES, tmp_path / "a", trials=8, direction="minimize")

    def killed(setting, folder, report):
        if folder.name == "trial-0006":
            raise KeyboardInterrupt
        return bowl(setting, folder, report)

    with pytest.raises(KeyboardInterrupt):
        search(killed, RANGES, tmp_path / "b", trials=8, direction="minimize")
    study = search(bowl, RANGES, tmp_path / "b", trials=8, direction="minimize")
    values = [trial.value for trial in study.trials]
    assert values[:6] == [trial.value for trial in unbroken.trials[:6]]
    assert values[6] is None
    assert len([value for value in values if value is not None]) == 8
    again = search(bowl, RANGES, tmp_path / "b", trials=8, direction="minimize")
    assert len(again.trials) == len(values)  # enough were done
    with pytest.raises(TuningError, match=r"holds a study with .* other ranges"):
        search(bowl, {"x": RANGES["x"]}, tmp_path / "b", trials=8)


def search_together(folder, name):
    """What each of two processes does, once both are there."""

    def objective(setting, folder, report):
        time.sleep(0.2)
        return setting["x"]

    (folder / name).touch()
    while len(list(folder.glob("ready-*"))) < 2:
        time.sleep(0.01)
    search(objective, {"x": RANGES["x"]}, folder / "study", trials=12)


def test_two_processes_share_a_search_and_try_nothing_twice(tmp_path):
    both = [
        start(search_together, tmp_path, f"ready-{i}", log=tmp_path / f"said-{i}") for i in range(2)
    ]
    for i, process in enumerate(both):
        process.join()
        assert process.exitcode == 0, (tmp_path / f"said-{i}").read_text()
    study = search(bowl, {"x": RANGES["x"]}, tmp_path / "study", trials=12)
    tried = [trial.params["x"] for trial in study.trials if trial.value is not None]
    assert 12 <= len(tried) <= 13  # both may have been in their last trial
    assert len(set(tried)) == len(tried)


def test_what_lies_below_the_median_at_its_step_is_pruned(tmp_path):
    """Heights, reported twice; the rule recomputed with numpy."""

    def objective(setting, folder, report):
        report(1, setting["x"])
        report(2, setting["x"])
        return setting["x"]

    ranges = {"x": RANGES["x"]}
    study = search(objective, ranges, tmp_path, trials=15, startup=4)
    complete = []
    for trial in study.trials:
        x = trial.params["x"]
        should = len(complete) >= 4 and x < np.median(complete)
        assert (trial.state == optuna.trial.TrialState.PRUNED) == should
        complete += [] if should else [x]


def test_a_game_that_breaks_down_is_pruned_and_says_why(tmp_path):
    def objective(setting, folder, report):
        raise TrainingDiverged("loss is NaN")

    (trial,) = search(objective, RANGES, tmp_path, trials=1).trials
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.user_attrs["diverged"] == "loss is NaN"


@pytest.mark.parametrize(
    "allowed",
    [3, "ab", [], {"low": 1}, {"low": 2, "high": 1}, {"low": 1, "high": 2, "step": 1},
     {"low": "1e-5", "high": 1.0}, {"low": True, "high": 2},
     {"low": 0.0, "high": 1.0, "log": True}],
)  # fmt: skip
def test_what_is_no_range(allowed):
    with pytest.raises(TuningError, match="rate"):
        check_range("rate", allowed)


def test_importance_belongs_to_what_decides():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    ranges = {"a": {"low": 1e-4, "high": 1.0, "log": True}, "b": {"low": 0.0, "high": 1.0},
              "c": [1, 2, 4]}  # fmt: skip
    settings = [suggest(study.ask(), ranges) for _ in range(200)]
    shares = importance(settings, [np.log10(s["a"]) for s in settings], ranges)
    assert list(shares) == ["a", "b", "c"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["a"] > 0.8


def test_rank_correlation_is_spearmans_with_a_bootstrap_interval():
    rng = np.random.default_rng(1)
    a = rng.normal(size=40)
    b = a + rng.normal(size=40)
    b[:4] = b[0]  # ties
    rho, low, high = rank_correlation(a, b)
    assert rho == pytest.approx(spearmanr(a, b).statistic)
    draws = rng.integers(0, 40, (1000, 40))
    reference = [spearmanr(a[rows], b[rows]).statistic for rows in draws]
    assert [low, high] == pytest.approx(np.quantile(reference, [0.025, 0.975]), abs=0.05)
    assert rank_correlation(a, rankdata(np.exp(a))) == pytest.approx((1, 1, 1))
    with pytest.raises(TuningError, match="at least three"):
        rank_correlation([1, 2], [1, 2])


@pytest.fixture(scope="module")
def game():
    torch.manual_seed(0)
    generator = WDRN(n_blocks=1, n_layers=1, n_features=8, growth=8)
    judge = Judge.of(find("photos-valid")[:1], size=64)
    bank = PatchBank.from_files(find("photos")[:1])
    return {"generator": generator, "bank": bank, "judge": judge, "steps": 4, "every": 2}


def test_a_game_is_the_same_again_and_leaves_its_start_alone(game, tmp_path):
    before = {n: t.clone() for n, t in game["generator"].state_dict().items()}
    told = []
    setting = {"lr": 1e-3, "batch_size": 2, "trunk_lr": 1e-5}
    first = play(setting, tmp_path / "a", **game, report=lambda *row: told.append(row))
    assert [step for step, _ in told] == [2, 4]
    assert told[-1][1] == first
    apart = {"generator_lr": 1e-3, "critic_lr": 1e-3, "batch_size": 2}
    assert play(apart, tmp_path / "b", **game) == first  # 1e-5 is the trunk's default
    assert play(apart, tmp_path / "c", **game, seed=1) != first
    assert all(torch.equal(before[n], t) for n, t in game["generator"].state_dict().items())


def test_a_setting_may_name_a_norm_but_nothing_unknown(game, tmp_path):
    assert play({"norm": "group", "batch_size": 1}, tmp_path / "a", **game)["psnr"] > 0
    with pytest.raises(TuningError, match="unknown name 'learning_rate' in a setting"):
        play({"learning_rate": 1e-3}, tmp_path / "b", **game)


def test_a_judge_finds_nothing_wrong_with_a_perfect_picture(game):
    judge = game["judge"]
    answers = iter([hr for _, hr in judge.pairs])

    class Perfect(torch.nn.Module):
        scale, receptive_radius = 4, 0

        def forward(self, lr):
            return next(answers)[None]

    assert all(hr.shape == (3, 64, 64) for _, hr in judge.pairs)
    scores = judge(Perfect())
    assert scores["features"] == 0
    assert scores["psnr"] == float("inf")
