import pytest
import torch

from srlab.evaluation import perceptual


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
    return tmp_path


def test_without_weights_it_says_how_to_get_them_and_downloads_nothing(bare_machine, monkeypatch):
    import socket

    def no_network(*_, **__):
        raise AssertionError("touched the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.raises(perceptual.PerceptualError, match="srlab fetch lpips-alex"):
        perceptual.load("alex")
    with pytest.raises(perceptual.PerceptualError, match="choose squeeze or alex"):
        perceptual.load("vgg")


def test_a_file_of_features_is_used_and_called_relative(bare_machine):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    features = perceptual.architecture("squeeze")
    (bare_machine / "weights").mkdir()
    path = bare_machine / "weights" / "squeezenet1_1_features_imagenet.safetensors"
    save_file(features.state_dict(), path)
    distance = perceptual.load()
    x, y = torch.rand(2, 1, 3, 40, 40)
    assert torch.equal(distance(x, y), perceptual.LPIPS("squeeze", features)(x, y))
    assert distance.label == "LPIPS-squeeze (relative)"

    # torchvision's own file comes first
    hub = perceptual.torchvision_file("squeeze")
    hub.parent.mkdir(parents=True)
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, hub)
    assert perceptual.load().label == "LPIPS-squeeze"

    hub.write_bytes(b"cut")
    with pytest.raises(perceptual.PerceptualError, match=hub.name):
        perceptual.load()


def test_fetch_is_at_once_where_the_file_is_and_refuses_in_one_line(
    bare_machine, monkeypatch, capsys
):
    import sys

    from srlab import cli

    for name, said in (("lpips-vgg", "choose squeeze or alex"), ("lpips-squeeze", "checksum")):
        if name == "lpips-squeeze":  # a file of that name that is another one
            path = perceptual.torchvision_file("squeeze")
            path.parent.mkdir(parents=True)
            path.write_bytes(b"something else")
        monkeypatch.setattr(sys, "argv", ["srlab", "fetch", name])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 1
        assert said in capsys.readouterr().err
