"""The output folder of one run, and whether a run may go on in it.

output_dir/
  config.json model.safetensors preprocessor_config.json README.md   the finished model (last step, or see --keep_best)
  best/                                                              the same, of the best evaluation, with its facts
  recipe.yaml labeled.txt metrics.jsonl results.json curves.png pictures/
  checkpoints/step-000200/                                           see checkpoint.py
"""

import logging
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from PIL import Image

from u2pl_hf.errors import InputError, refuse, refusing
from u2pl_hf.evaluation.curves import metrics_lines
from u2pl_hf.files import TEMPORARY, read_yaml, remove, write_atomically, write_text
from u2pl_hf.hub.results import finished_results
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.run.checkpoint import State, damage, newest_complete, read_state

logger = logging.getLogger(__name__)
# The loading processes of a run that was killed hold its lock for some seconds more.
LOCK_SECONDS = 15.0
LOCK = ".lock"
# What a run that was killed, or found no space, may leave before it has written what it is.
LEFTOVERS = (TEMPORARY, ".*.old")
# How a step's images come about: they are the same, but BatchNorm and queues see them in other portions.
LAYOUT = ("batch_size", "unlabelled_batch_size", "gradient_accumulation_steps")
ELSEWHERE = "pass another --output_dir"


class RunFolder:
    """The output folder of one run."""

    def __init__(self, args: RunArguments):
        self.path, self.args = Path(args.output_dir), args
        self.results_path, self.metrics_path = self.path / "results.json", self.path / "metrics.jsonl"
        self.lock = FileLock(self.path / LOCK, thread_local=False)

    def check(self) -> None:
        """Refuse a folder that holds something else than this very run.

        Raises:
            InputError: not a folder, files of something else, or a run with another recipe.
        """
        option = f"--output_dir {self.path}"
        refuse_file(option, self.path)
        if not self.path.is_dir() or {*self.path.iterdir()} <= {self.path / LOCK, *_leftovers(self.path)}:
            return
        recipe = self.path / "recipe.yaml"
        content = read_yaml(recipe, f"restore it, or {ELSEWHERE}") if recipe.is_file() else None
        never = self.args.resume == "never"
        refuse([
            (never, f"{option} is not empty; pass another folder or --resume auto"),
            (not isinstance(content, dict), f"{option} is not empty and holds no run; pass another folder"),
        ])  # fmt: skip
        self._check_recipe(recipe, content)

    def check_labelled_ids(self, labelled_ids: list[str]) -> None:
        """Refuse to go on with other labelled images, where a list of the same name has changed.

        Raises:
            InputError: the run in this folder was started with other ids.
        """
        path = self.path / "labeled.txt"
        # As it was written: an id may have blanks at its ends, or a character that ends a line elsewhere.
        if path.is_file() and path.read_bytes().replace(b"\r\n", b"\n") != _id_lines(labelled_ids):
            raise InputError(f"--split {self.args.split} has other images than {path}; {ELSEWHERE}")

    def start(self, labelled_ids: list[str]) -> None:
        """Create the folder, write what was asked for, and clear away what a killed run left half-written.

        Raises:
            InputError: nothing can be written there, or another run is doing so.
        """
        content = self.args.recipe() | {"output_dir": self.args.output_dir}
        with refusing(OSError, f"--output_dir {self.path} cannot be written to", "; pass another folder"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            for leftover in _leftovers(self.path) + _leftovers(self.path / "checkpoints"):
                remove(leftover)
            write_text(self.path / "recipe.yaml", yaml.safe_dump(content, sort_keys=False))
            write_atomically(self.path / "labeled.txt", lambda p: p.write_bytes(_id_lines(labelled_ids)))

    def _lock(self) -> None:
        """Keep a second run out, such as one whose launcher was ended and which trains on. It ends with the process."""
        try:
            self.lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            in_use = f"--output_dir {self.path} is in use by a run that is still going on"
            raise InputError(f"{in_use}; wait for it or end it") from None
        except (OSError, NotImplementedError) as error:  # of a file system that cannot lock
            logger.warning("%s cannot be locked (%s): let no second run write there", self.path, error)

    def unlock(self) -> None:
        """Let others in, once nothing more is written."""
        self.lock.release()

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
        path = newest_complete(self.path / "checkpoints") if self.args.resume == "auto" else Path(self.args.resume)
        if path is None:
            return None
        if self.args.resume != "auto":
            wrong = damage(path) if (path / "state.json").is_file() else "no state.json in it"
            unusable = f"--resume {path} is not a checkpoint that can be used: {wrong}"
            refuse([(wrong, f"{unusable}; pass auto for the newest that can, or never")])
        state = read_state(path)
        self._check_recipe(path, state["recipe"])
        self.check_data(path, state["data"], data)
        self._check_layout(path, state, processes)
        return path

    def check_data(self, where: Path, there: dict, here: dict) -> None:
        """Refuse to go on with other data than those of `where`: fingerprints, of older versions with fewer kinds.

        Raises:
            InputError: names the first kind that is another.
        """
        refuse(
            (here[kind] != there[kind], f"{where} was trained on other {kind}; {ELSEWHERE}")
            for kind in here
            if kind in there
        )

    def _check_recipe(self, where: Path, there: dict) -> None:
        here, there = self.args.recipe(), self._completed(there)
        another = f"{where} belongs to another run"
        refuse(
            (here[name] != there[name], f"{another}: {name} is {there[name]} there and {here[name]} here; {ELSEWHERE}")
            for name in here
            if not (self.args.change_processes and name in LAYOUT)
        )

    def _check_layout(self, where: Path, state: State, processes: int) -> None:
        here, there = self.args.recipe(), self._completed(state["recipe"])
        wrote = state["processes"]
        ours, theirs = _images_per_step(processes, here), _images_per_step(wrote, there)
        if wrote != processes and not self.args.change_processes:
            raise InputError(
                f"{where} was written by {wrote} processes and this run has {processes}: start {wrote}, or pass "
                "--change_processes true to go on with the same images per step, though not to the same bits"
            )
        if ours != theirs:
            raise InputError(
                f"{where} has {theirs} labelled and unlabelled images per step, this run {ours}: make them equal with "
                "--gradient_accumulation_steps or --batch_size"
            )
        if wrote != processes or any(here[name] != there[name] for name in LAYOUT):
            logger.warning("going on from %s with another layout of processes: the bits will differ", where)

    def _completed(self, recipe: dict) -> dict:
        """What a recipe of an older version does not name had no other value yet."""
        return RunArguments(method=self.args.method).recipe() | recipe

    def save_picture(self, picture: Image.Image, step: int) -> None:
        """Keep the picture grid of an evaluation."""
        path = self.path / "pictures" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)

    def trim_metrics(self, step: int) -> None:
        """Drop lines of what is about to be done again: later steps, and the evaluation of this one."""
        if self.metrics_path.is_file():
            lines = metrics_lines(self.metrics_path)
            kept = [text for text, line in lines if (line["step"], "eval_mean_iou" in line) < (step, True)]
            write_text(self.metrics_path, "".join(f"{text}\n" for text in kept))


def refuse_file(option: str, path: Path) -> None:
    """Refuse a folder to write, of an option, that is a file or would lie below one.

    Raises:
        InputError: names the file.
    """
    refuse(
        (place.exists() and not place.is_dir(), f"{option}: {place} is a file; pass a folder")
        for place in (path, *path.parents)
    )


def _leftovers(folder: Path) -> list[Path]:
    return [path for pattern in LEFTOVERS for path in folder.glob(pattern)]


def _id_lines(ids: list[str]) -> bytes:
    return "".join(f"{i}\n" for i in ids).encode("utf-8", "backslashreplace")


def _images_per_step(processes: int, recipe: dict) -> tuple[int, int]:
    passes = processes * recipe["gradient_accumulation_steps"]
    return passes * recipe["batch_size"], passes * recipe["unlabelled_batch_size"]
