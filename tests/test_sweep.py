"""srlab.studies.sweep on a tiny chapter: every run is a real process, some of them die."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from srlab.course.paths import CourseError
from srlab.course.settings import SettingsError
from srlab.files import InUse
from srlab.studies import sweep
from srlab.studies.sweep import SweepError, read_sweep, run_sweep
from srlab.studies.tuning import TuningError

CLONE = Path(__file__).resolve().parents[1]
PARAMETERS = 'profile = "lite"\nseed = 0\nx = None\nwait = None'
# Leaves a line in diary.txt each time that it is begun, x squared in metrics.json when it ends.
BODY = """
import os, pathlib, time
from srlab import course
settings = course.begin("02", globals())
with open(pathlib.Path(os.environ["SRLAB_COURSE"]) / "diary.txt", "a") as diary:
    diary.write(f"{settings.x} {os.getpid()}\\n")
begun = settings.run / "begun"
if settings.x == 13 or (settings.x == 12 and not begun.exists()):
    begun.touch()
    raise ValueError(f"{settings.x} is unlucky")
time.sleep(settings.wait)
metrics = {"square": settings.x**2, "deep": {"cube": settings.x**3}, "word": "no number"}
settings.save(metrics)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "clone"
    (root / "notebooks/profiles").mkdir(parents=True)
    (root / "notebooks/profiles/lite.yaml").write_text("profile: lite\nx: 1.0\nwait: 0.0\n")
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(BODY),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks/02_tiny.ipynb")
    monkeypatch.setenv("SRLAB_COURSE", str(root))
    monkeypatch.delenv("SRLAB_RUNS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(CLONE))
    return root


def write(root, text):
    file = root / "spec.yaml"
    file.write_text("chapter: 2\n" + text)
    return file


def diary(root):
    """x of every run that was begun, in order."""
    path = root / "diary.txt"
    text = path.read_text() if path.exists() else ""
    return [float(line.split()[0]) for line in text.splitlines()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def start_ray(ray):
    """On a busy computer Ray's helpers may miss its own deadline of 15 s (ray issue 65983)."""
    for attempts_left in (2, 1, 0):
        try:
            return ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        except Exception:
            if not attempts_left:
                raise


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait_until(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def results(folder):
    with open(folder / "results.csv") as file:
        return list(csv.DictReader(file))


def test_a_failed_run_is_tried_again_and_the_others_finish(root):
    """12 fails once, 13 always."""
    file = write(root, "grid: {x: [12.0, 13.0, 3.0]}\n")
    command = [sys.executable, "-m", "srlab", "sweep", str(file), "--jobs", "2"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "srlab: 1 of 3 runs failed twice" in done.stderr
    assert "ValueError: 13.0 is unlucky" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(diary(root)) == [3.0, 12.0, 12.0, 13.0, 13.0]

    folder = root / "runs/sweeps/spec"
    rows = {float(row["x"]): row for row in results(folder)}
    assert [rows[x]["status"] for x in (12.0, 13.0, 3.0)] == ["done", "failed", "done"]
    assert (float(rows[3.0]["square"]), float(rows[3.0]["deep.cube"])) == (9.0, 27.0)
    assert rows[13.0]["square"] == ""
    assert "word" not in rows[3.0]
    manifest = json.loads((folder / "manifest.json").read_text())
    attempts = {run["parameters"]["x"]: run["attempts"] for run in manifest.values()}
    assert attempts == {12.0: 2, 13.0: 2, 3.0: 1}
    assert all((folder / key / "lite/02_tiny.ipynb").is_file() for key in manifest)


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_a_killed_sweep_goes_on_and_leaves_nothing_running(root):
    file = write(root, "parameters: {wait: 1.0}\ngrid: {x: [1.0, 2.0]}\n")
    command = [sys.executable, "-m", "srlab", "sweep", str(file)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    wait_until(lambda: diary(root) == [1.0, 2.0])
    process.send_signal(signal.SIGKILL)
    process.wait()
    kernel = int((root / "diary.txt").read_text().splitlines()[1].split()[1])
    wait_until(lambda: not alive(kernel))

    folder = run_sweep(file)
    assert [float(row["square"]) for row in results(folder)] == [1.0, 4.0]
    assert diary(root) == [1.0, 2.0, 2.0]  # the killed one again, the first one not


@pytest.fixture
def pretended(monkeypatch):
    """Runs that are only computed: (x - 2) squared, and x = 5 fails."""
    executed = []

    def execute(job, stop=None):
        x = job["course"]["parameters"]["x"]
        executed.append(x)
        if x == 5:
            return {"status": "failed", "seconds": 0.0, "error": "five"}
        return {"status": "done", "seconds": 0.0, "metrics": {"loss": (x - 2) ** 2}}

    monkeypatch.setattr(sweep, "execute", execute)
    return executed


STUDY = "study: {{trials: {}, minimize: loss, ranges: {{x: {{low: 0.0, high: 4.0}}}}}}\n"


def test_a_study_finds_the_best_and_goes_on(root, pretended, capsys):
    folder = run_sweep(write(root, STUDY.format(6)), jobs=2)
    assert len(pretended) == 6
    run_sweep(write(root, STUDY.format(30)), jobs=2)
    assert len(pretended) == len(set(pretended)) == 30  # no proposal was made twice
    rows = results(folder)
    assert [float(row["loss"]) for row in rows] == [(float(row["x"]) - 2) ** 2 for row in rows]
    assert min(abs(x - 2) for x in pretended) < 0.2
    assert "best loss: " in capsys.readouterr().out
    run_sweep(write(root, STUDY.format(30)))
    assert len(pretended) == 30
    with pytest.raises(TuningError, match="spec holds a study with another objective"):
        run_sweep(write(root, STUDY.format(30).replace("minimize", "maximize")))


def test_a_study_repeats_the_trial_in_which_it_was_killed(root, monkeypatch, pretended):
    work, first = sweep.execute, []

    def killed(job, stop=None):
        if len(pretended) == 2 and not first:
            first.append(job["course"]["parameters"]["x"])
            raise KeyboardInterrupt
        return work(job)

    monkeypatch.setattr(sweep, "execute", killed)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(write(root, STUDY.format(4)))
    run_sweep(write(root, STUDY.format(4)))
    assert pretended[2] == first[0]
    assert len(pretended) == 4


def test_a_studys_failures_are_listed(root, pretended):
    ranges = "study: {trials: 12, maximize: loss, ranges: {x: [1.0, 5.0]}}\n"
    with pytest.raises(SweepError, match=r"1 of 2 runs failed twice.*\n.*five"):
        run_sweep(write(root, ranges))
    assert set(pretended) == {1.0, 5.0}
    assert pretended.count(1.0) == 1  # its result is known
    with pytest.raises(SweepError, match=r"has no number gain \(it has loss\)"):
        run_sweep(write(root, ranges.replace("loss", "gain")), out=root / "other")


def test_a_grid_leaves_alone_what_is_done_and_tries_again_what_failed(root, pretended):
    for _ in range(2):
        with pytest.raises(SweepError, match=r"1 of 3 runs failed twice.*\n.*five"):
            run_sweep(write(root, "grid: {x: [1.0, 5.0, 3.0]}\n"))
    assert pretended == [1.0, 5.0, 3.0, 5.0]


def test_a_key_is_that_of_the_parameters_whatever_their_order(root):
    grid = read_sweep(write(root, "parameters: {wait: 0.5}\ngrid: {x: [1.0, 2.0], seed: [0, 1]}\n"))
    assert len({grid.key(run) for run in grid.runs()}) == 4
    assert grid.runs()[1] == {"wait": 0.5, "x": 1.0, "seed": 1}
    assert grid.key({"x": 1.0, "seed": 1}) == grid.key({"seed": 1, "x": 1.0})
    assert grid.key({"x": 1.0, "seed": 1}) != grid.key({"x": 1.0, "seed": 2})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("grid: {y: [1.0]}", SettingsError, "Unknown parameter y for chapter 02 in spec.yaml"),
        ("grid: {wiat: [1.0]}", SettingsError, "Did you mean wait"),
        ("grid: {x: [1.0, many]}", SettingsError, "x must be float"),
        ("grid: {x: [1e-5]}", SettingsError, "x must be float"),
        ("grid: {x: 1.0}", SweepError, "x needs a list of values"),
        ("grid: {seed: [2026-01-01]}", SweepError, "seed cannot be datetime"),
        ("grid: {}", SweepError, "grid is empty"),
        ("parameters: {x: 1.0}\ngrid: {x: [1.0]}", SweepError, "x is given twice"),
        ("grid: {profile: [lite]}", SettingsError, "Unknown parameter profile"),
        ("", SweepError, "either `grid:` or `study:`"),
        ("gird: {x: [1.0]}", SweepError, "unknown 'gird'"),
        ("grid: {x: [1.0", SweepError, "not valid YAML"),
        ("profile: huge\ngrid: {x: [1.0]}", SettingsError, "no profile 'huge'"),
        ("chapter: 3\ngrid: {x: [1.0]}", CourseError, "no chapter 03"),
        ("study: {trials: 2, ranges: {x: [1.0]}}", SweepError, "`maximize:` or `minimize:`"),
        ("study: {maximize: a, ranges: {x: [1.0]}}", SweepError, "a whole number above 0"),
        ("study: {trials: 2, maximize: a}", SweepError, "needs `ranges:`"),
        (STUDY.format(2).replace("high: 4.0", "high: -4.0"), TuningError, "x: .* is no range"),
        (STUDY.format(2).replace("x:", "xx:"), SettingsError, "Unknown parameter xx"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(root, text, error, message):
    with pytest.raises(error, match=message):
        run_sweep(write(root, text))
    assert not (root / "runs").exists()


def test_a_sweep_runs_once_at_a_time(root):
    code = """
import sys, time
from pathlib import Path
from srlab.files import only_here
with only_here(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(root / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {process.pid} does a sweep there"):
            run_sweep(write(root, "grid: {x: [1.0]}"), root / "out")
        process.kill()
    assert not (root / "out" / "manifest.json").exists()


def test_a_file_that_is_not_there(root):
    with pytest.raises(SweepError, match=r"Cannot read .*nowhere\.yaml"):
        run_sweep(root / "nowhere.yaml")


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_a_cluster_that_loses_a_worker_loses_no_run(root, monkeypatch):
    """A real Ray cluster of two cores on this computer; the worker of one run is killed."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install srlab[cluster]")
    file = write(root, "parameters: {wait: 2.0}\ngrid: {x: [1.0, 2.0]}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray leaves a token in the home folder
    start_ray(ray)
    try:
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-m", "srlab", "sweep", str(file), "--ray", address]
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        wait_until(lambda: diary(root))
        kernel = int((root / "diary.txt").read_text().splitlines()[0].split()[1])
        worker = parent(parent(kernel))
        assert "ray::" in Path(f"/proc/{worker}/cmdline").read_text()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not alive(kernel))
        out = process.communicate(timeout=120)[0]
    finally:
        ray.shutdown()
    assert process.returncode == 0, out
    assert [float(row["square"]) for row in results(root / "runs/sweeps/spec")] == [1.0, 4.0]
    assert len(diary(root)) == 3  # two runs, one of them begun twice
