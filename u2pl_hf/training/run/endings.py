"""What can end a run before its last step: a signal, losses that are not finite, no memory, no disk, a lost process.

Each is told in one line: what happened, what was kept, what to change. All processes end at the same step.
"""

import errno
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor

from u2pl_hf.errors import Stopped, TrainingError
from u2pl_hf.files import write_json
from u2pl_hf.training.run.checkpoint import MANIFEST, in_order

logger = logging.getLogger(__name__)

# USR1 is what Slurm and others are asked to send some time before the end; Windows does not know it.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
# Launchers pass on a signal that the terminal or the scheduler has already sent to all: that is no second wish.
REPEAT_SECONDS = 3.0
# A gradient scaler that starts too high skips some steps; one that goes on skipping has nothing left to scale.
SKIPS_IN_A_ROW = 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = ("can't allocate memory", "not enough memory")
PROCESS_LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "Broken pipe")


class StopRequest:
    """Catches signals while the `with` lasts. A second Ctrl-C, some seconds after the first, ends the run at once.

    Processes get a signal at different moments and must stop at the same step: a checkpoint is a collective affair.
    They tell each other at each step, on the host: the GPU is never waited for.
    """

    def __init__(self, accelerator: Accelerator):
        self.number, self.since = 0, 0.0
        self.at_once: int | None = None
        self.before: dict = {}
        self.group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        self.pending: tuple | None = None

    def __enter__(self) -> "StopRequest":
        # Python only allows handlers in the main thread; elsewhere (a notebook's worker) signals stay as they are.
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind, *_) -> None:
        if self.pending and kind in (None, Stopped, TrainingError, SystemExit):
            # These end all processes at one step: all have started it, and going away under it would abort.
            self.pending[0].wait()
            torch.distributed.destroy_process_group(self.group)
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > REPEAT_SECONDS:
            raise KeyboardInterrupt
        if self.at_once is not None:
            raise Stopped(self.number, self.at_once)

    def agreed(self) -> int:
        """The signal that all processes stop for after this step, or 0. All must call it, once per step."""
        if self.group is None:
            return self.number
        before, flag = self.pending, torch.tensor(self.number)
        if before:
            # The answer of the step before: it has long arrived, so nobody waits.
            before[0].wait()
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, self.group, async_op=True)
        self.pending = (work, flag)
        return int(before[1]) if before else 0

    @contextmanager
    def immediate(self, step: int) -> Iterator[None]:
        """Inside, a signal raises Stopped at once: for work that a checkpoint of `step` makes good for."""
        self.at_once = step
        try:
            if self.number:
                raise Stopped(self.number, step)
            yield
        finally:
            self.at_once = None


class FiniteLosses:
    """Takes down losses and ids of each step on the device, and looks at them when asked: no step waits for it.

    Args:
        accelerator: all processes stop together.
        path: where the offending batch is written.
    """

    def __init__(self, accelerator: Accelerator, path: Path):
        self.accelerator, self.path = accelerator, path
        self.allowed = SKIPS_IN_A_ROW if accelerator.scaler is not None else 0
        self.in_a_row = 0
        self.noted: list[tuple[int, dict[str, Tensor], list[str]]] = []

    def note(self, step: int, losses: dict[str, Tensor], ids: list[str]) -> None:
        """Remember the losses (detached scalars) and the images of a step."""
        self.noted.append((step, losses, ids))

    def check(self) -> None:
        """Look at all losses since the last check, with one read from the device.

        Raises:
            TrainingError: one is NaN or infinite; with a gradient scaler, more than SKIPS_IN_A_ROW in succession.
        """
        if not self.noted:
            return
        finite = torch.stack([torch.stack([*losses.values()]).isfinite().all() for _, losses, _ in self.noted])
        finite = self.accelerator.reduce(finite.int(), "sum") == self.accelerator.num_processes
        for noted, good in zip(self.noted, finite.tolist(), strict=True):
            self.in_a_row = 0 if good else self.in_a_row + 1
            if self.in_a_row > self.allowed:
                self._stop(*noted)
            if not good:
                logger.warning("step %d: the loss is not finite; the step was skipped", noted[0])
        self.noted.clear()

    def _stop(self, step: int, losses: dict[str, Tensor], ids: list[str]) -> None:
        """Every process writes down its batch; the main one tells of the first that is to blame."""
        told = {name: str(value.item()) for name, value in losses.items()}
        path = self.path.with_stem(f"{self.path.stem}_{self.accelerator.process_index}")
        write_json(path, {"step": step, "losses": told, "ids": ids})
        numbers = ", ".join(f"{name} {value}" for name, value in told.items())
        guilty = not all(math.isfinite(float(value)) for value in told.values())
        numbers, path = next((n, p) for n, p, is_guilty in gather_object([(numbers, path, guilty)]) if is_guilty)
        if not self.accelerator.is_main_process:
            sys.exit(1)
        raise TrainingError(
            f"the loss is not finite at step {step} ({numbers}); its images are in {path}. Start again in another "
            "--output_dir with a lower --learning_rate, --max_grad_norm 1, or --mixed_precision bf16 instead of fp16"
        )


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
        complete = [path.name for path in in_order(output_dir / "checkpoints") if (path / MANIFEST).is_file()]
        kept = f"checkpoint {complete[-1]} is complete, and the same command goes on from there" if complete else None
        raise TrainingError(f"{what}; {kept or 'there is no checkpoint yet'}") from error


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
