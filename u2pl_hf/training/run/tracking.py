"""What a run tells while it goes: a progress bar on stderr, metrics.jsonl, and its lines to experiment trackers.

metrics.jsonl has every number, so no tracker of accelerate's (TensorBoard, wandb, trackio ...) is worth a run: one that
fails on the way is dropped with a warning. Trackers live on the main process.
"""

import difflib
import importlib
import itertools
import json
import logging
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, TensorBoardTracker
from accelerate.utils import LoggerType
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from u2pl_hf.errors import refuse, refusing
from u2pl_hf.evaluation.curves import read_metrics
from u2pl_hf.files import read_text, write_text
from u2pl_hf.method import StepOutput
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.run.health import Health

if TYPE_CHECKING:
    from u2pl_hf.training.build import Run

logger = logging.getLogger(__name__)

PROJECT = "u2pl_hf"


class RunTensorBoard(TensorBoardTracker):
    """accelerate's TensorBoard tracker, with one event file per start, all of them in OUTPUT_DIR/tensorboard.

    TensorBoard follows one file of a folder at a time; accelerate's own class writes the settings into a second one, in
    a folder that is a run of its own for TensorBoard.
    """

    def store_init_configuration(self, values: dict) -> None:
        """The HPARAMS tab: one row per run, with its mean IoU."""
        from torch.utils.tensorboard.summary import hparams

        experiment, session_start, _ = hparams(values, {"eval_mean_iou": 0.0})
        for summary in (experiment, session_start):
            self.writer.file_writer.add_summary(summary)
        self.writer.flush()


def choose_trackers(args: RunArguments) -> list[str | GeneralTracker] | None:
    """--trackers as Accelerator's `log_with`; `auto` is TensorBoard where it can be imported, else nothing.

    Raises:
        InputError: a name is unknown, not installed, or stands beside `none`.
    """
    names = dict.fromkeys(args.trackers)
    refuse(_rules([*names]))
    chosen: list = [name for name in names if name not in ("auto", "none", "tensorboard")]
    if {"auto", "tensorboard"} & names.keys() and _is_importable("tensorboard"):
        chosen.append(RunTensorBoard("tensorboard", args.output_dir))
    # accelerate warns of an empty list.
    return chosen or None


def _rules(names: list[str]) -> Iterator[tuple[bool, str]]:
    yield "none" in names and len(names) > 1, f"--trackers {' '.join(names)}: none goes with no other name"
    known = ["auto", "none", *LOGGER_TYPE_TO_CLASS]
    for name in names:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"pass one of {', '.join(known)}"
        yield name not in known, f"--trackers {name}: no such tracker; {hint}"
        missing = f"--trackers {name}: it is not installed; pip install {name}, or pass --trackers none"
        # Others than accelerate's own were registered with it by the caller.
        yield name in LoggerType and not _is_importable(name), missing


def _is_importable(name: str) -> bool:
    """Whether a tracker can be used; accelerate would take a package that is there but broken."""
    try:
        importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError:
        return False
    return True


def _start_trackers(accelerator: Accelerator, args: RunArguments, first_step: int) -> None:
    """Start the trackers of a run.

    Args:
        accelerator: made with `log_with=choose_trackers(args)`.
        args: name of the run, and its settings.
        first_step: steps done by earlier starts of this run.

    Raises:
        InputError: a tracker cannot start, such as without a login.
    """
    boards = [tracker for tracker in accelerator.log_with if isinstance(tracker, RunTensorBoard)]
    if "auto" in args.trackers and not boards:
        logger.info("no TensorBoard, so metrics.jsonl without curves; pip install u2pl_hf[tensorboard]")
    for board in boards:
        # What earlier starts wrote of later steps is hidden.
        board.init_kwargs["purge_step"] = first_step + 1
    # As trackers take them: lists as text, no None.
    settings = {name: value for name, value in args.recipe().items() if value is not None}
    settings |= {name: ", ".join(map(str, v)) for name, v in settings.items() if isinstance(v, list)}
    if accelerator.is_main_process:
        with refusing(Exception, f"--trackers {' '.join(args.trackers)}", "; mend it or pass --trackers none"):
            accelerator.init_trackers(PROJECT, settings, _init_kwargs(args, first_step))


def _init_kwargs(args: RunArguments, first_step: int) -> dict[str, dict]:
    """The run's name, and for those that can go on with a run, which one."""
    folder = Path(args.output_dir)
    name, id_path = folder.resolve().name, folder / "wandb_id.txt"
    trackio = {"name": name, "resume": "allow" if first_step else "never"}
    kwargs = {"trackio": trackio, "mlflow": {"run_name": name}, "swanlab": {"experiment_name": name}}
    if "wandb" in args.trackers:
        # Kept while a run goes on; new where one starts at step 0, since wandb drops steps that it has seen.
        if first_step == 0 or not id_path.is_file():
            write_text(id_path, uuid.uuid4().hex)
        kwargs["wandb"] = {"name": name, "id": read_text(id_path), "resume": "allow", "dir": str(folder)}
    return kwargs


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

    Args:
        run: what is told of.
        first: the step that it begins with.
        counted: what `counted` gave when that step was reached.

    Attributes:
        health: what went wrong so far, by these lines.

    Raises:
        InputError: a tracker cannot start, or metrics.jsonl is damaged.
    """

    def __init__(self, run: "Run", first: int, counted: dict[str, list[int]] | None = None):
        self.accelerator, self.main = run.accelerator, run.accelerator.is_main_process
        self.path, self.class_names, self.every = run.output.metrics_path, run.data.class_names, run.args.logging_steps
        _start_trackers(run.accelerator, run.args, first)
        # Without a terminal a line every few seconds is enough for a log file.
        pause = 0.5 if sys.stderr.isatty() else 20.0
        options = {"unit": "step", "dynamic_ncols": True, "mininterval": pause, "file": sys.stderr}
        self.bar = tqdm(total=run.args.max_steps, initial=first, disable=not self.main, **options)
        self.counts = {name: torch.tensor(c, device=run.accelerator.device) for name, c in (counted or {}).items()}
        if not self.main:
            # They are those of all processes.
            self.counts = {name: torch.zeros_like(count) for name, count in self.counts.items()}
        history = read_metrics(self.path) if self.path.is_file() else []
        self.health = Health(history, run.args.settled(), run.data.labelled_shares)
        self._open_window()

    def _open_window(self) -> None:
        """What images/s are counted over begins."""
        self.window_start, self.window_images = time.perf_counter(), 0

    def counted(self) -> dict[str, list[int]]:
        """The counts since the last logged step over all processes, which all call it: one read from the device."""
        if not self.counts:
            return {}
        counts = self.accelerator.reduce(torch.stack([*self.counts.values()]), reduction="sum").tolist()
        return dict(zip(self.counts, counts, strict=True))

    def step(self, step: int, values: dict, learning_rate: float, images: int, counts: dict | None = None) -> None:
        """Count one finished step, on all processes.

        Args:
            step: its number, from 1.
            values: scalars or (C,), tensors or floats.
            learning_rate: it was done with.
            images: it saw, over all processes; in warm-up these are labelled ones alone.
            counts: tensors int64 (C,), of this process.
        """
        self.window_images += images
        self.counts |= {name: self.counts.get(name, 0) + count for name, count in (counts or {}).items()}
        if step % self.every == 0:
            numbers = process_means(values, self.accelerator)
            numbers |= {name: shares(count) for name, count in self.counted().items()}
            self.counts = {}
            speed = self.window_images / max(time.perf_counter() - self.window_start, 1e-9)
            told = {"learning_rate": learning_rate, "images_per_second": round(speed, 2)}
            self._write({"step": step} | numbers | told)
            losses = {name.replace("loss_", ""): v for name, v in numbers.items() if name.startswith("loss")}
            shown = {name: "nan" if value is None else f"{value:.3f}" for name, value in losses.items()}
            self.bar.set_postfix(shown | {"lr": f"{learning_rate:.1e}", "img/s": f"{speed:.1f}"}, refresh=False)
            self._open_window()
        self.bar.update()

    def evaluation(self, step: int, result: dict, distance: float | None = None) -> None:
        """Record an evaluation and the teacher's distance; its time does not count into images/s."""
        scores = {f"eval_{name}": value for name, value in result.items() if name != "step"}
        self._write({"step": step} | scores | ({} if distance is None else {"teacher_distance": distance}))
        score = "-" if result["mean_iou"] is None else f"{result['mean_iou']:.4f}"
        if self.main:
            self.bar.write(f"step {step}: mean IoU {score}", file=sys.stderr)
        self._open_window()

    def picture(self, step: int, picture: Image.Image) -> None:
        """Show the picture grid of an evaluation to the trackers."""
        pixels = np.asarray(picture)

        def show(tracker: GeneralTracker) -> None:
            # Some take no pictures, two of accelerate's take one, the others several.
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                shown = pixels if tracker.name in ("aim", "clearml") else pixels[None]
                tracker.log_images({"pictures": shown}, step=step, **options)

        self._each_tracker(show)

    def _write(self, content: dict) -> None:
        if self.main:
            with open(self.path, "a") as file:
                file.write(json.dumps(content) + "\n")
        values = curves(content, self.class_names)
        self._each_tracker(lambda tracker: tracker.log(values, step=content["step"]))
        self.health.note(content)

    def _each_tracker(self, act: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.accelerator.trackers):
            try:
                act(tracker)
            except Exception as error:
                self.accelerator.trackers.remove(tracker)
                reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
                logger.warning("tracker %s gets no more: %s; metrics.jsonl has it all", tracker.name, reason)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
        self._each_tracker(lambda tracker: tracker.finish())
        # What has ended takes nothing more.
        self.accelerator.trackers.clear()


def process_means(values: dict[str, Tensor | float], accelerator: Accelerator) -> dict[str, float | list | None]:
    """Means over all processes as Python numbers, tensors (C,) as lists: one collective, one read from the device.

    All processes call it with the same names. A NaN, such as of a class that a process has not seen, does not count;
    None where no process has a value. Values that are no tensors are those of this process.
    """
    tensors = {name: value.flatten().float() for name, value in values.items() if isinstance(value, Tensor)}
    flat = torch.cat(list(tensors.values()))
    known = ~flat.isnan()
    sums, counts = accelerator.reduce(torch.stack([flat.masked_fill(~known, 0.0), known.float()]), reduction="sum")
    read, numbers = iter((sums / counts).tolist()), dict(values)
    for name, own in tensors.items():
        part = [None if math.isnan(number) else number for number in itertools.islice(read, len(own))]
        numbers[name] = part if values[name].ndim else part[0]
    return numbers


def curves(line: dict, class_names: list[str]) -> dict[str, float]:
    """A line of metrics.jsonl as one number per name: numbers per class as name/class, IoU as eval_iou/class.

    None and what is no number are left out, and so is the step.
    """
    flat = {}
    for name, value in line.items():
        if isinstance(value, list) and len(value) == len(class_names):
            value = dict(zip(class_names, value, strict=True))
        if isinstance(value, dict):
            flat |= {f"{name.replace('per_class_', '')}/{key}": number for key, number in value.items()}
        elif name != "step":
            flat[name] = value
    return {name: number for name, number in flat.items() if isinstance(number, int | float)}


def mean_values(outputs: list[StepOutput]) -> dict[str, Tensor | float]:
    """Losses and statistics as means over the passes of a step."""
    told = [output.named | output.stats for output in outputs]
    return {name: sum(values[name] for values in told) / len(told) for name in told[0]}


def sums_of_counts(outputs: list[StepOutput]) -> dict[str, Tensor]:
    """Counts over the passes of a step."""
    return {name: sum(output.counts[name] for output in outputs) for name in outputs[0].counts}


def shares(counts: list[int]) -> list[float] | None:
    """Counts as parts of their sum; None where that is 0."""
    return [count / sum(counts) for count in counts] if sum(counts) else None
