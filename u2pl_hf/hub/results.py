"""results.json of a run: its fields, how it is read, and its facts as they may be shown to others."""

import re
import shlex
from pathlib import Path, PureWindowsPath
from typing import Required, TypedDict

from u2pl_hf.errors import require
from u2pl_hf.files import file_in, read_json
from u2pl_hf.method import METHODS

# /home/me/x, ~/x, ../x, C:\x: where somebody keeps things. data/x below the current folder tells nothing of them.
PRIVATE = re.compile(r"(/|~|\.\.[/\\]|[A-Za-z]:[/\\])")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Fields that name one, in the order in which a collection takes them: the last only where it may be shown.
PICTURES = ("curves", "reliability", "pictures")
TEXTS = ("method", "method_title", "method_about", "variant", "dataset", "dataset_revision", "dataset_license",
         "subset", "split", "date", "command", *PICTURES, "output_dir", "backbone",
         "frozen", "model_name")  # fmt: skip
COUNTS = ("num_labelled", "num_unlabelled", "num_evaluation", "seed", "max_steps", "warmup_steps", "parameters",
          "model_step")  # fmt: skip
OBJECTS = ("settings", "hardware", "versions", "protocol", "architecture", "converted_from")


class Evaluation(TypedDict, total=False):
    """Scores as fractions; None where there is nothing to score."""

    step: int
    mean_iou: Required[float | None]
    accuracy: float | None
    per_class_iou: dict[str, float | None]


class Calibration(TypedDict):
    """What `u2pl calibrate` found, on images and pixels that the temperature was not fitted on; before: at 1.

    `temperature` is the model's: the fitted one, or 1 where that was no better.
    """

    temperature: float
    fitted_temperature: float
    dataset: str
    subset: str
    protocol: dict
    fitted_images: int
    fitted_pixels: int
    images: int
    pixels: int
    bins: int
    ece_before: float
    ece: float
    nll_before: float
    nll: float


# What a card is made of. Fields that are not there are left out of it.
Results = TypedDict(
    "Results",
    {
        **dict.fromkeys(TEXTS, str | None),
        **dict.fromkeys(COUNTS, int | None),
        **dict.fromkeys(("learning_rate", "seconds", "warmup_agreement"), float | None),
        **dict.fromkeys(OBJECTS, dict | None),
        **dict.fromkeys(("last", "best"), Evaluation | None),
        "calibration": Calibration | None,
        "dataset_on_hub": bool | None,
        "class_names": list[str] | None,
        # Which of these are no setting but what the run found out about itself.
        "found": list[str] | None,
        "initialised_with": dict[str, str | None] | None,
        # Lines that the run was told, each with step and kind.
        "health": list[dict] | None,
    },
    total=False,
)


def read_results(folder: Path) -> dict | None:
    """results.json of an exported folder, if there is one.

    Raises:
        InputError: it is not what a run wrote.
    """
    path = file_in(folder, "results.json")
    return read_json(path, Results) if path else None


def finished_results(folder: Path) -> dict:
    """results.json of a finished run.

    Raises:
        InputError: there is none, or it is not what a run wrote.
    """
    results = read_results(folder)
    told = f"{folder} holds no finished run (no results.json); train it first, or leave it out"
    require(results is not None, told)
    best = "no finished run but its best model; pass the run's own folder"
    told = best if results.get("best") else "no results of a run (no last evaluation); restore it, or remove it"
    require(results.get("last") is not None, f"{folder / 'results.json'} holds {told}")
    return results


def with_method(results: dict) -> dict:
    """Results with what their method is, which those of before lack."""
    step = METHODS.get(results.get("method"))
    if step is None or results.get("method_title") is not None:
        return results
    words = {"method_title": step.title, "method_about": step.about}
    return results | words | ({} if step.uses_unlabelled else {"num_unlabelled": 0})


def weights_of(facts: dict) -> str:
    """Which evaluation the weights beside results are of: "last" or "best"."""
    last = facts.get("last")
    return "last" if last and facts.get("model_step") in (None, last.get("step")) else "best"


def public_facts(facts: dict) -> dict:
    """A copy of results without the paths of this machine; the same again changes nothing.

    `dataset` becomes a Hub id or a name, and `dataset_on_hub` tells which; the list of a split keeps its folder's
    name.
    """
    public = {key: value if key == "class_names" else without_paths(value) for key, value in facts.items()}
    if dataset := facts.get("dataset"):
        is_id = bool(HUB_ID.fullmatch(dataset)) and not Path(dataset).exists()
        public["dataset_on_hub"] = facts.get("dataset_on_hub", is_id)
        public["dataset"] = dataset if public["dataset_on_hub"] else _name(dataset)
    if PRIVATE.match(facts.get("split") or ""):
        public["split"] = "/".join(PureWindowsPath(facts["split"]).parts[-2:])
    if facts.get("output_dir"):
        public["output_dir"] = _name(facts["output_dir"])
    if facts.get("command"):
        try:
            public["command"] = shlex.join(map(_public_word, shlex.split(facts["command"])))
        except ValueError:  # a quote that does not end: no command that ran
            public["command"] = None
    return public


def without_paths(value):
    """A value of JSON in which paths that tell where somebody keeps things are reduced to names."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    return _name(value) if isinstance(value, str) and PRIVATE.match(value) else value


def _public_word(word: str) -> str:
    option, equals, value = word.partition("=")
    return f"{option}={without_paths(value)}" if option.startswith("-") and equals else without_paths(word)


def _name(path: str) -> str:
    # Knows both kinds of slashes.
    return PureWindowsPath(path).name or path
