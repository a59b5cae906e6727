"""Storing executed chapters: what a stored notebook keeps and what it drops."""

import base64
import io

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from srlab.course.refresh import normalised, packed, store

VIEW = "application/vnd.jupyter.widget-view+json"


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", **options)
    return base64.b64encode(buffer.getvalue()).decode()


def pixels_of(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGBA"))


def executed():
    """A notebook as papermill leaves it."""
    bar = new_output("display_data", data={VIEW: {"model_id": "x"}, "text/plain": "  0%|  | 0/9"})
    black = png(np.zeros((4, 4, 3), np.uint8))
    picture = new_output(
        "display_data",
        data={
            VIEW: {"model_id": "y"},
            "image/png": black,
            "text/plain": "two pictures",
        },
    )
    cells = [
        new_markdown_cell("# 09 A title"),
        new_code_cell("seed = 0", execution_count=1, metadata={"tags": ["parameters"]}),
        new_code_cell("seed = 3", execution_count=2, metadata={"tags": ["injected-parameters"]}),
        new_code_cell(
            "train()",
            execution_count=3,
            outputs=[bar, picture, new_output("stream", name="stdout", text="done\n")],
            metadata={"papermill": {"duration": 3.2}, "execution": {"iopub.status.busy": "now"}},
        ),
        new_code_cell(
            "6 * 7",
            execution_count=4,
            outputs=[new_output("execute_result", data={"text/plain": "42"}, execution_count=4)],
        ),
    ]
    metadata = {
        "widgets": {"state": {}},
        "papermill": {},
        "kernelspec": {"name": "mine", "display_name": "Mine"},
    }
    return new_notebook(cells=cells, metadata=metadata)


def test_keeps_results_and_drops_what_only_one_run_knew():
    notebook = normalised(executed())
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    sources = [cell.source for cell in notebook.cells]
    assert sources == ["# 09 A title", "seed = 0", "train()", "6 * 7"]
    code = notebook.cells[1:]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert [dict(cell.metadata) for cell in code] == [{"tags": ["parameters"]}, {}, {}]
    picture, text = code[1].outputs  # the progress bar is gone
    assert set(picture.data) == {"image/png", "text/plain"}
    assert text.text == "done\n"
    assert code[2].outputs[0].execution_count == 3


def test_same_run_gives_the_same_file(tmp_path):
    files = []
    for name in ("a", "b"):
        source, target = tmp_path / f"{name}.run.ipynb", tmp_path / f"{name}.ipynb"
        nbformat.write(executed(), source)  # nbformat gives the cells new random ids
        store(source, target)
        files.append(target.read_bytes())
    assert files[0] == files[1]
    assert sorted(p.name for p in tmp_path.iterdir() if "run" not in p.name) == [
        "a.ipynb",
        "b.ipynb",
    ]


def test_packing_a_picture_keeps_every_pixel():
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    opaque = noise.copy()
    opaque[..., 3] = 255
    for pixels in (noise, opaque, noise[..., :3], noise[..., 0]):
        text = png(pixels, compress_level=1)
        np.testing.assert_array_equal(pixels_of(packed(text)), pixels_of(text))
        assert len(packed(text)) <= len(text)
    assert len(packed(png(opaque))) < len(png(opaque))
