"""Chapters as web pages that need no network: pictures, formulas and style are inside each file."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srlab.files import write_text

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Super-resolution GANs</title>
<style>
{style}
</style>
<a class="skip" href="#content">Skip to the text</a>
<div class="page">
<nav class="chapters" aria-label="Chapters">
<ol>
{navigation}
</ol>
</nav>
<main id="content">
{body}
</main>
</div>
</html>
"""


def write_page(notebook: Path, folder: Path, title: str, chapters: Mapping[str, str] = {}) -> None:
    """Write the copy of a chapter that lies in ``folder`` as one HTML file, pictures included.

    Args:
        notebook: the chapter; a copy of the same name in ``folder`` is what gets shown. Without
            such a copy nothing is written.
        title: of the page.
        chapters: title and file stem of each chapter, for the navigation.
    """
    import nbformat

    executed = folder / notebook.name
    if executed.is_file():
        nb = nbformat.read(executed, as_version=4)
        body = render(nb, notebook.parent)
        write_text(executed.with_suffix(".html"), page(title, body, chapters))


def render(nb: Any, folder: Path) -> str:
    """A notebook's cells as HTML.

    Args:
        nb: notebook node; its live widgets are replaced by their still pictures.
        folder: where files are that its prose shows.
    """
    from nbconvert import HTMLExporter

    nb.metadata.pop("widgets", None)
    formulas: list[str] = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if make_static(output)]
        elif cell.cell_type == "markdown":
            cell.source = _take_formulas(cell.source, formulas)
    resources = {"metadata": {"name": "", "path": str(folder)}}
    exporter = HTMLExporter(template_name="basic", embed_images=True)
    body, _ = exporter.from_notebook_node(nb, resources)
    body = re.sub(r"FORMULA(\d+)X", lambda match: formulas[int(match[1])], body)
    # Another chapter, or the glossary, is the page beside this one.
    return re.sub(r'(href="(?:\d\d_\w+|glossary))\.(?:ipynb|md)', r"\1.html", body)


def page(title: str, body: str, chapters: Mapping[str, str] = {}) -> str:
    """A whole HTML document: navigation on the left, the body, and ways to the next chapter."""
    names = list(chapters)
    items = ['<li><a href="index.html">Super-resolution GANs</a>'] if names else []
    for name, stem in chapters.items():
        here = ' aria-current="page"' if name == title else ""
        items.append(f'<li><a href="{html.escape(stem)}.html"{here}>{html.escape(name)}</a>')
        if here:
            sections = [
                f'<li><a href="#{anchor}">{re.sub("<[^>]*>", "", heading)}</a>'
                for anchor, heading in re.findall(
                    r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', body, re.DOTALL
                )
            ]
            items.append("<ol>" + "\n".join(sections) + "</ol>")
    if title in names:
        at = names.index(title)
        before = f"← {_link(chapters, names[at - 1])}" if at else ""
        after = f"{_link(chapters, names[at + 1])} →" if at + 1 < len(names) else ""
        body += f'\n<div class="turn"><span>{before}</span><span>{after}</span></div>'
    return PAGE.format(
        title=html.escape(title), style=_style(), navigation="\n".join(items), body=body
    )


def _link(chapters: Mapping[str, str], name: str) -> str:
    return f'<a href="{html.escape(chapters[name])}.html">{html.escape(name)}</a>'


def _style() -> str:
    from jupyterlab_pygments import JupyterStyle
    from pygments.formatters import HtmlFormatter

    colours = HtmlFormatter(style=JupyterStyle).get_style_defs(".highlight")
    return Path(__file__).with_name("page.css").read_text() + colours


def _take_formulas(markdown: str, formulas: list[str]) -> str:
    """Put a placeholder for each ``$...$`` and ``$$...$$`` outside code, and its MathML in a list.

    (Markdown renderers take MathML's tags apart, so the formulas must wait until they are done.)
    """
    from latex2mathml.converter import convert

    def replace(match: re.Match) -> str:
        if match["code"]:
            return match[0]
        display = "block" if match["block"] else "inline"
        mathml = convert(match["block"] or match["inline"], display=display)
        # A function's name stands apart from its argument.
        space = r'\1<mspace width="0.17em"/>'
        formulas.append(re.sub(r"(<mi>(?:log|exp|min|max)</mi>)(?!<mo)", space, mathml))
        return f"FORMULA{len(formulas) - 1}X"

    code = r"(?P<code>```.*?```|`[^`\n]*`)"
    formula = r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+)\$"
    return re.sub(f"{code}|{formula}", replace, markdown, flags=re.DOTALL)


def make_static(output: Any) -> bool:
    """Take the live widget from an output; is anything left to look at?"""
    data = output.get("data", {})
    live = data.pop("application/vnd.jupyter.widget-view+json", None)
    return live is None or any(k == "text/html" or k.startswith("image/") for k in data)


def write_index(folder: Path, chapters: Mapping[str, tuple[str, dict | None]]) -> None:
    """Write ``index.html`` for a run of the course.

    Args:
        chapters: for each title the notebook's file stem and, if it was run, its entry in
            ``times.json``.
    """
    rows = []
    for title, (stem, entry) in chapters.items():
        title, stem = html.escape(title), html.escape(stem)
        if entry:
            status = html.escape(str(entry["status"]))
            rows.append(
                f'<tr><td><a href="{stem}.html">{title}</a>'
                f'<td class="{status}">{status}'
                f"<td>{duration(entry['seconds'])}"
                f'<td><a href="{stem}.ipynb">{stem}.ipynb</a>'
            )
        else:
            rows.append(f'<tr><td>{title}<td class="soft">not run yet<td><td>')
    entries = [entry for _, entry in chapters.values() if entry]
    done = sum(entry["status"] == "done" for entry in entries)
    took = duration(sum(entry["seconds"] for entry in entries))
    profile = html.escape(folder.name)
    body = (
        f"<h1>Super-resolution GANs</h1>\n"
        f'<p class="soft">Profile {profile}: {done} of {len(chapters)} chapters done, {took}</p>\n'
        '<table>\n<tr><th scope="col">Chapter<th scope="col">Status<th scope="col">Time'
        '<th scope="col">Notebook\n' + "\n".join(rows) + "\n</table>"
    )
    write_text(folder / "index.html", page(f"Profile {folder.name}", body))


def duration(seconds: float) -> str:
    """``74 s``, ``12 min`` or ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
