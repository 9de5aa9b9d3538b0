"""Finding a loss that is not finite, without waiting for the device at each step."""

import logging
import math
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from u2pl_hf.errors import TrainingError
from u2pl_hf.files import write_json

logger = logging.getLogger(__name__)
# A gradient scaler that starts too high skips some steps; one that goes on skipping has nothing left to scale.
SKIPS_IN_A_ROW = 20


class FiniteLosses:
    """Takes down losses and ids of each step on the device, and looks at them when asked.

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
        finite = self._everywhere(finite)
        for place, good in enumerate(finite.tolist()):
            self.in_a_row = 0 if good else self.in_a_row + 1
            if self.in_a_row > self.allowed:
                self._stop(place)
            if not good:
                logger.warning("step %d: the loss is not finite; the step was skipped", self.noted[place][0])
        self.noted.clear()

    def _everywhere(self, finite: Tensor) -> Tensor:
        if self.accelerator.num_processes > 1:
            finite = finite.int()
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        return finite.bool()

    def _stop(self, place: int) -> None:
        """Every process writes down its batch; the main one tells of the first that is to blame."""
        step, losses, ids = self.noted[place]
        told = {name: str(value.item()) for name, value in losses.items()}
        path = self.path.with_stem(f"{self.path.stem}_{self.accelerator.process_index}")
        write_json(path, {"step": step, "losses": told, "ids": ids})
        numbers = ", ".join(f"{name} {value}" for name, value in told.items())
        guilty = not all(math.isfinite(float(value)) for value in losses.values())
        numbers, path = next((n, p) for n, p, is_guilty in gather_object([(numbers, path, guilty)]) if is_guilty)
        if not self.accelerator.is_main_process:
            sys.exit(1)
        raise TrainingError(
            f"the loss is not finite at step {step} ({numbers}); its images are in {path}. Start again in another "
            "--output_dir with a lower --learning_rate, --max_grad_norm 1, or --mixed_precision bf16 instead of fp16"
        )
