"""Cards of measured runs, each in a folder of its own with the facts that it is rendered from.

model_cards/demo_u2pl_seed0/
  results.json            what the run wrote, without paths of the machine it ran on
  curves.png pictures/    what the card shows
  README.md               rendered from results.json, and beside it those of the other folders

model_cards/camvid.md, a table, is rendered from the results.json of its runs.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from u2pl_hf.errors import InputError
from u2pl_hf.files import read_text, write_atomically, write_json, write_text
from u2pl_hf.hub.exported import TableResults, finished_results, picture_in, read_results
from u2pl_hf.hub.model_card import render_card
from u2pl_hf.hub.public_facts import public_facts
from u2pl_hf.measure.tables import Table, render_table


def add_run(run: Path, collection: Path, shown: Sequence[str] = ("pictures", "curves")) -> Path:
    """Take a finished run's facts and what is shown of it into the collection, in place of an earlier run of the name.

    Returns:
        The folder in the collection.

    Raises:
        InputError: the run is not finished, or is the collection's own copy.
    """
    results = finished_results(run)
    folder = collection / run.resolve().name
    _require_inside(collection, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() == run.resolve():
        raise InputError(f"{run} is in the collection already; pass the run's own folder")
    pictures = {name: picture_in(run, results.get(name)) if name in shown else None for name in ("pictures", "curves")}
    facts, before = public_facts(results) | pictures, {*folder.glob("pictures/*.png"), *folder.glob("curves.png")}
    for name in filter(None, pictures.values()):
        _copy_picture(run / name, folder / name)
    for old in before - {folder / name for name in pictures.values() if name}:
        old.unlink()
    write_json(folder / "results.json", facts)
    return folder


def render_collection(collection: Path) -> dict[Path, str]:
    """README.md -> its text, of each folder with a results.json; the others are shown beside each.

    Raises:
        InputError: a results.json that cannot be read.
    """
    facts = {path.parent: read_results(path.parent) for path in sorted(collection.glob("*/results.json"))}
    return {
        folder / "README.md": render_card(results, others=[other for place, other in facts.items() if place != folder])
        for folder, results in facts.items()
    }


def render_tables(collection: Path, tables: Sequence[Table]) -> dict[Path, str]:
    """NAME.md -> its text, of each table of which the collection has a run.

    Raises:
        InputError: a results.json that cannot be read.
    """
    texts = {}
    for table in tables:
        there = [name for name in table.runs() if (collection / name / "results.json").is_file()]
        found = {name: finished_results(collection / name, TableResults) for name in there}
        if found:
            texts[collection / f"{table.name}.md"] = render_table(table, found)
    return texts


def write_collection(collection: Path, tables: Sequence[Table] = ()) -> list[Path]:
    """Write the cards and tables that are not as they would be rendered now; returns them.

    Raises:
        InputError: a results.json that cannot be read.
    """
    texts = render_collection(collection) | render_tables(collection, tables)
    changed = [(path, text) for path, text in texts.items() if _text(path) != text]
    for path, text in changed:
        _require_inside(collection, path.parent)
        write_text(path, text)
    return [path for path, _ in changed]


def _require_inside(collection: Path, folder: Path) -> None:
    if not folder.resolve().is_relative_to(collection.resolve()):
        raise InputError(f"{folder} leads out of {collection}; remove the link")


def _text(path: Path) -> str | None:
    return read_text(path) if path.is_file() else None


def _copy_picture(source: Path, target: Path) -> None:
    """With 256 colours, which is a third of the bytes in a repository that keeps them for ever."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture = Image.open(source).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{source} cannot be shown ({error}); restore it, or remove it") from error
    write_atomically(target, lambda path: picture.save(path, "PNG", optimize=True))
