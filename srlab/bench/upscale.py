"""Speed of upscaling one picture by different engines: torch in several ways, and ONNX Runtime.

All engines run in turn, round after round in one process, and a figure is the median over the
rounds, so that ratios mean something even where the machine does other work. Each engine's result
is compared with that of plain torch.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from srlab.bench.bank import describe_machine, seconds_of
from srlab.data.datasets import find
from srlab.data.degradation import crop_to_multiple, downsample
from srlab.data.images import read_image
from srlab.errors import SrlabError
from srlab.evaluation.metrics import psnr
from srlab.files import write_text
from srlab.models import zoo
from srlab.models.generators import fold
from srlab.models.onnx_engine import OnnxEngine, export_onnx
from srlab.pictures.upscaling import prepare, usable

MODELS = ("srresnet-16", "srresnet")
PLAIN = "plain torch (eager, unfolded)"
FAST = "folded, channels_last, polyphase"  # as `srlab upscale` runs
EXACT = 1e-3  # an engine whose values differ by more is none of fp32


@dataclass(frozen=True)
class Timing:
    """One engine's figures on one model.

    Attributes:
        seconds: median for the whole picture.
        speedup: how many times as fast as plain torch.
        difference: largest, from plain torch's result, of values in [0, 1].
        agreement: PSNR between the two results in dB; None where they are the same.
        exact: the difference is only float rounding.
        problem: why there are no figures.
    """

    seconds: float = 0.0
    speedup: float = 0.0
    difference: float = 0.0
    agreement: float | None = None
    exact: bool = False
    problem: str = ""


def run_bench_upscale(
    out: Path | None = None,
    *,
    models: tuple[str, ...] = MODELS,
    picture: Path | None = None,
    side: int = 192,
    rounds: int = 5,
    compile: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Print a table; return it, and write it as JSON to ``out`` if given.

    Args:
        models: architectures or released models; the weights do not matter to the time.
        picture: an LR picture, taken whole. By default a photograph of the course, shrunk by 4.
        side: the LR picture is cut to at most this many pixels a side; 0 takes it whole.
        rounds: measurements of each engine, after one that is not counted.
        compile: also time ``torch.compile``, whose first run takes a minute.
        device: auto, cpu or cuda.

    Raises:
        SrlabError: ``rounds`` below 1, an unknown model or device.
    """
    if rounds < 1:
        raise SrlabError(f"rounds must be at least 1, got {rounds}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = usable(device)
    if picture is not None:
        lr = read_image(picture)
    else:
        lr = downsample(crop_to_multiple(read_image(find("photos")[0]), 4))
    lr = lr[None, :, : side or None, : side or None].contiguous()
    machine = describe_machine(device)
    console = Console()
    height, width = lr.shape[-2:]
    console.print(f"{machine}\n{width} x {height} -> {4 * width} x {4 * height} pixels on {device}")
    report: dict[str, Any] = {"machine": machine, "device": device, "lr": [height, width]}
    report |= {"models": {}}
    for name in models:
        timings = time_engines(_network(name), lr, rounds, compile, device)
        console.print(_table(name, timings, 16 * height * width))
        exact = [label for label, t in timings.items() if t.exact]
        fastest = min(exact, key=lambda label: timings[label].seconds)
        speedup = timings[fastest].speedup
        console.print(f"{name}: the fastest with fp32's result is {fastest}, {speedup:.2f} x plain")
        engines = {label: asdict(timing) for label, timing in timings.items()}
        report["models"][name] = {"engines": engines, "fastest": fastest}
    if out:
        write_text(out, json.dumps(report, indent=2) + "\n")
    return report


def time_engines(
    network: nn.Module, lr: Tensor, rounds: int = 5, compile: bool = False, device: str = "cpu"
) -> dict[str, Timing]:
    """Engine -> figures, the first being :data:`PLAIN`.

    Args:
        network: a generator; left as it is.
        lr: (1, 3, H, W), taken in one piece.
    """
    with tempfile.TemporaryDirectory() as folder:
        makers = _engines(network, lr, compile, device, Path(folder) / "network.onnx")
        timings: dict[str, Timing] = {}
        runs: dict[str, Callable[[], Tensor]] = {}
        results: dict[str, Tensor] = {}
        for label, make in makers.items():
            try:
                run = torch.inference_mode()(make())
                results[label] = run().float().cpu().contiguous()
                runs[label] = run
            except Exception as error:  # an engine that fails is a result, too
                if label == PLAIN:
                    why = str(error).splitlines()[0]
                    raise SrlabError(f"{device} cannot run the network ({why}).") from error
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                timings[label] = Timing(problem=why)
        rows = [[seconds_of(run, device) for run in runs.values()] for _ in range(rounds)]
    medians = dict(zip(runs, map(statistics.median, zip(*rows, strict=True)), strict=True))
    plain = medians[PLAIN]
    for label, median in medians.items():
        difference = float((results[label] - results[PLAIN]).abs().max())
        agreement = float(psnr(results[label], results[PLAIN])) if difference else None
        exact = difference < EXACT
        timings[label] = Timing(median, plain / median, difference, agreement, exact)
    return {label: timings[label] for label in makers}


def _engines(
    network: nn.Module, lr: Tensor, compile: bool, device: str, file: Path
) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """Label -> a function that makes ready a function that upscales ``lr``."""
    last = torch.channels_last

    def eager(
        change: Callable[[nn.Module], nn.Module],
        memory: torch.memory_format,
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> Callable[[], Tensor]:
        ready = change(network).eval().to(device, dtype, memory_format=memory)
        x = lr.to(device, dtype).contiguous(memory_format=memory)
        if compiled:
            ready = torch.compile(ready)
        return lambda: ready(x)

    def runtime() -> Callable[[], Tensor]:
        export_onnx(network, file)
        engine = OnnxEngine(file)
        return lambda: engine(lr)

    fast = partial(prepare, device=device)
    fp32, bf16, plain = torch.float32, torch.bfloat16, torch.contiguous_format
    engines = {
        PLAIN: lambda: eager(deepcopy, plain, fp32),
        "folded": lambda: eager(fold, plain, fp32),
        "folded, channels_last": lambda: eager(fold, last, fp32),
        FAST: lambda: eager(fast, last, fp32),
    }
    if compile:
        engines[f"{FAST}, torch.compile"] = lambda: eager(fast, last, fp32, True)
    engines[f"{FAST}, bf16"] = lambda: eager(fast, last, bf16)
    engines["ONNX Runtime, CPU"] = runtime
    return engines


def _network(name: str) -> nn.Module:
    """Released weights; else random ones, with batch norm that has seen something."""
    if name not in zoo.ARCHITECTURES or name in zoo.released():
        return zoo.load(name)
    torch.manual_seed(0)
    network = zoo.build(name).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, 3, 16, 16))
    return network.eval()


def _table(name: str, timings: dict[str, Timing], pixels: int) -> Table:
    table = Table(name, header_style="bold")
    for column in ("s", "MP/s", "times plain", "from plain"):
        table.add_column(column, justify="right")
    for label, t in timings.items():
        if t.problem:
            table.add_row(label, t.problem[:60])
            continue
        apart = "same" if t.agreement is None else f"{t.agreement:.0f} dB"
        table.add_row(
            label, f"{t.seconds:.3f}", f"{pixels / t.seconds / 1e6:.2f}", f"{t.speedup:.2f}", apart
        )
    return table
