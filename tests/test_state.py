"""srlab.training.state: what goes into a checkpoint comes out; what is damaged is refused."""

import math
import os
import pickle

import pytest
import safetensors.torch
import torch

from srlab.training.state import CheckpointError, load_checkpoint, save_checkpoint


def assert_same(a, b):
    """Equal trees; a tuple may have become a list."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


def test_a_nested_state_comes_back_as_it_was(tmp_path):
    weight = torch.randn(4, 3, 3, 3)
    state = {
        "network": {
            "weight": weight,
            "channels_last": weight.to(memory_format=torch.channels_last),
            "view": weight[1:, :, ::2].transpose(0, 1),
            "tied": weight,
            "half": torch.randn(5).half(),
            "bf16": torch.randn(5).bfloat16(),
            "count": torch.tensor(7),
            "empty": torch.empty(0, 3),
            "mask": torch.tensor([True, False]),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 11: {}}, "groups": [{"lr": 0.1}]},
        "numbers": [1, -0.0, 1e-30, math.pi, math.inf, -math.inf, True, None, "text", (0.9, 0.999)],
        "rows": [torch.arange(3), torch.arange(2, dtype=torch.uint8)],
        "nothing": [[], {}, ()],
    }
    path = tmp_path / "new" / "folder" / "run.safetensors"
    save_checkpoint(path, state, {"step": 3, "model": None})
    loaded, info = load_checkpoint(path)
    assert_same(state, loaded)
    assert info == {"step": 3, "model": None}
    assert os.listdir(path.parent) == ["run.safetensors"]


def test_a_nan_survives(tmp_path):
    save_checkpoint(tmp_path / "a", {"x": math.nan, "t": torch.tensor(math.nan)}, {})
    state, _ = load_checkpoint(tmp_path / "a")
    assert math.isnan(state["x"])
    assert state["t"].isnan()


def test_a_restored_adam_takes_the_same_next_step(tmp_path):
    inputs, target = torch.randn(4, 3, 6, 6), torch.randn(4, 5, 4, 4)

    def player():
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        return network, torch.optim.Adam(network.parameters(), 0.05, betas=(0.5, 0.9))

    def step(network, optimizer):
        optimizer.zero_grad()
        (network(inputs) - target).square().mean().backward()
        optimizer.step()

    network, optimizer = player()
    for _ in range(3):
        step(network, optimizer)
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(tmp_path / "a", state, {})
    state, _ = load_checkpoint(tmp_path / "a")
    twin, twin_optimizer = player()
    twin.load_state_dict(state["network"])
    twin_optimizer.load_state_dict(state["optimizer"])

    step(network, optimizer)
    step(twin, twin_optimizer)
    assert torch.equal(twin.weight, network.weight)
    assert torch.equal(twin.bias, network.bias)


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, {"x": torch.ones(3)}, {"step": 1})
    before = path.read_bytes()

    def full_disk(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(CheckpointError, match=r"run\.safetensors.*No space left.*free space"):
        save_checkpoint(path, {"x": torch.zeros(3)}, {"step": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_an_interrupted_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, {"x": torch.ones(3)}, {"step": 1})

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"x": torch.zeros(3)}, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1}
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_made_is_named_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "run.safetensors"
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(path, {"x": torch.ones(3)}, {})
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def damage(path, kind):
    """Write a file that is no checkpoint, for a reason of the given kind."""
    if kind == "truncated":
        save_checkpoint(path, {"x": torch.ones(1000)}, {})
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "truncated header":
        save_checkpoint(path, {"x": torch.ones(1000)}, {})
        path.write_bytes(path.read_bytes()[:50])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("step,loss\n1,0.5\n")
    elif kind == "plain weights":
        safetensors.torch.save_file({"x": torch.ones(3)}, path)
    elif kind == "strange tree":
        safetensors.torch.save_file(
            {"x": torch.ones(3)}, path, metadata={"info": "{}", "tree": '{"dict": 5}'}
        )
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"x": Bomb(path.parent / "exploded")}))
    elif kind == "torch.save":
        torch.save({"x": Bomb(path.parent / "exploded")}, path)


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "truncated header",
        "empty",
        "text",
        "plain weights",
        "strange tree",
        "pickle",
        "torch.save",
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_by_name_and_never_run(tmp_path, kind):
    path = tmp_path / "run.safetensors"
    damage(path, kind)
    with pytest.raises(CheckpointError, match=r"run\.safetensors is not a complete srlab checkp"):
        load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*gone\.safetensors"):
        load_checkpoint(tmp_path / "gone.safetensors")
