"""The chapters: what holds for each of them, and every exercise with its solution."""

import ast
import importlib
import inspect
import itertools
import json
import pkgutil
import re
import shutil
from pathlib import Path

import nbformat
import pytest

import srlab
from srlab.course.run import READS, STARTS_FROM
from srlab.course.settings import declared, read_profile

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PROFILES = [path.stem for path in (ROOT / "notebooks/profiles").glob("*.yaml")]

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem[:2])


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def public_names():
    """Every class and function that a module of srlab defines for others."""
    names = set()
    for module in pkgutil.walk_packages(srlab.__path__, "srlab."):
        if module.name.endswith("__main__"):
            continue
        content = vars(importlib.import_module(module.name))
        names |= {
            name
            for name, value in content.items()
            if (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.name
            and not name.startswith("_")
        }
    return names


@chapters
def test_is_a_valid_notebook_below_the_size_limit(path):
    nbformat.validate(nbformat.read(path, 4))
    assert path.stat().st_size < 1.5e6


@chapters
def test_was_run_from_top_to_bottom(path):
    """nbval passes a notebook without execution counts whatever its outputs say."""
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@chapters
def test_stored_outputs_hold_no_error_and_no_path(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            text = json.dumps(output)
            assert not re.search(r"/(home|root|Users|tmp|work)/", text), text[:200]
            assert "application/vnd.jupyter.widget-view+json" not in text


@chapters
def test_every_picture_has_alternative_text(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(output.data["text/plain"]) > 20
                assert not output.data["text/plain"].startswith("<")


@chapters
def test_parameters_are_literals_that_every_profile_defines(path):
    cells = [cell for cell in code_cells(path) if "parameters" in tags(cell)]
    assert len(cells) == 1
    for statement in ast.parse(cells[0].source).body:
        ast.literal_eval(statement.value)
    for profile in PROFILES:
        defined = read_profile(profile)
        for statement in ast.parse(cells[0].source).body:
            name = statement.targets[0].id
            if ast.literal_eval(statement.value) is None:
                assert name in defined, f"{profile}.yaml lacks {name}"


@chapters
def test_cells_are_short_and_the_plumbing_is_one_call(path):
    """Twenty lines fit on a screen; only a from-scratch cell may take thirty."""
    cells = code_cells(path)
    for cell in cells:
        assert len(cell.source.splitlines()) <= (30 if "from-scratch" in tags(cell) else 20)
    begun = [cell for cell in cells if "course.begin(" in cell.source]
    assert len(begun) == 1
    assert f'course.begin("{path.stem[:2]}", globals())' in begun[0].source
    assert not any("metrics.json" in cell.source for cell in cells)


def test_profiles_define_the_same_parameters_and_none_in_vain():
    used = {name for path in CHAPTERS for name in declared(path)}
    for profile in PROFILES:
        assert read_profile(profile).keys() <= used
    assert len({frozenset(read_profile(profile)) for profile in PROFILES}) == 1


@chapters
def test_components_are_imported_not_copied(path):
    """A public name of srlab is defined in a chapter only to be proved equal in the next cell."""
    public = public_names()
    cells = code_cells(path)
    for cell in cells:
        defined = {
            node.name
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert not defined & public, f"redefines {defined & public}"
    for cell, proof in itertools.pairwise(cells):
        if "from-scratch" in tags(cell):
            assert len(cell.source.splitlines()) <= 30
            assert proof.outputs, "a from-scratch cell is followed by its proof"
            assert "False" not in json.dumps(proof.outputs)


def solutions(number):
    """The answers of a chapter's exercises, in order: the parts of a file divided by ``# %%``."""
    text = (ROOT / "notebooks/solutions" / f"{number}.py").read_text(encoding="utf-8")
    return [part.split("\n", 1)[1] for part in text.split("# %% ")[1:]]


@pytest.fixture(scope="module")
def solved_course(tmp_path_factory):
    """The whole course in the smoke profile, every exercise filled in: executed notebooks."""
    from srlab.course.run import run_course

    course = tmp_path_factory.mktemp("course")
    profiles = course / "notebooks/profiles"
    profiles.mkdir(parents=True)
    for profile in (ROOT / "notebooks/profiles").glob("*.yaml"):
        (profiles / profile.name).write_text(profile.read_text())
    shutil.copytree(ROOT / "notebooks/results", course / "notebooks/results")
    for path in CHAPTERS:
        notebook = nbformat.read(path, 4)
        answers = iter(solutions(path.stem[:2]))
        for cell in notebook.cells:
            if "exercise" in tags(cell):
                cell.source = next(answers)
        assert next(answers, None) is None, "one solution an exercise"
        nbformat.write(notebook, course / "notebooks" / path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRLAB_COURSE", str(course))
        folder = run_course("smoke", out=course / "runs", jobs=2)
    return folder


@chapters
def test_smoke_run_with_solutions(path, solved_course):
    verdicts = [
        line
        for cell in code_cells(solved_course / path.name)
        for output in cell.outputs
        if output.output_type == "stream"
        for line in output.text.splitlines()
        if line.startswith("exercise ")
    ]
    assert len(verdicts) >= 3
    for verdict in verdicts:
        assert verdict.endswith(": correct"), verdict


@chapters
def test_a_chapter_waits_for_those_whose_results_it_reads(path):
    """`make course` runs two at a time."""
    named = re.findall(r'"(0[0-9])"', "\n".join(cell.source for cell in code_cells(path)))
    number = path.stem[:2]
    always, own_start = READS.get(number, set()), STARTS_FROM.get(number, set())
    assert set(named) - {number} == always | own_start
    cells = [cell.source for cell in code_cells(path) if re.search(r'"03"', cell.source)]
    assert not own_start or ["prefer=settings.adversarial_start" in cell for cell in cells] == [
        True
    ]


@chapters
def test_unfilled_exercises_say_so(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            if output.output_type == "stream" and "exercise " in output.text:
                assert ": correct" not in output.text or path.stem.startswith("00")


def test_smoke_run_leaves_an_index(solved_course):
    index = (solved_course / "index.html").read_text(encoding="utf-8")
    for path in CHAPTERS:
        assert f"{path.stem}.html" in index
        assert (solved_course / f"{path.stem}.html").is_file()
