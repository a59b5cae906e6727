"""srlab.training.engine: each trick gives the numbers of the plain step, and steps back alone."""

import sys
from importlib.util import find_spec

import pytest
import torch
from processes import start
from torch.testing import assert_close

from srlab.data.bank import PatchBank
from srlab.errors import SrlabError
from srlab.models.generators import SRResNet
from srlab.training.config import PretrainConfig
from srlab.training.engine import Engine, default_fabric, threads_for
from srlab.training.monitor import read_log
from srlab.training.pretrain import pretrain

PLAIN = Engine(channels_last=False, polyphase=False, fused=False)


class Noisy(SRResNet):
    def forward(self, lr):
        return super().forward(lr + 0.01 * torch.randn_like(lr))


def train(folder, engine, kind=SRResNet, steps=6):
    torch.manual_seed(1)
    network = kind(n_blocks=1, n_features=8)
    random = torch.Generator().manual_seed(3)
    bank = PatchBank([torch.randint(256, (3, 40, 48), generator=random, dtype=torch.uint8)])
    settings = PretrainConfig(
        steps=steps, batch_size=2, patch_size=8, log_every=1, validate_every=0
    )
    options = {"fabric": default_fabric("cpu"), "progress": False, "engine": engine}
    result = pretrain(network, bank, settings, folder, **options)
    assert torch.isfinite(result.generator.tail.weight).all()
    return read_log(folder / "log.csv")["loss"][1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.mark.parametrize(
    "engine",
    [Engine(), Engine(fused=False), Engine(channels_last=False), Engine(polyphase=False)],
    ids=repr,
)
def test_the_tricks_do_not_change_what_is_learnt(tmp_path, plain, engine):
    assert_close(train(tmp_path, engine), plain, rtol=1e-4, atol=0)


def test_compiled_or_not_the_loss_is_the_same(tmp_path, plain, capsys):
    """Also where there is no compiler: then a line says so, and training goes on."""
    assert_close(train(tmp_path, Engine(compile="default")), plain, rtol=1e-3, atol=0)
    told = capsys.readouterr().out
    assert told == "" or ("torch.compile does not work here" in told and told.count("\n") == 1)


@pytest.mark.parametrize("kind", [SRResNet, Noisy])
def test_a_failing_compiler_leaves_no_trace(tmp_path, monkeypatch, capsys, kind):
    """Statistics of batch norm and the random state are as if nobody had tried."""
    train(tmp_path / "plain", Engine(), kind)

    def broken(network, **options):
        def run(x):
            network(x).sum().backward()
            raise RuntimeError("no C++ compiler\nlong story")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    train(tmp_path / "compiled", Engine(compile="default"), kind)
    told = capsys.readouterr().out
    assert told == "torch.compile does not work here (no C++ compiler): going on without it.\n"
    a, b = ((tmp_path / n / "log.csv").read_bytes() for n in ("plain", "compiled"))
    assert a == b


def test_unknown_modes_are_refused():
    with pytest.raises(SrlabError, match=r"off, default, reduce-overhead.*got 'fast'"):
        Engine(compile="fast")


def test_a_device_that_is_not_there():
    with pytest.raises(SrlabError, match="--device tpu --precision 32-true"):
        default_fabric("tpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_no_step_waits_for_the_gpu(tmp_path, mode):
    """torch raises where the host would wait; rows of the log and checkpoints may."""
    torch.manual_seed(1)
    network = SRResNet(n_blocks=1, n_features=8)
    bank = PatchBank([torch.randint(256, (3, 96, 96), dtype=torch.uint8)], device="cuda")

    def on_step(step, _):
        torch.cuda.set_sync_debug_mode("error" if 10 <= step < 18 else "default")

    settings = PretrainConfig(steps=40, batch_size=4, log_every=20, validate_every=0)
    options = {"progress": False, "engine": Engine(compile=mode), "on_step": on_step}
    result = pretrain(network, bank, settings, tmp_path, **options)
    assert result.step == 40


def test_a_small_network_trains_on_one_thread_and_gives_the_others_back():
    small, large = torch.nn.Conv2d(3, 10, 3), torch.nn.Conv2d(3, 1000, 3)  # 280 and 28,000 weights
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threads_for(small, (4, 3, 16, 16)):  # 280 weights x 1,024 pixels
            assert torch.get_num_threads() == 1
        with threads_for(large, (16, 3, 24, 24)):  # 28,000 x 9,216: 258 million
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), threads_for(small, (4, 3, 16, 16)):
            raise KeyError
        assert torch.get_num_threads() == 2
        with threads_for(small.to("meta"), (4, 3, 16, 16)):  # not on a CPU: the GPU does the work
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def tell_what_fabric_imports():
    print("lightning_fabric" in sys.modules)
    default_fabric("cpu")
    print("torchmetrics" in sys.modules, find_spec("torchmetrics") is not None)


def test_a_training_does_not_wait_for_a_package_that_it_does_not_need(tmp_path):
    """Fabric imports torchmetrics for its version, with scipy and torchvision: 5 of 14 s."""
    start(tell_what_fabric_imports, log=tmp_path / "said.txt").join()
    assert (tmp_path / "said.txt").read_text().split() == ["False", "False", "True"]
