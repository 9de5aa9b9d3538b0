"""A found data set → a folder that `datasets.load_dataset` reads, complete or not there at all."""

import hashlib
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.prepare.archives import Member, unpack_streams
from u2pl_hf.data.prepare.dataset_card import render_card, warning_lines
from u2pl_hf.data.prepare.layouts import SUBSETS, ImageRow, Layout
from u2pl_hf.data.prepare.masks import judge_readings
from u2pl_hf.data.prepare.shards import EMPTY, UNTURNED, Report, Shard, plan_shards, read_report, write_shards
from u2pl_hf.data.source.class_list import write_class_list
from u2pl_hf.errors import InputError, few, refusing, require
from u2pl_hf.files import TEMPORARY, sync, write_json, write_text

logger = logging.getLogger(__name__)

# Another number makes files of earlier versions start afresh.
FORMAT_VERSION = 4
SHOWN = 20


def check_output(output_dir: Path) -> None:
    """Refuse to write where something is.

    Raises:
        InputError: the folder exists and is not empty, or it is a file.
    """
    is_free = not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir()))
    require(is_free, f"{output_dir} exists and is not empty: pass another --output_dir, or delete it")


def prepare(
    layout: Layout, output_dir: Path, *, workers: int = 1, shards: int | None = None, skip_bad: bool = False
) -> dict:
    """Check and write every row, then the card; the folder appears under its name when all is done.

    Everything is built in `<output_dir>.partial`. Where a run was killed, the same call goes on with the next shard and
    its result is the same to the byte.

    Returns:
        counts of rows and pixels, what was left out and why; also written to `prepare.json`.

    Raises:
        InputError: rows that cannot be used, unless `skip_bad`; masks that teach nothing or can be read in
            two ways; no space; nothing left to write.
    """
    check_output(output_dir)
    output_dir = output_dir.resolve()
    partial = output_dir.with_name(f"{output_dir.name}.partial")
    plan = [shard for subset in SUBSETS for shard in plan_shards(layout.rows, subset, shards)]
    for note in layout.notes:
        logger.info(note)
    with refusing(OSError, f"cannot write {partial}", "; run the same command again to go on"):
        _check_space(layout, output_dir, partial)
        _open_partial(partial, layout, plan)
        result = _build(layout, plan, partial, output_dir, workers, skip_bad)
        _publish(partial, output_dir)
    return result


def _members(layout: Layout) -> list[Member]:
    return [member for row in layout.rows for member in (row.image, row.mask) if member]


def _check_space(layout: Layout, output_dir: Path, partial: Path) -> None:
    # Members of compressed tars are unpacked first, so they need their space twice.
    needed = sum(member.size * (2 if member.kind == "stream" else 1) for member in set(_members(layout)))
    there = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    parent = next(folder for folder in output_dir.parents if folder.exists())
    require(os.access(parent, os.W_OK), f"{parent} cannot be written to: pass another --output_dir")
    free, need = shutil.disk_usage(parent).free, f"{output_dir} needs about {needed / 1e9:.2f} GB"
    require(free + there >= needed, f"{need}, but {free / 1e9:.2f} GB are free there")


def _open_partial(partial: Path, layout: Layout, plan: list[Shard]) -> None:
    """Make the folder to build in, or keep what an interrupted run of the same plan has left."""
    # The inputs (paths, sizes, times) and every option that changes a shard.
    options = filter(None, [layout.mapping, layout.longest_side])
    facts = repr((FORMAT_VERSION, layout.classes, plan, *options)).encode("utf-8", "replace")
    marker = partial / "work" / hashlib.sha256(facts).hexdigest()
    if partial.exists():
        # Without its data folder, it is what a run that was killed after its last step has left.
        if marker.is_file() and (partial / "dataset" / "data").is_dir():
            logger.info("going on with %s", partial)
            for leftover in partial.rglob(TEMPORARY):
                leftover.unlink(missing_ok=True)
            return
        is_ours = {path.name for path in partial.iterdir()} <= {"dataset", "work"}
        require(is_ours, f"{partial} is in the way and was not made here: move it, or pass another --output_dir")
        logger.info("%s was left by another command or by other inputs: starting afresh", partial)
        shutil.rmtree(partial)
    (partial / "dataset" / "data").mkdir(parents=True)
    marker.parent.mkdir()
    marker.touch()


def _build(layout: Layout, plan: list[Shard], partial: Path, output_dir: Path, workers: int, skip_bad: bool) -> dict:
    folder, work = partial / "dataset", partial / "work"
    places = unpack_streams(_members(layout), work)

    def readable(row: ImageRow) -> ImageRow:
        return replace(row, image=places.get(row.image, row.image), mask=places.get(row.mask, row.mask))

    shards = [replace(shard, rows=tuple(map(readable, shard.rows))) for shard in plan]
    write_shards(shards, layout, folder / "data", work, workers)
    reports: dict[str, list[Report]] = {}
    for shard in plan:
        reports.setdefault(shard.subset, []).append(read_report(work, shard))
    every = [report for here in reports.values() for report in here]
    bad = sorted(layout.bad) + [tuple(item) for report in every for item in report.bad]
    _judge(bad, {subset: sum(report.rows for report in here) for subset, here in reports.items()}, output_dir, skip_bad)
    noted: dict[str, list[str]] = {}
    for note, ids in (item for report in every for item in report.noted.items()):
        noted.setdefault(note, []).extend(ids)
    try:
        notes = judge_readings(noted, layout.classes)
    except InputError:
        shutil.rmtree(partial)  # no other class list could use it
        raise
    result = _result(layout, reports, bad, noted, notes)
    for line in [*notes, *warning_lines(result)]:
        logger.warning("warning: %s", line)
    files = {subset: (folder / "data").glob(f"{subset}-*") for subset in reports}
    sizes = {subset: sum(file.stat().st_size for file in here) for subset, here in files.items()}
    content = hashlib.sha256("".join(report.sha256 for report in every).encode()).hexdigest()
    write_text(folder / "README.md", render_card(layout, result, sizes, content))
    write_json(folder / "prepare.json", result)
    write_class_list(folder / "class_names.txt", layout.final_classes)
    for name in result["splits"]:
        (folder / "splits" / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / "splits" / name, "".join(f"{i}\n" for i in layout.splits[name]))
    return result


def _judge(bad: list[tuple[str, str]], rows: dict[str, int], output_dir: Path, skip_bad: bool) -> None:
    """Tell of all bad rows at once; go on only where the user wants to do without them, and can."""
    for name, reason in bad[:SHOWN]:
        logger.warning("bad row %s: %s", name, reason)
    listing = output_dir.with_name(f"{output_dir.name}.bad.txt")
    is_enough = bool(rows) and all(rows.values())
    if not bad or (skip_bad and is_enough):
        listing.unlink(missing_ok=True)
        return
    write_text(listing, "".join(f"{name}\t{reason}\n" for name, reason in bad))
    emptied = next((subset for subset, count in rows.items() if not count), "any subset")
    remedy = "or pass --skip_bad to leave them out" if is_enough else f"as no row of {emptied} is left without them"
    count = f"{len(bad)} of {sum(rows.values()) + len(bad)} rows cannot be used"
    raise InputError(f"{count}, all named in {listing}, such as {': '.join(bad[0])}. Mend them, {remedy}")


def _result(layout: Layout, reports: dict, bad: list[tuple], noted: dict[str, list[str]], notes: list[str]) -> dict:
    names, lost, subsets = layout.final_classes.names, {name for name, _ in bad}, {}
    for subset, here in reports.items():
        rows, labelled = sum(r.rows for r in here), sum(r.labelled for r in here)
        pixels = np.sum([r.pixels for r in here], axis=0).tolist()
        counts = {"rows": rows, "labelled": labelled, "unlabelled": rows - labelled, "shards": len(here)}
        shares = {"pixels": dict(zip(names, pixels, strict=False)), "ignored_pixels": pixels[IGNORE]}
        subsets[subset] = counts | shares
    return {
        "dataset": layout.name,
        "subsets": subsets,
        "classes": list(names),
        # A published list is worth nothing with ids missing.
        "splits": {name: len(ids) for name, ids in layout.splits.items() if not lost.intersection(ids)},
        "skipped": [{"id": name, "reason": reason} for name, reason in bad],
        "warnings": _warnings(subsets, noted),
        "notes": layout.notes + notes,
    }


def _warnings(subsets: dict[str, dict], noted: dict[str, list[str]]) -> list[dict]:
    """{"id", "reason"} of what may be wrong with a row, or, without an id, with all of them."""
    warnings, train = [], subsets.get("train", {"pixels": {}, "labelled": 0})
    unseen = [name for name, count in train["pixels"].items() if not count]
    if unseen and train["labelled"]:
        told = f"no labelled training mask holds a pixel of {few(unseen, SHOWN)}"
        warnings.append({"id": None, "reason": told})
    if unturned := noted.get(UNTURNED):
        pairs = f"{len(unturned)} images or their masks are turned by an EXIF orientation, such as {unturned[0]}"
        warnings.append({"id": None, "reason": f"{pairs}: the other has none, and is taken to fit as it is shown"})
    return warnings + [{"id": name, "reason": "the label is 255 (ignore) everywhere"} for name in noted.get(EMPTY, [])]


def _publish(partial: Path, output_dir: Path) -> None:
    folder = partial / "dataset"
    for path in folder.rglob("*"):
        sync(path)
    if output_dir.exists():
        output_dir.rmdir()  # empty, as checked; not every system renames onto a folder
    folder.rename(output_dir)
    sync(output_dir.parent)
    shutil.rmtree(partial)
