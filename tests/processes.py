"""Real processes for tests, without the seconds that each would spend on importing torch.

They are forked from a server that has imported it once and done nothing else: no test's threads,
files or settings are in it.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

HEAVY = ["lightning_fabric", "pytest", "srlab.cli", "srlab.training.recipes", "torch"]


def start(
    work: Callable, *arguments: object, log: Path, environment: dict[str, str] | None = None
) -> BaseProcess:
    """Begin ``work(*arguments)``, a function of a test's module, in a process of its own.

    Args:
        log: the file that takes the process's standard output and errors.
        environment: beside that of this process.

    Returns:
        The process: ``pid``, ``exitcode`` (negative: by a signal), ``kill()``, ``join()``.
    """
    variables = dict(os.environ) | (environment or {})
    given = (work, arguments, log, variables)
    # If a test fails before its end, a process ends with pytest.
    process = _server().Process(target=_child, args=given, daemon=True)
    process.start()
    return process


def srlab(*arguments: object) -> None:
    """The command line, as ``python -m srlab`` calls it."""
    from srlab import cli

    sys.argv = ["srlab", *map(str, arguments)]
    cli.main()


def _server() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    return context


def _child(work: Callable, arguments: tuple, log: Path, variables: dict[str, str]) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(variables)
    import torch

    torch.set_num_threads(1)
    work(*arguments)
