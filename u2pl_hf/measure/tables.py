"""Tables of measured runs: which runs belong to one, and its text from what they wrote."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from u2pl_hf.errors import InputError
from u2pl_hf.files import read_yaml
from u2pl_hf.markdown import escaped, markdown_table, one_line
from u2pl_hf.measure.side_by_side import class_rows, rows_of

SLUG = re.compile(r"[a-z0-9_]+")
COLUMNS = ("labelled", "steps", "seeds", "last", "± over seeds", "best", "each seed, last", "minutes")


@dataclass(frozen=True)
class TableRow:
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
        rows: see TableRow.
        pictures: whether the images may be shown in a repository.
    """

    name: str
    title: str
    text: str
    rows: tuple[TableRow, ...]
    pictures: bool = False

    def runs(self) -> dict[str, tuple[TableRow, int]]:
        """Name of a run -> its row and seed: the first seed of all rows, then the second ones."""
        seeds = list(dict.fromkeys(seed for row in self.rows for seed in row.seeds))
        return {f"{self.name}_{r.id}_seed{s}": (r, s) for s in seeds for r in self.rows if s in r.seeds}


def scripts_folder() -> Path:
    """Where recipes and tables lie."""
    return Path(__file__).resolve().parents[2] / "training_scripts"


def project_tables() -> list[Table]:
    """The tables of training_scripts/tables."""
    return [read_table(path) for path in sorted((scripts_folder() / "tables").glob("*.yaml"))]


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
            TableRow(
                *(str(row[key]) for key in ("id", "name", "recipe")),
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
        told = " ".join(str(error).split())
        raise InputError(f"table {path} is not a title and rows with id, name, recipe: {told}") from error
    ids = [row.id for row in rows]
    wrong = [f"row {row.id} has no seeds" for row in rows if not row.seeds]
    if not ids or len(set(ids)) < len(ids) or not all(map(SLUG.fullmatch, ids)):
        wrong.append(f"ids must be different and of a-z, 0-9, _: {' '.join(ids)}")
    if wrong:
        raise InputError(f"table {path}: {wrong[0]}")
    return table


def render_table(table: Table, found: Mapping[str, dict]) -> str:
    """Markdown from the results of its runs, as results.json has them; runs that are not there are named.

    Args:
        table: what belongs together.
        found: run name -> results; others than the table's are passed over.
    """
    groups: dict[str, list[dict]] = {row.id: [] for row in table.rows}
    for name, (row, _) in table.runs().items():
        groups[row.id] += [found[name]] if name in found else []
    measured = {row.name: groups[row.id] for row in table.rows if groups[row.id]}
    missing = [name for name in table.runs() if name not in found]
    parts = [f"# {one_line(table.title)}", table.text]
    if measured:
        head, *rows = rows_of(measured, COLUMNS)
        parts += [
            markdown_table(head, rows),
            "Mean IoU and IoU per class in per cent, means over the seeds.",
            markdown_table(["class", *measured], class_rows(measured, 1)),
            _circumstances(run for runs in measured.values() for run in runs),
        ]
    if missing:
        parts.append(f"Not run: {', '.join(missing)}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def _circumstances(runs: Iterable[dict]) -> str:
    """Hardware, versions and dates, of each kind once."""
    hardware, versions, dates = set(), set(), set()
    for run in runs:
        name, processes, threads = (run["hardware"][key] for key in ("name", "processes", "threads"))
        counts = f"{processes} process{'es' * (processes != 1)} with {threads} thread{'s' * (threads != 1)}"
        hardware.add(f"{name}, {counts}")
        versions.add(f"torch {run['versions']['torch']}")
        dates.add(run.get("date") or "")
    when = sorted(dates - {""})
    told = [*sorted(hardware), ", ".join(sorted(versions)), " to ".join(dict.fromkeys([*when[:1], *when[-1:]]))]
    return f"Measured on {escaped('; '.join(filter(None, told)))}."
