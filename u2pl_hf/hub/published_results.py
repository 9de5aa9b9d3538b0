"""The paper's mean IoU on its own splits (published.json), and how a run differs from the runs behind it."""

import json
from pathlib import Path

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
METHOD_NAMES = {"suponly": "SupOnly", "u2pl": "U2PL", "u2pl_ael": "U2PL + AEL"}
# Steps that differ by less are the same schedule, rounded differently.
STEPS_TOLERANCE = 0.02


def published_row(results: dict) -> dict | None:
    """The paper's results on the split of a run, and what is not the same there; None for any other split.

    Args:
        results: a run's facts, as in `model_card.render_card`.

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
        "mean_iou": {METHOD_NAMES[method]: f"{score:.2f}" for method, score in scores.items()},
        "source": PUBLISHED["source"],
        "differences": _differences(results, data, int(labelled)),
    }


def _differences(results: dict, data: dict, labelled: int) -> list[tuple[str, object, object]]:
    unlabelled = data["training_images"] - labelled
    there = PUBLISHED["backbone"] | {
        "crop_size": data["crop_size"],
        "batch_size_labelled": data["images_per_step"],
        "num_labelled": labelled,
        "num_evaluation": data["evaluation_images"],
    }
    if results.get("method") != "suponly":
        there["num_unlabelled"] = unlabelled
    here = results | (results.get("architecture") or {})
    rows = [(_words(key), here[key], there[key]) for key in there if here.get(key) not in (None, there[key])]
    steps = results.get("max_steps")
    # An epoch is one pass over the list with more steps; the supervised baseline has only one.
    longest = labelled if results.get("method") == "suponly" else max(labelled, unlabelled)
    expected = round(data["epochs"] * longest / data["images_per_step"])
    if steps is not None and abs(steps - expected) > STEPS_TOLERANCE * expected:
        rows.append(("steps", steps, f"about {expected}"))
    if "architecture" in results:
        rows.append(("weights to start from", _started_from(results), "of ImageNet"))
    return rows


def _words(key: str) -> str:
    words = {
        "num_labelled": "labelled images",
        "num_unlabelled": "unlabelled images",
        "num_evaluation": "evaluation images",
        "batch_size_labelled": "labelled images per step",
        "base_width": "channels of the backbone's first stage",
    }
    return words.get(key, key.replace("_", " "))


def _started_from(results: dict) -> str:
    started = results.get("initialised_with") or {}
    names = [started.get(part) for part in ("backbone", "model")]
    return next((str(name) for name in names if name), "fresh")
