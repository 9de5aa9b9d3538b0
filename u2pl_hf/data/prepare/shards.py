"""Rows → parquet files: check a row's image and mask, write each shard durably, several at a time."""

import hashlib
import io
import json
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.prepare.layouts import ImageRow, Layout
from u2pl_hf.data.prepare.masks import Mask, decode_mask
from u2pl_hf.data.source.decode import ORIENTATION, open_stored
from u2pl_hf.data.source.rows import FEATURES, METADATA_KEY
from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.files import read_json, sha256_of, write_atomically, write_json
from u2pl_hf.pixels import upright_rgb

SHARD_BYTES = 256 << 20
# Streaming gives each process and worker shards of its own, so there are more than the bytes ask for.
MANY_SHARDS = 16
ROWS_PER_SHARD = 8
# What a report tells of single rows, besides how their masks were read.
EMPTY, UNTURNED = "empty", "unturned"
# EXIF orientations that keep and that exchange width and height.
UPSIDE_DOWN, SIDEWAYS = (2, 3, 4), (5, 6, 7, 8)


@dataclass(frozen=True)
class Shard:
    """One parquet file to write.

    Attributes:
        subset: train or validation.
        name: file name, such as train-00000-of-00016.
        rows: in the order to store them.
    """

    subset: str
    name: str
    rows: tuple[ImageRow, ...]


@dataclass
class Report:
    """What is in a finished shard.

    Attributes:
        rows: rows stored.
        labelled: those with a label.
        sha256: of the file.
        pixels: how many pixels have each value 0..255 in the labels.
        bad: [id, reason] of rows left out.
        noted: ids of rows by what is to be told of them: empty (the label is 255 everywhere), unturned (the image's
            EXIF orientation turns it, the mask has none, and their shapes cannot tell whether it is turned), and how
            their masks were read, see `masks.Mask`.
    """

    rows: int = 0
    labelled: int = 0
    sha256: str = ""
    pixels: list[int] = field(default_factory=lambda: [0] * 256)
    bad: list[list[str]] = field(default_factory=list)
    noted: dict[str, list[str]] = field(default_factory=dict)


def plan_shards(rows: Sequence[ImageRow], subset: str, count: int | None) -> list[Shard]:
    """Cut a subset into shards of nearly equal length.

    Training rows lie in the order of a hash of their id: neighbours are then a random sample, and a stream needs no
    large buffer to shuffle in. Validation rows lie in the order of their ids.
    """
    rows = sorted((row for row in rows if row.subset == subset), key=lambda row: row.id)
    if subset == "train":
        rows.sort(key=lambda row: hashlib.sha256(row.id.encode()).digest())
    total = sum(row.image.size + (row.mask.size if row.mask else 0) for row in rows)
    usual = max(1, min(math.ceil(len(rows) / ROWS_PER_SHARD), max(MANY_SHARDS, math.ceil(total / SHARD_BYTES))))
    count = min(count or usual, len(rows))
    cuts = [len(rows) * number // count for number in range(count + 1)] if count else []
    return [
        Shard(subset, f"{subset}-{number:05d}-of-{count:05d}", tuple(rows[cuts[number] : cuts[number + 1]]))
        for number in range(count)
    ]


def write_shards(shards: Sequence[Shard], layout: Layout, data: Path, reports: Path, workers: int) -> None:
    """Write all shards that have no report yet, with a progress bar over the rows. What is finished stays.

    In threads: decoding, compressing and writing, which is most of it, go on beside each other.
    """
    done = [shard for shard in shards if read_report(reports, shard)]
    total, stop = sum(len(shard.rows) for shard in shards), threading.Event()
    bar = tqdm(total=total, initial=sum(len(shard.rows) for shard in done), desc="prepare", unit="image")

    def on_row() -> None:
        if stop.is_set():
            raise CancelledError
        bar.update()

    with bar, ThreadPoolExecutor(workers) as pool:
        left = [shard for shard in shards if shard not in done]
        try:
            for written in [pool.submit(write_shard, shard, layout, data, reports, on_row) for shard in left]:
                written.result()
        finally:
            # After an error, or Ctrl-C, the others stop at their next row.
            stop.set()
            pool.shutdown(cancel_futures=True)


def write_shard(shard: Shard, layout: Layout, data: Path, reports: Path, on_row: Callable[[], None]) -> None:
    """Write one parquet file below `data` and then its report below `reports`; `on_row` is called for each row.

    The classes of every label stand in the schema, which comes before the rows: labels are made first, and images are
    read a second time rather than held in memory.
    """
    report, kept = Report(), []
    for row in shard.rows:
        try:
            label, notes = _checked_label(row, layout)
        except InputError as error:
            report.bad.append([row.id, str(error)])
        else:
            for note in notes:
                report.noted.setdefault(note, []).append(row.id)
            kept.append((row, *_counted(label, report)))
        on_row()
    note = {"classes": [classes_here for _, _, classes_here in kept]}
    metadata = {**FEATURES.arrow_schema.metadata, METADATA_KEY: json.dumps(note, separators=(",", ":")).encode()}
    path = data / f"{shard.name}.parquet"
    schema = FEATURES.arrow_schema.with_metadata(metadata)
    write_atomically(path, lambda p: _write_rows(p, kept, schema, layout.longest_side))
    report.sha256 = sha256_of(path)
    write_json(reports / f"{shard.name}.json", asdict(report))


def read_report(reports: Path, shard: Shard) -> Report | None:
    """The report of a finished shard."""
    path = reports / f"{shard.name}.json"
    return Report(**read_json(path, Report, "remove it")) if path.is_file() else None


def _write_rows(
    path: Path,
    kept: list[tuple[ImageRow, bytes | None, list[int] | None]],
    schema: pa.Schema,
    longest_side: int | None,
) -> None:
    # Each row is a row group without compression, so one range request fetches any image; the statistics of the id
    # alone, smallest and largest being equal, make the footer an index.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": ["id"]}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for row, label, _ in kept:
            image = _stored(row.image, longest_side)
            cell = None if label is None else {"bytes": label, "path": f"{row.image.path.stem}.png"}
            columns = {"id": [row.id], "image": [image], "label": [cell]}
            writer.write_table(pa.table(columns, schema=schema), row_group_size=1)


def _checked_label(row: ImageRow, layout: Layout) -> tuple[np.ndarray | None, list[str]]:
    """Decode image and mask as training will, and give the label's class ids, and what is to be noted of them."""
    with refusing(Exception, "the image cannot be read"):
        image = open_stored({"bytes": row.image.read()}, "the image")
        orientation = image.getexif().get(ORIENTATION)  # a TIFF has it no more once it is loaded, and turned
        shape = upright_rgb(image).shape[:2]
    if row.mask is None:
        return None, []
    with refusing(Exception, "the mask cannot be read"):
        if row.coding == "drawn":
            mask = Mask(row.mask.draw(shape))
        else:
            mask = decode_mask(row.mask.read(), row.coding, layout.classes, row.segments)
    (height, width), is_sideways, hint = mask.ids.shape, mask.ids.shape == shape[::-1], ""
    if is_sideways and mask.orientation:
        hint = ", because the mask's own EXIF orientation turns it: draw it upright and without one"
    elif is_sideways and orientation in SIDEWAYS:
        hint = ", because its EXIF orientation turns it: turn the mask as well"
    fits = mask.ids.shape == shape
    require(fits, f"the image is {shape[1]}x{shape[0]}, but the mask {width}x{height}{hint}")
    # Turned by one of two tags alone, and the shapes do not tell whether rightly.
    turn = (orientation or mask.orientation) if None in (orientation, mask.orientation) else None
    is_unclear = turn in UPSIDE_DOWN or (turn in SIDEWAYS and is_sideways)
    ids = np.array(layout.mapping.table, np.uint8)[mask.ids] if layout.mapping else mask.ids
    notes = {mask.reading: mask.reading, EMPTY: (ids == IGNORE).all(), UNTURNED: is_unclear}
    ids = shrunk(ids, layout.longest_side, Image.Resampling.NEAREST)
    return ids, [note for note, is_so in notes.items() if is_so]


def _stored(member: Member, longest_side: int | None) -> dict:
    """An image file as it is, or shrunk and upright, as JPEG where it was one."""
    content, path = member.read(), member.path
    image = open_stored({"bytes": content}, "the image") if longest_side else None
    if image is None or max(image.size) <= longest_side:
        return {"bytes": content, "path": path.name}
    small, is_jpeg = io.BytesIO(), image.format in ("JPEG", "MPO")
    pixels = Image.fromarray(shrunk(upright_rgb(image), longest_side, Image.Resampling.LANCZOS))
    pixels.save(small, format="JPEG" if is_jpeg else "PNG", quality=95)
    return {"bytes": small.getvalue(), "path": f"{path.stem}.{'jpg' if is_jpeg else 'png'}"}


def shrunk(pixels: np.ndarray, longest_side: int | None, how: Image.Resampling) -> np.ndarray:
    """Pixels (H,W) or (H,W,3), uint8, with their longer side at most so long; smaller ones stay as they are."""
    if longest_side is None:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((longest_side, longest_side), how)
    return np.asarray(image)


def _counted(label: np.ndarray | None, report: Report) -> tuple[bytes | None, list[int] | None]:
    """(PNG, classes present) of a label, with its pixels added to the report."""
    report.rows += 1
    if label is None:
        return None, None
    report.labelled += 1
    counts = np.bincount(label.ravel(), minlength=256)
    report.pixels = (np.array(report.pixels) + counts).tolist()
    png = io.BytesIO()
    Image.fromarray(label).save(png, format="png")
    return png.getvalue(), np.flatnonzero(counts[:IGNORE]).tolist()
