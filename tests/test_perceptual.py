import hashlib
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

from srlab import cli
from srlab.data import download
from srlab.evaluation import perceptual
from srlab.models import pretrained


@pytest.mark.parametrize("net", ["squeeze", "alex"])
def test_equals_torchmetrics_with_the_same_backbone(net):
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    reference = _LPIPS(net=net, pnet_rand=True)  # random backbone, trained heads: no download
    features = perceptual.architecture(net)
    # The same layers in the same order, under other names.
    own, theirs = features.state_dict(), reference.net.state_dict()
    features.load_state_dict(dict(zip(own, theirs.values(), strict=True)))
    x, y = torch.rand(2, 3, 3, 48, 64)
    got = perceptual.LPIPS(net, features)(x, y)
    want = reference(x, y, normalize=True).flatten()
    assert got.shape == (3,)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-6)
    assert want.std() > 0


def test_equal_pictures_are_at_distance_zero_and_values_outside_are_clamped():
    torch.manual_seed(0)
    distance = perceptual.LPIPS("squeeze", perceptual.architecture("squeeze"))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(distance(x, x), torch.zeros(2))
    assert torch.equal(distance(x + 2, x), distance(torch.ones_like(x), x))
    with pytest.raises(ValueError, match="32 pixels a side"):
        distance(x[..., :16], x[..., :16])


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("SRLAB_DATA", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "weights").mkdir()
    return tmp_path


def pretend(monkeypatch, net, **fields):
    """Other weights are taken for torchvision's."""
    backbone = perceptual.BACKBONES[net]
    changed = replace(backbone, network=replace(backbone.network, **fields))
    monkeypatch.setitem(perceptual.BACKBONES, net, changed)


def features_file(folder, net):
    torch.manual_seed(0)
    features = perceptual.architecture(net)
    name = perceptual.BACKBONES[net].network.name
    path = folder / "weights" / f"{name}_features_imagenet.safetensors"
    save_file(features.state_dict(), path)
    return features, path


def torchvisions_file(path, features):
    """In the layout of torchvision's; returns the checksum as its names hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save(weights | {"classifier.1.weight": torch.zeros(3)}, path)
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


def test_without_weights_it_says_how_to_get_them_and_downloads_nothing(bare_machine, monkeypatch):
    import socket

    def no_network(*_, **__):
        raise AssertionError("touched the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    for net in (None, "alex"):
        with pytest.raises(perceptual.PerceptualError, match=r"`srlab fetch lpips-alex` .*233 MB"):
            perceptual.load(net)
    with pytest.raises(perceptual.PerceptualError, match="choose alex or squeeze"):
        perceptual.load("vgg")


def test_alexnet_judges_where_it_is_at_hand(bare_machine):
    features_file(bare_machine, "squeeze")
    assert perceptual.load().net == "squeeze"
    features_file(bare_machine, "alex")
    assert perceptual.load().net == "alex"
    assert perceptual.load("squeeze").net == "squeeze"


def test_whether_its_figures_compare_is_decided_by_content(bare_machine, monkeypatch):
    features, path = features_file(bare_machine, "alex")
    distance = perceptual.load()
    x, y = torch.rand(2, 1, 3, 40, 40)
    assert torch.equal(distance(x, y), perceptual.LPIPS("alex", features)(x, y))
    assert not distance.published
    assert distance.label == "LPIPS-alex (relative)"

    weights = features.state_dict()
    content = b"".join(
        f"{name} {tuple(weights[name].shape)}\n".encode() + weights[name].numpy().tobytes()
        for name in sorted(weights)
    )
    pretend(monkeypatch, "alex", digest=hashlib.sha256(content).hexdigest())
    assert perceptual.load().published
    assert perceptual.load().label == "LPIPS-alex"
    weights["0.bias"][0] += 1e-6
    save_file(weights, path)
    assert not perceptual.load().published

    save_file({"0.weight": torch.zeros(3)}, path)
    with pytest.raises(perceptual.PerceptualError, match="not hold the features of alexnet"):
        perceptual.load()
    path.write_bytes(b"cut")
    with pytest.raises(perceptual.PerceptualError, match=path.name):
        perceptual.load()


def test_torchvisions_own_file_comes_first_and_must_be_it(bare_machine, monkeypatch):
    features, _ = features_file(bare_machine, "squeeze")
    hub = pretrained.SQUEEZENET.file
    checksum = torchvisions_file(hub, features)
    with pytest.raises(perceptual.PerceptualError, match=r"not the published file.*fetch lpips-sq"):
        perceptual.load()
    pretend(monkeypatch, "squeeze", checksum=checksum)
    distance = perceptual.load()
    assert distance.label == "LPIPS-squeeze"
    x, y = torch.rand(2, 1, 3, 40, 40)
    assert torch.equal(distance(x, y), perceptual.LPIPS("squeeze", features)(x, y))


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_fetch_gets_torchvisions_file_and_checks_it(bare_machine, monkeypatch, capsys, net):
    name = perceptual.BACKBONES[net].network.file.name
    checksum = torchvisions_file(bare_machine / name, perceptual.architecture(net))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0,))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=bare_machine)) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/{name}"
        pretend(monkeypatch, net, url=url)  # torchvision's checksum is another
        monkeypatch.setattr(sys, "argv", ["srlab", "fetch", f"lpips-{net}"])
        with pytest.raises(SystemExit):
            cli.main()
        assert "wrong checksum" in capsys.readouterr().err
        assert not perceptual.BACKBONES[net].network.file.exists()
        pretend(monkeypatch, net, checksum=checksum)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        http.shutdown()
    assert perceptual.load().label == f"LPIPS-{net}"


def test_fetch_refuses_other_names_in_one_line(bare_machine, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["srlab", "fetch", "lpips-vgg"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert "lpips-alex, lpips-squeeze." in capsys.readouterr().err


def test_bicubic_reads_what_others_print():
    """Set5 x4: .3407 by the reference implementation of LPIPS with torchvision's AlexNet."""
    from srlab.data.datasets import find, status
    from srlab.evaluation import scores
    from srlab.models import zoo

    if not status("set5")[0] or not pretrained.ALEXNET.find():
        pytest.skip("needs Set5 and AlexNet's weights")
    judge = perceptual.load("alex")
    assert judge.published
    figures = scores.mean(scores.measure(zoo.load("bicubic"), find("set5"), judge))
    assert figures.distance == pytest.approx(0.3407, abs=1e-4)
