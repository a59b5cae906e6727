"""Make the pictures in this folder from released weights and CSV files: ``make figures``."""

import csv
from pathlib import Path

import matplotlib
import skimage.data
import torch

from srlab.data.datasets import find
from srlab.data.degradation import crop_to_multiple, downsample, upsample
from srlab.data.images import read_image
from srlab.evaluation import protocol
from srlab.evaluation.tiling import upscale
from srlab.models import zoo
from srlab.studies import claims
from srlab.training.monitor import read_log
from srlab.viz import figures

HERE = Path(__file__).parent
SKIMAGE = Path(skimage.data.__file__).parent  # photographs that come with scikit-image
DETAIL = 128  # HR pixels a side: large enough to see what it is


def side_by_side() -> figures.Figure:
    """Six photographs that no released network learned from, each where the final GAN changed most.

    Row by row: bicubic, the network trained for PSNR, the final GAN, and the original.
    """
    networks = [zoo.load(name) for name in ("srresnet", "wdrn-vgg-wgan")]
    rows: list[list[torch.Tensor]] = [[], [], [], []]
    for name in ("chelsea", "coffee", "astronaut", "motorcycle_left", "rocket", "gravel"):
        hr = crop_to_multiple(read_image(next(SKIMAGE.glob(f"{name}.*"))), 4)
        lr = downsample(hr)
        pictures = [upsample(lr), *(upscale(network, lr) for network in networks), hr]
        top, left, *_ = figures.most_different_crop(pictures[0], pictures[2], DETAIL)
        for row, picture in zip(rows, pictures, strict=True):
            row.append(picture[:, top : top + DETAIL, left : left + DETAIL])
    names = ("bicubic", "srresnet, trained for PSNR", "wdrn-vgg-wgan, the final GAN", "original")
    figure = figures.grid(
        torch.stack([detail for row in rows for detail in row]),
        ncol=6,
        titles=[title for name in names for title in (name, *[""] * 5)],
        alt="Details of six photographs by bicubic interpolation, by SRResNet, by the final GAN "
        "and in the original. Bicubic is blurred, SRResNet has sharp edges, the GAN has texture.",
    )
    for title in figure.texts:
        title.set_fontsize(14)  # the page is shown on phones, too
    return figure


def learning_curve() -> figures.Figure:
    """PSNR of the released SRResNet during its training, against bicubic."""
    files = find("photos-valid")
    bicubic = protocol.mean_psnr(zoo.load("bicubic"), files)
    return figures.curves(
        {"SRResNet, 5 blocks": read_log(zoo.released_log("srresnet"))["val_psnr"]},
        "training step (8 crops each)",
        "PSNR on photos-valid (dB)",
        hlines={"bicubic": bicubic},
        alt="PSNR against training step: a curve that flattens far above the bicubic line.",
    )


def recipe() -> figures.Figure:
    """What the skip, crops by detail and Muon bring: every training of the study is a line."""
    with open(HERE.parent / "notebooks/results/recipe.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = ("no skip", "skip", "skip, detail", "skip, detail, Muon")
    figure = figures.Figure(
        600,
        380,
        "PSNR on held-out pictures against training step, three seeds each: networks with the "
        "bicubic skip start at bicubic's line and stay above those without, detail sampling and "
        "Muon add less; seeds of one kind lie on each other.",
    )
    figure.set_layout_engine("constrained")
    with matplotlib.rc_context(figures.STYLE):
        axes = figure.add_subplot()
        for color, name in zip(figures.COLOURS, shown, strict=False):
            for seed in sorted({row["seed"] for row in rows if row["variant"] == name}):
                mine = [r for r in rows if (r["variant"], r["seed"]) == (name, seed)]
                steps = [int(r["step"]) for r in mine]
                psnr = [float(r["held_out"]) for r in mine]
                label = name if seed == "0" else None
                axes.plot(steps, psnr, color=color, label=label, linewidth=1.3)
        axes.set(xlabel="training step (4 crops of 16x16 each)", ylabel="PSNR, held out (dB)")
        axes.set_ylim(bottom=22)
        axes.legend(loc="lower right")
    return figure


def claims_in_margins() -> figures.Figure:
    """What the ablation says: chapter 06's claims with their intervals, in units of the margin."""
    judged = claims.verdicts(HERE.parent / "notebooks" / "results")
    return figures.intervals(
        claims.in_margins(judged),
        "effect in margins of 0.05 dB or 0.005 LPIPS",
        vlines={"no difference": 0.0},
        band=(-1.0, 1.0),
        alt="Effects with their simultaneous 95% intervals, one row for each claim, with its "
        "verdict; a band marks differences that do not matter.",
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
    for figure in (side_by_side, learning_curve, recipe, claims_in_margins, upscaling_cost):
        path = HERE / f"{figure.__name__}.png"
        path.write_bytes(figure().png(2))
        print(f"{path.relative_to(HERE.parent)}  {path.stat().st_size / 1e3:.0f} kB")
