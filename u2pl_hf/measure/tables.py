"""Tables of measured runs: which runs belong to one, and its text from what they wrote."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from u2pl_hf.errors import refusing, require
from u2pl_hf.files import misfit, read_yaml
from u2pl_hf.markdown import escaped, markdown_table, one_line
from u2pl_hf.measure.room import room_lines, room_rows
from u2pl_hf.measure.side_by_side import Groups, class_rows, rows_of, words
from u2pl_hf.measure.table_picture import has_curves
from u2pl_hf.resources import resource_folder

SLUG = re.compile(r"[a-z0-9_]+")
HINT = "pass a title and rows with id, name, recipe, as in training_scripts/tables"
COLUMNS = ("num_labelled", "max_steps", "seeds", "last", "± over seeds", "best", "each seed, last", "minutes")


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
    options: dict
    seeds: list[int]


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
    rows: list[TableRow]
    pictures: bool

    def runs(self) -> dict[str, tuple[TableRow, int]]:
        """Name of a run -> its row and seed: the first seed of all rows, then the second ones."""
        seeds = list(dict.fromkeys(seed for row in self.rows for seed in row.seeds))
        return {f"{self.name}_{r.id}_seed{s}": (r, s) for s in seeds for r in self.rows if s in r.seeds}


def project_tables() -> list[Table]:
    """The tables that come with the package."""
    return [read_table(path) for path in sorted(resource_folder("tables").glob("*.yaml"))]


def read_table(path: Path) -> Table:
    """A table's file: title, text, options and seeds that all rows share, and rows.

    Raises:
        InputError: it cannot be read, or lacks something; names what.
    """
    content = read_yaml(path, HINT)
    told = f"table {path} is not a title and rows with id, name, recipe"
    with refusing((AttributeError, KeyError, TypeError, ValueError), told):
        defaults = {"name": path.stem, "text": "", "options": {}, "seeds": [0], "pictures": False}
        content = defaults | {key: value for key, value in content.items() if value is not None}
        shared, seeds, rows = (content.pop(key) for key in ("options", "seeds", "rows"))
        rows = [{"seeds": seeds} | row | {"options": shared | (row.get("options") or {})} for row in rows]
        if wrong := misfit(content | {"rows": rows}, Table):
            raise ValueError(wrong)
        table = Table(**content, rows=[TableRow(**row) for row in rows])
    ids, empty = [row.id for row in table.rows], [row.id for row in table.rows if not row.seeds]
    require(not empty, f"table {path}: row {''.join(empty[:1])} has no seeds")
    are_names = ids and len(set(ids)) == len(ids) and all(map(SLUG.fullmatch, ids))
    require(are_names, f"table {path}: ids must be different and of a-z, 0-9, _: {' '.join(ids)}")
    return table


def render_table(table: Table, found: Mapping[str, dict]) -> str:
    """Markdown from the results of its runs, as results.json has them; runs that are not there are named.

    Args:
        table: what belongs together.
        found: run name -> results; others than the table's are passed over.
    """
    measured = measured_rows(table, found)
    missing = [name for name in table.runs() if name not in found]
    parts = [f"# {one_line(table.title)}", table.text.strip()]
    if measured:
        head, *rows = rows_of(measured, COLUMNS)
        parts += [
            markdown_table(head, rows),
            "Mean IoU and IoU per class in per cent, means over the seeds.",
            markdown_table(["class", *(name for name, _ in measured)], class_rows(measured, 1)),
            *room_parts(table, measured),
            _circumstances(measured),
        ]
    if missing:
        parts.append(f"Not run: {', '.join(missing)}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def measured_rows(table: Table, found: Mapping[str, dict]) -> Groups:
    """(name, results of its runs) of each row that has some."""
    groups: dict[str, list[dict]] = {row.id: [] for row in table.rows}
    for name, (row, _) in table.runs().items():
        groups[row.id] += [found[name]] if name in found else []
    return [(row.name, groups[row.id]) for row in table.rows if groups[row.id]]


def room_parts(table: Table, measured: Groups) -> list[str]:
    """What labels could bring, what each method brings of it, and the curves; nothing where SupOnly is missing."""
    head, *rows = room_rows(measured)
    if not rows:
        return []
    picture = f"![Mean IoU over the labelled images seen]({table.name}.png)" if has_curves(measured) else ""
    return ["## Room", " ".join(room_lines(measured)), markdown_table(head, rows), picture]


def _circumstances(measured: Groups) -> str:
    """Hardware, versions and dates; where runs are of several machines, which are not of the one that has most."""
    rows: dict[str, dict[str, list[int]]] = {}
    for name, runs in measured:
        for run in runs:
            place = run.get("hardware") or {}
            told = f"{place.get('name')}, {words({key: place.get(key) for key in ('processes', 'threads')})}"
            rows.setdefault(told, {}).setdefault(name, []).append(run.get("seed"))
    first, *others = sorted(rows, key=lambda place: (-sum(map(len, rows[place].values())), place))
    hardware = [first]
    for place in others:
        of = ", ".join(f"{name} ({words({'seeds': seeds})})" for name, seeds in rows[place].items())
        hardware.append(f"on {place}: {of}")
    runs = [run for _, runs in measured for run in runs]
    versions = {f"torch {(run.get('versions') or {}).get('torch')}" for run in runs}
    dates = sorted({run["date"] for run in runs if run.get("date")})
    when = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))
    return f"Measured on {escaped('; '.join(filter(None, [*hardware, *sorted(versions), when])))}."
