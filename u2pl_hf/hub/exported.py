"""Which files of an exported folder go to the Hub, and under which names."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Required, TypedDict

import yaml

from u2pl_hf.errors import InputError
from u2pl_hf.files import file_in, read_json, read_text, read_yaml
from u2pl_hf.hub.model_card import addressed_card, eval_results_yaml, render_card
from u2pl_hf.hub.public_facts import public_facts

logger = logging.getLogger(__name__)

# The model with its code; everything else in the folder stays here unless it is named below.
MODEL_FILES = ("config.json", "*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "*.py")
# What the run wrote about itself. Of the best model, these lie in the folder above.
RUN_FILES = ("metrics.jsonl", "labeled.txt")


class Evaluation(TypedDict, total=False):
    """Scores as fractions; None where there is nothing to score."""

    step: int
    mean_iou: Required[float | None]
    accuracy: float | None
    per_class_iou: dict[str, float | None]


class Origin(TypedDict):
    """What a converted checkpoint was."""

    file: str
    sha256: str
    weights: str
    epoch: int | None
    best_miou: float | None
    class_names_of: str | None
    output_stride: int
    aspp_dilations: list[int]


class Results(TypedDict, total=False):
    """results.json of an exported folder: what a card is made of. Fields that are not there are left out of it."""

    method: str | None
    variant: str | None
    settings: dict | None
    dataset: str | None
    dataset_on_hub: bool | None
    dataset_revision: str | None
    dataset_license: str | None
    subset: str | None
    split: str | None
    num_labelled: int | None
    num_unlabelled: int | None
    num_evaluation: int | None
    seed: int | None
    max_steps: int | None
    warmup_steps: int | None
    learning_rate: float | None
    seconds: float | None
    hardware: dict | None
    versions: dict | None
    date: str | None
    protocol: dict | None
    class_names: list[str] | None
    command: str | None
    last: Evaluation | None
    best: Evaluation | None
    pictures: str | None
    curves: str | None
    output_dir: str | None
    backbone: str | None
    architecture: dict | None
    parameters: int | None
    initialised_with: dict[str, str | None] | None
    converted_from: Origin | None
    model_name: str | None


class Measured(Evaluation):
    """An evaluation with its classes."""

    per_class_iou: Required[dict[str, float | None]]


class Hardware(TypedDict):
    """What a run was computed on."""

    name: str
    processes: int
    threads: int


class Versions(TypedDict):
    """Of libraries."""

    torch: str


class TableResults(Results):
    """With what a table of runs shows."""

    num_labelled: Required[int]
    seed: Required[int]
    max_steps: Required[int]
    seconds: Required[float]
    hardware: Required[Hardware]
    versions: Required[Versions]
    class_names: Required[list[str]]
    last: Required[Measured]
    best: Required[Evaluation]


def exported_files(
    folder: Path, repo_id: str, revision: str | None = None, others: Sequence[dict] = ()
) -> dict[str, Path | bytes]:
    """Path in the repository -> file or content, of a run's folder, its `best`, or any other exported model.

    Files of the folder are only read. The card and the facts that are sent name no paths of this machine.

    Args:
        folder: with config.json and weights.
        repo_id, revision: where it goes, which the card says.
        others: results of further runs, for the card.

    Raises:
        InputError: no model in it, or facts that cannot be read.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no exported model (config.json and *.safetensors); pass a finished run")
    names = [path.name for pattern in MODEL_FILES for path in sorted(folder.glob(pattern))]
    files: dict[str, Path | bytes] = {name: path for name in names if (path := file_in(folder, name))}
    run = folder.parent if folder.name == "best" and (folder.parent / "recipe.yaml").is_file() else folder
    files |= {name: path for name in RUN_FILES if (path := file_in(run, name))}
    if recipe := file_in(run, "recipe.yaml"):
        files["recipe.yaml"] = _public_recipe(recipe)
    results = read_results(folder)
    if results is not None:
        shown = {name: picture_in(folder, results.get(name)) for name in ("pictures", "curves")}
        files |= {name: folder / name for name in shown.values() if name}
        files["results.json"] = json.dumps(public_facts(results), indent=2).encode() + b"\n"
        scores = eval_results_yaml(results)
        if scores is not None:
            files[".eval_results/mean_iou.yaml"] = scores.encode()
    files["README.md"] = _card(folder, results, shown if results else {}, repo_id, revision, others).encode()
    return files


def read_results(folder: Path) -> dict | None:
    """results.json of an exported folder, if there is one.

    Raises:
        InputError: it is not what a run wrote.
    """
    path = file_in(folder, "results.json")
    return read_json(path, Results) if path else None


def finished_results(folder: Path, kind: type[Results] = Results) -> Results:
    """results.json of a finished run.

    Raises:
        InputError: there is none, or it is not what a run wrote.
    """
    path = file_in(folder, "results.json")
    if path is None:
        raise InputError(f"{folder} holds no finished run (no results.json); train it first, or leave it out")
    results = read_json(path, Results)
    if results.get("last") is None and results.get("best") is not None:
        raise InputError(f"{folder} holds no finished run but its best model; pass the run's own folder")
    if results.get("last") is None:
        raise InputError(f"{path} holds no results of a run (no last evaluation); restore it, or remove it")
    return read_json(path, kind)


def _card(folder: Path, results: dict | None, shown: dict, repo_id: str, revision: str | None, others) -> str:
    """The card for this place: rendered anew, but one that somebody has edited stays as it is."""
    path = folder / "README.md"
    card = read_text(path) if file_in(folder, path.name) else None
    if results is None:
        if card is None:
            raise InputError(f"{folder} has neither README.md nor results.json, so there is no card; write a README.md")
        return addressed_card(card, repo_id, revision)
    if card is not None and card != render_card(results):
        logger.info("%s was edited, or written by another version: it is sent as it is, with the new place in it", path)
        return addressed_card(card, repo_id, revision)
    return render_card(results | shown | {"repo_id": repo_id, "revision": revision}, others=others)


def picture_in(folder: Path, name: str | None) -> str | None:
    """Path in the folder of a picture that the card may show: one that is there.

    Raises:
        InputError: it lies elsewhere, or is no picture.
    """
    path = file_in(folder, name) if name else None
    if path and path.suffix != ".png":
        raise InputError(f"{folder / 'results.json'} names {name} as a picture, which is no .png; restore it")
    return path.relative_to(folder.resolve()).as_posix() if path else None


def _public_recipe(path: Path) -> bytes:
    recipe = read_yaml(path)
    if not isinstance(recipe, dict):
        raise InputError(f"{path} is no recipe of a run; restore it, or remove it")
    recipe = {name: public_facts({"_": value})["_"] for name, value in recipe.items()}
    return yaml.safe_dump(recipe, sort_keys=False).encode()
