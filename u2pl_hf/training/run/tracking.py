"""What a run tells while it goes: a progress bar on stderr, metrics.jsonl, and its lines to experiment trackers."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from u2pl_hf.method import StepOutput
from u2pl_hf.training.run.trackers import ExperimentTrackers


class Clock:
    """A run's time in seconds, evaluations and earlier parts of a resumed run included.

    Attributes:
        seconds_of: what it spends besides training.
    """

    def __init__(self):
        self.started = time.perf_counter()
        self.seconds_of = {"evaluation": 0.0, "checkpoints": 0.0, "pictures": 0.0, "logging": 0.0}

    @property
    def seconds(self) -> float:
        """All of it, until now."""
        return time.perf_counter() - self.started

    def go_on(self, seconds: float, seconds_of: dict[str, float]) -> None:
        """Add what earlier parts took."""
        self.started -= seconds
        self.seconds_of |= seconds_of

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds_of[what] += time.perf_counter() - start


class Progress:
    """Progress bar (losses, learning rate, images/s, time left) and one JSON line per logged step or evaluation.

    Values stay on the device until a logged step, where their means over all processes are read in one transfer. As a
    context, it is closed at its end, whatever happens.
    """

    def __init__(
        self,
        metrics_path: Path,
        accelerator: Accelerator,
        trackers: ExperimentTrackers,
        class_names: list[str],
        *,
        total: int,
        initial: int,
        every: int,
    ):
        self.accelerator, self.trackers, self.class_names = accelerator, trackers, class_names
        self.every, self.main = every, accelerator.is_main_process
        self.bar = tqdm(
            total=total, initial=initial, disable=not self.main, file=sys.stderr, unit="step", dynamic_ncols=True
        )
        # Without a terminal a line every few seconds is enough for a log file.
        self.bar.mininterval = 0.5 if sys.stderr.isatty() else 20.0
        self.file = open(metrics_path, "a", buffering=1) if self.main else None  # noqa: SIM115 (for the whole run)
        self.window_start, self.window_images = time.perf_counter(), 0

    def step(self, step: int, values: dict[str, Tensor | float], learning_rate: float, images: int) -> None:
        """Count one finished step, on all processes.

        Args:
            step: its number, from 1.
            values: scalars or (C,).
            learning_rate: it was done with.
            images: it saw, over all processes; in warm-up these are labelled ones alone.
        """
        self.window_images += images
        if step % self.every == 0:
            numbers = process_means(values, self.accelerator)
            if self.main:
                self._log_step(step, numbers, learning_rate)
            self.window_start, self.window_images = time.perf_counter(), 0
        self.bar.update()

    def _log_step(self, step: int, numbers: dict, learning_rate: float) -> None:
        seconds = time.perf_counter() - self.window_start
        speed = self.window_images / max(seconds, 1e-9)
        self._write({"step": step} | numbers | {"learning_rate": learning_rate, "images_per_second": round(speed, 2)})
        losses = {name.replace("loss_", ""): v for name, v in numbers.items() if name.startswith("loss")}
        shown = {name: "nan" if value is None else f"{value:.3f}" for name, value in losses.items()}
        self.bar.set_postfix(shown | {"lr": f"{learning_rate:.1e}", "img/s": f"{speed:.1f}"}, refresh=False)

    def evaluation(self, step: int, result: dict) -> None:
        """Record an evaluation; its time does not count into images/s."""
        if self.main:
            self._write({"step": step} | {f"eval_{name}": value for name, value in result.items() if name != "step"})
            score = "-" if result["mean_iou"] is None else f"{result['mean_iou']:.4f}"
            self.bar.write(f"step {step}: mean IoU {score}", file=sys.stderr)
        self.window_start, self.window_images = time.perf_counter(), 0

    def picture(self, step: int, picture: Image.Image) -> None:
        """Show the picture grid of an evaluation to the trackers."""
        self.trackers.picture("pictures", picture, step)

    def _write(self, content: dict) -> None:
        self.file.write(json.dumps(content) + "\n")
        self.trackers.log(curves(content, self.class_names), content["step"])

    def close(self) -> None:
        """End the bar, the trackers and the file."""
        self.bar.close()
        self.trackers.finish()
        if self.file:
            self.file.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def process_means(values: dict[str, Tensor | float], accelerator: Accelerator) -> dict[str, float | list | None]:
    """Means over all processes as Python numbers, tensors (C,) as lists: one collective, one read from the device.

    All processes call it with the same names. A NaN, such as of a class that a process has not seen, does not count;
    None where no process has a value. Values that are no tensors are those of this process.
    """
    tensors = {name: value.flatten().float() for name, value in values.items() if isinstance(value, Tensor)}
    flat = torch.cat(list(tensors.values()))
    known = ~flat.isnan()
    sums, counts = accelerator.reduce(torch.stack([flat.masked_fill(~known, 0.0), known.float()]), reduction="sum")
    read, numbers, start = (sums / counts).tolist(), dict(values), 0
    for name, own in tensors.items():
        part = [None if math.isnan(number) else number for number in read[start : start + len(own)]]
        numbers[name] = part if values[name].ndim else part[0]
        start += len(own)
    return numbers


def curves(line: dict, class_names: list[str]) -> dict[str, float]:
    """A line of metrics.jsonl as one number per name: numbers per class as name/class, IoU as eval_iou/class.

    None and what is no number are left out, and so is the step.
    """
    flat = {}
    for name, value in line.items():
        if isinstance(value, dict):
            flat |= {f"{name.replace('per_class_', '')}/{key}": number for key, number in value.items()}
        elif isinstance(value, list) and len(value) == len(class_names):
            flat |= {f"{name}/{key}": number for key, number in zip(class_names, value, strict=True)}
        elif name != "step":
            flat[name] = value
    return {name: number for name, number in flat.items() if isinstance(number, int | float)}


def mean_values(outputs: list[StepOutput]) -> dict[str, Tensor | float]:
    """Losses and statistics as means over the passes of a step."""
    told = [output.named | output.stats for output in outputs]
    return {name: sum(values[name] for values in told) / len(told) for name in told[0]}
