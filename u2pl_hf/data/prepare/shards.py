"""Rows → parquet files: check a row's image and mask, write each shard durably, several at a time."""

import hashlib
import io
import json
import math
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tqdm.auto import tqdm

from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.prepare.layouts import Row
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.decode import ORIENTATION, upright_rgb
from u2pl_hf.data.source.masks import IGNORE, BadMask, decode_mask
from u2pl_hf.data.source.rows import METADATA_KEY
from u2pl_hf.errors import InputError
from u2pl_hf.files import read_json, sha256_of, write_atomically, write_text

FEATURES = datasets.Features(id=datasets.Value("string"), image=datasets.Image(), label=datasets.Image())
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
    rows: tuple[Row, ...]


@dataclass
class Report:
    """What is in a finished shard.

    Attributes:
        rows: rows stored.
        labelled: those with a label.
        size: bytes of the file.
        sha256: of the file.
        pixels: how many pixels have each value 0..255 in the labels.
        bad: [id, reason] of rows left out.
        noted: ids of rows by what is to be told of them: empty (the label is 255 everywhere), unturned (the image's
            EXIF orientation turns it, the mask has none, and their shapes cannot tell whether it is turned), and how
            their masks were read, see `masks.Mask`.
    """

    rows: int = 0
    labelled: int = 0
    size: int = 0
    sha256: str = ""
    pixels: list[int] = field(default_factory=lambda: [0] * 256)
    bad: list[list[str]] = field(default_factory=list)
    noted: dict[str, list[str]] = field(default_factory=dict)


def plan_shards(rows: Sequence[Row], subset: str, count: int | None) -> list[Shard]:
    """Cut a subset into shards of nearly equal length.

    Training rows lie in the order of a hash of their id: neighbours are then a random sample, and a stream needs no
    large buffer to shuffle in. Validation rows lie in the order of their ids.
    """
    rows = [row for row in rows if row.subset == subset]
    key = _hash if subset == "train" else (lambda row: row.id)
    rows = sorted(rows, key=key)
    total = sum(row.image.size + (row.mask.size if row.mask else 0) for row in rows)
    usual = max(1, min(math.ceil(len(rows) / ROWS_PER_SHARD), max(MANY_SHARDS, math.ceil(total / SHARD_BYTES))))
    count = min(count or usual, len(rows))
    ends = [len(rows) * number // count for number in range(1, count + 1)]
    starts = [0, *ends]
    return [
        Shard(subset, f"{subset}-{number:05d}-of-{count:05d}", tuple(rows[start:end]))
        for number, (start, end) in enumerate(zip(starts, ends, strict=False))
    ]


def _hash(row: Row) -> bytes:
    return hashlib.sha256(row.id.encode()).digest()


def write_shard(shard: Shard, classes: ClassList, data: Path, reports: Path, on_row: Callable[[], None]) -> None:
    """Write one parquet file below `data` and then its report below `reports`; `on_row` is called for each row.

    The classes of every label stand in the schema, which comes before the rows: labels are made first, and images are
    read a second time rather than held in memory.
    """
    report, kept = Report(), []
    for row in shard.rows:
        try:
            label, notes = _checked_label(row, classes)
        except Exception as error:  # damaged files raise errors of many kinds, and none may end the whole run
            report.bad.append([row.id, _reason(error, row.image)])
        else:
            for note in notes:
                report.noted.setdefault(note, []).append(row.id)
            kept.append((row, *_counted(label, report)))
        on_row()
    note = {"classes": [classes_here for _, _, classes_here in kept]}
    metadata = {**FEATURES.arrow_schema.metadata, METADATA_KEY: json.dumps(note, separators=(",", ":")).encode()}
    path = data / f"{shard.name}.parquet"
    write_atomically(path, lambda p: _write_rows(p, kept, FEATURES.arrow_schema.with_metadata(metadata)))
    report.size, report.sha256 = path.stat().st_size, sha256_of(path)
    write_text(reports / f"{shard.name}.json", json.dumps(asdict(report)))


def read_report(reports: Path, shard: Shard) -> Report | None:
    """The report of a finished shard."""
    path = reports / f"{shard.name}.json"
    if not path.is_file():
        return None
    stored = read_json(path, Report, "remove it")
    return Report(**{name: stored[name] for name in Report.__annotations__})


def _write_rows(path: Path, kept: list[tuple[Row, bytes | None, list[int] | None]], schema: pa.Schema) -> None:
    # Each row is a row group without compression, so one range request fetches any image; the statistics of the id
    # alone, smallest and largest being equal, make the footer an index.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": ["id"]}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for row, label, _ in kept:
            image = {"bytes": row.image.read(), "path": row.image.file_name}
            cell = None if label is None else {"bytes": label, "path": f"{row.image.stem}.png"}
            columns = {"id": [row.id], "image": [image], "label": [cell]}
            writer.write_table(pa.table(columns, schema=schema), row_group_size=1)


def _checked_label(row: Row, classes: ClassList) -> tuple[np.ndarray | None, list[str]]:
    """Decode image and mask as training will, and give the label's class ids, and what is to be noted of them."""
    with Image.open(io.BytesIO(row.image.read())) as image:
        orientation = image.getexif().get(ORIENTATION)  # a TIFF has it no more once it is loaded, and turned
        shape = upright_rgb(image).shape[:2]
    if row.mask is None:
        return None, []
    try:
        mask = decode_mask(row.mask.read(), row.coding, classes)
    except BadMask:
        raise
    except Exception as error:
        raise BadMask(f"the mask cannot be read: {_told(error, row.mask)}") from error
    if mask.ids.shape != shape:
        hint = ""
        if mask.ids.shape == shape[::-1] and mask.orientation:
            hint = ", because the mask's own EXIF orientation turns it: draw it upright and without one"
        elif mask.ids.shape == shape[::-1] and orientation in SIDEWAYS:
            hint = ", because its EXIF orientation turns it: turn the mask as well"
        size = f"{mask.ids.shape[1]}x{mask.ids.shape[0]}"
        raise BadMask(f"the image is {shape[1]}x{shape[0]}, but the mask {size}{hint}")
    notes = [mask.reading] if mask.reading else []
    notes += [EMPTY] if (mask.ids == IGNORE).all() else []
    # Turned by one of two tags alone, and the shapes do not tell whether rightly.
    turn = (orientation or mask.orientation) if None in (orientation, mask.orientation) else None
    is_unclear = turn in UPSIDE_DOWN or (turn in SIDEWAYS and shape == shape[::-1])
    return mask.ids, notes + ([UNTURNED] if is_unclear else [])


def _reason(error: Exception, image: Member) -> str:
    return str(error) if isinstance(error, BadMask) else f"the image cannot be read: {_told(error, image)}"


def _told(error: Exception, member: Member) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Its message holds a memory address, another one in each run.
        return _tiff_bands(member.read()) or "it is no image"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _tiff_bands(data: bytes) -> str | None:
    """What a TIFF holds that is none of the kinds that are read."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    file, directory = io.BytesIO(data), ImageFileDirectory_v2(data[:8])
    file.seek(directory.next)
    directory.load(file)
    bands, bits = directory.get(277, 1), directory.get(258, (1,))[0]
    return f"it is a TIFF of {bands} bands of {bits} bits: pass one of 1, 3 or 4 bands of 8 bits, such as RGB"


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


def write_shards(shards: Sequence[Shard], classes: ClassList, data: Path, reports: Path, workers: int) -> None:
    """Write all shards that have no report yet, with a progress bar over the rows.

    Raises:
        InputError: a worker was killed. What is finished stays.
    """
    done = [shard for shard in shards if read_report(reports, shard)]
    left = [shard for shard in shards if shard not in done]
    total = sum(len(shard.rows) for shard in shards)
    with tqdm(total=total, initial=sum(len(shard.rows) for shard in done), desc="prepare", unit="image") as bar:
        if min(workers, len(left)) < 2:
            for shard in left:
                write_shard(shard, classes, data, reports, bar.update)
        else:
            _write_in_parallel(left, classes, data, reports, min(workers, len(left)), bar)


def _write_in_parallel(
    shards: list[Shard], classes: ClassList, data: Path, reports: Path, workers: int, bar: tqdm
) -> None:
    context = _process_context()
    count, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (count, stop)) as pool:
        try:
            pending = {pool.submit(_work, shard, classes, data, reports) for shard in shards}
            start = bar.n
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(start + count.value - bar.n)
                for future in finished:
                    future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was killed, perhaps for lack of memory: run the same command again, with fewer "
                "--workers; finished shards are kept"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _process_context() -> multiprocessing.context.BaseContext:
    """Not fork, as this process has threads. A fork server imports the heavy modules once for all workers."""
    if os.name == "nt":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # The server inherits that Ctrl-C is none of its business; else one during its imports would print a traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    # A process that does nothing: when it has run, the imports are over, and workers start too fast for Ctrl-C to part
    # one from what it shares with us.
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


class Stopped(Exception):  # noqa: N818 - an order rather than an error
    """The main process wants no more rows."""


_progress: Callable[[], None]


def _start_worker(count: "multiprocessing.sharedctypes.Synchronized", stop: threading.Event) -> None:
    """Ctrl-C is the main process's business; if that one dies, the worker must not live on and write."""
    global _progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def progress() -> None:
        with count.get_lock():
            count.value += 1
        if stop.is_set():
            raise Stopped

    _progress = progress


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(shard: Shard, classes: ClassList, data: Path, reports: Path) -> None:
    write_shard(shard, classes, data, reports, _progress)
