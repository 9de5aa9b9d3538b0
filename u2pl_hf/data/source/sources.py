"""Any data set as rows of id, image and label: the rendered demo, a local folder, or the Hub, kept or streamed."""

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from datasets.fingerprint import Hasher

from u2pl_hf.data.demo import demo_folder
from u2pl_hf.data.source.class_list import ClassList, parse_class_list
from u2pl_hf.data.source.decode import decode_image, decode_label, image_size
from u2pl_hf.data.source.naming import check_distinct, check_ids, check_plain, check_subset, quiet, readable
from u2pl_hf.data.source.photo_folder import photograph_table, photographs
from u2pl_hf.data.source.rows import CONNECTIONS, IDS, ArrowRows, JoinedRows, ParquetRows, stored_bytes
from u2pl_hf.errors import InputError
from u2pl_hf.hub_cache import class_list_folder, place_to_read

VOID = 255
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One subset of a data set. An image is read and decoded only when it is asked for.

    Attributes:
        rows: where the undecoded bytes are.
        ids: the id of each row, all different.
        classes: names, and colours to show them in, where the data set says.
        streamed: rows come from a network, or from files that are read in place: neighbours are cheap to read together.
    """

    rows: ArrowRows | ParquetRows | JoinedRows
    ids: list[str]
    classes: ClassList | None = None
    streamed: bool = False

    @property
    def class_names(self) -> list[str] | None:
        """One per class, where the data set names them."""
        return None if self.classes is None else list(self.classes.names)

    @property
    def palette(self) -> list[list[int]] | None:
        """[r, g, b] per class, where the data set says."""
        colours = self.classes.colours if self.classes else None
        return [list(colour) for colour in colours] if colours and len(colours[0]) == 3 else None

    def read_image(self, index: int, cell: dict | None = None) -> np.ndarray:
        """Image of a row as uint8 (H,W,3) RGB, turned upright; `cell` is its undecoded form where it is at hand.

        Raises:
            InputError: the bytes are not an image, or are damaged.
        """
        return decode_image(self.rows.cell(index, "image") if cell is None else cell, self.ids[index])

    def read_label(self, index: int) -> np.ndarray:
        """Label of a row as uint8 (H,W) class ids, 255 = ignore. Palette masks keep their ids.

        Raises:
            InputError: there is none, the bytes are not an image, or the mask has several channels or values above 255.
        """
        cell = self.rows.cell(index, "label")
        if cell is None:
            raise InputError(f"image {self.ids[index]} has no label, so it cannot be used as a labelled image")
        return decode_label(cell, self.ids[index])

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a row's image as stored, from its header."""
        return image_size(self.rows.cell(index, "image"), self.ids[index])

    def class_presence(self) -> np.ndarray:
        """Which classes each row's label holds, bool (rows, 255); from the files' metadata, else by reading labels."""
        presence = np.zeros((len(self.ids), VOID), bool)
        sets = self.rows.class_sets()
        if sets is None:
            rows = np.flatnonzero(self.rows.has_label())
            logger.info("reading %d labels, for a split that holds every class", len(rows))
            with ThreadPoolExecutor() as pool:
                sets = dict(zip(rows, pool.map(lambda i: np.unique(self.read_label(i)), rows), strict=True))
        else:
            sets = {row: np.array(ids, int) for row, ids in enumerate(sets) if ids is not None}
        for row, ids in sets.items():
            presence[row, ids[ids < VOID]] = True
        return presence


def load_source(
    dataset: str,
    subset: str = "train",
    *,
    id_column: str = "id",
    image_column: str = "image",
    label_column: str | None = "label",
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    streaming: bool = False,
    subset_option: str = "--subset",
) -> Source:
    """Open one subset of a data set.

    Args:
        dataset: "demo", a local folder, or a Hub id, as `datasets.load_dataset` reads them.
        subset: train, validation ...
        id_column: rows of a data set without a column "id" are numbered, where this is not another name.
        label_column: None where labels are not needed.
        streaming: read parquet files where they lie, on the Hub or on a disk, instead of converting all of them first.
        subset_option: what a user passes for `subset`, for messages.

    Raises:
        InputError: no such data set, subset or column; ids that are missing, not unique, or neither text nor integers.
    """
    path = str(demo_folder(cache_dir)) if dataset == "demo" else dataset
    columns = {"id": id_column, "image": image_column} | ({"label": label_column} if label_column else {})
    check_distinct(columns)
    path = place_to_read(path, revision)
    files = photographs(Path(path)) if Path(path).is_dir() else None
    if files:
        check_plain(path, subset, label_column, subset_option)
        table, ids = photograph_table(Path(path), files)
        return Source(ArrowRows(table, {"image": "image"}), ids)
    files = _parquet_files(path, subset, revision, subset_option) if streaming else None
    if files is not None:
        rows = ParquetRows(files, columns)
        ids = rows.ids()
    else:
        rows, ids = _arrow_rows(path, subset, revision, columns, subset_option)
    if not len(rows):
        raise InputError(f"subset '{subset}' of data set {dataset} is empty; pass {subset_option} NAME")
    if ids is None:
        ids = [f"{subset}-{number}" for number in range(len(rows))]
        told = "data set %s has no column 'id': its rows are numbered, %s to %s; --id_column NAME takes another column"
        logger.warning(told, dataset, ids[0], ids[-1])
    check_ids(ids, dataset, id_column)
    return Source(rows, list(map(str, ids)), _class_list(path, revision), streamed=files is not None)


def joined(sources: list[Source]) -> Source:
    """Several sources as one, ids prefixed with the source's number where two sources share one.

    Classes are the first source's.
    """
    if len(sources) == 1:
        return sources[0]
    ids = [i for source in sources for i in source.ids]
    if len(set(ids)) < len(ids):
        ids = [f"{number}:{i}" for number, source in enumerate(sources) for i in source.ids]
    rows = JoinedRows([source.rows for source in sources])
    return Source(rows, ids, sources[0].classes, any(source.streamed for source in sources))


def materialised(source: Source, indices: list[int], cache_dir: str | os.PathLike | None = None) -> Source:
    """These rows of a streamed source, with their labels, as a local memory-mapped table.

    Processes of one machine share the table, and it is made once: `datasets` caches it under the files and rows.
    """
    features = datasets.Features({name: datasets.Image(decode=False) for name in ("image", "label")})
    made_from = Hasher.hash([source.rows.fingerprint(), list(indices)])
    with quiet():
        table = datasets.Dataset.from_generator(
            _cells,
            features=features,
            cache_dir=cache_dir,
            gen_kwargs={"rows": source.rows, "indices": list(indices)},
            fingerprint=made_from,
        )
    columns = {"image": "image", "label": "label"}
    return Source(ArrowRows(table, columns), [source.ids[i] for i in indices], source.classes)


def _cells(rows: ParquetRows, indices: list[int]):
    """Rows for a table, in order; fetched by several threads, a few hundred at a time."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for start in range(0, len(indices), 256):
            part = np.array(indices[start : start + 256])
            blocks = rows.blocks(part)
            cells = [
                {
                    i: cell
                    for found in pool.map(lambda b, role=role: rows.read(b, role), blocks)
                    for i, cell in found.items()
                }
                for role in ("image", "label")
            ]
            for i in part.tolist():
                yield {"image": cells[0][i], "label": cells[1][i]}


def _parquet_by_subset(path: str, revision: str | None) -> dict[str, list[str]] | None:
    """The files of each subset as `datasets` finds them; None where not all of them are parquet."""
    found = datasets.load_dataset_builder(path, revision=revision).config.data_files or {}
    files = {str(name): list(urls) for name, urls in found.items()}
    return files if all(url.endswith(".parquet") for urls in files.values() for url in urls) else None


def _parquet_files(path: str, subset: str, revision: str | None, option: str) -> list[str] | None:
    """Where the parquet files of a subset are; None for a local folder that holds other files."""
    with readable(path), quiet():
        files = _parquet_by_subset(path, revision)
    if files is None:
        if Path(path).is_dir():
            return None
        raise InputError(f"data set {path} is not stored as parquet, so it cannot be streamed; drop --streaming")
    check_subset(path, subset, files, option)
    return files[subset]


def _load(path: str, revision: str | None) -> datasets.DatasetDict:
    """All subsets, from the cache of `datasets` where nothing has changed."""
    # Of a folder with a card only the card would be asked for changes; of named files it is their dates.
    if Path(path).is_dir() and (files := _parquet_by_subset(path, revision)):
        return datasets.load_dataset("parquet", data_files=files)
    return datasets.load_dataset(path, revision=revision)


def _arrow_rows(
    path: str, subset: str, revision: str | None, columns: dict[str, str], option: str
) -> tuple[ArrowRows, list | None]:
    """Rows, and their ids; None where they are to be numbered."""
    with readable(path), quiet():
        every = _load(path, revision)
    check_subset(path, subset, every, option)
    table = every[subset]
    for role, column in columns.items():
        if column not in table.column_names and (role, column) != IDS:
            listed = ", ".join(table.column_names)
            raise InputError(f"data set {path} has no column '{column}' (it has {listed}); pass --{role}_column NAME")
    bytes_columns = {role: column for role, column in columns.items() if role != "id"}
    for column in bytes_columns.values():
        try:
            table = table.cast_column(column, datasets.Image(decode=False))
        except (pyarrow.ArrowException, TypeError, ValueError):
            kind = table.features[column]
            raise InputError(f"column '{column}' of data set {path} holds no images but {kind}") from None
    rows, name = ArrowRows(table, bytes_columns), columns["id"]
    if name in table.column_names:
        return rows, table.select_columns([name])[:][name]
    is_described_folder = table.info.builder_name == "imagefolder" and Path(path).is_dir()
    return rows, _file_names(path, table.select_columns([columns["image"]])) if is_described_folder else None


def _file_names(path: str, images: datasets.Dataset) -> list[str]:
    """Ids of images in a folder, of which its metadata.csv tells more: the files' names below it, without suffix."""
    (column,) = images.column_names
    root = Path(path).resolve()
    return [Path(cell["path"]).resolve().relative_to(root).with_suffix("").as_posix() for cell in images[:][column]]


def _class_list(path: str, revision: str | None) -> ClassList | None:
    """What class_names.txt beside the data says, on a disk or on the Hub."""
    folder = path if Path(path).exists() else class_list_folder(path, revision)
    file = Path(folder, "class_names.txt") if folder else None
    if file is None or not file.is_file():
        return None
    try:
        classes = parse_class_list(file.read_text(encoding="utf-8-sig"), str(file))
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text in UTF-8: {error}") from error
    values = [value for value, *others in classes.colours or () if not others]
    if values not in ([], list(range(len(values)))):
        raise InputError(
            f"{file} gives the classes the values {' '.join(map(str, values[:5]))} ..., but labels of a data set are "
            "0, 1 ... in the order of its lines: order them so, or make a data set with prepare_dataset.py folder"
        )
    return classes


@dataclass(frozen=True)
class Labelled:
    """What one pass over labelled images finds, row by row.

    Attributes:
        ids: of the rows.
        counts: int64 (rows,C), pixels of each class; 255 is not counted.
        sizes: bytes of each image as stored.
        images, labels: sha256 of each image as stored, and of its class ids, whatever they were compressed with.
    """

    ids: list[str]
    counts: np.ndarray
    sizes: list[int]
    images: list[bytes]
    labels: list[bytes]


def check_labelled(source: Source, indices: Iterable[int], num_labels: int, *, what: str) -> Labelled:
    """Decode these rows once and refuse any that cannot be trained or evaluated on.

    Raises:
        InputError: names the first bad id and how many more there are.
    """
    indices = list(indices)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda i: _checked(source, i, num_labels), indices))
    problems = [p for p in found if isinstance(p, str)]
    if problems:
        more = f" (and {len(problems) - 1} more {what} images have problems)" if len(problems) > 1 else ""
        raise InputError(problems[0] + more)
    counts, *others = zip(*found, strict=True)
    return Labelled([source.ids[i] for i in indices], np.stack(counts), *map(list, others))


def check_some_readable(source: Source, indices: list[int], tries: int = 8) -> None:
    """Refuse unlabelled images of which none out of a few can be read.

    Raises:
        InputError: quotes the first problem.
    """
    problems = []
    for place in np.unique(np.linspace(0, len(indices) - 1, tries).astype(int)):
        try:
            source.read_image(indices[place])
            return
        except InputError as error:
            problems.append(str(error))
    raise InputError(f"{len(problems)} unlabelled images were tried and none can be read: {problems[0]}")


def _checked(source: Source, index: int, num_labels: int) -> str | tuple[np.ndarray, int, bytes, bytes]:
    """What is wrong with a row, or the row of `Labelled` for it."""
    cell = source.rows.cell(index, "image")
    try:
        image, label = source.read_image(index, cell), source.read_label(index)
    except InputError as error:
        return str(error)
    name = source.ids[index]
    if image.shape[:2] != label.shape:
        (h, w), (lh, lw) = image.shape[:2], label.shape
        return f"image and label of {name} differ in size: {w}x{h} and {lw}x{lh}"
    counts = np.bincount(label.ravel(), minlength=VOID + 1)
    highest = np.flatnonzero(counts[:VOID]).max(initial=0)
    if highest >= num_labels:
        return (
            f"label of {name} holds the value {highest}, but there are {num_labels} classes (0..{num_labels - 1}, 255)"
        )
    stored, pixels = stored_bytes(cell), str(label.shape).encode() + label.tobytes()
    return counts[:num_labels], len(stored), hashlib.sha256(stored).digest(), hashlib.sha256(pixels).digest()
