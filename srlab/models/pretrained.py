"""Networks that torchvision trained on ImageNet: where their weights lie and how to know them.

Only ``features``, the convolutional part, is ever used. It is read from torchvision's own file,
where torch keeps downloaded models, or from a file of features alone in a folder that
``SRLAB_DATA`` names. Nothing here downloads unasked.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srlab.data.datasets import data_folders
from srlab.data.download import download, has_checksum
from srlab.errors import SrlabError

URL = "https://download.pytorch.org/models/"


class FeatureError(SrlabError):
    """Weights of a feature extractor are missing or damaged."""


@dataclass(frozen=True)
class Pretrained:
    """A network of torchvision's.

    Attributes:
        name: its name there.
        command: what ``srlab fetch`` calls it.
        url: of torchvision's file.
        checksum: of that file; torchvision puts the first digits into the name.
        size: of that file.
        digest: of its features' tensors (:func:`digest`); empty where it is not known.
    """

    name: str
    command: str
    url: str
    checksum: str
    size: str
    digest: str = ""

    @property
    def file(self) -> Path:
        """Where torch, torchvision and :meth:`fetch` keep torchvision's file."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rpartition("/")[2]

    def find(self) -> Path | None:
        """Torchvision's file, or ``weights/NAME_features_imagenet.safetensors`` of a data folder;
        None where there is neither."""
        own = f"{self.name}_features_imagenet.safetensors"
        places = [self.file, *(folder / "weights" / own for folder in data_folders())]
        return next((place for place in places if place.is_file()), None)

    def read(self) -> tuple[dict[str, Tensor], bool]:
        """The weights of ``features`` under their names there (``0.weight``), in 32 bits.

        Returns:
            Them, and whether they are torchvision's own, by their content.

        Raises:
            FeatureError: there is no file, it cannot be read, or it bears the name of
                torchvision's and is not it.
        """
        path = self.find()
        if path is None:
            raise FeatureError(
                f"the weights of {self.name} are not on this machine ({self.file}): "
                f"`srlab fetch {self.command}` gets them ({self.size})."
            )
        if path == self.file and not has_checksum(path, self.checksum):
            raise FeatureError(
                f"{path} is not the published file, or only part of it: delete it and run "
                f"`srlab fetch {self.command}` again."
            )
        try:
            if path == self.file:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                found = {k[9:]: t for k, t in found.items() if k.startswith("features.")}
            else:
                from safetensors.torch import load_file

                found = load_file(path)
            weights = {name: tensor.float() for name, tensor in found.items()}
        except Exception as error:  # damaged files fail in many ways
            raise FeatureError(
                f"{path} does not hold the features of {self.name} ({type(error).__name__}): "
                f"delete it and run `srlab fetch {self.command}`."
            ) from error
        return weights, path == self.file or digest(weights) == self.digest

    def fetch(self, progress: bool = True) -> Path:
        """Download torchvision's file to where torch keeps its models; at once if it is there.

        Raises:
            SrlabError: no connection, no space, no permission, or a wrong checksum; nothing
                half-made is left under the final name.
        """
        try:
            download(self.url, self.file, self.checksum, progress)
        except OSError as error:
            why = error.strerror or error
            raise FeatureError(
                f"Cannot write to {self.file.parent} ({why}): name another folder in TORCH_HOME."
            ) from error
        return self.file


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and 32-bit values, whatever file they came in."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().float().cpu().contiguous()
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.numpy().astype("<f4", copy=False).tobytes())
    return found.hexdigest()


VGG16 = Pretrained(
    "vgg16", "vgg16", f"{URL}vgg16-397923af.pth", "sha256:397923af", "528 MB",
    "522ec67d05323a29b934dc7d4d2a6fb8aa8eabdf9a99843df393aaf04d721675",
)  # fmt: skip
VGG19 = Pretrained("vgg19", "vgg19", f"{URL}vgg19-dcbb9e9d.pth", "sha256:dcbb9e9d", "548 MB")
ALEXNET = Pretrained(
    "alexnet", "lpips-alex", f"{URL}alexnet-owt-7be5be79.pth", "sha256:7be5be79", "233 MB",
    "901ec1eaad23cd186cbd86eb1db1b64ea4a633870c46df1564dbc510498640b4",
)  # fmt: skip
SQUEEZENET = Pretrained(
    "squeezenet1_1", "lpips-squeeze", f"{URL}squeezenet1_1-b8a52dc0.pth", "sha256:b8a52dc0", "5 MB"
)
