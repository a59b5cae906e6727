"""Train every released model in half an hour on one GPU, in commands of at most ten minutes.

    python scripts/train_on_gpu.py --data bsds400 --data wallpapers@2 --valid set5
    python scripts/train_on_gpu.py ...the same...     # goes on; until it says "all done"

Stages come in the order of what matters most, so that a run that is cut short has the most
important ones. Each has a time budget; which engine is fastest and how many steps fit is measured
once and written down, and a stopped stage goes on from its checkpoint. Each finished stage is
exported in half precision to ``OUT/release`` and checks itself: losses and weights finite, PSNR
above bicubic (games: not far below), less than 0.005 dB lost by half precision, less than 4 MB.
``summary.json`` tells all. ``--miniature`` goes through everything in seconds on a CPU.

Exit status: 0 all done and all checks passed; 1 a check failed; 3 time is up, run it again.
"""

import argparse
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlab.bench.train import VARIANTS, run_bench_train
from srlab.data.bank import PatchBank
from srlab.data.datasets import find, training_files
from srlab.data.images import read_image, read_image_u8, write_image
from srlab.errors import SrlabError
from srlab.evaluation import protocol
from srlab.files import write_text
from srlab.models import zoo
from srlab.models.generators import fold
from srlab.training import budget, recipes
from srlab.training.engine import ENGINES, Engine, default_fabric
from srlab.training.monitor import TrainingDiverged, read_log
from srlab.training.release import BENCHMARKS, export
from srlab.training.run import Result

LARGEST = 4e6  # bytes of a released file
HALF_LOSS = 0.005  # dB that half precision may cost
GAME_LOSS = 2.5  # dB below bicubic that a game may end at: it trades PSNR for looks


@dataclass(frozen=True)
class Stage:
    """One model.

    Attributes:
        minutes: the time budget, measuring included.
        start: the stage that a game starts from.
        why: its place in the ranking.
    """

    name: str
    minutes: float
    lr: float
    why: str
    start: str | None = None


# 25 minutes of training; three are for the benchmark, two for starting and exporting.
STAGES = [
    Stage("srresnet-16", 7, 5e-4, "the published line: nothing is believed without it"),
    Stage("wdrn", 3.5, 5e-4, "the course's own network, and where its final game starts"),
    Stage("wdrn-vgg-wgan", 5, 1e-4, "the final recipe", start="wdrn"),
    Stage("srresnet", 2.5, 1e-3, "the baseline, and where SRGAN starts"),
    Stage("srgan", 2, 1e-4, "the final recipe's opponent", start="srresnet"),
    Stage("wdrn-16", 5, 5e-4, "how far the architecture goes"),
]


def main() -> int:
    options = arguments()
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    summary = read(options.out / "summary.json")
    if not (options.out / "bench-game.json").is_file():
        benchmark(options)
    bank = make_bank(options)
    finished = True
    for stage in STAGES:
        if options.stages and stage.name not in options.stages:
            continue
        if summary.get(stage.name, {}).get("done"):
            print(f"{stage.name}: done before")
            continue
        if time.monotonic() > end - 20:
            finished = False
            break
        print(f"{stage.name}: {stage.why}", flush=True)
        result = train(stage, options, bank, end)
        if result.step < budget.read(result.folder).steps:
            finished = False
            break
        summary[stage.name] = release(stage, options, result)
        write_text(options.out / "summary.json", json.dumps(summary, indent=2) + "\n")
        print(json.dumps(summary[stage.name], indent=2), flush=True)
    problems = [f"{n}: {p}" for n, s in summary.items() for p in s.get("problems", [])]
    for problem in problems:
        print(f"CHECK FAILED  {problem}")
    if not finished:
        print("Time is up: run the same command again to go on.")
        return 3
    print(f"all done: {options.out / 'release'}, {options.out / 'summary.json'}")
    return 1 if problems else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", help="set or folder, NAME@2 halves; repeat")
    parser.add_argument("--valid", default="photos-valid", help="set that checks are made on")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="of this command")
    parser.add_argument("--stages", nargs="*", help="only these, in the order of the ranking")
    parser.add_argument("--scale-budget", type=float, default=1.0, help="factor of all budgets")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=24)
    parser.add_argument("--trained-on", default="", help="what the model cards say of the data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--miniature", action="store_true", help="everything in seconds, on a CPU")
    options = parser.parse_args()
    options.data = options.data or ["photos"]
    if options.miniature:
        options.device, options.batch_size, options.patch_size = "cpu", 2, 8
        file = options.out / "valid" / "small.png"
        write_image(read_image(find(options.valid)[0])[:, :64, :64], file)
        options.valid = str(file.parent)
    return options


def benchmark(options: argparse.Namespace) -> None:
    """What each trick brings on this machine, written beside the models."""
    for kind in ("pretrain", "game"):
        size: dict[str, Any] = {"patch_size": options.patch_size, "device": options.device}
        if options.miniature:
            size |= {"quick": True, "model": "srresnet" if kind == "pretrain" else None}
            size |= {"variants": list(VARIANTS)[:3]}  # a compiler takes longer than seconds
        else:
            size |= {"steps": 40}
        run_bench_train(options.out / f"bench-{kind}.json", game=kind == "game", **size)


def make_bank(options: argparse.Namespace) -> PatchBank:
    device = default_fabric(options.device).device
    if options.miniature:
        pictures = [read_image_u8(file)[:, :96, :96] for file in find(options.data[0])[:2]]
        return PatchBank(pictures, device=device, detail=0.5)
    files, shrink = training_files(options.data)
    print(f"decoding {len(files)} images ...", flush=True)
    return PatchBank.from_files(files, 4, device, 0, shrink, detail=0.5)


def train(stage: Stage, options: argparse.Namespace, bank: PatchBank, end: float) -> Result:
    """Train a stage until it is done or time is up; at half the rate once more if it diverges."""
    folder = options.out / stage.name
    halved = folder.with_suffix(".halved")
    while True:
        rate = stage.lr / 2 if halved.exists() else stage.lr
        settings = {
            "generator_lr" if stage.start else "lr": rate,
            "batch_size": options.batch_size,
            "patch_size": options.patch_size,
            "log_every": 1 if options.miniature else 100,
            "checkpoint_every": 1 if options.miniature else 500,
            "validate_every": 1 if options.miniature else 500,
        }

        def go(
            where: Path, precision: str, engine: Engine, on_step: Any, settings: Any = settings,
            **how: Any,
        ) -> Result:  # fmt: skip
            generator = fold(zoo.load(options.out / stage.start)) if stage.start else None
            bank.generator.manual_seed(0)
            return recipes.train(
                stage.name, bank, where, generator=generator, settings=settings, engine=engine,
                fabric=default_fabric(options.device, precision), on_step=on_step, progress=False,
                **how,
            )  # fmt: skip

        def trial(
            precision: str, engine: Engine, n: int, where: Path, on_step: Any, go: Any = go,
            settings: Any = settings,
        ) -> None:  # fmt: skip
            quiet = {"steps": n, "validate_every": 0, "checkpoint_every": 0}
            go(where, precision, engine, on_step, settings=settings | quiet)

        short: dict[str, Any] = {"steps": 2, "engine": "fp32"}
        length = short if options.miniature else {"minutes": stage.minutes * options.scale_budget}
        plan = budget.make(folder, trial, bank.device, **length)
        how = ENGINES[plan.engine]
        try:
            return go(
                folder, how.precision, how.engine, lambda *_: time.monotonic() > end,
                settings | {"steps": plan.steps},
                held_out=find(options.valid)[:5],
            )  # fmt: skip
        except TrainingDiverged as error:
            if halved.exists():
                raise
            print(f"{error} Once more at half the learning rate.", flush=True)
            halved.touch()
            shutil.rmtree(folder)


def release(stage: Stage, options: argparse.Namespace, result: Result) -> dict[str, Any]:
    """Export a finished stage and say what is wrong with it, if anything."""
    file = options.out / "release" / f"{stage.name}.safetensors"
    device = "cpu" if options.miniature else default_fabric(options.device).device
    notes = export(
        result.folder,
        file,
        trained_on=options.trained_on or ", ".join(options.data),
        benchmarks=() if options.miniature else BENCHMARKS,
        device=device,
        force=True,
    )
    exported, held_out = zoo.load(file), find(options.valid)
    mine, half, bicubic = (
        protocol.mean_psnr(model, held_out, device)
        for model in (zoo.load(result.folder), exported, zoo.load("bicubic"))
    )
    floor = bicubic - (GAME_LOSS if stage.start else 0)
    curves = read_log(result.folder / "log.csv").values()
    checks = {
        "a loss is not finite": all(math.isfinite(v) for _, curve in curves for v in curve),
        "a weight is not finite": all(p.isfinite().all() for p in exported.parameters()),
        f"PSNR {half:.2f} dB is below {floor:.2f}": half > floor or options.miniature,
        f"half precision costs {mine - half:.4f} dB": mine - half < HALF_LOSS,
        f"{file.stat().st_size:,} bytes": file.stat().st_size < LARGEST,
    }
    return {
        "done": True,
        "file": str(file),
        "bytes": file.stat().st_size,
        "steps": result.step,
        "patches_per_second": round(result.patches_per_second, 1),
        "valid_psnr": round(half, 3),
        "bicubic_psnr": round(bicubic, 3),
        **{name: notes[name] for name in BENCHMARKS if name in notes},
        "problems": [problem for problem, fine in checks.items() if not fine],
    }


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SrlabError as error:
        sys.exit(f"train_on_gpu: {error}")
