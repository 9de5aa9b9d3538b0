"""The paper's mean IoU on its own splits (published.json), and how a run differs from the runs behind it."""

import json
from pathlib import Path

from u2pl_hf.measure.side_by_side import label
from u2pl_hf.method import METHODS

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
# Steps that differ by less are the same schedule, rounded differently.
STEPS_TOLERANCE = 0.02


def paper_row(results: dict) -> dict | None:
    """The paper's results on the split of a run, and what is not the same there; None for any other split.

    Args:
        results: a run's facts, as in `model_card.render_model_card`.

    Returns:
        `split` with its data set in words; `mean_iou`, method -> per cent, as text; `source`; and `differences`, rows
        (what, here, in the paper), of all that the run tells.
    """
    name, _, labelled = (results.get("split") or "").partition("/")
    scores = PUBLISHED["mean_iou_per_cent"].get(name, {}).get(labelled)
    if scores is None:
        return None
    data = PUBLISHED["datasets"][name.partition("_")[0]]
    return {
        "split": f"{data['name']}, split {name}/{labelled}",
        "mean_iou": {METHODS[method].title: f"{score:.2f}" for method, score in scores.items()},
        "source": PUBLISHED["source"],
        "differences": _differences(results, data, int(labelled)),
    }


def _differences(results: dict, data: dict, labelled: int) -> list[tuple[str, object, object]]:
    unlabelled = data["training_images"] - labelled if results.get("num_unlabelled") else 0
    there = PUBLISHED["backbone"] | {
        "crop_size": data["crop_size"],
        "batch_size_labelled": data["images_per_step"],
        "num_labelled": labelled,
        "num_evaluation": data["evaluation_images"],
        "num_unlabelled": unlabelled,
    }
    here = results | (results.get("architecture") or {})
    rows = [(label(key), here[key], value) for key, value in there.items() if here.get(key) not in (None, value)]
    # An epoch is one pass over the list with more steps; the supervised baseline has only one.
    expected = round(data["epochs"] * max(labelled, unlabelled) / data["images_per_step"])
    steps = results.get("max_steps", expected)
    if abs(steps - expected) > STEPS_TOLERANCE * expected:
        rows.append(("steps", steps, f"about {expected}"))
    if "architecture" in results:
        started = results.get("initialised_with") or {}
        weights = started.get("backbone") or started.get("model") or "fresh"
        rows.append(("weights to start from", weights, "of ImageNet"))
    return rows
