"""srlab.models.onnx_engine: ONNX Runtime gives what torch gives."""

import importlib

import pytest
import torch
from torch.testing import assert_close

from srlab.data.images import write_image
from srlab.evaluation import protocol
from srlab.evaluation.tiling import upscale
from srlab.models import zoo
from srlab.models.generators import WDRN, SRResNet
from srlab.models.onnx_engine import OnnxEngine, OnnxError, export_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def small():
    """With batch norm that has seen some images, so that folding matters."""
    torch.manual_seed(0)
    network = SRResNet(1, n_features=8, scale=2)
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # at zero it would only be bicubic
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, 3, 12, 12) ** 2 - 0.3)
    return network.eval()


def image(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "small.onnx"
    export_onnx(small(), path)
    return path


@pytest.mark.parametrize("name", sorted(zoo.released()))
def test_released_generators_on_odd_sizes(name, tmp_path):
    network = zoo.load(name)
    before = {key: x.clone() for key, x in network.state_dict().items()}
    export_onnx(network, tmp_path / "released.onnx")
    engine = OnnxEngine(tmp_path / "released.onnx")
    assert (engine.scale, engine.receptive_radius) == (4, network.receptive_radius)
    for shape in ((1, 3, 17, 23), (2, 3, 12, 31), (1, 3, 1, 1)):
        with torch.no_grad():
            assert_close(engine(image(*shape)), network(image(*shape)), atol=1e-4, rtol=0)
    for key, x in network.state_dict().items():
        assert torch.equal(x, before[key])


def test_a_dense_network_with_weights_and_norm(tmp_path):
    torch.manual_seed(0)
    network = WDRN(1, 2, n_features=8, growth=8, batch_norm=True).eval()
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # at zero it would only be bicubic
    with torch.no_grad():
        for name, x in network.named_parameters():
            if name.endswith(".weights"):
                x.uniform_(0.5, 2)
    export_onnx(network, tmp_path / "wdrn.onnx")
    with torch.no_grad():
        want = network(image(1, 3, 9, 11))
    assert_close(OnnxEngine(tmp_path / "wdrn.onnx")(image(1, 3, 9, 11)), want, atol=1e-4, rtol=0)


def test_the_file_is_a_valid_model_without_batch_norm(file):
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    (lr,) = model.graph.input
    sides = lr.type.tensor_type.shape.dim
    assert [bool(side.dim_param) for side in sides] == [True, False, True, True]
    assert list(file.parent.iterdir()) == [file]


def test_it_takes_the_networks_place(file, photo, tmp_path):
    """In tiles and under the protocol, channels last and in other dtypes."""
    network, engine = small(), OnnxEngine(file, threads=1)
    lr = image(3, 20, 37)
    assert_close(upscale(engine, lr, 16), upscale(network, lr, 16), atol=1e-4, rtol=0)
    last = lr[None].contiguous(memory_format=torch.channels_last)
    assert_close(upscale(engine, last)[0], upscale(network, lr), atol=1e-4, rtol=0)
    assert engine(lr[None].double()).dtype == torch.float64
    write_image(photo, tmp_path / "cat.png")
    (ours,), (theirs,) = (protocol.evaluate(m, [tmp_path / "cat.png"]) for m in (engine, network))
    assert ours.psnr == pytest.approx(theirs.psnr, abs=1e-3)
    assert ours.ssim == pytest.approx(theirs.ssim, abs=1e-4)


def test_a_network_in_training_stays_in_training(tmp_path):
    network = small().train()
    export_onnx(network, tmp_path / "a.onnx")
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("content", [b"", b"not an onnx file"])
def test_damaged_files(content, tmp_path):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(OnnxError, match=r"a\.onnx holds no generator") as error:
        OnnxEngine(tmp_path / "a.onnx")
    assert "\n" not in str(error.value)


def test_a_model_of_another_origin(file, tmp_path):
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    for path in (tmp_path / "other.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(OnnxError, match=f"{path.name} holds no generator"):
            OnnxEngine(path)


class Broken(torch.nn.Module):
    def forward(self, lr):
        raise NotImplementedError("no graph of this")


def test_what_cannot_be_written_leaves_an_old_file_alone(tmp_path):
    (tmp_path / "a.onnx").write_text("precious")
    with pytest.raises(OnnxError, match="Broken cannot be written"):
        export_onnx(Broken(), tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_text() == "precious"


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_packages(missing, file, tmp_path, monkeypatch):
    real = importlib.import_module

    def without(name, package=None):
        if name == missing:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    attempt = {"onnxruntime": lambda: OnnxEngine(file)}.get(
        missing, lambda: export_onnx(small(), tmp_path / "a.onnx")
    )
    with pytest.raises(OnnxError, match=f"needs {missing}: `pip install"):
        attempt()
