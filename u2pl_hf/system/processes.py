"""Several processes as one run: agreed errors, BatchNorm over all images, the global batch."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object, parse_flag_from_env
from torch import Tensor, nn

from u2pl_hf.errors import InputError, TrainingError
from u2pl_hf.system.frozen import Frozen

logger = logging.getLogger(__name__)
Value = TypeVar("Value")
# The logger of what each process finds for itself.
EACH_PROCESS = "u2pl_hf.each_process"
# Longer than the slowest thing that one process does alone: decoding and drawing pictures, writing a checkpoint.
TIMEOUT = timedelta(minutes=30)


def join_processes() -> PartialState:
    """Meet the other processes, if a launcher started some.

    Raises:
        InputError: they do not find each other, or have no device to compute on together.
    """
    try:
        # Accelerator reads this variable, PartialState does not; without it CPU processes would not find each other.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
    except torch.distributed.DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"the processes do not find each other at {place} ({str(error).splitlines()[0]}); pass the first machine's "
            "address, and a port that is free there"
        ) from error
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > state.num_processes:
        # accelerate would let each run for itself, all into one folder.
        if torch.distributed.is_initialized():
            # A launcher ends all when it sees one leave, so the main process must be here to tell of it.
            torch.distributed.barrier()
            if torch.distributed.get_rank() > 0:
                sys.exit(InputError.exit_code)
        raise InputError(
            f"{started} processes were started, but there is no GPU for them; set ACCELERATE_USE_CPU=true to compute "
            "on the CPU"
        )
    if not state.is_main_process:
        # What all processes find alike is said by the main one.
        logging.getLogger("u2pl_hf").setLevel(logging.ERROR)
        logging.getLogger(EACH_PROCESS).setLevel(logging.WARNING)
    return state


@contextmanager
def joined_processes() -> Iterator[PartialState]:
    """Meet the other processes (see join_processes), and part from them at the end of the `with`."""
    state, in_order = join_processes(), False
    try:
        yield state
        in_order = True
    finally:
        # Of gloo's processes, one in a hundred aborts if its threads are running when it ends. NCCL would wait here for
        # the others, who may have failed.
        if torch.distributed.is_initialized() and (in_order or torch.distributed.get_backend() == "gloo"):
            torch.distributed.destroy_process_group()


def start_accelerator(unused_parameters: bool = False, **options) -> Accelerator:
    """Join the other processes, if a launcher started some; `options` go to Accelerator.

    unused_parameters: whether the network may have parameters that no loss depends on.
    """
    # Running statistics are made equal by us (average_running_statistics), not overwritten by the first process's.
    # torch 2.13 has a newer name for this, which accelerate does not pass on.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    ddp = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=unused_parameters
    )
    return Accelerator(kwargs_handlers=[ddp], **options)


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def together(processes: Accelerator | PartialState, work: Callable[[], Value]) -> Value:
    """Do `work` on every process and wait for all; an error that the user can mend ends all, and is told once.

    Without this the others would wait for the process that gave up.

    Raises:
        InputError, TrainingError: what the first process that failed raised, on the main process.
        SystemExit: on the others.
    """
    value, failure = None, None
    try:
        value = work()
    except (InputError, TrainingError) as error:
        if processes.num_processes == 1:
            raise
        failure = (type(error), str(error))
    if processes.num_processes == 1:
        return value
    first = next((found for found in gather_object([failure]) if found), None)
    if first is None:
        return value
    kind, message = first
    if processes.is_main_process:
        raise kind(message)
    sys.exit(kind.exit_code)


def synchronize_batchnorm(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """BatchNorm over the images of all processes, on GPUs; torch has no CPU kernel for it: there each has its own.

    What is frozen has no statistics to share, and stays what it is.
    """
    if accelerator.distributed_type != DistributedType.MULTI_GPU:
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, Frozen):
                setattr(parent, name, _synchronised(child))
    return model


def _synchronised(norm: nn.Module) -> nn.Module:
    if type(norm).__module__.startswith("timm."):
        from timm.layers import convert_sync_batchnorm

        # These hold the activation that comes after them, which torch's conversion would lose.
        return convert_sync_batchnorm(norm)
    return nn.SyncBatchNorm.convert_sync_batchnorm(norm)


@torch.no_grad()
def average_running_statistics(accelerator: Accelerator, models: Iterable[nn.Module]) -> None:
    """Make BatchNorm's running means and variances equal on all processes, with one collective.

    Where BatchNorm is not synchronised, each process has seen other images. Without this each would have a teacher,
    an evaluation and a checkpoint of its own.
    """
    if accelerator.num_processes == 1 or accelerator.distributed_type == DistributedType.MULTI_GPU:
        return
    statistics = [buffer for model in models for buffer in _running_statistics(model)]
    if not statistics:
        # A vision transformer under DPT has no BatchNorm.
        return
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    pieces = flat.split([buffer.numel() for buffer in statistics])
    torch._foreach_copy_(statistics, [piece.view_as(b) for piece, b in zip(pieces, statistics, strict=True)])


def _running_statistics(model: nn.Module) -> list[Tensor]:
    """Of all BatchNorm that is not frozen: equal numbers must not even be rounded."""
    moving = (module for module in model.modules() if not isinstance(module, Frozen))
    return [b for m in moving for name, b in m.named_buffers(recurse=False) if name in ("running_mean", "running_var")]
