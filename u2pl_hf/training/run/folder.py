"""The output folder of one run, and whether a run may go on in it.

output_dir/
  config.json model.safetensors preprocessor_config.json README.md   the finished model (last step)
  best/                                                              the same, of the best evaluation, with its facts
  recipe.yaml labeled.txt metrics.jsonl results.json curves.png pictures/
  checkpoints/step-000200/                                           see checkpoint.py
"""

import logging
import time
from pathlib import Path
from typing import IO

import yaml
from PIL import Image

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.curves import metrics_lines
from u2pl_hf.files import TEMPORARY, read_yaml, remove, write_atomically, write_text
from u2pl_hf.hub.results import finished_results
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.run.checkpoint import damage, newest_complete, read_state
from u2pl_hf.training.run.failures import NO_SPACE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)
# The loading processes of a run that was killed hold its lock for some seconds more.
LOCK_SECONDS = 15.0
LOCK = ".lock"
# What a run that was killed, or found no space, may leave before it has written what it is.
LEFTOVERS = (TEMPORARY, ".*.old")
# How a global batch comes about: its images are the same, but BatchNorm and queues see them in other portions.
LAYOUT = ("batch_size", "unlabelled_batch_size", "gradient_accumulation_steps")


class RunFolder:
    """The output folder of one run."""

    def __init__(self, args: RunArguments):
        self.path = Path(args.output_dir)
        self.args = args
        self.results_path = self.path / "results.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.lock_file: IO | None = None

    def check(self) -> None:
        """Refuse a folder that holds something else than this very run.

        Raises:
            InputError: not a folder, files of something else, or a run with another recipe.
        """
        for path in (self.path, *self.path.parents):
            if path.exists() and not path.is_dir():
                raise InputError(f"--output_dir {self.path}: {path} is a file; pass a folder")
        if not self.path.is_dir():
            return
        if {*self.path.iterdir()} <= {self.path / LOCK, *_leftovers(self.path)}:
            return
        if self.args.resume == "never":
            raise InputError(f"--output_dir {self.path} is not empty; pass another folder or --resume auto")
        recipe = self.path / "recipe.yaml"
        content = read_yaml(recipe, "restore it, or pass another --output_dir") if recipe.is_file() else None
        if not isinstance(content, dict):
            raise InputError(f"--output_dir {self.path} is not empty and holds no run; pass another folder")
        self._compare(content, recipe)

    def check_labelled_ids(self, labelled_ids: list[str]) -> None:
        """Refuse to go on with other labelled images, where a list of the same name has changed.

        Raises:
            InputError: the run in this folder was started with other ids.
        """
        path = self.path / "labeled.txt"
        # As it was written: an id may have blanks at its ends, or a character that ends a line elsewhere.
        if path.is_file() and path.read_bytes().replace(b"\r\n", b"\n") != _id_lines(labelled_ids):
            raise InputError(f"--split {self.args.split} has other images than {path}; pass another --output_dir")

    def start(self, labelled_ids: list[str]) -> None:
        """Create the folder, write what was asked for, and clear away what a killed run left half-written.

        Raises:
            InputError: nothing can be written there, or another run is doing so.
            OSError: no space left.
        """
        try:
            self._start(labelled_ids)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            raise InputError(
                f"--output_dir {self.path} cannot be written to ({error.strerror}); pass another folder"
            ) from error

    def _start(self, labelled_ids: list[str]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        for folder in (self.path, self.path / "checkpoints"):
            for leftover in _leftovers(folder):
                remove(leftover)
        content = self.args.recipe() | {"output_dir": self.args.output_dir}
        write_text(self.path / "recipe.yaml", yaml.safe_dump(content, sort_keys=False))
        write_atomically(self.path / "labeled.txt", lambda p: p.write_bytes(_id_lines(labelled_ids)))

    def _lock(self) -> None:
        """Keep a second run out, such as one whose launcher was ended and which trains on. It ends with the process."""
        if fcntl is None:
            return
        self.lock_file = open(self.path / LOCK, "w")  # noqa: SIM115 (held as long as the run lasts)
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    self.unlock()
                    raise InputError(
                        f"--output_dir {self.path} is in use by a run that is still going on; wait for it or end it"
                    ) from None
                time.sleep(0.2)
            except OSError as error:
                return logger.warning("%s cannot be locked (%s): let no second run write there", self.path, error)

    def unlock(self) -> None:
        """Let others in, once nothing more is written."""
        if self.lock_file is not None:
            self.lock_file.close()
            self.lock_file = None

    def finished_results(self) -> dict | None:
        """The results of a run that is complete.

        Raises:
            InputError: results.json is not what a run wrote.
        """
        return finished_results(self.path) if self.results_path.is_file() else None

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def checkpoint_to_resume(self, data: dict, processes: int) -> Path | None:
        """The checkpoint that --resume asks for; None to start at step 0.

        Args:
            data: the data's fingerprint.
            processes: how many there are now.

        Raises:
            InputError: it is damaged, or of another recipe, other data or another number of processes.
        """
        if self.args.resume == "never":
            return None
        if self.args.resume == "auto":
            path = newest_complete(self.path / "checkpoints")
        else:
            path = Path(self.args.resume)
            if not (path / "state.json").is_file():
                raise InputError(f"--resume {path} is not a checkpoint folder (no state.json); pass auto or never")
            wrong = damage(path)
            if wrong is not None:
                raise InputError(f"--resume {path}: {wrong}; pass auto to take the newest undamaged checkpoint")
        if path is not None:
            self._check_state(path, data, processes)
        return path

    def _check_state(self, path: Path, data: dict, processes: int) -> None:
        state = read_state(path)
        self._compare(state.get("recipe", {}), path)
        self.check_data(path, state.get("data", {}), data)
        recipe = RunArguments(method=self.args.method).recipe() | state.get("recipe", {})
        there, here = ({"processes": n} | {name: r[name] for name in LAYOUT} for n, r in (
            (state.get("processes", 1), recipe), (processes, self.args.recipe())))  # fmt: skip
        if there == here:
            return
        if not self.args.change_processes:
            raise InputError(
                f"{path} was written by {there['processes']} processes and this run has {processes}: start "
                f"{there['processes']}, or pass --change_processes true to go on with the same images per step, though "
                "not to the same bits"
            )
        if _images_per_step(there) != _images_per_step(here):
            raise InputError(
                f"{path} has {_images_per_step(there)} labelled and unlabelled images per step, this run "
                f"{_images_per_step(here)}: make them equal with --gradient_accumulation_steps or --batch_size"
            )
        logger.warning("going on from %s with another layout of processes: the result will differ in its bits", path)

    def check_data(self, where: Path, there: dict, here: dict) -> None:
        """Refuse to go on with other data than those of `where`: fingerprints, of older versions with fewer kinds.

        Raises:
            InputError: names the first kind that is another.
        """
        changed = [kind for kind in here if kind in there and here[kind] != there[kind]]
        if changed:
            raise InputError(f"{where} was trained on other {changed[0]}; pass another --output_dir")

    def _compare(self, other: dict, where: Path) -> None:
        mine = self.args.recipe()
        # What a recipe of an older version does not name had no other value yet.
        other = RunArguments(method=self.args.method).recipe() | other
        skipped = LAYOUT if self.args.change_processes else ()
        changed = [name for name in mine if name not in skipped and mine[name] != other[name]]
        if changed:
            raise InputError(
                f"{where} belongs to another run: {changed[0]} is {other[changed[0]]} there and "
                f"{mine[changed[0]]} here; pass another --output_dir"
            )

    def save_picture(self, picture: Image.Image, step: int) -> None:
        """Keep the picture grid of an evaluation."""
        path = self.path / "pictures" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)

    def trim_metrics(self, step: int) -> None:
        """Drop lines of what is about to be done again: later steps, and the evaluation of this one."""
        if self.metrics_path.is_file():
            kept = [text for text, line in metrics_lines(self.metrics_path) if _is_before(line, step)]
            write_text(self.metrics_path, "".join(f"{text}\n" for text in kept))


def _leftovers(folder: Path) -> list[Path]:
    return [path for pattern in LEFTOVERS for path in folder.glob(pattern)]


def _id_lines(ids: list[str]) -> bytes:
    return "".join(f"{i}\n" for i in ids).encode("utf-8", "backslashreplace")


def _is_before(line: dict, step: int) -> bool:
    return line["step"] < step or (line["step"] == step and "eval_mean_iou" not in line)


def _images_per_step(layout: dict) -> tuple[int, int]:
    parts = layout["processes"] * layout["gradient_accumulation_steps"]
    return parts * layout["batch_size"], parts * layout["unlabelled_batch_size"]
