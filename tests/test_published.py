"""scripts/published.py: a row is measured when it must be, and never lost."""

import csv
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from srlab.data.datasets import find
from srlab.data.images import write_image
from srlab.evaluation import protocol
from srlab.models import zoo
from srlab.models.generators import SRResNet

SCRIPT = Path(__file__).parents[1] / "scripts" / "published.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """It knows bicubic and one published network; its set is two small pictures."""
    spec = importlib.util.spec_from_file_location("published", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "published", module)
    spec.loader.exec_module(module)
    for i in range(2):
        write_image(torch.rand(3, 48, 64), tmp_path / "set" / f"{i}.png")
    network = tmp_path / "their.safetensors"
    zoo.save(SRResNet(1, 8), network)
    models = [
        module.Model("bicubic", "bicubic", "", ""),
        module.Model("theirs", "published", "somewhere", "MIT", network),
    ]
    measured = []
    real = module.measure

    def measure(model, *arguments):
        measured.append(model.name)
        return real(model, *arguments)

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "models", lambda: models)
    monkeypatch.setattr(module, "status", lambda name: (tmp_path / "set", 2))
    monkeypatch.setattr(module, "find", lambda name: find(tmp_path / "set"))
    monkeypatch.setattr(module, "judge_at_hand", lambda: None)
    monkeypatch.setattr(module, "patches_at_hand", lambda: None)

    def run(*options):
        measured.clear()
        arguments = ["published.py", "--out", str(tmp_path / "models.csv"), "--sets", "set5"]
        monkeypatch.setattr(sys, "argv", [*arguments, *map(str, options)])
        module.main()
        with open(tmp_path / "models.csv", newline="") as file:
            return list(measured), list(csv.DictReader(file))

    run.models, run.network, run.folder, run.module = models, network, tmp_path, module
    return run


def test_rows_hold_the_protocols_figures(script):
    measured, rows = script("--pictures", script.folder / "pictures")
    assert measured == ["bicubic", "theirs"]
    assert tuple(rows[0]) == script.module.COLUMNS
    files = find(script.folder / "set")
    for row, model in zip(rows, ("bicubic", script.network), strict=True):
        mean = protocol.mean(protocol.evaluate(zoo.load(model), files))
        assert float(row["psnr"]) == pytest.approx(mean.psnr, abs=6e-4)
        assert float(row["ssim"]) == pytest.approx(mean.ssim, abs=6e-5)
        assert row["lpips_alex"] == row["frechet"] == ""
    assert int(rows[1]["parameters"]) == sum(p.numel() for p in SRResNet(1, 8).parameters())
    kept = sorted((script.folder / "pictures").rglob("*.png"))
    assert [file.parts[-3:] for file in kept] == [
        (model, "set5", f"{i}.png") for model in ("bicubic", "theirs") for i in range(2)
    ]


def test_only_what_changed_is_measured_again(script):
    _, first = script()
    assert script() == ([], first)
    torch.manual_seed(1)
    changed = SRResNet(1, 8)
    torch.nn.init.normal_(changed.tail.weight, std=0.01)
    zoo.save(changed, script.network)
    measured, rows = script()
    assert measured == ["theirs"]
    assert rows[0] == first[0]
    assert rows[1]["checksum"] != first[1]["checksum"]
    assert rows[1]["psnr"] != first[1]["psnr"]
    write_image(torch.rand(3, 48, 64), script.folder / "set" / "1.png")
    assert script()[0] == ["bicubic", "theirs"]


def test_rows_stay_where_a_published_file_is_not_at_hand(script):
    _, first = script()
    script.models[1] = replace(script.models[1], file=None)
    assert script() == ([], first)
    del script.models[1]  # no longer listed
    assert script() == ([], first[:1])


def test_the_stored_table_is_of_the_released_files():
    """Checksums of what lies in the package, and bicubic by the published ruler."""
    from srlab.data.download import sha256

    stored = SCRIPT.parents[1] / "notebooks" / "results" / "models.csv"
    with open(stored, newline="") as file:
        rows = list(csv.DictReader(file))
    digests = {name: sha256(path) for name, path in zoo.released().items()}
    for row in rows:
        if row["kind"] == "released":
            assert digests[row["model"]].startswith(row["checksum"]), (
                f"{row['model']} has changed: run python scripts/published.py"
            )
    bicubic = {row["set"]: float(row["lpips_alex"]) for row in rows if row["kind"] == "bicubic"}
    wanted = {"set5": 0.3407, "set14": 0.4400, "bsd100": 0.5255}
    assert bicubic == {name: pytest.approx(wanted[name], abs=2e-4) for name in bicubic}
