"""srlab.models.vgg against torchvision's VGG, and against bad files and connections."""

import csv
import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.models import vgg19
from torchvision.models.vgg import VGG19_Weights
from torchvision.transforms.functional import normalize

from srlab.data import download
from srlab.data.download import DownloadError
from srlab.models import pretrained, vgg
from srlab.models.vgg import FeatureError, Features


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return vgg19().eval()


@pytest.fixture
def hub(tmp_path, monkeypatch, theirs):
    """An empty torch cache, and a file of VGG19's layout whose hash is taken for the real one."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = {n: t for n, t in theirs.state_dict().items() if n.startswith("features")}
    torch.save(weights, tmp_path / "published.pth")
    content = (tmp_path / "published.pth").read_bytes()
    monkeypatch.setenv("SRLAB_DATA", str(tmp_path))
    pretend(monkeypatch, "vgg19", checksum=f"sha256:{hashlib.sha256(content).hexdigest()[:8]}")
    return content


def pretend(monkeypatch, net, **fields):
    monkeypatch.setitem(vgg.PRETRAINED, net, replace(vgg.PRETRAINED[net], **fields))


@pytest.fixture
def server(hub, monkeypatch):
    """Serves that file, and breaks the first connections after some bytes if told to."""
    cuts: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Length", str(len(hub) - start))
            self.end_headers()
            self.wfile.write(hub[start : start + cuts.pop(0) if cuts else None])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0,))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/vgg19-dcbb9e9d.pth"
        pretend(monkeypatch, "vgg19", url=url)
        yield cuts
        http.shutdown()


@pytest.mark.parametrize(
    ("net", "weights"),
    [
        (pretrained.VGG16, torchvision.models.VGG16_Weights),
        (pretrained.VGG19, torchvision.models.VGG19_Weights),
        (pretrained.ALEXNET, torchvision.models.AlexNet_Weights),
        (pretrained.SQUEEZENET, torchvision.models.SqueezeNet1_1_Weights),
    ],
)
def test_it_is_torchvisions_file_that_is_asked_for(net, weights):
    weights = weights.IMAGENET1K_V1
    assert weights.url == net.url
    assert "sha256:" + weights.url.rpartition("-")[2].removesuffix(".pth") == net.checksum
    assert f"{weights.meta['_file_size']:.0f} MB" == net.size


def test_layers_have_the_papers_names_in_torchvisions_order(theirs):
    kinds = {"Conv2d": "conv", "ReLU": "relu", "MaxPool2d": "pool"}
    assert [kinds[type(layer).__name__] for layer in theirs.features] == [n[:4] for n in vgg.LAYERS]
    # torchvision's own documentation of SRGAN's and ESRGAN's features: the 35th and 36th layer.
    assert (vgg.LAYERS[34], vgg.LAYERS[35]) == ("conv5_4", "relu5_4")


def test_average_pooling_is_torchvisions_network_with_its_pools_exchanged(theirs):
    image = torch.rand(1, 3, 32, 48)
    x = normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    features = Features(("relu1_2", "pool1", "relu3_4"), pool="avg")
    features.layers.load_state_dict(theirs.features[:18].state_dict())
    found = features(image)
    for i, layer in enumerate(theirs.features[:18]):
        x = F.avg_pool2d(x, 2) if isinstance(layer, torch.nn.MaxPool2d) else layer(x)
        if vgg.LAYERS[i] in found:
            assert_close(found[vgg.LAYERS[i]], x, rtol=1e-4, atol=1e-5)
    assert features.up_to("pool1").pool == "avg"
    with pytest.raises(ValueError, match="pool must be 'max' or 'avg', got 'mean'"):
        Features(pool="mean")


def test_vgg16_is_torchvisions_layer_for_layer():
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16().eval()
    kinds = {"Conv2d": "conv", "ReLU": "relu", "MaxPool2d": "pool"}
    names = vgg.NAMES["vgg16"]
    assert [kinds[type(layer).__name__] for layer in theirs.features] == [n[:4] for n in names]
    # LPIPS and the style-transfer literature cut VGG16 behind these.
    depths = {"relu1_2": 4, "relu2_2": 9, "relu3_3": 16, "relu4_3": 23, "relu5_3": 30}
    features = Features(tuple(depths), net="vgg16")
    features.layers.load_state_dict(theirs.features[:30].state_dict())
    image = torch.rand(1, 3, 32, 48)
    x = normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for tap, depth in depths.items():
        assert_close(features(image)[tap], theirs.features[:depth](x), rtol=1e-4, atol=1e-5)
    shallow = features.up_to("relu3_3")
    assert shallow.net == "vgg16"
    assert_close(shallow(image)["relu3_3"], features(image)["relu3_3"])
    with pytest.raises(ValueError, match="VGG16 has no layer 'relu3_4'"):
        Features("relu3_4", net="vgg16")


def test_vgg16_from_a_data_folder_is_known_by_its_content(tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = Features("pool5", net="vgg16").layers.state_dict()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("SRLAB_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "vgg16_features_imagenet.safetensors"
    save_file(weights, file, {"origin": "elsewhere"})
    with pytest.raises(FeatureError, match=r"not hold the weights that torchvision published"):
        vgg.load("vgg16", ["relu3_3"])
    content = b"".join(
        f"{name} {tuple(weights[name].shape)}\n".encode() + weights[name].numpy().tobytes()
        for name in sorted(weights)
    )
    pretend(monkeypatch, "vgg16", digest=hashlib.sha256(content).hexdigest())
    loaded = vgg.load("vgg16", ["relu1_2", "relu3_3"])
    assert_close(loaded.layers[14].weight, weights["14.weight"])
    assert loaded.channels == {"relu1_2": 64, "relu3_3": 256}


def test_taps_are_torchvisions_features_of_the_normalised_image(theirs):
    taps = ("relu2_2", "relu5_4", "conv5_4")
    features = Features(taps)
    assert len(features.layers) == 36  # nothing is computed beyond the deepest tap
    features.layers.load_state_dict(theirs.features[:36].state_dict())
    image = torch.rand(2, 3, 64, 48)
    preset = VGG19_Weights.IMAGENET1K_V1.transforms()
    x = normalize(image, preset.mean, preset.std)
    with torch.no_grad():
        found = features(image)
        for tap, depth in zip(taps, (9, 36, 35), strict=True):
            assert_close(found[tap], theirs.features[:depth](x), rtol=1e-4, atol=1e-5)
            assert found[tap].shape[1] == features.channels[tap]


def test_gradients_reach_the_image_and_no_weight():
    features = Features("relu2_1", width=1 / 16)
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    features(image)["relu2_1"].square().sum().backward()
    assert image.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in features.parameters())


def test_it_cannot_be_put_into_training_mode():
    parent = torch.nn.Sequential(Features("relu1_1", width=1 / 16))
    parent.train()
    assert not any(m.training for m in parent[0].modules())


def test_an_unknown_tap():
    with pytest.raises(ValueError, match=r"no layer 'relu5_5'.*did you mean relu5_"):
        Features(("relu1_1", "relu5_5"))


def test_fetched_from_a_server_that_hangs_up(server, hub, theirs):
    server += [len(hub) // 3]
    path = vgg.PRETRAINED["vgg19"].fetch(progress=False)
    assert path.read_bytes() == hub
    assert [file.name for file in path.parent.iterdir()] == ["vgg19-dcbb9e9d.pth"]
    features = vgg.load("vgg19", ["relu1_2"])
    assert_close(features.layers[2].weight, theirs.features[2].weight)


def test_a_download_that_never_ends_leaves_nothing_under_the_final_name(server, hub):
    server += [1000, 1000]
    with pytest.raises(DownloadError, match="it goes on from there"):
        vgg.PRETRAINED["vgg19"].fetch(progress=False)
    assert not vgg.PRETRAINED["vgg19"].file.exists()
    with pytest.raises(FeatureError, match=r"run `srlab fetch vgg19` .* or use vgg19-slim"):
        vgg.load("vgg19")
    assert (
        vgg.PRETRAINED["vgg19"].fetch(progress=False).read_bytes() == hub
    )  # goes on and completes


def test_a_wrong_file_is_deleted_and_refused(server, monkeypatch):
    pretend(monkeypatch, "vgg19", checksum="sha256:00000000")
    with pytest.raises(DownloadError, match="had the wrong checksum and was deleted"):
        vgg.PRETRAINED["vgg19"].fetch(progress=False)
    assert not vgg.PRETRAINED["vgg19"].file.exists()


def test_half_a_file_in_torchs_cache_is_refused(hub):
    path = vgg.PRETRAINED["vgg19"].file
    path.parent.mkdir(parents=True)
    path.write_bytes(hub[: len(hub) // 2])
    with pytest.raises(FeatureError, match=r"vgg19-dcbb9e9d.pth is not the published file"):
        vgg.load("vgg19")
    assert path.exists()  # it is the user's; only they delete it


def test_saved_features_come_back(tmp_path):
    torch.manual_seed(0)
    features = Features("relu3_1", width=1 / 8)
    vgg.save(features, tmp_path / "mine.safetensors")
    loaded = vgg.load(tmp_path / "mine.safetensors", ["relu2_2"])
    image = torch.rand(1, 3, 16, 16)
    features.taps = ("relu2_2",)
    assert_close(loaded(image)["relu2_2"], features(image)["relu2_2"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vgg18", None, "no features 'vgg18': choose vgg19-slim, vgg19, vgg16, or a file"),
        ("text.safetensors", b"no weights", "text.safetensors holds no features of srlab"),
    ],
)
def test_other_names_and_files_are_refused(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FeatureError, match=message):
        vgg.load(name)


def test_weights_that_stop_too_early_are_refused(tmp_path):
    vgg.save(Features("relu1_2", width=1 / 8), tmp_path / "short.safetensors")
    with pytest.raises(FeatureError, match=r"features.5.weight does not fit"):
        vgg.load(tmp_path / "short.safetensors", ["relu2_1"])


def test_the_slim_network_is_small_and_knows_more_than_a_random_one():
    assert vgg.SLIM.stat().st_size < 3e6
    features = vgg.load("vgg19-slim", ("relu5_4",))
    assert features.channels == {"relu5_4": 128}
    assert sum(p.numel() for p in features.parameters()) == sum(
        p.numel() for p in Features("relu5_4", 0.25).parameters()
    )
    results = Path(__file__).parents[1] / "notebooks" / "results" / "vgg_slim.csv"
    with open(results, newline="", encoding="utf-8") as file:
        measured = {(row["network"], row["tap"]): row for row in csv.DictReader(file)}
    taps = ("relu1_2", "relu2_2", "relu3_4", "relu4_4")
    better = {"explained": taps[:3], "rank": taps, "rank_published": taps, "rank_within": taps}
    for column, where in better.items():
        for tap in where:
            own, chance = (measured[name, tap][column] for name in ("vgg19-slim", "random"))
            assert float(own) > float(chance)


@pytest.mark.skipif(not pretrained.VGG16.find(), reason="needs VGG16's weights")
def test_the_slim_network_orders_spoilt_pictures_as_vgg16_does(photo):
    """Blurred, noisy and faded ones, by the distance of relu3_4 against that of relu3_3."""
    from scipy.stats import spearmanr
    from torchvision.transforms.functional import gaussian_blur

    torch.manual_seed(0)
    hr = photo[None]
    spoilt = [gaussian_blur(hr, 9, s) for s in (0.5, 1.0, 2.0)]
    spoilt += [(hr + s * torch.randn_like(hr)).clamp(0, 1) for s in (0.02, 0.05, 0.1)]
    spoilt += [hr + s * (0.5 - hr) for s in (0.1, 0.2, 0.4)]

    def distances(name, tap):
        features = vgg.load(name, [tap])
        with torch.no_grad():
            wanted = features(hr)[tap]
            return [float((features(x)[tap] - wanted).square().mean()) for x in spoilt]

    ours, theirs = distances("vgg19-slim", "relu3_4"), distances("vgg16", "relu3_3")
    assert spearmanr(ours, theirs).statistic > 0.9


def test_calibration_takes_its_images_to_the_features():
    """As the crops of a GPU's bank and features that are still on the CPU, and the other way."""
    features = vgg.load("vgg19-slim", ["relu1_2"]).to("meta")
    seen = []

    def forward(images):
        seen.append(images.device.type)
        return {"relu1_2": torch.full((1, 4, 2, 2), 3.0)}

    features.forward = forward
    assert vgg.calibrate(features, torch.rand(1, 3, 8, 8)) == {"relu1_2": 3.0}
    assert seen == ["meta"]
