"""The command line: ``srlab fetch | train | evaluate | upscale | course | bench | ...``."""

import signal
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from srlab.errors import SrlabError, require
from srlab.files import only_here, printable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
course_app = typer.Typer(no_args_is_help=True, help="The course's chapters.")
app.add_typer(course_app, name="course")
bench_app = typer.Typer(invoke_without_command=True, help="Measure this machine.")
app.add_typer(bench_app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        import srlab

        print(f"srlab {srlab.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Super-resolution GANs: data, training, evaluation, and the course around them."""


@app.command()
def datasets() -> None:
    """List the named image sets and whether they are at hand."""
    from srlab.data.datasets import DATASETS, status

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
    name: Annotated[
        str, typer.Argument(help="A set's name (`srlab datasets`), vgg16, vgg19 or lpips-alex.")
    ],
    into: Annotated[Path | None, typer.Option(help="Folder to put it in; default: data/.")] = None,
) -> None:
    """Download an image set, check it and unpack it; or download the weights of VGG or LPIPS."""
    from srlab.data import datasets

    if name not in datasets.DATASETS:
        from srlab.evaluation.perceptual import BACKBONES
        from srlab.models.vgg import PRETRAINED

        networks = [*PRETRAINED.values(), *(judge.network for judge in BACKBONES.values())]
        weights = {network.command: network for network in networks}
        if name not in weights:
            raise datasets.cannot_fetch(name, [*datasets.DATASETS, *weights])
        if into:
            raise SrlabError(f"{name} always goes where torch keeps its weights: leave out --into.")
        print(f"{name}: {weights[name].fetch()}")
        return
    files = datasets.fetch(name, into)
    print(f"{name}: {len(files)} images in {files[0].parent}")


@app.command()
def pack(
    name: Annotated[str, typer.Argument(help="Set name or folder; NAME@2 halves its pictures.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pixels, for `train --data`.")],
    scale: Annotated[int, typer.Option(min=1, help="HR size / LR size.")] = 4,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what was packed into OUT before.")
    ] = False,
) -> None:
    """Decode a set once, onto disk: trainings start at once, and it may be larger than memory."""
    from srlab.data import stored
    from srlab.data.bank import PatchBank
    from srlab.data.datasets import training_files

    if stored.is_bank(out) and not force:
        raise SrlabError(f"{out} holds a packed set already: add --force to replace it.")
    files, shrink = training_files([name])
    bank = PatchBank.from_files(files, scale, shrink=shrink, progress=True, folder=out)
    print(
        f"{len(bank)} images, {bank.nbytes / 1e9:.2f} GB in {out}. Next: srlab train --data {out}"
    )


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
        typer.Argument(
            help="For PSNR: srresnet, wdrn, srresnet-16, wdrn-16. Games: srgan, wdrn-vgg-wgan."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Set name or folder; repeat for more. NAME@2 halves its pictures first. Or a "
            "folder made by `srlab pack`. Default: photos."
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Take data, sizes and steps from this profile of the course.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/MODEL.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Released model, file or run to start from; one with fewer blocks is grown."
        ),
    ] = None,
    validate: Annotated[
        str | None, typer.Option(help="Set that the log's val_psnr is measured on.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Default: 1000.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time budget in minutes, instead of --steps.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Crops a step; default 4.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="Side of the LR crop; default 24.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="The generator's learning rate; default 1e-3, for games 2e-4."),
    ] = None,
    critic_lr: Annotated[
        float | None, typer.Option(help="Games: the critic's learning rate; default: the recipe's.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Pixel loss, l1 or mse.")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Games: perceptual loss by vgg19-slim (default), vgg16 or vgg19."),
    ] = None,
    texture: Annotated[
        bool, typer.Option(help="Games, with vgg16 or vgg19: compare the strength of texture, too.")
    ] = True,
    critic: Annotated[
        str | None,
        typer.Option(
            help="Games: discriminator, vgg, or none, the control that trains as long without a "
            "game. Default: as the recipe says."
        ),
    ] = None,
    critic_features: Annotated[
        str | None, typer.Option(help="Games: what a VGG critic stands on; default --features.")
    ] = None,
    critic_width: Annotated[
        int, typer.Option(min=1, help="Games: channels of the critic's first layer.")
    ] = 64,
    detail: Annotated[
        float, typer.Option(help="Draw crops by detail with this exponent; 0: every place alike.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of fresh weights and of the crops' order.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="auto (measured), plain, fp32, bf16, bf16-compiled, bf16-graphs.")
    ] = "auto",
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps of rising learning rate; default 20.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="The learning rate after warm-up: cosine (default, to 0) or constant."),
    ] = None,
    log_every: Annotated[int, typer.Option(help="Steps between two lines of log.csv.")] = 20,
    validate_every: Annotated[int, typer.Option(help="A multiple of --log-every.")] = 100,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between two checkpoints; 0: only at the end.")
    ] = 500,
) -> None:
    """Train a generator, or go on with a run that was stopped.

    `srlab train wdrn` trains for PSNR. `srlab train wdrn-vgg-wgan --init runs/wdrn` plays the
    adversarial game from there, its batch norm folded. Ctrl-C and SIGTERM save the run and stop it
    (status 130 and 143); the same command goes on with it.
    Several GPUs: `torchrun --nproc-per-node 4 -m srlab train ...`; --batch-size is that of each.
    """
    from copy import deepcopy
    from functools import partial

    import torch

    from srlab.data import stored
    from srlab.data.bank import PatchBank
    from srlab.data.datasets import find, training_files
    from srlab.training import budget, recipes
    from srlab.training.config import AdversarialConfig, PretrainConfig
    from srlab.training.engine import ENGINES, default_fabric
    from srlab.training.run import nothing_left

    if steps is not None and minutes is not None:
        raise SrlabError("--steps and --minutes cannot be combined: give one of them.")
    recipe = recipes.find(model)
    if critic is not None:
        recipe = recipes.with_critic(recipe, critic)
    given: dict[str, Any] = {}
    if profile is not None:
        from srlab.course.settings import read_profile

        given = read_profile(profile)
        given["steps"] = given["adversarial_steps" if recipe.is_game else "pretrain_steps"]
    data = data or [given.get("train_set", "photos")]
    validate = validate or given.get("valid_set", "photos-valid")
    pixel, rate = ("content", "generator_lr") if recipe.is_game else ("loss", "lr")
    if critic_lr is not None and not recipe.is_game:
        raise SrlabError(f"--critic-lr: {model} has no critic.")
    chosen: dict[str, Any] = {
        "steps": given.get("steps", 1000) if steps is None else steps,
        "batch_size": given.get("batch_size") if batch_size is None else batch_size,
        "patch_size": given.get("patch_size", 24) if patch_size is None else patch_size,
        pixel: loss,
        rate: lr,
        "critic_lr": critic_lr,
        "warmup_steps": warmup_steps,
        "schedule": schedule,
        "log_every": log_every,
        "validate_every": validate_every,
        "checkpoint_every": checkpoint_every,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    # What no run can have is told before hundreds of pictures are decoded.
    (AdversarialConfig if recipe.is_game else PretrainConfig)(**{**recipe.settings, **chosen})
    packed = any(map(stored.is_bank, data))
    if packed and len(data) > 1:
        raise SrlabError("--data: a folder made by `srlab pack` is given alone, not with others.")
    held_out = find(validate)
    files, shrink = ([], []) if packed else training_files(data)
    generator = _initial(init, model, recipe)

    fabric = default_fabric(device)
    speaks = fabric.global_rank == 0
    if packed:
        bank = PatchBank.open(data[0], fabric.device, seed, detail)
    else:
        if speaks:
            print(f"decoding {len(files)} images ...", flush=True)
        bank = PatchBank.from_files(
            files, 4, fabric.device, seed, shrink, progress=speaks, detail=detail
        )
    scale = generator.scale if generator else 4
    if bank.scale != scale:
        raise SrlabError(f"--data was packed with --scale {bank.scale}, but {model} is x{scale}.")
    if speaks:
        where = "disk" if packed and not bank.hr_atlas.is_cuda else fabric.device
        print(f"{len(bank)} images, {bank.nbytes / 1e6:,.0f} MB of pixels on {where}", flush=True)

    folder = out or Path("runs") / model
    train_it = partial(
        recipes.train, recipe, bank, features=features or given.get("features", "vgg19-slim"),
        critic_features=critic_features, critic_width=critic_width, texture=texture, seed=seed,
    )  # fmt: skip

    def trial(precision: str, engine: Any, n: int, where: Path, on_step: Any) -> None:
        quiet = {"steps": n, "validate_every": 0, "checkpoint_every": 0}
        state = bank.state_dict()
        tried = train_it(
            where, generator=deepcopy(generator), settings=chosen | quiet, on_step=on_step,
            engine=engine, fabric=default_fabric(device, precision), progress=False,
        )  # fmt: skip
        bank.load_state_dict(state)
        if tried.signal:
            sys.exit(128 + tried.signal)

    def agree(mine: float) -> float:
        return float(fabric.all_reduce(torch.tensor(mine, device=fabric.device)))

    with ExitStack() as alone:
        if speaks:
            alone.enter_context(only_here(folder, "a training"))
            alone.enter_context(nothing_left(folder))
        plan = budget.make(
            folder, trial, fabric.device, engine=engine, minutes=minutes,
            steps=None if minutes is not None else chosen["steps"], writes=speaks,
            agree=agree,
        )  # fmt: skip
        how = ENGINES[plan.engine]
        if minutes is not None:
            chosen["steps"] = plan.steps
        if speaks:
            print(f"{model}: {chosen['steps']:,} steps, engine {plan.engine}; {chosen}", flush=True)
        result = train_it(
            folder, generator=generator, settings=chosen, held_out=held_out, engine=how.engine,
            fabric=default_fabric(device, how.precision),
        )  # fmt: skip
    if result.signal:
        sys.exit(128 + result.signal)
    if speaks:
        print(
            f"{result.step} steps in {folder}, {result.patches_per_second:.0f} patches/s. "
            f"Next: srlab evaluate {folder} --dataset {validate}"
        )


def _initial(init: str | None, model: str, recipe: Any) -> Any:
    """The generator that a training starts from; None for a fresh one."""
    from srlab.models import zoo
    from srlab.models.generators import fold
    from srlab.models.grow import grow, grows_into

    if not recipe.is_game:
        if init is None:
            return None
        generator, wanted = zoo.load(init), zoo.describe(zoo.build(model))
        if not grows_into(generator, wanted):
            raise SrlabError(f"--init {init} holds another network than {model}.")
        return grow(generator, wanted["n_blocks"])
    if init is None and recipe.generator not in zoo.released():
        raise SrlabError(
            f"{model} starts from a pre-trained generator: add --init with a released model, "
            f"a weight file or the folder of an `srlab train {recipe.generator}` run."
        )
    generator = zoo.load(init or recipe.generator)
    if type(generator).__name__ not in zoo.CLASSES:
        raise SrlabError(f"--init {init}: another project's network can be used, not trained.")
    return fold(generator)  # see recipes.RECIPES


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished training run.")],
    file: Annotated[Path, typer.Argument(help="Weight file to write, .safetensors.")],
    start: Annotated[
        str | None,
        typer.Option(help="Go only --share of the way from this model, file or run to the run's."),
    ] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="0: the start, 1: the run's own.")] = 1,
    trained_on: Annotated[str, typer.Option(help="What the model card says about the data.")] = "",
    half: Annotated[bool, typer.Option(help="Store half-precision floats.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a run's generator as a small weight file, with its log and its measured figures.

    The figures are those of the file itself, read back, on every benchmark set at hand.
    """
    from srlab.training.release import export as write

    if share != 1 and start is None:
        raise SrlabError("--share needs --start: the network on whose way to the run's it lies.")
    how: dict[str, Any] = {"start": start, "share": share, "trained_on": trained_on, "half": half}
    notes = write(run, file, **how, force=force, progress=True)
    print(f"wrote {file} ({file.stat().st_size / 1e6:.2f} MB) and its log: {notes}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="bicubic, a released model, a file or a run.")],
    dataset: Annotated[str, typer.Option(help="Set name or folder.")] = "photos-valid",
    csv: Annotated[Path | None, typer.Option(help="Write the scores to this file.")] = None,
    channel: Annotated[str, typer.Option(help="y (luma) or rgb.")] = "y",
    shave: Annotated[
        int | None, typer.Option(help="Pixels cut from each side; default: the scale, such as 4.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "cpu",
    tile: Annotated[int, typer.Option(help="Side of a tile in LR pixels.")] = 256,
    lpips: Annotated[
        bool, typer.Option("--lpips", help="Also LPIPS; on AlexNet after `srlab fetch lpips-alex`.")
    ] = False,
    frechet: Annotated[
        bool,
        typer.Option("--frechet", help="Also the distance between SR's and HR's patches (VGG16)."),
    ] = False,
) -> None:
    """Score a model on an image set by the published protocol: PSNR and SSIM.

    MODEL may be another project's network, too: a .safetensors or .pth file that spandrel knows.
    """
    from srlab.data.datasets import find
    from srlab.evaluation import perceptual, protocol, scores, tiling
    from srlab.evaluation.distribution import PatchFrechet
    from srlab.models import zoo
    from srlab.pictures.upscaling import usable

    files = find(dataset)
    generator, device = zoo.load(model), usable(device)
    tiling.check_cost(tile, generator)
    shave = generator.scale if shave is None else shave
    try:
        rules = protocol.Protocol(channel=channel, shave=shave)
    except ValueError as error:
        raise SrlabError(str(error)) from error
    judge = perceptual.load().to(device) if lpips else None
    patches = PatchFrechet() if frechet else None
    found = scores.measure(
        generator, files, judge,
        frechet=patches, rules=rules, device=device, tile=tile, progress=True,
    )  # fmt: skip
    table = _table("image", ">PSNR (dB)", ">SSIM", *([f">{judge.label}"] if judge else []))
    for row in [*found, scores.mean(found)]:
        last = [f"{row.distance:.4f}"] if judge else []
        table.add_row(escape(printable(row.image)), f"{row.psnr:.2f}", f"{row.ssim:.4f}", *last)
    Console().print(table)
    if patches:
        print(f"Fréchet distance of the set's patches, as a share of HR's: {patches.compute():.4f}")
    print(f"{model} on {dataset}, x{generator.scale}: {asdict(rules)}")
    if csv:
        scores.write_csv(found, csv, judge.label if judge else None)
        print(f"wrote {csv}")


@app.command()
def ablate(
    profile: Annotated[
        str, typer.Option(help="smoke, lite, full; first, again, wide, wider or long.")
    ] = "lite",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the CSV files; default runs/ablation-PROFILE.")
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(help="Only this row; repeat for more. Default: all planned."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Only this seed; repeat for more. Default: all.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Train and score the rows of chapter 06's ablation, then judge the claims.

    What the files already hold is not done again.
    """
    from srlab.studies import ablation, claims

    folder = out or Path("runs") / f"ablation-{profile}"
    ablation.run(folder, profile, row, seeds=seed, device=device)
    print(f"{folder / 'runs.csv'} and {folder / 'scores.csv'}\n")
    print(claims.report(claims.judge(folder, claims.asked(profile))))


@app.command()
def upscale(
    pictures: Annotated[
        list[str], typer.Argument(help="Files, folders or patterns; - reads standard input.")
    ],
    model: Annotated[str, typer.Option(help="bicubic, a released model, a file or a run.")] = (
        "srresnet"
    ),
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="A picture file, a folder, or - (standard output)."),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="png, jpeg, webp or tiff; default: as the source.")
    ] = None,
    quality: Annotated[
        int | None, typer.Option(help="Of JPEG (default 95) or WebP (default: lossless), 1 to 100.")
    ] = None,
    tile: Annotated[int, typer.Option(help="Side of a tile in pixels of the source.")] = 192,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Upscale pictures, however large: photo.jpg becomes photo_x4.jpg, photos/ photos_x4/.

    EXIF orientation is applied; ICC profile, transparency, grey and 16 bits (PNG, TIFF) are kept.
    Of an animation or of several pages, the first picture is taken.
    """
    from srlab.pictures.jobs import STREAM, plan, run
    from srlab.pictures.upscaling import prepare

    network = prepare(model, device)
    jobs = plan(pictures, out, format, network.scale)
    to_stdout = any(job.target == STREAM for job in jobs)
    if to_stdout and (json or sys.stdout.isatty()):
        why = "with --json" if json else "when it is a terminal"
        raise SrlabError(f"a picture cannot go to standard output {why}: add --out FILE.")
    outcomes = run(jobs, network, tile=tile, quality=quality, force=force, progress=True)
    failed = [outcome for outcome in outcomes if outcome.error]
    if json:
        from json import dumps

        report = {"model": model, "scale": network.scale, "tile": tile}
        print(dumps(report | {"pictures": [asdict(o) for o in outcomes]}, indent=2))
    elif not to_stdout:
        for o in outcomes:
            if not o.error:
                size = f"{o.width} x {o.height} pixels, {o.seconds:.1f} s"
                print(printable(f"{o.source} -> {o.target} ({size})"))
    if len(failed) == len(outcomes) == 1:
        raise SrlabError(failed[0].error)
    if failed:
        reasons = "".join(f"\n  {outcome.error}" for outcome in failed)
        raise SrlabError(f"{len(failed)} of {len(outcomes)} pictures failed:{reasons}")


@bench_app.callback()
def bench(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    quick: Annotated[bool, typer.Option(help="A few repetitions only.")] = False,
) -> None:
    """Measure this machine: crops a second, and training patches a second."""
    if context.invoked_subcommand is None:
        from srlab.bench.bank import run_bench

        with _alone(out):
            run_bench(out, quick)


@app.command()
def sweep(
    spec: Annotated[Path, typer.Argument(help="YAML: a grid of parameters, or a study.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default runs/sweeps/NAME.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Runs at a time.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster that does the runs, or local to start one."),
    ] = None,
) -> None:
    """Run a chapter many times, over a grid or as an Optuna study; go on where it stopped.

    SPEC holds `chapter: 5`, `profile: lite`, and `grid: {seed: [0, 1], wgan_lr: [1.0e-5, 1.0e-4]}`.
    """
    from srlab.studies.sweep import run_sweep

    require("course", "optuna", "papermill")
    run_sweep(spec, out, jobs, ray)


@bench_app.command("train")
def bench_train(
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    game: Annotated[
        bool, typer.Option("--game", help="WDRN against the VGG critic, not SRResNet-16.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few small steps only.")] = False,
    model: Annotated[str | None, typer.Option(help="Another architecture.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches a step.")] = None,
    patch_size: Annotated[int, typer.Option(help="Side of the LR crop.")] = 24,
    steps: Annotated[int | None, typer.Option(help="Steps to time.")] = None,
    peak: Annotated[
        float | None, typer.Option(help="Peak TFLOP/s of the device; default: measured.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Training speed with each trick of the engine: patches/s, share of the peak, wait for data."""
    from srlab.bench.train import run_bench_train

    with _alone(out):
        run_bench_train(
            out, game=game, quick=quick, model=model, batch_size=batch_size, patch_size=patch_size,
            steps=steps, peak_tflops=peak, device=device,
        )  # fmt: skip


@bench_app.command("upscale")
def bench_upscale(
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model; repeat for more. Default: srresnet-16, srresnet."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Small picture to upscale; default: one of the course.")
    ] = None,
    side: Annotated[
        int, typer.Option(min=0, help="Cut it to this many pixels a side; 0: whole.")
    ] = 192,
    rounds: Annotated[int, typer.Option(help="Measurements of each engine.")] = 5,
    compile: Annotated[bool, typer.Option("--compile", help="Time torch.compile, too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Upscaling speed by engine: torch plain, folded, channels_last, bf16; ONNX Runtime."""
    from srlab.bench.upscale import MODELS, run_bench_upscale

    with _alone(out):
        run_bench_upscale(
            out, models=tuple(model or MODELS), picture=picture, side=side, rounds=rounds,
            compile=compile, device=device,
        )  # fmt: skip


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
    jobs: Annotated[
        int, typer.Option("-j", "--jobs", min=1, help="Chapters at a time, sharing the cores.")
    ] = 1,
) -> None:
    """Run the chapters in order; executed notebooks and an HTML index go to runs/PROFILE."""
    from srlab.course.run import run_course

    folder = run_course(profile, chapter, start, out, _parameters(parameter or []), jobs=jobs)
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
    from srlab.course.settings import read_yaml

    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SrlabError(f"-p {pair}: write NAME=VALUE.")
        parsed[name] = read_yaml(value)
    return parsed


def _alone(out: Path | None) -> AbstractContextManager[None]:
    """Only one process at a time measures for this file."""
    return only_here(out.parent, "a benchmark", f".{out.name}.lock") if out else nullcontext()


def _table(*columns: str) -> Table:
    """A plain table; a column whose title begins with ``>`` holds numbers."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column[0] == ">" else "left")
    return table


def main() -> None:
    """Entry point: an :class:`SrlabError` becomes one line and exit status 1.

    SIGTERM ends the program as Ctrl-C does, so that it can clear up, with status 143.
    """
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except (SrlabError, OSError) as error:
        why: object = error
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            why = f"{where}{error.strerror or error}: make room there, or name another place."
        print(f"srlab: {printable(why)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("srlab: interrupted", file=sys.stderr)
        sys.exit(130)
