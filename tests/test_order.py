"""Cells run out of order: the message names the cell that comes first."""

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from srlab.course.order import cell_that_makes, explain_missing_names


@pytest.fixture
def notebook(tmp_path):
    cells = [
        new_markdown_cell("bank = 1"),
        new_code_cell("%matplotlib inline"),
        new_code_cell("import numpy as np\nfrom math import pi"),
        new_code_cell("bank = np.arange(3)\nfor row, column in [(0, 1)]:\n    total = row"),
        new_code_cell("def my_loss(x):\n    inner = x\n    return inner"),
        new_code_cell("bank = 2"),
    ]
    file = tmp_path / "03_x.ipynb"
    nbformat.write(new_notebook(cells=cells), file)
    return file


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("bank", "bank = np.arange(3)"),
        ("np", "import numpy as np"),
        ("pi", "import numpy as np"),
        ("column", "bank = np.arange(3)"),
        ("my_loss", "def my_loss(x):"),
        ("inner", None),
        ("nowhere", None),
    ],
)
def test_finds_the_cell_that_binds_a_name(notebook, name, line):
    assert cell_that_makes(name, notebook) == line


def test_a_name_error_tells_which_cell_comes_first(notebook, capsys, monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    explain_missing_names(notebook)
    result = shell.run_cell("bank + 1")
    assert not result.success
    assert "Run this one first: bank = np.arange(3)" in capsys.readouterr().out
    shell.run_cell("nowhere + 1")
    assert "name 'nowhere' is not defined" in capsys.readouterr().out
    assert shell.run_cell("bank = 1; bank + 1").result == 2


def test_does_nothing_outside_ipython(notebook, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    explain_missing_names(notebook)
