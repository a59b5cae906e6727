"""Checkpoints: one safetensors file that holds all of a run, written atomically.

Nothing is ever unpickled, so a checkpoint from a stranger can be opened without fear. Weights lie
in it under their usual names (``generator.head.0.weight``), next to the moving average, the
optimizers, the schedulers and the random state; numbers that are not tensors go into the header.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from srlab.errors import SrlabError
from srlab.files import whole


class CheckpointError(SrlabError):
    """A checkpoint cannot be written, read or used for this network."""


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` into a :class:`CheckpointError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path} ({error}): choose a folder that is writable and has free space."
        ) from error


def flatten(tree: Any, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split nested dicts and lists into JSON and tensors named by their path.

    A tensor's place in the JSON holds ``{"tensor": name}``; a dict becomes a list of pairs, so
    that integer keys (optimizers have them) survive.
    """
    if isinstance(tree, Tensor):
        return {"tensor": prefix}, {prefix: tree.detach().cpu().contiguous().clone()}
    if isinstance(tree, dict):
        pairs: list[Any] = []
        tensors: dict[str, Tensor] = {}
        for key, value in tree.items():
            node, found = flatten(value, f"{prefix}.{key}" if prefix else str(key))
            pairs.append([key, node])
            tensors |= found
        return {"dict": pairs}, tensors
    if isinstance(tree, (list, tuple)):
        nodes, tensors = [], {}
        for i, value in enumerate(tree):
            node, found = flatten(value, f"{prefix}.{i}")
            nodes.append(node)
            tensors |= found
        return {"list": nodes}, tensors
    return {"value": tree}, {}


def unflatten(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`flatten`; tuples come back as lists."""
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "dict" in node:
        return {key: unflatten(value, tensors) for key, value in node["dict"]}
    if "list" in node:
        return [unflatten(value, tensors) for value in node["list"]]
    return node["value"]


def save_checkpoint(path: Path | str, state: dict[str, Any], info: dict[str, Any]) -> None:
    """Write ``state`` (nested dicts and lists of tensors and numbers) and ``info`` (JSON).

    ``info["model"]`` describes the generator, so that :func:`srlab.models.zoo.load` can take the
    trained network out of the file.

    The file appears under its name only when it is complete: a crash or a full disk in the middle
    leaves the previous checkpoint as it was.

    Raises:
        CheckpointError: the folder cannot be written to, or the disk is full.
    """
    from safetensors.torch import save_file

    path = Path(path)
    tree, tensors = flatten(state)
    header = {"model": info.get("model"), "info": info, "tree": tree}
    metadata = {"format": "pt"} | {name: json.dumps(value) for name, value in header.items()}
    with writing(path), whole(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_checkpoint(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint back: ``(state, info)``, all tensors on the CPU.

    Raises:
        CheckpointError: no such file, damaged, or not written by :func:`save_checkpoint`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: check the name.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            info, tree = json.loads(header["info"]), json.loads(header["tree"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return unflatten(tree, tensors), info
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete srlab checkpoint ({type(error).__name__}: {error}): it may "
            "be damaged or come from another program."
        ) from error
