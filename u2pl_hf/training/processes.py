"""Several processes as one run: agreed errors, BatchNorm over all images, the global batch."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, gather_object
from torch import Tensor, nn

from u2pl_hf.errors import InputError, TrainingError

logger = logging.getLogger(__name__)
Value = TypeVar("Value")
# Longer than the slowest thing that one process does alone: decoding and drawing pictures, writing a checkpoint.
TIMEOUT = timedelta(minutes=30)


def start_accelerator(**options) -> Accelerator:
    """Join the other processes, if a launcher started some; `options` go to Accelerator."""
    # Running statistics are made equal by us (average_running_statistics), not overwritten by the first process's.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=TIMEOUT)], **options)


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def together(accelerator: Accelerator, work: Callable[[], Value]) -> Value:
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
        if accelerator.num_processes == 1:
            raise
        failure = (type(error), str(error))
    if accelerator.num_processes == 1:
        return value
    first = next((found for found in gather_object([failure]) if found), None)
    if first is None:
        return value
    kind, message = first
    if accelerator.is_main_process:
        raise kind(message)
    sys.exit(1)


def synchronize_batchnorm(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """BatchNorm over the images of all processes, on GPUs; torch has no CPU kernel for it: there each has its own."""
    if accelerator.distributed_type == DistributedType.MULTI_GPU:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


@torch.no_grad()
def average_running_statistics(accelerator: Accelerator, models: Iterable[nn.Module]) -> None:
    """Make BatchNorm's running means and variances equal on all processes, with one collective.

    Where BatchNorm is not synchronised, each process has seen other images. Without this each would have a teacher,
    an evaluation and a checkpoint of its own.
    """
    if accelerator.num_processes == 1 or accelerator.distributed_type == DistributedType.MULTI_GPU:
        return
    statistics = [buffer for model in models for buffer in _running_statistics(model)]
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    pieces = flat.split([buffer.numel() for buffer in statistics])
    torch._foreach_copy_(statistics, [piece.view_as(b) for piece, b in zip(pieces, statistics, strict=True)])


def _running_statistics(model: nn.Module) -> list[Tensor]:
    return [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


def learning_rate_scale(labelled_per_step: int, reference: int | None, scale: bool) -> float:
    """The factor of --scale_lr: labelled images per step over the recipe's.

    Raises:
        InputError: --scale_lr without a reference to scale from.
    """
    if scale and reference is None:
        raise InputError(
            "--scale_lr needs --reference_batch_size, the labelled images per step that --learning_rate is meant for"
        )
    if reference not in (None, labelled_per_step) and not scale:
        logger.warning(
            "%d labelled images per step, but the learning rate is meant for %d: change the number of processes, "
            "--batch_size or --gradient_accumulation_steps, or pass --scale_lr true",
            labelled_per_step,
            reference,
        )
    return labelled_per_step / reference if scale else 1.0
