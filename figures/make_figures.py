"""Make the pictures in this folder from released weights and CSV files: ``make figures``."""

import csv
from pathlib import Path

import torch

from srlab import claims
from srlab.datasets import find
from srlab.degradation import crop_to_multiple, downsample, upsample
from srlab.evaluation import protocol
from srlab.evaluation.upscale import upscale
from srlab.images import read_image
from srlab.models import zoo
from srlab.training.monitor import read_log
from srlab.viz import figures

HERE = Path(__file__).parent


def side_by_side() -> figures.Figure:
    """LR, bicubic, two released networks and HR, with the detail that the first changed most."""
    hr = crop_to_multiple(
        read_image(next(f for f in find("photos-valid") if "coffee" in f.stem)), 4
    )
    lr = downsample(hr)
    pictures = {
        "LR": lr,
        "bicubic": upsample(lr),
        "SRResNet, 5 blocks": upscale(zoo.load("srresnet"), lr),
        "WDRN + VGG + WGAN": upscale(zoo.load("wdrn-vgg-wgan"), lr),
        "HR": hr,
    }
    crop = figures.most_different_crop(pictures["bicubic"], pictures["SRResNet, 5 blocks"], 80)
    captions = {
        name: f"{protocol.compare(pictures[name], hr)[0]:.2f} dB"
        for name in ("bicubic", "SRResNet, 5 blocks", "WDRN + VGG + WGAN")
    }
    return figures.compare(
        pictures,
        crop,
        captions,
        alt="A cup of coffee at LR, by bicubic interpolation, by the released SRResNet, by the "
        "released WDRN + VGG + WGAN and in the HR original, with one enlarged detail each.",
    )


def learning_curve() -> figures.Figure:
    """PSNR of the released SRResNet during its training, against bicubic."""
    files = find("photos-valid")
    bicubic = protocol.mean(protocol.evaluate(zoo.load("bicubic"), files)).psnr
    return figures.curves(
        {"SRResNet, 5 blocks": read_log(zoo.released_log("srresnet"))["val_psnr"]},
        "training step (16 crops each)",
        "PSNR on photos-valid (dB)",
        hlines={"bicubic": bicubic},
        alt="PSNR against training step: a curve that crosses the bicubic line and then flattens.",
    )


def claims_by_psnr() -> figures.Figure:
    """What the ablation says about PSNR: chapter 06's claims with their intervals."""
    judged = claims.judge(HERE.parent / "notebooks" / "results" / "ablation-lite")
    effects = {
        f"{j.claim.text}: {j.verdict}": (j.interval.estimate, j.interval.low, j.interval.high)
        for j in judged
        if j.claim.metric == "psnr" and j.interval
    }
    return figures.intervals(
        effects,
        "difference of PSNR (dB), 95% interval",
        vlines={"no difference": 0.0},
        alt="Effects on PSNR with their 95% intervals, one row for each claim, with its verdict.",
    )


def upscaling_cost() -> figures.Figure:
    """Time of `srlab upscale` by the size of the result, as measured and as a straight line."""
    with open(HERE.parent / "notebooks/results/bench/upscale_cost.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    sizes = [float(line["megapixels"]) for line in lines]
    seconds = [float(line["cpu_seconds"]) for line in lines]
    return figures.curves(
        {
            "measured": (sizes, seconds),
            "in proportion to pixels": ([0, sizes[-1]], [0, seconds[-1]]),
        },
        "megapixels of the result",
        "seconds of one CPU core",
        alt="Time of upscaling against megapixels of the result: the measurements lie on a "
        "straight line through the origin.",
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    for figure in (side_by_side, learning_curve, claims_by_psnr, upscaling_cost):
        path = HERE / f"{figure.__name__}.png"
        figure().savefig(path)
        print(f"{path.relative_to(HERE.parent)}  {path.stat().st_size / 1e3:.0f} kB")
