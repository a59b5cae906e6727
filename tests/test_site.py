"""The static site: pages that link up, a search that finds, and a broken link that is named."""

import json
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from srlab.course.paths import CourseError
from srlab.course.site import broken_links, build_site


@pytest.fixture
def course_root(tmp_path, monkeypatch):
    root = tmp_path / "clone"
    (root / "notebooks/profiles").mkdir(parents=True)
    write(
        root,
        "00_start.ipynb",
        "# 00 Start\nSee [the next](01_data.ipynb).\n\n## First steps\nA zebra.",
    )
    write(root, "01_data.ipynb", "# 01 Data & more\n## Crops\nAligned crops of $x^2$ pixels.")
    (root / "notebooks/glossary.md").write_text("# Glossary\n\n## Pictures\nHR, LR.\n")
    monkeypatch.setenv("SRLAB_COURSE", str(root))
    return root


def write(root, name, text):
    code = new_code_cell("print('secretword')", metadata={"tags": ["from-scratch"]})
    notebook = new_notebook(cells=[new_markdown_cell(text), code])
    nbformat.write(notebook, root / "notebooks" / name)


def test_pages_link_to_each_other_and_need_no_network(course_root, tmp_path):
    index = build_site(tmp_path / "site")
    pages = {path.name: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert pages.keys() == {"index.html", "00_start.html", "01_data.html", "glossary.html"}
    assert index.name == "index.html"
    assert 'href="01_data.html">the next</a>' in pages["00_start.html"]
    assert "01 Data &amp; more</a> →" in pages["00_start.html"]
    assert '← <a href="00_start.html"' in pages["01_data.html"]
    assert 'aria-current="page">01 Data &amp; more' in pages["01_data.html"]
    assert "<math" in pages["01_data.html"]
    for text in pages.values():
        assert "prefers-color-scheme: dark" in text
        assert not re.search(r'(?:src|href)="https?:', text)


def test_the_search_knows_prose_by_section_and_no_code(course_root, tmp_path):
    index = build_site(tmp_path / "site").read_text()
    data = re.search(r'id="sections">(.*?)</script>', index, re.DOTALL)[1]
    sections = {s["href"]: s for s in json.loads(data)}
    steps = sections["00_start.html#First-steps"]
    assert steps["heading"] == "First steps"
    assert steps["text"] == "A zebra."
    assert sections["01_data.html#01-Data-&amp;-more"]["chapter"] == "01 Data & more"
    assert "secretword" not in data


@pytest.mark.parametrize("target", ["07_nowhere.ipynb", "01_data.ipynb#Flips", "#Nothing"])
def test_a_link_that_leads_nowhere_is_named(course_root, tmp_path, target):
    write(course_root, "00_start.ipynb", f"# 00 Start\n[gone]({target})")
    with pytest.raises(CourseError, match=r"lead nowhere: 00_start\.html"):
        build_site(tmp_path / "site")


def test_links_of_other_kinds_are_left_alone(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="https://doi.org/x"></a> <a href="b.ipynb"></a> <a href="#here" id="here"></a>'
    )
    (tmp_path / "b.ipynb").write_text("{}")
    assert broken_links(tmp_path) == []
