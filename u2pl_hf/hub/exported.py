"""Which files of an exported folder go to the Hub, and under which names."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from u2pl_hf.errors import InputError
from u2pl_hf.hub.model_card import addressed_card, eval_results_yaml, render_card
from u2pl_hf.hub.public_facts import public_facts

logger = logging.getLogger(__name__)

# The model with its code; everything else in the folder stays here unless it is named below.
MODEL_FILES = ("config.json", "*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "*.py")
# What the run wrote about itself. Of the best model, these lie in the folder above.
RUN_FILES = ("metrics.jsonl", "labeled.txt")


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
    files: dict[str, Path | bytes] = {p.name: p for pattern in MODEL_FILES for p in sorted(folder.glob(pattern))}
    run = folder.parent if folder.name == "best" and (folder.parent / "recipe.yaml").is_file() else folder
    files |= {name: run / name for name in RUN_FILES if (run / name).is_file()}
    if (run / "recipe.yaml").is_file():
        files["recipe.yaml"] = _public_recipe(run / "recipe.yaml")
    results = read_results(folder)
    if results is not None:
        shown = {name: _picture(folder, results.get(name)) for name in ("pictures", "curves")}
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
    path = folder / "results.json"
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); restore it, or remove it") from error
    if not isinstance(results, dict):
        raise InputError(f"{path} holds no results of a run; restore it, or remove it")
    return results


def _card(folder: Path, results: dict | None, shown: dict, repo_id: str, revision: str | None, others) -> str:
    """The card for this place: rendered anew, but one that somebody has edited stays as it is."""
    path = folder / "README.md"
    card = path.read_text() if path.is_file() else None
    if results is None:
        if card is None:
            raise InputError(f"{folder} has neither README.md nor results.json, so there is no card; write a README.md")
        return addressed_card(card, repo_id, revision)
    if card is not None and card != render_card(results):
        logger.info("%s was edited, or written by another version: it is sent as it is, with the new place in it", path)
        return addressed_card(card, repo_id, revision)
    return render_card(results | shown | {"repo_id": repo_id, "revision": revision}, others=others)


def _picture(folder: Path, name: str | None) -> str | None:
    """A picture that the card may show: one that is there."""
    return name if name and (folder / name).is_file() else None


def _public_recipe(path: Path) -> bytes:
    recipe = yaml.safe_load(path.read_text())
    if isinstance(recipe, dict):
        recipe = {name: public_facts({"_": value})["_"] for name, value in recipe.items()}
    return yaml.safe_dump(recipe, sort_keys=False).encode()
