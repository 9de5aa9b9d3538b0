"""Runs side by side: grouped by their setting over the seeds, in columns, for Markdown or as aligned text.

A group is a name and the facts of runs that differ in the seed alone; rows are lists of text, the head first.
"""

import json
import statistics
from collections.abc import Iterable, Sequence

Groups = Sequence[tuple[str, Sequence[dict]]]
# Runs with other data, classes or evaluation are not comparable at all.
SAME_TASK = ("dataset", "dataset_revision", "subset", "class_names", "protocol")
# Runs that agree in these too differ in the seed alone.
SETTING = ("method", "variant", "settings", "split", "num_labelled", "num_unlabelled", "backbone", "architecture",
           "parameters", "max_steps", "warmup_steps", "crop_size", "batch_size_labelled", "batch_size_unlabelled",
           "learning_rate", "initialised_with", "frozen")  # fmt: skip
# What two runs cannot share: times and names may differ between two copies of one.
IDENTITY = (*SAME_TASK, *SETTING, "seed", "best", "last")
# Shown by `beside` where the rows differ in them.
TOLD = ("method", "variant", "settings", "split", "num_labelled", "backbone", "frozen", "max_steps", "learning_rate",
        "crop_size")  # fmt: skip
# Columns that are no fact but computed from the runs of a group.
COMPUTED = {
    "seeds": lambda runs: " ".join(words(run.get("seed")) for run in runs),
    "last": lambda runs: percent(mean_iou(runs, "last")),
    "best": lambda runs: percent(mean_iou(runs, "best")),
    "± over seeds": lambda runs: deviation(mean_iou(runs, "last")),
    "each seed, last": lambda runs: " ".join(percent([value]) for value in mean_iou(runs, "last")),
    "best at step": lambda runs: words([(run.get("best") or {}).get("step") for run in runs]),
    "minutes": lambda runs: f"{statistics.mean(run.get('seconds') or 0 for run in runs) / 60:.0f}",
}


def label(name: str) -> str:
    """A fact in words: num_labelled as "labelled", max_steps as "steps", crop_size as "crop size"."""
    return name.removeprefix("num_").removeprefix("max_").replace("_", " ")


def grouped(runs: Iterable[dict], facts: Sequence[str] = SETTING) -> list[list[dict]]:
    """Groups of runs that agree in these facts, in the order of their first ones."""
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(_key(run, facts), []).append(run)
    return list(groups.values())


def rows_of(groups: Groups, columns: Sequence[str]) -> list[list[str]]:
    """A head, and a row for each group: its name, and of each fact or computed column what the group has."""
    head = ["", *map(label, columns)]
    return [head] + [[name, *(cell(column, runs) for column in columns)] for name, runs in groups]


def cell(column: str, runs: Sequence[dict]) -> str:
    """What a column says of a group; several values where its runs do not agree."""
    if column in COMPUTED:
        return COMPUTED[column](runs)
    return " / ".join(dict.fromkeys(words(run.get(column)) for run in runs))


def class_rows(groups: Groups, digits: int) -> list[list[str]]:
    """A row for each class: its name, and each group's mean IoU of it at the last step, in per cent."""
    names = dict.fromkeys(name for _, runs in groups for name in runs[0].get("class_names") or [])

    def mean(name: str, runs: Sequence[dict]) -> str:
        return percent([(run.get("last") or {}).get("per_class_iou", {}).get(name) for run in runs], digits)

    return [[name, *(mean(name, runs) for _, runs in groups)] for name in names]


def beside(run: dict, others: Sequence[dict]) -> list[list[str]] | None:
    """A head and rows of this run and of the others on the same task; None where there are none.

    Args:
        run: a run's facts, as in `model_card.render_model_card`.
        others: further runs' facts. The run itself, and a run that is given twice, count once.

    Returns:
        Markdown; the seed of this run is bold.
    """
    distinct = [same[0] for same in grouped([run, *others], IDENTITY)]
    scored = [r for r in distinct if None not in (*mean_iou([r], "best"), *mean_iou([r], "last"))]
    same_task = next((runs for runs in grouped(scored, SAME_TASK) if runs[0] is run), [])
    if len(same_task) < 2:
        return None
    marked = [r | {"seed": f"**{words(r.get('seed'))}**"} if r is run else r for r in same_task]
    groups = [("", runs) for runs in grouped(marked)]
    differing = [name for name in TOLD if len({cell(name, runs) for _, runs in groups}) > 1] or ["method"]
    return [row[1:] for row in rows_of(groups, [*differing, "seeds", "last", "± over seeds", "best"])]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Text for a terminal: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]) for first, *others in rows
    )


def mean_iou(runs: Sequence[dict], which: str) -> list[float | None]:
    """Of the `last` or the `best` evaluation of each run, as fractions."""
    return [(run.get(which) or {}).get("mean_iou") for run in runs]


def percent(fractions: Sequence[float | None], digits: int = 2) -> str:
    """Their mean in per cent; "-" where nothing is known."""
    known = [100 * fraction for fraction in fractions if fraction is not None]
    return f"{statistics.mean(known):.{digits}f}" if known else "-"


def deviation(fractions: Sequence[float | None]) -> str:
    """The standard deviation of the sample in per cent; nothing for less than two values."""
    known = [100 * fraction for fraction in fractions if fraction is not None]
    return f"{statistics.stdev(known):.2f}" if len(known) > 1 else ""


def words(value) -> str:
    """A fact as text: 0.5 as 0.5, {"a": 1, "b": [2, 3]} as "a 1, b 2 3", nothing as "-"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {words(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return " ".join(map(words, value))
    if isinstance(value, float) and abs(value) < 1e4:
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _key(run: dict, names: Sequence[str]) -> str:
    # What a run found out itself differs between seeds of one setting.
    found = run.get("found") or ()
    return json.dumps([None if name in found else run.get(name) for name in names], sort_keys=True)
