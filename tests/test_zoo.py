"""srlab.models.zoo: what is saved comes back; what is something else is refused by name."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from srlab.data.datasets import find
from srlab.data.degradation import downsample
from srlab.evaluation import protocol
from srlab.evaluation.metrics import psnr
from srlab.models import zoo
from srlab.models.generators import Bicubic, SRResNet
from srlab.models.zoo import ModelError
from srlab.training.state import save_checkpoint


def small(seed=0, **options):
    """A network whose every number, those of batch norm too, is its own."""
    torch.manual_seed(seed)
    network = SRResNet(**{"n_blocks": 1, "n_features": 4} | options)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) * 100 if tensor.dtype == torch.int64 else tensor)
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor))
    return network


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("scale", [2, 4])
def test_a_saved_network_comes_back_exactly(tmp_path, scale):
    network = small(n_blocks=2, scale=scale).to(memory_format=torch.channels_last)
    file = tmp_path / "new" / "folder" / "net.safetensors"
    zoo.save(network, file, notes={"steps": 7, "set5": "30.1"})
    for name in (file, str(file)):
        loaded = zoo.load(name)
        assert_same_weights(loaded, network)
        assert not loaded.training
        assert loaded.scale == scale
    assert zoo.read_notes(file) == {"steps": 7, "set5": "30.1"}


def test_half_precision_halves_the_file_and_comes_back_in_32_bits(tmp_path):
    network = small(n_features=16)
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    zoo.save(network, whole)
    zoo.save(network, half, half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded = zoo.load(half).state_dict()
    for name, tensor in network.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert_close(loaded[name], tensor, rtol=2**-11, atol=2**-24)
    assert next(network.parameters()).dtype == torch.float32  # the network itself stays as it was


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"a\.safetensors could not be written"):
        zoo.save(small(), tmp_path / "file" / "a.safetensors")


def test_the_package_itself_loads_by_name_without_costing_anything_before():
    script = (
        "import sys, srlab; assert 'torch' not in sys.modules; net = srlab.load('bicubic'); "
        "print(type(net).__name__, callable(srlab.upscale), hasattr(srlab, 'misspelt'))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout.split() == ["Bicubic", "True", "False"], said.stderr


def test_loading_weights_does_not_import_the_compiler():
    script = "import sys, srlab; srlab.load('srresnet'); print('torch._dynamo' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout.split() == ["False"], said.stderr


def test_bicubic_needs_no_file():
    assert isinstance(zoo.load("bicubic"), Bicubic)


@pytest.mark.parametrize(("name", "count"), [("srresnet", 734_219), ("srresnet-16", 1_549_462)])
def test_build_by_name(name, count):
    assert sum(p.numel() for p in zoo.build(name).parameters()) == count


@pytest.mark.parametrize("name", zoo.released())
def test_a_released_model_restores_a_photograph(name, photo):
    """Models for PSNR beat bicubic, adversarial ones stay near; wrong weights fall far behind."""
    network = zoo.load(name)
    lr = downsample(photo)[None]
    with torch.no_grad():
        sr, plain = network(lr).clamp(0, 1), Bicubic()(lr).clamp(0, 1)
    assert psnr(sr, photo[None]) > psnr(plain, photo[None]) - 2
    assert zoo.released_log(name).suffix == ".csv"


@pytest.mark.parametrize("name", zoo.released())
def test_a_released_model_tells_how_it_was_made(name):
    path = zoo.released()[name]
    assert path.stat().st_size < 4e6
    notes = zoo.read_notes(path)
    assert notes["trained_on"]
    # Of a run that was finished; at a constant rate, every step is as good an end as the last.
    planned, schedule = notes["config"]["steps"], notes["config"]["schedule"]
    assert notes["steps"] == planned or (schedule == "constant" and notes["steps"] < planned)
    last = zoo.released_log(name).read_text().splitlines()[-1]
    assert int(last.split(",")[0]) == notes["steps"]
    if notes["config"]["kind"] == "PretrainConfig":
        files = find("photos-valid")
        bicubic = protocol.mean(protocol.evaluate(zoo.load("bicubic"), files)).psnr
        assert protocol.mean(protocol.evaluate(zoo.load(name), files)).psnr > bicubic


@pytest.mark.parametrize("name", ["run", "run/checkpoint.safetensors"])
def test_a_training_run_gives_its_moving_average(tmp_path, name):
    generator, average = small(seed=1), AveragedModel(small(seed=2))
    save_checkpoint(
        tmp_path / "run" / "checkpoint.safetensors",
        {"generator": generator.state_dict(), "average": average.state_dict(), "step": 3},
        {"model": zoo.describe(generator)},
    )
    assert_same_weights(zoo.load(tmp_path / name), average.module)


@pytest.mark.parametrize("get", [zoo.build, zoo.load, zoo.released_log])
def test_an_unknown_name_says_which_there_are(get, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "released", lambda: {"srresnet": tmp_path / "srresnet.safetensors"})
    with pytest.raises(ModelError, match=r"no model 'srresnett': .*Did you mean srresnet\?"):
        get("srresnett")
    with pytest.raises(ModelError, match=r"no model 'xyz': choose one of .*srresnet.*\.$"):
        get("xyz")


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="no model"):
        zoo.load(tmp_path)


def described_as(description, path):
    save_file({"weight": torch.zeros(3)}, path, metadata={"model": json.dumps(description)})


def truncated(path):
    zoo.save(small(), path)
    path.write_bytes(path.read_bytes()[:-100])


NOT_OURS = {
    "truncated": truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("PSNR 29.23\n" * 100),
    "foreign": lambda path: save_file({"weight": torch.zeros(3)}, path),
    "foreign with a header": lambda path: save_file(
        {"weight": torch.zeros(3)}, path, metadata={"format": "pt"}
    ),
    "no description": lambda path: described_as(None, path),
    "another class": lambda path: described_as({"class": "RRDBNet"}, path),
    "another option": lambda path: described_as({"class": "SRResNet", "depth": 3}, path),
    "an impossible option": lambda path: described_as({"class": "SRResNet", "scale": 3}, path),
    "a negative size": lambda path: described_as({"class": "SRResNet", "n_features": -1}, path),
}


@pytest.mark.parametrize("make", NOT_OURS.values(), ids=NOT_OURS.keys())
def test_a_file_that_is_no_generator_is_named(tmp_path, make):
    file = tmp_path / "mine.safetensors"
    make(file)
    with pytest.raises(ModelError, match=re.escape(f"{file} holds no srlab generator")) as error:
        zoo.load(file)
    assert "\n" not in str(error.value)


def test_a_header_cannot_ask_for_more_than_the_file_holds(tmp_path, monkeypatch):
    """Nothing is built, and so no memory taken, for what there are no weights for."""
    file = tmp_path / "mine.safetensors"
    weights = small().state_dict()
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", lambda self: None)
    for options in (
        {"n_blocks": 10**6},
        {"n_blocks": 1, "n_features": 10**5},
        {"class": "WDRN", "n_blocks": 1000, "n_layers": 1000},
    ):
        header = json.dumps({"class": "SRResNet", "n_features": 4} | options)
        save_file(weights, file, metadata={"model": header})
        with pytest.raises(ModelError, match="describes a larger network"):
            zoo.load(file)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = small()
    with torch.no_grad():
        network.tail.weight[0] = float("nan")
    zoo.save(network, tmp_path / "mine.safetensors")
    with pytest.raises(ModelError, match=r"mine\.safetensors holds weights that are not finite"):
        zoo.load(tmp_path / "mine.safetensors")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def test_a_pickle_is_refused_unopened(tmp_path):
    file, disguised, exploded = (tmp_path / n for n in ("a.pth", "b.safetensors", "exploded"))
    for path in (file, disguised):
        torch.save({"weight": torch.zeros(3), "bomb": Bomb(exploded)}, path)
        with pytest.raises(ModelError, match=re.escape(f"{path} holds no srlab generator")):
            zoo.load(path)
    assert not exploded.exists()
    torch.load(file, weights_only=False)
    assert exploded.exists()  # so it was armed


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"n_blocks": 2}, r"it also holds blocks\.1\.body"),
        ({"n_blocks": 0}, r"it lacks blocks\.0\.body"),
        ({"n_features": 8}, r"has shape \(8,.*\), not \(4,"),
    ],
)
def test_weights_of_another_architecture(options, difference):
    network, before = small(), small()
    with pytest.raises(ModelError, match=rf"^mine\.pt was made by another.*{difference}"):
        zoo.load_weights(network, small(**options).state_dict(), "mine.pt")
    assert_same_weights(network, before)
