"""Real processes for tests, without the seconds that each would spend on importing torch.

They are forked from a server that has imported it once and done nothing else: no test's threads,
files or settings are in it.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

HEAVY = ["pytest", "srlab.cli", "srlab.training.recipes", "srlab.viz.figures", "torch._dynamo"]
HEAVY += ["ipykernel.ipkernel", "ipykernel.kernelapp", "scipy.stats"]


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


class Kernel:
    """A notebook's kernel, forked as well: what jupyter_client asks of a ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def __init__(
        self, command: list[str], env: dict[str, str], cwd: str | None = None, **_: object
    ):
        given = (command[command.index("-f") :], env, cwd)
        self._process = _server().Process(target=_kernel, args=given, daemon=True)
        self._process.start()
        self.pid = self._process.pid
        # Signals go to its process group: until it has one of its own, they would reach us.
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.01)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


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


def _kernel(arguments: list[str], variables: dict[str, str], folder: str | None) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(variables, JPY_PARENT_PID=str(os.getppid()))  # with it the kernel ends, too
    os.chdir(folder or ".")
    import torch
    from ipykernel.kernelapp import launch_new_instance

    torch.set_num_threads(int(variables.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    launch_new_instance(argv=arguments)
