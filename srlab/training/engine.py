"""What makes a training step fast, and how many processes share it.

None of this changes what is learnt, beyond rounding. Whatever a machine cannot do is left
out automatically.
"""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from srlab.errors import SrlabError
from srlab.models.generators import polyphase
from srlab.training.optim import Muon

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SMALL = 100_000_000  # weights times LR pixels of a step: below it, one thread is enough
MODES = ("off", "default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Engine:
    """The tricks of a training step. (Precision is Fabric's: ``bf16-mixed`` keeps fp32 weights.)

    Attributes:
        channels_last: keep a pixel's channels side by side in memory, as fast convolutions want
            them.
        polyphase: compute the generators' tail before the last pixel shuffle; see
            :class:`srlab.models.generators.Polyphase`.
        fused: one kernel updates all weights, where the device has one.
        compile: ``"off"``, or a mode of ``torch.compile``: ``"default"``, ``"reduce-overhead"``
            (CUDA graphs: the host launches a step as a whole) or ``"max-autotune"``. The first
            step takes a minute longer then.

    Raises:
        SrlabError: an unknown mode.
    """

    channels_last: bool = True
    polyphase: bool = True
    fused: bool = True
    compile: str = "off"

    def __post_init__(self):
        if self.compile not in MODES:
            raise SrlabError(f"compile must be one of {', '.join(MODES)}, got {self.compile!r}.")

    def optimizer(
        self,
        kind: str,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        device: torch.device,
    ) -> torch.optim.Optimizer:
        """Adam over parameters (or groups of them), or Muon, that lie or will lie on ``device``."""
        fused = self.fused and device.type in ("cpu", "cuda")
        cls = Muon if kind == "muon" else torch.optim.Adam
        return cls(parameters, lr, betas, fused=fused or None)

    def setup(
        self,
        fabric: "Fabric",
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        example: tuple[int, ...],
    ) -> tuple[nn.Module, Any]:
        """``fabric.setup`` of the network, laid out and compiled as this engine says.

        ``network`` itself is moved and laid out in place, but stays uncompiled: a second derivative
        has to go through it.

        Args:
            example: shape of an input, (N, C, H, W).
        """
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.polyphase:
            network = polyphase(network)
        if self.compile != "off":
            fabric.to_device(network)
            compiled = torch.compile(network, mode=self.compile, dynamic=False)
            if _compiles(fabric, network, compiled, example):
                return fabric.setup(compiled, optimizer)
        return fabric.setup(network, optimizer)

    def begin_step(self) -> None:
        """CUDA graphs may reuse the memory of the step before."""
        if self.compile in ("reduce-overhead", "max-autotune"):
            torch.compiler.cudagraph_mark_step_begin()


@dataclass(frozen=True)
class Choice:
    """A precision, the tricks that go with it, and the devices where they are worth trying."""

    precision: str
    engine: Engine
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")


# By name, for `srlab train --engine`; "auto" takes the fastest. Each adds to the one before. (The
# plain one is for comparison: nowhere yet was it the fastest.)
ENGINES: dict[str, Choice] = {
    "plain": Choice("32-true", Engine(channels_last=False, polyphase=False, fused=False), ()),
    "fp32": Choice("32-true", Engine()),
    "bf16": Choice("bf16-mixed", Engine(), ("cpu", "cuda")),
    "bf16-compiled": Choice("bf16-mixed", Engine(compile="default"), ("cpu", "cuda")),
    "bf16-graphs": Choice("bf16-mixed", Engine(compile="reduce-overhead"), ("cuda",)),
}


@contextmanager
def threads_for(network: nn.Module, example: tuple[int, ...]) -> Iterator[None]:
    """Use one thread during the body, on a CPU, if several would mostly wait for each other.

    Measured on two cores (``notebooks/results/bench/threads.csv``): with 16 features and four
    crops of 16x16 a step takes 14.6 ms with one thread and 11.9 with two, but 13.6 against 69 when
    another process is busy. 64 features gain more from the second thread (82 ms against 48).

    Args:
        network: what is trained.
        example: shape of its input, (N, C, H, W).
    """
    n, _, h, w = example
    weights = sum(p.numel() for p in network.parameters())
    before = torch.get_num_threads()
    small = weights * n * h * w < SMALL and next(network.parameters()).device.type == "cpu"
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compiles(
    fabric: "Fabric", network: nn.Module, compiled: nn.Module, example: tuple[int, ...]
) -> bool:
    """Run the compiled network forward and back once; if that fails, say so in one line.

    Weights, statistics, gradients and the random state are afterwards what they were.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    network.train()
    try:
        with torch.random.fork_rng(devices):
            x = torch.zeros(example, device=fabric.device)
            with fabric.autocast():
                y = compiled(x)
            y.float().sum().backward()
    except Exception as error:  # whatever a compiler may come up with
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if fabric.global_rank == 0:
            print(f"torch.compile does not work here ({why}): going on without it.", flush=True)
        return False
    finally:
        network.zero_grad()
        with torch.no_grad():
            for buffer, old in zip(network.buffers(), before, strict=True):
                buffer.copy_(old)
    return True


def default_fabric(accelerator: str = "auto", precision: str = "32-true") -> "Fabric":
    """One device; or, if torchrun or `fabric run` started this process, its share of several.

    Several processes train by distributed data parallelism (DDP): each draws crops of its own,
    gradients are averaged over all. Batch norm's statistics are each process's own, over its own
    crops, and so are its running averages (``broadcast_buffers=False``): the game passes several
    batches through a critic before one step back, which a broadcast in between would spoil. Rank 0
    writes the checkpoint, and so its running averages are those that are kept.

    Raises:
        SrlabError: no such device or precision.
    """
    with _left_out("torchmetrics"):
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy

    options: dict[str, Any] = {"devices": 1}
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_WORLD_SIZE" in os.environ
    by_fabric = "LT_CLI_USED" in os.environ
    if several:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // here
        # `fabric run` sets the devices itself and refuses to be given them again.
        options = {} if by_fabric else {"devices": here, "num_nodes": nodes}
        if "LT_STRATEGY" not in os.environ:
            options["strategy"] = DDPStrategy(broadcast_buffers=False)
        # torch 2.15's new name for it does not exist in 2.11; the gathering is Fabric's own.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather")
    # Convolutions of one size again and again: let cuDNN find the fastest once; and let it use
    # TF32, whose 10 bits of mantissa are what fp32 convolutions have on these units anyway.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    try:
        fabric = Fabric(accelerator=accelerator, precision=precision, **options)
        if several and not by_fabric:
            fabric.launch()
    except Exception as error:
        raise SrlabError(f"--device {accelerator} --precision {precision}: {error}") from error
    return fabric


def keep_own_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved optimizer's state, without the saved choice of kernels: that is this machine's."""
    own = optimizer.state_dict()["param_groups"]
    groups = [
        theirs | {k: mine[k] for k in ("fused", "foreach", "capturable") if k in mine}
        for theirs, mine in zip(state["param_groups"], own, strict=True)
    ]
    return state | {"param_groups": groups}


@contextmanager
def _left_out(name: str) -> Iterator[None]:
    """Make a package look as if it were not installed, as long as the body runs.

    Fabric imports torchmetrics only to ask for its version, and with it torchvision and scipy: a
    third of the seconds before a training begins.
    """
    before = sys.modules.get(name)
    sys.modules[name] = before  # type: ignore[assignment]  # None: an import of it fails
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
