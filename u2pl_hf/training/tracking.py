"""What a run tells while it goes: a progress bar on stderr and metrics.jsonl."""

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm


class Tracker:
    """Progress bar (losses, learning rate, images/s, time left) and one JSON line per logged step or evaluation.

    Values stay on the device until a logged step, where all of them are read in one transfer.
    """

    def __init__(self, metrics_path: Path, *, total: int, initial: int, images_per_step: int, every: int, main: bool):
        self.every, self.images_per_step, self.main = every, images_per_step, main
        self.bar = tqdm(
            total=total, initial=initial, disable=not main, file=sys.stderr, unit="step", dynamic_ncols=True
        )
        # Without a terminal a line every few seconds is enough for a log file.
        self.bar.mininterval = 0.5 if sys.stderr.isatty() else 20.0
        self.file = open(metrics_path, "a", buffering=1) if main else None  # noqa: SIM115 (open for the whole run)
        self.window_start, self.window_steps = time.perf_counter(), 0

    def step(self, step: int, values: dict[str, Tensor | float], learning_rate: float) -> None:
        """Count one finished step; `step` counts from 1."""
        self.window_steps += 1
        if self.main and step % self.every == 0:
            seconds = time.perf_counter() - self.window_start
            speed = self.window_steps * self.images_per_step / max(seconds, 1e-9)
            numbers = read_values(values)
            self._write(
                {"step": step} | numbers | {"learning_rate": learning_rate, "images_per_second": round(speed, 2)}
            )
            losses = {name.replace("loss_", ""): v for name, v in numbers.items() if name.startswith("loss")}
            shown = {name: "nan" if value is None else f"{value:.3f}" for name, value in losses.items()}
            self.bar.set_postfix(shown | {"lr": f"{learning_rate:.1e}", "img/s": f"{speed:.1f}"}, refresh=False)
            self.window_start, self.window_steps = time.perf_counter(), 0
        self.bar.update()

    def evaluation(self, step: int, result: dict) -> None:
        """Record an evaluation; its time does not count into images/s."""
        if self.main:
            self._write({"step": step} | {f"eval_{name}": value for name, value in result.items() if name != "step"})
            score = "-" if result["mean_iou"] is None else f"{result['mean_iou']:.4f}"
            self.bar.write(f"step {step}: mean IoU {score}", file=sys.stderr)
        self.window_start, self.window_steps = time.perf_counter(), 0

    def _write(self, content: dict) -> None:
        self.file.write(json.dumps(content) + "\n")

    def close(self) -> None:
        """End the bar and the file."""
        self.bar.close()
        if self.file:
            self.file.close()


def read_values(values: dict[str, Tensor | float]) -> dict[str, float | list[float] | None]:
    """Values as Python numbers, tensors (C,) as lists, with one read from the device for all; NaN becomes None."""
    tensors = {name: value.flatten().float() for name, value in values.items() if isinstance(value, Tensor)}
    read = torch.cat(list(tensors.values())).tolist() if tensors else []
    numbers, start = dict(values), 0
    for name, flat in tensors.items():
        part = [None if math.isnan(number) else number for number in read[start : start + len(flat)]]
        numbers[name] = part if values[name].ndim else part[0]
        start += len(flat)
    return numbers
