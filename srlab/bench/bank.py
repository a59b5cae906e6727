"""Speed of this machine: crops out of the bank, and training steps.

Timings are medians over repetitions after a warm-up, all in one process and one run, so that the
ratios mean something even where the absolute figures do not.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset

from srlab import losses
from srlab.data.bank import PatchBank, dihedral
from srlab.data.datasets import find
from srlab.data.degradation import downsample
from srlab.data.images import read_image, write_image
from srlab.files import write_text
from srlab.models.generators import SRResNet

LOADER = "PNG files, DataLoader with 2 workers, 32 -> 128"


class PngCrops(Dataset):
    """What the bank is compared with: for each crop, open two PNG files, cut, turn and convert.

    This is how the usual super-resolution loaders work; like them it reads pictures prepared as
    480 x 480 sub-images, which costs it less than whole photographs would.
    """

    def __init__(self, folder: Path, patch_size: int, length: int):
        self.pairs = [(p, p.with_name(p.name.replace("hr", "lr"))) for p in folder.glob("hr*.png")]
        self.patch_size, self.length = patch_size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        hr_file, lr_file = self.pairs[i % len(self.pairs)]
        hr, lr = (_decode(file) for file in (hr_file, lr_file))
        p = self.patch_size
        y, x = (int(torch.randint(side - p + 1, ())) for side in lr.shape[1:])
        k = int(torch.randint(8, ()))
        lr = lr[:, y : y + p, x : x + p]
        hr = hr[:, 4 * y : 4 * (y + p), 4 * x : 4 * (x + p)]
        return dihedral(lr, k).contiguous(), dihedral(hr, k).contiguous()


def _decode(file: Path) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(file)))
    return pixels.permute(2, 0, 1).float() / 255


def run_bench(out: Path | None = None, quick: bool = False) -> dict[str, Any]:
    """Print a table of patches a second; return it, and write it as JSON to ``out`` if given."""
    machine = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()
    console.print(machine)
    seconds = 0.5 if quick else 3.0
    results = bank_speed(seconds) | training_speed(2 if quick else 6)
    table = Table("what", "patches/s", header_style="bold")
    for name, value in results.items():
        table.add_row(name, f"{value:,.1f}" if value < 1000 else f"{value:,.0f}")
    console.print(table)
    ratio = results["PatchBank, 32 -> 128"] / results[LOADER]
    console.print(f"The bank is {ratio:.0f} times the loader that opens PNG files.")
    report = {"machine": machine, "patches_per_second": results}
    if out:
        write_text(out, json.dumps(report, indent=2) + "\n")
    return report


def describe_machine(device: str) -> str:
    """What a report says about the machine that it was measured on."""
    cpus = f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{cpus}{gpu}, torch {torch.__version__}"


def bank_speed(seconds: float) -> dict[str, float]:
    """Crops of 32 x 32 -> 128 x 128 a second: the bank against a loader that opens PNG files."""
    files = find("photos")
    bank = PatchBank.from_files(files)
    with tempfile.TemporaryDirectory() as folder:
        _sub_images(files, Path(folder))
        crops = PngCrops(Path(folder), 32, length=100_000)
        batches = iter(DataLoader(crops, batch_size=16, num_workers=2))
        for _ in range(4):  # the workers start and fill their queues
            next(batches)
        loader_rate = _rate(lambda: next(batches), 16, seconds)
        batches = None  # ends the workers before their files go
    return {
        LOADER: loader_rate,
        "PatchBank, 32 -> 128": _rate(lambda: bank.batch(16, 32), 16, seconds),
        "PatchBank, 24 -> 96": _rate(lambda: bank.batch(16, 24), 16, seconds),
    }


def training_speed(repeats: int) -> dict[str, float]:
    """Training steps of SRResNet-16, 24 x 24 -> 96 x 96, batch 16: patches a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for label, memory_format, dtype in (
        ("fp32", torch.contiguous_format, None),
        ("fp32, channels_last", torch.channels_last, None),
        ("bf16, channels_last", torch.channels_last, torch.bfloat16),
    ):
        generator = SRResNet(16).to(device, memory_format=memory_format)
        step = _training_step(generator, memory_format, dtype)
        step()
        times = [seconds_of(step, device) for _ in range(repeats)]
        results[f"training SRResNet-16, batch 16, {label}"] = 16 / statistics.median(times)
    return results


def _training_step(
    generator: nn.Module, memory_format: torch.memory_format, dtype: torch.dtype | None
) -> Callable[[], None]:
    device = next(generator.parameters()).device
    lr = torch.rand(16, 3, 24, 24, device=device).contiguous(memory_format=memory_format)
    hr = torch.rand(16, 3, 96, 96, device=device).contiguous(memory_format=memory_format)
    optimizer = torch.optim.Adam(generator.parameters())

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = losses.pixel(generator(lr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """What a function takes once, work that it leaves to a GPU included."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


def _rate(batch: Callable[[], Any], size: int, seconds: float) -> float:
    batch()
    count, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        batch()
        count += size
    return count / spent


def _sub_images(files: list[Path], folder: Path) -> None:
    """HR tiles of 480 x 480 and their LR images as PNG files."""
    n, side = 0, 480
    for file in files:
        image = read_image(file)
        for y in range(0, image.shape[1] - side + 1, side):
            for x in range(0, image.shape[2] - side + 1, side):
                hr = image[:, y : y + side, x : x + side]
                write_image(hr, folder / f"hr{n:03}.png")
                write_image(downsample(hr), folder / f"lr{n:03}.png")
                n += 1
