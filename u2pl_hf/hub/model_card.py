"""The model card: a template filled with what results.json says. A fact that is not there is left out."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from u2pl_hf.hub.public_facts import public_facts
from u2pl_hf.hub.published_results import published_row
from u2pl_hf.markdown import escaped, one_line
from u2pl_hf.measure.other_runs import compare_runs

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
    "settings": "settings that are not the default",
    "split": "split",
    "seed": "seed",
    "initialised_with": "started from",
    "max_steps": "steps",
    "warmup_steps": "of these, supervised only",
    "crop_size": "crop, pixels",
    "batch_size_labelled": "labelled images per step",
    "batch_size_unlabelled": "unlabelled images per step",
    "learning_rate": "learning rate",
    "seconds": "seconds",
    "hardware": "hardware",
    "versions": "versions",
    "date": "finished",
}
# Facts that stand in the card as code or as addresses; all others are text.
LITERAL = {
    "command": lambda command: None if "```" in command else one_line(command),
    "pictures": quote,
    "curves": quote,
}
# What stands in the card for the model's place; `addressed_card` knows it.
PLACE = '"PATH_OR_ID_OF_THIS_FOLDER"'


def render_card(results: dict, *, others: Sequence[dict] = ()) -> str:
    """Markdown with YAML metadata for the README.md of an exported model.

    Args:
        results: what a run writes to results.json. Read are: method, variant, dataset, dataset_on_hub, dataset_license,
            subset, split, num_labelled, num_unlabelled, num_evaluation, seed, max_steps, warmup_steps, crop_size,
            batch_size_labelled, batch_size_unlabelled, learning_rate, seconds, hardware, versions, date, protocol,
            class_names, command, last and best (each with step, mean_iou, accuracy, per_class_iou), pictures and curves
            (paths relative to the card), backbone, architecture, parameters, initialised_with (what training started
            from), converted_from (file, sha256, weights, epoch, best_miou, class_names_of, output_stride,
            aspp_dilations), and model_name, repo_id and revision where the model has them. IoU and accuracy are
            fractions; missing keys and None leave their line out. Paths of this machine are reduced to names.
        others: results of further runs, such as of other seeds, splits or methods. Those on the same data are shown
            beside this one, with mean and standard deviation where runs differ in nothing but the seed.

    Returns:
        The card; `huggingface_hub.ModelCard(text).data` reads the metadata back.
    """
    known = {key: value for key, value in public_facts(results).items() if value is not None}
    name = one_line(known.get("model_name") or _default_name(known))
    told = {key: LITERAL.get(key, escaped)(value) for key, value in known.items()}
    origin = {**told.get("converted_from", {}), "file": _code(known.get("converted_from", {}).get("file", ""))}
    plain = ("backbone", "parameters", "pictures", "curves", "command", "protocol", "dataset", "dataset_license",
             "num_labelled", "num_unlabelled")  # fmt: skip
    context = {
        "title": escaped(name),
        "class_names": told.get("class_names", []),
        "facts": _facts(told),
        "origin": origin if "converted_from" in told else None,
        "place": _place(known["repo_id"], known.get("revision")) if "repo_id" in known else PLACE,
        "runs": compare_runs(told, [escaped(public_facts(other)) for other in others]),
        "published": published_row(told),
        **{key: told.get(key) for key in plain},
    }
    card = str(ModelCard.from_template(_metadata(known, name), template_path=str(TEMPLATE), **context))
    # Parts that were left out leave their blank lines behind.
    return re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"


def addressed_card(card: str, repo_id: str, revision: str | None = None) -> str:
    """A finished card, perhaps edited by hand, that says how to load the model from the Hub."""
    return card.replace(PLACE, _place(repo_id, revision))


def eval_results_yaml(results: dict) -> str | None:
    """The mean IoU of the model's weights, in the form of `.eval_results/*.yaml`; None if the data are not on the Hub.

    The Hub shows it where the data set is registered as a benchmark with a task "default". The score is that of `last`,
    or of `best` where `last` is missing: the best model's own folder has no other.
    """
    known = {key: value for key, value in public_facts(results).items() if value is not None}
    scored = known.get("last") or known.get("best") or {}
    if not known.get("dataset_on_hub") or scored.get("mean_iou") is None:
        return None
    told = {"subset": known.get("subset"), "split": known.get("split"), "step": scored.get("step")}
    entry = {"dataset": {"id": known["dataset"], "task_id": "default"}, "value": scored["mean_iou"]}
    if "dataset_revision" in known:
        entry["dataset"]["revision"] = known["dataset_revision"]
    if "date" in known:
        entry["date"] = known["date"]
    entry["notes"] = f"mean IoU as a fraction; {_words(told | known.get('protocol', {}))}"
    # As huggingface_hub.eval_result_entries_to_yaml writes it, which versions before 1.4 do not have.
    return yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)


def _metadata(results: dict, name: str) -> ModelCardData:
    base_model, relation = _base_model(results)
    return ModelCardData(
        # Whose weights were converted is not known here.
        license=None if "converted_from" in results else "apache-2.0",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["u2pl", "semi-supervised", "semantic-segmentation"],
        # Only a Hub id belongs into `datasets`; a folder's path means nothing elsewhere.
        datasets=[results["dataset"]] if results.get("dataset_on_hub") else None,
        base_model=base_model,
        base_model_relation=relation,
        model_name=name,
        eval_results=_eval_results(results) or None,
    )


def _base_model(results: dict) -> tuple[str | None, str | None]:
    """Hub id of the weights that training started from, and how the model came from it."""
    started = results.get("initialised_with") or {}
    if "commit" in started:
        # Only what was fetched from the Hub has a commit.
        return started.get("model") or started.get("backbone"), "finetune"
    return None, None


def _eval_results(results: dict) -> list[EvalResult]:
    dataset = results.get("dataset")
    if dataset is None:
        return []
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=results.get("subset"),
            dataset_revision=results.get("dataset_revision"),
            metric_type="mean_iou",
            metric_name=f"mIoU ({which}, step {results[which].get('step')})",
            metric_value=results[which]["mean_iou"],
        )
        for which in ("best", "last")
        if results.get(which, {}).get("mean_iou") is not None
    ]


def _facts(results: dict) -> dict:
    """What the template prints that needs more than a look-up; numbers are formatted here."""
    scored = [which for which in ("best", "last") if results.get(which, {}).get("mean_iou") is not None]
    method = results.get("method", "")
    where = [str(part) for part in (results.get("dataset"), results.get("subset")) if part]
    if results.get("num_evaluation"):
        where.append(f"{results['num_evaluation']} images")
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
        "is_last": "last" in scored,
        "architecture": _words(results.get("architecture", {})).replace("_", " "),
        "per_class": [
            (name, [_percent(results[which].get("per_class_iou", {}).get(name)) for which in scored])
            for name in results.get("class_names", [])
            if any("per_class_iou" in results[which] for which in scored)
        ],
        "training": [
            (label, _words(results[key]))
            for key, label in TRAINING_FACTS.items()
            if results.get(key) not in (None, {}, 0) or (key == "seed" and key in results)
        ],
    }


def _default_name(results: dict) -> str:
    dataset = (results.get("dataset") or "").rpartition("/")[2] or None
    parts = [results.get("method"), results.get("backbone"), dataset, results.get("num_labelled")]
    return "-".join(str(part) for part in parts if part is not None) or "u2pl"


def _place(repo_id: str, revision: str | None) -> str:
    """The arguments of from_pretrained."""
    return f'"{repo_id}"' + (f', revision="{revision}"' if revision else "")


def _code(text: str) -> str:
    """For a place between backticks."""
    return one_line(text).replace("`", "'")


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _words(value) -> str:
    """A fact as text: 0.5 as 0.5, {"a": 1, "b": [2, 3]} as "a 1, b 2 3"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, (list, tuple)):
        return " ".join(_words(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
