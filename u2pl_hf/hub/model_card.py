"""The model card: a template filled with what results.json says. A fact that is not there is left out."""

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

# Beside this file, so that an installed package has it; model_cards/template.md is a link to it.
TEMPLATE = Path(__file__).with_name("template.md")
METHODS = {
    "suponly": "A supervised baseline (labelled images only)",
    "u2pl": "A U2PL model",
    "u2pl_ael": "A U2PL model (with AEL)",
}
TRAINING_FACTS = {
    "method": "method",
    "variant": "variant",
    "split": "split",
    "seed": "seed",
    "initialised_with": "started from",
    "max_steps": "steps",
    "batch_size_labelled": "labelled images per step",
    "batch_size_unlabelled": "unlabelled images per step",
    "seconds": "seconds",
    "hardware": "hardware",
    "versions": "versions",
}


def render_card(results: dict) -> str:
    """Markdown with YAML metadata for the README.md of an exported model.

    Args:
        results: what a run writes to results.json. Read are: method, variant, dataset, subset, split, num_labelled,
            num_unlabelled, seed, max_steps, batch_size_labelled, batch_size_unlabelled, seconds, hardware,
            versions, protocol, class_names, command, last and best (each with step, mean_iou, accuracy,
            per_class_iou), pictures (path relative to the card), backbone, parameters, initialised_with (what training
            started from), converted_from (file, sha256, weights, epoch, best_miou, class_names_of, output_stride,
            aspp_dilations), and model_name and repo_id where the model has one. IoU and accuracy are fractions;
            missing keys and None leave their line out.

    Returns:
        The card; `huggingface_hub.ModelCard(text).data` reads the metadata back.
    """
    known = {key: value for key, value in results.items() if value is not None}
    name = known.get("model_name") or _default_name(known)
    context = {
        "title": name,
        "class_names": known.get("class_names", []),
        "num_labelled": known.get("num_labelled"),
        "num_unlabelled": known.get("num_unlabelled"),
        "dataset": _dataset_name(known),
        "facts": _facts(known),
        **{key: known.get(key) for key in ("backbone", "parameters", "pictures", "command", "repo_id", "protocol")},
        "origin": known.get("converted_from"),
    }
    card = str(ModelCard.from_template(_metadata(known, name), template_path=str(TEMPLATE), **context))
    # Parts that were left out leave their blank lines behind.
    return re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"


def _metadata(results: dict, name: str) -> ModelCardData:
    dataset = results.get("dataset", "")
    return ModelCardData(
        # Whose weights were converted is not known here.
        license=None if "converted_from" in results else "apache-2.0",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["u2pl", "semi-supervised", "semantic-segmentation"],
        # Only a Hub id belongs into `datasets`; a folder's path means nothing elsewhere.
        datasets=[dataset] if _is_hub_id(dataset) else None,
        model_name=name,
        eval_results=_eval_results(results) or None,
    )


def _eval_results(results: dict) -> list[EvalResult]:
    dataset = _dataset_name(results)
    if dataset is None:
        return []
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=results["dataset"] if _is_hub_id(results["dataset"]) else dataset,
            dataset_name=dataset,
            dataset_split=results.get("subset"),
            metric_type="mean_iou",
            metric_name=f"mIoU ({which}, step {results[which]['step']})",
            metric_value=results[which]["mean_iou"],
        )
        for which in ("best", "last")
        if results.get(which, {}).get("mean_iou") is not None
    ]


def _facts(results: dict) -> dict:
    """What the template prints that needs more than a look-up; numbers are formatted here."""
    scored = [which for which in ("best", "last") if results.get(which, {}).get("mean_iou") is not None]
    method = results.get("method", "")
    where = [str(part) for part in (_dataset_name(results), results.get("subset")) if part]
    return {
        "method_words": METHODS.get(method, "A model"),
        "semi_supervised": method.startswith("u2pl"),
        "evaluated_on": ", ".join(where),
        "protocol_words": _words(results.get("protocol", {})),
        "scores": [
            {
                "name": which,
                "step": results[which].get("step", ""),
                "mean_iou": _percent(results[which]["mean_iou"]),
                "accuracy": _percent(results[which].get("accuracy")),
            }
            for which in scored
        ],
        "per_class": [
            (name, [_percent(results[which].get("per_class_iou", {}).get(name)) for which in scored])
            for name in results.get("class_names", [])
            if any("per_class_iou" in results[which] for which in scored)
        ],
        "training": [
            (label, _words(results[key])) for key, label in TRAINING_FACTS.items() if results.get(key) not in (None, {})
        ],
    }


def _default_name(results: dict) -> str:
    dataset = (_dataset_name(results) or "").rpartition("/")[2] or None
    parts = [results.get("method"), results.get("backbone"), dataset, results.get("num_labelled")]
    return "-".join(str(part) for part in parts if part is not None) or "u2pl"


def _dataset_name(results: dict) -> str | None:
    dataset = results.get("dataset")
    return dataset if not dataset or _is_hub_id(dataset) else Path(dataset).name


def _is_hub_id(dataset: str) -> bool:
    """Whether it reads like owner/name and no such folder lies here."""
    owner, slash, name = dataset.partition("/")
    return bool(owner.strip(".") and slash and name and "/" not in name) and not Path(dataset).exists()


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _words(value) -> str:
    """A fact as text: 0.5 as 0.5, {"a": 1, "b": [2, 3]} as "a 1, b 2 3"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, (list, tuple)):
        return " ".join(_words(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
