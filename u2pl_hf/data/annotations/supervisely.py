"""Supervisely's folders: meta.json with the classes, and ann/IMAGE.json with polygons, rectangles and bitmaps.

https://docs.supervisely.com/data-organization/00_ann_format_navi; read only.
"""

import base64
import functools
import io
import re
import zlib
from typing import TypedDict

import numpy as np
from PIL import Image

from u2pl_hf.data.annotations import AnnotatedImage, AnnotationFile, Patch, Region
from u2pl_hf.data.annotations.shapes import box, placed, polygon
from u2pl_hf.data.prepare.archives import Member

# A bitmap's PNG is not larger than the image would be without compression.
MOST_BYTES = 1 << 28


class SuperviselyClass(TypedDict):
    """One class."""

    title: str
    color: str


class SuperviselyMeta(TypedDict):
    """The project."""

    classes: list[SuperviselyClass]


class SuperviselySize(TypedDict):
    """Of an image."""

    height: int
    width: int


class SuperviselyObject(TypedDict):
    """One object; its shape stands under `points` or `bitmap`."""

    classTitle: str
    geometryType: str


class SuperviselyFile(TypedDict):
    """One image's."""

    size: SuperviselySize
    objects: list[SuperviselyObject]


def read_supervisely_meta(member: Member, content: SuperviselyMeta) -> AnnotationFile:
    """Classes and colours, in the project's order."""
    colours = {c["title"]: re.fullmatch("#([0-9a-fA-F]{6})", c["color"]) for c in content["classes"]}
    known = {name: tuple(bytes.fromhex(colour[1])) for name, colour in colours.items() if colour}
    return AnnotationFile(list(colours), known)


def read_supervisely(member: Member, content: SuperviselyFile) -> AnnotationFile:
    """The one image, called as the file without .json, and its objects in their order."""
    found, regions = AnnotationFile(), []
    for number, item in enumerate(content["objects"]):
        kind = item["geometryType"]
        if kind not in DRAWN:
            found.left_out[kind] += 1
            continue
        regions.append(Region(item["classTitle"], f"{member}, objects.{number}", functools.partial(DRAWN[kind], item)))
    size = (content["size"]["height"], content["size"]["width"])
    name = member.path.parent.parent / member.path.stem
    found.images.append(AnnotatedImage(str(name), size, regions, str(member)))
    return found


def _rings(item: dict) -> tuple[list, list]:
    points = item.get("points")
    if not isinstance(points, dict) or not isinstance(points.get("exterior"), list):
        raise ValueError("it has no points.exterior")
    return points["exterior"], points.get("interior") or []


def _draw_polygon(item: dict, size: tuple[int, int]) -> Patch:
    outside, holes = _rings(item)
    whole = np.zeros(size, bool)
    for ring in [outside, *holes]:
        part = polygon(ring, size)
        height, width = part.mask.shape
        whole[part.top : part.top + height, part.left : part.left + width] ^= part.mask
    return Patch(0, 0, whole)


def _draw_rectangle(item: dict, size: tuple[int, int]) -> Patch:
    (x0, y0), (x1, y1) = _rings(item)[0]
    return box(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0), 0, (0, 0), size)


def _draw_bitmap(item: dict, size: tuple[int, int]) -> Patch:
    bitmap = item.get("bitmap")
    if not isinstance(bitmap, dict) or not {"data", "origin"} <= bitmap.keys():
        raise ValueError("it has no bitmap with data and origin")
    unpacked = zlib.decompressobj()
    try:
        png = unpacked.decompress(base64.b64decode(bitmap["data"], validate=True), MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"its bitmap is damaged: {error}") from error
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("RGBA") if image.mode == "P" else image)
    left, top = map(int, bitmap["origin"])
    # Of several channels, the last is the alpha that the mask lies in.
    return placed((pixels[..., -1] if pixels.ndim == 3 else pixels) > 0, left, top, size)


DRAWN = {"polygon": _draw_polygon, "rectangle": _draw_rectangle, "bitmap": _draw_bitmap}
