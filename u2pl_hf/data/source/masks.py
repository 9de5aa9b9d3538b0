"""Mask files as they come with data sets → class ids, 255 = ignore."""

import importlib.util
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.decode import INEXACT, ORIENTATION
from u2pl_hf.errors import InputError

IGNORE = 255
# Cityscapes: label id of each of the 19 train ids; every other label id up to 33 is not evaluated.
CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
SHOWN = 5
# Nobody draws as many values that have no name.
MANY = 20
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Modes of several channels, and how many of them are no alpha.
CHANNELS = {"RGB": 3, "RGBA": 3, "LA": 1}
BLENDED = ": so many come of lossy compression, or of a resizing that blends; store the mask as it was drawn"
# Readings that decide about a whole set of masks, see `Mask`.
IDS, GREYS, ONLY_255, TWO_TONES = "ids", "greys", "only 255", "two tones"


class BadMask(ValueError):  # noqa: N818 - reads as what it is
    """A mask that cannot be used; the message says why."""


@dataclass(frozen=True)
class Mask:
    """A mask as it was read.

    Attributes:
        ids: uint8 (H,W) class ids, 255 = ignore.
        reading: "ids": numbers that stand for classes; "greys": grey values g that stand for the colours (g,g,g);
            "only 255": nothing but 0 and a 255 that the class list does not name; "two tones": black and white by its
            encoding, white being the number 1; "": anything else, which says nothing about the other masks.
        orientation: of EXIF, where the file itself says how it is turned.
    """

    ids: np.ndarray
    reading: str = ""
    orientation: int | None = None


def read_mask(data: bytes, coding: str, classes: ClassList) -> np.ndarray:
    """The ids of `decode_mask` alone."""
    return decode_mask(data, coding, classes).ids


def decode_mask(data: bytes, coding: str, classes: ClassList) -> Mask:
    """Decode a mask file, turned as its own EXIF orientation says.

    Args:
        coding: ids (class ids in an image of one channel or with a palette), cityscapes (label ids), colours (as
            `classes` says) or sbd (a Matlab file of the Semantic Boundaries Dataset).

    Raises:
        BadMask: wrong kind of image, or values that are no class. Damaged files raise errors of their decoders.
    """
    if coding == "sbd":
        return Mask(_known(_read_sbd(data), len(classes.names)))
    image, orientation = open_mask(data)
    if coding == "cityscapes":
        return Mask(_from_label_ids(stored_values(image)), orientation=orientation)
    if coding == "ids":
        values = stored_values(image, classes)
        # A list with colours is that of a data set that is known here: nobody can change it.
        hint = "" if classes.colours else f"; {_give_values(_used(values[values < IGNORE])[-1:], classes)}"
        ids, reading = _known(values, len(classes.names), hint), _reading(values, image)
    else:
        is_grey = len(classes.colours[0]) == 1
        ids, reading = _from_greys(image, classes) if is_grey else _from_colours(image, classes)
    return Mask(ids, reading, orientation)


def open_mask(data: bytes) -> tuple[Image.Image, int | None]:
    """(decoded image, the EXIF orientation it had); 1-bit images become black and white palette images.

    Raises:
        BadMask: a kind of file that does not keep the values.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.format in INEXACT:
            raise BadMask("the mask is JPEG, whose values are not exact: export it as PNG from what it was drawn in")
        # Pillow keeps the high byte of each channel only, so small ids would all be 0.
        if image.mode in ("RGB", "RGBA", "LA") and image.tile and ";16" in str(image.tile[0][-1]):
            raise BadMask(f"the mask is {image.mode} of 16 bits per channel: store it with 8")
        orientation = image.getexif().get(ORIENTATION)  # a TIFF has it no more once it is loaded, and turned
        image = ImageOps.exif_transpose(image)
    if image.mode == "1":
        image = Image.fromarray(np.asarray(image).astype(np.uint8))
        image.putpalette([*BLACK, *WHITE])
    return image, orientation


def stored_values(image: Image.Image, classes: ClassList | None = None) -> np.ndarray:
    """The numbers of a one-channel image as uint8 (H,W). A palette image keeps its indices: they are the ids.

    Args:
        classes: whose names the message uses.

    Raises:
        BadMask: several channels, floats or values above 255.
    """
    if image.mode not in ("L", "P", "I") and not image.mode.startswith("I;16"):
        greys = _grey_channel(image)
        hint = "store it as PNG of 8 bits"
        if image.mode in CHANNELS:
            hint = "for colours, --classes must name them, in lines such as road,128,64,128"
        if greys is not None:
            hint = f"as it is grey throughout, {_give_values(_used(greys)[-1:], classes)}"
        raise BadMask(f"the mask is {image.mode}, not one channel of class ids; {hint}")
    # convert("L") would make grey levels out of palette indices.
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise BadMask(f"the mask holds {values.min()} to {values.max()}, class ids are 0 to 255: store them in 8 bits")
    return values.astype(np.uint8)


def _give_values(example: list[int], classes: ClassList | None) -> str:
    line = f"{classes.names[-1] if classes else 'NAME'},{example[0] if example else IGNORE}"
    return f"give each class its value in --classes, in lines NAME,VALUE such as {line}"


def require_scipy() -> None:
    """Say at the door that Matlab files need one more package."""
    if importlib.util.find_spec("scipy") is None:
        raise InputError("the labels of SBD are Matlab files, which need scipy: pip install scipy (the extra 'sbd')")


def _read_sbd(data: bytes) -> np.ndarray:
    from scipy.io import loadmat  # optional: only this data set needs it

    return np.asarray(loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0], dtype=np.uint8)


def _known(ids: np.ndarray, num_classes: int, hint: str = "") -> np.ndarray:
    unknown = [value for value in _used(ids) if num_classes <= value < IGNORE]
    if unknown:
        known = f"there are {num_classes} classes (0..{num_classes - 1}, 255 = ignore)"
        raise BadMask(f"the mask holds {_listed(unknown)}, but {known}{BLENDED if len(unknown) > MANY else hint}")
    return ids


def _used(values: np.ndarray) -> list[int]:
    return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()


def _listed(values: list) -> str:
    shown = ", ".join(map(str, values[:SHOWN])) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")
    return f"the value{'s' if len(values) > 1 else ''} {shown}"


def _reading(values: np.ndarray, image: Image.Image, names_255: bool = False) -> str:
    used = _used(values)
    if used == [0]:
        return ""
    if not names_255 and {*used} <= {0, IGNORE}:
        return ONLY_255
    is_two_tones = {*used} <= {0, 1} and image.mode == "P" and {*map(tuple, _palette(image))} == {BLACK, WHITE}
    return TWO_TONES if is_two_tones else IDS


def _from_label_ids(ids: np.ndarray) -> np.ndarray:
    table = np.full(256, IGNORE, np.uint8)
    table[list(CITYSCAPES_LABEL_IDS)] = np.arange(len(CITYSCAPES_LABEL_IDS))
    # Label ids end at 33; the licence plate, -1, is stored as 255.
    _known(ids, CITYSCAPES_LABEL_IDS[-1] + 1)
    return table[ids]


def _painted(classes: ClassList) -> list[tuple[tuple[int, ...], int]]:
    """(colour, class id or 255) of all that the class list names."""
    own = [(colour, class_id) for class_id, colour in enumerate(classes.colours)]
    return own + [*classes.other_colours] + [(colour, IGNORE) for colour in classes.ignore_colours]


def _from_greys(image: Image.Image, classes: ClassList) -> tuple[np.ndarray, str]:
    named = {value: class_id for (value,), class_id in _painted(classes)}
    values = _grey_values(image, named)
    unknown = [value for value in _used(values) if value not in {*named, IGNORE}]
    if unknown:
        raise BadMask(f"the mask holds {_listed(unknown)}, which the class list does not name{_add(unknown)}")
    return _looked_up(values, named), _reading(values, image, IGNORE in named)


def _looked_up(values: np.ndarray, named: dict[int, int]) -> np.ndarray:
    table = np.full(256, IGNORE, np.uint8)
    table[[*named]] = [*named.values()]
    return table[values]


def _grey_values(image: Image.Image, named: dict[int, int]) -> np.ndarray:
    """The values of a picture in greys, however it is stored.

    A palette image is what it shows where that is a class of the list other than black, else the indices where the
    list names those.
    """
    if image.mode in CHANNELS:
        values = _grey_channel(image)
        if values is None:
            raise BadMask("the mask holds colours, but the class list grey values: it must have lines NAME,R,G,B")
        return values
    values = stored_values(image)
    if image.mode == "P":
        used, known, palette = _used(values), {*named, IGNORE}, _palette(image)
        shown = {*palette[[index for index in used if index < len(palette)], 0].tolist()}
        is_grey = max(used) < len(palette) and (palette[used] == palette[used, :1]).all()
        shows_class = any(named.get(value, IGNORE) != IGNORE for value in shown - {0})
        if is_grey and shown <= known and (shows_class or not known.issuperset(used)):
            return palette[:, 0][values]
    return values


def _grey_channel(image: Image.Image) -> np.ndarray | None:
    """The grey values of an image of several channels; None where it has colours."""
    pixels = np.asarray(image)[..., : CHANNELS.get(image.mode, 0)]
    return pixels[..., 0] if pixels.size and (pixels == pixels[..., :1]).all() else None


def _from_colours(image: Image.Image, classes: ClassList) -> tuple[np.ndarray, str]:
    painted = _painted(classes)
    if image.mode in ("RGB", "RGBA"):
        return _from_rgb(np.asarray(image)[..., :3], painted), ""
    if image.mode == "P":
        return _from_palette(image, classes, painted)
    # A grey value g is the colour (g,g,g); masks that hold others can only hold ids.
    values = _grey_channel(image) if image.mode == "LA" else stored_values(image)
    used, named = _used(values), {colour[0]: class_id for colour, class_id in painted if len({*colour}) == 1}
    if named.keys() >= {*used}:
        # Black throughout agrees with masks of ids where black is the class 0.
        return _looked_up(values, named), GREYS if used != [0] or named[0] != 0 else ""
    colours = [f"{value},{value},{value}" for value in used if value not in named]
    hint = f", and a grey value g is the colour (g,g,g), which the class list does not name{_add(colours)}"
    return _known(values, len(classes.names), hint), _reading(values, image)


def _from_rgb(pixels: np.ndarray, painted: list[tuple[tuple[int, ...], int]]) -> np.ndarray:
    codes = _codes(pixels)
    table, ids = _codes(np.array([colour for colour, _ in painted])), np.array([i for _, i in painted], np.uint8)
    order = np.argsort(table, kind="stable")
    places = np.searchsorted(table[order], codes).clip(max=len(order) - 1)
    unknown = np.unique(codes[table[order][places] != codes])
    if len(unknown):
        colours = [f"{c >> 16},{c >> 8 & 255},{c & 255}" for c in unknown.tolist()]
        shown = _listed([f"({colour})" for colour in colours])
        raise BadMask(f"the mask holds {shown}, which the class list does not name{_add(colours)}")
    return ids[order][places]


def _codes(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _add(unknown: list) -> str:
    """What to do about values without a name."""
    if len(unknown) > MANY:
        return BLENDED
    return f": add NAME,{unknown[0]} there, also for a class that has other values, or void,{unknown[0]} to ignore it"


def _palette(image: Image.Image) -> np.ndarray:
    return np.array(image.getpalette("RGB")).reshape(-1, 3)


def _from_palette(
    image: Image.Image, classes: ClassList, painted: list[tuple[tuple[int, ...], int]]
) -> tuple[np.ndarray, str]:
    """A palette mask with a colour table holds ids, or colours in some other order.

    It holds ids where the palette shows each class in its colour, and where the palette has nothing to do with the
    table: black alone does not count, as nearly every palette has it.
    """
    ids = np.asarray(image)
    used, colours = _used(ids), dict(enumerate(map(tuple, _palette(image).tolist())))
    in_place = [colours.get(i) == colour for i, colour in enumerate(classes.colours) if i in used]
    if in_place and all(in_place):
        return _known(ids, len(classes.names)), ""
    shown, known = {colours[i] for i in used if i in colours}, {colour for colour, _ in painted}
    if shown <= known or (shown & known) - {BLACK}:
        pixels = _from_rgb(np.asarray(image.convert("RGB")), painted)
        return pixels, GREYS if used == [0] and shown == {BLACK} and pixels.flat[0] != 0 else ""
    hint = "; nor does its palette show colours of the class list"
    return _known(ids, len(classes.names), hint), _reading(ids, image)


def judge_readings(masks: dict[str, list[str]], classes: ClassList) -> list[str]:
    """What a user should know of a whole set of masks, given as their names by `Mask.reading`.

    Raises:
        InputError: 255 is all that could be an object, and would be ignored; or grey masks are read in two ways.
    """
    ids, greys, only_255, two_tones = (masks.get(reading, []) for reading in (IDS, GREYS, ONLY_255, TWO_TONES))
    if only_255 and not ids:
        names = classes.names if len(classes.names) > 1 else ("background", *classes.names)
        channels = len(classes.colours[0]) if classes.colours else 1
        lines = " and ".join(f"{name}{f',{value}' * channels}" for name, value in zip(names, (0, IGNORE), strict=False))
        raise InputError(f"{len(only_255)} masks hold nothing but 0 and 255, such as {only_255[0]}, and 255 is ignored "
                         f"where the class list does not name it: name both, in lines such as {lines}")  # fmt: skip
    if greys and ids:
        raise InputError(f"{len(greys)} grey masks hold colours (g,g,g) of the class list, such as {greys[0]}, and "
                         f"{len(ids)} hold class ids, such as {ids[0]}: store all in one way; where all are ids, leave "
                         "the colours out of the class list")  # fmt: skip
    told = []
    if len(only_255) > 3 * len(ids) > 0:
        told.append(f"{len(only_255)} masks hold nothing but 0 and 255, which is ignored, such as {only_255[0]}, and "
                    f"{len(ids)} hold ids, such as {ids[0]}: if 255 is a class, the list must name it")  # fmt: skip
    if two_tones and (ids or greys):
        told += [f"{len(two_tones)} masks are stored in black and white, such as {two_tones[0]}, others are not: white "
                 "is taken for the value 1 there"]  # fmt: skip
    return told
