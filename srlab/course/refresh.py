"""Run chapters in place, so that what a reader sees on the page is what the code gives today."""

import base64
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srlab.course import paths
from srlab.course.run import run_course
from srlab.files import write_text

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def refresh(chapters: Sequence[int | str] | None = None) -> list[Path]:
    """Run chapters from scratch in the default profile and store their outputs in ``notebooks/``.

    They run in ``runs/refresh``, where a chapter finds what earlier ones left there; its own
    folder is emptied first. Nothing is stored unless all of them succeed.

    Returns:
        The notebooks that were rewritten.

    Raises:
        CourseError: a chapter failed, or there is none of that number.
    """
    wanted = None if chapters is None else [paths.chapter_number(c) for c in chapters]
    out = paths.runs_folder() / "refresh"
    originals = [p for p in paths.notebooks() if wanted is None or p.name[:2] in wanted]
    for original in originals:
        shutil.rmtree(out / "lite" / original.name[:2], ignore_errors=True)
    folder = run_course("lite", wanted, out=out, html=False)
    for original in originals:
        store(folder / original.name, original)
    return originals


def store(executed: Path, original: Path) -> None:
    """Write an executed notebook over its original, without anything that only that run knew."""
    import nbformat

    notebook = normalised(nbformat.read(executed, as_version=4))
    write_text(original, nbformat.writes(notebook) + "\n")


def normalised(notebook: Any) -> Any:
    """Drop the injected cell, widget state and papermill's notes; keep execution counts 1..n.

    The pictures stay; a live widget's view, which is nothing without its kernel, goes.
    """
    notebook.metadata.clear()
    notebook.metadata.update(METADATA)
    cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    count = 0
    for position, cell in enumerate(cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata.clear()
        if tags:
            cell.metadata["tags"] = tags
        cell["id"] = f"cell-{position:02}"
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [output for output in cell.outputs if make_static(output)]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            if picture := output.get("data", {}).get("image/png"):
                output.data["image/png"] = packed(picture)
    notebook.cells = cells
    return notebook


def make_static(output: Any) -> bool:
    """Take the live widget from an output; is anything left to look at?"""
    data = output.get("data", {})
    live = data.pop("application/vnd.jupyter.widget-view+json", None)
    return live is None or any(k == "text/html" or k.startswith("image/") for k in data)


def packed(png: str) -> str:
    """The same pixels in fewer bytes: base64 of a PNG file in, and out.

    Matplotlib stores an alpha channel that is opaque everywhere, and does not search for the best
    compression.
    """
    from PIL import Image

    image: Image.Image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return min(png, base64.b64encode(buffer.getvalue()).decode(), key=len)
