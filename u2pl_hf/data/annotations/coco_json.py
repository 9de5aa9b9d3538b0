"""COCO's JSON of objects: polygons, and run lengths compressed or not.

https://cocodataset.org/#format-data; runs go down the columns. pycocotools draws and packs them, as others do.
"""

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
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

# Of a point, in pixels.
FARTHEST = 100_000


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
        points = [np.asarray(part, float) for part in shape]
        if any(len(part) < 6 or len(part) % 2 for part in points):
            raise ValueError("a polygon is three or more points, x and y in turn")
        # It allocates what the outline is long, unasked.
        if not (np.abs(np.concatenate(points)) <= FARTHEST).all():
            raise ValueError(f"a point is farther away than {FARTHEST} pixels")
        return _inside(unpacked(coco.merge(coco.frPyObjects(shape, height, width))["counts"].decode("ascii")), size)
    if shape["size"] != [height, width]:
        raise ValueError(f"its size is {shape['size']}, not {[height, width]}")
    counts = shape["counts"]
    return _inside(unpacked(counts) if isinstance(counts, str) else counts, size)


def unpacked(text: str) -> list[int]:
    """Compressed run lengths as numbers: 5 bits a sign, lowest first, from the third on less the last but one.

    Not by pycocotools, which damaged texts make write where they should not.

    Raises:
        ValueError: no such text.
    """
    counts: list[int] = []
    value = shift = 0
    for sign in text.encode("ascii"):
        bits = sign - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4 & 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end too early")
    return counts


def _inside(counts: Sequence[int], size: tuple[int, int]) -> Patch:
    """Runs down the columns, in turn outside and inside, as the columns that they touch."""
    height, width = size
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"its runs hold {sum(counts)} pixels, not {width}x{height}, or one is negative")
    ends = np.cumsum(np.asarray(counts, int))
    stops, starts = ends[1::2], ends[: len(ends) - 1 : 2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        return Patch(0, 0, np.zeros((0, 0), bool))
    left, right = int(starts[0]) // height, (int(stops[-1]) - 1) // height + 1
    steps = np.zeros((right - left) * height + 1, np.int8)
    steps[starts - left * height] += 1
    steps[stops - left * height] -= 1
    return Patch(left, 0, np.cumsum(steps[:-1], dtype=np.int8).reshape(right - left, height).T > 0)


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
