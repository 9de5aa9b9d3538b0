"""Label maps -> a folder that an annotation tool reads, complete or not there."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.annotations import LabelledImage, LabelledPatch, Style, require_extra
from u2pl_hf.data.annotations.coco_json import write_coco
from u2pl_hf.data.annotations.cvat_xml import write_cvat
from u2pl_hf.data.annotations.label_studio import write_label_studio
from u2pl_hf.data.annotations.labelme_json import write_labelme
from u2pl_hf.data.annotations.shapes import connected_parts
from u2pl_hf.data.source.class_list import ClassList, write_class_list
from u2pl_hf.errors import refusing, require
from u2pl_hf.files import read_json, write_atomically, write_json

WRITERS = {"coco": write_coco, "cvat": write_cvat, "labelme": write_labelme, "labelstudio": write_label_studio}
# Where a class has this name, pixels of no object are of it when a tool's file is read, and it is not written.
BACKGROUND = "background"
# What 255 is called where the rest is a class.
IGNORED_LABEL = "ignore"
# Says that this package wrote the folder.
MARKER = "u2pl_export.json"


def check_export(folder: Path, kind: str, option: str) -> None:
    """Refuse, before anything long starts, a folder of others and a format that lacks its package.

    Raises:
        InputError: names the option.
    """
    if kind == "coco":
        require_extra("pycocotools", "COCO's format")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    is_ours, another = (folder / MARKER).is_file(), f"pass another {option}"
    require(is_ours, f"{folder} is there and was not written by this program: {another}")
    # A tool saves corrections in place; they must not be lost.
    written, there = read_json(folder / MARKER).get("digests"), _digests(folder)
    changed = sorted(name for name, digest in there.items() if (written or {}).get(name) != digest)
    told = f"{folder / ''.join(changed[:1])} was changed or added since it was exported, and would be lost: {another}"
    require(not changed, told)


def _digests(folder: Path) -> dict[str, str]:
    """Of each file in it and below, but the marker: place below the folder -> sha256."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MARKER)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def parts_of(
    labels: np.ndarray, names: Sequence[str], confidence: np.ndarray | None = None, below: float = 0.0
) -> Iterator[LabelledPatch]:
    """The connected parts of a label map that a tool's file has to name: all but what reading takes for the rest.

    Args:
        labels: uint8 (H,W) class ids, 255 = ignore.
        names: of the classes.
        confidence: of each pixel, (H,W) in [0, 1], for predictions.
        below: a part is uncertain if the mean of its confidence is.
    """
    has_background = BACKGROUND in names
    for value, patch in connected_parts(labels):
        name = IGNORED_LABEL if value == IGNORE else names[value]
        if name == BACKGROUND or (value == IGNORE and not has_background):
            continue
        height, width = patch.mask.shape
        mean = None
        if confidence is not None:
            inside = confidence[patch.top : patch.top + height, patch.left : patch.left + width]
            mean = float(inside[patch.mask].mean())
        yield LabelledPatch(name, patch, mean, mean is not None and mean < below)


def write_annotations(
    folder: Path, kind: str, classes: ClassList, images: Callable[[Path], Iterable[LabelledImage]], style: Style
) -> dict:
    """Write a folder of one format, and class_names.txt in it; a folder that this package wrote is replaced.

    Args:
        images: gives the images, of the folder to write them into.

    Returns:
        format, images, regions, uncertain regions and files.

    Raises:
        InputError: the disk is full or cannot be written to.
    """
    facts = {"format": kind, "shapes": style.shapes, "images": 0, "regions": 0, "uncertain": 0}
    shown = classes
    if BACKGROUND in classes.names:
        colours = classes.palette and (*map(tuple, classes.palette), (128, 128, 128))
        shown = ClassList((*classes.names, IGNORED_LABEL), colours)

    def counted(folder: Path) -> Iterator[LabelledImage]:
        for image in images(folder):
            facts["images"] += 1
            facts["regions"] += len(image.patches)
            facts["uncertain"] += sum(patch.is_uncertain for patch in image.patches)
            yield image

    def write(partial: Path) -> None:
        partial.mkdir()
        facts["files"] = WRITERS[kind](partial, shown, counted(partial), style)
        write_class_list(partial / "class_names.txt", classes)
        told = {key: value for key, value in facts.items() if key != "files"}
        write_json(partial / MARKER, told | {"digests": _digests(partial)})

    folder = folder.absolute()
    with refusing(OSError, f"{folder} cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder, write)
    return {"folder": str(folder)} | facts
