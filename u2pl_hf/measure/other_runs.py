"""Several runs side by side: one row for each setting, with mean and standard deviation over its seeds."""

import json
import statistics
from collections.abc import Sequence

# Runs with other data, classes or evaluation are not comparable at all.
SAME_TASK = ("dataset", "dataset_revision", "subset", "class_names", "protocol")
# Runs that agree in these too differ in the seed alone.
SETTING = ("method", "variant", "settings", "split", "num_labelled", "num_unlabelled", "backbone", "architecture",
           "parameters", "max_steps", "warmup_steps", "crop_size", "batch_size_labelled", "batch_size_unlabelled",
           "learning_rate", "initialised_with")  # fmt: skip
# Told in a column of their own where the rows differ in them.
COLUMNS = {"method": "method", "variant": "variant", "settings": "settings", "split": "split",
           "num_labelled": "labelled images", "backbone": "backbone", "max_steps": "steps",
           "learning_rate": "learning rate", "crop_size": "crop"}  # fmt: skip


def compare_runs(results: dict, others: Sequence[dict]) -> dict | None:
    """A table of this run and of the others on the same task; None where there are none.

    Args:
        results: a run's facts, as in `model_card.render_card`.
        others: further runs' facts. The run itself, and a run that is given twice, count once.

    Returns:
        `head` and `rows` of text. The seed of this run is bold.
    """
    runs, seen = [], set()
    for run in [results, *others]:
        if (text := _identity(run)) not in seen:
            runs.append(run)
            seen.add(text)
    same = [run for run in runs if _key(run, SAME_TASK) == _key(results, SAME_TASK) and _scored(run)]
    if len(same) < 2 or not _scored(results):
        return None
    groups: dict[str, list[dict]] = {}
    for run in same:
        groups.setdefault(_key(run, SETTING), []).append(run)
    shown = [name for name in COLUMNS if len({_key(group[0], (name,)) for group in groups.values()}) > 1]
    head = [COLUMNS[name] for name in shown or ["method"]] + ["seeds", "mIoU, best", "mIoU, last"]
    rows = [_row(group, shown or ["method"], results) for group in groups.values()]
    return {"head": head, "rows": rows}


def _row(group: list[dict], shown: list[str], results: dict) -> list[str]:
    seeds = " ".join(f"**{run.get('seed', '-')}**" if run is results else str(run.get("seed", "-")) for run in group)
    scores = [_mean([run[which]["mean_iou"] for run in group]) for which in ("best", "last")]
    return [*(_told(group[0].get(name)) for name in shown), seeds, *scores]


def _told(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)


def _mean(fractions: list[float]) -> str:
    """Per cent; from two values on with the standard deviation of the sample."""
    values = [100 * fraction for fraction in fractions]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _scored(run: dict) -> bool:
    return all((run.get(which) or {}).get("mean_iou") is not None for which in ("best", "last"))


def _key(run: dict, names: Sequence[str]) -> str:
    return json.dumps([run.get(name) for name in names], sort_keys=True)


def _identity(run: dict) -> str:
    """What two runs cannot share: setting, seed and scores. Times and names may differ between two copies of one."""
    return _key(run, (*SAME_TASK, *SETTING, "seed", "best", "last"))
