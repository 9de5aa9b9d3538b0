"""Mask files as they come with data sets → class ids, 255 = ignore."""

import importlib.util
import io

import numpy as np
from PIL import Image

from u2pl_hf.data.class_list import ClassList
from u2pl_hf.errors import InputError

IGNORE = 255
# Cityscapes: label id of each of the 19 train ids; every other label id up to 33 is not evaluated.
CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
SHOWN = 5
# What to do about a value without a name.
ADD = ": add it there, named void if it is to be ignored"


class BadMask(ValueError):  # noqa: N818 - reads as what it is
    """A mask that cannot be used; the message says why."""


def read_mask(data: bytes, coding: str, classes: ClassList) -> np.ndarray:
    """Decode a mask file to uint8 (H,W) class ids, 255 = ignore.

    Args:
        coding: ids (class ids in an image of one channel or with a palette), cityscapes (label ids), colours (as
            `classes` says) or sbd (a Matlab file of the Semantic Boundaries Dataset).

    Raises:
        BadMask: wrong kind of image, or values that are no class. Damaged files raise errors of their decoders.
    """
    if coding == "sbd":
        return _known(_read_sbd(data), len(classes.names))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if coding == "colours":
            return _from_colours(image, classes)
        ids = stored_values(image)
    return _from_label_ids(ids) if coding == "cityscapes" else _known(ids, len(classes.names))


def stored_values(image: Image.Image) -> np.ndarray:
    """The numbers of a one-channel image as uint8 (H,W). A palette image keeps its indices: they are the ids.

    Raises:
        BadMask: several channels, floats or values above 255.
    """
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise BadMask(
            f"the mask is {image.mode}, not one channel of class ids; for colours, --classes must name them, in lines "
            "such as road,128,64,128"
        )
    # convert("L") would make grey levels out of palette indices.
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise BadMask(f"the mask holds values from {values.min()} to {values.max()}, class ids are 0 to 255")
    return values.astype(np.uint8)


def require_scipy() -> None:
    """Say at the door that Matlab files need one more package."""
    if importlib.util.find_spec("scipy") is None:
        raise InputError("the labels of SBD are Matlab files, which need scipy: pip install scipy (the extra 'sbd')")


def _read_sbd(data: bytes) -> np.ndarray:
    from scipy.io import loadmat  # optional: only this data set needs it

    return np.asarray(loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0], dtype=np.uint8)


def _known(ids: np.ndarray, num_classes: int) -> np.ndarray:
    unknown = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[num_classes:IGNORE]) + num_classes
    if len(unknown):
        known = f"there are {num_classes} classes (0..{num_classes - 1}, 255 = ignore)"
        raise BadMask(f"the mask holds {_listed(unknown.tolist())}, but {known}")
    return ids


def _listed(values: list) -> str:
    shown = ", ".join(map(str, values[:SHOWN])) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")
    return f"the value{'s' if len(values) > 1 else ''} {shown}"


def _from_label_ids(ids: np.ndarray) -> np.ndarray:
    table = np.full(256, IGNORE, np.uint8)
    table[list(CITYSCAPES_LABEL_IDS)] = np.arange(len(CITYSCAPES_LABEL_IDS))
    # Label ids end at 33; the licence plate, -1, is stored as 255.
    _known(ids, CITYSCAPES_LABEL_IDS[-1] + 1)
    return table[ids]


def _from_colours(image: Image.Image, classes: ClassList) -> np.ndarray:
    if len(classes.colours[0]) == 1:
        return _from_greys(image, classes)
    if image.mode in ("RGB", "RGBA"):
        return _from_rgb(np.asarray(image)[..., :3], classes)
    if image.mode == "P" and not _palette_says_ids(image, classes):
        return _from_rgb(np.asarray(image.convert("RGB")), classes)
    return _known(stored_values(image), len(classes.names))


def _from_greys(image: Image.Image, classes: ClassList) -> np.ndarray:
    if image.mode in ("RGB", "RGBA"):
        greys = tuple((value,) * 3 for (value,) in classes.colours)
        ignored = (*((value,) * 3 for (value,) in classes.ignore_colours), (255, 255, 255))
        return _from_rgb(np.asarray(image)[..., :3], ClassList(classes.names, greys, ignored))
    values = stored_values(image)
    table, known = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
    known[[IGNORE, *(value for (value,) in classes.ignore_colours)]] = True
    for class_id, (value,) in enumerate(classes.colours):
        table[value], known[value] = class_id, True
    unknown = np.flatnonzero((np.bincount(values.ravel(), minlength=256) > 0) & ~known)
    if len(unknown):
        raise BadMask(f"the mask holds {_listed(unknown.tolist())}, which the class list does not name{ADD}")
    return table[values]


def _from_rgb(pixels: np.ndarray, classes: ClassList) -> np.ndarray:
    codes = _codes(pixels)
    # The first of equal colours counts, so a class goes before what is ignored.
    table = _codes(np.array([*classes.colours, *classes.ignore_colours]))
    ids = np.array([*range(len(classes.colours)), *[IGNORE] * len(classes.ignore_colours)], np.uint8)
    order = np.argsort(table, kind="stable")
    places = np.searchsorted(table[order], codes).clip(max=len(order) - 1)
    unknown = np.unique(codes[table[order][places] != codes])
    if len(unknown):
        colours = [f"({c >> 16},{c >> 8 & 255},{c & 255})" for c in unknown.tolist()]
        raise BadMask(f"the mask holds {_listed(colours)}, which the class list does not name{ADD}")
    return ids[order][places]


def _codes(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _palette_says_ids(image: Image.Image, classes: ClassList) -> bool:
    """Whether a palette mask with a colour table holds ids rather than colours in some other order.

    It does where the palette shows each class in its colour, and where the palette has nothing to do with the table:
    black alone does not count, as nearly every palette has it.
    """
    used = np.unique(np.asarray(image)).tolist()
    flat = np.array(image.getpalette("RGB")).reshape(-1, 3).tolist()
    palette = {index: tuple(flat[index]) for index in used if index < len(flat)}
    in_place = [palette.get(i) == colour for i, colour in enumerate(classes.colours) if i in used]
    if in_place and all(in_place):
        return True
    colours, known = set(palette.values()), {*classes.colours, *classes.ignore_colours}
    return not colours <= known and not (colours & known) - {(0, 0, 0)}
