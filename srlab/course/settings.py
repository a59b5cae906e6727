"""A chapter's settings: what its ``parameters`` cell says, and for the rest its profile.

A chapter holds one cell tagged ``parameters``, with literals only. ``None`` means "as the profile
says"::

    profile = "lite"
    seed = 0
    pretrain_steps = None

and the next cell begins the chapter with them::

    settings = course.begin("02", globals())

A chapter that leaves something for later ones ends with ``settings.save(metrics, name=network)``.
"""

import ast
import difflib
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from srlab.course.order import explain_missing_names
from srlab.course.paths import chapter_number, chapter_run, course_root, notebooks, write_json
from srlab.errors import SrlabError

if TYPE_CHECKING:
    from torch import nn


class SettingsError(SrlabError):
    """A profile or a parameter that does not exist, or a value that is not allowed."""


class Settings(SimpleNamespace):
    """Every setting of one chapter by its name, with ``chapter``, ``profile`` and ``run``.

    ``run`` is the folder of the chapter's results. It is printed as ``runs/<profile>/<NN>``
    wherever it lies, so that the printed settings are the same on every computer. ``device``,
    which :func:`begin` adds, is not printed for the same reason.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        raise SettingsError(
            f"Settings are fixed: to change {name}, edit the parameters cell and run it again."
        )

    def __repr__(self) -> str:
        shown = {**vars(self), "run": f"runs/{self.profile}/{self.chapter}"}
        shown.pop("device", None)
        width = max(map(len, shown))
        return "\n".join(f"{name:{width}} = {value}" for name, value in shown.items())

    def save(self, metrics: dict[str, Any], **networks: "nn.Module") -> None:
        """Leave ``metrics.json`` and a ``<name>.safetensors`` for each network in ``run``.

        Later chapters and sweeps find them there.
        """
        from srlab.models import zoo

        for name, network in networks.items():
            zoo.save(network, self.run / f"{name}.safetensors")
        write_json(self.run / "metrics.json", metrics)
        files = ", ".join(f"{name}.safetensors" for name in networks)
        print("saved", files + " and metrics.json" if files else "metrics.json")


def begin(chapter: int | str, names: Mapping[str, Any]) -> Settings:
    """All that a chapter needs before its first lesson: settings, a seed, a device, its folder.

    Seeds torch, prints the versions that results depend on, and from then on a name that is
    missing because a cell was skipped says which cell makes it.

    Args:
        chapter: its number.
        names: the notebook's names, ``globals()``: those of its ``parameters`` cell are taken.

    Returns:
        :func:`settings` with ``device``, ``"cuda"`` where there is a GPU, else ``"cpu"``.

    Raises:
        SettingsError: as :func:`settings`, and if the chapter or its parameters cell is missing.
    """
    import torch

    number = chapter_number(chapter)
    notebook = next((path for path in notebooks() if path.name.startswith(number)), None)
    parameters = declared(notebook) if notebook else []
    if not parameters:
        raise SettingsError(f"There is no chapter {number} with a parameters cell.")
    for name in parameters:
        if name not in names:
            raise SettingsError(f"{name} is not set: run chapter {number}'s parameters cell first.")
    chosen = settings(number, **{name: names[name] for name in parameters})
    torch.manual_seed(chosen.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__} on {device}, {threads} thread{'s' * (threads != 1)}")
    return Settings(**vars(chosen), device=device)


def settings(chapter: int | str, *, profile: str = "lite", **values: Any) -> Settings:
    """The settings of a chapter: ``values``, and where a value is ``None`` the profile's.

    Args:
        chapter: its number.
        profile: name of a file in ``notebooks/profiles``.
        values: every other name in the chapter's ``parameters`` cell.

    Raises:
        SettingsError: the profile does not exist or does not define a value that was left to it;
            a parameter, given here or injected by papermill, is not one of the chapter's; or a
            value is of another type than the profile's.
    """
    chapter = chapter_number(chapter)
    defaults = read_profile(profile)
    notebook = next((path for path in notebooks() if path.name.startswith(chapter)), None)
    # A chapter that is still being written, outside the course, may use what any profile sets.
    known = declared(notebook) if notebook else ["profile", "seed", *defaults]
    refuse_unknown(values, known, f"chapter {chapter}")
    # `papermill -f profiles/smoke.yaml` injects the whole profile: more than one chapter uses.
    injected = [name for name in _injected() if name not in defaults]
    refuse_unknown(injected, known, f"chapter {chapter}")
    for name, value in values.items():
        if value is None and name not in defaults:
            raise SettingsError(
                f"The profile {profile} does not define {name}, so chapter {chapter} needs a "
                f"value: set {name} in its parameters cell or in notebooks/profiles/{profile}.yaml."
            )
        values[name] = defaults[name] if value is None else value
        check_type(name, values[name], defaults.get(name), profile)
    if notebook:
        explain_missing_names(notebook)
    run = chapter_run(chapter, profile)
    return Settings(chapter=chapter, profile=profile, **values, run=run)


def read_profile(profile: str) -> dict[str, Any]:
    """The values that ``notebooks/profiles/<profile>.yaml`` gives to parameters, by name.

    Raises:
        SettingsError: there is no such profile, or the file is not a flat YAML mapping.
    """
    files = {path.stem: path for path in (course_root() / "notebooks/profiles").glob("*.yaml")}
    if profile not in files:
        raise SettingsError(
            f"There is no profile {profile!r}: choose one of {', '.join(sorted(files))}."
        )
    values = read_yaml(files[profile])
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        raise SettingsError(f"{files[profile]} must hold one `name: value` per line.")
    return values


def read_yaml(source: Path | str, error: type[SrlabError] = SettingsError) -> Any:
    """What a file, or a text, of YAML says: numbers, texts, lists and mappings.

    Raises:
        SettingsError: (or ``error``) a file that cannot be read, or that holds anything else.
    """
    import yaml

    name = str(source) if isinstance(source, Path) else repr(source[:80])
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        value = yaml.safe_load(text)
        json.dumps(value, default=date.isoformat)  # refuses sets, bytes, circles, endless numbers
        return value
    except (OSError, UnicodeDecodeError) as caught:
        raise error(f"Cannot read {name}: {caught}. Name a YAML file in UTF-8.") from caught
    except yaml.YAMLError as caught:
        where = getattr(caught, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        why = getattr(caught, "problem", None) or str(caught).splitlines()[0]
        raise error(f"{name} is not valid YAML ({why}{line}).") from caught
    except RecursionError as caught:
        raise error(f"{name} is nested too deeply: write flat lists.") from caught
    except (ValueError, TypeError, AttributeError) as caught:
        raise error(
            f"{name} holds something other than numbers, texts, lists and mappings ({caught})."
        ) from caught


def declared(notebook: Path) -> list[str]:
    """The names that a notebook's ``parameters`` cell assigns; none if it has no such cell.

    Raises:
        SettingsError: the file is not a notebook or that cell is not Python.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if "parameters" in cell["metadata"].get("tags", ()):
                return _assigned("".join(cell["source"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{notebook} is damaged: it is not a notebook ({error}).") from error
    except SyntaxError as error:
        raise SettingsError(
            f"The parameters cell of {notebook.name} is not Python: {error.msg}, "
            f"line {error.lineno}."
        ) from error
    return []


def refuse_unknown(names: Iterable[str], valid: Collection[str], where: str) -> None:
    """Raise :class:`SettingsError` for the first name that is not a parameter, with the nearest."""
    for name in names:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            listed = ", ".join(sorted({*valid}))
            raise SettingsError(f"Unknown parameter {name} for {where}.{meant} Valid: {listed}.")


def check_type(name: str, value: Any, like: Any, profile: str) -> None:
    """Raise :class:`SettingsError` if a value is of another type than the profile's value."""
    if isinstance(value, date):
        raise SettingsError(f"{name} cannot be the date {value}: write a number or a text.")
    if value is None or like is None or type(value) is type(like):
        return
    if isinstance(like, float) and type(value) is int:
        return
    raise SettingsError(
        f"{name} must be {type(like).__name__} like {like!r} in the profile {profile}, "
        f"not {type(value).__name__} {value!r}."
    )


def _injected() -> list[str]:
    """Names which papermill set in this kernel: it runs a cell headed ``# Parameters``.

    papermill injects a misspelt name without a word, so that a run would quietly use the default.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    history = shell.user_ns.get("In", []) if shell else []
    cells = [cell for cell in history if cell.partition("\n")[0].strip() == "# Parameters"]
    return _assigned(cells[-1]) if cells else []


def _assigned(source: str) -> list[str]:
    targets: list[Any] = []
    for node in ast.parse(source).body:
        targets += node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
