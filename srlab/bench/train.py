"""Speed of training: the real loop, with each trick of the engine added in turn.

All figures come from one run on one machine, so that their ratios mean something. Patches a second
and the time of a step are medians; they include everything that the loop does, the moving average
and the log too, but no validation and no checkpoint.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from srlab.bench.bank import describe_machine
from srlab.data.bank import PatchBank
from srlab.files import write_text
from srlab.models import zoo
from srlab.training import recipes
from srlab.training.engine import ENGINES, Choice, Engine, default_fabric

# Each line adds to the one before. For a plain one the batch is laid out row by row, too.
VARIANTS: dict[str, Choice] = {
    "plain (fp32, eager)": ENGINES["plain"],
    "+ channels_last, fused Adam": Choice("32-true", Engine(polyphase=False)),
    "+ polyphase tail": ENGINES["fp32"],
    "+ bf16 autocast": ENGINES["bf16"],
    "+ torch.compile": ENGINES["bf16-compiled"],
    "+ CUDA graphs": ENGINES["bf16-graphs"],
}
PLAIN = ENGINES["plain"].engine


@dataclass(frozen=True)
class Timing:
    """One variant's figures.

    Attributes:
        step_ms: median time of a step, fed by the bank.
        utilisation: the model's arithmetic a second as a share of the machine's peak.
        waiting: share of a step's time that is saved if every step gets the same batch; about zero
            (noise can push it below) if no step waits for data.
        memory_mb: peak of the GPU's memory; None on the CPU, where it is not counted.
        problem: why there are no figures.
    """

    patches_per_second: float = 0.0
    step_ms: float = 0.0
    speedup: float = 0.0
    utilisation: float = 0.0
    waiting: float = 0.0
    memory_mb: float | None = None
    problem: str = ""


def delivering(bank: PatchBank, batch: Callable[..., tuple[Tensor, Tensor]]) -> PatchBank:
    """A copy of a bank, with another function for its method ``batch``."""
    other = copy(bank)
    other.batch = batch  # type: ignore[method-assign]
    return other


def constant(bank: PatchBank, batch_size: int, patch_size: int) -> PatchBank:
    """A bank that hands out the same batch for ever: training as if data cost nothing."""
    pair = bank.batch(batch_size, patch_size)
    return delivering(bank, lambda *_: pair)


def row_by_row(bank: PatchBank) -> PatchBank:
    """A bank whose crops lie channel by channel, row by row, as most loaders deliver them."""
    return delivering(bank, lambda *shape: tuple(x.contiguous() for x in bank.batch(*shape)))


def run_bench_train(
    out: Path | None = None,
    *,
    game: bool = False,
    quick: bool = False,
    model: str | None = None,
    batch_size: int | None = None,
    patch_size: int = 24,
    steps: int | None = None,
    peak_tflops: float | None = None,
    device: str = "auto",
    variants: Sequence[str] = tuple(VARIANTS),
) -> dict[str, Any]:
    """Print a table; return it, and write it as JSON to ``out`` if given.

    Args:
        game: WDRN against the VGG critic by Wasserstein loss with gradient penalty, in place of
            SRResNet-16's training for PSNR.
        quick: few and small steps: to see that it works.
        model: another architecture of :data:`srlab.models.zoo.ARCHITECTURES`.
        batch_size, steps: by default what suits the device.
        variants: names in :data:`VARIANTS`; the first is what the others are compared with.
        peak_tflops: of the device, from its data sheet; by default measured by a large matrix
            product, in bfloat16 or fp32, whichever is faster.
    """
    there = default_fabric(device).device
    on_gpu = there.type == "cuda"
    if batch_size is None:
        on_cpu = 2 if quick else 4 if game else 16
        batch_size = (32 if game else 128) if on_gpu else on_cpu
    steps = steps or (100 if on_gpu and not quick else 3 if quick or not on_gpu else 10)
    if quick and not on_gpu:
        patch_size = min(patch_size, 16)
    peak = peak_tflops or measure_peak(there, 8192 if on_gpu else 1024)
    job = _Job(game, model or ("wdrn" if game else "srresnet-16"), batch_size, patch_size, there)
    flops = job.flops()
    console = Console()
    machine = describe_machine(there.type)
    console.print(
        f"{machine}\n{job.title}: {batch_size} patches of {patch_size}x{patch_size} -> "
        f"{4 * patch_size}x{4 * patch_size} a step, {flops / 1e9:,.0f} GFLOP; peak "
        f"{peak:,.1f} TFLOP/s ({'given' if peak_tflops else 'matrix product, measured now'})"
    )
    timings: dict[str, Timing] = {}
    for name in variants:
        choice = VARIANTS[name]
        if not on_gpu and choice.devices == ("cuda",):
            continue
        torch.compiler.reset()  # past dynamo's limit of recompilations it goes eager in silence
        timing = job.time(choice.precision, choice.engine, steps)
        if timing.step_ms:
            speedup = next(iter(timings.values()), timing).step_ms / timing.step_ms
            used = flops / (timing.step_ms / 1e3) / (peak * 1e12)
            timing = replace(timing, speedup=speedup, utilisation=used)
        timings[name] = timing
    console.print(_table(timings))
    report = {
        "machine": machine,
        "job": job.title,
        "batch_size": batch_size,
        "patch_size": patch_size,
        "steps": steps,
        "flops_per_step": flops,
        "peak_tflops": peak,
        "peak": "given" if peak_tflops else "measured",
        "variants": {name: asdict(timing) for name, timing in timings.items()},
    }
    if out:
        write_text(out, json.dumps(report, indent=2) + "\n")
    return report


class FlopCounter(TorchDispatchMode):
    """Floating-point operations by torch's own formulas.

    torch's ``FlopCounterMode`` follows modules too, and cannot do so through a gradient penalty.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **kwargs, out_val=result)
        return result


class _Job:
    """One training, to be repeated under different engines."""

    def __init__(self, game: bool, model: str, batch_size: int, patch_size: int, device: Any):
        self.game, self.model, self.device = game, model, device
        self.shape = batch_size, patch_size
        self.title = f"{model} against the VGG critic" if game else f"training {model}"
        random = torch.Generator().manual_seed(0)
        picture = torch.randint(256, (3, 512, 768), generator=random, dtype=torch.uint8)
        self.bank = PatchBank([picture] * 4, device=device)

    def train(
        self, precision: str, engine: Engine, steps: int, bank: PatchBank, on_step: Callable
    ) -> None:
        batch_size, patch_size = self.shape
        settings: dict[str, Any] = {
            "steps": steps, "batch_size": batch_size, "patch_size": patch_size, "log_every": 1000,
            "validate_every": 0, "checkpoint_every": 0,
        }  # fmt: skip
        if not self.game:
            settings["optimizer"] = "adam"  # so that the arithmetic counted is the network's
        feed = bank if engine.channels_last else row_by_row(bank)
        with tempfile.TemporaryDirectory() as folder:
            recipes.train(
                "wdrn-vgg-wgan" if self.game else self.model, feed, folder,
                generator=zoo.build(self.model), settings=settings, on_step=on_step,
                fabric=default_fabric(self.device.type, precision), engine=engine, progress=False,
            )  # fmt: skip

    def flops(self) -> int:
        """Of one whole step, both directions: counted by torch while a plain step runs."""
        counter = FlopCounter()

        def on_step(step: int, _: nn.Module) -> None:
            # Between the ends of the first and of the second step.
            counter.__enter__() if step == 1 else counter.__exit__(None, None, None)

        self.train("32-true", PLAIN, 2, constant(self.bank, *self.shape), on_step)
        return counter.total

    def time(self, precision: str, engine: Engine, steps: int) -> Timing:
        same = constant(self.bank, *self.shape)
        try:
            fed, memory = self._median_step(precision, engine, steps, self.bank)
            free, _ = self._median_step(precision, engine, steps, same)
        except Exception as error:  # one variant that fails is a result, too
            return Timing(problem=(str(error).strip() or type(error).__name__).splitlines()[0])
        rate = self.shape[0] / fed
        return Timing(rate, 1e3 * fed, waiting=1 - free / fed, memory_mb=memory)

    def _median_step(
        self, precision: str, engine: Engine, steps: int, bank: PatchBank
    ) -> tuple[float, float | None]:
        """Seconds a step, and the peak of the GPU's memory in MB.

        A GPU runs behind the host: its steps are timed ten at a time, so that waiting for it does
        not hold it up.
        """
        on_gpu = self.device.type == "cuda"
        warm_up, stride = (20, 10) if on_gpu else (2, 1)
        marks: list[float] = []
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()

        def on_step(step: int, _: nn.Module) -> None:
            if step >= warm_up and (step - warm_up) % stride == 0:
                if on_gpu:
                    torch.cuda.synchronize()
                marks.append(time.perf_counter())

        self.train(precision, engine, warm_up + stride * -(-steps // stride), bank, on_step)
        times = [(b - a) / stride for a, b in pairwise(marks)]
        memory = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None
        return statistics.median(times), memory


def measure_peak(device: torch.device, side: int) -> float:
    """TFLOP/s of a square matrix product, the best of five, in bfloat16 or fp32."""
    best = 0.0
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(side, side, device=device).to(dtype)
        a @ a
        for _ in range(5):
            begin = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * side**3 / (time.perf_counter() - begin) / 1e12)
    return best


def _table(timings: dict[str, Timing]) -> Table:
    table = Table("engine", header_style="bold")
    for column in ("patches/s", "ms a step", "times plain", "of the peak", "waits", "memory"):
        table.add_column(column, justify="right")
    for name, t in timings.items():
        if t.problem:
            table.add_row(name, t.problem[:60])
            continue
        memory = f"{t.memory_mb:,.0f} MB" if t.memory_mb is not None else "-"
        table.add_row(
            name, f"{t.patches_per_second:,.1f}", f"{t.step_ms:,.1f}", f"{t.speedup:.2f}",
            f"{t.utilisation:.1%}", f"{t.waiting:.1%}", memory,
        )  # fmt: skip
    return table
