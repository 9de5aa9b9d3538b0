"""Checkpoints: the whole state of a run at one step, complete and checked, or not there at all.

    checkpoints/step-000200/
      student.safetensors   parameters and buffers
      method.safetensors    teacher with its buffers, queues, banks
      optimizer.safetensors momentum and the like, by parameter
      state.json            step, recipe, data, processes, gradient scaler, best evaluation, seconds
      manifest.json         size and sha256 of the files above

A step draws its random numbers from (seed, process, step) and the streams are addressed by step, so the step number
stands for the generators and the positions of all processes. All processes have equal state, and one writes it.
"""

import logging
import re
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from u2pl_hf.errors import InputError
from u2pl_hf.files import read_json, remove, sha256_of, write_atomically, write_json
from u2pl_hf.hub.results import Evaluation
from u2pl_hf.training.optimizers import load_named_state, named_state

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d+)")


class State(TypedDict):
    """state.json of a checkpoint."""

    step: int
    evaluation_is_due: bool
    recipe: dict
    data: dict
    processes: int
    scaler: dict | None
    best: Evaluation | None
    skipped: list[str]
    seconds: float
    seconds_of: dict[str, float]
    # Checkpoints of earlier versions do not tell.
    initialised_with: NotRequired[dict[str, str | None] | None]
    counted: NotRequired[dict[str, list[int]]]


def save_checkpoint(
    folder: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer, state: State, keep: int
) -> None:
    """Write the checkpoint folder, then remove earlier ones beside it, so that `keep` remain with this one."""
    folder.parent.mkdir(parents=True, exist_ok=True)

    def write(path: Path) -> None:
        path.mkdir()
        parts = {"student": student.state_dict(), "method": method.state_dict()}
        for name, tensors in (parts | {"optimizer": named_state(optimizer, student)}).items():
            contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
            save_file(contiguous, path / f"{name}.safetensors")
        write_json(path / "state.json", state)
        write_json(path / MANIFEST, _describe(path))

    write_atomically(folder, write)
    earlier = [path for path in in_order(folder.parent) if _step(path) < _step(folder)]
    for path in earlier[: max(0, len(earlier) + 1 - keep)]:
        remove(path)


def load_checkpoint(folder: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Load a checkpoint into the given objects; returns its state.json."""
    student.load_state_dict(load_file(folder / "student.safetensors"))
    method.load_state_dict(load_file(folder / "method.safetensors"))
    load_named_state(optimizer, student, load_file(folder / "optimizer.safetensors"))
    return read_state(folder)


def read_state(folder: Path) -> State:
    """state.json of a checkpoint.

    Raises:
        InputError: it is not what a run wrote.
    """
    return read_json(folder / "state.json", State, strict=False)


def first_step(folder: Path | None) -> int:
    """The step that a run goes on with from a checkpoint, 0 without one."""
    return 0 if folder is None else read_state(folder)["step"]


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if each of its files is as it was written."""
    try:
        expected = read_json(folder / MANIFEST, dict[str, dict])
        found = _describe(folder)
    except (OSError, InputError) as error:
        return str(error)
    wrong = [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]
    return f"{wrong[0]} is not as it was written" if wrong else None


def in_order(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first; what has another name, such as a copy, is none."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=_step)


def newest_complete(folder: Path) -> Path | None:
    """The newest undamaged checkpoint below `folder`; damaged ones are told of and passed over."""
    for checkpoint in reversed(in_order(folder)):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning("passing over the damaged checkpoint %s: %s", checkpoint, wrong)
    return None


def _step(folder: Path) -> int:
    return int(NAME.fullmatch(folder.name)[1])


def _describe(folder: Path) -> dict[str, dict]:
    """Size and sha256 of each file but the manifest."""
    files = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
