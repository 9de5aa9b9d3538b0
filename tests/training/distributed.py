"""Real processes on one machine, for tests: of a script, or two of a function; gloo, one thread each."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank: int, port: int) -> dict[str, str]:
    """What a launcher would set for one of two processes."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1"}  # fmt: skip


# Loaded once, by a server that every process is a copy of: Python and these take nine seconds.
multiprocessing.set_forkserver_preload(
    ["u2pl_hf.commands.train", "u2pl_hf.commands.evaluate", "matplotlib.pyplot", "torch.utils.tensorboard"]
)


def _start(rank: int, work: Callable, port: int, inherited: dict, arguments: tuple) -> None:
    os.environ |= inherited | environment(rank, port)
    torch.set_num_threads(1)
    work(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_two_processes(work: Callable, *arguments: Path | str | int | dict) -> None:
    """Run a function of a module on two processes; an exception in either fails the test."""
    passed = (work, free_port(), dict(os.environ), arguments)
    torch.multiprocessing.start_processes(_start, passed, nprocs=2, start_method="forkserver")


class Script:
    """A started script, in a session of its own; what it says goes to a file.

    Not all is as of a Python of its own: what is loaded read the environment before, all have one order of sets, and
    what is registered with atexit is not called.

    Args:
        path: of the script.
        arguments: its command line.
        log: file to write; it must not be there yet.
        variables: of the environment, with those of this process.
    """

    def __init__(self, path: Path, arguments: list[str], log: Path, **variables: str):
        passed = (path, [str(argument) for argument in arguments], log, os.environ | variables)
        self._log, self._process = log, multiprocessing.get_context("forkserver").Process(target=_script, args=passed)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code; None as long as it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """The script and all that it started, where it is not dead yet."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Wait for it: its exit code, and what it said."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            # Else pytest would wait for it at its own end.
            self.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self._log.read_text()}")
        return self._process.exitcode, self._log.read_text()


def _script(path: Path, arguments: list[str], log: Path, variables: dict[str, str]) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for output in (1, 2):
        os.dup2(descriptor, output)
    os.environ |= variables
    torch.set_num_threads(1)
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")
