"""The web site, by Sphinx: the stored chapters, never executed, and the package's docstrings."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_type_hints

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from PIL import Image
from sphinx.util import logging
from sphinx.util.inspect import signature, stringify_signature

import srlab

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOMS = [
    "data", "models", "losses", "evaluation", "training", "pictures", "bench", "course", "studies",
    "viz", "cli",
]  # fmt: skip
# Chapter: which of its pictures, and what part of it (left, top, right, bottom), is the thumbnail.
THUMBNAILS = {
    "00": (0, (0.013, 0.061, 0.987, 0.975)),
    "01": (5, (0.018, 0.083, 0.982, 0.966)),
    "02": (14, (0.013, 0.123, 0.649, 0.966)),
    "03": (0, (0.0, 0.0, 0.92, 1.0)),
    "04": (1, (0.026, 0.241, 0.487, 0.365)),
    "05": (0, (0.52, 0.13, 0.98, 1.0)),
    "06": (0, (0.405, 0.470, 0.776, 0.968)),
    "07": (7, (0.12, 0.06, 0.83, 0.62)),
    "08": (3, (0.016, 0.118, 0.391, 0.953)),
}
log = logging.getLogger(__name__)


def repository() -> str:
    """The public address of this copy, where launch buttons lead, or nothing."""
    if name := os.environ.get("GITHUB_REPOSITORY"):
        return f"https://github.com/{name}"
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        origin = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ""
    found = re.search(r"github\.com[:/](.+?)(\.git)?$", origin.strip())
    return f"https://github.com/{found[1]}" if found else ""


author = "the srlab authors"
project = html_title = "Super-resolution GANs"
version = release = srlab.__version__
extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "set"}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
highlight_language = "none"  # commands in the chapters are not Python

html_theme = "sphinx_book_theme"
html_static_path = ["page.css"]
html_css_files = ["page.css"]
html_favicon = "favicon.svg"
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {"use_fullscreen_button": False, "navbar_persistent": []}
if address := repository():
    html_theme_options |= {
        "repository_url": address,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        },
    }


def gather(app) -> None:
    """Lay the chapters, a thumbnail of each and a page for each room of the package in here."""
    chapters = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    (HERE / "notebooks").mkdir(exist_ok=True)
    for path in (*chapters, ROOT / "notebooks" / "glossary.md"):
        shutil.copy2(path, HERE / "notebooks")
    for path in chapters:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        data = [o["data"] for cell in cells for o in cell.get("outputs", ()) if "data" in o]
        pictures = [kinds["image/png"] for kinds in data if "image/png" in kinds]
        number, part = THUMBNAILS[path.name[:2]]
        picture = base64.b64decode(pictures[min(number, len(pictures) - 1)])
        _update(HERE / "notebooks" / f"{path.stem}.png", _cut(picture, part))
    (HERE / "api").mkdir(exist_ok=True)
    for room in ROOMS:
        path = Path(srlab.__file__).with_name(room)
        files = sorted(path.glob("[!_]*.py"))
        page = ".. highlight:: python\n\n"
        page += f"srlab.{room}\n{'=' * 40}\n\n.. automodule:: srlab.{room}\n"
        page += "   :no-members:\n" if files else ""
        for file in files:
            page += f"\n{file.stem}\n{'-' * 40}\n\n.. automodule:: srlab.{room}.{file.stem}\n"
        _update(HERE / "api" / f"{room}.rst", page.encode())


def _cut(picture: bytes, part: tuple[float, float, float, float]) -> bytes:
    """A part of a PNG file, at most 600 pixels wide."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image = image.crop([round(n * x) for n, x in zip(image.size * 2, part, strict=True)])
    image.thumbnail((600, 600))
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def _update(path: Path, content: bytes) -> None:
    """Write a file unless it holds this already, so that Sphinx reads only what has changed."""
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)


def describe(app, doctree: nodes.document) -> None:
    """A figure's text on a terminal says what it shows: here it is the alternative text."""
    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") == "mime_bundle":
            words = [kind.astext() for kind in bundle if kind["mime_type"] == "text/plain"]
            for picture in bundle.findall(nodes.image):
                picture["alt"] = " ".join(words)
                if int(picture.get("width", 0)) > max(640, 1.3 * int(picture.get("height", 0))):
                    picture["classes"].append("wide")  # its letters would be too small on a phone
    for picture in doctree.findall(nodes.image):
        if not picture.get("alt"):
            log.warning("a picture without alternative text", location=picture)


def sign(app, what, name, obj, options, signed, returns) -> tuple[str | None, str | None]:
    """A widget is called as its ``__init__`` says: what it inherits takes just anything.

    Of a command's parameters the types remain, without what the command line says of them.
    """
    if what == "class" and signed and signed.startswith("(*args"):
        own = signature(obj.__init__, bound_method=True)
        signed = stringify_signature(own, show_return_annotation=False, unqualified_typehints=True)
    elif what == "function" and signed and "Annotated[" in signed:
        own, hints = signature(obj), get_type_hints(obj)
        parts = [p.replace(annotation=hints[name]) for name, p in own.parameters.items()]
        own = own.replace(parameters=parts)
        signed = stringify_signature(own, show_return_annotation=False, unqualified_typehints=True)
    return signed, returns


def mathml(tex: str, block: bool) -> str:
    """A formula as MathML, which browsers draw without a script; raises MathError."""
    tex = re.sub(r"\\t?frac(\d)(\d)", r"\\frac{\1}{\2}", tex).replace(r"\dots", r"\ldots")
    return tex2mathml(tex.strip(), as_block=block)


def visit_math(self, node: nodes.Element) -> None:
    block = isinstance(node, nodes.math_block)
    try:
        drawn = mathml(node.astext(), block)
    except MathError as error:
        log.warning("%s: %s", node.astext(), error, location=node)
    else:
        self.body.append(f'<div class="formula">{drawn}</div>' if block else drawn)
    raise nodes.SkipNode


def setup(app) -> None:
    app.connect("builder-inited", gather)
    app.connect("doctree-read", describe)
    app.connect("autodoc-process-signature", sign)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
