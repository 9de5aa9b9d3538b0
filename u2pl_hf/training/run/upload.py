"""Pushing a run: its model with the card, and if asked for the checkpoint from which it can go on elsewhere."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from u2pl_hf.errors import InputError
from u2pl_hf.files import file_in
from u2pl_hf.hub.exported import exported_files
from u2pl_hf.hub.push import check_can_push, check_names, push_files
from u2pl_hf.hub.results import finished_results
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.run.checkpoint import newest_complete, read_state

# With a checkpoint, all that a run needs to go on and to end as if it had never moved.
STATE_FILES = ("recipe.yaml", "labeled.txt", "metrics.jsonl")


@dataclass(frozen=True)
class RunPush:
    """What goes where.

    Attributes:
        folder: of the run, or of another exported model.
        repo_id: USER/NAME.
        revision: branch of the model; None: main.
        private: make a new repository private.
        best: the model of the best evaluation instead of the last one.
        with_checkpoint: the newest complete checkpoint as well, on a branch of its own.
        commit_message: None: one that names the run.
        others: folders of further runs, which the card shows beside this one.
    """

    folder: Path
    repo_id: str
    revision: str | None = None
    private: bool = False
    best: bool = False
    with_checkpoint: bool = False
    commit_message: str | None = None
    others: Sequence[Path] = ()

    @property
    def command(self) -> str:
        """The command that does this push."""
        words = ["python", "training_scripts/push_to_hub.py", str(self.folder), "--repo_id", self.repo_id]
        for name in ("revision", "commit_message"):
            words += [f"--{name}", getattr(self, name)] if getattr(self, name) else []
        words += [f"--{name}" for name in ("private", "best", "with_checkpoint") if getattr(self, name)]
        words += ["--other_runs", *map(str, self.others)] if self.others else []
        return shlex.join(words)

    @property
    def checkpoint_revision(self) -> str:
        """The branch of the checkpoint."""
        return f"{self.revision or 'main'}-checkpoint"

    def model_files(self) -> dict[str, Path | bytes]:
        """Path in the repository -> file or content, of the exported model.

        Raises:
            InputError: no model, or other runs that are not finished.
        """
        folder = self.folder / "best" if self.best else self.folder
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder; pass the output folder of a run")
        if not self.best and not (folder / "config.json").is_file() and (folder / "best").is_dir():
            raise InputError(f"{folder} is not finished; push its best model so far with --best, or let it end first")
        return exported_files(folder, self.repo_id, self.revision, [finished_results(other) for other in self.others])

    def checkpoint_files(self) -> tuple[int, dict[str, Path]]:
        """Step of the newest complete checkpoint, and path in the repository -> file.

        Raises:
            InputError: there is none.
        """
        checkpoint = newest_complete(self.folder / "checkpoints")
        if checkpoint is None:
            raise InputError(f"{self.folder} holds no complete checkpoint; push without --with_checkpoint")
        parts = [*(self.folder / "best").rglob("*"), *checkpoint.iterdir()]
        names = [*STATE_FILES, *(path.relative_to(self.folder).as_posix() for path in parts)]
        files = {name: path for name in names if (path := file_in(self.folder, name))}
        return read_state(checkpoint)["step"], files

    def plan(self) -> dict:
        """What `push` would send: names and bytes. Nothing is asked of the Hub.

        Raises:
            InputError: names or files that cannot be pushed.
        """
        check_names(self.repo_id, self.revision)
        told = {"repo_id": self.repo_id, "revision": self.revision or "main", "files": _sizes(self.model_files())}
        if self.with_checkpoint:
            step, files = self.checkpoint_files()
            told["checkpoint"] = {"revision": self.checkpoint_revision, "step": step, "files": _sizes(files)}
        return told

    def push(self) -> dict:
        """Push; what is there already is not sent again.

        Returns:
            As `plan`, with the address `url` of each commit.

        Raises:
            InputError: it failed for good; the message has the command to push later. The folder is as it was.
        """
        told, options = self.plan(), {"private": self.private, "later": self._later}
        message = self.commit_message or self._message("best model" if self.best else "model")
        told["url"] = push_files(
            self.model_files(), self.repo_id, revision=self.revision, commit_message=message, **options
        )
        if self.with_checkpoint:
            step, files = self.checkpoint_files()
            told["checkpoint"]["url"] = push_files(
                files,
                self.repo_id,
                revision=self.checkpoint_revision,
                commit_message=self.commit_message or self._message(f"checkpoint at step {step}"),
                nothing_else=True,
                **options,
            )
        return told

    @property
    def _later(self) -> str:
        return f"{self.folder} is as it was, to push it later run `{self.command}`"

    def _message(self, what: str) -> str:
        return f"{what[0].upper()}{what[1:]} of {self.folder.resolve().name}"


def check_push(args: RunArguments, is_main_process: bool) -> None:
    """Find out before a run whether --push_to_hub can work.

    Raises:
        InputError: not with this name, branch or token.
    """
    if args.push_to_hub is not None and is_main_process:
        check_can_push(args.push_to_hub, revision=args.hub_revision)


def push_finished(args: RunArguments) -> dict:
    """Push a finished run as its arguments say; what went wrong is told, not raised.

    Returns:
        `hub`, the address of the commit or None, and `hub_error`, one line or None.
    """
    push = RunPush(
        Path(args.output_dir),
        args.push_to_hub,
        revision=args.hub_revision,
        private=args.hub_private,
        with_checkpoint=args.hub_checkpoint,
    )
    try:
        return {"hub": push.push()["url"], "hub_error": None}
    except InputError as error:
        return {"hub": None, "hub_error": str(error)}


def _sizes(files: dict[str, Path | bytes]) -> dict[str, int]:
    return {name: len(part) if isinstance(part, bytes) else part.stat().st_size for name, part in sorted(files.items())}
