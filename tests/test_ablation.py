import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from srlab.data.datasets import find
from srlab.data.degradation import crop_to_multiple
from srlab.data.images import read_image
from srlab.evaluation import protocol, scores
from srlab.models import zoo
from srlab.models.interpolation import interpolate
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
    assert "wdrn-weighted-concat" in compared
    for features in (SCALES["lite"].features, 64):
        sizes = [
            sum(p.numel() for p in build_generator(ROWS[name], features).parameters())
            for name in compared
        ]
        assert len(sizes) >= 6
        assert max(sizes) / min(sizes) < 1.06


def test_rows_that_are_compared_train_for_equally_many_steps_at_equal_rates():
    scale = SCALES["full"]
    games = [settings(row, scale) for row in ROWS.values() if row.start and row.rate == 1]
    assert len({(c.steps, c.generator_lr, c.batch_size, c.content) for c in games}) == 1
    fresh = [settings(r, scale) for r in ROWS.values() if r.start is None and r.length == 1]
    assert len({(c.steps, c.lr, c.batch_size) for c in fresh}) == 1


def test_trainings_of_a_seed_begin_alike_where_their_shapes_agree():
    """So that a difference is the treatment's: the same head, and a tail of zeros."""
    heads = []
    for name in ("srresnet", "2-blocks", "16-blocks", "wdrn-concat", "wdrn-weighted-concat"):
        torch.manual_seed(3)
        network = build_generator(ROWS[name], 16)
        heads.append(network.head[0].weight)
        assert not network.tail.weight.any()
    assert all(torch.equal(head, heads[0]) for head in heads)


def test_the_plan_is_seed_by_seed_and_some_rows_have_fewer():
    scale = ablation.Scale(first_seed=7, seeds=3, few={"bce": 2})
    assert ablation.plan(scale, ["mse", "bce"]) == [
        ("mse", 7), ("bce", 7), ("mse", 8), ("bce", 8), ("mse", 9)
    ]  # fmt: skip
    costly = ablation.plan(SCALES["lite"], ["16-blocks"])
    assert costly == [("16-blocks", seed) for seed in range(10, 15)]


def test_no_two_studies_share_a_seed():
    names = ("first", "lite", "again", "wide", "wider", "long")
    used = [seed for n in names for seed in {s for _, s in ablation.plan(SCALES[n], ROWS)}]
    assert len(used) == len(set(used))


@pytest.mark.parametrize("name", [n for n, r in ROWS.items() if r.game == "wasserstein"])
def test_critics_under_a_gradient_penalty_judge_pictures_one_by_one(name):
    torch.manual_seed(0)
    scale = replace(SCALES["lite"], vgg="vgg19-slim")  # VGG16 is not on every machine
    critic = build_critic(ROWS[name], scale).train()
    pictures = torch.rand(3, 3, 64, 64)
    alone = torch.cat([critic(p[None]) for p in pictures])
    assert torch.allclose(critic(pictures), alone, atol=1e-4)


@pytest.fixture
def tiny(monkeypatch):
    scale = replace(SCALES["smoke"], game_steps=3, shares=(0.0, 0.5, 1.0))
    monkeypatch.setitem(SCALES, "tiny", scale)
    return scale


def test_a_stopped_ablation_goes_on_and_its_scores_are_the_protocols(tiny, tmp_path):
    told, trainings = [], tmp_path / "trainings"
    options = {"trainings": trainings, "device": "cpu", "log": told.append}
    rows = ["srresnet", "wasserstein"]
    ablation.run(tmp_path, "tiny", rows[:1], **options)
    before = (tmp_path / "runs.csv").read_text()
    # What a killed run leaves: pictures without a line in runs.csv.
    with open(tmp_path / "scores.csv", "a", newline="") as file:
        csv.writer(file).writerow(["wasserstein", 0, 1, "photos-valid", "coffee", 1, ""])
    ablation.run(tmp_path, "tiny", rows, **options)
    assert (tmp_path / "runs.csv").read_text().startswith(before)
    assert [line["row"] for line in ablation.read(tmp_path / "runs.csv")] == rows
    assert len(told) == 2
    ablation.run(tmp_path, "tiny", rows, **options)
    assert "nothing to do" in told[-1]

    lines = ablation.read(tmp_path / "scores.csv")
    pictures = find("photos-valid")
    assert len(lines) == 4 * len(pictures)  # the game at three shares of its way
    start, end = (
        zoo.load(trainings / name / "generator.safetensors")
        for name in ("srresnet-0", "wasserstein-0")
    )
    for row, share, generator in [
        ("srresnet", "1.0", start),
        ("wasserstein", "0.0", start),
        ("wasserstein", "0.5", interpolate(start, end, 0.5)),
        ("wasserstein", "1.0", end),
    ]:
        found = {s["image"]: s for s in lines if (s["row"], s["share"]) == (row, share)}
        assert len(found) == len(pictures)
        for score in protocol.evaluate(generator, pictures):
            assert float(found[score.image]["psnr"]) == pytest.approx(score.psnr, abs=1e-3)


def test_games_are_judged_by_the_distance_that_scores_measures(tiny, tmp_path):
    """PSNR alone for what starts from scratch; the judge sees whole pictures, at 8 bit."""

    def judge(sr, hr):
        return (sr - hr).abs().amax()

    lab = ablation._Lab(tiny, tmp_path, "cpu")
    lab.lpips = judge
    generator, _ = lab.train("more-l1", 0)
    lines = [li for li in lab.score(generator, ROWS["more-l1"], 0) if li["share"] == 1]
    for line, figure in zip(
        lines, scores.measure(generator, find("photos-valid"), judge), strict=True
    ):
        assert (line["image"], line["lpips"]) == (figure.image, round(figure.distance, 5))
        assert line["psnr"] == pytest.approx(figure.psnr, abs=1e-3)
    assert all(li["lpips"] == "" for li in lab.score(generator, ROWS["srresnet"], 0))


def test_near_minus_one_is_judged_step_by_step(tmp_path):
    """A loss that swings from -2 to 0 has the mean -1 and is never there."""
    header = "step,seconds,critic_loss,val_psnr\n"
    for losses, want in (
        ([5, 5, 5, 5, -2, 0, -2, 0], 0.0),
        ([5, 5, 5, 5, -1, -1.2, -0.8, 9], 0.75),
    ):
        rows = [f"{i + 1},0,{loss},20\n" for i, loss in enumerate(losses)]
        (tmp_path / "log.csv").write_text(header + "".join(rows))
        told = ablation._told_by_log(tmp_path / "log.csv", ROWS["wasserstein"])
        assert told["near"] == want
        assert told["swing"] == 0


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
    nothing = replace(SCALES["smoke"], rows=())
    monkeypatch.setitem(SCALES, "smoke", nothing)
    monkeypatch.setattr(sys, "argv", ["srlab", "ablate", "--profile", "smoke"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    told = capsys.readouterr().out
    assert "runs.csv" in told
    assert "Dense blocks help: inconclusive" in told  # and judges, again and again
    monkeypatch.setattr(sys, "argv", ["srlab", "ablate", "--row", "wgan"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("srlab: no row 'wgan'")


STORED = sorted((Path(__file__).parents[1] / "notebooks" / "results").glob("ablation-*"))


def test_both_studies_are_stored():
    assert {"ablation-lite", "ablation-first"} <= {folder.name for folder in STORED}


@pytest.mark.parametrize("stored", STORED, ids=lambda folder: folder.name)
def test_the_stored_results_were_made_by_the_rows_as_they_are_now(stored):
    profile = stored.name.removeprefix("ablation-")
    scale = SCALES[profile]
    runs = ablation.read(stored / "runs.csv", ablation.RUN_COLUMNS)
    lines = ablation.read(stored / "scores.csv", ablation.SCORE_COLUMNS)
    assert runs
    planned = ablation.plan(scale, scale.rows)
    for line in runs:
        row = ROWS[line["row"]]
        assert (line["row"], int(line["seed"])) in planned
        assert int(line["steps"]) == settings(row, scale).steps
        generator = build_generator(row, scale.features)
        assert int(line["parameters"]) == sum(p.numel() for p in generator.parameters())
        pictures = [s for s in lines if (s["row"], s["seed"]) == (line["row"], line["seed"])]
        assert pictures or line["note"].startswith("diverged")
        assert len({(s["share"], s["set"], s["image"]) for s in pictures}) == len(pictures)
        shares = {float(s["share"]) for s in pictures}
        assert not pictures or shares == (set(scale.shares) if row.start else {1.0})
    assert len({(line["row"], line["seed"]) for line in runs}) == len(runs)
