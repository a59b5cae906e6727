"""Models by name and weight files: what comes back, and what is refused."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from srlab.models import zoo
from srlab.models.generators import Bicubic, SRResNet
from srlab.models.zoo import ModelError


def trained(**options):
    torch.manual_seed(0)
    model = SRResNet(**({"n_blocks": 1, "n_features": 8} | options))
    model.train()(torch.rand(2, 3, 8, 8))
    return model.eval()


def test_file_rebuilds_the_network_exactly(tmp_path):
    model, path = trained(scale=2), tmp_path / "new" / "mine.safetensors"
    zoo.save(model, path, notes={"steps": 3})
    again = zoo.load(path)
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(again(x), model(x))
    assert not again.training
    assert again.scale == 2
    assert zoo.read_notes(path) == {"steps": 3}


def test_half_precision_halves_the_file_and_hardly_changes_the_picture(tmp_path):
    model = trained(n_features=32)
    zoo.save(model, tmp_path / "full.safetensors")
    zoo.save(model, tmp_path / "half.safetensors", half=True)
    full, half = (tmp_path / f"{n}.safetensors" for n in ("full", "half"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    x = torch.rand(1, 3, 9, 9)
    again = zoo.load(half)
    assert all(p.dtype == torch.float32 for p in again.parameters())
    torch.testing.assert_close(again(x), model(x), atol=5e-3, rtol=0)


def test_names():
    assert isinstance(zoo.load("bicubic"), Bicubic)
    assert sum(p.numel() for p in zoo.build("srresnet-16").parameters()) == 1_549_462
    with pytest.raises(ModelError, match="Did you mean srresnet"):
        zoo.build("srresnett")
    with pytest.raises(ModelError, match="no model 'nowhere'"):
        zoo.load("nowhere")
    with pytest.raises(ModelError, match="no model"):
        zoo.released_log("nowhere")


@pytest.mark.parametrize("name", zoo.released())
def test_released_weights_beat_bicubic_and_bring_their_log(name):
    from srlab.datasets import find
    from srlab.evaluation import protocol

    files = find("photos-valid")
    bicubic = protocol.mean(protocol.evaluate(zoo.load("bicubic"), files)).psnr
    model = protocol.mean(protocol.evaluate(zoo.load(name), files)).psnr
    assert model > bicubic
    assert zoo.released()[name].stat().st_size < 4e6
    notes = zoo.read_notes(zoo.released()[name])
    assert notes["steps"] == notes["config"]["steps"]
    last = zoo.released_log(name).read_text().splitlines()[-1].split(",")
    assert int(last[0]) == notes["steps"]


class Boom:
    def __reduce__(self):
        return print, ("unpickled!",)


def damaged(kind, path):
    if kind == "text":
        path.write_text("not weights")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Boom()))
    elif kind == "truncated":
        zoo.save(trained(), path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "foreign":
        save_file({"weight": torch.zeros(3)}, path)
    elif kind == "unknown class":
        save_file({"weight": torch.zeros(3)}, path, metadata={"model": '{"class": "Other"}'})
    elif kind == "empty folder":
        path.mkdir()


@pytest.mark.parametrize(
    "kind", ["text", "pickle", "truncated", "foreign", "unknown class", "empty folder"]
)
def test_other_files_are_refused_by_name_and_nothing_is_run(kind, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    damaged(kind, path)
    with pytest.raises(ModelError, match=r"x\.safetensors"):
        zoo.load(path)
    assert "unpickled" not in capsys.readouterr().out


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(ModelError, match=r"theirs was made by another architecture .*has shape"):
        zoo.load_weights(trained(), trained(n_features=16).state_dict(), "theirs")
    with pytest.raises(ModelError, match=r"also holds blocks\.1"):
        zoo.load_weights(trained(), trained(n_blocks=2).state_dict(), "theirs")
    with pytest.raises(ModelError, match=r"it lacks blocks\.1"):
        zoo.load_weights(trained(n_blocks=2), trained().state_dict(), "theirs")
