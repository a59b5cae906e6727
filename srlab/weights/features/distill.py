"""Make ``vgg19-slim``: VGG19's layers at a quarter of the channels, taught by a trained SqueezeNet.

    python distill.py --teacher squeezenet1_0_imagenet.safetensors --data bsds400 bsds400@2 \
        photographs@2 photographs@4 --out vgg19-slim.safetensors

The teacher is SqueezeNet 1.0 (Iandola et al. 2016, arXiv:1602.07360) with ImageNet weights in
torchvision's layout. The student sees the same crops and learns, by 1x1 convolutions that are
thrown away afterwards, to predict four of the teacher's feature maps (FitNets, Romero et al. 2015,
arXiv:1412.6550), and by a linear head, thrown away too, its class probabilities (Hinton et al.
2015, arXiv:1503.02531). It trains with batch norm, which is folded into the convolutions at the
end. What it learned is measured on pictures that were left out, and written into the file.
"""

import argparse
import csv
import json
import math
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from srlab.datasets import find
from srlab.models import vgg
from srlab.patches import PatchBank
from srlab.training.state import load_checkpoint, save_checkpoint

WIDTH = 0.25
TAPS = ("relu2_2", "relu3_4", "relu4_4", "relu5_4")
TEACHER_LAYERS = (1, 5, 10, 12)  # SqueezeNet's first convolution, fire4, fire8 and fire9
TEACHER_CHANNELS = (96, 256, 512, 512)
LR_SIZE = 32  # crops of 128 x 128


class Student(nn.Module):
    """The slim network with batch norm after each convolution, and what is thrown away later."""

    def __init__(self):
        super().__init__()
        plain = vgg.Features(("relu5_4",), WIDTH).layers
        layers: list[nn.Module] = []
        self.at = []  # positions of the taps
        for name, layer in zip(vgg.LAYERS, plain, strict=False):
            layers.append(layer)
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
                layers.append(nn.BatchNorm2d(layer.out_channels))
            if name in TAPS:
                self.at.append(len(layers) - 1)
        self.layers = nn.Sequential(*layers).requires_grad_(True)
        channels = list(vgg.Features(TAPS, WIDTH).channels.values())
        self.adapters = nn.ModuleList(
            nn.Conv2d(c, t, 1) for c, t in zip(channels, TEACHER_CHANNELS, strict=True)
        )
        self.head = nn.Linear(channels[-1], 1000)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.at:
                maps.append(x)
        return maps, self.head(x.mean(dim=(2, 3)))

    def fold(self) -> vgg.Features:
        """The plain network of the same function."""
        features = vgg.Features(("relu5_4",), WIDTH)
        layers = list(self.eval().layers)
        pairs = [
            fuse_conv_bn_eval(a, b) for a, b in pairwise(layers) if isinstance(b, nn.BatchNorm2d)
        ]
        plain = [layer for layer in features.layers if isinstance(layer, nn.Conv2d)]
        for mine, folded in zip(plain, pairs, strict=True):
            mine.load_state_dict(folded.state_dict())
        return features


def load_teacher(path: str) -> nn.Module:
    from safetensors.torch import load_file
    from torchvision.models import squeezenet1_0

    teacher = squeezenet1_0()
    teacher.load_state_dict(load_file(path))
    return teacher.eval().requires_grad_(False)


def ask(teacher: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    maps = []
    for i, layer in enumerate(teacher.features):
        x = layer(x)
        if i in TEACHER_LAYERS:
            maps.append(x.clone())  # the ReLU that follows a convolution works in place
    return maps, teacher.classifier(x).flatten(1)


def normalised(images: Tensor) -> Tensor:
    reference = vgg.Features(("conv1_1",), WIDTH)
    return (images - reference.mean) / reference.std


def standardise(target: Tensor, size: torch.Size) -> Tensor:
    """A teacher's map at the student's size, each channel with mean 0 and variance 1."""
    target = F.interpolate(target.float(), size=size, mode="bilinear", align_corners=False)
    std, mean = torch.std_mean(target, dim=(0, 2, 3), keepdim=True)
    return (target - mean) / (std + 1e-3 * std.mean() + 1e-6)


def losses(student: Student, teacher: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Feature loss, class loss, and the share of crops whose most likely class agrees."""
    x = normalised(images).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            wanted, probabilities = ask(teacher, x)
        maps, logits = student(x)
        predicted = [a(m) for a, m in zip(student.adapters, maps, strict=True)]
    feature = torch.stack(
        [
            F.mse_loss(p.float(), standardise(w, p.shape[-2:]))
            for p, w in zip(predicted, wanted, strict=True)
        ]
    ).mean()
    logits, probabilities = logits.float(), probabilities.float()
    label = F.kl_div(
        logits.log_softmax(1), probabilities.log_softmax(1), reduction="batchmean", log_target=True
    )
    agreement = (logits.argmax(1) == probabilities.argmax(1)).float().mean()
    return feature, label, agreement


def explained(network: vgg.Features, teacher: nn.Module, fit: Tensor, test: Tensor) -> dict:
    """How much of the teacher's maps a linear read-out of each tap explains: R^2 on ``test``.

    The read-out is a ridge regression fitted on the crops ``fit``; the mean over the teacher's
    channels is taken. 1 is perfect, 0 what a constant explains.
    """
    maps_of = {}
    for name, images in (("fit", fit), ("test", test)):
        maps, wanted = network(images), ask(teacher, normalised(images))[0]
        maps_of[name] = [
            (_rows(maps[tap]), _rows(F.interpolate(w, size=maps[tap].shape[-2:], mode="bilinear")))
            for tap, w in zip(TAPS, wanted, strict=True)
        ]
    report = {}
    for tap, (x, y), (u, v) in zip(TAPS, maps_of["fit"], maps_of["test"], strict=True):
        mean_x, mean_y = x.mean(0), y.mean(0)
        gram = (x - mean_x).T @ (x - mean_x)
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        weights = torch.linalg.solve(gram + ridge, (x - mean_x).T @ (y - mean_y))
        error = ((u - mean_x) @ weights + mean_y - v).square().mean(0)
        alive = v.var(0) > 1e-6
        report[tap] = round(float((1 - error / v.var(0))[alive].clamp(min=-1).mean()), 3)
    return report


def _rows(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> at most about 20,000 places, (places, C) in double precision."""
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    return rows[:: max(1, len(rows) // 20000)].double()


@torch.no_grad()
def measure(
    features: vgg.Features, student: Student, teacher: nn.Module, fit: Tensor, held_out: Tensor
) -> dict:
    """What the network and a random one of the same shape know of the teacher."""
    torch.manual_seed(1)
    noise = Student().eval().fold()
    noise.taps = features.taps = TAPS
    x = normalised(held_out)
    classes = [student.eval()(x)[1].argmax(1), ask(teacher, x)[1].argmax(1)]
    return {
        "explained": explained(features, teacher, fit, held_out),
        "explained_by_random_weights": explained(noise, teacher, fit, held_out),
        "top1_agreement": round(float((classes[0] == classes[1]).float().mean()), 3),
        "crops": len(held_out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="SqueezeNet 1.0 weights, .safetensors")
    parser.add_argument("--data", nargs="+", required=True, help="sets or folders; NAME@2 halves")
    parser.add_argument("--held-out", nargs="+", default=["photos-valid"])
    parser.add_argument("--out", default="vgg19-slim.safetensors")
    parser.add_argument("--run", default="runs/vgg19-slim", help="folder of checkpoint and log")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    bank, held_out = (_bank(names) for names in (options.data, options.held_out))
    held_out = held_out.batch(256, LR_SIZE)[1]
    teacher = load_teacher(options.teacher).to(memory_format=torch.channels_last)
    student = Student().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), options.lr, weight_decay=1e-4)

    def rate(step: int) -> float:
        return min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / options.steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    run = Path(options.run)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint, log = run / "checkpoint.safetensors", run / "log.csv"
    start = 0
    parts = {"student": student, "optimizer": optimizer, "scheduler": scheduler, "bank": bank}
    if checkpoint.exists():
        state, info = load_checkpoint(checkpoint)
        start = info["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    begin = time.perf_counter()
    for step in range(start + 1, options.steps + 1):
        student.train()
        images = bank.batch(options.batch_size, LR_SIZE)[1]
        feature, label, agreement = losses(student, teacher, images)
        optimizer.zero_grad()
        (feature + 0.5 * label).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
        if step % 50 == 0 or step == options.steps:
            row = [step, *(f"{v.item():.4f}" for v in (feature, label, agreement))]
            with log.open("a", newline="") as file:
                csv.writer(file).writerow(row)
            speed = (step - start) / (time.perf_counter() - begin)
            print(*row, f"{speed:.2f} steps/s", flush=True)
        if step % 250 == 0 or step == options.steps:
            save_checkpoint(
                checkpoint, {n: p.state_dict() for n, p in parts.items()}, {"step": step}
            )

    features = student.fold()
    sample = bank.batch(256, LR_SIZE)[1]
    report = measure(features, student, teacher, sample, held_out)
    report |= {"steps": options.steps, "batch_size": options.batch_size, "images": len(bank)}
    features.taps = vgg.LAYERS[: len(features.layers)]
    vgg.calibrate(features, sample[:64])
    vgg.save(features, options.out, notes=report)
    print(json.dumps(report, indent=2))


def _bank(names: list[str]) -> PatchBank:
    files, shrink = [], []
    for name in names:
        base, at, factor = name.rpartition("@")
        found = find(base if at else name)
        files += found
        shrink += [int(factor) if at else 1] * len(found)
    return PatchBank.from_files(files, shrink=shrink, progress=True)


if __name__ == "__main__":
    main()
