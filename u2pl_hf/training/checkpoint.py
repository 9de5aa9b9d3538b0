"""Checkpoints: the whole state of a run at one step, complete and checked, or not there at all.

    checkpoints/step-000200/
      student.safetensors   parameters and buffers
      method.safetensors    teacher with its buffers, queues, banks
      optimizer.safetensors momentum
      state.json            step, recipe, data, processes, gradient scaler, best evaluation, seconds
      manifest.json         size and sha256 of the files above

A step draws its random numbers from (seed, process, step) and the streams are addressed by step, so the step number
stands for the generators and the positions of all processes. All processes have equal state, and one writes it.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from u2pl_hf.data.durable import sync

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a path beside `path`, then rename: what stands at `path` is always complete and on the disk.

    A file is replaced at once; of a folder, the old one lies beside it as .NAME.old for a moment.
    """
    temporary = path.with_name(f".{path.name}.partial")
    remove(temporary)
    try:
        write(temporary)
        for part in (*(temporary.rglob("*") if temporary.is_dir() else ()), temporary):
            sync(part)
    except BaseException:
        remove(temporary)
        raise
    if path.is_dir():
        # A folder cannot be renamed over a filled one.
        aside = path.with_name(f".{path.name}.old")
        remove(aside)
        path.rename(aside)
        temporary.rename(path)
        remove(aside)
    else:
        os.replace(temporary, path)
    sync(path.parent)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_checkpoint(
    folder: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer, state: dict, keep: int
) -> None:
    """Write the checkpoint folder, then remove all but the `keep` newest beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)

    def write(path: Path) -> None:
        path.mkdir()
        save_file(_contiguous(student.state_dict()), path / "student.safetensors")
        save_file(_contiguous(method.state_dict()), path / "method.safetensors")
        save_file(_momentum(optimizer), path / "optimizer.safetensors")
        (path / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        (path / MANIFEST).write_text(json.dumps(_describe(path), indent=2) + "\n")

    write_atomically(folder, write)
    for older in in_order(folder.parent)[:-keep]:
        remove(older)


def load_checkpoint(folder: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Load a checkpoint into the given objects; returns its state.json."""
    student.load_state_dict(load_file(folder / "student.safetensors"))
    method.load_state_dict(load_file(folder / "method.safetensors"))
    momentum = load_file(folder / "optimizer.safetensors")
    content = optimizer.state_dict()
    content["state"] = {int(index): {"momentum_buffer": tensor} for index, tensor in momentum.items()}
    optimizer.load_state_dict(content)
    return read_state(folder)


def read_state(folder: Path) -> dict:
    """state.json of a checkpoint."""
    return json.loads((folder / "state.json").read_text())


def first_step(folder: Path | None) -> int:
    """The step that a run goes on with from a checkpoint, 0 without one."""
    return 0 if folder is None else read_state(folder)["step"]


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if each of its files is as it was written."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())
        found = _describe(folder)
    except (OSError, ValueError) as error:
        return str(error)
    wrong = [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]
    return f"{wrong[0]} is not as it was written" if wrong else None


def in_order(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first; a longer number is a larger one."""
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name))


def newest_complete(folder: Path) -> Path | None:
    """The newest undamaged checkpoint below `folder`; damaged ones are told of and passed over."""
    for checkpoint in reversed(in_order(folder)):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning("passing over the damaged checkpoint %s: %s", checkpoint, wrong)
    return None


def _describe(folder: Path) -> dict[str, dict]:
    """Size and sha256 of each file but the manifest."""
    files = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _momentum(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """SGD's only state is one momentum buffer per parameter; learning rates are set anew at each step."""
    state = optimizer.state_dict()["state"]
    return _contiguous({str(i): s["momentum_buffer"] for i, s in state.items() if s["momentum_buffer"] is not None})


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
