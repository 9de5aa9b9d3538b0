"""Any data set as rows of id, image and label: the rendered demo, a local folder, or the Hub, kept or streamed."""

import logging
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from datasets.fingerprint import Hasher

from u2pl_hf.constants import IGNORE, IMAGE_SUFFIXES
from u2pl_hf.data.demo import demo_folder
from u2pl_hf.data.source.class_list import ClassList, parse_class_list
from u2pl_hf.data.source.decode import decode_image, decode_label, open_stored
from u2pl_hf.data.source.rows import CONNECTIONS, ArrowRows, JoinedRows, Rows, check_columns, open_parquet
from u2pl_hf.errors import refusing, require
from u2pl_hf.files import files_below, read_text
from u2pl_hf.hub_cache import class_list_folder, place_to_read

logger = logging.getLogger(__name__)
# What makes a folder one that `datasets` is to read: tables, or descriptions of the images.
TABLES = {".parquet", ".arrow", ".tar", ".zip"}
DESCRIPTIONS = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}


@dataclass(frozen=True)
class Source:
    """One subset of a data set. An image is read and decoded only when it is asked for.

    Attributes:
        rows: where the undecoded bytes are.
        ids: the id of each row, all different.
        classes: names, and colours to show them in, where the data set says.
        streamed: rows come from a network, or from files that are read in place: neighbours are cheap to read together.
    """

    rows: Rows
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
        return None if self.classes is None else self.classes.palette

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
        require(cell is not None, f"image {self.ids[index]} has no label, so it cannot be used as a labelled image")
        return decode_label(cell, self.ids[index])

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a row's image as stored, from its header."""
        return open_stored(self.rows.cell(index, "image"), f"image of {self.ids[index]}").size[::-1]

    def class_presence(self) -> np.ndarray:
        """Which classes each row's label holds, bool (rows, 255); from the files' metadata, else by reading labels."""
        sets, presence = self.rows.class_sets(), np.zeros((len(self.ids), IGNORE + 1), bool)
        if sets is None:
            has_label = self.rows.has_label()
            logger.info("reading %d labels, for a split that holds every class", has_label.sum())
            with ThreadPoolExecutor() as pool:
                sets = list(
                    pool.map(lambda i: np.unique(self.read_label(i)) if has_label[i] else (), range(len(self.ids)))
                )
        for row, ids in enumerate(sets):
            presence[row, np.array(() if ids is None else ids, int)] = True
        return presence[:, :IGNORE]


def load_source(
    dataset: str,
    subset: str = "train",
    *,
    id_column: str = "id",
    image_column: str = "image",
    label_column: str | None = "label",
    revision: str | None = None,
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
    columns = {"id": id_column, "image": image_column} | ({"label": label_column} if label_column else {})
    for column in columns.values():
        twice = [f"--{role}_column" for role in columns if columns[role] == column]
        require(len(twice) < 2, f"{' and '.join(twice)} both name '{column}': each needs a column of its own")
    path = place_to_read(str(demo_folder()) if dataset == "demo" else dataset, revision)
    if files := _photographs(Path(path)):
        kind = f"data set {path} is a folder of plain images without labels"
        remedy = "make a data set of images and masks with training_scripts/prepare_dataset.py folder"
        require(not label_column, f"{kind}; {remedy}, or pass the folder as --unlabelled_dataset")
        _check_subset(path, subset, ["train"], subset_option)
        table, ids = _photograph_table(Path(path), files)
        return Source(ArrowRows(table, {"image": "image"}), ids)
    with _reading(path):
        every, streamed = _subsets(path, revision, streaming)
    _check_subset(path, subset, every, subset_option)
    if streamed:
        rows = open_parquet(every[subset], columns)
        ids = rows.ids()
    else:
        rows, ids = _arrow_rows(path, every[subset], columns)
    require(len(rows), f"subset '{subset}' of data set {dataset} is empty; pass {subset_option} NAME")
    if ids is None:
        ids = [f"{subset}-{number}" for number in range(len(rows))]
        told = "data set %s has no column 'id': its rows are numbered, %s to %s; --id_column NAME takes another column"
        logger.warning(told, dataset, ids[0], ids[-1])
    _check_ids(ids, dataset, id_column)
    return Source(rows, list(map(str, ids)), _class_list(path, revision), streamed)


def subset_names(dataset: str, revision: str | None = None, *, streaming: bool = False) -> list[str]:
    """The subsets that a data set has; arguments as for `load_source`.

    Raises:
        InputError: no such data set.
    """
    path = place_to_read(str(demo_folder()) if dataset == "demo" else dataset, revision)
    if _photographs(Path(path)):
        return ["train"]
    with _reading(path):
        return list(map(str, _subsets(path, revision, streaming)[0]))


@contextmanager
def _reading(path: str):
    """Turns whatever `datasets` raises about a data set into one line, and shows none of its progress bars."""
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with refusing(Exception, f"data set {path} cannot be read"):  # datasets lets errors of many libraries through
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()


def _check_subset(path: str, subset: str, every: Iterable[str], option: str) -> None:
    names = list(map(str, every))
    other = next((name for name in names if name != "train"), "train")
    why = ", which are the training images; prepare_dataset.py folder --validation 0.2 keeps a share of them apart"
    there, why = ", ".join(names) or "none", why if names == ["train"] else ""
    require(subset in names, f"data set {path} has no subset '{subset}'; it has {there}: pass {option} {other}{why}")


def _check_ids(ids: list, dataset: str, column: str) -> None:
    wrong = [f"{type(name).__name__} in row {row}" for row, name in enumerate(ids) if type(name) not in (str, int)]
    told = f"column '{column}' of data set {dataset} holds {''.join(wrong[:1]).replace('NoneType', 'nothing')}"
    require(not wrong, f"{told}, where ids are text or integers; pass --id_column NAME")
    ((most, times),) = Counter(ids).most_common(1)
    require(times == 1, f"data set {dataset} has the id '{most}' more than once; ids must be unique")


def _photographs(folder: Path) -> list[Path]:
    """The image files in a plain folder and below, sorted; none where tables say more of them.

    They are listed here, as `datasets` would take test_1.jpg, or a folder val, for another subset and leave them out.
    Hidden files, and folders whose names start with a dot or two underscores, hold no photographs. Links are followed,
    a folder is visited once.
    """
    places = {path: path.relative_to(folder).parts for path in files_below(folder)}
    files = [path for path, parts in places.items() if not any(p.startswith((".", "__")) for p in parts[:-1])]
    if any(path.name in DESCRIPTIONS or path.suffix.lower() in TABLES for path in files):
        return []
    shown = [path for path in files if not path.name.startswith(".")]
    found = [path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES]
    others = Counter(path.suffix.lower() or "without suffix" for path in {*shown}.difference(found))
    if found:
        told = "".join(f", {count} {suffix} left out" for suffix, count in sorted(others.items()))
        logger.info("%s: %d photographs%s", folder, len(found), told)
    return sorted(found, key=str)


def _photograph_table(folder: Path, files: list[Path]) -> tuple[datasets.Dataset, list[str]]:
    """The files as rows of `image`, undecoded, and their ids: the place below the folder, without suffix.

    Files that differ in nothing but the suffix (a.jpg, a.png) keep it.

    Raises:
        InputError: a file's name is no text.
    """
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    times = Counter(stems)
    ids = [stem if times[stem] == 1 else stem + path.suffix for stem, path in zip(stems, files, strict=True)]
    cells = [{"bytes": None, "path": str(path.absolute())} for path in files]
    with refusing(UnicodeEncodeError, f"data set {folder}: rename a file whose name is not UTF-8"):
        features = datasets.Features({"image": datasets.Image(decode=False)})
        return datasets.Dataset.from_dict({"image": cells}, features=features), ids


def _subsets(path: str, revision: str | None, streaming: bool) -> tuple[dict, bool]:
    """All subsets: their parquet files as `datasets` finds them, and True; or their tables, and False."""
    is_local = Path(path).is_dir()
    if streaming or is_local:
        found = datasets.load_dataset_builder(path, revision=revision).config.data_files or {}
        files = {str(name): list(urls) for name, urls in found.items()}
        is_parquet = all(url.endswith(".parquet") for urls in files.values() for url in urls)
        if streaming and is_parquet:
            return files, True
        require(is_local, f"data set {path} is not stored as parquet, so it cannot be streamed; drop --streaming")
        if is_parquet and files:
            # Of a folder with a card only the card would be asked for changes; of named files it is their dates.
            return datasets.load_dataset("parquet", data_files=files), False
    return datasets.load_dataset(path, revision=revision), False


def _arrow_rows(path: str, table: datasets.Dataset, columns: dict[str, str]) -> tuple[ArrowRows, list | None]:
    """Rows, and their ids; None where they are to be numbered."""
    check_columns(f"data set {path}", columns, table.column_names)
    stored = {role: column for role, column in columns.items() if role != "id"}
    for column in stored.values():
        told = f"column '{column}' of data set {path} holds no images but {table.features[column]}"
        with refusing((pyarrow.ArrowException, TypeError, ValueError), told):
            table = table.cast_column(column, datasets.Image(decode=False))
    rows = ArrowRows(table, stored)
    if columns["id"] in table.column_names:
        return rows, table.select_columns([columns["id"]])[:][columns["id"]]
    if table.info.builder_name != "imagefolder" or not Path(path).is_dir():
        return rows, None
    # A folder of images of which a table tells more: the files' names below it, without suffix.
    cells, root = rows.read(np.arange(len(rows)), "image"), Path(path).resolve()
    places = (Path(cell["path"]).resolve().relative_to(root) for cell in cells.values())
    return rows, [place.with_suffix("").as_posix() for place in places]


def _class_list(path: str, revision: str | None) -> ClassList | None:
    """What class_names.txt beside the data says, on a disk or on the Hub."""
    folder = path if Path(path).exists() else class_list_folder(path, revision)
    if folder is None or not (file := Path(folder, "class_names.txt")).is_file():
        return None
    classes = parse_class_list(read_text(file, "save it so"), str(file))
    values = [value for value, *others in classes.colours or () if not others]
    given = f"{file} gives the classes the values {' '.join(map(str, values[:5]))} ..."
    rule = "labels of a data set are 0, 1 ... in the order of its lines"
    remedy = "order them so, or make a data set with prepare_dataset.py folder"
    require(values == list(range(len(values))), f"{given}, but {rule}: {remedy}")
    return classes


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


def materialised(source: Source, indices: list[int]) -> Source:
    """These rows of a streamed source, with their labels, as a local memory-mapped table.

    Processes of one machine share the table, and it is made once: `datasets` caches it under the files and rows.
    """
    wanted, roles = {"rows": source.rows, "indices": list(indices)}, {"image": "image", "label": "label"}
    features = datasets.Features({role: datasets.Image(decode=False) for role in roles})
    fingerprint = Hasher.hash([[part.fingerprint() for part in source.rows.parts], wanted["indices"]])
    with _reading(source.rows.parts[0].url):
        options = {"features": features, "gen_kwargs": wanted, "fingerprint": fingerprint}
        table = datasets.Dataset.from_generator(_cells, **options)
    return Source(ArrowRows(table, roles), [source.ids[i] for i in indices], source.classes)


def chosen(source: Source, indices: list[int]) -> Source:
    """These rows of a source as one of their own."""
    if source.streamed:
        return materialised(source, indices)
    return replace(source, rows=source.rows.chosen(indices), ids=[source.ids[i] for i in indices])


def _cells(rows: Rows, indices: list[int]):
    """Rows for a table, in order; fetched by several threads, a few hundred at a time."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for start in range(0, len(indices), 256):
            part, cells = np.array(indices[start : start + 256]), {"image": {}, "label": {}}
            for role, own in cells.items():
                for found in pool.map(rows.read, blocks := rows.blocks(part), [role] * len(blocks)):
                    own |= found
            for i in part.tolist():
                yield {role: own[i] for role, own in cells.items()}
