"""Experiment trackers of accelerate (TensorBoard, wandb, trackio ...): metrics.jsonl as curves, and the pictures.

metrics.jsonl has every number, so no tracker is worth a run: one that fails on the way is dropped with a warning.
Trackers live on the main process; on the others, nothing here does anything.
"""

import difflib
import importlib
import logging
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, TensorBoardTracker, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from u2pl_hf.errors import InputError
from u2pl_hf.files import read_text, write_text
from u2pl_hf.training.recipe.arguments import RunArguments

logger = logging.getLogger(__name__)

PROJECT = "u2pl_hf"


class RunTensorBoard(TensorBoardTracker):
    """accelerate's TensorBoard tracker, with one event file per start, all of them in OUTPUT_DIR/tensorboard.

    TensorBoard follows one file of a folder at a time; accelerate's own class writes the settings into a second one, in
    a folder that is a run of its own for TensorBoard.
    """

    def __init__(self, output_dir: str):
        super().__init__("tensorboard", output_dir)

    def replace_from(self, step: int) -> None:
        """Hide events of earlier starts at `step` and later; to be called before `start`."""
        self.init_kwargs["purge_step"] = step

    def store_init_configuration(self, values: dict) -> None:
        """The HPARAMS tab: one row per run, with its mean IoU."""
        from torch.utils.tensorboard.summary import hparams

        experiment, session_start, _ = hparams(values, {"eval_mean_iou": 0.0})
        for summary in (experiment, session_start):
            self.writer.file_writer.add_summary(summary)
        self.writer.flush()

    def log_images(self, values: dict, step: int | None = None, **kwargs) -> None:
        """Values: lists of pictures (H,W,3), as wandb takes them."""
        for name, pictures in values.items():
            self.writer.add_images(name, np.stack(pictures), step, dataformats="NHWC", **kwargs)
        self.writer.flush()


def choose_trackers(args: RunArguments) -> list[str | GeneralTracker] | None:
    """--trackers as Accelerator's `log_with`; `auto` is TensorBoard where it can be imported, else nothing.

    Raises:
        InputError: a name is unknown, not installed, or stands beside `none`.
    """
    names = list(dict.fromkeys(args.trackers))
    if "none" in names and len(names) > 1:
        raise InputError(f"--trackers {' '.join(names)}: none goes with no other name")
    for name in names:
        if name not in ("auto", "none"):
            _check(name)
    if "tensorboard" in names or ("auto" in names and _importable("tensorboard")):
        names.append(RunTensorBoard(args.output_dir))
    # accelerate warns of an empty list.
    return [name for name in names if name not in ("auto", "none", "tensorboard")] or None


def _check(name: str) -> None:
    if name not in LOGGER_TYPE_TO_CLASS:
        known = ["auto", "none", *LOGGER_TYPE_TO_CLASS]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"pass one of {', '.join(known)}"
        raise InputError(f"--trackers {name}: no such tracker; {hint}")
    if not _importable(name):
        raise InputError(f"--trackers {name}: it is not installed; pip install {name}, or pass --trackers none")


def _importable(name: str) -> bool:
    """Whether a tracker can be used; accelerate alone would take a package that is there but broken."""
    if name not in LoggerType:
        return True  # registered with accelerate by the caller
    try:
        importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError:
        return False
    return LoggerType(name) in get_available_trackers()


class ExperimentTrackers:
    """The trackers of a run, started.

    Args:
        accelerator: made with `log_with=choose_trackers(args)`.
        args: name of the run, and its settings.
        first_step: steps done by earlier starts of this run.

    Raises:
        InputError: a tracker cannot start, such as without a login.
    """

    def __init__(self, accelerator: Accelerator, args: RunArguments, first_step: int):
        self.accelerator = accelerator
        boards = [tracker for tracker in accelerator.log_with if isinstance(tracker, RunTensorBoard)]
        if "auto" in args.trackers and not boards and accelerator.is_main_process:
            logger.info("no TensorBoard, so metrics.jsonl without curves; pip install u2pl_hf[tensorboard]")
        for board in boards:
            board.replace_from(first_step + 1)
        if accelerator.is_main_process:
            self._start(args, first_step)

    def _start(self, args: RunArguments, first_step: int) -> None:
        settings = flat_recipe(args.recipe())
        try:
            self.accelerator.init_trackers(PROJECT, settings, _init_kwargs(args, first_step))
        except Exception as error:
            names = " ".join(args.trackers)
            raise InputError(f"--trackers {names}: {_one_line(error)}; mend it or pass --trackers none") from error

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers of a step."""
        self._each(lambda tracker: tracker.log(values, step=step))

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """A picture of a step, to those that take pictures."""
        pixels = np.asarray(picture)
        self._each(lambda tracker: _log_picture(tracker, name, pixels, step))

    def finish(self) -> None:
        """End all of them."""
        self._each(lambda tracker: tracker.finish())
        # What has ended takes nothing more.
        self.accelerator.trackers.clear()

    def _each(self, act: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.accelerator.trackers):
            try:
                act(tracker)
            except Exception as error:
                self.accelerator.trackers.remove(tracker)
                logger.warning("tracker %s gets no more: %s; metrics.jsonl has it all", tracker.name, _one_line(error))


def _log_picture(tracker: GeneralTracker, name: str, pixels: np.ndarray, step: int) -> None:
    # Not all trackers take pictures, and two of accelerate's take one where the others take a list.
    if hasattr(tracker, "log_images"):
        tracker.log_images({name: pixels if tracker.name in ("aim", "clearml") else [pixels]}, step=step)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def flat_recipe(recipe: dict) -> dict[str, str | float | bool]:
    """Settings as trackers take them: lists as text, no None."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in recipe.items()
        if value is not None
    }


def _init_kwargs(args: RunArguments, first_step: int) -> dict[str, dict]:
    """The run's name, and for those that can go on with a run, which one."""
    folder = Path(args.output_dir)
    name = folder.resolve().name
    kwargs = {
        "trackio": {"name": name, "resume": "allow" if first_step else "never"},
        "mlflow": {"run_name": name},
        "clearml": {"task_name": name},
        "swanlab": {"experiment_name": name},
    }
    if "wandb" in args.trackers:
        run_id = _run_id(folder / "wandb_id.txt", first_step)
        kwargs["wandb"] = {"name": name, "id": run_id, "resume": "allow", "dir": str(folder)}
    return kwargs


def _run_id(path: Path, first_step: int) -> str:
    """Kept while a run goes on; new where one starts at step 0, since wandb drops steps that it has seen."""
    if first_step == 0 or not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return read_text(path)
