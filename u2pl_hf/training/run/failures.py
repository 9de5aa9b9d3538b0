"""What can end a run besides the user's input, told in one line: what happened, what was kept, what to change."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from u2pl_hf.errors import TrainingError
from u2pl_hf.training.run.checkpoint import MANIFEST, in_order

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = ("can't allocate memory", "not enough memory")
PROCESS_LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "Broken pipe")


@contextmanager
def failures_in_one_line(output_dir: Path) -> Iterator[None]:
    """Turn the known ways in which a run breaks off into a TrainingError; everything else passes as it is.

    Raises:
        TrainingError: out of memory, out of disk space, or another process has gone.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
        what = _explain(error, output_dir)
        if what is None:
            raise
        raise TrainingError(f"{what}; {_kept(output_dir)}") from error


def _explain(error: Exception, output_dir: Path) -> str | None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in text for part in NO_MEMORY):
        return (
            f"out of memory ({(text.strip() or 'MemoryError').splitlines()[0]}): halve --batch_size and "
            "--unlabelled_batch_size, but not below 2, and double --gradient_accumulation_steps, lower --crop_size, or "
            "pass --gradient_checkpointing true; an evaluation needs less with --eval_mode slide or a smaller "
            "--eval_batch_size, network and queues with a smaller --head_channels or --queue_length"
        )
    # safetensors passes the system's error on as text.
    if getattr(error, "errno", None) in NO_SPACE or any(f"os error {code}" in text for code in NO_SPACE):
        return f"no space left for {output_dir}: free some, or pass a smaller --keep_checkpoints"
    if any(part in text for part in PROCESS_LOST):
        return "another process of this run has ended; its message, if any, stands above or below this one"
    return None


def _kept(output_dir: Path) -> str:
    complete = [path.name for path in in_order(output_dir / "checkpoints") if (path / MANIFEST).is_file()]
    if not complete:
        return "there is no checkpoint yet"
    return f"checkpoint {complete[-1]} is complete, and the same command goes on from there"
