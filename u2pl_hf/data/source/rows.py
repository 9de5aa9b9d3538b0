"""Where the bytes of images and labels lie: memory-mapped tables, or parquet files that stay where they are.

All kinds of rows answer the same questions:
    len(rows)
    cell(index, role)      one image or label, undecoded: {"bytes", "path"}; None where a row has no label
    read(indices, role)    many at once, {index: cell}
    blocks(indices)        the indices in groups that are cheap to read together
    sizes                  bytes of each image as stored, int64 (rows,); of parquet, of the row group that holds it
with role "image" or "label". A read touches the column of its role alone.
"""

import bisect
import functools
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from u2pl_hf.errors import InputError
from u2pl_hf.files import parse_json

# A block of rows is what one request should fetch: large enough to be worth its latency.
BLOCK_BYTES = 2**20
# Footers are read, and requests made, by this many threads.
CONNECTIONS = 8
# Parquet metadata of files that prepare_dataset.py wrote: {"classes": for each row the ids in its label, or null}.
METADATA_KEY = b"u2pl_hf"
# Role and name of the column that may be missing: its rows are numbered then.
IDS = ("id", "id")


class Note(TypedDict):
    """What stands there."""

    classes: list[list[int] | None]


class ArrowRows:
    """Rows of a `datasets.Dataset`, memory mapped, so that any row can be read at any time.

    Args:
        table: the data set.
        columns: role -> column name; roles that are not needed may be missing.
    """

    def __init__(self, table: datasets.Dataset, columns: dict[str, str]):
        # Selecting a column takes longer than reading a row, so it is done once.
        self.columns = {role: table.select_columns([name]) for role, name in columns.items()}
        self.names = columns

    def __len__(self) -> int:
        return len(self.columns["image"])

    def cell(self, index: int, role: str) -> dict | None:
        """One image or label as stored."""
        return self.columns[role][int(index)][self.names[role]]

    def read(self, indices: np.ndarray, role: str) -> dict[int, dict | None]:
        """Several cells by index."""
        return {int(i): self.cell(i, role) for i in indices}

    def blocks(self, indices: np.ndarray) -> list[np.ndarray]:
        """One row each: nothing is gained by reading neighbours together."""
        return np.split(indices, len(indices))

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """From the table's offsets and the files' entries: nothing is read. A file that is not there has -1."""
        cells = self.columns["image"].with_format("arrow")[:][self.names["image"]]
        sizes = np.array(pc.binary_length(pc.struct_field(cells, "bytes")).fill_null(-1), np.int64)
        in_files = np.flatnonzero(sizes < 0)
        paths = pc.struct_field(cells, "path").take(pa.array(in_files)).to_pylist()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            parts = pool.map(lambda part: list(map(_file_size, part)), np.array_split(paths, CONNECTIONS))
            sizes[in_files] = [size for part in parts for size in part]
        return sizes

    def has_label(self) -> np.ndarray:
        """Bool per row."""
        if "label" not in self.columns:
            return np.zeros(len(self), bool)
        return _are_filled(self.columns["label"].with_format("arrow")[:][self.names["label"]])

    def class_sets(self) -> list[list[int] | None] | None:
        """Not stored in such tables."""
        return None


class ParquetRows:
    """Rows of parquet files, read by row group from a disk or the network; nothing is converted or copied first.

    Args:
        urls: local paths, or anything fsspec opens, such as hf://datasets/USER/NAME@COMMIT/data/train.parquet.
        columns: role -> column name, "id" included.

    Raises:
        InputError: a file cannot be read or lacks a column.
    """

    def __init__(self, urls: list[str], columns: dict[str, str]):
        self.urls, self.names = list(urls), columns
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            self.footers = list(pool.map(self._footer, urls))
        self._files: dict[tuple[int, int], tuple[pq.ParquetFile, threading.Lock]] = {}
        groups = [(f, g) for f, footer in enumerate(self.footers) for g in range(footer.num_row_groups)]
        self.group_file, self.group_number = np.array(groups, int).reshape(-1, 2).T
        counts = [self.footers[f].row_group(g).num_rows for f, g in groups]
        self.group_start = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        self.group_bytes = np.array([self._image_bytes(f, g) for f, g in groups], int)

    def __len__(self) -> int:
        return int(self.group_start[-1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}

    def cell(self, index: int, role: str) -> dict | None:
        """One image or label as stored."""
        return self.read(np.array([index]), role)[int(index)]

    def read(self, indices: np.ndarray, role: str) -> dict[int, dict | None]:
        """Several cells; reads the row groups that hold them, of the role's column alone.

        Raises:
            InputError: a file cannot be read (any more).
        """
        indices = np.sort(np.asarray(indices))
        groups = np.unique(self._group_of(indices))
        cells: dict[int, dict | None] = {}
        for file in np.unique(self.group_file[groups]):
            chosen = groups[self.group_file[groups] == file]
            starts, ends = self.group_start[chosen], self.group_start[chosen + 1]
            rows = np.concatenate([np.arange(s, e) for s, e in zip(starts, ends, strict=True)])
            wanted = np.isin(rows, indices)
            column = self._column(int(file), self.group_number[chosen].tolist(), role)
            kept = column.take(pa.array(np.flatnonzero(wanted))).to_pylist()
            cells |= dict(zip(rows[wanted].tolist(), map(_as_cell, kept), strict=True))
        return cells

    def blocks(self, indices: np.ndarray) -> list[np.ndarray]:
        """Neighbouring rows of one file, about BLOCK_BYTES of images together, never less than a row group."""
        indices = np.sort(np.asarray(indices))
        groups = self._group_of(indices)
        used = np.unique(groups)
        # A group's block: how many BLOCK_BYTES lie before it in its file.
        before = np.cumsum(self.group_bytes[used]) - self.group_bytes[used]
        first_of_file = np.concatenate([[True], np.diff(self.group_file[used]) > 0])
        before -= np.maximum.accumulate(np.where(first_of_file, before, 0))
        keys = np.stack([self.group_file[used], before // BLOCK_BYTES])
        block_of_used = np.cumsum(np.concatenate([[0], np.any(np.diff(keys, axis=1) != 0, axis=0)]))
        block = block_of_used[np.searchsorted(used, groups)]
        return np.split(indices, np.flatnonzero(np.diff(block)) + 1)

    @property
    def sizes(self) -> np.ndarray:
        """From the footers."""
        return np.repeat(self.group_bytes, np.diff(self.group_start))

    def ids(self) -> list | None:
        """Ids of all rows, from the footers where each row has its own group; None where they are to be numbered."""
        if not all(self._leaves(file, "id") for file in range(len(self.urls))):
            return None
        return [i for file in range(len(self.urls)) for i in self._ids(file)]

    def has_label(self) -> np.ndarray:
        """Bool per row; of row groups where some have and some have not, the label column is read."""
        if "label" not in self.names:
            return np.zeros(len(self), bool)
        sets = self.class_sets()
        if sets is not None:
            return np.array([s is not None for s in sets], bool)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return np.concatenate(list(pool.map(self._has_label, self.group_file.tolist(), self.group_number.tolist())))

    def class_sets(self) -> list[list[int] | None] | None:
        """The class ids in each row's label, from the files' metadata; None where one has none that fits its rows."""
        sets = []
        for footer in self.footers:
            try:
                note = parse_json((footer.metadata or {})[METADATA_KEY].decode(), Note)
            except (KeyError, ValueError):
                return None
            if len(note["classes"]) != footer.num_rows:  # kept by a program that left rows out
                return None
            sets += note["classes"]
        return sets

    def fingerprint(self) -> list:
        """What tells these rows from others: the files, with size and date where they lie on a disk."""
        states = [os.stat(url) for url in self.urls if "://" not in url]
        return [self.urls, [(state.st_size, state.st_mtime_ns) for state in states], self.names]

    def _footer(self, url: str) -> pq.FileMetaData:
        try:
            with _open(url) as file:
                footer = pq.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{url} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error
        present = footer.schema.to_arrow_schema().names
        for role, name in self.names.items():
            if name not in present and (role, name) != IDS:
                raise InputError(
                    f"{url} has no column '{name}' (it has {', '.join(present)}); pass --{role}_column NAME"
                )
        return footer

    def _group_of(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.group_start, indices, side="right") - 1

    def _image_bytes(self, file: int, group: int) -> int:
        chunks = self.footers[file].row_group(group)
        return sum(chunks.column(c).total_compressed_size for c in self._leaves(file, "image"))

    def _leaves(self, file: int, role: str) -> list[int]:
        schema = self.footers[file].schema
        return [c for c in range(len(schema)) if schema.column(c).path.split(".")[0] == self.names[role]]

    def _has_label(self, file: int, group: int) -> np.ndarray:
        chunks = self.footers[file].row_group(group)
        statistics = [chunks.column(leaf).statistics for leaf in self._leaves(file, "label")]
        empty = [s.null_count if s is not None and s.has_null_count else None for s in statistics]
        if 0 in empty or set(empty) == {chunks.num_rows}:
            return np.full(chunks.num_rows, 0 in empty)
        return _are_filled(self._column(file, [group], "label"))

    def _ids(self, file: int) -> list:
        footer, leaf = self.footers[file], self._leaves(file, "id")[0]
        chunks = [footer.row_group(g) for g in range(footer.num_row_groups)]
        statistics = [chunk.column(leaf).statistics for chunk in chunks]
        if all(chunk.num_rows == 1 and _tells_value(s) for chunk, s in zip(chunks, statistics, strict=True)):
            return [s.min for s in statistics]
        return self._column(file, range(footer.num_row_groups), "id").to_pylist()

    def _column(self, file: int, groups: list[int], role: str) -> pa.ChunkedArray:
        opened, lock = self._opened(file)
        try:
            with lock:
                return opened.read_row_groups(list(groups), columns=[self.names[role]], use_threads=False).column(0)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.urls[file]} cannot be read any more: {reason}; the same command goes on"
            ) from error

    def _opened(self, file: int) -> tuple[pq.ParquetFile, threading.Lock]:
        # Connections do not survive a fork, so each process opens its own.
        key = (os.getpid(), file)
        if key not in self._files:
            # pre_buffer fetches neighbouring pieces in one request.
            opened = pq.ParquetFile(_open(self.urls[file]), metadata=self.footers[file], pre_buffer=True)
            self._files[key] = (opened, threading.Lock())
        return self._files[key]


class JoinedRows:
    """The rows of several data sets, one after the other."""

    def __init__(self, parts: list[ArrowRows | ParquetRows]):
        self.parts = parts
        self.starts = np.cumsum([0] + [len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def cell(self, index: int, role: str) -> dict | None:
        """One image or label as stored."""
        part = bisect.bisect_right(self.starts, index) - 1
        return self.parts[part].cell(index - self.starts[part], role)

    def read(self, indices: np.ndarray, role: str) -> dict[int, dict | None]:
        """Several cells by index."""
        cells: dict[int, dict | None] = {}
        for part, start, own in self._dealt(indices):
            cells |= {i + start: cell for i, cell in part.read(own, role).items()}
        return cells

    def blocks(self, indices: np.ndarray) -> list[np.ndarray]:
        """The blocks of all parts."""
        return [block + start for part, start, own in self._dealt(indices) for block in part.blocks(own)]

    @property
    def sizes(self) -> np.ndarray:
        """The sizes of all parts."""
        return np.concatenate([part.sizes for part in self.parts])

    def _dealt(self, indices: np.ndarray) -> list[tuple]:
        indices = np.sort(np.asarray(indices))
        cuts = np.searchsorted(indices, self.starts[1:-1])
        dealt = zip(self.parts, self.starts[:-1], np.split(indices, cuts), strict=True)
        return [(part, start, own - start) for part, start, own in dealt if len(own)]


def _open(url: str):
    """A file for random access, without a cache that would read ahead of what is asked for."""
    if "://" not in url:
        return pa.memory_map(url)
    system, path = fsspec.core.url_to_fs(url)
    return _RangeFile(system.open(path, "rb", cache_type="none"))


class _RangeFile(io.RawIOBase):
    """A remote file of which parts are read; some mirrors send the whole file, which would be taken for the part."""

    def __init__(self, file):
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        if 0 <= size < len(content):
            raise OSError("the server sends whole files where parts are asked for; drop --streaming")
        return content


def _tells_value(statistics: pq.Statistics | None) -> bool:
    # Writers that shorten long values make the largest one different from the smallest.
    return statistics is not None and statistics.has_min_max and statistics.min == statistics.max


def stored_bytes(cell: dict | None) -> bytes:
    """An image or label as it is stored; nothing where there is none that can be read."""
    try:
        return b"" if cell is None else cell["bytes"] or Path(cell["path"] or "").read_bytes()
    except OSError:
        return b""


def _file_size(path: str | None) -> int:
    try:
        return os.path.getsize(path or "")
    except OSError:
        return -1


def _are_filled(cells: pa.ChunkedArray) -> np.ndarray:
    """Which cells hold an image: bytes, or a path."""
    if not pa.types.is_struct(cells.type):
        return np.asarray(pc.is_valid(cells))
    parts = [pc.is_valid(pc.struct_field(cells, field.name)) for field in cells.type]
    return np.asarray(pc.and_(pc.is_valid(cells), functools.reduce(pc.or_, parts)).fill_null(False))


def _as_cell(value) -> dict | None:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value
