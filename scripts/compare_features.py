"""How far a small network stands in for VGG16 in a perceptual loss, tap by tap.

    python scripts/published.py --pictures runs/published
    python scripts/compare_features.py --pictures runs/published --network before=OLD.safetensors

For ``vgg19-slim``, for each ``--network`` and for the same layers with random weights it says

- ``explained``: how much of VGG16's map a linear read-out of the tap explains, fitted on crops of
  BSD100 and measured on crops of Set5 and Set14 (R^2, over all channels together);
- ``rank``: whether both losses order SR pictures alike: Spearman's correlation over all pictures of
  all models of ``--pictures`` and over those of published models alone, which no training has seen;
- ``rank_within``: the same for the models' renderings of one picture, mean over pictures.

The row ``pixels`` is the squared error of pixels in the place of a small network's. Pictures of
Set5 and Set14 are cut to their middle 256 x 256 pixels. Nothing here was trained on.
"""

import argparse
import csv
from pathlib import Path

import torch
from distill_vgg import TAPS, WIDTH
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from srlab.data.bank import PatchBank
from srlab.data.datasets import find
from srlab.data.images import read_image
from srlab.models import vgg, zoo

RESULTS = Path(__file__).parents[1] / "notebooks" / "results" / "vgg_slim.csv"
SIDE = 256
CROPS = 48  # of 128 x 128 pixels, to fit a read-out and to measure it


def random_network() -> vgg.Features:
    """Weights by He's rule, as networks start that train from scratch."""
    torch.manual_seed(1)
    network = vgg.Features(tuple(TAPS), WIDTH)
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


def crops(*sets: str) -> Tensor:
    files = [file for name in sets for file in find(name)]
    return PatchBank.from_files(files, seed=1).batch(CROPS, 32, augment=False)[1]


def maps(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return network(images)


def rows(x: Tensor) -> Tensor:
    """(N, C, h, w) -> at most about 20,000 places, (places, C) in double precision."""
    places = x.permute(0, 2, 3, 1).flatten(0, 2)
    return places[:: max(1, len(places) // 20000)].double()


def explained(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> float:
    """R^2 on (u, v) of a ridge regression fitted to (x, y)."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram = (x - mean_x).T @ (x - mean_x)
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram + ridge, (x - mean_x).T @ (y - mean_y))
    error = ((u - mean_x) @ weights + mean_y - v).square().mean(0).sum()
    return float(1 - error / v.var(0).sum())


def losses(networks: dict[str, nn.Module], folder: Path) -> list[dict]:
    """One line an SR picture: its model, its file, and {(network, tap): distance to HR}."""
    lines = []
    for hr_file in [*find("set5"), *find("set14")]:
        hr = center_crop(read_image(hr_file), [min(SIDE, 4 * (n // 4)) for n in shape(hr_file)])
        wanted = {name: maps(network, hr[None]) for name, network in networks.items()}
        for file in sorted(folder.glob(f"*/set*/{hr_file.stem}.png")):
            sr = center_crop(read_image(file), list(hr.shape[-2:]))
            line = {"model": file.parts[-3], "picture": hr_file.stem}
            for name, network in networks.items():
                for tap, x in maps(network, sr[None]).items():
                    line[name, tap] = float((x - wanted[name][tap]).square().mean())
            lines.append(line)
    return lines


def shape(file: Path) -> list[int]:
    return list(read_image(file).shape[-2:])


def agreement(lines: list[dict], mine: tuple[str, str], theirs: tuple[str, str]) -> float:
    return float(spearmanr([x[mine] for x in lines], [x[theirs] for x in lines]).statistic)


class Pixels(nn.Module):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(TAPS, image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, required=True, help="what published.py kept")
    parser.add_argument("--network", nargs="*", default=[], help="more: NAME=FILE")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()

    given = dict(pair.split("=", 1) for pair in options.network)
    small = {name: vgg.load(file, tuple(TAPS)) for name, file in given.items()}
    small = {"vgg19-slim": vgg.load("vgg19-slim", tuple(TAPS)), **small, "random": random_network()}
    teacher = vgg.load("vgg16", tuple(TAPS.values()))
    fit, test = crops("bsd100"), crops("set5", "set14")
    wanted = [{tap: rows(x) for tap, x in maps(teacher, part).items()} for part in (fit, test)]
    shares = {}
    for name, network in small.items():
        own = [{tap: rows(x) for tap, x in maps(network, part).items()} for part in (fit, test)]
        for mine, theirs in TAPS.items():
            shares[name, mine] = explained(
                own[0][mine], wanted[0][theirs], own[1][mine], wanted[1][theirs]
            )
    lines = losses({"teacher": teacher, **small, "pixels": Pixels()}, options.pictures)
    seen = {"bicubic", *zoo.released()}
    pictures = sorted({line["picture"] for line in lines})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["network", "tap", "of_vgg16", "explained", "rank", "rank_published", "rank_within",
             "models", "pictures"]
        )  # fmt: skip
        for name in [*small, "pixels"]:
            for mine, theirs in TAPS.items():
                pair = (name, mine), ("teacher", theirs)
                within = [
                    agreement([line for line in lines if line["picture"] == picture], *pair)
                    for picture in pictures
                ]
                unseen = [line for line in lines if line["model"] not in seen]
                share = shares.get((name, mine))
                figures = [agreement(lines, *pair), agreement(unseen, *pair)]
                figures.append(sum(within) / len(within))
                row = [name, mine, theirs, "" if share is None else f"{share:.3f}"]
                row += [f"{figure:.3f}" for figure in figures]
                row += [len({line["model"] for line in lines}), len(pictures)]
                writer.writerow(row)
                print(*row)


if __name__ == "__main__":
    main()
