import csv

import pytest
import torch

from srlab.studies import ablation, claims
from srlab.studies.ablation import ROWS, RUN_COLUMNS, SCORE_COLUMNS, AblationError
from srlab.studies.claims import CLAIMS, Claim, judge, paired


def write(path, columns, lines):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)


@pytest.fixture
def results(tmp_path):
    """Rows a and b: b is better by 1 dB, give or take, on each of four pictures and seeds."""
    runs, scores = [], []
    for seed in range(4):
        for row, gain in (("a", 0.0), ("b", 1.0)):
            runs.append({"row": row, "seed": seed, "swing": 0.5 + gain + 0.01 * seed})
            for i in range(4):
                psnr = 20 + 5 * i + 0.3 * seed + gain + 0.01 * (seed + i) * gain
                scores.append(
                    {"row": row, "seed": seed, "set": "s", "image": f"p{i}", "psnr": psnr}
                )
    write(tmp_path / "runs.csv", RUN_COLUMNS, runs)
    write(tmp_path / "scores.csv", SCORE_COLUMNS, scores)
    return tmp_path


def test_an_effect_is_that_of_the_same_seed_on_the_same_picture(results):
    lines = ablation.read(results / "scores.csv")
    effect = paired(lines, "b", "a", "psnr")
    want = 1 + 0.01 * (torch.arange(4.0)[:, None] + torch.arange(4.0))
    assert torch.allclose(effect, want.double(), atol=1e-9)
    # A picture that one training lacks is left out for all, so that all are means of the same.
    fewer = [li for li in lines if (li["row"], li["seed"], li["image"]) != ("a", "2", "p1")]
    assert paired(fewer, "b", "a", "psnr").shape == (4, 3)
    assert paired(lines, "b", "c", "psnr").numel() == 0


def test_claims_get_the_verdict_that_the_files_support(results):
    cases = {
        Claim("better", "b", "a", "psnr", above=0): "holds",
        Claim("worse", "b", "a", "psnr", below=0): "is refuted",
        Claim("better by just that", "b", "a", "psnr", above=1.03): "inconclusive",
        Claim("unrest", "b", "a", "swing", below=0): "is refuted",
        Claim("a value", "a", None, "swing", above=0.4, below=0.6): "holds",
        Claim("not trained", "c", "a", "psnr", above=0): "inconclusive",
        Claim("not measured", "b", "a", "lpips", below=0): "inconclusive",
    }
    judged = judge(results, list(cases))
    assert [j.verdict for j in judged] == list(cases.values())
    assert judged[0].interval.estimate == pytest.approx(1.03)
    assert (judged[0].interval.seeds, judged[0].interval.images) == (4, 4)
    assert judged[-1].interval is None


def test_pictures_of_an_unfinished_training_do_not_count(results):
    runs = [li for li in ablation.read(results / "runs.csv") if li["seed"] in "01"]
    write(results / "runs.csv", RUN_COLUMNS, runs)
    (judged,) = judge(results, [Claim("better", "b", "a", "psnr", above=0)])
    assert judged.interval.seeds == 2
    assert judged.verdict == "inconclusive"  # too few seeds, whatever the interval says


def test_no_files_tell_nothing_and_foreign_ones_are_refused(tmp_path):
    assert {j.verdict for j in judge(tmp_path)} == {"inconclusive"}
    (tmp_path / "runs.csv").write_text("image,psnr\nx,1\n")
    with pytest.raises(AblationError, match=r"runs\.csv"):
        judge(tmp_path)


def test_every_claim_names_rows_and_columns_that_the_ablation_has():
    for claim in CLAIMS:
        assert claim.treatment in ROWS
        assert claim.control is None or claim.control in ROWS
        assert claim.metric in RUN_COLUMNS + SCORE_COLUMNS
        assert claims.Claim.experiment.fget(claim).startswith(claim.metric)
