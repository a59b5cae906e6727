"""The web site, by Sphinx: the stored chapters, never executed, and the package's docstrings."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

import srlab

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOMS = [
    "data", "models", "losses", "evaluation", "training", "pictures", "bench", "course", "studies",
    "viz", "cli",
]  # fmt: skip
THUMBNAILS = {"01": 10, "02": 5, "03": 5, "04": 4, "05": 8, "06": 12, "07": 7, "08": 1}
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

html_theme = "sphinx_book_theme"
html_static_path = ["page.css"]
html_css_files = ["page.css"]
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
        picture = pictures[min(THUMBNAILS.get(path.name[:2], 0), len(pictures) - 1)]
        _update(HERE / "notebooks" / f"{path.stem}.png", base64.b64decode(picture))
    (HERE / "api").mkdir(exist_ok=True)
    for room in ROOMS:
        path = Path(srlab.__file__).with_name(room)
        files = sorted(path.glob("[!_]*.py"))
        page = f"srlab.{room}\n{'=' * 40}\n\n.. automodule:: srlab.{room}\n"
        page += "   :no-members:\n" if files else ""
        for file in files:
            page += f"\n{file.stem}\n{'-' * 40}\n\n.. automodule:: srlab.{room}.{file.stem}\n"
        _update(HERE / "api" / f"{room}.rst", page.encode())


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
    for picture in doctree.findall(nodes.image):
        if not picture.get("alt"):
            log.warning("a picture without alternative text", location=picture)


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
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
