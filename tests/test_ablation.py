import csv
from pathlib import Path

import pytest
import torch

from srlab.data.datasets import find
from srlab.data.degradation import crop_to_multiple
from srlab.data.images import read_image
from srlab.evaluation import protocol
from srlab.models import zoo
from srlab.models.generators import fold
from srlab.studies import ablation
from srlab.studies.ablation import (
    ROWS,
    SCALES,
    AblationError,
    build_critic,
    build_generator,
    settings,
)


def test_generators_of_a_comparison_have_equal_parameters():
    compared = [n for n, r in ROWS.items() if r.start is None and r.n_blocks == 5]
    for features in (SCALES["lite"].features, 64):
        sizes = [
            sum(p.numel() for p in build_generator(ROWS[name], features).parameters())
            for name in compared
        ]
        assert len(sizes) >= 6
        assert max(sizes) / min(sizes) < 1.06


def test_rows_that_are_compared_train_for_equally_many_steps_at_equal_rates():
    scale = SCALES["full"]
    games = [settings(row, scale) for row in ROWS.values() if row.start]
    assert len({(c.steps, c.generator_lr, c.batch_size, c.content) for c in games}) == 1
    fresh = [settings(r, scale) for r in ROWS.values() if r.start is None and r.lengths == 1]
    assert len({(c.steps, c.lr, c.batch_size) for c in fresh}) == 1


@pytest.mark.parametrize("name", [n for n, r in ROWS.items() if r.game == "wasserstein"])
def test_critics_under_a_gradient_penalty_judge_pictures_one_by_one(name):
    torch.manual_seed(0)
    scale = SCALES["lite"]
    critic = build_critic(ROWS[name], scale).train()
    pictures = torch.rand(3, 3, 64, 64)
    alone = torch.cat([critic(p[None]) for p in pictures])
    assert torch.allclose(critic(pictures), alone, atol=1e-4)


@pytest.fixture
def tiny(monkeypatch):
    scale = ablation.Scale(
        features=8, critic_features=8, batch_size=2, patch_size=8, steps=2, game_steps=3,
        critic_steps=1, seeds=1, game_start="own", test_sets=("photos-valid",),
    )  # fmt: skip
    monkeypatch.setitem(SCALES, "tiny", scale)
    return scale


def test_a_stopped_ablation_goes_on_and_its_scores_are_the_protocols(tiny, tmp_path):
    told, trainings = [], tmp_path / "trainings"
    options = {"trainings": trainings, "device": "cpu", "say": told.append}
    rows = ["srresnet", "wasserstein"]
    ablation.run(tmp_path, "tiny", rows[:1], **options)
    before = (tmp_path / "runs.csv").read_text()
    # What a killed run leaves: pictures without a line in runs.csv.
    with open(tmp_path / "scores.csv", "a", newline="") as file:
        csv.writer(file).writerow(["wasserstein", 0, "photos-valid", "coffee", 1, 1, "", 1])
    ablation.run(tmp_path, "tiny", rows, **options)
    assert (tmp_path / "runs.csv").read_text().startswith(before)
    assert [line["row"] for line in ablation.read(tmp_path / "runs.csv")] == rows
    assert len(told) == 2
    ablation.run(tmp_path, "tiny", rows, **options)
    assert "nothing to do" in told[-1]

    scores = ablation.read(tmp_path / "scores.csv")
    assert len(scores) == 2 * len(find("photos-valid"))
    generator = zoo.load(trainings / "wasserstein-0" / "generator.safetensors")
    for score in protocol.evaluate(generator, find("photos-valid")):
        (line,) = [s for s in scores if (s["row"], s["image"]) == ("wasserstein", score.image)]
        assert float(line["psnr"]) == pytest.approx(score.psnr, abs=1e-3)
        assert float(line["ssim"]) == pytest.approx(score.ssim, abs=1e-4)


def test_unknown_rows_profiles_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(AblationError, match="no profile 'huge'"):
        ablation.run(tmp_path, "huge")
    with pytest.raises(AblationError, match="no row 'wgan'"):
        ablation.run(tmp_path, "smoke", ["wgan"])
    (tmp_path / "runs.csv").write_text("something,else\n1,2\n")
    with pytest.raises(AblationError, match=r"runs\.csv was not written by"):
        ablation.run(tmp_path, "smoke")


def test_consistency_of_the_original_is_limited_by_the_rounding_of_lr():
    hr = crop_to_multiple(read_image(find("photos-valid")[0]), 4)
    from srlab.data.degradation import downsample, resize

    lr = downsample(hr)
    # Rounding to steps of 1/255 has the variance 1/12 of a step.
    assert protocol.consistency(hr, lr) == pytest.approx(
        float(10 * torch.tensor(12 * 255.0**2).log10()), abs=0.3
    )
    assert protocol.consistency((hr + 0.1).clamp(0, 1), lr) < 21
    assert protocol.consistency(hr, resize(hr, 1 / 4).clamp(0, 1)) > 90


def test_the_command_names_its_files_and_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    import sys

    from srlab import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "ROWS", {})
    monkeypatch.setattr(sys, "argv", ["srlab", "ablate", "--profile", "smoke"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert "runs.csv" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["srlab", "ablate", "--row", "wgan"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("srlab: no row 'wgan'")


def test_the_stored_results_were_made_by_the_rows_as_they_are_now():
    stored = Path(__file__).parents[1] / "notebooks" / "results" / "ablation-lite"
    scale = SCALES["lite"]
    runs = ablation.read(stored / "runs.csv", ablation.RUN_COLUMNS)
    scores = ablation.read(stored / "scores.csv", ablation.SCORE_COLUMNS)
    assert runs
    for line in runs:
        row = ROWS[line["row"]]
        assert int(line["steps"]) == settings(row, scale).steps
        # Games start from the released model.
        generator = (
            fold(zoo.load("srresnet")) if row.start else build_generator(row, scale.features)
        )
        assert int(line["parameters"]) == sum(p.numel() for p in generator.parameters())
        pictures = [s for s in scores if (s["row"], s["seed"]) == (line["row"], line["seed"])]
        assert pictures or line["note"].startswith("diverged")
        assert len({(s["set"], s["image"]) for s in pictures}) == len(pictures)
    assert len({(line["row"], line["seed"]) for line in runs}) == len(runs)
