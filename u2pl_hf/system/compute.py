"""How a prediction is computed, as opposed to what: number type, compilation, and what to do when memory is short."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from u2pl_hf.errors import TrainingError

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Networks inside run in `precision`; their logits are float32 again. Memory that runs out is told in one line.

    Raises:
        TrainingError: out of memory.
    """
    dtype = PRECISIONS[precision]
    try:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        raise TrainingError(
            f"out of memory ({text}): pass --mode slide, a smaller --window, --batch_size 1 or --window_batch 1"
        ) from error


def compile_model(model) -> None:
    """torch.compile in place; sizes may change from image to image without another compilation."""
    model.compile(dynamic=True)
