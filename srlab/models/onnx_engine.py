"""Generators in ONNX Runtime: a file that many other programs can run, and a second engine here.

ONNX (https://onnx.ai) is an exchange format for networks. The packages onnx, onnxscript and
onnxruntime are an optional dependency.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srlab.data.writing import replacing
from srlab.errors import SrlabError
from srlab.models.generators import fold, polyphase


class OnnxError(SrlabError):
    """A network that cannot be written as ONNX, or a file that cannot be run."""


class OnnxEngine(nn.Module):
    """A generator of :func:`export_onnx`, run by ONNX Runtime on the CPU in 32-bit floats.

    It takes the place of the network itself in :func:`srlab.evaluation.tiling.upscale` and
    :func:`srlab.evaluation.protocol.evaluate`; it has no parameters, cannot be trained, and a
    tensor on another device travels to the CPU and back.

    Args:
        path: the ``.onnx`` file.
        threads: of ONNX Runtime; by default as many as torch uses.

    Shape: (N, 3, H, W) RGB in [0, 1] -> (N, 3, H * scale, W * scale), any H and W.

    Raises:
        OnnxError: onnxruntime is not installed, or the file is damaged or of another origin.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        super().__init__()
        runtime = _import("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self.session = runtime.InferenceSession(path, options, ["CPUExecutionProvider"])
            notes = self.session.get_modelmeta().custom_metadata_map
            self.scale = int(notes["scale"])
            self.receptive_radius = int(notes["receptive_radius"])
        except Exception as error:  # onnxruntime's own kinds have no common base
            why = str(error).strip().splitlines()[0]
            raise OnnxError(
                f"{path} holds no generator that `export_onnx` wrote ({type(error).__name__}: "
                f"{why}): export it again."
            ) from error

    def forward(self, lr: Tensor) -> Tensor:
        (sr,) = self.session.run(None, {"lr": lr.detach().float().cpu().contiguous().numpy()})
        return torch.from_numpy(sr).to(lr)


def export_onnx(generator: nn.Module, path: str | Path) -> None:
    """Write a generator as ``srlab upscale`` runs it, as an ONNX file for pictures of any size.

    Input ``lr`` and output ``sr`` are as :class:`OnnxEngine` says; ``scale`` and
    ``receptive_radius`` stand in the file's metadata.

    Raises:
        OnnxError: packages are missing, or the network has an operation that ONNX lacks.
    """
    onnx = _import("onnx")
    _import("onnxscript")
    network = polyphase(fold(generator)).eval().cpu().float().requires_grad_(False)
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    try:
        program = torch.onnx.export(
            network, (torch.rand(2, 3, 16, 24),), dynamo=True, verbose=False,
            input_names=["lr"], output_names=["sr"], dynamic_shapes=(axes,),
        )  # fmt: skip
        model = program.model_proto
    except Exception as error:  # the exporter can stumble over anything
        raise OnnxError(
            f"{type(generator).__name__} cannot be written as ONNX: torch.onnx.export failed "
            f"({type(error).__name__}). Run it in torch."
        ) from error
    notes = {"scale": generator.scale, "receptive_radius": generator.receptive_radius}
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=str(value))
    with replacing(Path(path)) as temporary:
        onnx.save(model, temporary, format="protobuf")


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise OnnxError(
            f'ONNX needs {name}: `pip install "srlab[onnx]"`, then try again.'
        ) from error
