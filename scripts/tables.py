"""Bring the tables and counts of README and its kin up to date with the files of figures.

    python scripts/tables.py

What stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` on a page is what :data:`TABLES`
has under NAME; the rest of the page stays as it is.
"""

import csv
import json
import re
from pathlib import Path

from srlab.bench.upscale import FAST, PLAIN
from srlab.models import zoo
from srlab.studies import ablation, claims
from srlab.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "notebooks" / "results"
STUDY = RESULTS / "ablation-lite"
PAGES = tuple(
    ROOT / folder / "README.md"
    for folder in (".", "srlab/models/weights", "notebooks/results/ablation-lite")
)
MARKED = re.compile(r"(?<=<!-- table: )(\S+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
SETS = {"set5": "Set5", "set14": "Set14", "bsd100": "BSD100"}
# What papers printed of x4 on the luma: there is nothing to measure here.
PRINTED = {
    "bicubic": ("28.42 / 0.8104", "26.00 / 0.7027", "25.96 / 0.6675"),
    "VDSR": ("31.35 / 0.8838", "28.01 / 0.7674", "27.29 / 0.7251"),
    "SRResNet": ("32.05 / 0.9019", "28.49 / 0.8184", "27.58 / 0.7620"),
}


def models() -> str:
    """Every model of models.csv, and what papers printed of bicubic, VDSR and SRResNet."""
    rows = read_models()
    sizes = {name: f"{int(row['parameters']) / 1e6:.2f} M" for (name, _), row in rows.items()}
    others = {name: row["source"] for (name, _), row in rows.items() if row["kind"] == "published"}
    return in_markdown(
        ["PSNR / SSIM / LPIPS", "size", *SETS.values()],
        [
            ["bicubic, printed", "", *PRINTED["bicubic"]],
            ["bicubic, measured", "", *figures("bicubic", rows)],
            *([f"`{name}`", sizes[name], *figures(name, rows)] for name in released()),
            ["VDSR, printed", "", *PRINTED["VDSR"]],
            ["SRResNet, printed", "", *PRINTED["SRResNet"]],
            *(
                [f"{name} of {source.split('/')[0]}", sizes[name], *figures(name, rows)]
                for name, source in others.items()
            ),
        ],
    )


def weights() -> str:
    """The released models."""
    rows = read_models()
    lines = [["bicubic", "", *figures("bicubic", rows)]]
    for name in released():
        parameters = sum(p.numel() for p in zoo.load(name).parameters())
        lines.append([f"`{name}`", f"{parameters:,}", *figures(name, rows)])
    return in_markdown(["PSNR / SSIM / LPIPS", "parameters", *SETS.values()], lines)


def trainings() -> str:
    """How much of the study is done."""
    planned = set(ablation.plan(scale := ablation.SCALES["lite"], scale.rows))
    done = planned & ablation.finished(STUDY)
    return f"{len(done)} of the study's {len(planned)} trainings are done."


def verdicts() -> str:
    """How many claims are decided, and each claim's verdict."""
    judged = claims.verdicts(RESULTS)
    decided = sum(j.verdict != "inconclusive" for j in judged)
    counted = f"Of {len(judged)} claims, {decided} are decided at this size:"
    return f"{trainings()} {counted}\n\n{claims.table(judged)}"


def speed() -> str:
    """Crops, training and upscaling: the usual way, and ours."""
    bank, train, upscale = (
        json.loads((RESULTS / "bench" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("bank", "train", "upscale")
    )
    crops = bank["patches_per_second"]
    patches = {name: v["patches_per_second"] for name, v in train["variants"].items()}
    engines = upscale["models"]["srresnet-16"]["engines"]
    megapixels = 16 * upscale["lr"][0] * upscale["lr"][1] / 1e6
    pixels = {name: megapixels / engine["seconds"] for name, engine in engines.items()}
    loader = crops["PNG files, DataLoader with 2 workers, 32 -> 128"]
    plain = patches["plain (fp32, eager)"]
    agreement = f"{engines[f'{FAST}, bf16']['agreement']:.0f} dB"
    lines = [
        ("crops of 32x32 → 128x128 per second: PNG loader with two workers, `PatchBank`",
         loader, crops["PatchBank, 32 -> 128"], 0),
        ("training, 24x24 → 96x96 crops per second, fp32", plain, patches["+ polyphase tail"], 1),
        ("training, bfloat16", plain, patches["+ bf16 autocast"], 1),
        ("training, bfloat16 and `torch.compile`", plain, patches["+ torch.compile"], 1),
        ("upscaling, result megapixels per second, the same picture",
         pixels[PLAIN], pixels[FAST], 2),
        ("upscaling by ONNX Runtime, the same picture", pixels[PLAIN],
         pixels["ONNX Runtime, CPU"], 2),
        (f"upscaling in bfloat16, {agreement} from the same picture", pixels[PLAIN],
         pixels[f"{FAST}, bf16"], 2),
    ]  # fmt: skip
    return in_markdown(
        ["", "the usual way", "here", "times"],
        [
            [what, f"{usual:,.{digits}f}", f"{ours:,.{digits}f}", times(ours / usual)]
            for what, usual, ours, digits in lines
        ],
    )


def times(factor: float) -> str:
    """Two digits."""
    return f"{factor:.0f}" if factor >= 10 else f"{factor:.1f}"


def read_models() -> dict[tuple[str, str], dict[str, str]]:
    """(model, set) -> row of models.csv."""
    with open(RESULTS / "models.csv", newline="", encoding="utf-8") as file:
        return {(row["model"], row["set"]): row for row in csv.DictReader(file)}


def released() -> list[str]:
    """Our models; what was trained for PSNR comes first."""
    return sorted(zoo.released(), key=lambda name: (RECIPES[name].is_game, name))


def figures(name: str, rows: dict[tuple[str, str], dict[str, str]]) -> list[str]:
    """A model's cell for each set; a dash for what was not measured."""
    noted = zoo.read_notes(zoo.released()[name]) if name in zoo.released() else {}
    cells = []
    for image_set in SETS:
        if row := rows.get((name, image_set)):
            lpips = f"{float(row['lpips_alex']):.3f}" if row["lpips_alex"] else "-"
            cells.append(f"{float(row['psnr']):.2f} / {float(row['ssim']):.4f} / {lpips}")
        else:
            cells.append(noted.get(image_set, "-"))
    return cells


def in_markdown(head: list[str], rows: list[list[str]]) -> str:
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join((first, "|" + "---|" * len(head), *others))


TABLES = {f.__name__: f for f in (models, weights, trainings, verdicts, speed)}


def whole(table: str) -> str:
    """Figures that belong together stay on one line in a narrow column; LPIPS may take the next."""
    table = re.sub(r"(?<=\d) (/|to) (?=[-+\d])", "\u00a0\\1\u00a0", table)
    table = re.sub(r"(?<=\.\d{4})\u00a0/", " /", table)
    return re.sub(r"(?<=\d) (?=(?:M|dB|LPIPS)\b)", "\u00a0", table)


def renewed(page: str) -> str:
    """The page with every table as it should be.

    Raises:
        KeyError: a name that is not in TABLES.
    """
    return MARKED.sub(lambda found: f"{found[1]}{found[2]}{whole(TABLES[found[1]]())}\n", page)


if __name__ == "__main__":
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        after = renewed(before)
        path.write_text(after, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}  {'as it was' if after == before else 'renewed'}")
