"""What README and the model cards state is what the files beside them hold."""

import csv
import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import pytest

from srlab.data.download import sha256
from srlab.evaluation.statistics import crossed
from srlab.models import zoo
from srlab.studies import claims
from srlab.studies.ablation import SCALES
from srlab.studies.claims import COST, MARGINS
from srlab.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "notebooks" / "results"
SETS = ("set5", "set14", "bsd100")


def load_tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load_tables()


def words(page):
    """A page's text on one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def read(name):
    with open(RESULTS / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def noted(name):
    """Set -> (PSNR, SSIM) that `srlab export` measured on the released file."""
    notes = zoo.read_notes(zoo.released()[name])
    return {s: tuple(map(float, notes[s].split(" / "))) for s in SETS if s in notes}


def measured():
    """(model, set) -> row of notebooks/results/models.csv."""
    return {(row["model"], row["set"]): row for row in read("models.csv")}


def section(name):
    """A model's card."""
    cards = (ROOT / "srlab" / "models" / "weights" / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(name)}$(.*?)(?=^## |\Z)", cards, re.M | re.S)
    assert found, f"srlab/models/weights/README.md has no section {name}"
    return found.group(1)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert text == tables.renewed(text), "run `make tables`"


def test_only_what_stands_between_the_marks_changes(monkeypatch):
    monkeypatch.setitem(tables.TABLES, "count", lambda: "two\n\n| a |")
    page = "one\n<!-- table: count -->\n{}<!-- end -->\n5 <!-- end -->\n"
    assert tables.renewed(page.format("six\n")) == page.format("two\n\n| a |\n")
    assert tables.renewed(page.format("")) == page.format("two\n\n| a |\n")
    with pytest.raises(KeyError, match="counts"):
        tables.renewed(page.replace("count", "counts"))


def test_a_cell_shows_what_was_measured_and_a_dash_for_what_was_not():
    rows = {
        ("theirs", "set5"): {"psnr": "31.996", "ssim": "0.89", "lpips_alex": "0.1784"},
        ("theirs", "set14"): {"psnr": "28", "ssim": "0.7", "lpips_alex": ""},
    }
    assert tables.figures("theirs", rows) == [
        "32.00 / 0.8900 / 0.178",
        "28.00 / 0.7000 / -",
        "-",
    ]


def test_the_files_hold_measurements():
    assert zoo.released()
    for name in zoo.released():
        assert "set5" in noted(name), f"{name} was released without its measured figures"


@pytest.mark.parametrize("name", sorted(zoo.released()))
def test_the_table_of_models_is_of_the_released_files(name):
    """The row's checksum is the file's, and its figures what the file says of itself."""
    rows = measured()
    figures = {s: pair for s, pair in noted(name).items() if (name, s) in rows}
    assert figures
    for image_set, (psnr, ssim) in figures.items():
        row = rows[name, image_set]
        assert sha256(zoo.released()[name]).startswith(row["checksum"])
        assert float(row["psnr"]) == pytest.approx(psnr, abs=0.006)
        assert float(row["ssim"]) == pytest.approx(ssim, abs=1e-4)


@pytest.mark.parametrize("name", sorted(n for n in zoo.released() if RECIPES[n].is_game))
def test_a_game_came_closer_than_where_it_started(name):
    rows = measured()
    for image_set in SETS:
        if (name, image_set) in rows:
            ended, started = (
                float(rows[model, image_set]["lpips_alex"])
                for model in (name, RECIPES[name].generator)
            )
            assert ended < started, image_set


@pytest.mark.parametrize("name", sorted(zoo.released()))
def test_a_model_card_states_its_size_and_steps(name):
    card = section(name)
    parameters = sum(p.numel() for p in zoo.load(name).parameters())
    steps = zoo.read_notes(zoo.released()[name])["steps"]
    assert f"{parameters:,} parameters" in card
    assert re.search(rf"\| steps \| .*\b{steps:,}\b", card)


def test_the_log_of_a_released_model_ends_with_its_last_step():
    from srlab.training.monitor import read_log

    for name, path in zoo.released().items():
        steps, _ = read_log(zoo.released_log(name))["val_psnr"]
        assert steps[-1] == zoo.read_notes(path)["steps"], name


def test_bicubics_stated_figures_are_measured_where_the_sets_are():
    from srlab.data.datasets import DATASETS, find, status
    from srlab.evaluation import protocol

    rows = measured()
    here = [s for s in ("set5", "set14") if status(s)[1] >= DATASETS[s].count]
    if not here:
        pytest.skip("neither Set5 nor Set14 is on this machine")
    for name in here:
        mean = protocol.mean(protocol.evaluate(zoo.load("bicubic"), find(name)))
        assert float(rows["bicubic", name]["psnr"]) == pytest.approx(mean.psnr, abs=6e-4)
        assert float(rows["bicubic", name]["ssim"]) == pytest.approx(mean.ssim, abs=6e-5)


def test_readme_states_what_upscaling_costs():
    text = words("README.md")
    cost = {float(line["megapixels"]): line for line in read("bench/upscale_cost.csv")}
    for megapixels in (6.55, 25):
        line = cost[megapixels]
        stated = rf"{megapixels} megapixels [^.]*?\b{float(line['cpu_seconds']):.0f} s "
        assert re.search(rf"{stated}[^.]*?{int(line['peak_memory_mb']):,} MB", text)


def test_readme_states_what_the_recipe_brings():
    means = {}
    for row in read("recipe.csv"):
        if row["set5"]:  # the last row of a training
            means.setdefault(row["variant"], []).append(float(row["set5"]))
    kinds = ("no skip", "skip", "skip, detail", "skip, detail, Muon")
    assert all(len(means[kind]) == 3 for kind in kinds)
    psnr = [sum(means[kind]) / 3 for kind in kinds]
    for gain in (b - a for a, b in pairwise(psnr)):
        assert f"{gain:.2f} dB" in words("README.md")


@pytest.mark.parametrize("page", ["README.md", "notebooks/results/ablation-lite/README.md"])
def test_the_study_is_described_with_its_own_figures(page):
    scale = SCALES["lite"]
    for figure in (
        f"{scale.steps:,} steps",
        f"{scale.features} (features|channels)",
        rf"games? (of )?{scale.game_steps} steps",
    ):
        assert re.search(figure, words(page)), figure


def test_readme_states_the_margins():
    for figure in (f"{MARGINS['psnr']} dB", f"{MARGINS['lpips']} LPIPS", f"cost {COST} dB"):
        assert figure in words("README.md")


def test_what_the_texture_term_brings_is_that_of_the_recorded_games():
    with open(RESULTS / "games.csv", newline="") as file:
        games = [row | {"row": row["variant"], "set": ""} for row in csv.DictReader(file)]
    seeds = claims.at_equal_cost(games)
    without, textured = "VGG and grid loss", "the same with texture"
    effect = crossed(claims.paired(seeds, textured, without, "lpips"))
    stated = f"{-effect.estimate:.3f} ({-effect.high:.3f} to {-effect.low:.3f}"
    assert f"lower LPIPS by {stated}" in words("README.md")
