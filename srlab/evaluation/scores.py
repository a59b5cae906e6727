"""All of a generator's figures on one set of pictures: error, likeness, consistency."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from srlab.data.degradation import crop_to_multiple, downsample, quantize
from srlab.data.images import is_grey, read_image
from srlab.data.writing import replacing
from srlab.evaluation import protocol
from srlab.evaluation.distribution import PatchFrechet
from srlab.evaluation.tiling import upscale


@dataclass(frozen=True)
class Figures:
    """Of one picture, or the mean of many.

    Attributes:
        psnr, ssim: by the published protocol (:func:`srlab.evaluation.protocol.compare`).
        distance: to HR by the given judge, such as LPIPS; NaN without one. Less is better.
        consistency: see :func:`srlab.evaluation.protocol.consistency`.
    """

    image: str
    psnr: float
    ssim: float
    distance: float
    consistency: float


@torch.no_grad()
def measure(
    generator: nn.Module,
    files: Sequence[Path],
    judge: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    frechet: PatchFrechet | None = None,
    rules: protocol.Protocol = protocol.PUBLISHED,
    device: torch.device | str = "cpu",
    tile: int | None = 256,
    progress: bool = False,
) -> list[Figures]:
    """Enlarge each picture's LR once and take every figure from that SR picture, at 8 bit.

    Args:
        judge: two (1, 3, H, W) RGB in [0, 1] -> a distance, such as
            :class:`srlab.evaluation.perceptual.LPIPS`; it sees whole pictures, nothing shaved.
        frechet: counts the same pairs in; a distance of the whole set.
        rules: for PSNR and SSIM.
    """
    generator = generator.to(device)
    figures = []
    for file in tqdm(files, desc="evaluating", unit="image", disable=not progress):
        hr = crop_to_multiple(read_image(file), generator.scale).to(device)
        protocol.require_size(file, hr, rules)
        lr = downsample(hr, generator.scale)
        sr = quantize(upscale(generator, lr, tile))
        psnr, ssim = protocol.compare(sr, hr, rules, is_grey(file))
        distance = float(judge(sr[None], hr[None])) if judge else float("nan")
        if frechet:
            frechet.update(sr[None], hr[None])
        name = Path(file).stem
        figures.append(Figures(name, psnr, ssim, distance, protocol.consistency(sr, lr)))
    return figures


def mean(figures: Sequence[Figures]) -> Figures:
    """The set's figures: means over its pictures, of decibels too."""
    columns = ("psnr", "ssim", "distance", "consistency")
    sums = {name: sum(getattr(f, name) for f in figures) for name in columns}
    return Figures("mean", **{name: value / len(figures) for name, value in sums.items()})


def write_csv(figures: Sequence[Figures], path: Path | str, distance: str | None = None) -> None:
    """One row an image and a last one named ``mean``; full precision.

    Args:
        distance: what the judge's column is called; without it there is none.
    """
    columns = {"image": "image", "psnr": "psnr", "ssim": "ssim"}
    if distance:
        columns["distance"] = distance
    with replacing(Path(path)) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns.values())
        writer.writerows([getattr(f, name) for name in columns] for f in [*figures, mean(figures)])
