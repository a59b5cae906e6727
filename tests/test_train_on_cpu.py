"""scripts/train_on_cpu.py: one step of each game, and on from there."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from srlab.images import write_image
from srlab.models import zoo
from srlab.training.state import load_checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_on_cpu.py"


@pytest.mark.parametrize("game", ["srgan", "wdrn-vgg-wgan"])
def test_a_game_is_played_from_the_folded_released_network(game, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    for i in range(2):
        write_image(torch.rand(3, 96, 96), pictures / f"{i}.png")
    where = ["--data", str(pictures), "--valid", str(pictures), "--out", str(tmp_path)]
    for steps in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["train_on_cpu.py", game, "--steps", steps, *where])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        state, info = load_checkpoint(tmp_path / game / "checkpoint.safetensors")
        assert info["step"] == int(steps)
    assert info["config"]["batch_size"] == 8
    assert info["config"]["critic_steps"] == 1
    assert not any("running_mean" in name for name in state["generator"])

    lr = torch.rand(1, 3, 24, 24)
    start = zoo.load({"srgan": "srresnet", "wdrn-vgg-wgan": "wdrn"}[game]).eval()
    with torch.no_grad():
        # Two steps of warm-up move it a little: it is the released network, and has moved.
        moved = (zoo.load(tmp_path / game).eval()(lr) - start(lr)).abs().mean()
    assert 0 < moved < 0.02
