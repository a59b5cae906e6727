"""srlab.bench.train: what it counts is right; what it times is there."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from srlab.bench import train as bench_train
from srlab.bench.train import FlopCounter, _Job, run_bench_train
from srlab.models import zoo
from srlab.training.engine import Choice, Engine

CPU = torch.device("cpu")


def test_flops_of_a_step_are_those_that_torch_counts():
    """Forward, and backward to the weights and to all activations but the input."""
    network = zoo.build("srresnet")
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(2, 3, 8, 8)).sum().backward()
    assert _Job(False, "srresnet", 2, 8, CPU).flops() == counter.get_total_flops()


def test_flops_of_a_gradient_penalty():
    """By hand, for score = sum(w2 relu(w1 x)): products of the three passes.

    Forward and gradient: 2 products a layer. Backward through both: each product of two factors
    that need gradients gives two, w1 x gives one for the score's way.
    """
    x, w = torch.rand(3, 4, requires_grad=True), torch.rand(4, 5, requires_grad=True)
    with FlopCounter() as counter:
        y = (x @ w).relu().square().sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        forward = counter.total
        gradient.square().sum().backward(inputs=[w])
    product = 2 * 3 * 4 * 5
    assert forward == 2 * product
    # d(gradient)/dw: once by w itself, once by the relu's input x w; and the way between the two.
    assert counter.total == 5 * product


def test_the_game_counts_more_than_its_generator():
    """Five critic turns with a generator's forward each, and the critic's own work."""
    game = _Job(True, "wdrn", 1, 8, CPU).flops()
    plain = _Job(False, "wdrn", 1, 8, CPU).flops()
    assert game > (4 / 3 + 1) * plain  # four forwards alone, and one training step


def test_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        bench_train.VARIANTS, "+ torch.compile", Choice("no such precision", Engine())
    )
    out = tmp_path / "bench" / "train.json"
    report = run_bench_train(
        out, quick=True, model="srresnet", patch_size=8, peak_tflops=2.0, device="cpu"
    )
    assert json.loads(out.read_text()) == report
    assert list(report["variants"]) == list(bench_train.VARIANTS)[:-1]  # no graphs on a CPU
    plain = report["variants"]["plain (fp32, eager)"]
    assert plain["speedup"] == 1
    assert plain["patches_per_second"] == pytest.approx(2 / (plain["step_ms"] / 1e3))
    utilisation = report["flops_per_step"] / (plain["step_ms"] / 1e3) / 2e12
    assert plain["utilisation"] == pytest.approx(utilisation)
    assert plain["waiting"] < 1
    assert plain["memory_mb"] is None
    assert "no such precision" in report["variants"]["+ torch.compile"]["problem"]
    assert "patches/s" in capsys.readouterr().out


def test_the_peak_is_that_of_a_matrix_product():
    peak = bench_train.measure_peak(CPU, 256)
    assert 1e-4 < peak < 100
