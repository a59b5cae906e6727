"""Errors of a device or of a lost process, in words that say what to do."""

import functools
import inspect
import re
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from srlab.errors import SrlabError


class OutOfMemory(SrlabError):
    """The batch does not fit into the device's memory."""


class LostProcess(SrlabError):
    """Another process of a distributed run has ended."""


# What gloo and NCCL say when the other side is gone.
_GONE = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|timed? ?out|remote process",
    re.IGNORECASE,
)


def explained(train: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a training function with arguments ``generator``, ``config``, ``folder`` and others.

    Out of memory, it tries the same training for two steps with half the batch, a quarter, ... and
    says which fits.
    """

    @functools.wraps(train)
    def wrapper(*args: Any, **options: Any) -> Any:
        given = inspect.signature(train).bind(*args, **options).arguments
        try:
            return train(**given)
        except torch.OutOfMemoryError as error:
            first = str(error).strip().splitlines()[0]
            several = _world_size() > 1
        except RuntimeError as error:
            if _world_size() == 1 or not _GONE.search(str(error)):
                raise
            raise LostProcess(
                f"another process of this run has ended, so rank {torch.distributed.get_rank()} "
                f"stops, too. The last checkpoint, if there was one, is kept in "
                f"{given['folder']}: start all processes again by the same command to go on."
            ) from error
        # Out of the block above, so that the failed step's tensors are free again.
        config = given["config"]
        tried = f"batch size {config.batch_size}, patch size {config.patch_size}: {first}."
        # Alone among several, a probe would wait for the others for ever.
        fits = 0 if several else _batch_that_fits(train, given)
        if fits:
            advice = f"--batch-size {fits} fits (batch_size={fits} in a notebook)."
        elif several:
            advice = f"try --batch-size {max(config.batch_size // 2, 1)}, which is that of each."
        else:
            advice = "not even one crop fits: take a smaller --patch-size, or --device cpu."
        raise OutOfMemory(f"out of memory with {tried} {advice}")

    return wrapper


def _batch_that_fits(train: Callable[..., Any], given: dict[str, Any]) -> int:
    """The largest of half the batch size, a quarter, ... that two steps succeed with; 0 if none."""
    config = given["config"]
    size = config.batch_size // 2
    while size:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        small = replace(config, batch_size=size, steps=2, checkpoint_every=0, validate_every=0)
        networks = {k: deepcopy(v) for k, v in given.items() if k in ("generator", "critic")}
        with tempfile.TemporaryDirectory() as folder:
            quiet = {"config": small, "folder": folder, "progress": False}
            try:
                train(**given | networks | quiet | {"validate": None, "on_step": None})
                return size
            except torch.OutOfMemoryError:
                size //= 2
    return 0


def _world_size() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1
