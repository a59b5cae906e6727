"""srlab.course.progress: the checks' record against the exercises of made-up and real chapters."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from srlab import course
from srlab.course import check

CLONE = Path(__file__).resolve().parents[1]


def chapter(folder, name, title, *numbers):
    cells = [nbformat.v4.new_markdown_cell(f'# {title}\n\nNot `check.value("99-9", 1, 1)`.')]
    cells += [
        nbformat.v4.new_code_cell(f'course.check.value(\n    "{n}", answer, expected=1\n)')
        for n in numbers
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / name)


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Two chapters with three and one exercises; the path of the record."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "profiles").mkdir(parents=True)
    chapter(notebooks, "00_start.ipynb", "00 Start <here>", "00-1", "00-10", "00-2")
    chapter(notebooks, "01_data.ipynb", "01 Data", "01-1")
    monkeypatch.setenv("SRLAB_COURSE", str(tmp_path))
    monkeypatch.delenv("SRLAB_RUNS", raising=False)
    return tmp_path / "runs" / "progress.json"


def test_before_the_first_attempt_it_says_so(record):
    check.value("00-1", ..., expected=1)
    assert repr(course.progress()) == "nothing attempted yet"
    assert course.progress()._repr_html_() == "<p>nothing attempted yet</p>"
    assert not record.exists()  # looking leaves no trace


def test_what_the_checks_said_stands_in_the_table(record):
    check.value("00-1", 1, expected=1)
    check.value("00-10", 2, expected=1)
    check.function("01-1", lambda x: x, lambda x: x, [1])
    check.value("01-1", 2, expected=1)  # solved stays solved
    lines = repr(course.progress()).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "00 Start <here> ✓·~ 1 of 3",  # in the order of their numbers: 1, 2, 10
        "01 Data ✓ 1 of 1",
        "✓ solved ~ tried 2 of 4",
    ]
    assert len({line.index(" of ") for line in lines}) == 1  # numbers under each other
    html = course.progress()._repr_html_()
    assert "00 Start &lt;here&gt;" in html
    assert re.findall(r'title="([^"]+)"', html) == [
        "00-1: solved",
        "00-2: not attempted",
        "00-10: tried",
        "01-1: solved",
    ]
    assert [p.name for p in record.parent.iterdir()] == ["progress.json"]  # no half-written file


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"00-1": 3}', '{"77-1": "correct"}', '{"00-1": "<b>"}']
)
def test_a_damaged_record_counts_as_empty(record, content):
    record.parent.mkdir()
    record.write_text(content)
    assert repr(course.progress()) == "nothing attempted yet"
    check.value("00-2", 1, expected=1)
    assert "✓" in repr(course.progress())


def test_a_notebook_that_cannot_be_read_leaves_the_others(record):
    (record.parents[1] / "notebooks" / "02_half.ipynb").write_text('{"cells": [')
    check.value("01-1", 1, expected=1)
    assert "1 of 4" in repr(course.progress())
    assert "02_half" in repr(course.progress())


def test_without_a_course_nothing_was_attempted(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLAB_COURSE", str(tmp_path))
    assert repr(course.progress()) == "nothing attempted yet"


def test_the_real_chapters_exercises_are_all_found(tmp_path, monkeypatch):
    """Each has a solution, by a header in notebooks/solutions."""
    monkeypatch.delenv("SRLAB_COURSE", raising=False)
    solved = {
        number
        for path in (CLONE / "notebooks" / "solutions").glob("*.py")
        for number in re.findall(r"^# %% (\d\d-\d+)", path.read_text(), re.MULTILINE)
    }
    monkeypatch.setenv("SRLAB_RUNS", str(tmp_path))
    (tmp_path / "progress.json").write_text(json.dumps(dict.fromkeys(solved, "correct")))
    shown = course.progress()
    assert {n for numbers in shown.chapters.values() for n in numbers} == solved
    assert repr(shown).endswith(f"{len(solved)} of {len(solved)}")
