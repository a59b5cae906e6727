import csv
import shutil
from pathlib import Path

import pytest
import torch

from srlab.evaluation.statistics import NO_DIFFERENCE, Interval, Spread, decide, simulate, spread
from srlab.studies import ablation, claims
from srlab.studies.ablation import ROWS, RUN_COLUMNS, SCORE_COLUMNS, AblationError
from srlab.studies.claims import CLAIMS, Claim, at_equal_cost, judge, paired

RESULTS = Path(__file__).parents[1] / "notebooks" / "results"


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
                line = {"row": row, "seed": seed, "set": "s", "image": f"p{i}", "psnr": psnr}
                scores += [line | {"share": 0.0, "psnr": 5}, line | {"share": 1.0}]
    write(tmp_path / "runs.csv", RUN_COLUMNS, runs)
    write(tmp_path / "scores.csv", SCORE_COLUMNS, scores)
    return tmp_path


def test_an_effect_is_that_of_the_same_seed_on_the_same_picture(results):
    lines = [li for li in ablation.read(results / "scores.csv") if li["share"] == "1.0"]
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
        Claim("equal", "a", "a", "psnr", above=0): NO_DIFFERENCE,
        Claim("no worse than a tenth", "a", "a", "psnr", above=-0.1): "holds",
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


def test_a_game_is_read_where_it_has_cost_as_much_as_the_others():
    def game(row, psnr, lpips):
        shares = torch.linspace(0, 1, len(psnr)).tolist()
        return [
            {"row": row, "seed": "0", "share": str(share), "set": "s", "image": image,
             "psnr": str(p + gap), "lpips": str(distance + gap)}
            for share, p, distance in zip(shares, psnr, lpips, strict=True)
            for image, gap in (("x", 0.0), ("y", 1.0))
        ]  # fmt: skip

    lines = [
        *game("deep", [30.0, 29.9, 29.5, 28.0], [0.4, 0.36, 0.32, 0.1]),
        *game("up first", [30.0, 30.2, 29.6], [0.4, 0.38, 0.26]),
        *game("short", [30.0, 30.1, 29.95], [0.4, 0.3, 0.2]),
    ]
    found = {(li["row"], li["image"]): li for li in at_equal_cost(lines, 0.2)}
    assert len(found) == 6
    # deep: a quarter of the second third; up first: two thirds of the second half.
    for row, share, psnr, lpips in [
        ("deep", 1 / 3 + 1 / 12, 29.8, 0.35),
        ("up first", 5 / 6, 29.8, 0.30),
        ("short", 1.0, 29.95, 0.2),
    ]:
        for image, gap in (("x", 0), ("y", 1)):
            line = found[row, image]
            assert float(line["share"]) == pytest.approx(share, abs=1e-6)
            assert float(line["psnr"]) == pytest.approx(psnr + gap)
            assert float(line["lpips"]) == pytest.approx(lpips + gap)


# Spreads of several kinds, in units of the margin. The first three are about as large as those of
# the study; the last is far beyond what it can resolve.
NOISES = [Spread(0.3, 0.3, 0.3), Spread(0.1, 0.8, 0.8), Spread(0.4, 0, 0), Spread(3, 3, 3)]


@pytest.mark.parametrize("images", [17, 64])
def test_without_an_effect_the_whole_study_errs_in_at_most_five_per_cent(images):
    """A wrong verdict is one that sees a difference: in any of the claims, in a study of nulls."""
    level, seeds = claims.level(), ablation.SCALES["lite"].seeds
    wrong = torch.zeros(4000, dtype=torch.bool)
    generator = torch.Generator().manual_seed(images)
    for i in range(len(CLAIMS)):
        noise = NOISES[i % len(NOISES)]
        ends = simulate(noise, seeds, images, level=level, n=4000, generator=generator)
        low, high = ends
        wrong |= ((low > 0) | (high < 0)) & ~((low > -1) & (high < 1))
        for a, b in zip(low[:20].tolist(), high[:20].tolist(), strict=True):  # by the rule itself
            verdict = decide(Interval((a + b) / 2, a, b, seeds, images), above=0, margin=1)
            seen = verdict in ("holds", "is refuted")
            assert seen == ((a > 0 or b < 0) and not (a > -1 and b < 1))
    assert float(wrong.double().mean()) <= 0.05


def test_at_the_chosen_seeds_the_rule_finds_the_margin_four_times_out_of_five():
    """With the scatter that three seeds of one network had at the study's length: recipe.csv."""
    scale, variant = ablation.SCALES["lite"], "skip, detail, Muon"
    with open(RESULTS / "recipe.csv", newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["variant"] == variant and r["bsd100"]]
    assert {int(r["step"]) for r in rows} == {scale.steps}
    of_seed = float(torch.tensor([float(r["bsd100"]) for r in rows]).std())
    noise, margin = Spread(2**0.5 * of_seed, 0.03, 0.03), claims.MARGINS["psnr"]
    at = {"level": claims.level(), "n": 4000}
    low, high = simulate(noise, scale.seeds, 64, **at)
    equal = (low > -margin) & (high < margin)
    assert float(equal.double().mean()) >= 0.8  # "no difference that matters", and none there
    low, high = simulate(noise, scale.seeds, 64, effect=margin, **at)
    seen = (low > 0) & (high >= margin)
    assert float(seen.double().mean()) >= 0.8  # "holds", and the effect is the margin


def test_every_claim_names_rows_and_columns_that_the_ablation_has():
    for claim in CLAIMS:
        assert claim.treatment in ROWS
        assert claim.control is None or claim.control in ROWS
        assert claim.metric in RUN_COLUMNS + SCORE_COLUMNS
        assert claims.Claim.experiment.fget(claim).startswith(claim.metric)


@pytest.mark.parametrize("profile", ["lite", "again", "wide", "wider", "long"])
def test_a_study_trains_what_its_claims_need(profile):
    scale = ablation.SCALES[profile]
    for claim in claims.asked(profile):
        for name in filter(None, (claim.treatment, claim.control)):
            row = ROWS[name]
            assert {name, row.start or name} <= set(scale.rows)
            started = scale.few.get(row.start, scale.seeds)  # a game begins from its seed's network
            assert scale.few.get(name, scale.seeds) <= started


def test_the_second_study_would_decide_its_claims_if_the_first_was_right():
    """Effects and spreads of "lite", seeds of "again": decided four times out of five."""
    scale, asked = ablation.SCALES["again"], claims.asked("again")
    for claim, values in claims.measured(RESULTS / "ablation-lite", asked).items():
        rows = [claim.treatment, claim.control or claim.treatment]
        seeds = min(scale.few.get(row, scale.seeds) for row in rows)
        single = values.shape[1] == 1
        noise = Spread(float(values.std()), 0.0, 0.0) if single else spread(values)
        ends = simulate(
            noise, seeds, values.shape[1], level=claims.level(asked), effect=float(values.mean())
        )
        verdicts = [
            decide(Interval(0, low, high, seeds, 2), claim.above, claim.below, margin=claim.margin)
            for low, high in zip(*(end.tolist() for end in ends), strict=True)
        ]
        decided = sum(verdict != "inconclusive" for verdict in verdicts) / len(verdicts)
        assert decided >= 0.8, claim.text


def test_a_second_study_speaks_only_when_all_of_its_trainings_are_done(tmp_path):
    for name in ("ablation-lite", "ablation-again"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    first, second = judge(tmp_path / "ablation-lite"), claims.asked("again")
    found = claims.verdicts(tmp_path)
    assert [j.claim for j in found] == list(CLAIMS)
    assert [j for j in found if j.claim not in second] == [
        j for j in first if j.claim not in second
    ]
    assert [j for j in found if j.claim in second] == judge(tmp_path / "ablation-again", second)
    runs = tmp_path / "ablation-again" / "runs.csv"
    runs.write_text("".join(runs.read_text().splitlines(keepends=True)[:-1]))
    assert claims.verdicts(tmp_path) == first


def test_a_trial_says_how_many_seeds_a_claim_needs(tmp_path):
    """Noisier between seeds: more of them. Noisier between pictures: none would do."""
    torch.manual_seed(0)
    runs, scores = [], []
    noise = {"quiet": (0.005, 0.0), "loud": (0.03, 0.0), "pictures": (0.0, 0.5)}
    for seed in range(4):
        for row in ("base", *noise):
            runs.append({"row": row, "seed": seed})
            of_seed, of_picture = noise.get(row, (0.0, 0.0))
            shift = of_seed * (-1, 1, -1, 1)[seed]
            for i in range(10):
                psnr = 20 + shift + of_picture * (-1) ** i
                line = {"row": row, "seed": seed, "share": 1.0, "set": "s", "image": i}
                scores.append(line | {"psnr": psnr})
    write(tmp_path / "runs.csv", RUN_COLUMNS, runs)
    write(tmp_path / "scores.csv", SCORE_COLUMNS, scores)
    asked = [Claim(row, row, "base", "psnr", above=0) for row in noise]
    table = {line["claim"]: line for line in claims.power_table(tmp_path, asked)}
    assert table["quiet"]["seeds"] == 3 < table["loud"]["seeds"]
    assert table["pictures"]["seeds"] == ""
    assert table["loud"]["between_seeds"] == pytest.approx(0.03 * (4 / 3) ** 0.5)
    assert table["pictures"]["between_pictures"] == pytest.approx(0.5 * (10 / 9) ** 0.5)


def test_table_figure_and_report_tell_the_same(results):
    asked = [
        Claim("more", "b", "a", "psnr", above=0),
        Claim("less unrest", "b", "a", "swing", below=0),
        Claim("not trained", "c", "a", "psnr", above=0),
    ]
    judged = judge(results, asked)
    more = judged[0].interval
    assert claims.in_margins(judged) == {
        "more: holds": pytest.approx((more.estimate / 0.05, more.low / 0.05, more.high / 0.05)),
        "less unrest: is refuted": pytest.approx((-20, -20, -20)),
    }
    assert list(claims.in_margins(judged)) == ["more: holds", "less unrest: is refuted"]
    assert "| more | holds | +1.03 dB (" in claims.table(judged)
    assert "| not trained | inconclusive | not measured |  |" in claims.table(judged)
    told = claims.report(judged)
    assert "less unrest: is refuted\n  swing: b - a < 0\n  +1.000" in told
    assert told.endswith("3 claims: 1 holds, 1 is refuted, 1 inconclusive")
