"""Any data set as rows of id, image and label, decoded one at a time and only when asked for."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import ExifTags, Image, ImageOps

from u2pl_hf.data.demo import demo_folder
from u2pl_hf.errors import InputError

VOID = 255
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
CHECK_THREADS = 8


@dataclass(frozen=True)
class Source:
    """One subset of a data set.

    `rows` is memory mapped and holds undecoded images; `ids` is in the order of the rows. `label_column` is None for a
    set without labels, `class_names` is None where the data set does not tell them.
    """

    name: str
    rows: datasets.Dataset
    ids: list[str]
    class_names: list[str] | None = None
    image_column: str = "image"
    label_column: str | None = "label"

    def __post_init__(self):
        # One view per column: reading an image must not fetch the bytes of its label, nor the other way round.
        object.__setattr__(self, "_images", self.rows.select_columns([self.image_column]))
        labels = self.rows.select_columns([self.label_column]) if self.label_column else None
        object.__setattr__(self, "_labels", labels)

    def __len__(self) -> int:
        return len(self.ids)

    def read_image(self, index: int) -> np.ndarray:
        """Image of row `index` as it is meant to be seen (EXIF orientation applied), uint8 (H, W, 3) RGB.

        Grey, palette, RGBA, CMYK and 16-bit images are converted. Raises InputError if it cannot be read.
        """
        return self._read(self._images, self.image_column, index, _to_rgb)

    def read_label(self, index: int) -> np.ndarray:
        """Label of row `index`, uint8 (H, W); the indices of palette masks are kept.

        Raises InputError if it cannot be read, is not single-channel, or has values above 255.
        """
        if self._labels is None:
            raise InputError(f"{self.name}: read without labels; pass the label column (label_column)")
        return self._read(self._labels, self.label_column, index, _to_ids)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index` as `read_image` returns it, from the file's header alone."""
        return self._read(self._images, self.image_column, index, _upright_size)

    def _read(self, view: datasets.Dataset, column: str, index: int, convert: Callable):
        cell = view[int(index)][column]
        try:
            with Image.open(_file(cell)) as image:
                return convert(image)
        # Pillow's decoders raise nearly anything on a damaged file: OSError, SyntaxError, ValueError, struct.error, ...
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self.name}: id {self.ids[index]!r}: column {column!r}: {reason}") from error


def _file(cell: dict | None) -> io.BytesIO | str:
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("the cell is empty")
    # BytesIO has no name, so that Pillow's messages do not depend on memory addresses: see _to_rgb and _to_ids.
    return cell["path"] if cell["bytes"] is None else _NamedBytes(cell["bytes"])


class _NamedBytes(io.BytesIO):
    """Bytes that Pillow's error messages can print."""

    def __repr__(self) -> str:
        return "this file"


def _to_rgb(image: Image.Image) -> np.ndarray:
    # Only JPEG decoding can be told in advance which mode is wanted; everything else is converted afterwards.
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit grey: convert("RGB") would clip everything above 255 to white.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _to_ids(image: Image.Image) -> np.ndarray:
    # Never convert("L"): it replaces a palette mask's indices by the brightness of their colours.
    if image.mode in ("L", "P"):
        return np.asarray(image)
    if image.mode == "1" or image.mode.startswith("I"):
        ids = np.asarray(image).astype(np.int64)
        if ids.min() < 0 or ids.max() > 255:
            raise ValueError(f"label value {ids.max() if ids.max() > 255 else ids.min()} is outside 0..255")
        return ids.astype(np.uint8)
    raise ValueError(
        f"the label is a {image.mode} image, not a single-channel mask of class ids; convert its colours to ids first"
    )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    # Orientations 5 to 8 turn the image by a quarter.
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def load_source(
    dataset: str,
    subset: str = "train",
    *,
    id_column: str = "id",
    image_column: str = "image",
    label_column: str | None = "label",
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Source:
    """Open one subset of a data set: "demo", a local folder, or a Hub id that `datasets.load_dataset` reads.

    `label_column=None` opens the images alone. Where there is no column "id", the images' file names serve. Class
    names come from `class_names.txt` in the folder. `cache_dir` holds the rendered demo and the files of `datasets`.
    Raises InputError if the data set, the subset or a column is missing, or ids are not unique.
    """
    path = str(demo_folder(cache_dir)) if dataset == "demo" else _locate(dataset)
    rows = _load_rows(dataset, path, subset, revision, cache_dir)
    if len(rows) == 0:
        raise InputError(f"{dataset}: subset {subset!r} has no rows")
    for option, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None:
            rows = _undecoded(dataset, rows, column, option)
    return Source(
        name=f"{dataset}/{subset}",
        rows=rows,
        ids=_unique(dataset, _ids(dataset, rows, id_column, image_column)),
        class_names=_class_names(path),
        image_column=image_column,
        label_column=label_column,
    )


def _locate(dataset: str) -> str:
    """The folder's path, or the Hub id unchanged."""
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.exists():
        raise InputError(f"{dataset}: this is a file; pass the folder that holds it")
    if not HUB_ID.fullmatch(dataset):
        raise InputError(f"{dataset}: no such folder; pass a folder, a Hub id (owner/name) or 'demo'")
    return dataset


def _load_rows(dataset: str, path: str, subset: str, revision: str | None, cache_dir) -> datasets.Dataset:
    try:
        with _no_progress_bars():
            builder = datasets.load_dataset_builder(path, revision=revision, cache_dir=_as_str(cache_dir))
            _require_subset(dataset, builder, subset)
            builder.download_and_prepare()
            return builder.as_dataset(split=subset)
    except InputError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        if Path(path).is_dir():
            raise InputError(f"{dataset}: datasets cannot read this folder: {reason}") from error
        raise InputError(
            f"{dataset}: there is no such folder here, and it could not be loaded from the Hub: {reason}"
        ) from error


def _as_str(path: str | os.PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _require_subset(dataset: str, builder: datasets.DatasetBuilder, subset: str) -> None:
    # "train[:10%]" is a part of train.
    names = list(builder.config.data_files or builder.info.splits or ())
    if subset.split("[")[0] not in names:
        raise InputError(f"{dataset}: no subset {subset!r}; pass one of {', '.join(map(str, names))}")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    were_on = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


def _undecoded(dataset: str, rows: datasets.Dataset, column: str, option: str) -> datasets.Dataset:
    _require_column(dataset, rows, column, option)
    try:
        with _no_progress_bars():
            return rows.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        kind = rows.features[column]
        raise InputError(f"{dataset}: column {column!r} holds {kind}, not images; pass another {option}") from error


def _require_column(dataset: str, rows: datasets.Dataset, column: str, option: str) -> None:
    if column not in rows.column_names:
        names = ", ".join(rows.column_names)
        raise InputError(f"{dataset}: no column {column!r} among {names}; pass the right one as {option}")


def _ids(dataset: str, rows: datasets.Dataset, id_column: str, image_column: str) -> list[str]:
    if id_column == "id" and id_column not in rows.column_names:
        paths = pc.struct_field(rows.data.table[image_column], "path") if not rows._indices else None
        if paths is not None and paths.null_count == 0:
            return [Path(path).stem for path in paths.to_pylist()]
    _require_column(dataset, rows, id_column, "id_column")
    ids = rows.select_columns([id_column])[:][id_column]
    if None in ids:
        raise InputError(f"{dataset}: row {ids.index(None)} has no id in column {id_column!r}")
    return [str(image_id) for image_id in ids]


def _unique(dataset: str, ids: list[str]) -> list[str]:
    if len(set(ids)) < len(ids):
        seen = set()
        first = next(image_id for image_id in ids if image_id in seen or seen.add(image_id))
        extra = len(ids) - len(set(ids))
        raise InputError(f"{dataset}: id {first!r} occurs more than once ({extra} rows too many); ids must be unique")
    return ids


def _class_names(path: str) -> list[str] | None:
    file = Path(path) / "class_names.txt"
    return file.read_text(encoding="utf-8-sig").split("\n")[:-1] if file.is_file() else None


def check_labelled(source: Source, indices: Sequence[int], num_labels: int, *, what: str) -> None:
    """Decode these rows and raise InputError unless every image and label can be trained on.

    The message says `what` was checked, names the first bad id and how many more there are. A label must have the
    size of its image and hold values below `num_labels` or 255.
    """
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        problems = [p for p in pool.map(lambda index: _problem(source, index, num_labels), indices) if p]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{what}: {problems[0]}{more}")


def _problem(source: Source, index: int, num_labels: int) -> str | None:
    try:
        image, label = source.read_image(index), source.read_label(index)
    except InputError as error:
        return str(error)
    where = f"{source.name}: id {source.ids[index]!r}"
    if image.shape[:2] != label.shape:
        return f"{where}: the image is {_by(image)}, its label {_by(label)} (height x width)"
    wrong = label[(label >= num_labels) & (label != VOID)]
    if wrong.size:
        return (
            f"{where}: label value {wrong.max()} is neither below num_labels={num_labels} nor {VOID}; "
            "pass another num_labels or mend the mask"
        )
    return None


def _by(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
