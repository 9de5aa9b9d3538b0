"""Tables of measured runs: which runs belong to one, and its text from what they wrote."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from u2pl_hf.errors import InputError
from u2pl_hf.files import read_yaml
from u2pl_hf.markdown import escaped, markdown_table, one_line

SLUG = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Row:
    """One line of a table: a recipe, and the options that it is changed by.

    Attributes:
        id: names its runs.
        name: what the table calls it.
        recipe: file name below training_scripts/recipes.
        options: fields of RunArguments; "{dataset}" in a text stands for the data set.
        seeds: one run each.
    """

    id: str
    name: str
    recipe: str
    options: dict = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Table:
    """What is measured and shown together.

    Attributes:
        name: of the file, and in the names of its runs.
        title, text: what the reader is told.
        rows: see Row.
        pictures: whether the images may be shown in a repository.
    """

    name: str
    title: str
    text: str
    rows: tuple[Row, ...]
    pictures: bool = False

    def runs(self) -> dict[str, tuple[Row, int]]:
        """Name of a run -> its row and seed: the first seed of all rows, then the second ones."""
        seeds = list(dict.fromkeys(seed for row in self.rows for seed in row.seeds))
        return {f"{self.name}_{r.id}_seed{s}": (r, s) for s in seeds for r in self.rows if s in r.seeds}


def read_table(path: Path) -> Table:
    """A table's file: title, text, options and seeds that all rows share, and rows.

    Raises:
        InputError: it cannot be read, or lacks something; names what.
    """
    try:
        content = read_yaml(path, "pass a title and rows with id, name, recipe, as in training_scripts/tables")
        if not isinstance(content, dict):
            raise TypeError("it holds no fields")
        shared, seeds = content.get("options") or {}, content.get("seeds") or [0]
        rows = tuple(
            Row(
                str(row["id"]),
                str(row["name"]),
                str(row["recipe"]),
                shared | (row.get("options") or {}),
                tuple(map(int, row.get("seeds", seeds))),
            )
            for row in content["rows"]
        )
        text, pictures = str(content.get("text") or "").strip(), bool(content.get("pictures", False))
        table = Table(path.stem, str(content["title"]), text, rows, pictures)
    except InputError as error:
        raise InputError(f"table {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"table {path} is not a title and rows with id, name, recipe: {' '.join(str(error).split())}"
        ) from error
    unmeasured = [row.id for row in rows if not row.seeds]
    if unmeasured:
        raise InputError(f"table {path}: row {unmeasured[0]} has no seeds")
    ids = [row.id for row in rows]
    if not ids or len(set(ids)) < len(ids) or not all(SLUG.fullmatch(i) for i in ids):
        raise InputError(f"table {path}: ids must be different and of a-z, 0-9, _: {' '.join(ids)}")
    return table


def render_table(table: Table, found: Mapping[str, dict]) -> str:
    """Markdown from the results of its runs, as results.json has them; runs that are not there are named.

    Args:
        table: what belongs together.
        found: run name -> results.
    """
    runs = table.runs().items()
    groups = [(row, [found[name] for name, (r, _) in runs if r is row and name in found]) for row in table.rows]
    measured = [(row, runs) for row, runs in groups if runs]
    missing = [name for name in table.runs() if name not in found]
    parts = [f"# {one_line(table.title)}"] + ([table.text] if table.text else [])
    if measured:
        parts += [
            _scores(measured),
            "Mean IoU and IoU per class in per cent, means over the seeds.",
            _classes(measured),
        ]
        parts.append(_circumstances([run for _, runs in measured for run in runs]))
    if missing:
        parts.append(f"Not run: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _scores(measured: list[tuple[Row, list[dict]]]) -> str:
    head = ["", "labelled", "steps", "seeds", "last", "± over seeds", "best", "each seed, last", "minutes"]
    lines = []
    for row, runs in measured:
        scores = ([run[which]["mean_iou"] for run in runs] for which in ("last", "best"))
        last, best = ([100 * score for score in each if score is not None] for each in scores)
        lines.append([
            row.name,
            _same(runs, "num_labelled"),
            _same(runs, "max_steps"),
            " ".join(str(run["seed"]) for run in runs),
            _mean(last),
            f"{statistics.stdev(last):.2f}" if len(last) > 1 else "",
            _mean(best),
            " ".join(f"{score:.2f}" for score in last),
            f"{statistics.mean(run['seconds'] for run in runs) / 60:.0f}",
        ])  # fmt: skip
    return markdown_table(head, lines)


def _classes(measured: list[tuple[Row, list[dict]]]) -> str:
    names = list(dict.fromkeys(name for _, runs in measured for name in runs[0]["class_names"]))
    lines = []
    for name in names:
        cells = []
        for _, runs in measured:
            known = [run["last"]["per_class_iou"].get(name) for run in runs]
            known = [100 * value for value in known if value is not None]
            cells.append(f"{statistics.mean(known):.1f}" if known else "-")
        lines.append([name, *cells])
    return markdown_table(["class", *(row.name for row, _ in measured)], lines)


def _circumstances(runs: Sequence[dict]) -> str:
    """Hardware and versions, of each kind once."""
    hardware = {
        f"{h['name']}, {_number(h['processes'], 'process', 'es')} with {_number(h['threads'], 'thread', 's')}"
        for h in (run["hardware"] for run in runs)
    }
    versions = {f"torch {run['versions']['torch']}" for run in runs}
    dates = sorted({run["date"] for run in runs if run.get("date")})
    when = [dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"] if dates else []
    return f"Measured on {escaped('; '.join([*sorted(hardware), ', '.join(sorted(versions)), *when]))}."


def _mean(scores: Sequence[float]) -> str:
    return f"{statistics.mean(scores):.2f}" if scores else "-"


def _number(count: int, what: str, plural: str) -> str:
    return f"{count} {what}{plural if count != 1 else ''}"


def _same(runs: Sequence[dict], key: str) -> str:
    return " / ".join(dict.fromkeys(str(run[key]) for run in runs))
