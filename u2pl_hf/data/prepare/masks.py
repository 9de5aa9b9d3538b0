"""Mask files as they come with data sets → class ids, 255 = ignore; and the classes of masks without a class list."""

import importlib.util
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import ImageOps
from tqdm.auto import tqdm

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.decode import ORIENTATION, open_mask
from u2pl_hf.errors import InputError, few, refusing, require

# Cityscapes: label id of each of the 19 train ids; every other label id up to 33 is not evaluated.
CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
SHOWN = 5
# Nobody draws as many values that have no name.
MANY = 20
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Modes of several channels, and which of them are no alpha.
CHANNELS = {"RGB": [0, 1, 2], "RGBA": [0, 1, 2], "LA": [0, 0, 0]}
BLENDED = ": so many come of lossy compression, or of a resizing that blends; store the mask as it was drawn"
# Readings that decide about a whole set of masks, see `Mask`.
IDS, GREYS, ONLY_255, TWO_TONES = "ids", "greys", "only 255", "two tones"


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


@dataclass(frozen=True)
class _Stored:
    """What a file holds: a few values, and which of them each pixel has.

    Attributes:
        places: (H,W), of each pixel's value in the lists below.
        numbers: the values of one channel, rising; of a palette image its indices. None where there are more channels.
        colours: (r, g, b) that is shown for each value; of grey (g, g, g).
        palette: all colours of it, used or not; None where there is none.
    """

    mode: str
    places: np.ndarray
    numbers: list[int] | None
    colours: list[tuple[int, int, int]]
    palette: list[tuple[int, int, int]] | None = None
    orientation: int | None = None

    @property
    def greys(self) -> list[int] | None:
        """One for each value; None where there are colours."""
        return [colour[0] for colour in self.colours] if all(len({*colour}) == 1 for colour in self.colours) else None


def decode_mask(data: bytes, coding: str, classes: ClassList, segments: Mapping[int, int] | None = None) -> Mask:
    """Decode a mask file, turned as its own EXIF orientation says.

    Args:
        coding: ids (class ids in an image of one channel or with a palette), cityscapes (label ids), ade20k (0 for
            others, then the classes from 1), panoptic (COCO's: (r, g, b) is the segment r + 256 g + 65536 b), colours
            (as `classes` says) or sbd (a Matlab file of the Semantic Boundaries Dataset).
        segments: of a panoptic mask, the class id of each segment.

    Raises:
        InputError: wrong kind of image, values that are no class, or a damaged file.
    """
    stored, reading = _one_channel("sbd", _read_sbd(data)) if coding == "sbd" else _stored(data), ""
    if coding == "cityscapes":
        # Label ids end at 33; the licence plate, -1, is stored as 255.
        train_ids = {label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)}
        ids = [train_ids.get(i, IGNORE) for i in _known(_numbers(stored, classes), CITYSCAPES_LABEL_IDS[-1] + 1)]
    elif coding == "ade20k":
        numbers, most = _numbers(stored, classes), len(classes.names)
        unknown = [number for number in numbers if number > most]
        rule = f"annotations of ADE20K hold 0 for others and the classes 1 to {most}"
        require(not unknown, f"the mask holds {_listed(unknown)}, but {rule}")
        ids = [number - 1 if number else IGNORE for number in numbers]
    elif coding == "panoptic":
        used = [red + 256 * green + 65536 * blue for red, green, blue in stored.colours]
        unknown = [segment for segment in used if segment not in segments]
        require(not unknown, f"the mask holds {_listed(unknown)}, but the JSON file names no such segment of the image")
        ids = [segments[segment] for segment in used]
    elif coding in ("ids", "sbd"):
        numbers = _numbers(stored, classes)
        # A list with colours is that of a data set that is known here: nobody can change it.
        hint = "" if classes.colours else f"; {_give_values([n for n in numbers if n < IGNORE], classes)}"
        ids, reading = _known(numbers, len(classes.names), hint), _reading(stored, numbers)
    else:
        ids, reading = (_from_greys if len(classes.colours[0]) == 1 else _from_colours)(stored, classes)
    return Mask(np.array(ids, np.uint8)[stored.places], reading, stored.orientation)


def _stored(data: bytes) -> _Stored:
    """A mask file without its class list; of several channels, alpha does not count."""
    image = open_mask({"bytes": data}, "the mask")
    # Pillow keeps the high byte of each channel only, so small ids would all be 0.
    is_deep = image.mode in CHANNELS and image.tile and ";16" in str(image.tile[0][-1])
    require(not is_deep, f"the mask is {image.mode} of 16 bits per channel: store it with 8")
    with refusing(Exception, "the mask cannot be read"):
        orientation = image.getexif().get(ORIENTATION)  # a TIFF has it no more once it is loaded, and turned
        image = ImageOps.exif_transpose(image)
    if image.mode in CHANNELS:
        codes = np.asarray(image)[..., CHANNELS[image.mode]] @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        found = pa.array(codes.ravel()).dictionary_encode()
        colours = [(code >> 16, code >> 8 & 255, code & 255) for code in found.dictionary.to_pylist()]
        return _Stored(image.mode, found.indices.to_numpy().reshape(codes.shape), None, colours, None, orientation)
    is_plain = image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16")
    require(is_plain, f"the mask is {image.mode}, not one channel of class ids; store it as PNG of 8 bits")
    palette = [BLACK, WHITE] if image.mode == "1" else None
    if image.mode == "P":
        palette = list(map(tuple, np.array(image.getpalette("RGB")).reshape(-1, 3).tolist()))
    # convert("L") would make grey levels out of palette indices.
    return _one_channel(image.mode, np.asarray(image), palette, orientation)


def _one_channel(mode: str, values: np.ndarray, palette: list | None = None, orientation: int | None = None) -> _Stored:
    least, most = values.min(initial=0), values.max(initial=0)
    rule = "class ids are 0 to 255: store them in 8 bits"
    require(least >= 0 and most <= 255, f"the mask holds {least} to {most}, {rule}")
    counts = np.bincount(values.ravel(), minlength=256)
    places, numbers = np.cumsum(counts > 0) - 1, np.flatnonzero(counts).tolist()
    shown = dict(enumerate(palette)) if palette else {n: (n, n, n) for n in numbers}
    colours = [shown.get(n, BLACK) for n in numbers]
    return _Stored(mode, places.astype(np.uint8)[values.astype(np.uint8)], numbers, colours, palette, orientation)


def _numbers(stored: _Stored, classes: ClassList | None = None) -> list[int]:
    """The numbers of a file of one channel; `classes`: whose names the message uses."""
    if stored.numbers is None:
        hint = "for colours, --classes must name them, in lines such as road,128,64,128"
        if stored.greys is not None:
            hint = f"as it is grey throughout, {_give_values(sorted(stored.greys), classes)}"
        raise InputError(f"the mask is {stored.mode}, not one channel of class ids; {hint}")
    return stored.numbers


def _give_values(values: list[int], classes: ClassList | None) -> str:
    line = f"{classes.names[-1] if classes else 'NAME'},{values[-1] if values else IGNORE}"
    return f"give each class its value in --classes, in lines NAME,VALUE such as {line}"


def require_scipy() -> None:
    """Say at the door that Matlab files need one more package."""
    is_there = importlib.util.find_spec("scipy") is not None
    require(is_there, "the labels of SBD are Matlab files, which need scipy: pip install scipy (the extra 'sbd')")


def _read_sbd(data: bytes) -> np.ndarray:
    from scipy.io import loadmat  # optional: only this data set needs it

    return np.asarray(loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0], dtype=np.uint8)


def _known(ids: list[int], num_classes: int, hint: str = "") -> list[int]:
    unknown = [value for value in ids if num_classes <= value < IGNORE]
    known = f"there are {num_classes} classes (0..{num_classes - 1}, 255 = ignore)"
    require(not unknown, f"the mask holds {_listed(unknown)}, but {known}{BLENDED if len(unknown) > MANY else hint}")
    return ids


def _listed(values: list) -> str:
    return f"the value{'s' if len(values) > 1 else ''} {few(values, SHOWN)}"


def _require_names(unknown: list[str], shown: list[str]) -> None:
    """Refuse values that the class list does not name, and say how it could."""
    line = "".join(unknown[:1])
    remedy = f": add NAME,{line} there, also for a class that has other values, or void,{line} for none"
    told = f"the mask holds {_listed(shown)}, which the class list does not name"
    require(not unknown, told + (BLENDED if len(unknown) > MANY else remedy))


def _reading(stored: _Stored, used: list[int], names_255: bool = False) -> str:
    if {*used} == {0}:
        return ""
    if not names_255 and {*used} <= {0, IGNORE}:
        return ONLY_255
    return TWO_TONES if {*used} <= {0, 1} and {*(stored.palette or ())} == {BLACK, WHITE} else IDS


def _from_greys(stored: _Stored, classes: ClassList) -> tuple[list[int], str]:
    """(id of each value, reading) by a list of grey values, however the greys are stored.

    A palette image is what it shows where that is a class of the list other than black, else its indices where the list
    names those.
    """
    named, used = {value: class_id for (value,), class_id in classes.painted}, stored.numbers
    known, greys = {*named, IGNORE}, stored.greys
    is_grey = used is not None or greys is not None
    require(is_grey, "the mask holds colours, but the class list grey values: it must have lines NAME,R,G,B")
    if greys is not None and {*greys} <= known:
        shows_class = any(named.get(value, IGNORE) != IGNORE for value in {*greys} - {0})
        used = greys if used is None or shows_class or not known.issuperset(used) else used
    used = greys if used is None else used
    unknown = [str(value) for value in sorted({*used} - known)]
    _require_names(unknown, unknown)
    return [named.get(value, IGNORE) for value in used], _reading(stored, used, IGNORE in named)


def _from_colours(stored: _Stored, classes: ClassList) -> tuple[list[int], str]:
    """(id of each value, reading) by a list of colours.

    A grey value g is the colour (g,g,g); a set of grey values that the list does not name can only hold ids. A palette
    image holds ids where the palette shows each class in its colour, and where the palette has nothing to do with the
    list: black alone does not count, as nearly every palette has it.
    """
    named, shown = dict(classes.painted), {*stored.colours}
    numbers = stored.greys if stored.mode == "LA" else stored.numbers
    if stored.palette:
        own = [(colour, n) for colour, n in zip(stored.colours, numbers, strict=True) if n < len(classes.colours)]
        if own and all(colour == classes.colours[n] for colour, n in own):
            return _known(numbers, len(classes.names)), ""
    is_related = stored.palette and (shown & named.keys()) - {BLACK}
    unknown = ["{},{},{}".format(*colour) for colour in sorted(shown - named.keys())]
    if numbers is None or not unknown or is_related:
        _require_names(unknown, [f"({colour})" for colour in unknown])
        ids = [named[colour] for colour in stored.colours]
        # Black throughout agrees with masks of ids where black is the class 0.
        is_grey = ids[0] != 0 if numbers == [0] and shown == {BLACK} else not stored.palette
        return ids, GREYS if is_grey and numbers is not None else ""
    hint = "; nor does its palette show colours of the class list"
    if not stored.palette:
        grey = "a grey value g is the colour (g,g,g), which the class list does not name"
        hint = f", and {grey}: add NAME,{unknown[0]} there, or void,{unknown[0]} to ignore it"
    return _known(numbers, len(classes.names), hint), _reading(stored, numbers)


def judge_readings(masks: dict[str, list[str]], classes: ClassList) -> list[str]:
    """What a user should know of a whole set of masks, given as their names by `Mask.reading`.

    Raises:
        InputError: 255 is all that could be an object, and would be ignored; or grey masks are read in two ways.
    """
    ids, greys, only_255, two_tones = (masks.get(reading, []) for reading in (IDS, GREYS, ONLY_255, TWO_TONES))
    hold = f"{len(only_255)} masks hold nothing but 0 and 255, such as {min(only_255, default='')}"
    names = classes.names if len(classes.names) > 1 else ("background", *classes.names)
    channels = len(classes.colours[0]) if classes.colours else 1
    lines = f"lines such as {names[0]}{',0' * channels} and {names[1]}{',255' * channels}"
    require(ids or not only_255, f"{hold}, and 255 is ignored unless the class list names it: name both, in {lines}")
    some = f"{len(greys)} grey masks hold colours (g,g,g) of the class list, such as {min(greys, default='')}"
    others = f"{len(ids)} hold class ids, such as {min(ids, default='')}"
    remedy = "store all in one way; where all are ids, leave the colours out of the class list"
    require(not (greys and ids), f"{some}, and {others}: {remedy}")
    told = []
    if len(only_255) > 3 * len(ids) > 0:
        told.append(f"{hold}, which is ignored, and {others}: a class 255 needs a name")
    if two_tones and (ids or greys):
        black = f"{len(two_tones)} masks are stored in black and white, such as {two_tones[0]}, others are not"
        told.append(f"{black}: white is taken for the value 1 there")
    return told


def infer_classes(masks: Sequence[Member], workers: int) -> ClassList:
    """class_0 ... for masks that hold 0..C-1 and 255 = ignore. Masks that cannot be read are left to later.

    Raises:
        InputError: no mask holds class ids, only one class, or values with gaps between them.
    """
    with ThreadPoolExecutor(workers) as pool:
        found = list(tqdm(pool.map(_values, masks), "looking for classes", len(masks), unit="mask", leave=False))
    is_read = any(isinstance(values, list) for values in found)
    require(is_read, f"no mask can be read: {found[0]} ({masks[0].name})")
    counts = Counter(value for values in found if not isinstance(values, str) for value in values)
    classes = sorted(counts.keys() - {IGNORE})
    is_plain = classes == list(range(len(classes))) and len(classes) > 1
    rule = "without a class list they must hold 0, 1 ... and 255 for pixels to ignore, with no value left out"
    remedy = "pass --classes FILE with one line NAME,VALUE (or NAME,R,G,B) per class"
    require(is_plain, f"the masks hold {_described(counts)}: {rule}; {remedy}")
    return ClassList(tuple(f"class_{value}" for value in classes))


def _values(mask: Member) -> list[int] | str:
    try:
        with refusing(Exception, "the mask cannot be read"):
            return _numbers(_stored(mask.read()))
    except InputError as error:  # the row is reported when it is prepared
        return str(error)


def _described(counts: Counter) -> str:
    """The values, and of rare ones in how many masks they are: one stray mask is told from a whole set."""
    rare = max(counts.values()) / 10
    parts = [f"{v} (in {n} mask{'s' * (n > 1)})" if n <= rare else str(v) for v, n in sorted(counts.items())]
    return ("only " if len(parts) < 3 else "") + few(parts, 2 * SHOWN)
