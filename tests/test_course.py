"""The course's own machinery, on tiny chapters made here: the real ones have their own tests."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import IPython
import nbformat
import pytest
import torch
from torch.nn import functional as F

from srlab import course
from srlab.course import check, paths
from srlab.course.paths import CourseError
from srlab.course.report import write_index, write_page
from srlab.course.settings import Settings, SettingsError, declared, read_profile
from srlab.files import InUse
from srlab.models.blocks import ResidualBlock
from srlab.models.generators import SRResNet

CLONE = Path(__file__).resolve().parents[1]
PARAMETERS = 'profile = "lite"\nseed = 0\nsteps = None\nrate = None'
SETTINGS = 'from srlab import course\nsettings = course.begin("{}", globals())\nprint(settings)'


def write_chapter(root, name, *sources, title="# A title", tagged=PARAMETERS):
    cells = [nbformat.v4.new_markdown_cell(title)]
    if tagged:
        cells.append(nbformat.v4.new_code_cell(tagged, metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    path = root / "notebooks" / name
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def make_course(root):
    profiles = root / "notebooks" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "lite.yaml").write_text("profile: lite\nsteps: 50\nrate: 0.1\nother: 1\n")
    (profiles / "smoke.yaml").write_text("profile: smoke\nsteps: 2\nrate: 0.1\nother: 1\n")
    return root


@pytest.fixture
def root(tmp_path, monkeypatch, new_kernels):
    """A course with one chapter, 02, and its runs, apart from the real ones."""
    monkeypatch.setenv("SRLAB_COURSE", str(tmp_path / "clone"))
    monkeypatch.delenv("SRLAB_RUNS", raising=False)
    root = make_course(tmp_path / "clone")
    write_chapter(root, "02_baseline.ipynb", SETTINGS.format("02"))
    return root


def outputs(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", ()))


# --- paths


def test_the_course_is_found_from_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SRLAB_COURSE", raising=False)
    monkeypatch.delenv("SRLAB_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.course_root() == CLONE
    assert paths.runs_folder() == CLONE / "runs"


def test_an_installed_srlab_finds_the_course_above_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SRLAB_COURSE", raising=False)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages/srlab/course/paths.py"))
    clone = make_course(tmp_path / "clone")
    (clone / "runs" / "lite").mkdir(parents=True)
    monkeypatch.chdir(clone / "runs" / "lite")
    assert paths.course_root() == clone
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match="set SRLAB_COURSE"):
        paths.course_root()


def test_a_wrong_srlab_course_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLAB_COURSE", str(tmp_path))
    with pytest.raises(CourseError, match=re.escape(str(tmp_path))):
        paths.course_root()


def test_chapters_are_numbered_and_in_order(root):
    for name in ("10_late.ipynb", "00_first.ipynb", "scratch.ipynb"):
        write_chapter(root, name)
    assert [p.name[:2] for p in paths.notebooks()] == ["00", "02", "10"]


def test_a_chapter_run_is_created_where_srlab_runs_says(root, tmp_path, monkeypatch):
    assert paths.chapter_run("02", "lite") == root / "runs/lite/02"
    monkeypatch.setenv("SRLAB_RUNS", str(tmp_path / "elsewhere"))
    run = paths.chapter_run(2, "lite")
    assert run == tmp_path / "elsewhere/lite/02"
    assert run.is_dir()


def test_a_runs_folder_that_cannot_be_made_is_one_sentence(root, monkeypatch):
    monkeypatch.setenv("SRLAB_RUNS", str(root / "notebooks/profiles/lite.yaml"))
    with pytest.raises(CourseError, match="set SRLAB_RUNS"):
        paths.chapter_run("02", "lite")


# --- settings


def test_settings_take_what_is_given_and_the_rest_from_the_profile(root):
    settings = course.settings("02", profile="smoke", seed=3, steps=None, rate=1)
    assert (settings.steps, settings.rate, settings.seed) == (2, 1, 3)
    assert settings.run == root / "runs/smoke/02"
    assert settings.run.is_dir()


def test_printed_settings_hold_no_path_of_this_computer(root):
    lines = repr(course.settings("02", seed=0, steps=None, rate=None)).splitlines()
    assert [re.split(r"\s+= ", line) for line in lines] == [
        ["chapter", "02"],
        ["profile", "lite"],
        ["seed", "0"],
        ["steps", "50"],
        ["rate", "0.1"],
        ["run", "runs/lite/02"],
    ]


def test_settings_cannot_be_changed(root):
    settings = course.settings("02", seed=0)
    with pytest.raises(SettingsError, match="parameters cell"):
        settings.seed = 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"profile": "huge"}, "no profile 'huge': choose one of lite, smoke"),
        ({"stesp": 3}, "Unknown parameter stesp for chapter 02. Did you mean steps\\? Valid: p"),
        ({"other": 3}, "Unknown parameter other"),
        ({"seed": None}, "lite does not define seed"),
        ({"steps": 1e3}, "steps must be int like 50 in the profile lite, not float 1000.0"),
        ({"steps": True}, "steps must be int"),
        ({"rate": "1e-4"}, "rate must be float like 0.1 in the profile lite, not str '1e-4'"),
    ],
)
def test_settings_refuse(root, given, message):
    with pytest.raises(SettingsError, match=message):
        course.settings("02", **given)


def test_a_chapter_still_being_written_may_use_what_the_profile_sets(root):
    assert course.settings("07", seed=1, other=None).other == 1
    with pytest.raises(SettingsError, match="Did you mean other"):
        course.settings("07", othr=1)


def test_a_chapter_begins_with_what_its_parameters_cell_says(root, capsys):
    names = {"profile": "smoke", "seed": 7, "steps": None, "rate": 0.5, "other": "not a parameter"}
    settings = course.begin("02", names)
    assert settings.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert capsys.readouterr().out.startswith(f"torch {torch.__version__} on {settings.device}, ")
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    same = course.settings("02", profile="smoke", seed=7, steps=None, rate=0.5)
    assert repr(settings) == repr(same)
    assert vars(settings) == {**vars(same), "device": settings.device}


def test_begin_says_what_is_missing(root):
    with pytest.raises(SettingsError, match="seed is not set: run chapter 02's parameters cell"):
        course.begin("02", {"profile": "lite"})
    with pytest.raises(SettingsError, match="no chapter 09"):
        course.begin("09", {"profile": "lite"})


def test_what_a_chapter_saves_is_found_by_later_ones(root, capsys):
    settings = course.settings("02", profile="smoke", seed=0)
    network = SRResNet(n_blocks=1, n_features=4)
    settings.save({"psnr": 30.5}, srresnet=network)
    assert capsys.readouterr().out == "saved srresnet.safetensors and metrics.json\n"
    folder = paths.chapter_run("02", "smoke")
    assert json.loads((folder / "metrics.json").read_text()) == {"psnr": 30.5}
    found, text = course.earlier_generator("02", "srresnet", "smoke")
    assert text == "srresnet from this computer's run of chapter 02"
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    settings.save({})
    assert capsys.readouterr().out == "saved metrics.json\n"


NO_YAML = {
    "unfinished": b"steps: [",
    "a list": b"- a\n- b",
    "nested": b"steps:\n  first: 1",
    "a tag": b"steps: !!python/object:os.system x",
    "a set": b"steps: !!set {a}",
    "a control character": b"steps: \x07",
    "not UTF-8": "steps: é".encode("latin-1"),
    "5,000 brackets": b"[" * 5000,
    "5,001 digits": b"steps: " + b"9" * 5001,
    "5,001 digits in base 16": b"steps: 0x" + b"f" * 5001,
    "no time": b"steps: !!timestamp x",
}


@pytest.mark.parametrize("text", NO_YAML.values(), ids=NO_YAML.keys())
def test_a_damaged_profile_is_named(root, text):
    (root / "notebooks/profiles/lite.yaml").write_bytes(text)
    with pytest.raises(SettingsError, match=r"lite\.yaml"):
        read_profile("lite")


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_notebook_is_named(root, content):
    (root / "notebooks/02_baseline.ipynb").write_text(content)
    with pytest.raises(SettingsError, match=r"02_baseline\.ipynb is damaged"):
        course.settings("02", seed=0)


def test_declared_reads_the_tagged_cell_only(root):
    path = write_chapter(root, "03_x.ipynb", "c = 1", tagged="a = None  # why\nb: int = 2")
    assert declared(path) == ["a", "b"]
    assert declared(write_chapter(root, "04_x.ipynb", "c = 1", tagged=None)) == []
    with pytest.raises(SettingsError, match=r"parameters cell of 05_x\.ipynb"):
        declared(write_chapter(root, "05_x.ipynb", tagged="a = ="))


@pytest.mark.parametrize(
    ("cells", "refused"),
    [
        (["", "steps = 1", "typo = 2"], None),
        (["", PARAMETERS, "# Parameters\nsteps = 5\n"], None),
        (["", PARAMETERS, "# Parameters\nprofile = 'lite'\nsteps = 5\nother = 1\n"], None),
        (["", PARAMETERS, "# Parameters\nstep = 5\n"], "step"),
        (["", PARAMETERS, "# Parameters\nstep = 5\n", "# Parameters\nsteps = 5\n"], None),
    ],
    ids=["JupyterLab", "-p steps 5", "-f lite.yaml", "-p step 5", "corrected and run again"],
)
def test_names_that_papermill_injected_are_checked(root, monkeypatch, cells, refused):
    shell = SimpleNamespace(user_ns={"In": cells}, set_custom_exc=lambda *handler: None)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    if refused:
        with pytest.raises(SettingsError, match=f"Unknown parameter {refused} .*mean steps"):
            course.settings("02", seed=0, steps=5)
    else:
        assert course.settings("02", seed=0, steps=5).steps == 5


def test_a_misspelt_papermill_parameter_stops_the_chapter(root, tmp_path, monkeypatch):
    papermill = pytest.importorskip("papermill")
    monkeypatch.setenv("PYTHONPATH", str(CLONE))
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            root / "notebooks/02_baseline.ipynb",
            tmp_path / "out.ipynb",
            parameters={"stesp": 5},
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
    assert caught.value.ename == "SettingsError"
    assert "Did you mean steps?" in caught.value.evalue


@pytest.mark.parametrize("name", ["smoke", "lite", "full"])
def test_the_shipped_profiles_set_the_same_names_to_the_same_types(name, monkeypatch):
    monkeypatch.setenv("SRLAB_COURSE", str(CLONE))
    profile, lite = read_profile(name), read_profile("lite")
    assert profile["profile"] == name  # `papermill -f` then runs in the right folder
    assert {k: type(v) for k, v in profile.items()} == {k: type(v) for k, v in lite.items()}
    assert all(isinstance(value, str | int | float) for value in profile.values())
    for value in profile.values():  # YAML reads 1e-4 as text
        assert not (isinstance(value, str) and re.fullmatch(r"[\d.eE+-]+", value))


# --- run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two chapters run for real, though a broken kernel is registered as python3."""
    base = tmp_path_factory.mktemp("course")
    root = make_course(base / "clone {x}")
    where = "import sys, pathlib, srlab; print(sys.executable, pathlib.Path.cwd(), srlab.__file__)"
    write_chapter(root, "00_start.ipynb", where, title="# 00 Start <here>", tagged=None)
    math = "# Chapter 2: Baseline\n$x$"
    write_chapter(root, "02_baseline.ipynb", SETTINGS.format("02"), title=math)
    write_chapter(root, "09_later.ipynb", "1 / 0")
    kernel = base / "jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "broken", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRLAB_COURSE", str(root))
        patch.setenv("JUPYTER_PATH", str(base / "jupyter"))
        folder = course.run_course(
            "smoke", chapters=["0", 2], out=base / "out", parameters={"steps": 7}
        )
    return folder


def test_chapters_run_in_this_interpreter_and_in_their_own_folders(finished):
    executable, rest = outputs(finished / "00_start.ipynb").split(" ", 1)
    assert executable == sys.executable
    assert rest.startswith(str(finished / "00"))
    assert rest.strip().endswith(str(CLONE / "srlab/__init__.py"))


def test_each_chapter_gets_the_profile_and_the_parameters_it_declares(finished):
    printed = outputs(finished / "02_baseline.ipynb")
    assert re.search(r"profile = smoke\n.*\nsteps +\= 7\n", printed)
    assert "injected-parameters" not in (finished / "00_start.ipynb").read_text()
    assert (finished / "02").is_dir()


def test_the_index_leads_to_every_page_and_needs_no_network(finished):
    index = (finished / "index.html").read_text()
    links = re.findall(r'href="([^"]+)"', index)
    assert {"00_start.html", "00_start.ipynb", "02_baseline.html"} <= set(links)
    assert all((finished / link).is_file() for link in links if link[0] != "#")
    assert "00 Start &lt;here&gt;" in index
    assert "02 Baseline" in index
    assert "09 A title" in index
    assert "not run yet" in index
    assert not re.search(r'(?:src|href)="https?://[^"]+', index)


def test_wall_times_are_kept(finished):
    times = json.loads((finished / "times.json").read_text())
    assert times.keys() == {"00", "02"}
    assert all(t["status"] == "done" and t["seconds"] > 0 for t in times.values())


def test_a_failing_chapter_stops_the_course_which_then_goes_on_from_there(root, capfd):
    write_chapter(root, "00_fine.ipynb", "1", tagged=None)
    broken = "a = 1\n# the reason\nraise ValueError('no such photo')"
    write_chapter(root, "01_broken.ipynb", "1", broken, tagged=None)
    write_chapter(root, "02_baseline.ipynb", "1", tagged=None)
    with pytest.raises(CourseError) as caught:
        course.run_course(start=1)
    assert str(caught.value) == (
        "Chapter 01 A title stopped in cell [2] with ValueError: no such photo. Put it right, "
        "then go on with `srlab course run --from 01 --profile lite`."
    )
    out, err = capfd.readouterr()
    assert "# the reason" in out
    assert "01 A title   failed in" in out
    assert "\x1b" not in out
    assert err == ""
    runs = root / "runs/lite"
    assert "no such photo" in (runs / "01_broken.html").read_text()
    assert not (runs / "02_baseline.ipynb").exists()
    assert 'class="failed"' in (runs / "index.html").read_text()

    write_chapter(root, "01_broken.ipynb", "1", tagged=None)
    write_chapter(root, "02_baseline.ipynb", "import os; os._exit(1)", tagged=None)
    with pytest.raises(CourseError, match=r"02 A title lost its kernel in cell 2 of 2.*memory"):
        course.run_course(start="01", html=False)
    times = json.loads((runs / "times.json").read_text())
    assert {number: t["status"] for number, t in times.items()} == {"01": "done", "02": "failed"}


MEETS = """
import pathlib, time
pathlib.Path("../{me}.here").touch()
deadline = time.monotonic() + 60
while not pathlib.Path("../{other}.here").exists():
    assert time.monotonic() < deadline, "it runs alone"
    time.sleep(0.05)
print("threads", __import__("os").environ.get("OMP_NUM_THREADS"))
"""


def test_two_chapters_run_side_by_side_and_a_third_waits_for_what_it_reads(root, capfd):
    write_chapter(root, "03_dense.ipynb", "assert open('../02/after').read()", tagged=None)
    write_chapter(root, "07_tuning.ipynb", MEETS.format(me="07", other="02"), tagged=None)
    late = "import time; time.sleep(1); open('after', 'w').write('x')"
    write_chapter(root, "02_baseline.ipynb", MEETS.format(me="02", other="07"), late, tagged=None)
    runs = course.run_course(jobs=2)
    times = json.loads((runs / "times.json").read_text())
    assert {number: t["status"] for number, t in times.items()} == dict.fromkeys(
        ("02", "03", "07"), "done"
    )
    assert f"threads {max(1, os.cpu_count() // 2)}" in outputs(runs / "07_tuning.ipynb")
    assert all((runs / page).is_file() for page in ("02_baseline.html", "03_dense.html"))


def test_when_one_of_two_chapters_fails_the_other_finishes_and_no_third_begins(root):
    failing = MEETS.format(me="07", other="02"), "raise ValueError('no such photo')"
    late = "while not os.path.exists('../times.json'): time.sleep(0.1)"
    meets = "import os\n" + MEETS.format(me="02", other="07")
    write_chapter(root, "02_baseline.ipynb", meets, late, tagged=None)
    write_chapter(root, "03_dense.ipynb", "1", tagged=None)
    write_chapter(root, "07_tuning.ipynb", *failing, tagged=None)
    with pytest.raises(CourseError, match=r"Chapter 07 .* no such photo\. .*--from 03 "):
        course.run_course(jobs=2, html=False)
    times = json.loads((root / "runs/lite/times.json").read_text())
    assert {number: t["status"] for number, t in times.items()} == {"07": "failed", "02": "done"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_course_leaves_no_kernel_behind(root, tmp_path, number):
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    for name in ("02_baseline.ipynb", "07_tuning.ipynb"):
        write_chapter(root, name, code, tagged=None)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "srlab", "course", "run", "--jobs", "2"]
    # A shell that runs the tests in the background has them ignore Ctrl-C; the course shall not.
    heard = partial(signal.signal, number, signal.SIG_DFL)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=heard)
    files = [root / "runs/lite" / chapter / "pid" for chapter in ("02", "07")]
    deadline = time.monotonic() + 90
    while not all(file.is_file() and file.read_text() for file in files):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    os.kill(process.pid, number)
    assert process.wait(60) == 128 + number
    assert "Traceback" not in log.read_text()
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
    times = json.loads((root / "runs/lite/times.json").read_text())
    assert [entry["status"] for entry in times.values()] == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "huge"}, "choose one of lite, smoke"),
        ({"parameters": {"stepps": 3}}, "Unknown parameter stepps .* Did you mean steps"),
        ({"parameters": {"other": 3}}, "Unknown parameter other"),
        ({"parameters": {"profile": "smoke"}}, "Unknown parameter profile"),
        ({"parameters": {"steps": "many"}}, "steps must be int"),
        ({"chapters": ["03"]}, "no chapter 03: choose from 02"),
        ({"start": "3"}, "no chapter 03"),
    ],
)
def test_a_course_refuses_before_it_runs_anything(root, arguments, message):
    with pytest.raises((SettingsError, CourseError), match=message):
        course.run_course(**arguments)
    assert not (root / "runs").exists()


def test_a_course_runs_once_at_a_time(root, tmp_path):
    code = """
import sys, time
from pathlib import Path
from srlab.files import only_here
with only_here(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(root / "runs/lite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(
            InUse, match=f"process {process.pid} is busy there with a run of the course"
        ):
            course.run_course()
        process.kill()
    assert not (root / "runs/lite/times.json").exists()


def test_a_page_says_in_words_what_a_picture_shows(tmp_path):
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "A cup of coffee"}
    shown = nbformat.v4.new_output("display_data", data=data)
    cell = nbformat.v4.new_code_cell("picture", outputs=[shown])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    write_page(tmp_path / "a.ipynb", tmp_path)
    page = (tmp_path / "a.html").read_text()
    assert 'alt="A cup of coffee"' in page
    assert "No description has been provided" not in page


def test_the_index_holds_no_foreign_html(tmp_path):
    entry = {"status": "<script>alert(1)</script>", "seconds": 1.0}
    write_index(tmp_path, {"01 A title": ("01_a", entry)})
    assert "<script>" not in (tmp_path / "index.html").read_text()


def test_importing_the_course_costs_nothing():
    heavy = "{'torch', 'papermill', 'nbconvert', 'matplotlib', 'rich', 'IPython'}"
    code = f"import sys, srlab.course; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CLONE, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


# --- show


def test_source_is_the_real_one_under_its_qualified_name():
    text = repr(course.source(ResidualBlock))
    head, _, code = text.partition("\n")
    assert head == "# srlab.models.blocks.ResidualBlock"
    assert code in (CLONE / "srlab/models/blocks.py").read_text()
    assert code.startswith("class ResidualBlock")
    assert str(CLONE) not in text


def test_a_method_is_dedented_and_an_instance_shows_its_class():
    assert repr(course.source(Settings.__repr__)).splitlines()[1].startswith("def __repr__")
    assert repr(course.source(Settings())).startswith("# srlab.course.settings.Settings\nclass")


def test_the_docstring_can_be_left_out():
    code = course.source(Settings, docstring=False).code
    assert "Every setting" not in code
    assert code.splitlines()[1].startswith("    def ")
    assert not course.source(check, docstring=False).code.startswith('"""')


def test_one_statement_can_be_shown_alone():
    shown = course.source(Settings.__repr__, part="return")
    assert repr(shown).splitlines()[0] == "# from srlab.course.settings.Settings.__repr__"
    assert shown.code.startswith("return")
    assert shown.code in inspect.getsource(Settings.__repr__)
    with pytest.raises(CourseError, match="no statement that begins with 'while'"):
        course.source(Settings.__repr__, part="while")


def test_highlighting_keeps_the_text_and_follows_the_theme():
    html = course.source(ResidualBlock)._repr_html_()
    assert "var(--jp-mirror-editor-keyword-color)" in html
    assert re.search(r"keyword-color\); font-weight: bold\">class</span>", html)
    assert str(CLONE) not in html


def test_what_has_no_source_is_refused():
    with pytest.raises(CourseError, match=r"builtins\.len"):
        course.source(len)


# --- check


def progress(root):
    path = root / "runs/progress.json"
    return json.loads(path.read_text()) if path.exists() else {}


def verdict(capsys, attempt, reference=torch.relu, inputs=None, **more):
    check.function("02-1", attempt, reference, inputs or [torch.tensor([-1.0, 2.0])], **more)
    return capsys.readouterr().out


def unfilled(x): ...


def half_filled(x):
    slope = ...
    return slope * x


def refused(x):
    raise NotImplementedError


@pytest.mark.parametrize("attempt", [None, ..., unfilled, half_filled, refused, lambda x: ...])
def test_an_unfilled_exercise_is_not_attempted(root, capsys, attempt):
    assert verdict(capsys, attempt).startswith("exercise 02-1: not attempted yet\n")
    assert progress(root) == {}


def test_a_right_function_is_correct_and_stays_so(root, capsys):
    assert verdict(capsys, lambda x: x.clamp(min=0)) == "exercise 02-1: correct\n"
    assert progress(root) == {"02-1": "correct"}
    verdict(capsys, lambda x: x)
    assert progress(root) == {"02-1": "correct"}


def test_a_wrong_function_is_told_where_and_the_first_hint_that_fits(root, capsys):
    hints = [
        (lambda got, expected: got.missing, "a test that breaks"),
        (lambda got, expected: got.shape != expected.shape, "look at the axes"),
        "look at the sign",
        "too late",
    ]
    out = verdict(capsys, lambda x: x, hints=hints)
    assert out.splitlines() == [
        "exercise 02-1: not yet",
        "  input:    tensor of shape (2,): [-1.0, 2.0]",
        "  expected: tensor of shape (2,): [0.0, 2.0]",
        "  got:      tensor of shape (2,): [-1.0, 2.0]",
        "  largest difference: 1, at index (0,)",
        "  hint: look at the sign",
    ]
    assert progress(root) == {"02-1": "not yet"}
    assert "hint: look at the axes" in verdict(capsys, lambda x: x[:1], hints=hints)


def test_shapes_come_first(root, capsys):
    x = torch.rand(1, 8, 3, 3)
    out = verdict(capsys, lambda x, r: x, F.pixel_shuffle, [(x, 2)])
    assert "input:    tensor of shape (1, 8, 3, 3), 2" in out
    assert "expected: tensor of shape (1, 2, 6, 6)" in out
    assert "largest difference" not in out


def test_an_attempt_that_raises_is_told_the_line(root, capsys):
    def attempt(x):
        y = x.reshape(3)
        return y

    out = verdict(capsys, attempt)
    line = attempt.__code__.co_firstlineno + 1
    assert f"your code raised RuntimeError in line {line} of its cell: shape '[3]'" in out
    assert "your code raised TypeError: " in verdict(capsys, lambda: 1)
    assert "your code raised TypeError: " in verdict(capsys, 3)


def test_an_attempt_neither_spoils_the_inputs_nor_sees_other_random_numbers(root, capsys):
    x = torch.ones(3)
    assert "correct" in verdict(capsys, lambda x: x.mul_(2), lambda x: x * 2, [x, x])
    assert x.tolist() == [1, 1, 1]
    noise = torch.rand_like
    state = torch.get_rng_state()
    assert "correct" in verdict(capsys, noise, noise, [x])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        (5, 5, 6),
        (1_549_462, 1_549_462, 1_549_463),
        (0.1 + 0.2, 0.3, 0.31),
        (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5])),
        (0.5, 0.5, 10**400),
        (torch.tensor(2.0), 2.0, "two"),
        ((1, torch.ones(2)), [1, torch.ones(2)], (1, torch.zeros(2))),
        (torch.Size([2, 3]), (2, 3), (3, 2)),
        (None, None, 1),
        ("relu", "relu", "ReLU"),
    ],
)
def test_results_of_every_kind_are_compared(root, capsys, expected, right, wrong):
    assert "correct" in verdict(capsys, lambda x: right, lambda x: expected)
    assert "not yet" in verdict(capsys, lambda x: wrong, lambda x: expected)


def test_a_value_is_checked_without_being_given_away(root, capsys):
    def answer(given, *arguments, **more):
        check.value("02-2", given, *arguments, **more)
        return capsys.readouterr().out

    assert answer(..., 256) == "exercise 02-2: not attempted yet\n"
    assert answer(255, 256, hint="count again") == (
        "exercise 02-2: not yet\n  255 is not it\n  hint: count again\n"
    )
    assert answer("256", 256, hint="count again") == (
        "exercise 02-2: not yet\n  '256' is not it\n"
        "  hint: the answer is a number, so write it without quotes\n"
    )
    assert "not yet" in answer(28.0, 28.42, tolerance=0.1)
    assert "correct" in answer(28.4, 28.42, tolerance=0.1)
    assert "correct" in answer(" B ", "b")
    assert "correct" in answer((1, 3, 96, 96), torch.Size([1, 3, 96, 96]))
    assert progress(root) == {"02-2": "correct"}


def test_a_check_needs_no_place_for_its_record(root, capsys, monkeypatch):
    monkeypatch.setenv("SRLAB_RUNS", str(root / "notebooks/profiles/lite.yaml"))
    assert "correct" in verdict(capsys, torch.relu)
    monkeypatch.setenv("SRLAB_COURSE", str(root / "nowhere"))
    monkeypatch.delenv("SRLAB_RUNS")
    assert "correct" in verdict(capsys, torch.relu)


def test_a_chapter_starts_from_an_earlier_ones_run_or_from_a_released_model(root, monkeypatch):
    from srlab.models import zoo

    def pick(**options):
        generator, which = course.earlier_generator("03", "wdrn", "lite", **options)
        return type(generator).__name__, which

    released = {"srresnet": zoo.released()["srresnet"]}
    monkeypatch.setattr(zoo, "released", lambda: released)
    assert pick(prefer="released") == ("SRResNet", "released srresnet")
    kind, which = pick(prefer="own")
    assert kind == "SRResNet"
    assert "chapter 03 has not run here" in which
    zoo.save(zoo.build("wdrn"), course.chapter_run("03", "lite") / "wdrn.safetensors")
    assert pick(prefer="own") == ("WDRN", "wdrn from this computer's run of chapter 03")
    released["wdrn"] = course.chapter_run("03", "lite") / "wdrn.safetensors"
    assert pick(prefer="released") == ("WDRN", "released wdrn")
    with pytest.raises(CourseError, match="'own' or 'released', got 'mine'"):
        pick(prefer="mine")
