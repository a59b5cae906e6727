"""A finished run becomes a weight file with its card's figures and its log."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from srlab.data.datasets import find, status
from srlab.errors import SrlabError
from srlab.evaluation import protocol
from srlab.models import released, zoo
from srlab.models.generators import fold
from srlab.models.interpolation import interpolate
from srlab.training.monitor import LOG
from srlab.training.run import CHECKPOINT
from srlab.training.state import load_checkpoint, writing

BENCHMARKS = ("set5", "set14", "bsd100", "urban100")


def export(
    run: Path,
    file: Path,
    *,
    start: Path | str | None = None,
    share: float = 1.0,
    trained_on: str = "",
    half: bool = True,
    force: bool = False,
    benchmarks: tuple[str, ...] = BENCHMARKS,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Write the moving average of a run's generator, and its log beside it as CSV.

    Args:
        run: folder of a training.
        file: ``.safetensors`` to write; if it lies among the released ones, its checksum is listed.
        start, share: write the generator that lies this share of the way from ``start`` (a released
            model, a file or a run, which is folded) to the run's: see
            :func:`srlab.models.interpolation.interpolate`. By default the run's own.
        trained_on: what the file says of the data.
        half: store half-precision floats.
        force: overwrite what is there from before, the weights and the log.
        benchmarks: sets to score; those that are not at hand are left out.

    Returns:
        What the file tells of itself: steps, configuration, and the figures ("PSNR / SSIM") by
        name of the set, measured on the weights as they are stored. The file appears when they
        are known.

    Raises:
        CheckpointError: the folder holds no complete run, or ``file`` cannot be written.
        SrlabError: ``start`` is a generator of another architecture, or ``file`` is not a place
            for weights, or is there already.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise SrlabError(f"{file} does not end in .safetensors, the format of the weights.")
    if file.parent.resolve() == Path(run).resolve():
        raise SrlabError(f"{file} lies among the run's own files: name another folder.")
    log = file.with_suffix(".csv")
    for target in (file, log):
        if target.exists() and not force:
            raise SrlabError(f"{target} is there already: add --force to overwrite it.")
    _, info = load_checkpoint(run / CHECKPOINT)
    notes = {"trained_on": trained_on, "steps": info["step"], "config": info["config"]}
    generator = zoo.load(run)
    if start is not None:
        generator = interpolate(fold(zoo.load(start)), generator, share)
        notes |= {"start": str(start), "share": share}
    with writing(file):  # refused now, not after minutes of scoring
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    with tempfile.TemporaryDirectory() as folder:  # what is scored is what a file gives back
        trial = Path(folder) / file.name
        zoo.save(generator, trial, half=half, notes=notes)
        generator = zoo.load(trial)
    for name in benchmarks:
        if status(name)[0]:
            scores = protocol.evaluate(generator, find(name), device=device, progress=progress)
            mean = protocol.mean(scores)
            notes[name] = f"{mean.psnr:.2f} / {mean.ssim:.4f}"
    zoo.save(generator.cpu(), file, half=half, notes=notes)
    shutil.copyfile(run / LOG, log)
    released.record(file)
    return notes
