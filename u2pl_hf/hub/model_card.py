"""The model card: a template filled with what results.json says. A fact that is not there is left out."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from u2pl_hf.hub.paper import paper_row
from u2pl_hf.hub.results import PICTURES, public_facts, weights_of, with_method
from u2pl_hf.markdown import escaped, markdown_table, one_line
from u2pl_hf.measure.side_by_side import beside, label, percent, words

# Beside this file, so that an installed package has it; model_cards/template.md is a link to it.
TEMPLATE = Path(__file__).with_name("template.md")
TRAINING_FACTS = (
    "method", "variant", "settings", "split", "seed", "initialised_with", "frozen", "max_steps", "warmup_steps",
    "warmup_agreement", "crop_size", "batch_size_labelled", "batch_size_unlabelled", "learning_rate", "seconds",
    "hardware", "versions", "date",
)  # fmt: skip
# What stands in the card for the model's place; `addressed_card` knows it.
PLACE = '"PATH_OR_ID_OF_THIS_FOLDER"'


def render_model_card(results: dict, *, others: Sequence[dict] = ()) -> str:
    """Markdown with YAML metadata for the README.md of an exported model.

    Args:
        results: what a run writes to results.json, see `results.Results`, and repo_id and revision where the model has
            them. IoU and accuracy are fractions; pictures and curves are paths relative to the card. Missing keys and
            None leave their line out. Paths of this machine are reduced to names.
        others: results of further runs, such as of other seeds, splits or methods. Those on the same data are shown
            beside this one, with mean and standard deviation where runs differ in nothing but the seed.

    Returns:
        The card; `huggingface_hub.ModelCard(text).data` reads the metadata back.
    """
    known = _known(results)
    parts = [known[key] for key in ("method", "backbone", "dataset", "num_labelled") if key in known]
    usual = "-".join(str(part).rpartition("/")[2] for part in parts) or "u2pl"
    name = one_line(known.get("model_name") or usual)
    told, command = escaped(known), known.get("command", "```")
    # Facts that stand in the card as code or as addresses; all others are text.
    told |= {key: quote(known[key]) for key in PICTURES if key in known}
    runs = beside(told, [escaped(_known(other)) for other in others])
    context = told | {
        "title": escaped(name),
        "command": None if "```" in command else one_line(command),
        "file": one_line(str(known.get("converted_from", {}).get("file"))).replace("`", "'"),
        "place": _place(known["repo_id"], known.get("revision")) if "repo_id" in known else PLACE,
        "runs": markdown_table(runs[0], runs[1:], str) if runs else None,
        "published": paper_row(told),
        "scored": _scored(told),
        "weights_of": weights_of(told),
        "training": [(label(key), words(told[key])) for key in TRAINING_FACTS if told.get(key) not in (None, {})],
        "percent": percent,
        "words": words,
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
    or of `best` where that one was kept or `last` is missing: the best model's own folder has no other.
    """
    known = _known(results)
    scored = known.get(weights_of(known)) or {}
    if not known.get("dataset_on_hub") or scored.get("mean_iou") is None:
        return None
    told = {"subset": known.get("subset"), "split": known.get("split"), "step": scored.get("step")}
    entry = EvalResultEntry(
        known["dataset"],
        "default",
        scored["mean_iou"],
        dataset_revision=known.get("dataset_revision"),
        date=known.get("date"),
        notes=f"mean IoU as a fraction; {words(told | known.get('protocol', {}))}",
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)


def _known(results: dict) -> dict:
    return {key: value for key, value in with_method(public_facts(results)).items() if value is not None}


def _scored(known: dict) -> dict[str, dict]:
    found = {which: known.get(which, {}) for which in ("best", "last")}
    return {which: scores for which, scores in found.items() if scores.get("mean_iou") is not None}


def _metadata(known: dict, name: str) -> ModelCardData:
    started, dataset = known.get("initialised_with", {}), known.get("dataset")
    # Only what was fetched from the Hub has a commit.
    base_model = (started.get("model") or started.get("backbone")) if "commit" in started else None
    evaluations = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=known.get("subset"),
            dataset_revision=known.get("dataset_revision"),
            metric_type="mean_iou",
            metric_name=f"mIoU ({which}, step {scores.get('step')})",
            metric_value=scores["mean_iou"],
        )
        for which, scores in _scored(known).items()
        if dataset is not None
    ]
    return ModelCardData(
        # Whose weights were converted is not known here.
        license=None if "converted_from" in known else "apache-2.0",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["u2pl", "semi-supervised", "semantic-segmentation"],
        # Only a Hub id belongs into `datasets`; a folder's path means nothing elsewhere.
        datasets=[dataset] if known.get("dataset_on_hub") else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        model_name=name,
        eval_results=evaluations or None,
    )


def _place(repo_id: str, revision: str | None) -> str:
    """The arguments of from_pretrained."""
    return f'"{repo_id}"' + (f', revision="{revision}"' if revision else "")
