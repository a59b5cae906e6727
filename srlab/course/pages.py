"""A small web site of executed chapters: a page for each and an index, to open from the disk."""

import html
import re
from pathlib import Path
from typing import Any

from srlab.course.paths import write_text

# nbconvert's own page fetches scripts from the network, for diagrams, live widgets and formulas.
# Here they are dropped: formulas become MathML, which browsers draw by themselves.
TEMPLATE = """\
{%- extends "lab/index.html.j2" -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
"""

INDEX = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Super-resolution GANs: profile {profile}</title>
<style>
:root {{ color-scheme: light dark; --line: #d0d7de; --soft: #57606a; --link: #0550ae }}
@media (prefers-color-scheme: dark) {{
  :root {{ --line: #3d444d; --soft: #9198a1; --link: #79b8ff }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 46rem; margin: 3rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.6rem; margin-bottom: 0 }}
p, th, .soft {{ color: var(--soft) }}
table {{ width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--line) }}
th {{ font-weight: 500 }}
a {{ color: var(--link) }}
.failed, .stopped {{ font-weight: 600 }}
</style>
<h1>Super-resolution GANs</h1>
<p>Profile {profile}: {done} of {total} chapters done, {took}</p>
<table>
<tr><th scope="col">Chapter<th scope="col">Status<th scope="col">Time<th scope="col">Notebook
{rows}
</table>
</html>
"""


def write_page(notebook: Path, folder: Path, title: str) -> None:
    """Write the executed copy of a chapter in ``folder`` as one HTML file, pictures included."""
    import nbformat
    from nbconvert import HTMLExporter

    executed = folder / notebook.name
    if not executed.is_file():
        return
    nb = nbformat.read(executed, as_version=4)
    nb.metadata.pop("widgets", None)
    formulas: list[str] = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if make_static(output)]
        elif cell.cell_type == "markdown":
            cell.source = _take_formulas(cell.source, formulas)
    resources = {"metadata": {"name": title, "path": str(notebook.parent)}}
    exporter = HTMLExporter(embed_images=True, raw_template=TEMPLATE)
    page, _ = exporter.from_notebook_node(nb, resources)
    page = re.sub(r"FORMULA(\d+)X", lambda match: formulas[int(match[1])], page)
    write_text(executed.with_suffix(".html"), page)


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


def write_index(folder: Path, chapters: dict[str, tuple[str, dict | None]]) -> None:
    """Write ``index.html``.

    Args:
        chapters: for each title the notebook's file stem and, if it was run, its entry in
            ``times.json``.
    """
    rows = []
    for title, (stem, entry) in chapters.items():
        title, stem = html.escape(title), html.escape(stem)
        if entry:
            rows.append(
                f'<tr><td><a href="{stem}.html">{title}</a>'
                f'<td class="{entry["status"]}">{entry["status"]}'
                f"<td>{duration(entry['seconds'])}"
                f'<td><a href="{stem}.ipynb">{stem}.ipynb</a>'
            )
        else:
            rows.append(f'<tr><td>{title}<td class="soft">not run yet<td><td>')
    entries = [entry for _, entry in chapters.values() if entry]
    page = INDEX.format(
        profile=html.escape(folder.name),
        done=sum(entry["status"] == "done" for entry in entries),
        total=len(chapters),
        took=duration(sum(entry["seconds"] for entry in entries)),
        rows="\n".join(rows),
    )
    write_text(folder / "index.html", page)


def duration(seconds: float) -> str:
    """``74 s``, ``12 min`` or ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
