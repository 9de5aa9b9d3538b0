"""Any data set as rows of id, image and label: the rendered demo, a local folder, or the Hub."""

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from PIL import Image, ImageOps, UnidentifiedImageError

from u2pl_hf.data.demo import demo_folder
from u2pl_hf.errors import InputError

VOID = 255


@dataclass(frozen=True)
class Source:
    """One subset of a data set. Rows are memory mapped, and an image is decoded only when it is read.

    Attributes:
        rows: columns named below; images as undecoded bytes.
        ids: the id of each row, all different.
        class_names: one per class, where the data set names them.
    """

    rows: datasets.Dataset
    ids: list[str]
    class_names: list[str] | None
    image_column: str = "image"
    label_column: str | None = "label"

    def read_image(self, index: int) -> np.ndarray:
        """Image of a row as uint8 (H,W,3) RGB, turned upright as its EXIF orientation says.

        Raises:
            InputError: the bytes are not an image, or are damaged.
        """
        image = self._open(index, self.image_column)
        try:
            return np.asarray(ImageOps.exif_transpose(_to_rgb(image)))
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"image {self.ids[index]} cannot be read: {error}") from error

    def read_label(self, index: int) -> np.ndarray:
        """Label of a row as uint8 (H,W) class ids, 255 = ignore. Palette masks keep their ids.

        Raises:
            InputError: the bytes are not an image, or the mask has several channels or values above 255.
        """
        label = self._open(index, self.label_column)
        try:
            # A palette mask as an array is its ids; convert("L") would make grey levels of them.
            ids = np.asarray(label)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"label of {self.ids[index]} cannot be read: {error}") from error
        if ids.ndim != 2 or ids.dtype.kind not in "ui" or ids.min(initial=0) < 0 or ids.max(initial=0) > 255:
            raise InputError(f"label of {self.ids[index]} is {label.mode}, not an 8-bit mask of class ids")
        return ids.astype(np.uint8)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a row's image as stored, from its header."""
        width, height = self._open(index, self.image_column).size
        return height, width

    def _open(self, index: int, column: str) -> Image.Image:
        # Only the named column: a label is never read along with an image.
        cell = self.rows.select_columns([column])[int(index)][column]
        try:
            return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, TypeError) as error:
            raise InputError(f"{column} of {self.ids[index]} is not a readable image") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else _keep_exif(image, image.convert("RGB"))


def _keep_exif(before: Image.Image, after: Image.Image) -> Image.Image:
    after.info.setdefault("exif", before.info.get("exif", b""))
    return after


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
    """Open one subset of a data set.

    Args:
        dataset: "demo", a local folder, or a Hub id, as `datasets.load_dataset` reads them.
        subset: train, validation ...
        label_column: None where labels are not needed.

    Raises:
        InputError: no such data set, subset or column; ids that are missing or not unique.
    """
    path = str(demo_folder(cache_dir)) if dataset == "demo" else dataset
    every = _load(path, revision)
    if subset not in every:
        raise InputError(f"data set {dataset} has no subset '{subset}'; it has {', '.join(every)}")
    rows = every[subset]
    if not len(rows):
        raise InputError(f"subset '{subset}' of data set {dataset} is empty")
    for option, column in (("id", id_column), ("image", image_column), ("label", label_column)):
        if column is not None and column not in rows.column_names:
            listed = ", ".join(rows.column_names)
            raise InputError(
                f"data set {dataset} has no column '{column}' (it has {listed}); pass --{option}_column NAME"
            )
    for column in filter(None, (image_column, label_column)):
        try:
            rows = rows.cast_column(column, datasets.Image(decode=False))
        except (pyarrow.ArrowException, TypeError, ValueError):
            kind = rows.features[column]
            raise InputError(f"column '{column}' of data set {dataset} holds no images but {kind}") from None
    ids = [str(i) for i in rows.select_columns([id_column])[:][id_column]]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))
        raise InputError(f"data set {dataset} has the id '{twice}' more than once; ids must be unique")
    return Source(rows, ids, _class_names(Path(path)), image_column, label_column)


def _load(path: str, revision: str | None) -> datasets.DatasetDict:
    local = Path(path)
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise InputError(f"data set {path}: no such folder")
    if local.is_dir() and not any(local.iterdir()):
        raise InputError(f"data set {path}: the folder is empty")
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, revision=revision)
    except Exception as error:  # datasets lets errors of many libraries through
        reason = " ".join(str(error).split())[:300]
        where = (
            "cannot be read as a data set" if local.exists() else "is neither a local folder nor a data set on the Hub"
        )
        raise InputError(f"data set {path} {where}: {reason}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def _class_names(folder: Path) -> list[str] | None:
    path = folder / "class_names.txt"
    if not path.is_file():
        return None
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def check_labelled(source: Source, indices: Iterable[int], num_labels: int, *, what: str) -> None:
    """Decode these rows once and refuse any that cannot be trained or evaluated on.

    Raises:
        InputError: names the first bad id and how many more there are.
    """
    with ThreadPoolExecutor() as pool:
        problems = [p for p in pool.map(lambda i: _problem(source, i, num_labels), indices) if p]
    if problems:
        more = f" (and {len(problems) - 1} more {what} images have problems)" if len(problems) > 1 else ""
        raise InputError(problems[0] + more)


def _problem(source: Source, index: int, num_labels: int) -> str | None:
    try:
        image, label = source.read_image(index), source.read_label(index)
    except InputError as error:
        return str(error)
    name = source.ids[index]
    if image.shape[:2] != label.shape:
        (h, w), (lh, lw) = image.shape[:2], label.shape
        return f"image and label of {name} differ in size: {w}x{h} and {lw}x{lh}"
    highest = int(label[label != VOID].max(initial=0))
    if highest >= num_labels:
        return (
            f"label of {name} holds the value {highest}, but there are {num_labels} classes (0..{num_labels - 1}, 255)"
        )
    return None
