"""LabelMe's JSON, one file per image: polygons, rectangles, circles and masks.

https://github.com/wkentaro/labelme; a mask is a PNG in base64 whose corners, both inside, are its two points.
"""

import base64
import functools
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from PIL import Image

from u2pl_hf.data.annotations import AnnotatedImage, AnnotationFile, LabelledImage, LabelledPatch, Patch, Region, Style
from u2pl_hf.data.annotations.shapes import box, ellipse, outline, placed, polygon
from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.files import write_json

VERSION = "5.5.0"


class Shape(TypedDict):
    """One object."""

    label: str
    points: list[list[float]]
    shape_type: NotRequired[str | None]
    mask: NotRequired[str | None]


class LabelmeFile(TypedDict):
    """One image's."""

    shapes: list[Shape]
    imagePath: str
    imageHeight: NotRequired[int | None]
    imageWidth: NotRequired[int | None]


def read_labelme(member: Member, content: LabelmeFile) -> AnnotationFile:
    """The one image, its shapes in their order, and their labels sorted, as LabelMe keeps no list of them."""
    found, regions = AnnotationFile(sorted({shape["label"] for shape in content["shapes"]})), []
    for number, shape in enumerate(content["shapes"]):
        kind = shape.get("shape_type") or "polygon"
        if kind not in DRAWN:
            found.left_out[kind] += 1
            continue
        draw = functools.partial(DRAWN[kind], shape["points"], shape.get("mask"))
        regions.append(Region(shape["label"], f"{member}, shapes.{number}", draw))
    size = content.get("imageHeight"), content.get("imageWidth")
    name = content["imagePath"].replace("\\", "/")
    found.images.append(AnnotatedImage(name, None if None in size else size, regions, str(member)))
    return found


def _draw_polygon(points: list, mask: str | None, size: tuple[int, int]) -> Patch:
    return polygon(points, size)


def _draw_rectangle(points: list, mask: str | None, size: tuple[int, int]) -> Patch:
    if len(points) == 4:  # turned
        return polygon(points, size)
    (x0, y0), (x1, y1) = points
    return box(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0), 0, (0, 0), size)


def _draw_circle(points: list, mask: str | None, size: tuple[int, int]) -> Patch:
    centre, border = np.array(points, float)
    radius = float(np.hypot(*(border - centre)))
    return ellipse(tuple(centre), (radius, radius), 0, size)


def _draw_mask(points: list, mask: str | None, size: tuple[int, int]) -> Patch:
    if not mask:
        raise ValueError("it has no mask")
    (left, top), (right, bottom) = (map(int, point) for point in points)
    with Image.open(io.BytesIO(base64.b64decode(mask, validate=True)), formats=["PNG"]) as image:
        if image.size != (right - left + 1, bottom - top + 1):
            raise ValueError(f"its mask is {image.width}x{image.height}, and its points say otherwise")
        return placed(np.asarray(image.convert("L")) > 0, left, top, size)


DRAWN = {"polygon": _draw_polygon, "rectangle": _draw_rectangle, "oriented_rectangle": _draw_polygon,
         "circle": _draw_circle, "mask": _draw_mask}  # fmt: skip


def write_labelme(folder: Path, classes: ClassList, images: Iterable[LabelledImage], style: Style) -> list[str]:
    """Write NAME.json for each image into a folder; gives the names. imagePath leads to the image where that is."""
    written = []
    for image in images:
        path = (folder / image.name).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = image.size
        content = {"version": VERSION, "flags": {}, "shapes": [_shape(labelled, style) for labelled in image.patches],
                   "imagePath": _way(image, path), "imageData": None,
                   "imageHeight": height, "imageWidth": width}  # fmt: skip
        write_json(path, content)
        written.append(path.relative_to(folder).as_posix())
    return written


def _way(image: LabelledImage, path: Path) -> str:
    """From the JSON file to the image."""
    if image.file is None:
        return Path(image.name).name
    try:
        return Path(os.path.relpath(image.file, path.parent)).as_posix()
    except ValueError:  # another drive of Windows
        return str(image.file)


def _shape(labelled: LabelledPatch, style: Style) -> dict:
    patch, doubts = labelled.patch, {}
    if labelled.confidence is not None:
        doubts = {"description": f"confidence {labelled.confidence:.4f}", "flags": {"uncertain": labelled.is_uncertain}}
    head = {"label": labelled.name, "group_id": None, "description": "", "flags": {}} | doubts
    if style.shapes == "polygons":
        points = outline(patch, style.tolerance).tolist()
        return head | {"shape_type": "polygon", "points": points, "mask": None}
    packed, (height, width) = io.BytesIO(), patch.mask.shape
    Image.fromarray(patch.mask.astype(np.uint8) * 255).save(packed, "PNG")
    corners = [[patch.left, patch.top], [patch.left + width - 1, patch.top + height - 1]]
    mask = base64.b64encode(packed.getvalue()).decode("ascii")
    return head | {"shape_type": "mask", "points": corners, "mask": mask}
