"""The command line: ``srlab fetch | datasets | models | train | evaluate | course | bench``."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from srlab.errors import SrlabError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Super-resolution GANs: data, training, evaluation, and the course around them.",
)
course_app = typer.Typer(no_args_is_help=True, help="The course's chapters.")
app.add_typer(course_app, name="course")


@app.command()
def datasets() -> None:
    """List the named image sets and whether they are at hand."""
    from srlab.datasets import DATASETS, status

    table = _table("name", ">here", "what")
    for name, image_set in DATASETS.items():
        folder, found = status(name)
        here = f"{found} of {image_set.count}" if folder else "no"
        table.add_row(name, here, image_set.title)
    Console().print(table)
    print("`srlab fetch NAME` downloads a set. SRLAB_DATA names folders to look in first.")
    print("Sources and licences: data/README.md")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A set's name (see `srlab datasets`), or vgg19.")],
    into: Annotated[Path | None, typer.Option(help="Folder to put it in; default: data/.")] = None,
) -> None:
    """Download an image set, check it and unpack it; or VGG19's weights."""
    from srlab import datasets

    if name == "vgg19":
        from srlab.models import vgg

        if into:
            raise SrlabError("vgg19 goes where torch keeps its weights: leave --into out.")
        print(f"vgg19: {vgg.fetch()}")
        return
    files = datasets.fetch(name, into)
    print(f"{name}: {len(files)} images in {files[0].parent}")


@app.command()
def models() -> None:
    """List the models whose weights come with the package."""
    from srlab.models import zoo

    table = _table("name", ">parameters", ">size", ">steps", ">Set5", "trained on")
    for name, path in zoo.released().items():
        model, notes = zoo.load(name), zoo.read_notes(path)
        table.add_row(
            name,
            f"{sum(p.numel() for p in model.parameters()):,}",
            f"{path.stat().st_size / 1e6:.1f} MB",
            f"{notes['steps']:,}",
            notes.get("set5", ""),
            notes["trained_on"],
        )
    Console().print(table)


@app.command()
def train(
    model: Annotated[
        str,
        typer.Argument(help="For PSNR: srresnet, srresnet-16, wdrn. Games: srgan, wdrn-vgg-wgan."),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Set name or folder; repeat for more. NAME@2 halves its pictures first. "
            "Default: photos."
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Take data, sizes and steps from this profile of the course."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/MODEL.")] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Released model, file or run to start from; games need one."),
    ] = None,
    validate: Annotated[
        str | None, typer.Option(help="Set that the log's val_psnr is measured on.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Default: 1000.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 16.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="Side of the LR crop; default 24.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="The generator's learning rate; default 1e-3, for games 1e-4."),
    ] = None,
    critic_lr: Annotated[
        float | None, typer.Option(help="Games: the critic's; default as the recipe says.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Pixel loss, l1 or mse.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Games with VGG: vgg19-slim (default) or vgg19.")
    ] = None,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed.")] = "32-true",
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps of rising learning rate; default 20, for games 0.")
    ] = None,
    log_every: int = 20,
    validate_every: Annotated[int, typer.Option(help="A multiple of --log-every.")] = 100,
    checkpoint_every: int = 500,
) -> None:
    """Train a generator, or go on with a run that was stopped.

    `srlab train wdrn` trains for PSNR. `srlab train wdrn-vgg-wgan --init runs/wdrn` plays the
    adversarial game from there. Ctrl-C saves; the same command goes on.
    """
    import torch
    from lightning_fabric import Fabric

    from srlab.evaluation import protocol
    from srlab.models import zoo
    from srlab.patches import PatchBank
    from srlab.training import config, loop
    from srlab.training.recipes import RECIPES, build_critic, build_perceptual

    recipe = RECIPES.get(model)
    trainable = [name for name in zoo.ARCHITECTURES if name != "bicubic"]
    if not recipe and model not in trainable:
        known = ", ".join([*trainable, *RECIPES])
        raise SrlabError(f"unknown model {model!r}: choose one of {known}.")
    given = _profile(profile, game=recipe is not None)
    data = data or [given.get("train_set", "photos")]
    validate = validate or given.get("valid_set", "photos-valid")
    features = features or given.get("features", "vgg19-slim")
    patch_size = patch_size or given.get("patch_size", 24)

    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "steps": given.get("steps", 1000) if steps is None else steps,
        "batch_size": batch_size or given.get("batch_size", 16),
        "patch_size": patch_size,
        "log_every": log_every,
        "validate_every": validate_every,
        "checkpoint_every": checkpoint_every,
    }
    if warmup_steps is not None:
        common["warmup_steps"] = warmup_steps
    if recipe:
        if init is None and recipe.start not in zoo.released():
            raise SrlabError(
                f"{model} starts from a pre-trained generator: add --init with a released model, "
                f"a weight file or the folder of an `srlab train {recipe.start}` run."
            )
        generator = zoo.load(init or recipe.start)
        chosen = {"content": loss, "generator_lr": lr, "critic_lr": critic_lr}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        settings = config.AdversarialConfig(**recipe.settings | common | chosen)
    else:
        generator = zoo.load(init) if init else zoo.build(model)
        if zoo.describe(generator) != zoo.describe(zoo.build(model)):
            raise SrlabError(f"--init {init} holds another network than {model}: name its like.")
        settings = config.PretrainConfig(
            loss=loss or "l1", lr=lr or config.PretrainConfig.lr, **common
        )

    try:
        fabric = Fabric(accelerator=device, devices=1, precision=precision)
    except Exception as error:
        raise SrlabError(f"--device {device} --precision {precision}: {error}") from error
    files, shrink = _training_files(data)
    held_out = _find(validate)
    print(f"decoding {len(files)} images ...", flush=True)
    bank = PatchBank.from_files(files, 4, fabric.device, seed, shrink, progress=True)
    print(f"{bank.nbytes / 1e6:,.0f} MB of pixels on {fabric.device}; {settings}", flush=True)

    def score(generator: torch.nn.Module) -> float:
        return protocol.mean(protocol.evaluate(generator, held_out, device=fabric.device)).psnr

    folder = out or Path("runs") / model
    options: dict[str, Any] = {"validate": score, "fabric": fabric}
    if recipe:
        hr_size = patch_size * generator.scale
        sample = PatchBank.from_files(files[:4], 4, "cpu", seed, shrink[:4]).batch(16, patch_size)
        options["perceptual"] = build_perceptual(recipe, sample[1], features)
        critic = build_critic(recipe, hr_size, features)
        result = loop.adversarial(generator, critic, bank, settings, folder, **options)
    else:
        result = loop.pretrain(generator, bank, settings, folder, **options)
    print(
        f"{result.step} steps in {folder}, {result.patches_per_second:.0f} patches/s. "
        f"Next: srlab evaluate {folder} --dataset {validate}"
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished training run.")],
    file: Annotated[Path, typer.Argument(help="Weight file to write, .safetensors.")],
    trained_on: Annotated[str, typer.Option(help="What the model card says of the data.")] = "",
    half: Annotated[bool, typer.Option(help="Store half-precision floats.")] = False,
) -> None:
    """Write a run's generator as a small weight file, with its log and its measured figures.

    The figures are those of the file itself, read back, on every benchmark set at hand.
    """
    import shutil

    from srlab.datasets import find, status
    from srlab.evaluation import protocol
    from srlab.models import zoo
    from srlab.training.state import load_checkpoint

    _, info = load_checkpoint(run / "checkpoint.safetensors")
    notes = {"trained_on": trained_on, "steps": info["step"], "config": info["config"]}
    zoo.save(zoo.load(run), file, half=half, notes=notes)
    generator = zoo.load(file)
    for name in ("set5", "set14", "bsd100", "urban100"):
        if status(name)[0]:
            mean = protocol.mean(protocol.evaluate(generator, find(name), progress=True))
            notes[name] = f"{mean.psnr:.2f} / {mean.ssim:.4f}"
    zoo.save(generator, file, half=half, notes=notes)
    shutil.copyfile(run / "log.csv", file.with_suffix(".csv"))
    print(f"wrote {file} ({file.stat().st_size / 1e6:.2f} MB) and its log: {notes}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="bicubic, a released model, a file or a run.")],
    dataset: Annotated[str, typer.Option(help="Set name or folder.")] = "photos-valid",
    csv: Annotated[Path | None, typer.Option(help="Write the scores to this file.")] = None,
    channel: Annotated[str, typer.Option(help="y (luma) or rgb.")] = "y",
    shave: Annotated[int, typer.Option(help="Pixels cut from each side.")] = 4,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    tile: Annotated[int, typer.Option(help="Side of a tile in LR pixels.")] = 256,
) -> None:
    """Score a model on an image set by the published protocol: PSNR and SSIM, x4."""
    from srlab.evaluation import protocol
    from srlab.models import zoo

    try:
        rules = protocol.Protocol(channel=channel, shave=shave)
    except ValueError as error:
        raise SrlabError(str(error)) from error
    files = _find(dataset)
    generator = zoo.load(model)
    scores = protocol.evaluate(generator, files, rules, device=device, tile=tile, progress=True)
    table = _table("image", ">PSNR (dB)", ">SSIM")
    for row in [*scores, protocol.mean(scores)]:
        table.add_row(row.image, f"{row.psnr:.2f}", f"{row.ssim:.4f}")
    Console().print(table)
    print(f"{model} on {dataset}: {asdict(rules)}")
    if csv:
        protocol.write_csv(scores, csv)
        print(f"wrote {csv}")


@app.command()
def bench(
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    quick: Annotated[bool, typer.Option(help="A few repetitions only.")] = False,
) -> None:
    """Measure this machine: crops a second, and training patches a second."""
    from srlab.bench import run_bench

    run_bench(out, quick)


@course_app.command("run")
def course_run(
    profile: Annotated[str, typer.Option(help="smoke, lite or full.")] = "lite",
    chapter: Annotated[
        list[str] | None, typer.Option(help="Only this chapter; repeat for more.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="Skip earlier chapters.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to use in place of runs/.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", help="NAME=VALUE, overrides the profile; repeat.")
    ] = None,
) -> None:
    """Run the chapters in order; executed notebooks and an HTML index go to runs/PROFILE."""
    from srlab.course.run import run_course

    folder = run_course(profile, chapter, start, out, _parameters(parameter or []))
    print(f"Open {folder / 'index.html'}")


@course_app.command("refresh")
def course_refresh(
    chapter: Annotated[list[str] | None, typer.Argument(help="Numbers; default: all.")] = None,
) -> None:
    """Run chapters from scratch and store the new outputs in notebooks/."""
    from srlab.course.refresh import refresh

    for notebook in refresh(chapter or None):
        print(f"stored {notebook.name} ({notebook.stat().st_size / 1e6:.2f} MB)")


def _parameters(pairs: list[str]) -> dict[str, Any]:
    import yaml

    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SrlabError(f"-p {pair}: write NAME=VALUE.")
        parsed[name] = yaml.safe_load(value)
    return parsed


def _profile(name: str | None, game: bool) -> dict[str, Any]:
    """A profile's values, with ``steps`` those of a game or of a pre-training."""
    if name is None:
        return {}
    from srlab.course.settings import read_profile

    values = read_profile(name)
    return values | {"steps": values["adversarial_steps" if game else "pretrain_steps"]}


def _training_files(names: list[str]) -> tuple[list[Path], list[int]]:
    """Files of all sets, and for each by how much it is shrunk first (``NAME@2``)."""
    files, shrink = [], []
    for name in names:
        base, at, factor = name.rpartition("@")
        if not at:
            base, factor = name, "1"
        if not factor.isdigit() or factor == "0":
            raise SrlabError(f"--data {name}: write a whole number after @, such as @2.")
        found = _find(base)
        files += found
        shrink += [int(factor)] * len(found)
    return files, shrink


def _find(name: str) -> list[Path]:
    from srlab.datasets import find

    return find(name)


def _table(*columns: str) -> Table:
    """A plain table; a column whose title begins with ``>`` holds numbers."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column[0] == ">" else "left")
    return table


def main() -> None:
    """Entry point: an :class:`SrlabError` becomes one line and exit status 1."""
    try:
        app()
    except SrlabError as error:
        print(f"srlab: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("srlab: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
