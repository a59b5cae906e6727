"""Train every released model in half an hour on one GPU, in commands of at most ten minutes.

    python scripts/train_on_gpu.py --data bsds400 --data FOLDER@2 --valid set5 --out runs/gpu
    python scripts/train_on_gpu.py ...the same...     # goes on; until it says "all done"

Stages come in the order of what matters most, so that a run that is cut short has the most
important ones. Each has a time budget; how many steps fit is measured once and written down
(``plan.json``), and a stopped stage goes on from its checkpoint. Each finished stage is exported in
half precision to ``OUT/release`` and checks itself: losses and weights finite, PSNR above bicubic
(games: not far below), less than 0.005 dB lost by half precision, less than 4 MB. ``summary.json``
tells all. ``--miniature`` goes through everything in seconds on a CPU.

Exit status: 0 all done and all checks passed; 1 a check failed; 3 time is up, run it again.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srlab.bench_train import VARIANTS, run_bench_train
from srlab.cli import _training_files
from srlab.datasets import find, status
from srlab.errors import SrlabError
from srlab.evaluation import protocol
from srlab.images import read_image, read_image_u8, write_image
from srlab.models import zoo
from srlab.models.generators import fold
from srlab.patches import PatchBank
from srlab.training import loop
from srlab.training.config import AdversarialConfig, PretrainConfig
from srlab.training.engine import Engine, default_fabric
from srlab.training.monitor import TrainingDiverged, read_log
from srlab.training.recipes import RECIPES, build_critic, build_perceptual

BENCHMARKS = ("set5", "set14", "bsd100", "urban100")
LARGEST = 4e6  # bytes of a released file
HALF_LOSS = 0.005  # dB that half precision may cost
GAME_LOSS = 2.5  # dB below bicubic that a game may end at: it trades PSNR for looks


@dataclass(frozen=True)
class Stage:
    """One model.

    Attributes:
        seconds: the time budget, of training alone.
        start: the stage that a game starts from.
        why: its place in the ranking.
    """

    name: str
    seconds: float
    lr: float
    why: str
    start: str | None = None


# 25 minutes of training; three are for the benchmark, two for starting and exporting.
STAGES = [
    Stage("srresnet-16", 420, 5e-4, "the published line: nothing is believed without it"),
    Stage("wdrn", 210, 5e-4, "the course's own network, and where its final game starts"),
    Stage("wdrn-vgg-wgan", 300, 1e-4, "the final recipe", start="wdrn"),
    Stage("srresnet", 150, 1e-3, "the baseline, and where SRGAN starts"),
    Stage("srgan", 120, 1e-4, "the final recipe's opponent", start="srresnet"),
    Stage("wdrn-16", 300, 5e-4, "how far the architecture goes"),
]


def main() -> int:
    options = arguments()
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    plan = read(options.out / "plan.json")
    summary = read(options.out / "summary.json")
    if "engines" not in plan:
        plan["engines"] = choose_engines(options)
        write(options.out / "plan.json", plan)
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
        result = train(stage, options, bank, plan, end)
        if result.step < plan[stage.name]["steps"]:
            finished = False
            break
        summary[stage.name] = release(stage, options, result)
        write(options.out / "summary.json", summary)
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


def choose_engines(options: argparse.Namespace) -> dict[str, list[str]]:
    """The fastest engine that works here, for training for PSNR and for games."""
    chosen = {}
    for kind in ("pretrain", "game"):
        size = {"patch_size": options.patch_size, "device": options.device}
        if options.miniature:
            size |= {"quick": True, "model": "srresnet" if kind == "pretrain" else None}
            size |= {"variants": list(VARIANTS)[:3]}  # a compiler takes longer than seconds
        else:
            size |= {"steps": 40}
        file = options.out / f"bench-{kind}.json"
        report = run_bench_train(file, game=kind == "game", **size)
        works = {n: v for n, v in report["variants"].items() if not v["problem"]}
        if not works:
            raise SrlabError(f"no engine works here; see {file}.")
        name = max(works, key=lambda n: works[n]["patches_per_second"])
        precision, engine = VARIANTS[name]
        chosen[kind] = [precision, engine.compile]
        print(f"{kind}: {name}", flush=True)
    return chosen


def make_bank(options: argparse.Namespace) -> PatchBank:
    device = default_fabric(options.device).device
    if options.miniature:
        pictures = [read_image_u8(file)[:, :96, :96] for file in find(options.data[0])[:2]]
        return PatchBank(pictures, device=device)
    files, shrink = _training_files(options.data)
    print(f"decoding {len(files)} images ...", flush=True)
    return PatchBank.from_files(files, 4, device, 0, shrink)


def train(
    stage: Stage, options: argparse.Namespace, bank: PatchBank, plan: dict[str, Any], end: float
) -> loop.Result:
    """Train a stage until it is done or time is up; at half the rate once more if it diverges."""
    folder = options.out / stage.name
    mine = plan.setdefault(stage.name, {"lr": stage.lr})
    while True:
        if "steps" not in mine:
            mine["steps"] = steps_in(stage, options, bank, plan)
        write(options.out / "plan.json", plan)

        def on_step(step: int, _: Any) -> bool:
            return time.monotonic() > end

        try:
            bank.generator.manual_seed(0)
            return run(stage, options, bank, plan, folder, mine["steps"], on_step)
        except TrainingDiverged as error:
            if mine["lr"] < stage.lr:
                raise
            mine["lr"] = stage.lr / 2
            print(f"{error} Once more at learning rate {mine['lr']}.", flush=True)
            shutil.rmtree(folder)


def steps_in(
    stage: Stage, options: argparse.Namespace, bank: PatchBank, plan: dict[str, Any]
) -> int:
    """How many steps fit into the stage's budget, after measuring fifty of them."""
    if options.miniature:
        return 2
    marks = {}

    def on_step(step: int, _: Any) -> None:
        if step in (30, 80):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks[step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        run(stage, options, bank, plan, Path(folder), 80, on_step, validated=False)
    step = (marks[80] - marks[30]) / 50
    # 3% for validation and checkpoints; whole rows of the log.
    return max(int(0.97 * stage.seconds * options.scale_budget / step) // 100 * 100, 100)


def run(
    stage: Stage,
    options: argparse.Namespace,
    bank: PatchBank,
    plan: dict[str, Any],
    folder: Path,
    steps: int,
    on_step: Any,
    validated: bool = True,
) -> loop.Result:
    game = stage.start is not None
    precision, mode = plan["engines"]["game" if game else "pretrain"]
    fabric = default_fabric(options.device, precision)
    held_out = find(options.valid)[:5]

    def validate(generator: torch.nn.Module) -> float:
        return protocol.mean(protocol.evaluate(generator, held_out, device=fabric.device)).psnr

    log_every = 1 if options.miniature else 100
    common = {
        "steps": steps,
        "batch_size": options.batch_size,
        "patch_size": options.patch_size,
        "log_every": log_every,
        "validate_every": max(steps // 10 // log_every, 1) * log_every if validated else 0,
        "checkpoint_every": max(steps // 20, 1) if validated else 0,
    }
    torch.manual_seed(0)
    how = {
        "fabric": fabric,
        "engine": Engine(compile=mode),
        "on_step": on_step,
        "validate": validate if validated and not options.miniature else None,
        "progress": False,
    }
    lr = plan[stage.name]["lr"]
    if not game:
        settings = PretrainConfig(lr=lr, warmup_steps=min(500, steps // 10), **common)
        return loop.pretrain(zoo.build(stage.name), bank, settings, folder, **how)
    recipe = RECIPES[stage.name]
    generator = fold(zoo.load(options.out / stage.start))
    settings = AdversarialConfig(**recipe.settings | common | {"generator_lr": lr})
    critic = build_critic(recipe, options.patch_size * generator.scale)
    how["perceptual"] = build_perceptual(recipe, bank.batch(16, options.patch_size)[1])
    return loop.adversarial(generator, critic, bank, settings, folder, **how)


def release(stage: Stage, options: argparse.Namespace, result: loop.Result) -> dict[str, Any]:
    """Export a finished stage and say what is wrong with it, if anything."""
    file = options.out / "release" / f"{stage.name}.safetensors"
    generator, device = zoo.load(result.folder), "cpu" if options.miniature else options.device
    if device == "auto":
        device = default_fabric().device
    trained_on = options.trained_on or ", ".join(options.data)
    notes: dict[str, Any] = {"trained_on": trained_on, "steps": result.step}
    _, info = loop.load_checkpoint(result.folder / loop.CHECKPOINT)
    notes["config"] = info["config"]
    zoo.save(generator, file, half=True)
    exported = zoo.load(file)

    held_out = find(options.valid)

    def score(model: torch.nn.Module, files: list[Path]) -> Any:
        return protocol.mean(protocol.evaluate(model, files, device=device))

    mine, half, bicubic = (
        score(m, held_out).psnr for m in (generator, exported, zoo.load("bicubic"))
    )
    if not options.miniature:
        for name in BENCHMARKS:
            if status(name)[0]:
                mean = score(exported, find(name))
                notes[name] = f"{mean.psnr:.2f} / {mean.ssim:.4f}"
    zoo.save(generator, file, half=True, notes=notes)
    shutil.copyfile(result.folder / "log.csv", file.with_suffix(".csv"))

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


def write(file: Path, content: dict[str, Any]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(file)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SrlabError as error:
        sys.exit(f"train_on_gpu: {error}")
