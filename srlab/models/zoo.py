"""Generators by name, and their weights in files.

``load("srresnet")`` gives a network with released weights, ``load("runs/mine")`` the moving
average of a training run of one's own. Files are safetensors: tensors and a header that says which
network they belong to, nothing that could run code.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srlab.errors import SrlabError
from srlab.files import whole
from srlab.models import released as package
from srlab.models.generators import WDRN, Bicubic, SRResNet

CLASSES = {cls.__name__: cls for cls in (Bicubic, SRResNet, WDRN)}

# Names that `srlab train` and `build` know: class and options.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bicubic": {"class": "Bicubic", "scale": 4},
    "srresnet": {"class": "SRResNet", "n_blocks": 5, "n_features": 64, "scale": 4},
    "srresnet-16": {"class": "SRResNet", "n_blocks": 16, "n_features": 64, "scale": 4},
    "wdrn": {"class": "WDRN", "fusion": "weighted-concat", "scale": 4},
    # wdrn with 16 blocks: 4.0% fewer parameters than SRResNet with as many.
    "wdrn-16": {"class": "WDRN", "n_blocks": 16, "fusion": "weighted-concat", "scale": 4},
    "wdrn-concat": {"class": "WDRN", "fusion": "concat", "scale": 4},
    "wdrn-scaled-sum": {"class": "WDRN", "fusion": "scaled-sum", "scale": 4},
    "wdrn-sum": {"class": "WDRN", "fusion": "sum", "scale": 4},
}

# The prefix under which a training checkpoint keeps the weights that should be used.
AVERAGE = "average.module."


class ModelError(SrlabError):
    """No such model, or weights that do not belong to it."""


def build(name: str) -> nn.Module:
    """A fresh network with random weights.

    Raises:
        ModelError: unknown name; lists the known ones.
    """
    if name not in ARCHITECTURES:
        raise ModelError(_unknown(name, ARCHITECTURES))
    return _construct(ARCHITECTURES[name])


def describe(model: nn.Module) -> dict[str, Any]:
    """Class and options of a generator: what is needed to construct it again."""
    return {"class": type(model).__name__} | model.options


def released() -> dict[str, Path]:
    """Names of the models whose weights come with the package, and where they lie."""
    return {path.stem: path for path in sorted(package.FOLDER.glob("*.safetensors"))}


def released_log(name: str) -> Path:
    """The training log (CSV) of a released model.

    Raises:
        ModelError: no released model of that name.
    """
    if name not in released():
        raise ModelError(_unknown(name, released()))
    return released()[name].with_suffix(".csv")


def load(name: str | Path) -> nn.Module:
    """A trained generator in evaluation mode, on the CPU, in 32-bit floats.

    Args:
        name: ``bicubic``, a released model (see :func:`released`), a ``.safetensors`` file
            written by :func:`save` or by a training run, a run's folder, or a file of another
            project's network (see :mod:`srlab.models.external`).

    Raises:
        ModelError: nothing of that name; or a file that is damaged or holds something else.
        ChecksumError: a file that says it is a released one, wherever it lies, is not.
    """
    if name == "bicubic":
        return build("bicubic").eval()
    path = released().get(str(name)) or Path(name)
    if path.is_dir():
        path = path / "checkpoint.safetensors"
    if not path.is_file():
        raise ModelError(_unknown(str(name), ["bicubic", *released()]))
    if path.resolve().is_relative_to(package.FOLDER.resolve()):
        package.check(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if original := _released_as(header):
                package.check(path, name=original)
            description = json.loads(header["model"])
            names = list(file.keys())
            if any(n.startswith(AVERAGE) for n in names):
                names = [n for n in names if n.startswith(AVERAGE)]
            weights = {n.removeprefix(AVERAGE): file.get_tensor(n) for n in names}
        model = _construct(description, weights)
    except (
        OSError, SafetensorError, AttributeError, KeyError, RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        from srlab.models.external import ExternalError, load_external

        try:
            return load_external(path)
        except ExternalError as other:
            raise ModelError(
                f"{path} holds no srlab generator ({type(error).__name__}: {error}). {other} Give "
                "a file that `srlab train` wrote, or the name of a released model."
            ) from error
    load_weights(model, weights, path)
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise ModelError(f"{path} holds weights that are not finite: its training has diverged.")
    return model.eval()


def save(
    model: nn.Module, path: Path | str, *, half: bool = False, notes: Mapping[str, Any] = {}
) -> None:
    """Write a generator's weights so that :func:`load` can rebuild it from the file alone.

    Args:
        half: store floats in half precision; ``load`` turns them back into 32 bits.
        notes: anything that JSON can hold: data, steps, figures.

    Raises:
        ModelError: the folder cannot be written to, or the disk is full; an older file stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = {
        name: (t.half() if half and t.is_floating_point() else t).cpu().contiguous()
        for name, t in model.state_dict().items()
    }
    header = {"model": describe(model), "notes": dict(notes)}
    metadata = {"format": "pt"} | {name: json.dumps(value) for name, value in header.items()}
    try:
        with whole(Path(path)) as temporary:
            save_file(weights, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} could not be written ({error}): make room there.") from error


def read_notes(path: Path | str) -> dict[str, Any]:
    """What :func:`save` was told about the weights; empty for a training checkpoint."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("notes", "{}"))


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """``model.load_state_dict`` with a message that a person can act on.

    Raises:
        ModelError: the weights belong to another architecture; names ``source`` and the first
            difference.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = sorted(n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape)
    if wrong:
        n = wrong[0]
        detail = f"{n} has shape {tuple(weights[n].shape)}, not {tuple(own[n].shape)}"
    elif missing or extra:
        detail = f"it lacks {missing[0]}" if missing else f"it also holds {extra[0]}"
    else:
        with torch.no_grad():
            model.load_state_dict(weights)
        return
    raise ModelError(
        f"{source} was made by another architecture than this {type(model).__name__}: {detail}. "
        "Build the network that it was trained with."
    )


def _construct(
    description: dict[str, Any], weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The network that a file describes, if it is no larger than the file's weights.

    Raises:
        ValueError: it would be larger.
    """
    options = {key: value for key, value in description.items() if key != "class"}
    build = CLASSES[description["class"]]
    if weights is not None:
        layers = options.get("n_blocks", 1) * options.get("n_layers", 1)
        fits = layers <= max(len(weights), 1)
        if fits:
            with torch.device("meta"):  # shapes without memory
                tensors = build(**options).state_dict().values()
            held = sum(4 * t.numel() for t in weights.values())
            fits = sum(t.nbytes for t in tensors) <= 2 * held
        if not fits:
            raise ValueError("its header describes a larger network than it holds weights for")
    return build(**options)


def _released_as(header: Mapping[str, str]) -> str | None:
    """The released file that a header's notes are those of, wherever the file itself lies."""
    notes = json.loads(header.get("notes", "{}"))
    known = released().values() if notes else ()
    return next((path.name for path in known if read_notes(path) == notes), None)


def _unknown(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"there is no model {name!r}: choose one of {', '.join(known)}.{hint}"
