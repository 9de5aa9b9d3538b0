"""Measured runs: the records of all, the tables, and cards of a few, rendered from the records.

model_cards/records/demo.jsonl   the facts of each run of a table, a line each, without paths of the machine it ran on;
                                 of runs that are of no table: other.jsonl
model_cards/demo.md demo.png     the table, and the curves of its rows where records have them
model_cards/demo_u2pl_seed0/     a run that is shown: README.md, its card, and curves.png reliability.png
                                 pictures/
"""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Required

from PIL import Image

from u2pl_hf.errors import refusing, require
from u2pl_hf.evaluation.curves import read_metrics
from u2pl_hf.files import read_json_lines, read_text, remove, write_atomically, write_text
from u2pl_hf.hub.exported import picture_in
from u2pl_hf.hub.model_card import render_model_card
from u2pl_hf.hub.results import PICTURES, Results, finished_results, public_facts
from u2pl_hf.measure.table_picture import has_curves, save_table_curves
from u2pl_hf.measure.tables import Table, measured_rows, render_table
from u2pl_hf.pixels import DAMAGED

OTHER = "other"


class Record(Results, total=False):
    """A line of records/TABLE.jsonl: results of a run, its name, and step and mean IoU of each evaluation."""

    run: Required[str]
    curve: list[list[float]] | None


def read_records(collection: Path, name: str = "*") -> dict[str, dict]:
    """Name of a run -> its facts, of the records of one table or of all.

    Raises:
        InputError: a line is damaged; names it.
    """
    records = {}
    for path in sorted((collection / "records").glob(f"{name}.jsonl")):
        for _, facts in read_json_lines(path, Record):
            records[facts.pop("run")] = facts
    return records


def add_run(run: Path, collection: Path, tables: Iterable[Table] = (), *, pictures: bool = False) -> None:
    """Take a finished run's facts into the records, in place of an earlier run of the name.

    A run that is shown, or that belongs to none of the tables, gets its curves as well.

    Args:
        pictures: show the run, with the pictures of its last evaluation.

    Raises:
        InputError: the run is not finished, or a path of the collection leads elsewhere.
    """
    results, name = finished_results(run), run.resolve().name
    table = next((table for table in tables if name in table.runs()), None)
    records, folder = collection / "records" / f"{table.name if table else OTHER}.jsonl", collection / name
    for place in (records.parent, folder):
        _require_inside(collection, place)
    if table is None or pictures or folder.is_dir():
        allowed = pictures or (table is not None and table.pictures)
        shown = [picture_in(run, results.get(what)) for what in PICTURES[: 2 + allowed]]
        # In place of the ones that are there.
        remove(folder / "pictures")
        for picture in filter(None, shown):
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / picture, functools.partial(_reduce, run / picture))
    known = read_records(collection, records.stem) | {name: public_facts(results) | evaluations(run)}
    order = list(table.runs()) if table else []
    names = sorted(known, key=lambda name: (order.index(name) if name in order else len(order), name))
    records.parent.mkdir(parents=True, exist_ok=True)
    write_text(records, "".join(json.dumps({"run": name} | known[name]) + "\n" for name in names))


def render_collection(collection: Path, tables: Iterable[Table] = ()) -> dict[Path, str]:
    """Path -> text, of each card, which shows the others beside it, and of each table of which a run is recorded.

    Raises:
        InputError: a line of the records is damaged.
    """
    records, texts = read_records(collection), {}
    cards = {collection / name: facts for name, facts in sorted(records.items()) if (collection / name).is_dir()}
    for folder, facts in cards.items():
        shown = {what: picture_in(folder, facts.get(what)) for what in PICTURES}
        others = [other for place, other in cards.items() if place != folder]
        texts[folder / "README.md"] = render_model_card(facts | shown, others=others)
    for table in tables:
        if not records.keys().isdisjoint(table.runs()):
            texts[collection / f"{table.name}.md"] = render_table(table, records)
    return texts


def write_collection(collection: Path, tables: Iterable[Table] = ()) -> list[Path]:
    """Write the cards and tables that are not as they would be rendered now, or whose curves are gone; returns them.

    Raises:
        InputError: a line of the records is damaged, or a path of the collection leads elsewhere.
    """
    texts = render_collection(collection, tables)
    records, named = read_records(collection), {collection / f"{table.name}.md": table for table in tables}
    changed = []
    for path, text in texts.items():
        measured = measured_rows(named[path], records) if path in named else ()
        curves = path.with_suffix(".png") if has_curves(measured) else None
        if path.is_file() and read_text(path) == text and (curves is None or curves.is_file()):
            continue
        _require_inside(collection, path.parent)
        if curves:
            save_table_curves(measured, curves)
        write_text(path, text)
        changed.append(path)
    return changed


def evaluations(run: Path) -> dict[str, list]:
    """`curve`: step and mean IoU of each evaluation of a run's metrics.jsonl; nothing where that was taken away."""
    lines = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
    curve = [[line["step"], line["eval_mean_iou"]] for line in lines if line.get("eval_mean_iou") is not None]
    return {"curve": curve} if curve else {}


def _require_inside(collection: Path, folder: Path) -> None:
    stays = folder.resolve().is_relative_to(collection.resolve())
    require(stays, f"{folder} leads out of {collection}; remove the link")


def _reduce(source: Path, target: Path) -> None:
    """With 256 colours, which is a third of the bytes in a repository that keeps them for ever."""
    damaged = (*DAMAGED, Image.DecompressionBombError)
    with refusing(damaged, f"{source} cannot be shown", "; restore it, or remove it"):
        Image.open(source).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
