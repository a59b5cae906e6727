"""Make ``vgg19-slim``: VGG19's layers at a quarter of the channels, taught by VGG16.

    python scripts/distill_vgg.py --data bsds400 t91 wallpapers@2 --out vgg19-slim.safetensors

The teacher is torchvision's VGG16 (``srlab fetch vgg16``); its relu3_3, relu4_3 and relu5_3 teach
the student's relu3_4, relu4_4 and relu5_4. Both see HR crops and spoilt copies of them, as a
perceptual loss does.

First the student is cut out of the teacher, layer by layer (in the manner of He et al. 2017,
arXiv:1707.06168): the quarter of the channels is kept that best explains all of them, and linear
regression finds the convolution that computes them from what the student has of the layer before.
A convolution that the teacher lacks begins as the identity. Then it is trained, at every tap,

- to predict the teacher's map by a 1x1 convolution that is thrown away afterwards (FitNets, Romero
  et al. 2015, arXiv:1412.6550);
- to be as far from one picture to its copy as the teacher is, for that distance *is* the loss.

There is no batch norm. Every hundred steps the file is written, and a checkpoint, from which the
same command goes on after Ctrl-C. What was learned is measured by ``scripts/compare_features.py``.
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from srlab.data.bank import PatchBank
from srlab.data.datasets import find
from srlab.data.degradation import resize
from srlab.data.images import picture_size
from srlab.models import vgg, zoo
from srlab.training.state import load_checkpoint, save_checkpoint

WIDTH = 0.25
# The student's taps and the teacher's.
TAPS = {
    "relu1_2": "relu1_2",
    "relu2_2": "relu2_2",
    "relu3_4": "relu3_3",
    "relu4_4": "relu4_3",
    "relu5_4": "relu5_3",
}
LR_SIZE = 24  # crops of 96 x 96
GRID = 4  # distances are compared on squares of a sixteenth of the crop, too
SPOILERS = ("srresnet", "wdrn", "srgan", "wdrn-vgg-wgan")


class Student(nn.Module):
    """The slim network and the 1x1 convolutions that are thrown away later."""

    def __init__(self):
        super().__init__()
        self.features = vgg.Features(tuple(TAPS), WIDTH).requires_grad_(True)
        wanted = vgg.Features(tuple(TAPS.values()), net="vgg16").channels
        self.adapters = nn.ModuleList(
            nn.Conv2d(self.features.channels[mine], wanted[theirs], 1)
            for mine, theirs in TAPS.items()
        )

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of the taps, and the teacher's as they predict them."""
        maps = list(self.features(image).values())
        return maps, [a(m) for a, m in zip(self.adapters, maps, strict=True)]


@torch.no_grad()
def cut_out(student: Student, teacher: vgg.Features, images: Tensor) -> None:
    """Give the student the weights of a pruned teacher.

    Args:
        images: HR crops, and behind them their spoilt copies.
    """
    mine = theirs = (images - teacher.mean) / teacher.std
    layers = dict(zip(teacher.names, teacher.layers, strict=False))
    for name, layer in zip(student.features.names, student.features.layers, strict=False):
        known = layers.get(name)
        if isinstance(layer, nn.Conv2d) and known is None:
            nn.init.dirac_(layer.weight)  # what comes is not negative: ReLU leaves it alone
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            theirs = known(theirs)
            kept, gains = choose(theirs.relu(), layer.out_channels)
            at = places(theirs, 20000)
            wanted = at(theirs)[:, kept] * gains
            padded = F.pad(mine, (1, 1, 1, 1))
            height, width = mine.shape[-2:]
            around = [
                at(padded[..., y : y + height, x : x + width]) for y in range(3) for x in range(3)
            ]
            weight, bias = regress(torch.stack(around, dim=2).flatten(1), wanted)
            layer.weight.copy_(weight.T.reshape(layer.weight.shape))
            layer.bias.copy_(bias)
        elif known is not None:
            theirs = known(theirs)
        mine = layer(mine)
        if name in TAPS:
            at = places(mine, 20000)
            adapter = student.adapters[list(TAPS).index(name)]
            weight, bias = regress(at(mine), at(theirs) / teacher.scales[TAPS[name]])
            adapter.weight.copy_(weight.T[..., None, None])
            adapter.bias.copy_(bias)


def choose(maps: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n channels that linearly explain most of all, and a gain for each.

    Half of what they should explain are the maps themselves, half their difference between a crop
    and its spoilt copy. With the gains, the squared differences of the n add up to those of all as
    well as they can.
    """
    at = places(maps, 20000)
    crops, copies = maps.chunk(2)
    differences = places(crops, 20000)(crops - copies)
    moments = [torch.cov(at(maps).T), differences.T @ differences / len(differences)]
    rest = sum(m / m.trace() for m in moments).double()
    kept: list[int] = []
    for _ in range(n):
        pivot = rest.diagonal().clamp(min=1e-12)
        gain = rest.square().sum(0) / pivot
        gain[kept] = -1.0
        k = int(gain.argmax())
        kept.append(k)
        rest = rest - torch.outer(rest[:, k], rest[k]) / pivot[k]
    squares = (
        F.adaptive_avg_pool2d((crops - copies).square(), GRID).permute(0, 2, 3, 1).flatten(0, 2)
    )
    total, own = squares.sum(1), squares[:, kept]
    even = total.sum() / own.sum()
    # A little towards even gains, so that no channel is lost.
    ridge = 0.1 * own.square().sum().sqrt() / n**0.5
    a = torch.cat([own, ridge * torch.eye(n)]).double().numpy()
    b = torch.cat([total, ridge * even.expand(n)]).double().numpy()
    weights = torch.from_numpy(nnls(a, b)[0]).float()
    return torch.tensor(kept), weights.clamp(min=0.1 * float(even)).sqrt()


def places(maps: Tensor, n: int):
    """A function that takes the same n random places of every map: (N, C, h, w) -> (n, C)."""
    count, _, height, width = maps.shape
    drawn = torch.randint(count * height * width, (n,))
    image, row, column = drawn // (height * width), drawn // width % height, drawn % width
    return lambda x: x[image, :, row, column]


def regress(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression: weight (from, to) and bias."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram = (x - mean_x).T @ (x - mean_x)
    ridge = 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge, (x - mean_x).T @ (y - mean_y))
    return weight.float(), (mean_y - mean_x @ weight).float()


class Spoiler:
    """Copies of HR crops as a perceptual loss meets them: enlarged by bicubic or by one of the
    released networks, more or less so, and some of them blurred, sharpened or noisy besides."""

    def __init__(self):
        self.networks = [None, *(zoo.load(name) for name in SPOILERS)]

    @torch.no_grad()
    def __call__(self, lr: Tensor, hr: Tensor) -> Tensor:
        network = self.networks[int(torch.randint(len(self.networks), ()))]
        with torch.autocast("cpu", torch.bfloat16):
            sr = resize(lr, 4) if network is None else network(lr)

        def draw(low: float, high: float) -> Tensor:
            return torch.empty(len(hr), 1, 1, 1).uniform_(low, high)

        x = hr + draw(0.3, 1.3) * (sr.float() - hr)
        blurred = gaussian_blur(x, 7, float(draw(0.5, 1.5)[0]))
        x = torch.where(draw(0, 1) < 0.3, x + draw(-1, 1) * (x - blurred), x)
        x = torch.where(draw(0, 1) < 0.3, x + draw(0, 0.06) * torch.randn_like(x), x)
        return x.clamp(0, 1)


def distances(maps: Tensor, scale: Tensor | float) -> Tensor:
    """Squared difference between first and second half of the batch: (N, GRID, GRID)."""
    a, b = maps.float().chunk(2)
    return F.adaptive_avg_pool2d(((a - b) / scale).square().mean(1, keepdim=True), GRID)[:, 0]


def losses(student: Student, teacher: vgg.Features, variances: Tensor, images: Tensor) -> Tensor:
    """(3, taps): what is not explained of the maps, the variance of the student's log distances
    about the teacher's over whole crops, and the relative squared error of distances of squares.

    Distances of the two may have different units: a perceptual loss is calibrated anyway.
    """
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            wanted = teacher(images)
        maps, predicted = student(images)
    rows = []
    for i, (tap, m, p) in enumerate(zip(TAPS.values(), maps, predicted, strict=True)):
        scale = teacher.scales[tap]
        error = (p.float() - wanted[tap].float() / scale).square().mean()
        mine, theirs = distances(m, 1.0), distances(wanted[tap], scale)
        ratio = (mine.mean((1, 2)) + 1e-4).log() - (theirs.mean((1, 2)) + 1e-4).log()
        unit = (-ratio.mean()).exp()
        square = (mine * unit - theirs).square().mean() / theirs.square().mean()
        rows.append(torch.stack([error / variances[i], ratio.var(), square]))
    return torch.stack(rows, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="sets or folders; NAME@2 halves")
    parser.add_argument("--out", default="vgg19-slim.safetensors")
    parser.add_argument("--run", default="runs/vgg19-slim", help="folder of checkpoint and log")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=8, help="crops, each with its copy")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    options = parser.parse_args()

    torch.manual_seed(0)
    bank = _bank(options.data)
    teacher = vgg.load("vgg16", tuple(TAPS.values())).to(memory_format=torch.channels_last)
    sample = bank.batch(64, LR_SIZE)[1]
    with torch.no_grad():
        vgg.calibrate(teacher, sample)
        variances = torch.stack(
            [
                (x / teacher.scales[tap]).var(dim=(0, 2, 3)).mean()
                for tap, x in teacher(sample).items()
            ]
        )
    student = Student().to(memory_format=torch.channels_last)
    spoil = Spoiler()
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, options.lr, weight_decay=1e-4)

    def rate(step: int) -> float:  # rises, stays, and falls in the second half
        return min(1, (step + 1) / 50, 2 * (1 - step / options.steps) + 1e-3)

    run = Path(options.run)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint, log = run / "checkpoint.safetensors", run / "log.csv"
    start = 0
    parts = {"student": student, "optimizer": optimizer, "bank": bank}
    if checkpoint.exists():
        state, info = load_checkpoint(checkpoint)
        start = info["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
    else:
        lr, hr = bank.batch(192, LR_SIZE)
        cut_out(student, teacher, torch.cat([hr, *map(spoil, lr.split(4), hr.split(4))]))
        names = [f"{kind}_{tap}" for kind in ("unexplained", "crop", "square") for tap in TAPS]
        log.write_text(",".join(["step", *names]) + "\n")
    measured = torch.compile(losses) if options.compile else losses
    begin, total = time.perf_counter(), 0
    for step in range(start + 1, options.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate(step - 1)
        lr, hr = bank.batch(options.batch_size, LR_SIZE)
        images = torch.cat([hr, spoil(lr, hr)]).contiguous(memory_format=torch.channels_last)
        rows = measured(student, teacher, variances, images)
        optimizer.zero_grad()
        rows.mean(dim=1).sum().backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        total = total + rows.detach()
        if step % 50 == 0 or step == options.steps:
            means = (total / (step - (step - 1) // 50 * 50)).flatten().tolist()
            total = 0
            with log.open("a", newline="") as file:
                csv.writer(file).writerow([step, *(f"{value:.4f}" for value in means)])
            speed = (step - start) / (time.perf_counter() - begin)
            print(step, *(f"{value:.3f}" for value in means), f"{speed:.2f} steps/s", flush=True)
        if step % 100 == 0 or step == options.steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(checkpoint, state | {"random": torch.get_rng_state()}, {"step": step})
            notes = {"steps": step, "batch_size": options.batch_size, "images": len(bank)}
            write(student, sample, options.out, notes)


def write(student: Student, images: Tensor, path: str, notes: dict) -> None:
    """The features alone, calibrated at every layer."""
    features = vgg.Features(("relu5_4",), WIDTH)
    features.load_state_dict(student.features.state_dict())
    features.taps = features.names[: len(features.layers)]
    vgg.calibrate(features, images)
    vgg.save(features, path, notes={"teacher": "vgg16"} | notes)


def _bank(names: list[str]) -> PatchBank:
    """All pictures that hold a crop."""
    files, shrink = [], []
    for name in names:
        base, at, factor = name.rpartition("@")
        by = int(factor) if at else 1
        side = 4 * LR_SIZE * by
        found = [file for file in find(base if at else name) if min(picture_size(file)) >= side]
        files += found
        shrink += [by] * len(found)
    return PatchBank.from_files(files, shrink=shrink, detail=0.5, progress=True)


if __name__ == "__main__":
    main()
