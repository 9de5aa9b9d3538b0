"""What a run leaves for others: models that from_pretrained loads, each with its image processor and card."""

import functools
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from u2pl_hf import U2PLForSemanticSegmentation, U2PLImageProcessor
from u2pl_hf.evaluation.curves import save_curves
from u2pl_hf.files import file_in, read_json, read_text, write_atomically, write_json, write_text
from u2pl_hf.hub.model_card import render_model_card
from u2pl_hf.hub.results import Calibration, read_results
from u2pl_hf.model import modeling_u2pl
from u2pl_hf.training.run.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
RELIABILITY = "reliability.png"
# What an exported folder holds; the code is for people without this package.
CODE = ("configuration_u2pl.py", "backbone_u2pl.py", "dpt_u2pl.py", "modeling_u2pl.py", "image_processing_u2pl.py")
EXPORTED = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md", *CODE)


def export_model(folder: Path, model: PreTrainedModel, results: dict, run: RunFolder | None = None) -> None:
    """Write a model with the card of its results; what stands at `folder` is always complete.

    run: of which picture, curves and the results themselves are put beside the model, so that the folder is whole.
    """

    def write(path: Path) -> None:
        model.save_pretrained(path)
        U2PLImageProcessor().save_pretrained(path)
        (path / "README.md").write_text(render_model_card(results), encoding="utf-8")
        if run is not None:
            save_curves(run.metrics_path, path / results["curves"])
            write_json(path / "results.json", results)
            if picture := results["pictures"]:
                (path / picture).parent.mkdir()
                shutil.copy(run.path / picture, path / picture)

    write_atomically(folder, write)


def store_calibration(folder: Path, found: Calibration, figure: "Figure") -> bool:
    """Put a temperature into an exported model: config.json, reliability.png, results.json and card where they are.

    Code for people without this package that lies in the folder is replaced: of before, it divides by no temperature.

    Returns:
        Whether the card tells of it. One that somebody has edited stays as it is.
    """
    before, card = read_results(folder), file_in(folder, "README.md")
    is_ours = before is not None and (card is None or read_text(card) == render_model_card(before))
    config = read_json(folder / "config.json") | {"temperature": found["temperature"]}
    if (folder / "modeling_u2pl.py").is_file():
        for name in CODE:
            code = Path(modeling_u2pl.__file__).with_name(name)
            write_atomically(folder / name, functools.partial(shutil.copyfile, code))
    write_json(folder / "config.json", config)
    write_atomically(folder / RELIABILITY, functools.partial(figure.savefig, format="png"))
    if before is None:
        logger.info("%s has no results.json, so there is no card to tell of it", folder)
        return False
    results = before | {"calibration": found, "reliability": RELIABILITY}
    if is_ours:
        write_text(folder / "README.md", render_model_card(results))
    else:
        logger.info("%s was edited, or written by another version, and stays as it is", card)
    write_json(folder / "results.json", results)
    return is_ours


def export_best(run: RunFolder, model: PreTrainedModel, results: dict) -> None:
    """Export the best model so far into the run folder's `best`."""
    export_model(run.path / "best", model, results, run)


def best_model(run: RunFolder, step: int) -> tuple[PreTrainedModel, int] | None:
    """The model of the best evaluation, which was at `step`, and that step.

    None, with a warning, where another folder has it: a checkpoint of that one is what the run went on from.
    """
    there = read_results(run.path / "best")
    if there is None or there["best"]["step"] != step:
        logger.warning("the model of step %d is not in %s: the last one is kept", step, run.path / "best")
        return None
    return U2PLForSemanticSegmentation.from_pretrained(run.path / "best"), step


def export_finished(run: RunFolder, model: PreTrainedModel, results: dict) -> None:
    """Export a run's model into the run folder itself and write results.json, which marks the run as finished."""
    last = run.path / "last"
    export_model(last, model, results)
    for file in last.iterdir():
        file.replace(run.path / file.name)
    last.rmdir()
    write_atomically(run.path / "curves.png", lambda path: save_curves(run.metrics_path, path))
    write_json(run.results_path, results)
