"""scripts/train_on_gpu.py in miniature: every stage, on the CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from srlab.models import zoo
from srlab.training.state import load_checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_on_gpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_on_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_on_gpu"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def call(script, tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")

    def call(*options):
        with pytest.MonkeyPatch.context() as patch:
            arguments = ["train_on_gpu.py", "--miniature", "--out", str(out), *options]
            patch.setattr(sys, "argv", arguments)
            return script.main()

    call.out = out
    return call


def test_it_stops_in_time_goes_on_and_finishes(script, call, capsys):
    assert call("--minutes", "0") == 3  # the benchmark, no more
    assert "run the same command again" in capsys.readouterr().out
    assert json.loads((call.out / "bench-game.json").read_text())["variants"]

    # Time is up in the middle of a stage.
    options = script.argparse.Namespace(
        out=call.out, miniature=True, device="cpu", batch_size=2, patch_size=8, data=["photos"],
        valid=str(call.out / "valid"),
    )  # fmt: skip
    stage = next(s for s in script.STAGES if s.name == "wdrn")
    stopped = script.train(stage, options, script.make_bank(options), end=0)
    assert stopped.step == 1

    assert call() == 0
    assert "all done" in capsys.readouterr().out
    summary = json.loads((call.out / "summary.json").read_text())
    assert list(summary) == [s.name for s in script.STAGES]
    for name, entry in summary.items():
        file = call.out / "release" / f"{name}.safetensors"
        assert file.stat().st_size == entry["bytes"] < 4e6
        assert entry["steps"] == 2
        assert zoo.read_notes(file)["trained_on"] == "photos"
        assert file.with_suffix(".csv").is_file()
        assert zoo.load(file).scale == 4
        _, info = load_checkpoint(call.out / name / "checkpoint.safetensors")
        assert info["step"] == 2

    assert call() == 0
    assert capsys.readouterr().out.count("done before") == 6


def test_a_network_below_bicubic_fails_its_check(script, call, capsys, monkeypatch):
    """The miniature's networks are as good as untrained: judged in earnest, they must not pass."""
    if not (call.out / "summary.json").is_file():
        pytest.skip("needs the test above")
    monkeypatch.setattr(script, "BENCHMARKS", ())
    options = script.argparse.Namespace(
        out=call.out, miniature=False, device="cpu", data=["photos"], trained_on="",
        valid=str(call.out / "valid"),
    )  # fmt: skip
    stage = next(s for s in script.STAGES if s.name == "wdrn")
    result = script.Result(None, call.out / "wdrn", 2, 1.0, 1.0)
    entry = script.release(stage, options, result)
    assert [p for p in entry["problems"] if "is below" in p]


def test_the_ranking_holds_every_model_and_what_it_starts_from(script):
    names = [stage.name for stage in script.STAGES]
    assert sorted(names) == sorted(
        ["srresnet", "srresnet-16", "wdrn", "wdrn-16", "srgan", "wdrn-vgg-wgan"]
    )
    for i, stage in enumerate(script.STAGES):
        assert stage.start is None or stage.start in names[:i]
    assert sum(stage.minutes for stage in script.STAGES) <= 25
