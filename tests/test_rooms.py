"""The package's rooms: no import runs upward, and the core imports without the extras."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "srlab"
# A file imports only from its own room and from those before it.
ROOMS = [
    "errors", "files", "data", "models", "losses", "evaluation", "training", "pictures", "bench",
    "course", "studies", "viz", "cli",
]  # fmt: skip
EXTRAS = [
    "IPython", "ipykernel", "ipywidgets", "jupyter_client", "jupyterlab", "jupyterlab_pygments",
    "matplotlib", "nbconvert", "nbformat", "onnx", "onnxruntime", "onnxscript", "optuna",
    "papermill", "ray", "spandrel", "sphinx", "tensorboard",
]  # fmt: skip


def room(module):
    """``data`` of ``srlab.data.images``; None of modules that aren't ours."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "srlab" and rest else None


def imported(source):
    """Names of the modules that a source imports, at its head or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports with the package's name"
            yield node.module
            if node.module == "srlab":
                yield from (f"srlab.{alias.name}" for alias in node.names)


def upward(name, source):
    """Rooms after the own one that a source imports from."""
    below = ROOMS[: ROOMS.index(room(name)) + 1]
    return {room(m) for m in imported(source)} & set(ROOMS) - set(below)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/*.py")) + sorted(PACKAGE.glob("[!_]*.py")))
def test_no_import_runs_upward(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    assert not upward(name, path.read_text(encoding="utf-8"))


def test_an_import_upward_would_be_found():
    hidden = "def f():\n    from srlab.training.run import Run\n    import srlab.cli"
    assert upward("srlab.data.images", hidden) == {"training", "cli"}
    assert upward("srlab.studies.sweep", hidden) == {"cli"}
    assert upward("srlab.models.zoo", "from srlab import losses, __version__") == {"losses"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_what_others_may_call_says_what_it_does(path):
    """Modules, and their public functions and classes."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        node
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert all(map(ast.get_docstring, [module, *public]))


def run_without_extras(code):
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code], capture_output=True, text=True, cwd=PACKAGE.parent
    )


def test_the_core_imports_and_upscales_without_the_extras(tmp_path):
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for name in ROOMS
        if name != "viz"
        for path in [PACKAGE / f"{name}.py", *sorted((PACKAGE / name).glob("[!_]*.py"))]
        if path.is_file()
    ]
    assert len(modules) > 40
    done = run_without_extras(
        f"import importlib\nfor module in {modules}: importlib.import_module(module)\n"
        "from PIL import Image\n"
        f"photo = {str(tmp_path / 'photo.png')!r}\n"
        "Image.new('RGB', (12, 8)).save(photo)\n"
        "sys.argv = ['srlab', 'upscale', photo]\n"
        "from srlab.cli import main\n"
        "main()"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "photo_x4.png").is_file()


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("from srlab.viz import figures", "course"),
        ("from srlab.course import run_course; run_course()", "course"),
        (
            "sys.argv = ['srlab', 'sweep', 'a.yaml']; from srlab.cli import main; main()",
            "course",
        ),
    ],
)
def test_a_missing_extra_is_named(code, extra):
    done = run_without_extras(code)
    assert done.returncode == 1
    assert f'pip install "srlab[{extra}]"' in done.stderr.splitlines()[-1]
