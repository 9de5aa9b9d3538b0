"""Label Studio's JSON: polygons in per cent of the image, and brush strokes as its own run lengths.

https://labelstud.io/guide/export; the run lengths are those of @thi.ng/rle-pack over the RGBA pixels, row by row.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as Tree

import numpy as np

from u2pl_hf.constants import IMAGE_SUFFIXES
from u2pl_hf.data.annotations import AnnotatedImage, AnnotationFile, LabelledImage, LabelledPatch, Patch, Region, Style
from u2pl_hf.data.annotations.shapes import box, ellipse, outline, polygon
from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import refusing, require
from u2pl_hf.files import write_text

# Bits of the lengths of runs.
SIZES = (3, 4, 8, 16)
HINT = "export the project from Label Studio as JSON, not as JSON-MIN"


class Result(TypedDict):
    """One object, or another answer, such as a choice."""

    type: str
    value: NotRequired[dict]
    original_width: NotRequired[int]
    original_height: NotRequired[int]
    image_rotation: NotRequired[float | None]


class Annotation(TypedDict):
    """What one person said."""

    result: list[Result]
    was_cancelled: NotRequired[bool | None]


class Task(TypedDict):
    """One image."""

    data: dict
    annotations: NotRequired[list[Annotation]]
    predictions: NotRequired[list]


def read_label_studio(member: Member, tasks: Sequence[Task]) -> AnnotationFile:
    """Images with the last annotation of each that was not cancelled; labels sorted, as the file has no list of them.

    Predictions count for nothing, as nobody has confirmed them.

    Raises:
        InputError: a task without image, an image that was turned in the tool, or an object without label.
    """
    found, predicted, several = AnnotationFile(), 0, 0
    for number, task in enumerate(tasks):
        where = f"{member}, {number}"
        kept = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
        predicted += not kept and bool(task.get("predictions"))
        several += len(kept) > 1
        size, regions = None, []
        for place, item in enumerate(kept[-1]["result"] if kept else []):
            told = f"{where}.annotations.{len(task['annotations']) - 1}.result.{place}"
            if item["type"] not in DRAWN:
                found.left_out[item["type"]] += item["type"] not in ("choices", "textarea", "rating", "relation")
                continue
            size = (item.get("original_height"), item.get("original_width"))
            require(None not in size, f"{told} has no original_width and original_height; {HINT}")
            turn = item.get("image_rotation")
            require(not turn, f"{told}: the image was turned by {turn} degrees in the tool: turn it back there")
            regions.append(_region(item, told))
        found.images.append(AnnotatedImage(_image_of(task["data"], where), size, regions, where))
    found.names = sorted({region.name for image in found.images for region in image.regions})
    if predicted:
        found.notes.append(f"{predicted} tasks hold predictions that nobody confirmed: they are not read")
    if several:
        found.notes.append(f"{several} tasks have several annotations: the last of each is taken")
    return found


def _image_of(data: dict, where: str) -> str:
    """The image's file, out of links such as /data/upload/1/0a1b2c3d-a.jpg and /data/local-files/?d=photos/a.jpg."""
    values = [data["image"]] if isinstance(data.get("image"), str) else [v for v in data.values() if isinstance(v, str)]
    for value in values:
        with refusing(ValueError, f"{where}.data names no image: {value[:80]} is no link"):
            link = urlsplit(value)
        name = (parse_qs(link.query).get("d") or [unquote(link.path)])[0]
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            return name
    require(False, f"{where}.data names no image file")


def _region(item: Result, where: str) -> Region:
    value = item.get("value", {})
    names = value.get(item["type"]) or value.get("labels")
    is_named = isinstance(names, list) and names and isinstance(names[0], str)
    require(is_named, f"{where} has no label: give it one in the tool, or delete it")
    return Region(names[0], where, functools.partial(DRAWN[item["type"]], value))


def _draw_polygon(value: dict, size: tuple[int, int]) -> Patch:
    return polygon(np.array(_known(value, "points"), float) * _scale(size), size)


def _draw_rectangle(value: dict, size: tuple[int, int]) -> Patch:
    x, y, width, height = (float(_known(value, name)) for name in ("x", "y", "width", "height"))
    (x, y), (width, height) = (x, y) * _scale(size), (width, height) * _scale(size)
    return box(x, y, width, height, float(value.get("rotation") or 0), (x, y), size)


def _draw_ellipse(value: dict, size: tuple[int, int]) -> Patch:
    x, y, wide, high = (float(_known(value, name)) for name in ("x", "y", "radiusX", "radiusY"))
    return ellipse(tuple((x, y) * _scale(size)), (wide, high) * _scale(size), float(value.get("rotation") or 0), size)


def _draw_brush(value: dict, size: tuple[int, int]) -> Patch:
    if value.get("format") != "rle":
        raise ValueError(f"its format is {value.get('format')!r}, not 'rle'")
    mask = from_brush(_known(value, "rle"), size)
    rows = np.flatnonzero(mask.any(1))
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    return Patch(0, top, mask[top:bottom])


DRAWN = {"polygonlabels": _draw_polygon, "rectanglelabels": _draw_rectangle, "ellipselabels": _draw_ellipse,
         "brushlabels": _draw_brush}  # fmt: skip


def _known(value: dict, name: str):
    if name not in value:
        raise ValueError(f"it has no {name}")
    return value[name]


def _scale(size: tuple[int, int]) -> np.ndarray:
    return np.array(size[::-1]) / 100


def from_brush(packed: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Label Studio's run lengths -> where alpha is not 0, bool (H,W).

    32 bits: how many values; 5: bits of a value less 1; four times 4: bits of a run's length less 1. Then runs: 1 bit
    that says whether one value follows or as many as it is long; 2: which of the four; its length less 1; the values.

    Raises:
        ValueError: damaged, or of another size.
    """
    data = bytes(packed)
    bits, at = f"{int.from_bytes(data):0{8 * len(data)}b}", 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("its run lengths end too early")
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"it has {total} values, not 4 for each of {size[1]}x{size[0]} pixels")
    # Of the four channels only alpha counts: of the values before n it has n // 4.
    place, alpha = 0, np.zeros(total // 4, bool)
    while place < total:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        for step in [length] if is_run else [1] * length:
            if read(word):
                alpha[place // 4 : (place + step) // 4] = True
            place += step
    if place != total:
        raise ValueError(f"its runs hold {place} values, not {total}")
    return alpha.reshape(size)


def to_brush(mask: np.ndarray) -> list[int]:
    """The inverse, with 255 in all four channels inside of a mask, bool (H,W)."""
    flat = mask.ravel()
    starts = np.r_[0, np.flatnonzero(np.diff(flat)) + 1]
    bits = [f"{4 * flat.size:032b}{7:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), flat.size], strict=True):
        left, value = 4 * (end - start), 255 * int(flat[start])
        while left:
            length = min(left, 1 << SIZES[-1])
            which = next(n for n, size in enumerate(SIZES) if length <= 1 << size)
            bits.append(f"1{which:02b}{length - 1:0{SIZES[which]}b}{value:08b}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))


def write_label_studio(folder: Path, classes: ClassList, images: Iterable[LabelledImage], style: Style) -> list[str]:
    """Write tasks.json and the labeling_config.xml of their project into a folder; gives their names.

    Regions with a confidence are predictions there, others annotations.
    """
    tasks = []
    for image in images:
        is_predicted = any(labelled.confidence is not None for labelled in image.patches)
        results = [_result(f"part-{n}", labelled, image.size, style) for n, labelled in enumerate(image.patches)]
        said = {"result": results}
        if is_predicted:
            score = float(np.mean([labelled.confidence for labelled in image.patches]))
            said = {"model_version": "u2pl_hf", "score": round(score, 4)} | said
        # The path in the storage that serves the images; whoever imports them may change it.
        tasks.append({"data": {"image": image.name}, "predictions" if is_predicted else "annotations": [said]})
    write_text(folder / "tasks.json", json.dumps(tasks) + "\n")
    write_text(folder / "labeling_config.xml", _config(classes, style))
    return ["tasks.json", "labeling_config.xml"]


def _kind(style: Style) -> str:
    return "polygonlabels" if style.shapes == "polygons" else "brushlabels"


def _result(name: str, labelled: LabelledPatch, size: tuple[int, int], style: Style) -> dict:
    patch, kind, (height, width) = labelled.patch, _kind(style), size
    if style.shapes == "polygons":
        shape = {"points": (outline(patch, style.tolerance) / _scale(size)).tolist(), "closed": True}
    else:
        whole, (rows, columns) = np.zeros(size, bool), patch.mask.shape
        whole[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.mask
        shape = {"format": "rle", "rle": to_brush(whole)}
    facts = {"id": name, "from_name": "label", "to_name": "image", "type": kind, "image_rotation": 0,
             "original_width": width, "original_height": height, "value": shape | {kind: [labelled.name]}}  # fmt: skip
    if labelled.confidence is not None:
        doubts = ["uncertain"] * labelled.is_uncertain + [f"confidence {labelled.confidence:.4f}"]
        facts |= {"score": round(labelled.confidence, 4), "meta": {"text": doubts}}
    return facts


def _config(classes: ClassList, style: Style) -> str:
    view, kind = Tree.Element("View"), "PolygonLabels" if style.shapes == "polygons" else "BrushLabels"
    Tree.SubElement(view, "Image", {"name": "image", "value": "$image", "zoom": "true"})
    labels = Tree.SubElement(view, kind, {"name": "label", "toName": "image"})
    for name, colour in zip(classes.names, classes.palette or [None] * len(classes.names), strict=True):
        Tree.SubElement(
            labels, "Label", {"value": name} | ({"background": f"#{bytes(colour).hex()}"} if colour else {})
        )
    Tree.indent(view)
    return Tree.tostring(view, encoding="unicode") + "\n"
