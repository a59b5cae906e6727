"""The web site: a small course built by docs/conf.py, and what the real chapters need of it."""

import base64
import io
import re
import runpy
import shutil
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from sphinx.cmd.build import build_main

from srlab.course.refresh import METADATA

CLONE = Path(__file__).parents[1]
CODE_OR_FORMULA = re.compile(r"```.*?```|`[^`\n]*`|\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)


def build(root, text):
    """Two chapters, the first with a text, a picture and a result; (exit status, page)."""
    (root / "notebooks").mkdir()
    (root / "docs").mkdir()
    for name in ("conf.py", "page.css", "favicon.svg"):
        shutil.copy(CLONE / "docs" / name, root / "docs")
    chapters = "notebooks/00_start\nnotebooks/01_data\nnotebooks/glossary\n"
    (root / "docs/index.md").write_text(f"# Course\n```{{toctree}}\n{chapters}```\n")
    (root / "notebooks/glossary.md").write_text("# Glossary\n")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="png")
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "A cup"}
    shown = new_output("display_data", data=data)
    printed = new_output("stream", name="stdout", text="as it was stored\n")
    code = new_code_cell("raise SystemExit", outputs=[shown, printed], execution_count=1)
    for name, prose in (("00_start", text), ("01_data", "# 01 Data\n## Crops\nSmall.")):
        notebook = new_notebook(cells=[new_markdown_cell(prose), code], metadata=METADATA)
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    source, target = str(root / "docs"), str(root / "site")
    status = build_main(["-q", "-W", "-D", "exclude_patterns=api/*", source, target])
    page = root / "site/notebooks/00_start.html"
    return status, page.read_text(encoding="utf-8") if page.is_file() else ""


def test_a_page_shows_what_was_stored_and_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/name")
    text = "# 00 Start\nSee [crops](01_data.ipynb#crops) of $x^2$ pixels."
    status, page = build(tmp_path, text)
    assert status == 0
    assert 'href="01_data.html#crops"' in page
    assert re.search(r'<img alt="A cup"', page)
    assert "as it was stored" in page
    assert '<link rel="icon" href="../_static/favicon.svg"/>' in page
    assert "<msup>" in page
    assert "colab.research.google.com/github/owner/name/blob/main/notebooks/00_start.ipynb" in page
    assert "mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/notebooks/00_start.ipynb" in page
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', page)
    assert (tmp_path / "site/searchindex.js").is_file()


def test_a_link_that_leads_nowhere_stops_the_build(tmp_path):
    status, _ = build(tmp_path, "# 00 Start\n[gone](07_nowhere.ipynb)")
    assert status != 0


def test_every_formula_can_be_drawn():
    mathml = runpy.run_path(str(CLONE / "docs/conf.py"))["mathml"]
    for path in sorted((CLONE / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for block, inline in CODE_OR_FORMULA.findall(cell.source):
                    if block or inline:
                        assert "<math" in mathml(block or inline, bool(block)), path
