"""Pushing a run: its model with the card, and if asked for the checkpoint from which it can go on elsewhere."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from u2pl_hf.errors import InputError, refuse
from u2pl_hf.files import file_in
from u2pl_hf.hub.exported import exported_files
from u2pl_hf.hub.push import check_can_push, check_names, push_files
from u2pl_hf.hub.results import finished_results
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.run.checkpoint import first_step, newest_complete

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

    def model_files(self) -> dict[str, Path | bytes]:
        """Path in the repository -> file or content, of the exported model.

        Raises:
            InputError: no model, or other runs that are not finished.
        """
        folder = self.folder / "best" if self.best else self.folder
        unfinished = not (folder / "config.json").is_file() and (folder / "best").is_dir()
        refuse([
            (not self.folder.is_dir(), f"{self.folder} is not a folder; pass the output folder of a run"),
            (unfinished, f"{folder} is not finished; push its best model so far with --best, or let it end first"),
        ])  # fmt: skip
        return exported_files(folder, self.repo_id, self.revision, [finished_results(other) for other in self.others])

    def checkpoint_files(self) -> tuple[int, dict[str, Path]]:
        """Step of the newest complete checkpoint, and path in the repository -> file.

        Raises:
            InputError: there is none.
        """
        checkpoint = newest_complete(self.folder / "checkpoints")
        refuse([(checkpoint is None, f"{self.folder} holds no complete checkpoint; push without --with_checkpoint")])
        parts = [*(self.folder / "best").rglob("*"), *checkpoint.iterdir()]
        names = [*STATE_FILES, *(path.relative_to(self.folder).as_posix() for path in parts)]
        return first_step(checkpoint), {name: path for name in names if (path := file_in(self.folder, name))}

    def plan(self) -> dict:
        """What `push` would send: names and bytes. Nothing is asked of the Hub.

        Raises:
            InputError: names or files that cannot be pushed.
        """
        return self._carry_out(send=False)

    def push(self) -> dict:
        """Push; what is there already is not sent again.

        Returns:
            As `plan`, with the address `url` of each commit.

        Raises:
            InputError: it failed for good; the message has the command to push later. The folder is as it was.
        """
        return self._carry_out(send=True)

    def _carry_out(self, send: bool) -> dict:
        check_names(self.repo_id, self.revision)
        branch, name = self.revision or "main", self.folder.resolve().name
        told = {"repo_id": self.repo_id, "revision": branch}
        parts = [(told, self.model_files(), f"{'Best model' if self.best else 'Model'} of {name}")]
        if self.with_checkpoint:
            step, files = self.checkpoint_files()
            told["checkpoint"] = {"revision": f"{branch}-checkpoint", "step": step}
            parts.append((told["checkpoint"], files, f"Checkpoint at step {step} of {name}"))
        for part, files, message in parts:
            sizes = {n: len(f) if isinstance(f, bytes) else f.stat().st_size for n, f in sorted(files.items())}
            part["files"] = sizes
            if send:
                part["url"] = push_files(
                    files,
                    self.repo_id,
                    revision=self.revision if part is told else part["revision"],
                    private=self.private,
                    commit_message=self.commit_message or message,
                    nothing_else=part is not told,
                    later=f"{self.folder} is as it was, to push it later run `{self.command}`",
                )
        return told


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
    options = {"revision": args.hub_revision, "private": args.hub_private, "with_checkpoint": args.hub_checkpoint}
    try:
        push = RunPush(Path(args.output_dir), args.push_to_hub, **options)
        return {"hub": push.push()["url"], "hub_error": None}
    except InputError as error:
        return {"hub": None, "hub_error": str(error)}
