"""What README and the model cards state is what the files beside them hold."""

import csv
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from srlab.bench.upscale import FAST, PLAIN
from srlab.data.download import sha256
from srlab.models import zoo
from srlab.studies import claims
from srlab.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
SETS = ("set5", "set14", "bsd100", "urban100")
PAIR = re.compile(r"(\d\d\.\d\d)(?: dB)? / (0?\.\d{4})")


def pairs(text):
    """Every "28.42 dB / 0.8104" in a text, as (PSNR, SSIM)."""
    return [(float(psnr), float(ssim)) for psnr, ssim in PAIR.findall(text)]


def noted(name):
    """Set -> (PSNR, SSIM) that `srlab export` measured on the released file."""
    notes = zoo.read_notes(zoo.released()[name])
    return {s: pairs(notes[s])[0] for s in SETS if s in notes}


def readme_rows():
    """First cell -> {set: pair} of README's tables whose head names benchmark sets."""
    rows, head = {}, []
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = [cell.lower() for cell in cells]
        elif "set5" in head:
            rows[cells[0]] = {
                s: pairs(cell)[0] for s, cell in zip(head, cells, strict=True) if pairs(cell)
            }
    return rows


def section(name):
    """A model's card."""
    cards = (ROOT / "srlab" / "models" / "weights" / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(name)}$(.*?)(?=^## |\Z)", cards, re.M | re.S)
    assert found, f"srlab/models/weights/README.md has no section {name}"
    return found.group(1)


def test_the_files_hold_measurements():
    assert zoo.released()
    for name in zoo.released():
        assert "set5" in noted(name), f"{name} was released without its measured figures"


def test_readme_states_what_the_weight_files_say():
    stated = {
        name: figures
        for row, figures in readme_rows().items()
        for name in zoo.released()
        if row.startswith(f"`{name}`")
    }
    assert stated, "README has no row of a released model"
    for name, figures in stated.items():
        assert figures, f"README's row of {name} states nothing"
        assert figures == {s: noted(name)[s] for s in figures}, f"README's row of {name}"


@pytest.mark.parametrize("name", sorted(zoo.released()))
def test_a_model_card_states_what_its_weight_file_says(name):
    row = next(line for line in section(name).splitlines() if line.startswith("| measured |"))
    row = row.partition("(bicubic")[0]  # the comparison in brackets is no figure of the model
    assert pairs(row) == [noted(name)[s] for s in SETS if s in noted(name)]


@pytest.mark.parametrize("name", sorted(zoo.released()))
def test_a_model_card_states_its_size_and_steps(name):
    card = section(name)
    parameters = sum(p.numel() for p in zoo.load(name).parameters())
    steps = zoo.read_notes(zoo.released()[name])["steps"]
    assert f"{parameters:,} parameters" in card
    assert re.search(rf"\| steps \| .*\b{steps:,}\b", card)


def table_of_models():
    """(model, set) -> row of notebooks/results/models.csv."""
    with open(ROOT / "notebooks/results/models.csv", newline="", encoding="utf-8") as file:
        return {(row["model"], row["set"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", sorted(zoo.released()))
def test_the_table_of_models_is_of_the_released_files(name):
    """The row's checksum is the file's, and its PSNR what the file says of itself."""
    rows = table_of_models()
    measured = {s: figures for s, figures in noted(name).items() if (name, s) in rows}
    assert measured
    for image_set, (psnr, _) in measured.items():
        row = rows[name, image_set]
        assert sha256(zoo.released()[name]).startswith(row["checksum"])
        assert float(row["psnr"]) == pytest.approx(psnr, abs=0.006)


@pytest.mark.parametrize("name", sorted(zoo.released()))
def test_a_stated_distance_is_that_of_the_table(name):
    rows = table_of_models()
    line = next(line for line in section(name).splitlines() if line.startswith("| distance |"))
    stated = re.findall(r"(Set5|Set14|BSD100) (0\.\d{3})", line)
    models = [name, RECIPES[name].generator] if RECIPES[name].is_game else [name]
    expected = [
        (title, f"{float(rows[model, title.lower()]['lpips_alex']):.3f}")
        for model in models
        for title in ("Set5", "Set14", "BSD100")
        if (model, title.lower()) in rows
    ]
    assert stated == expected
    assert expected
    if RECIPES[name].is_game:
        ended, started = stated[: len(stated) // 2], stated[len(stated) // 2 :]
        assert all(a[1] < b[1] for a, b in zip(ended, started, strict=True)), "for nothing"


def test_the_log_of_a_released_model_ends_with_its_last_step():
    from srlab.training.monitor import read_log

    for name, path in zoo.released().items():
        steps, _ = read_log(zoo.released_log(name))["val_psnr"]
        assert steps[-1] == zoo.read_notes(path)["steps"], name


def test_bicubics_stated_figures_are_measured_where_the_sets_are():
    from srlab.data.datasets import DATASETS, find, status
    from srlab.evaluation import protocol

    row = next(v for k, v in readme_rows().items() if k.startswith("bicubic, measured"))
    here = [s for s in ("set5", "set14") if status(s)[1] >= DATASETS[s].count]
    if not here:
        pytest.skip("neither Set5 nor Set14 is on this machine")
    for name in here:
        mean = protocol.mean(protocol.evaluate(zoo.load("bicubic"), find(name)))
        assert row[name] == (round(mean.psnr, 2), round(mean.ssim, 4)), name


def speed_rows():
    """First cell -> the other cells, of README's table of speed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.partition("## How fast?")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {first: others for first, *others in rows[2:]}


def test_readme_states_what_was_benchmarked():
    bank, train, upscale = (
        json.loads((ROOT / "notebooks/results/bench" / f"{name}.json").read_text())
        for name in ("bank", "train", "upscale")
    )
    engines = upscale["models"]["srresnet-16"]["engines"]
    megapixels = 16 * upscale["lr"][0] * upscale["lr"][1] / 1e6

    def training(name):
        return train["variants"][name]["patches_per_second"]

    def upscaling(name):
        return megapixels / engines[name]["seconds"]

    bank = bank["patches_per_second"]
    crops = (bank["PNG files, DataLoader with 2 workers, 32 -> 128"], bank["PatchBank, 32 -> 128"])
    by_training, by_upscaling = training("plain (fp32, eager)"), upscaling(PLAIN)
    expected = {
        "crops": [f"{crops[0]:.0f}", f"{crops[1]:,.0f}", f"{crops[1] / crops[0]:.0f}"],
        "training, 24x24": (by_training, training("+ polyphase tail")),
        "training, bfloat16 |": (by_training, training("+ bf16 autocast")),
        "training, bfloat16 and": (by_training, training("+ torch.compile")),
        "upscaling, result": (by_upscaling, upscaling(FAST)),
        "upscaling by ONNX": (by_upscaling, upscaling("ONNX Runtime, CPU")),
        "upscaling in bfloat16": (by_upscaling, upscaling(f"{FAST}, bf16")),
    }
    rows = {f"{first} |": cells for first, cells in speed_rows().items()}
    assert len(rows) == len(expected)
    for start, figures in expected.items():
        (cells,) = (cells for first, cells in rows.items() if first.startswith(start))
        if isinstance(figures, tuple):
            plain, ours = figures
            digits = 1 if start.startswith("training") else 2
            figures = [f"{plain:.{digits}f}", f"{ours:.{digits}f}", f"{ours / plain:.1f}"]
        assert cells[1:] == figures[1:], start
        assert cells[0] in ("", figures[0]), start
    agreement = engines[f"{FAST}, bf16"]["agreement"]
    assert any(f"{agreement:.0f} dB" in first for first in rows)


def test_readme_shows_the_verdicts_that_the_results_give():
    judged = claims.judge(ROOT / "notebooks/results/ablation-lite")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert claims.table(judged) in text
    stated = re.search(r"Of (\d+) claims, (\d+) are decided at this size", text)
    assert stated, "README does not count the verdicts"
    decided = sum(j.verdict != "inconclusive" for j in judged)
    assert [int(n) for n in stated.groups()] == [len(judged), decided]


def test_readme_states_what_upscaling_costs():
    with open(ROOT / "notebooks/results/bench/upscale_cost.csv", newline="") as file:
        cost = {float(line["megapixels"]): line for line in csv.DictReader(file)}
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    stated = re.findall(
        r"([\d.]+) megapixels (?:takes )?(\d+) s (?:of one core )?and ([\d,]+) MB", text
    )
    assert len(stated) == 2
    for megapixels, seconds, memory in stated:
        line = cost[float(megapixels)]
        assert seconds == f"{float(line['cpu_seconds']):.0f}"
        assert memory == f"{int(line['peak_memory_mb']):,}"


def test_readme_states_what_the_recipe_brings():
    means = {}
    with open(ROOT / "notebooks/results/recipe.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["set5"]:  # the last row of a training
                means.setdefault(row["variant"], []).append(float(row["set5"]))
    kinds = ("no skip", "skip", "skip, detail", "skip, detail, Muon")
    assert all(len(means[kind]) == 3 for kind in kinds)
    psnr = [sum(means[kind]) / 3 for kind in kinds]
    gains = [f"{b - a:.2f}" for a, b in pairwise(psnr)]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    pattern = r"skip brings (.{4}) dB on Set5, .*? (.{4}) dB and Muon, .*? (.{4}) dB"
    stated = re.search(pattern, text)
    assert list(stated.groups()) == gains
