"""srlab.models.external: another project's network gives here what it gives there."""

import builtins
import pickle
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import pad
from torch.testing import assert_close

from srlab import cli
from srlab.data.degradation import crop_to_multiple, downsample
from srlab.data.images import write_image
from srlab.evaluation import protocol
from srlab.evaluation.metrics import psnr
from srlab.evaluation.tiling import upscale
from srlab.models import zoo
from srlab.models.external import ExternalError, load_external
from srlab.models.interpolation import interpolate
from srlab.pictures import upscaling

pytest.importorskip("spandrel")


def esrgan(scale=4):
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=8, num_blocks=1, scale=scale)


def swinir(scale=3):
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        img_size=16, window_size=8, depths=[2], num_heads=[2], embed_dim=12, mlp_ratio=2,
        upscale=scale, upsampler="pixelshuffle",
    )  # fmt: skip


def hat(scale=2):
    from spandrel.architectures.HAT import HAT

    return HAT(
        img_size=16, window_size=8, depths=[2], num_heads=[2], embed_dim=12, mlp_ratio=2,
        compress_ratio=3, squeeze_factor=6, upscale=scale,
    )  # fmt: skip


MAKERS = {"ESRGAN": esrgan, "SwinIR": swinir, "HAT": hat}
SCALES = {"ESRGAN": 4, "SwinIR": 3, "HAT": 2}


def random_network(name):
    """With weights that make grey pictures with some structure, not clamped everywhere."""
    torch.manual_seed(0)
    network = MAKERS[name]().eval()
    with torch.no_grad():
        last = network.model[-1] if name == "ESRGAN" else network.conv_last
        last.weight.mul_(3)
        if name == "ESRGAN":
            last.bias.fill_(0.5)
    return network


def saved(network, path):
    weights = {name: x.detach().contiguous() for name, x in network.state_dict().items()}
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return path


def image(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_equals_the_original_on_odd_sizes(name, suffix, tmp_path):
    network = random_network(name)
    ours = load_external(saved(network, tmp_path / f"their{suffix}"))
    assert (ours.scale, ours.architecture) == (SCALES[name], name)
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())
    for size in ((17, 23), (24, 31)):
        lr = image(2, 3, *size)
        with torch.no_grad():
            theirs = network(lr).clamp(0, 1)
        assert theirs.std() > 0.02
        assert_close(ours(lr), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MAKERS)
def test_a_picture_smaller_than_the_network_needs(name, tmp_path):
    """Mirrored to 16 pixels, as its own makers' scripts do, and cut."""
    network = random_network(name)
    ours = load_external(saved(network, tmp_path / "their.pth"))
    lr, scale = image(1, 3, 11, 13), SCALES[name]
    padded = lr if name == "ESRGAN" else pad(lr, (0, 3, 0, 5), mode="reflect")
    with torch.no_grad():
        theirs = network(padded)[..., : 11 * scale, : 13 * scale].clamp(0, 1)
    assert_close(ours(lr), theirs, atol=1e-5, rtol=0)
    assert ours(image(1, 3, 1, 1)).shape == (1, 3, scale, scale)


@pytest.mark.parametrize("name", MAKERS)
def test_upscale_runs_it_in_tiles(name, tmp_path):
    """One window-aligned tile and the rest: their overlap hides the seam."""
    file = saved(random_network(name), tmp_path / "their.pth")
    lr, scale = image(3, 20, 72), SCALES[name]
    whole = upscale(zoo.load(file), lr, None)
    assert whole.shape == (3, 20 * scale, 72 * scale)
    tiled = upscaling.upscale(lr, file, tile=64, device="cpu")
    assert (tiled - whole).abs().max() < 0.02
    assert_close(upscaling.upscale(lr, file, tile=72, device="cpu"), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrap", ["params_ema", "module"])
def test_the_wrappings_of_training_scripts(wrap, tmp_path):
    network = random_network("ESRGAN")
    weights = network.state_dict()
    if wrap == "module":
        weights = {f"module.{name}": x for name, x in weights.items()}
    else:
        weights = {wrap: weights}
    torch.save(weights, tmp_path / "their.pth")
    lr = image(1, 3, 9, 9)
    with torch.no_grad():
        assert_close(load_external(tmp_path / "their.pth")(lr), network(lr).clamp(0, 1))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("write", ["torch", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.ckpt", "a.safetensors"])
def test_a_pickle_with_code_is_refused(write, name, tmp_path):
    file, exploded = tmp_path / name, tmp_path / "exploded"
    content = random_network("ESRGAN").state_dict() | {"bomb": Bomb(exploded)}
    if write == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(ExternalError, match=r"code, so it was refused|cannot be read") as error:
        load_external(file)
    assert str(file) in str(error.value)
    assert not exploded.exists()
    if write == "torch":
        torch.load(file.rename(tmp_path / "b.pth"), weights_only=False)
        assert exploded.exists()  # so it was armed


def unet():
    return torch.nn.Conv2d(3, 3, 3)


def restorer():
    return esrgan(scale=1)


def grey():
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(in_nc=1, out_nc=1, num_filters=8, num_blocks=1)


@pytest.mark.parametrize(
    ("make", "why"), [(unet, "no network that"), (restorer, "another task"), (grey, "1 channel")]
)
def test_other_networks_are_refused_by_a_sentence(make, why, tmp_path):
    file = saved(make(), tmp_path / "their.pth")
    with pytest.raises(ExternalError, match=why) as error:
        load_external(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>not found</html>"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.onnx"])
def test_damaged_files_are_refused_by_a_sentence(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExternalError, match=name) as error:
        load_external(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_list_of_tensors(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "a.pth")
    with pytest.raises(ExternalError, match="holds a list"):
        load_external(tmp_path / "a.pth")


def test_without_spandrel(tmp_path, monkeypatch):
    file = saved(random_network("ESRGAN"), tmp_path / "their.pth")
    real = builtins.__import__

    def without(name, *arguments):
        if name == "spandrel":
            raise ModuleNotFoundError("No module named 'spandrel'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExternalError, match=r'pip install "srlab\[external\]"'):
        load_external(file)


@pytest.fixture
def photos(photo, tmp_path):
    write_image(photo, tmp_path / "photos" / "cat.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("name", MAKERS)
def test_the_command_evaluates_it_at_its_own_scale(
    name, photos, photo, tmp_path, monkeypatch, capsys
):
    """Luma, and as many pixels shaved as the scale; PSNR by hand from the original's output."""
    network, scale = random_network(name), SCALES[name]
    file = saved(network, tmp_path / "their.safetensors")
    csv = tmp_path / "scores.csv"
    arguments = ["srlab", "evaluate", file, "--dataset", photos, "--csv", csv]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    hr = crop_to_multiple(photo, scale)
    with torch.no_grad():
        sr = network(downsample(hr, scale)[None])[0]
    y_sr, y_hr = (
        (torch.einsum("c,chw->hw", torch.tensor([65.481, 128.553, 24.966]), x) + 16).round() / 255
        for x in ((sr.clamp(0, 1) * 255).round() / 255, hr)
    )
    cut = (slice(scale, -scale),) * 2
    by_hand = float(psnr(y_sr[cut][None, None], y_hr[cut][None, None]))
    measured = float(csv.read_text().splitlines()[1].split(",")[1])
    assert measured == pytest.approx(by_hand, abs=2e-3)
    assert f"x{scale}" in capsys.readouterr().out


def test_it_cannot_be_trained_by_mistake(tmp_path, monkeypatch, capsys):
    file = saved(random_network("ESRGAN"), tmp_path / "their.pth")
    for model in ("srgan", "srresnet"):
        monkeypatch.setattr(sys, "argv", ["srlab", "train", model, "--init", str(file)])
        with pytest.raises(SystemExit):
            cli.main()
        err = capsys.readouterr().err
        assert str(file) in err
        assert "Traceback" not in err


def test_two_of_a_kind_can_be_interpolated(tmp_path):
    first, second = random_network("ESRGAN"), esrgan()
    files = [saved(n, tmp_path / f"{i}.pth") for i, n in enumerate((first, second))]
    between = interpolate(*map(load_external, files), share=0.25)
    middle = {
        name: 0.75 * a + 0.25 * b
        for (name, a), b in zip(
            first.state_dict().items(), second.state_dict().values(), strict=True
        )
    }
    first.load_state_dict(middle)
    lr = image(1, 3, 8, 8)
    with torch.no_grad():
        assert_close(between(lr), first(lr).clamp(0, 1), atol=1e-5, rtol=0)


def test_protocol_scores_it_like_any_generator(photos, tmp_path):
    ours = load_external(saved(random_network("ESRGAN"), tmp_path / "their.pth"))
    (score,) = protocol.evaluate(ours, [photos / "cat.png"])
    assert 0 < score.psnr < 40


def srgan_weights(n_blocks=2, c=8):
    """In the layout of plain lists of layers; batch norm has run, slopes differ by channel."""
    from torch.nn import BatchNorm2d, Conv2d, PixelShuffle, PReLU, Sequential

    torch.manual_seed(0)
    body = lambda: Sequential(  # noqa: E731
        Conv2d(c, c, 3, 1, 1), BatchNorm2d(c, 1e-3), PReLU(c), Conv2d(c, c, 3, 1, 1),
        BatchNorm2d(c, 1e-3),
    )  # fmt: skip
    parts = {
        "head": Sequential(Conv2d(3, c, 9, 1, 4), PReLU(c)),
        **{f"blocks.{i}.body": body() for i in range(n_blocks)},
        "fuse": Sequential(Conv2d(c, c, 3, 1, 1), BatchNorm2d(c, 1e-3)),
        "upsample": Sequential(
            *[layer for _ in range(2) for layer in (Conv2d(c, 4 * c, 3, 1, 1), PixelShuffle(2),
                                                    PReLU(c))]
        ),
        "tail": Conv2d(c, 3, 9, 1, 4),
    }  # fmt: skip
    with torch.no_grad():
        for part in parts.values():
            for module in part.modules():
                if isinstance(module, PReLU):
                    module.weight.uniform_(-0.5, 0.5)
                elif isinstance(module, BatchNorm2d):
                    module.running_mean.uniform_(-0.1, 0.1)
                    module.running_var.uniform_(1e-3, 1e-2)
            part.eval()
    weights = {f"{n}.{key}": x for n, part in parts.items() for key, x in part.state_dict().items()}
    return parts, weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_srgans_generator_written_out(suffix, tmp_path, monkeypatch):
    parts, weights = srgan_weights()
    file = tmp_path / f"srgan{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    monkeypatch.setitem(sys.modules, "spandrel", None)  # it isn't needed
    ours = zoo.load(file)
    assert (ours.scale, ours.architecture) == (4, "SRGAN")
    assert not ours.training
    lr = image(2, 3, 11, 14)
    with torch.no_grad():
        head = parts["head"](lr)
        x = head
        for name, part in parts.items():
            if name.startswith("blocks"):
                x = x + part(x)
        wanted = torch.tanh(parts["tail"](parts["upsample"](parts["fuse"](x) + head))) / 2 + 0.5
    assert_close(ours(lr), wanted, atol=1e-5, rtol=0)
    assert wanted.std() > 0.02


def test_what_only_resembles_srgan_goes_to_spandrel(tmp_path):
    _, weights = srgan_weights()
    del weights["fuse.0.bias"]
    save_file(weights, tmp_path / "almost.safetensors")
    with pytest.raises(ExternalError, match="no network that spandrel knows"):
        load_external(tmp_path / "almost.safetensors")


PUBLISHED = ("DCTLSA_x4.pt", "CRAFT_x4.pth", "RealESRGAN_x4plus.fp16.safetensors")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_load(name):
    from srlab.data.datasets import data_folders

    found = [f / "models" / name for f in data_folders() if (f / "models" / name).is_file()]
    if not found:
        pytest.skip(f"needs {name}")
    network = zoo.load(found[0])
    sr = upscale(network, image(3, 20, 24), None)
    assert sr.shape == (3, 80, 96)
    assert sr.isfinite().all()


def test_a_file_cannot_ask_for_more_than_it_holds(tmp_path):
    """A deflated archive, a tensor without its numbers, a name that counts a million layers."""
    plain, file = tmp_path / "plain.pth", tmp_path / "a.pth"
    torch.save({"weight": torch.zeros(10**6)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for member in source.infolist():
            out.writestr(member.filename, source.read(member))
    with pytest.raises(ExternalError, match="compressed"):
        load_external(file)
    for weights in (
        {"weight": torch.zeros(1).expand(10**7)},
        {"params": {"body.1000000.weight": torch.zeros(3)}},
    ):
        torch.save(weights, file)
        with pytest.raises(ExternalError, match="larger network than it holds weights for"):
            load_external(file)
