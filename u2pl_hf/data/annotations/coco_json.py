"""COCO's JSON of objects: polygons, and run lengths compressed or not.

https://cocodataset.org/#format-data; runs go down the columns. pycocotools draws and packs them, as others do.
"""

import functools
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from u2pl_hf.data.annotations import (
    AnnotatedImage,
    AnnotationFile,
    LabelledImage,
    LabelledPatch,
    Patch,
    Region,
    Style,
    require_extra,
)  # fmt: skip
from u2pl_hf.data.annotations.shapes import outline, to_runs
from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import require
from u2pl_hf.files import write_text


class Runs(TypedDict):
    """Of a whole image; `counts` is text where it is compressed."""

    size: list[int]
    counts: str | list[int]


class CocoImage(TypedDict):
    """Of one photograph."""

    id: int | str
    file_name: str
    width: int
    height: int


class CocoObject(TypedDict):
    """Of one object."""

    image_id: int | str
    category_id: int | str
    segmentation: NotRequired[list[list[float]] | Runs | None]
    iscrowd: NotRequired[int | bool | None]
    ignore: NotRequired[int | bool | None]


class CocoCategory(TypedDict):
    """Of one class."""

    id: int | str
    name: str


class CocoFile(TypedDict):
    """The whole."""

    images: list[CocoImage]
    annotations: list[CocoObject]
    categories: list[CocoCategory]


def read_coco(member: Member, content: CocoFile) -> AnnotationFile:
    """Images and their objects; categories in the order of their ids.

    Raises:
        InputError: an object of no image or category, or without an outline; names its place.
    """
    require_extra("pycocotools", "COCO's format")
    categories = {
        c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: (str(type(c["id"])), c["id"]))
    }
    regions, known = defaultdict(list), {image["id"] for image in content["images"]}
    for number, item in enumerate(content["annotations"]):
        where, shape = f"{member}, annotations.{number}", item.get("segmentation")
        told = f"{where} is of image {item['image_id']!r}, which the file does not list under images"
        require(item["image_id"] in known, told)
        told = f"{where} is of category {item['category_id']!r}, which the file does not name under categories"
        require(item["category_id"] in categories, told)
        require(shape, f"{where} has no segmentation: export polygons or masks, as a box is no outline")
        draw = functools.partial(_drawn, shape)
        is_crowd = bool(item.get("iscrowd") or item.get("ignore"))
        regions[item["image_id"]].append(Region(categories[item["category_id"]], where, draw, is_crowd))
    images = [
        AnnotatedImage(i["file_name"], (i["height"], i["width"]), regions[i["id"]], f"{member}, images.{number}")
        for number, i in enumerate(content["images"])
    ]
    return AnnotationFile(list(dict.fromkeys(categories.values())), images=images)


def _drawn(shape: list | Runs, size: tuple[int, int]) -> Patch:
    from pycocotools import mask as coco  # optional: only this format needs it

    height, width = size
    if isinstance(shape, list):
        if any(len(part) < 6 or len(part) % 2 for part in shape) or not np.isfinite(np.concatenate(shape)).all():
            raise ValueError("a polygon is three or more points, x and y in turn")
        return Patch(0, 0, coco.decode(coco.merge(coco.frPyObjects(shape, height, width))).astype(bool))
    if shape["size"] != [height, width]:
        raise ValueError(f"its size is {shape['size']}, not {[height, width]}")
    counts = shape["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width or min(counts, default=0) < 0:
            raise ValueError(f"its runs hold {sum(counts)} pixels, not {width}x{height}")
        packed = coco.frPyObjects(shape, height, width)
    else:
        packed = {"size": shape["size"], "counts": counts.encode("ascii")}
    return Patch(0, 0, coco.decode(packed).astype(bool))


def write_coco(folder: Path, classes: ClassList, images: Iterable[LabelledImage], style: Style) -> list[str]:
    """Write annotations.json into a folder; gives its name. Category ids are class ids from 1 on."""
    require_extra("pycocotools", "COCO's format")
    category_ids = {name: number for number, name in enumerate(classes.names, 1)}
    described, objects = [], []
    for number, image in enumerate(images, 1):
        height, width = image.size
        described.append({"id": number, "file_name": image.name, "width": width, "height": height})
        for patch in image.patches:
            facts = _packed(patch, image.size, style) | _doubts(patch)
            head = {"id": len(objects) + 1, "image_id": number, "category_id": category_ids[patch.name], "iscrowd": 0}
            objects.append(head | facts)
    categories = [{"id": i, "name": name, "supercategory": ""} for name, i in category_ids.items()]
    content = {"images": described, "annotations": objects, "categories": categories}
    write_text(folder / "annotations.json", json.dumps(content) + "\n")
    return ["annotations.json"]


def _doubts(patch: LabelledPatch) -> dict:
    if patch.confidence is None:
        return {}
    confidence = round(patch.confidence, 4)
    return {"score": confidence, "attributes": {"uncertain": patch.is_uncertain, "confidence": confidence}}


def _packed(labelled: LabelledPatch, size: tuple[int, int], style: Style) -> dict:
    from pycocotools import mask as coco

    patch, (height, width) = labelled.patch, size
    rows, columns = patch.mask.shape
    bounds = {"bbox": [patch.left, patch.top, columns, rows], "area": int(patch.mask.sum())}
    if style.shapes == "polygons":
        return bounds | {"segmentation": [outline(patch, style.tolerance).ravel().tolist()]}
    x, y = np.nonzero(patch.mask.T)
    counts = to_runs((x + patch.left) * height + y + patch.top, height * width)
    packed = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return bounds | {"segmentation": {"size": [height, width], "counts": packed["counts"].decode("ascii")}}
