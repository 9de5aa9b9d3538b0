"""Where the bytes of images and labels lie: memory-mapped tables, or parquet files that stay where they are.

A read touches the column of its role, "image" or "label", alone.
"""

import functools
import itertools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from u2pl_hf.errors import refusing, require
from u2pl_hf.files import parse_json

# A block of rows is what one request should fetch: large enough to be worth its latency.
BLOCK_BYTES = 2**20
# Footers are read, and requests made, by this many threads.
CONNECTIONS = 8
# Parquet metadata of files that prepare_dataset.py wrote: {"classes": for each row the ids in its label, or null}.
METADATA_KEY = b"u2pl_hf"
# Columns of the data sets that are made here.
FEATURES = datasets.Features(id=datasets.Value("string"), image=datasets.Image(), label=datasets.Image())


class Rows:
    """What all kinds of rows answer, besides their length.

    Attributes:
        sizes: bytes of each image as stored, int64 (rows,); of parquet, of the row group that holds it.
    """

    sizes: np.ndarray

    def cell(self, index: int, role: str) -> dict | None:
        """One image or label, undecoded: {"bytes", "path"}; None where a row has no label."""
        return self.read(np.array([index]), role)[int(index)]

    def read(self, indices: np.ndarray, role: str) -> dict[int, dict | None]:
        """Several cells by index.

        Raises:
            InputError: a file cannot be read (any more).
        """
        raise NotImplementedError

    def blocks(self, indices: np.ndarray) -> list[np.ndarray]:
        """The indices in groups that are cheap to read together."""
        return np.split(indices, len(indices))

    def class_sets(self) -> list[list[int] | None] | None:
        """The class ids in each row's label, where they are stored beside the rows."""
        return None


class ArrowRows(Rows):
    """Rows of a `datasets.Dataset`, memory mapped, so that any row can be read at any time.

    Args:
        table: the data set.
        columns: role -> column name; roles that are not needed may be missing.
    """

    def __init__(self, table: datasets.Dataset, columns: dict[str, str]):
        # Selecting a column takes longer than reading a row, so it is done once.
        self.columns = {role: table.select_columns([name]) for role, name in columns.items()}
        self.table, self.names = table, columns

    def __len__(self) -> int:
        return len(self.columns["image"])

    def read(self, indices: np.ndarray, role: str) -> dict[int, dict | None]:
        """Several cells by index."""
        column, name = self.columns[role], self.names[role]
        return {int(i): column[int(i)][name] for i in indices}

    def chosen(self, indices: Sequence[int]) -> "ArrowRows":
        """These rows alone."""
        return ArrowRows(self.table.select(indices), self.names)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """From the table's offsets and the files' entries: nothing is read. A file that is not there has -1."""
        cells = self._column("image")
        sizes = np.array(pc.binary_length(pc.struct_field(cells, "bytes")).fill_null(-1), np.int64)
        in_files = np.flatnonzero(sizes < 0)
        paths = pc.struct_field(cells, "path").take(pa.array(in_files)).to_pylist()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            sizes[in_files] = list(pool.map(_file_size, paths))
        return sizes

    def has_label(self) -> np.ndarray:
        """Bool per row."""
        return _are_filled(self._column("label")) if "label" in self.columns else np.zeros(len(self), bool)

    def _column(self, role: str) -> pa.ChunkedArray:
        return self.columns[role].with_format("arrow")[:][self.names[role]]


class ParquetRows(Rows):
    """Rows of one parquet file, read by row group from a disk or the network; nothing is converted or copied first.

    Args:
        url: a local path, or anything fsspec opens, such as hf://datasets/USER/NAME@COMMIT/data/train.parquet.
        columns: role -> column name, "id" included.

    Raises:
        InputError: the file cannot be read or lacks a column.
    """

    def __init__(self, url: str, columns: dict[str, str]):
        self.url, self.names = url, columns
        with refusing((OSError, pa.ArrowException), f"{url} cannot be read as parquet"), _open(url) as file:
            self.footer = pq.read_metadata(file)
        check_columns(url, columns, self.footer.schema.to_arrow_schema().names)
        self.starts, leaves = np.cumsum([0] + [chunk.num_rows for chunk in self._chunks()]), self._leaves("image")
        sizes = [[chunk.column(leaf).total_compressed_size for leaf in leaves] for chunk in self._chunks()]
        self.group_bytes = np.array(sizes, int).reshape(-1, len(leaves)).sum(1)
        self._opened: dict[int, tuple[pq.ParquetFile, threading.Lock]] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": {}}

    def read(self, indices: np.ndarray, role: str) -> dict[int, dict | None]:
        """Several cells; reads the row groups that hold them, of the role's column alone."""
        groups = np.unique(self._group_of(indices)).tolist()
        rows = np.concatenate([np.arange(*self.starts[group : group + 2]) for group in groups])
        wanted = np.isin(rows, indices)
        cells = self._column(groups, role).take(pa.array(np.flatnonzero(wanted))).to_pylist()
        cells = [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]
        return dict(zip(rows[wanted].tolist(), cells, strict=True))

    def blocks(self, indices: np.ndarray) -> list[np.ndarray]:
        """Neighbouring rows, about BLOCK_BYTES of images together, never less than a row group."""
        used, group_of_row = np.unique(self._group_of(indices), return_inverse=True)
        # A group's block: how many BLOCK_BYTES lie before it.
        before = np.cumsum(self.group_bytes[used]) - self.group_bytes[used]
        return np.split(indices, np.flatnonzero(np.diff((before // BLOCK_BYTES)[group_of_row])) + 1)

    @property
    def sizes(self) -> np.ndarray:
        """From the footer."""
        return np.repeat(self.group_bytes, np.diff(self.starts))

    def ids(self) -> list | None:
        """Ids of all rows, from the footer where each row has its own group; None where they are to be numbered."""
        if not (leaves := self._leaves("id")):
            return None
        statistics = [chunk.column(leaves[0]).statistics for chunk in self._chunks() if chunk.num_rows == 1]
        # Writers that shorten long values make the largest one different from the smallest.
        is_told = all(s and s.has_min_max and s.min == s.max for s in statistics)
        if is_told and len(statistics) == self.footer.num_row_groups:
            return [s.min for s in statistics]
        return self._column(range(self.footer.num_row_groups), "id").to_pylist()

    def has_label(self) -> np.ndarray:
        """Bool per row; of row groups where some have and some have not, the label column is read."""
        if "label" not in self.names:
            return np.zeros(len(self), bool)
        if (sets := self.class_sets()) is not None:
            return np.array([s is not None for s in sets], bool)
        return np.concatenate([self._group_has_label(*item) for item in enumerate(self._chunks())])

    def _group_has_label(self, group: int, chunk: pq.RowGroupMetaData) -> np.ndarray:
        statistics = [chunk.column(leaf).statistics for leaf in self._leaves("label")]
        empty = {s.null_count if s is not None and s.has_null_count else None for s in statistics}
        if 0 in empty or empty == {chunk.num_rows}:
            return np.full(chunk.num_rows, 0 in empty)
        return _are_filled(self._column([group], "label"))

    def class_sets(self) -> list[list[int] | None] | None:
        """From the file's metadata; None where it has none that fits its rows."""
        try:
            kind = dict[str, list[list[int] | None]]
            classes = parse_json((self.footer.metadata or {})[METADATA_KEY].decode(), kind)["classes"]
        except (KeyError, ValueError):
            return None
        # Programs that leave rows out may keep the note.
        return classes if len(classes) == len(self) else None

    def fingerprint(self) -> list:
        """What tells these rows from others: the file, with size and date where it lies on a disk."""
        state = os.stat(self.url) if "://" not in self.url else None
        return [self.url, state and [state.st_size, state.st_mtime_ns], self.names]

    def _chunks(self) -> list[pq.RowGroupMetaData]:
        return [self.footer.row_group(group) for group in range(self.footer.num_row_groups)]

    def _group_of(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, indices, side="right") - 1

    def _leaves(self, role: str) -> list[int]:
        schema = self.footer.schema
        return [c for c in range(len(schema)) if schema.column(c).path.split(".")[0] == self.names[role]]

    def _column(self, groups: Sequence[int], role: str) -> pa.ChunkedArray:
        # Connections do not survive a fork, so each process opens its own.
        if os.getpid() not in self._opened:
            # pre_buffer fetches neighbouring pieces in one request.
            opened = pq.ParquetFile(_open(self.url), metadata=self.footer, pre_buffer=True)
            self._opened[os.getpid()] = (opened, threading.Lock())
        opened, lock = self._opened[os.getpid()]
        hint = "; the same command goes on"
        with refusing((OSError, pa.ArrowException), f"{self.url} cannot be read any more", hint), lock:
            return opened.read_row_groups(list(groups), columns=[self.names[role]], use_threads=False).column(0)


class JoinedRows(Rows):
    """The rows of several files or data sets, one after the other."""

    def __init__(self, parts: list[Rows]):
        self.parts = parts
        self.starts = np.cumsum([0] + [len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, indices: np.ndarray, role: str) -> dict[int, dict | None]:
        """Several cells by index."""
        dealt = [(start, part.read(own, role)) for part, start, own in self._dealt(indices)]
        return {i + start: cell for start, cells in dealt for i, cell in cells.items()}

    def blocks(self, indices: np.ndarray) -> list[np.ndarray]:
        """The blocks of all parts."""
        return [block + start for part, start, own in self._dealt(indices) for block in part.blocks(own)]

    @property
    def sizes(self) -> np.ndarray:
        """The sizes of all parts."""
        return np.concatenate([part.sizes for part in self.parts])

    def ids(self) -> list | None:
        """The ids of all parts; None where one has none."""
        return _chained([part.ids() for part in self.parts])

    def has_label(self) -> np.ndarray:
        """Bool per row."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return np.concatenate(list(pool.map(lambda part: part.has_label(), self.parts)))

    def class_sets(self) -> list[list[int] | None] | None:
        """Those of all parts; None where one has none."""
        return _chained([part.class_sets() for part in self.parts])

    def _dealt(self, indices: np.ndarray) -> list[tuple]:
        indices = np.sort(np.asarray(indices))
        shares = np.split(indices, np.searchsorted(indices, self.starts[1:-1]))
        dealt = zip(self.parts, self.starts[:-1], shares, strict=True)
        return [(part, start, own - start) for part, start, own in dealt if len(own)]


def open_parquet(urls: list[str], columns: dict[str, str]) -> JoinedRows:
    """The rows of parquet files, of which the footers are read, several at a time.

    Raises:
        InputError: see `ParquetRows`.
    """
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return JoinedRows(list(pool.map(lambda url: ParquetRows(url, columns), urls)))


def _chained(lists: list[list | None]) -> list | None:
    return None if None in lists else list(itertools.chain.from_iterable(lists))


def check_columns(source: str, columns: dict[str, str], present: list[str]) -> None:
    """Refuse columns, by role, that are not there; rows without ids are numbered."""
    for role, name in columns.items():
        is_there = name in present or role == name == "id"
        require(is_there, f"{source} has no column '{name}' (it has {', '.join(present)}); pass --{role}_column NAME")


def _open(url: str):
    """A file for random access, without a cache that would read ahead of what is asked for."""
    if "://" not in url:
        return pa.memory_map(url)
    system, path = fsspec.core.url_to_fs(url)
    file = system.open(path, "rb", cache_type="none")
    fetch = file.cache.fetcher

    def fetch_part(start: int, end: int) -> bytes:
        content = fetch(start, end)
        if len(content) > end - start:  # as some mirrors do; the beginning would be taken for the part
            raise OSError("the server sends whole files where parts are asked for; drop --streaming")
        return content

    file.cache.fetcher = fetch_part
    return file


def stored_bytes(cell: dict | None) -> bytes:
    """An image or label as it is stored; nothing where there is none that can be read."""
    try:
        return b"" if cell is None else cell["bytes"] or Path(cell["path"] or "").read_bytes()
    except OSError:
        return b""


def _file_size(path: str | None) -> int:
    return os.path.getsize(path) if path and os.path.isfile(path) else -1


def _are_filled(cells: pa.ChunkedArray) -> np.ndarray:
    """Which cells hold an image: bytes, or a path."""
    if not pa.types.is_struct(cells.type):
        return np.asarray(pc.is_valid(cells))
    parts = [pc.is_valid(pc.struct_field(cells, field.name)) for field in cells.type]
    return np.asarray(pc.and_(pc.is_valid(cells), functools.reduce(pc.or_, parts)).fill_null(False))
