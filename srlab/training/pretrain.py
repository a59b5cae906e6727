"""Training a generator for PSNR: pixel loss, no critic."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from srlab import losses
from srlab.data.bank import PatchBank
from srlab.training.config import PretrainConfig
from srlab.training.engine import Engine, default_fabric
from srlab.training.faults import explained
from srlab.training.optim import MovingAverage, schedule
from srlab.training.run import Result, Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@explained
def pretrain(
    generator: nn.Module,
    bank: PatchBank,
    config: PretrainConfig,
    folder: Path | str,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    on_step: Callable[[int, nn.Module], bool | None] | None = None,
    fabric: "Fabric | None" = None,
    engine: Engine = Engine(),  # noqa: B008 (frozen)
    progress: bool = True,
) -> Result:
    """Train a generator for PSNR by a pixel loss (SRResNet's training in Ledig et al. 2017).

    Args:
        generator: trained in place.
        bank: where the crops come from.
        config: see :class:`srlab.training.config.PretrainConfig`.
        folder: of this run. If it holds a checkpoint of the same configuration, the run goes on
            from there, and on a CPU ends bit for bit where an unbroken run would have.
        validate: gets the averaged generator and returns its PSNR in dB.
        on_step: gets the number of each step done and the averaged generator, to show how the run
            goes. If it returns True (on any process) the run ends as by Ctrl-C: saved, to go on
            later.
        fabric: device, precision and distribution; by default
            :func:`srlab.training.engine.default_fabric`. Of several processes each draws its own
            ``config.batch_size`` crops a step; rank 0 validates and writes. A run can go on with
            another number of processes.
        engine: see :class:`srlab.training.engine.Engine`.
        progress: show a bar.

    Raises:
        CheckpointError: the folder holds another run, or cannot be written to.
        TrainingDiverged: a loss or a weight became NaN or infinite.
        OutOfMemory: the batch does not fit into memory; names a size that does.
        LostProcess: another process of a distributed run has ended.
    """
    fabric = fabric or default_fabric()
    optimizer = engine.optimizer(
        config.optimizer, generator.parameters(), config.lr, config.betas, fabric.device
    )
    scheduler = schedule(optimizer, config)
    model, optimizer = engine.setup(fabric, generator, optimizer, config.lr_shape)
    average = MovingAverage(generator, config.ema_decay)
    parts = {
        "generator": generator, "average": average, "optimizer": optimizer,
        "scheduler": scheduler, "bank": bank,
    }  # fmt: skip
    run = Run(
        folder, config, ["loss", "val_psnr"], fabric, parts=parts,
        engine=engine, validate=validate, on_step=on_step, progress=progress,
    )  # fmt: skip

    with run:
        for step in run.steps():
            model.train()
            lr, hr = fabric.to_device(bank.batch(config.batch_size, config.patch_size))
            loss = losses.pixel(model(lr), hr, config.loss)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            scheduler.step()
            average.update(generator)
            run.end_step(step, {"loss": loss})
    return run.result()
