"""Other people's networks, as files of weights, behind the interface of our own generators.

spandrel (https://github.com/chaiNNer-org/spandrel) knows some forty published architectures by the
names and shapes of their tensors, ESRGAN, SwinIR and HAT among them. It is an optional dependency.
SRGAN's generator is not among them, so it is here: :class:`SRGAN`.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srlab.errors import SrlabError
from srlab.models.generators import SRResNet

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
OVERLAP = 32


class ExternalError(SrlabError):
    """A file from elsewhere that cannot be used; the message says why."""


class External(nn.Module):
    """A network that spandrel has recognised; for use, not for training: no gradient passes.

    A picture smaller than the network needs, or of a side that it cannot divide, is padded by
    reflection at the right and at the bottom, and the result cut.

    Args:
        descriptor: spandrel's ``ImageModelDescriptor``.

    Attributes:
        scale: HR size / LR size.
        architecture: its name, such as ``"HAT"``.
        receptive_radius: 32 LR pixels for every network: how far tiles overlap
            (:mod:`srlab.evaluation.tiling`). Many networks see farther, so that tiles differ a
            little from the whole picture; ``tile=None`` is exact. Windows of 8, 16 or 32
            pixels fall on the same places in tiles of 192 or 256 as in the whole picture.
        options: empty, since a weight file of ours cannot describe it.

    Shape: (N, 3, H, W) RGB in [0, 1] -> (N, 3, H * scale, W * scale), clamped to [0, 1].
    """

    def __init__(self, descriptor: Any):
        super().__init__()
        self.network = descriptor.model
        self.descriptor = descriptor
        self.scale = descriptor.scale
        self.architecture = descriptor.architecture.name
        self.receptive_radius = OVERLAP
        self.options: dict[str, Any] = {}

    def forward(self, lr: Tensor) -> Tensor:
        return self.descriptor(lr)


class SRGAN(nn.Module):
    """SRGAN's generator as in the paper's figure 4 and as TensorFlow codes train it.

    Our :class:`~srlab.models.generators.SRResNet`, with three differences: every PReLU has a slope
    for each channel, batch norm's epsilon is Keras' 1e-3, and the output is (tanh(x) + 1) / 2, as
    its HR pictures were scaled to [-1, 1]. The weights of krasserm/super-resolution fit it.

    Shape: (N, 3, H, W) RGB in [0, 1] -> (N, 3, H * 4, W * 4) in [0, 1].
    """

    def __init__(self, n_blocks: int = 16, n_features: int = 64):
        super().__init__()
        self.network = SRResNet(n_blocks, n_features, bicubic_skip=False)
        for parent in list(self.network.modules()):
            for name, module in parent.named_children():
                if isinstance(module, nn.PReLU):
                    setattr(parent, name, nn.PReLU(n_features))
                elif isinstance(module, nn.BatchNorm2d):
                    module.eps = 1e-3
        self.scale = self.network.scale
        self.architecture = "SRGAN"
        self.receptive_radius = self.network.receptive_radius
        self.options = {"n_blocks": n_blocks, "n_features": n_features}

    def forward(self, lr: Tensor) -> Tensor:
        return (torch.tanh(self.network(lr)) + 1) / 2


# Where a plain list of up-sampling layers (conv, shuffle, PReLU, conv, shuffle, PReLU) lies here.
_UPSAMPLE = {"0": "0.conv", "2": "0.act", "3": "1.conv", "5": "1.act"}


def _srgan(weights: dict[str, Any]) -> SRGAN | None:
    """The network if the tensors are its own by name and shape, else None."""
    renamed = {}
    for name, value in weights.items():
        part, *rest = str(name).split(".")
        if part == "upsample" and rest:
            rest[0] = _UPSAMPLE.get(rest[0], rest[0])
        renamed[".".join([part, *rest])] = value
    blocks = {name.split(".")[1] for name in renamed if name.startswith("blocks.")}
    tail = renamed.get("tail.weight")
    if not blocks or tail is None or getattr(tail, "ndim", 0) != 4:
        return None
    model = SRGAN(len(blocks), tail.shape[1])
    own = model.network.state_dict()
    if own.keys() != renamed.keys() or any(own[n].shape != renamed[n].shape for n in own):
        return None
    model.network.load_state_dict(renamed)
    return model


def load_external(path: str | Path) -> External | SRGAN:
    """A published network in evaluation mode, on the CPU, in 32-bit floats.

    Nothing in the file is executed: ``.safetensors`` holds tensors only, and of a pickle (``.pth``,
    ``.pt``, ``.ckpt``) torch's restricted reader takes tensors and plain containers.

    Args:
        path: the file, of a network that enlarges one RGB picture.

    Raises:
        ExternalError: spandrel is not installed; or the file is damaged, could run code, is of an
            unknown architecture, or of a network with another task.
    """
    path = Path(path)
    weights = _read(path)
    if (srgan := _srgan(weights)) is not None:
        return srgan.eval().requires_grad_(False)
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, canonicalize_state_dict
    except ImportError as error:
        raise ExternalError(
            f"{path} may be another project's network, which needs spandrel: "
            '`pip install "srlab[external]"`, then try again.'
        ) from error
    try:
        with warnings.catch_warnings():  # about the code of its networks, to which nobody can react
            warnings.simplefilter("ignore")
            weights = canonicalize_state_dict(weights)
            descriptor = ModelLoader(device="cpu").load_from_state_dict(weights)
    except Exception as error:  # spandrel guesses sizes from tensors, and can fail in any way
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExternalError(f"{path} holds no network that spandrel knows ({why}).") from error
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.scale < 2:
        raise ExternalError(
            f"{path} holds a network for another task than super-resolution "
            f"({descriptor.architecture.name}, {descriptor.purpose}, x{descriptor.scale})."
        )
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise ExternalError(
            f"{path} holds a network from {descriptor.input_channels} to "
            f"{descriptor.output_channels} channels: only RGB networks can be compared."
        )
    return External(descriptor.float().eval()).eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Any]:
    """The file's tensors, perhaps nested in dictionaries."""
    if path.suffix.lower() not in SUFFIXES:
        raise ExternalError(f"{path} does not end in one of {', '.join(SUFFIXES)}.")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return _bounded(load_file(path), path)
        if zipfile.is_zipfile(path):  # torch stores, it does not compress
            with zipfile.ZipFile(path) as file:
                unpacked = sum(member.file_size for member in file.infolist())
            if unpacked > path.stat().st_size:
                raise ExternalError(f"{path} is compressed, which no weight file is: refused.")
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except ExternalError:
        raise
    except pickle.UnpicklingError as error:
        raise ExternalError(
            f"{path} holds more than plain weights, or is damaged: unpacking it could run code, so "
            "it was refused. Ask its makers for a .safetensors file."
        ) from error
    except Exception as error:
        raise ExternalError(
            f"{path} cannot be read as weights ({type(error).__name__}): download it again."
        ) from error
    if not isinstance(weights, dict):
        raise ExternalError(f"{path} holds a {type(weights).__name__}, not tensors by name.")
    return _bounded(weights, path)


def _bounded(weights: dict[str, Any], path: Path) -> dict[str, Any]:
    """Refuse tensors, or counts of layers in their names, larger than the file can account for."""
    found, nbytes, layers, nested, seen = 0, 0, 0, [weights], set()
    while nested:
        seen.add(id(nested[-1]))
        for name, value in nested.pop().items():
            if isinstance(value, dict):
                nested += [value] if id(value) not in seen else []
            elif isinstance(value, Tensor):
                found, nbytes = found + 1, nbytes + value.nbytes
                layers = max([layers, *(int(n[:9]) for n in re.findall(r"\d+", str(name)))])
    if nbytes > 4 * path.stat().st_size or layers > 1000 + 10 * found:
        raise ExternalError(f"{path} describes a larger network than it holds weights for.")
    return weights
