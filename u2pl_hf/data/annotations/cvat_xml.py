"""CVAT's XML "for images" 1.1: polygons, masks as run lengths along the rows of a box, boxes and ellipses.

https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree as Tree

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
from u2pl_hf.data.annotations.shapes import box, ellipse, from_runs, outline, placed, polygon, to_runs
from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.files import write_atomically

HINT = "export the task from CVAT as 'CVAT for images 1.1'"
# Written with each region of a prediction.
ATTRIBUTES = (("uncertain", "checkbox", "false", "false"), ("confidence", "text", "", ""))


def read_cvat(member: Member, data: bytes) -> AnnotationFile:
    """Images and their shapes by rising z_order; labels in the task's order.

    Raises:
        InputError: no such XML, one with entities, of a film, or a shape without a number it needs; names its place.
    """
    require_extra("defusedxml", "CVAT's format")
    from defusedxml import DefusedXmlException  # optional: only this format needs it
    from defusedxml.ElementTree import fromstring

    with refusing((Tree.ParseError, DefusedXmlException, ValueError, LookupError), f"{member} is no XML to read"):
        root = fromstring(data)
    require(root.tag == "annotations", f"{member} holds <{root.tag}>, not <annotations>: {HINT}")
    require(root.find("track") is None, f"{member} holds tracks of a film: {HINT}")
    found = AnnotationFile()
    for label in root.iterfind("meta/*/labels/label"):
        name = label.findtext("name")
        require(name, f"{member}: a label of the task has no name: {HINT}")
        found.names.append(name)
        colour = re.fullmatch("#([0-9a-fA-F]{6})", label.findtext("color", ""))
        if colour:
            found.colours[found.names[-1]] = tuple(bytes.fromhex(colour[1]))
    for number, image in enumerate(root.iterfind("image")):
        where = f"{member}, image {number} ({image.get('name')})"
        name, size = _attributes(image, where, {"name": str, "height": int, "width": int})
        regions = []
        for place, shape in enumerate(image):
            if shape.tag not in SHAPES:
                found.left_out[shape.tag] += shape.tag != "tag"
                continue
            regions.append(_region(shape, f"{where}, {shape.tag} {place}"))
        regions.sort(key=lambda pair: pair[0])
        found.images.append(AnnotatedImage(name, size, [region for _, region in regions], where))
    return found


def _attributes(image: Tree.Element, where: str, kinds: dict[str, type]) -> tuple[str, tuple[int, int]]:
    values = _numbers(image, where, kinds)
    return values["name"], (values["height"], values["width"])


def _numbers(element: Tree.Element, where: str, kinds: dict[str, type]) -> dict:
    missing = [name for name in kinds if element.get(name) is None]
    require(not missing, f"{where} has no {''.join(missing[:1])}; {HINT}")
    values = {}
    for name, kind in kinds.items():
        try:
            values[name] = kind(element.get(name))
        except ValueError as error:
            raise InputError(f"{where}: {name} is {element.get(name)[:40]!r}, and must be a number") from error
    return values


def _region(shape: Tree.Element, where: str) -> tuple[int, Region]:
    """(z_order, region)."""
    kinds, draw = SHAPES[shape.tag]
    values = _numbers(shape, where, {"label": str} | kinds)
    turn = _numbers(shape, where, {"rotation": float})["rotation"] if shape.get("rotation") else 0.0
    depth = _numbers(shape, where, {"z_order": int})["z_order"] if shape.get("z_order") else 0
    return depth, Region(values["label"], where, functools.partial(draw, values, turn))


def _points(text: str) -> list[list[float]]:
    return [[float(value) for value in point.split(",")] for point in text.split(";")]


def _runs(text: str) -> list[int]:
    return [int(value) for value in text.split(",")]


def _draw_polygon(values: dict, turn: float, size: tuple[int, int]) -> Patch:
    return polygon(values["points"], size)


def _draw_mask(values: dict, turn: float, size: tuple[int, int]) -> Patch:
    return placed(from_runs(values["rle"], values["height"], values["width"]), values["left"], values["top"], size)


def _draw_box(values: dict, turn: float, size: tuple[int, int]) -> Patch:
    left, top, right, bottom = (values[name] for name in ("xtl", "ytl", "xbr", "ybr"))
    return box(left, top, right - left, bottom - top, turn, ((left + right) / 2, (top + bottom) / 2), size)


def _draw_ellipse(values: dict, turn: float, size: tuple[int, int]) -> Patch:
    return ellipse((values["cx"], values["cy"]), (values["rx"], values["ry"]), turn, size)


# Of each shape, what it must have, and how it is drawn.
SHAPES: dict[str, tuple[dict[str, Callable], Callable[..., Patch]]] = {
    "polygon": ({"points": _points}, _draw_polygon),
    "mask": ({"rle": _runs} | dict.fromkeys(("left", "top", "width", "height"), int), _draw_mask),
    "box": (dict.fromkeys(("xtl", "ytl", "xbr", "ybr"), float), _draw_box),
    "ellipse": (dict.fromkeys(("cx", "cy", "rx", "ry"), float), _draw_ellipse),
}


def write_cvat(folder: Path, classes: ClassList, images: Iterable[LabelledImage], style: Style) -> list[str]:
    """Write annotations.xml into a folder; gives its name."""
    root = Tree.Element("annotations")
    Tree.SubElement(root, "version").text = "1.1"
    labels = Tree.SubElement(Tree.SubElement(Tree.SubElement(root, "meta"), "task"), "labels")
    for name, colour in zip(classes.names, classes.palette or [None] * len(classes.names), strict=True):
        label = Tree.SubElement(labels, "label")
        Tree.SubElement(label, "name").text = name
        if colour:
            Tree.SubElement(label, "color").text = f"#{bytes(colour).hex()}"
        Tree.SubElement(label, "type").text = "any"
        attributes = Tree.SubElement(label, "attributes")
        for values in ATTRIBUTES:
            attribute = Tree.SubElement(attributes, "attribute")
            for key, value in zip(("name", "input_type", "default_value", "values"), values, strict=True):
                Tree.SubElement(attribute, key).text = value
            Tree.SubElement(attribute, "mutable").text = "False"
    for number, image in enumerate(images):
        height, width = image.size
        head = {"id": str(number), "name": image.name, "width": str(width), "height": str(height)}
        described = Tree.SubElement(root, "image", head)
        for labelled in image.patches:
            _describe(described, labelled, style)
    Tree.indent(root)
    text = Tree.tostring(root, encoding="utf-8", xml_declaration=True)
    write_atomically(folder / "annotations.xml", lambda path: path.write_bytes(text))
    return ["annotations.xml"]


def _describe(image: Tree.Element, labelled: LabelledPatch, style: Style) -> None:
    patch, head = labelled.patch, {"label": labelled.name, "source": "auto", "occluded": "0", "z_order": "0"}
    if style.shapes == "polygons":
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline(patch, style.tolerance))
        shape = Tree.SubElement(image, "polygon", head | {"points": points})
    else:
        height, width = patch.mask.shape
        runs = ", ".join(map(str, to_runs(np.flatnonzero(patch.mask), patch.mask.size)))
        place = {"left": str(patch.left), "top": str(patch.top), "width": str(width), "height": str(height)}
        shape = Tree.SubElement(image, "mask", head | {"rle": runs} | place)
    if labelled.confidence is not None:
        for name, value in (("uncertain", str(labelled.is_uncertain).lower()), ("confidence", labelled.confidence)):
            Tree.SubElement(shape, "attribute", {"name": name}).text = value if name == "uncertain" else f"{value:.4f}"
