"""Which files of an exported folder go to the Hub, and under which names."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from u2pl_hf.errors import require
from u2pl_hf.files import file_in, read_text, read_yaml
from u2pl_hf.hub.model_card import addressed_card, eval_results_yaml, render_model_card
from u2pl_hf.hub.results import PICTURES, public_facts, read_results, without_paths

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
    is_model = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    require(is_model, f"{folder} holds no exported model (config.json and *.safetensors); pass a finished run")
    names = [path.name for pattern in MODEL_FILES for path in sorted(folder.glob(pattern))]
    run = folder.parent if folder.name == "best" and (folder.parent / "recipe.yaml").is_file() else folder
    places = [(folder, name) for name in names] + [(run, name) for name in RUN_FILES]
    files: dict[str, Path | bytes] = {name: path for place, name in places if (path := file_in(place, name))}
    if path := file_in(run, "recipe.yaml"):
        recipe = read_yaml(path)
        require(isinstance(recipe, dict), f"{path} is no recipe of a run; restore it, or remove it")
        files["recipe.yaml"] = yaml.safe_dump(without_paths(recipe), sort_keys=False).encode()
    results, shown = read_results(folder), {}
    if results is not None:
        shown = {name: picture_in(folder, results.get(name)) for name in PICTURES}
        files |= {name: folder / name for name in shown.values() if name}
        files["results.json"] = json.dumps(public_facts(results), indent=2).encode() + b"\n"
        if scores := eval_results_yaml(results):
            files[".eval_results/mean_iou.yaml"] = scores.encode()
    files["README.md"] = _card(folder, results, shown, repo_id, revision, others).encode()
    return files


def _card(folder: Path, results: dict | None, shown: dict, repo_id: str, revision: str | None, others) -> str:
    """The card for this place: rendered anew, but one that somebody has edited stays as it is."""
    path = file_in(folder, "README.md")
    card = read_text(path) if path else None
    if results is not None and card in (None, render_model_card(results)):
        return render_model_card(results | shown | {"repo_id": repo_id, "revision": revision}, others=others)
    told = f"{folder} has neither README.md nor results.json, so there is no card; write a README.md"
    require(card is not None, told)
    if results is not None:
        logger.info("%s was edited, or written by another version: it is sent with the new place in it", path)
    return addressed_card(card, repo_id, revision)


def picture_in(folder: Path, name: str | None) -> str | None:
    """Path in the folder of a picture that the card may show: one that is there.

    Raises:
        InputError: it lies elsewhere, or is no picture.
    """
    path = file_in(folder, name) if name else None
    told = f"{folder / 'results.json'} names {name} as a picture, which is no .png; restore it"
    require(path is None or path.suffix == ".png", told)
    return path.relative_to(folder.resolve()).as_posix() if path else None
