"""srlab.bench.upscale: engines agree with torch, and the table says who is fastest."""

import json
import sys

import pytest
import torch

from srlab import cli
from srlab.bench import upscale as bench_upscale
from srlab.bench.upscale import PLAIN, run_bench_upscale, time_engines
from srlab.errors import SrlabError
from srlab.evaluation.metrics import psnr
from srlab.models import zoo
from srlab.models.generators import SRResNet

pytest.importorskip("onnxruntime")


def test_the_report(tmp_path, capsys):
    out = tmp_path / "bench" / "upscale.json"
    report = run_bench_upscale(out, models=("srresnet",), side=12, rounds=2, device="cpu")
    assert json.loads(out.read_text()) == report
    assert report["lr"] == [12, 12]
    engines = report["models"]["srresnet"]["engines"]
    assert not any(engine["problem"] for engine in engines.values())
    plain = engines[PLAIN]
    assert (plain["speedup"], plain["difference"], plain["exact"]) == (1, 0, True)
    for name, engine in engines.items():
        assert engine["speedup"] == pytest.approx(plain["seconds"] / engine["seconds"])
        assert engine["exact"] == ("bf16" not in name)
        assert engine["agreement"] is None or engine["agreement"] > 40
    exact = {name: engine["seconds"] for name, engine in engines.items() if engine["exact"]}
    fastest = report["models"]["srresnet"]["fastest"]
    assert exact[fastest] == min(exact.values())
    printed = capsys.readouterr().out
    assert fastest in printed
    assert "48 x 48 pixels on cpu" in printed


def test_a_reduced_precision_never_wins(monkeypatch):
    """bf16's distance from fp32 is reported as what it is, and it is not fp32's result."""
    torch.manual_seed(0)
    network = SRResNet(1, n_features=8).eval()
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # at zero it would only be bicubic
    monkeypatch.setattr(bench_upscale, "seconds_of", lambda run, device: 1.0)
    lr = torch.rand(1, 3, 9, 11)
    (bf16,) = (t for name, t in time_engines(network, lr).items() if "bf16" in name)
    with torch.no_grad():
        exact, rough = network(lr), network.to(torch.bfloat16)(lr.to(torch.bfloat16)).float()
    assert not bf16.exact
    assert bf16.agreement == pytest.approx(float(psnr(rough, exact)), abs=2)


def test_an_engine_that_fails_is_a_line(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such thing\nreally")

    monkeypatch.setattr(bench_upscale, "export_onnx", broken)
    timings = time_engines(SRResNet(0, n_features=4).eval(), torch.rand(1, 3, 8, 8), rounds=1)
    assert timings["ONNX Runtime, CPU"].problem == "no such thing"
    assert timings["folded"].seconds > 0


def test_random_weights_have_statistics_to_fold():
    network = bench_upscale._network("srresnet-16")
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((m.running_mean != 0).any() for m in norms)
    assert zoo.describe(network) == zoo.describe(zoo.build("srresnet-16"))


def test_wrong_arguments():
    with pytest.raises(SrlabError, match="rounds"):
        run_bench_upscale(rounds=0)
    with pytest.raises(SrlabError, match="srresnet"):
        run_bench_upscale(models=("srresnett",), side=8, device="cpu")
    with pytest.raises(SrlabError, match="nowhere"):
        run_bench_upscale(models=("srresnet",), side=8, device="nowhere")


def test_the_command(tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.json"
    options = ["--model", "srresnet", "--side", "8", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["srlab", "bench", "upscale", *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert list(json.loads(out.read_text())["models"]) == ["srresnet"]
    assert "times plain" in capsys.readouterr().out
