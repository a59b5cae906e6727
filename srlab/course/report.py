"""A run of the course to look at: a web page for each executed chapter, and an index."""

import html
from collections.abc import Mapping
from pathlib import Path

from srlab.files import write_text

INDEX = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Profile {profile} · Super-resolution GANs</title>
<style>
body {{ font: 17px/1.6 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto;
  padding: 0 1rem }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid gray }}
.failed, .stopped {{ font-weight: 600 }}
</style>
<h1>Super-resolution GANs</h1>
<p>Profile {profile}: {done} of {all} chapters done; their times added up: {took}</p>
<table>
<tr><th scope="col">Chapter<th scope="col">Status<th scope="col">Time<th scope="col">Notebook
{rows}
</table>
</html>
"""


def write_page(executed: Path, source: Path) -> None:
    """Write an executed notebook as one HTML file beside it; nothing if it is not there.

    Args:
        source: folder of the chapters, where the files are that their prose shows.
    """
    if not executed.is_file():
        return
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            describe(output)
    resources = {"metadata": {"name": executed.stem, "path": str(source)}}
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook, resources)
    write_text(executed.with_suffix(".html"), page)


def describe(output: dict) -> None:
    """Give a picture its alternative text, which nbconvert does not: its plain text."""
    data = output.get("data", {})
    if png := data.get("image/png"):
        words = html.escape(data.get("text/plain", ""))
        data["text/html"] = f'<img src="data:image/png;base64,{png}" alt="{words}">'


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
                f'<tr><td><a href="{stem}.html">{title}</a><td class="{status}">{status}'
                f'<td>{duration(entry["seconds"])}<td><a href="{stem}.ipynb">{stem}.ipynb</a>'
            )
        else:
            rows.append(f"<tr><td>{title}<td>not run yet<td><td>")
    entries = [entry for _, entry in chapters.values() if entry]
    page = INDEX.format(
        profile=html.escape(folder.name),
        done=sum(entry["status"] == "done" for entry in entries),
        all=len(chapters),
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
