"""Two real processes on one machine, for tests: gloo, one thread each."""

import multiprocessing
import os
import socket
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


# Loaded once, by a server that every pair of processes is a copy of.
multiprocessing.set_forkserver_preload(
    ["u2pl_hf.training.trainer", "u2pl_hf.training.recipe.command", "u2pl_hf.commands.evaluate"]
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
