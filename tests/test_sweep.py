"""srlab.studies.sweep on a tiny chapter: every run is a real process, some of them die."""

import csv
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from processes import srlab, start

from srlab.course.paths import CourseError
from srlab.course.settings import SettingsError
from srlab.files import InUse
from srlab.studies import sweep
from srlab.studies.sweep import SweepError, read_sweep, run_sweep
from srlab.studies.tuning import TuningError

CLONE = Path(__file__).resolve().parents[1]
PARAMETERS = 'profile = "lite"\nseed = 0\nx = None\nwait = None'
# Leaves a line in diary.txt each time that it is begun, x squared in metrics.json when it ends;
# in between it waits as long as x is in hold.txt. Like a chapter, but it spares itself torch.
BODY = """
import os, pathlib, time
from srlab.course.paths import write_json
from srlab.course.settings import settings
settings = settings("02", profile=profile, seed=seed, x=x, wait=wait)
root = pathlib.Path(os.environ["SRLAB_COURSE"])
with open(root / "diary.txt", "a") as diary:
    diary.write(f"{settings.x} {os.getpid()}\\n")
begun = settings.run / "begun"
if settings.x == 13 or (settings.x == 12 and not begun.exists()):
    begun.touch()
    raise ValueError(f"{settings.x} is unlucky")
while f"{settings.x}" in (root / "hold.txt").read_text().split():
    time.sleep(0.05)
metrics = {"square": settings.x**2, "deep": {"cube": settings.x**3}, "word": "no number"}
write_json(settings.run / "metrics.json", metrics)
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
    (root / "hold.txt").touch()
    monkeypatch.setenv("SRLAB_COURSE", str(root))
    monkeypatch.delenv("SRLAB_RUNS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(CLONE))
    return root


def write(root, text):
    file = root / "spec.yaml"
    file.write_text("chapter: 2\n" + text)
    return file


def diary(root):
    """(x, the kernel's process) of every run that was begun, in order."""
    path = root / "diary.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(x), int(process)) for x, process in map(str.split, lines)]


def begun(root):
    return [x for x, _ in diary(root)]


def status(pid):
    """State and parent of a process; Z is one that has ended, and nobody asked how."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except FileNotFoundError:
        return "Z", 0
    return state, int(parent)


def wait_until(condition, process, seconds=600.0):
    """On a busy computer a run takes long to begin; but a process that has ended begins none."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, "the sweep has ended"
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def wait_for_the_end_of(pid, seconds=600.0):
    end = time.monotonic() + seconds
    while status(pid)[0] != "Z":
        assert time.monotonic() < end, f"{pid} is still there"
        time.sleep(0.05)


def hold_cluster(file):
    """A Ray cluster of two cores on this computer, until this process is killed."""
    import ray

    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    file.write_text(context.address_info["gcs_address"] + "\n")
    time.sleep(3600)


def start_cluster(root, seconds=1200.0):
    """On a busy computer a cluster misses a deadline that cannot be set (ray issue 65983).

    It ends, its helpers end with it, and another one is tried.
    """
    file, log = root / "address.txt", root / "cluster.txt"
    end = time.monotonic() + seconds
    while True:
        process = start(hold_cluster, file, log=log)
        while process.exitcode is None:
            if file.exists() and file.read_text().endswith("\n"):
                return process, file.read_text().strip()
            time.sleep(0.1)
        assert time.monotonic() < end, log.read_text()


def results(folder):
    with open(folder / "results.csv") as file:
        return list(csv.DictReader(file))


def test_a_failed_run_is_tried_again_and_the_others_finish(root):
    """12 fails once, 13 always."""
    file = write(root, "grid: {x: [12.0, 13.0, 3.0]}\n")
    log = root / "log.txt"
    process = start(srlab, "sweep", file, "--jobs", 2, log=log)
    process.join()
    said = log.read_text()
    assert process.exitcode == 1, said
    assert "srlab: 1 of 3 runs failed twice" in said
    assert "run-0001" in said.partition("failed twice")[2]
    assert "ValueError: 13.0 is unlucky" in said
    assert "Traceback" not in said
    assert sorted(begun(root)) == [3.0, 12.0, 12.0, 13.0, 13.0]

    folder = root / "runs/sweeps/spec"
    rows = results(folder)
    assert [row["run"] for row in rows] == ["run-0000", "run-0001", "run-0002"]
    assert [float(row["x"]) for row in rows] == [12.0, 13.0, 3.0]
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert (float(rows[2]["square"]), float(rows[2]["deep.cube"])) == (9.0, 27.0)
    assert rows[1]["square"] == ""
    assert "word" not in rows[2]
    assert all((folder / row["run"] / "lite/02_tiny.ipynb").is_file() for row in rows)


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_what_is_killed_is_done_again_and_nothing_else(root):
    """First the process of a run is killed, then the sweep in another run."""
    hold = root / "hold.txt"
    hold.write_text("1.0 2.0")
    file = write(root, "grid: {x: [1.0, 2.0]}\n")
    process = start(srlab, "sweep", file, log=root / "log.txt")
    wait_until(lambda: begun(root) == [1.0], process)
    os.kill(status(diary(root)[0][1])[1], signal.SIGKILL)
    wait_until(lambda: begun(root) == [1.0, 1.0], process)
    hold.write_text("2.0")
    wait_until(lambda: begun(root) == [1.0, 1.0, 2.0], process)
    with pytest.raises(InUse, match=f"process {process.pid} is busy there with a sweep"):
        run_sweep(file)
    process.kill()
    process.join()
    wait_for_the_end_of(diary(root)[-1][1])  # no run goes on without its sweep

    hold.write_text("")
    folder = run_sweep(file)
    rows = results(folder)
    assert [float(row["square"]) for row in rows] == [1.0, 4.0]
    assert [row["run"] for row in rows] == ["run-0000", "run-0001"]
    assert begun(root) == [1.0, 1.0, 2.0, 2.0]


@pytest.fixture
def pretended(monkeypatch):
    """Runs that are only computed: (x - 2) squared, and x = 5 fails."""
    executed = []

    def execute(job, stop=None):
        x = job["parameters"]["x"]
        executed.append(x)
        return ({}, "five") if x == 5 else ({"loss": (x - 2) ** 2}, "")

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
            first.append(job["parameters"]["x"])
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


def test_a_grid_may_grow_and_shrink(root, pretended):
    """Only what is new is run, and the table is about what the file says."""
    folder = run_sweep(write(root, "parameters: {wait: 0.0}\ngrid: {x: [1.0, 3.0]}\n"))
    run_sweep(write(root, "parameters: {wait: 0.0}\ngrid: {seed: [0], x: [4.0, 3.0, 4]}\n"))
    assert pretended == [1.0, 3.0, 4.0, 3.0]  # a run with a seed is another run
    run_sweep(write(root, "grid: {x: [3.0, 1.0], wait: [0.0]}\n"))
    assert len(pretended) == 4
    assert [float(row["x"]) for row in results(folder)] == [1.0, 3.0]


def test_a_grid_is_every_combination(root):
    grid = read_sweep(write(root, "parameters: {wait: 0.5}\ngrid: {x: [1.0, 2.0], seed: [0, 1]}\n"))
    assert grid.runs() == [
        {"wait": 0.5, "x": 1.0, "seed": 0},
        {"wait": 0.5, "x": 1.0, "seed": 1},
        {"wait": 0.5, "x": 2.0, "seed": 0},
        {"wait": 0.5, "x": 2.0, "seed": 1},
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("grid: {x: [1.0]}\n", "profile: other\ngrid: {x: [1.0]}\n"),
        ("grid: {x: [1.0]}\n", "study: {trials: 1, minimize: loss, ranges: {x: [1.0]}}\n"),
        (STUDY.format(1), STUDY.format(1).replace("4.0", "3.0")),
        (STUDY.format(1), STUDY.format(1).replace("loss", "gain")),
        (STUDY.format(1), "parameters: {wait: 1.0}\n" + STUDY.format(1)),
    ],
)
def test_a_folder_keeps_to_one_sweep(root, pretended, first, second):
    (root / "notebooks/profiles/other.yaml").write_text("profile: other\nx: 1.0\nwait: 0.0\n")
    run_sweep(write(root, first))
    with pytest.raises(TuningError, match=r"spec holds a study with another .* choose another"):
        run_sweep(write(root, second))
    assert len(pretended) == 1


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("grid: {y: [1.0]}", SettingsError, "Unknown parameter y for chapter 02 in spec.yaml"),
        ("grid: {wiat: [1.0]}", SettingsError, "Did you mean wait"),
        ("grid: {x: [1.0, many]}", SettingsError, "x must be float"),
        ("grid: {x: [1e-5]}", SettingsError, "x must be float"),
        ("grid: {x: 1.0}", SweepError, "x needs a list of values"),
        ("grid: {x: {low: 1.0, high: 2.0}}", SweepError, "x needs a list of values"),
        ("grid: {x: [.nan]}", SweepError, "x cannot be nan"),
        ("grid: {x: [-.inf]}", SweepError, "x cannot be -inf"),
        (f"grid: {{seed: [1{'0' * 400}]}}", SweepError, "seed cannot be 10"),
        (f"grid: {{seed: [1{'0' * 5000}]}}", SweepError, "holds something other than numbers"),
        ("grid: {x: [[1.0]]}", SweepError, r"x cannot be \[1.0\]"),
        ("grid: " + "[" * 1500, SweepError, "nested too deeply"),
        ("grid: {seed: [\x07]}", SweepError, "not valid YAML"),
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
        ("study: {trials: 2, maximize: a}", SweepError, "`ranges:`"),
        ("study: {trials: 2, maximize: a, minimize: a, ranges: {x: [1.0]}}", SweepError, "one of"),
        ("study: {trials: 2, maximize: [a], ranges: {x: [1.0]}}", SweepError, "with a key of"),
        (STUDY.format(2).replace("high: 4.0", "high: -4.0"), TuningError, "x: .* is no range"),
        (STUDY.format(2).replace("x:", "xx:"), SettingsError, "Unknown parameter xx"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(root, text, error, message):
    with pytest.raises(error, match=message):
        run_sweep(write(root, text))
    assert not (root / "runs").exists()


def test_a_file_that_is_not_there(root):
    with pytest.raises(SweepError, match=r"Cannot read .*nowhere\.yaml"):
        run_sweep(root / "nowhere.yaml")


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
@pytest.mark.skipif(not find_spec("ray"), reason="not installed: pip install srlab[cluster]")
def test_a_cluster_that_loses_a_worker_loses_no_run(root, monkeypatch):
    """A real Ray cluster of two cores on this computer; the worker of one run is killed."""
    (root / "hold.txt").write_text("1.0 2.0")
    file = write(root, "grid: {x: [1.0, 2.0]}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray leaves a token in the home folder
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy computer hardly lets them begin
    for deadline in ("gcs_server_request", "worker_register"):
        monkeypatch.setenv(f"RAY_{deadline}_timeout_seconds", "600")
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "600000")
    monkeypatch.setenv("RAY_py_gcs_connect_timeout_s", "600")
    cluster, address = start_cluster(root)
    try:
        process = start(srlab, "sweep", file, "--ray", address, log=root / "log.txt")
        wait_until(lambda: begun(root), process)
        kernel = diary(root)[0][1]
        worker = status(status(kernel)[1])[1]
        assert "ray::" in Path(f"/proc/{worker}/cmdline").read_text()
        os.kill(worker, signal.SIGKILL)
        wait_for_the_end_of(kernel)
        (root / "hold.txt").write_text("")
        process.join(600)
    finally:
        cluster.kill()
    assert process.exitcode == 0, (root / "log.txt").read_text()
    assert [float(row["square"]) for row in results(root / "runs/sweeps/spec")] == [1.0, 4.0]
    assert len(diary(root)) == 3  # two runs, one of them begun twice
