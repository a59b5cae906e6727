"""What a bad night does to srlab: kills, damaged files, full disks, no home, little memory.

    make soak                              # 15 minutes
    python scripts/soak.py --minutes 3

Each try is a process of its own, forked from this one, so that it costs no import. While it runs, a
second process keeps the machine busy. The table tells the tries and the failures: a traceback, a
crash, a step lost beyond the last checkpoint interval, a file half written or left behind, or a
process that took more than 2 GB. The same --seed does the same damage.
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from srlab import cli
from srlab.course.settings import read_yaml
from srlab.data.bank import PatchBank
from srlab.data.images import read_image_u8, write_image
from srlab.data.reading import read_picture
from srlab.errors import SrlabError
from srlab.evaluation import scores
from srlab.models import released, zoo
from srlab.models.generators import SRResNet
from srlab.training.monitor import Monitor, read_rows
from srlab.training.state import load_checkpoint, save_checkpoint

MOST_BYTES = 2 * 10**9
EVERY = 5  # steps between checkpoints
TRACEBACK = 70  # exit status of a child that nothing caught


@dataclass
class Ended:
    """How a child ended: exit status (negative: by a signal), what it printed, its peak memory."""

    status: int
    said: str
    peak: int

    def problem(self, expected: set[int]) -> str:
        if "Traceback (most recent call last)" in self.said or self.status == TRACEBACK:
            return "traceback: " + self.said.strip().splitlines()[-1]
        if self.peak > MOST_BYTES:
            return f"took {self.peak / 1e9:.1f} GB"
        if self.status not in expected:
            last = (self.said.strip().splitlines() or [""])[-1]
            return f"ended with {self.status}: {last}"
        return ""


def child(
    work: Callable[[], object], after: float | None = None, number: int = signal.SIGKILL
) -> Ended:
    """Do something in a forked process, which is sent a signal after some seconds."""
    with tempfile.TemporaryFile() as output:
        if (process := os.fork()) == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
            status = TRACEBACK
            try:
                work()
                status = 0
            except SrlabError as error:
                print(f"srlab: {error}", file=sys.stderr)
                status = 1
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else int(bool(error.code))
            except BaseException:
                traceback.print_exc()
            finally:
                with suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        if after is not None:
            time.sleep(after)
            os.kill(process, number)
        _, status, usage = os.wait4(process, 0)
        output.seek(0)
        said = output.read().decode(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), said, usage.ru_maxrss * 1024)


def srlab(*arguments: object) -> None:
    sys.argv = ["srlab", *map(str, arguments)]
    cli.main()


class Soak:
    """Counts tries and failures by name, and says what failed."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.counts: dict[str, list[int]] = {}

    def note(self, name: str, problem: str) -> None:
        count = self.counts.setdefault(name, [0, 0])
        count[0] += 1
        if problem:
            count[1] += 1
            print(f"{name}: {problem}", flush=True)

    def table(self) -> Table:
        table = Table("", "tries", "failures", header_style="bold")
        for name, (tries, failures) in self.counts.items():
            table.add_row(name, f"{tries:,}", f"{failures:,}")
        return table


@contextmanager
def load() -> Iterator[None]:
    """A second process that keeps a core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pow(3, 10**5)"]) as busy:
        try:
            yield
        finally:
            busy.kill()


def pictures(folder: Path) -> Path:
    torch.manual_seed(0)
    for i in range(2):
        write_image(torch.rand(3, 64, 80), folder / f"{i}.png")
    return folder


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob(".srlab-*")]


def kill_trainings(soak: Soak, tries: int) -> None:
    """One run, again and again killed; now and then asked to end."""
    data, run = pictures(soak.folder / "data"), soak.folder / "run"
    options = ["--data", data, "--validate", data, "--out", run, "--device", "cpu"]
    options += ["--steps", 10**6, "--batch-size", 1, "--patch-size", 8, "--engine", "fp32"]
    options += ["--log-every", 1, "--checkpoint-every", EVERY, "--validate-every", 0]
    reached = 0
    for _ in range(tries):
        asked = soak.random.random() < 0.3
        number = soak.random.choice([signal.SIGTERM, signal.SIGINT]) if asked else signal.SIGKILL
        ended = child(
            lambda: srlab("train", "srresnet", *options), soak.random.uniform(0.1, 4), number
        )
        problem = ended.problem({128 + number, -number, 1 if asked else -number})
        with suppress(SrlabError):
            step = 0
            step = load_checkpoint(run / "checkpoint.safetensors")[1]["step"]
        logged = [int(row["step"]) for row in read_rows(run / "log.csv")]
        last = logged[-1] if logged else 0
        if not problem and (run / "checkpoint.safetensors").exists() and not step:
            problem = "the checkpoint cannot be read"
        elif not problem and (step < reached or last - step > (0 if asked else EVERY)):
            problem = f"logged step {last}, saved step {step} after {reached}"
        elif not problem and logged != sorted(set(logged)):
            problem = "rows of the log are out of order"
        reached = max(reached, step)
        soak.note("training killed", problem)
    child(lambda: srlab("train", "srresnet", *options), 15, signal.SIGTERM)
    soak.note("what killed trainings left is removed", " ".join(leftovers(run)))


def kill_upscaling(soak: Soak, tries: int) -> None:
    source = soak.folder / "photo.png"
    write_image(torch.rand(3, 160, 200), source)
    for _ in range(tries):
        target = soak.folder / "out" / f"large{soak.random.choice(['.png', '.jpg', '.tif'])}"
        number = soak.random.choice([signal.SIGKILL, signal.SIGTERM])
        ended = child(
            lambda target=target: srlab(
                "upscale", source, "-o", target, "--force", "--tile", 32, "--device", "cpu"
            ),
            soak.random.uniform(0.05, 3),
            number,
        )
        problem = ended.problem({0, -number, 128 + number})
        if target.exists() and read_picture(target).samples.shape != (640, 800, 3):
            problem = problem or f"{target.name} is half written"
        soak.note("upscaling killed", problem)
    (soak.folder / "out").mkdir(exist_ok=True)
    child(lambda: srlab("upscale", source, "-o", target, "--force", "--device", "cpu"))
    soak.note("what killed upscaling left is removed", " ".join(leftovers(soak.folder / "out")))


def mutate(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, most of them near the ends, where structure lies; or a piece lost."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        span = min(len(changed), draw.choice([64, 512, len(changed)]))
        start = draw.choice([0, len(changed) - span])
        changed[start + draw.randrange(span)] = draw.choice([0, 1, 127, 255, draw.randrange(256)])
    if draw.random() < 0.2:
        del changed[draw.randrange(1, len(changed)) :]
    return bytes(changed)


def damage(soak: Soak, tries: int) -> None:
    """Files of every kind that srlab reads, each with some bytes changed."""
    folder = soak.folder / "damaged"
    folder.mkdir()
    ramp = np.linspace(0, 255, 48 * 64 * 4).reshape(48, 64, 4).astype(np.uint8)
    readers: dict[str, tuple[bytes, Callable[[Path], object]]] = {}
    for mode, suffix in (
        ("RGB", "png"), ("P", "png"), ("RGB", "jpg"), ("CMYK", "jpg"), ("RGBA", "webp"),
        ("RGBA", "tif"), ("L", "bmp"), ("P", "gif"),
    ):  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(ramp).convert(mode).save(
            file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix)
        )
        readers[f"{mode}.{suffix}"] = (
            file.getvalue(),
            soak.random.choice([read_image_u8, read_picture]),
        )
    network = SRResNet(n_blocks=1, n_features=4)
    zoo.save(network, folder / "a.safetensors", notes={"steps": 1})
    torch.save(network.state_dict(), folder / "a.pth")
    state = {"average": {f"module.{k}": v for k, v in network.state_dict().items()}}
    save_checkpoint(folder / "c.safetensors", state, {"model": zoo.describe(network), "step": 1})
    readers["a.safetensors"] = (folder / "a.safetensors").read_bytes(), zoo.load
    readers["a.pth"] = (folder / "a.pth").read_bytes(), zoo.load
    readers["c.safetensors"] = (folder / "c.safetensors").read_bytes(), load_checkpoint
    PatchBank.from_files([pictures(folder / "data") / "0.png"]).save(folder / "bank")
    for name in ("bank.json", "errors.npy"):
        readers[f"bank/{name}"] = (
            (folder / "bank" / name).read_bytes(),
            lambda path: PatchBank.open(path.parent, detail=0.5).batch(1, 8),
        )
    readers["sweep.yaml"] = b"chapter: 5\ngrid: {seed: [0, 1], wgan_lr: [1.0e-5]}\n", read_yaml
    readers["log.csv"] = b"step,loss\n1,0.5\n2,0.4\n", read_rows
    (folder / "sums").mkdir()
    sums = (released.FOLDER / released.SUMS).read_bytes()
    readers["sums/SHA256SUMS"] = sums, lambda path: released.read_sums(path.parent)

    def read(path: Path, reader: Callable[[Path], object], versions: list[bytes]) -> None:
        for version in versions:
            path.write_bytes(version)
            with suppress(SrlabError):
                reader(path)

    many = 25  # a process
    for _ in range(max(1, tries // many)):
        name = soak.random.choice(list(readers))
        data, reader = readers[name]
        versions = [mutate(data, soak.random) for _ in range(many)]
        problem = child(lambda: read(folder / name, reader, versions)).problem({0})  # noqa: B023
        for i in range(many):
            soak.note("damaged files", f"{name}: {problem}" if problem and i == 0 else "")


@contextmanager
def small_disk(folder: Path, nbytes: int) -> Iterator[None]:
    """A disk of its own with so much room; without the right to make one, a limit on files."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "none", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def course(folder: Path) -> Path:
    """A course of one small chapter."""
    import nbformat

    (folder / "notebooks" / "profiles").mkdir(parents=True)
    (folder / "notebooks" / "profiles" / "lite.yaml").write_text("profile: lite\n")
    cells = [nbformat.v4.new_code_cell("print('x' * 200_000)")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, folder / "notebooks" / "01_one.ipynb")
    return folder


def fill_disks(soak: Soak) -> None:
    """Every writer meets a disk that has no room: nothing, a page, some pages."""
    data, root = pictures(soak.folder / "full-data"), course(soak.folder / "course")
    large, tensors = torch.rand(3, 300, 300), {"weight": torch.rand(100_000)}
    figures = [scores.Figures("a" * 100, 1.0, 1.0, 1.0, 1.0)] * 5000

    def log(disk: Path) -> None:
        monitor = Monitor(disk, ["loss"], 1, 10**5, 1, progress=False)
        monitor.open(0)
        for step in range(1, 10**5):
            monitor.step(step, {"loss": torch.tensor(0.5)})

    def chapter(disk: Path) -> None:
        os.environ |= {"SRLAB_COURSE": str(root), "SRLAB_RUNS": str(disk)}
        srlab("course", "run")

    writers: dict[str, Callable[[Path], object]] = {
        "checkpoint": lambda disk: save_checkpoint(disk / "a.safetensors", tensors, {}),
        "weights": lambda disk: zoo.save(zoo.build("srresnet"), disk / "a.safetensors"),
        "log": log,
        "CSV": lambda disk: scores.write_csv(figures, disk / "a.csv"),
        "picture, PNG": lambda disk: write_image(large, disk / "a.png"),
        "picture, JPEG": lambda disk: write_image(large, disk / "a.jpg"),
        "upscaled picture, TIFF": lambda disk: srlab(
            "upscale", data / "0.png", "-o", disk / "a.tif", "--model", "bicubic"
        ),
        "bank": lambda disk: PatchBank.from_files([data / "0.png"] * 4, folder=disk / "bank"),
        "chapter": chapter,
    }
    for name, write in writers.items():
        for room in (4096, 65_536):
            disk = soak.folder / "disk"
            with small_disk(disk, room):
                problem = child(lambda: write(disk)).problem({1})  # noqa: B023
                if left := leftovers(disk):
                    problem = problem or f"left {left[0]}"
                if half := [p.name for p in disk.glob("a.*")]:
                    problem = problem or f"{half[0]} is half written"
            soak.note("full disk", f"{name}: {problem}" if problem else "")


def homeless(soak: Soak) -> None:
    """HOME read-only (/proc takes no file, not even root's) or missing, in fresh processes."""
    source = pictures(soak.folder / "home-data") / "0.png"
    for home in ("/proc", str(soak.folder / "nowhere"), None):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
        environment |= {"HOME": home} if home else {}
        if home is None:
            environment.pop("HOME", None)
        for arguments in (
            ["upscale", source, "-o", soak.folder / "home.png", "--force"],
            ["evaluate", "bicubic", "--dataset", source.parent],
        ):
            command = [sys.executable, "-m", "srlab", *map(str, arguments)]
            ran = subprocess.run(command, capture_output=True, text=True, env=environment)
            ended = Ended(ran.returncode, ran.stdout + ran.stderr, 0)
            soak.note("no home", ended.problem({0}))


def starve(soak: Soak) -> None:
    """The largest pictures that are accepted, and headers that promise more, within 2 GB."""
    png, deep = soak.folder / "large.png", soak.folder / "deep.png"
    Image.new("RGB", (13_300, 13_300), (1, 2, 3)).save(png, compress_level=1)
    Image.fromarray(np.full((9000, 9000), 40_000, np.uint16)).save(deep, compress_level=1)
    small = soak.folder / "small.png"
    write_image(torch.rand(3, 700, 900), small)
    for work in (
        lambda: read_image_u8(png),
        lambda: read_picture(deep),
        lambda: srlab("upscale", small, "-o", soak.folder / "large.tif", "--model", "bicubic"),
        lambda: srlab("evaluate", "bicubic", "--dataset", small),
    ):
        ended = child(work)
        soak.note("2 GB of memory", ended.problem({0, 1}))
        print(f"  peak {ended.peak / 1e9:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=15, help="about; fewer means fewer tries")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    share = options.minutes / 15
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, load():
        soak = Soak(Path(folder), options.seed)
        kill_trainings(soak, max(2, round(50 * share)))
        kill_upscaling(soak, max(2, round(50 * share)))
        damage(soak, max(50, round(2000 * share)))
        fill_disks(soak)
        homeless(soak)
        starve(soak)
    Console().print(soak.table())
    failures = sum(failed for _, failed in soak.counts.values())
    print(f"seed {options.seed}, {time.perf_counter() - begin:.0f} s")
    print(json.dumps(soak.counts))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
