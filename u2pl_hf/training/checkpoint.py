"""What a run leaves on disk, and how a stopped run goes on from it.

    output_dir/
      config.json model.safetensors preprocessor_config.json README.md   the finished model (last step)
      best/                                                              the same, of the best evaluation
      recipe.yaml labeled.txt metrics.jsonl results.json pictures/
      checkpoints/step-000200/                                           state to go on from

A step draws its random numbers from (seed, process, step) and the streams are addressed by step, so weights, optimizer,
queues and the step number are the whole state.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from u2pl_hf.data.splits import read_ids, write_ids
from u2pl_hf.errors import InputError
from u2pl_hf.training.arguments import RunArguments


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a path beside `path`, then rename: what stands at `path` is always complete.

    A file is replaced at once; of a folder, the old one lies beside it as .NAME.old for a moment.
    """
    temporary = path.with_name(f".{path.name}.partial")
    _remove(temporary)
    write(temporary)
    if path.is_dir():
        # A folder cannot be renamed over a filled one.
        aside = path.with_name(f".{path.name}.old")
        _remove(aside)
        path.rename(aside)
        temporary.rename(path)
        _remove(aside)
    else:
        os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class RunFolder:
    """The output folder of one run."""

    def __init__(self, args: RunArguments):
        self.path = Path(args.output_dir)
        self.args = args
        self.results_path = self.path / "results.json"
        self.metrics_path = self.path / "metrics.jsonl"

    def check(self) -> None:
        """Refuse a folder that holds something else than this very run.

        Raises:
            InputError: not a folder, files of something else, or a run with another recipe.
        """
        for path in (self.path, *self.path.parents):
            if path.exists() and not path.is_dir():
                raise InputError(f"--output_dir {self.path}: {path} is a file; pass a folder")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if self.args.resume == "never":
            raise InputError(f"--output_dir {self.path} is not empty; pass another folder or --resume auto")
        recipe = self.path / "recipe.yaml"
        if not recipe.is_file():
            raise InputError(f"--output_dir {self.path} is not empty and holds no run; pass another folder")
        content = yaml.safe_load(recipe.read_text())
        if not isinstance(content, dict):
            raise InputError(f"--output_dir {self.path} is not empty and holds no run; pass another folder")
        self._compare(content, recipe)

    def _compare(self, other: dict, where: Path) -> None:
        mine = self.args.recipe()
        changed = [name for name in mine if mine[name] != other.get(name)]
        if changed:
            raise InputError(
                f"{where} belongs to another run: {changed[0]} is {other.get(changed[0])} there and "
                f"{mine[changed[0]]} here; pass another --output_dir"
            )

    def check_labelled_ids(self, labelled_ids: list[str]) -> None:
        """Refuse to go on with other labelled images, where a list of the same name has changed.

        Raises:
            InputError: the run in this folder was started with other ids.
        """
        path = self.path / "labeled.txt"
        if path.is_file() and read_ids(path) != labelled_ids:
            raise InputError(f"--split {self.args.split} has other images than {path}; pass another --output_dir")

    def start(self, labelled_ids: list[str]) -> None:
        """Create the folder and write what was asked for."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = self.args.recipe() | {"output_dir": self.args.output_dir}
        write_atomically(self.path / "recipe.yaml", lambda p: p.write_text(yaml.safe_dump(content, sort_keys=False)))
        write_atomically(self.path / "labeled.txt", lambda p: write_ids(p, labelled_ids))

    def finished_results(self) -> dict | None:
        """The results of a run that is complete."""
        return json.loads(self.results_path.read_text()) if self.results_path.is_file() else None

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint that --resume asks for; None to start at step 0."""
        if self.args.resume == "never":
            return None
        if self.args.resume != "auto":
            path = Path(self.args.resume)
            if not (path / "state.json").is_file():
                raise InputError(f"--resume {path} is not a checkpoint folder (no state.json); pass auto or never")
            self._compare(json.loads((path / "state.json").read_text())["recipe"], path)
            return path
        complete = sorted(self.path.glob("checkpoints/step-*/state.json"))
        return complete[-1].parent if complete else None

    def trim_metrics(self, step: int) -> None:
        """Drop lines of steps that are about to be done again."""
        if self.metrics_path.is_file():
            lines = self.metrics_path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_atomically(self.metrics_path, lambda p: p.write_text("".join(kept)))

    def save_checkpoint(
        self, step: int, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer, state: dict
    ) -> Path:
        """Write a checkpoint, then remove the older ones."""
        folder = self.path / "checkpoints" / f"step-{step:06d}"
        folder.parent.mkdir(exist_ok=True)

        def write(path: Path) -> None:
            path.mkdir()
            save_file(_contiguous(student.state_dict()), path / "student.safetensors")
            save_file(_contiguous(method.state_dict()), path / "method.safetensors")
            save_file(_optimizer_tensors(optimizer), path / "optimizer.safetensors")
            write_json(path / "state.json", {"step": step, "recipe": self.args.recipe()} | state)

        write_atomically(folder, write)
        for older in folder.parent.glob("step-*"):
            if older != folder:
                shutil.rmtree(older)
        return folder


def load_checkpoint(folder: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Load a checkpoint into the given objects; returns its state.json."""
    student.load_state_dict(load_file(folder / "student.safetensors"))
    method.load_state_dict(load_file(folder / "method.safetensors"))
    momentum = load_file(folder / "optimizer.safetensors")
    content = optimizer.state_dict()
    content["state"] = {int(index): {"momentum_buffer": tensor} for index, tensor in momentum.items()}
    optimizer.load_state_dict(content)
    return json.loads((folder / "state.json").read_text())


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """SGD's only state is one momentum buffer per parameter; learning rates are set anew at each step."""
    state = optimizer.state_dict()["state"]
    return _contiguous({str(i): s["momentum_buffer"] for i, s in state.items() if s["momentum_buffer"] is not None})


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
