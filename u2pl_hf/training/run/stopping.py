"""Stopping on a signal (pre-emption, Ctrl-C) at a point where nothing is lost, all processes at the same step."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from u2pl_hf.errors import Stopped, TrainingError

# USR1 is what Slurm and others are asked to send some time before the end; Windows does not know it.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

# Launchers pass on a signal that the terminal or the scheduler has already sent to all: that is no second wish.
REPEAT_SECONDS = 3.0


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
        self.before = {}

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
        # The answer of the step before: it has long arrived, so nobody waits.
        number = 0
        if self.pending:
            work, flag = self.pending
            work.wait()
            number = int(flag)
        flag = torch.tensor(self.number)
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, self.group, async_op=True)
        self.pending = (work, flag)
        return number

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
