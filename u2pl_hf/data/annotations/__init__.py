"""To and from annotation tools: what a tool's file says of images, as regions to draw, and label maps as its objects.

`reading.read_annotations` and `writing.write_annotations` are the doors; a module here is one format, both ways.
"""

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.source.class_list import IGNORED_NAMES
from u2pl_hf.errors import refusing, require


@dataclass(frozen=True)
class Patch:
    """Pixels of an image.

    Attributes:
        left, top: where the mask lies in the image.
        mask: bool (h,w).
    """

    left: int
    top: int
    mask: np.ndarray


@dataclass(frozen=True)
class Region:
    """One object as a file describes it.

    Attributes:
        name: of its class.
        where: its place in the file, for messages.
        draw: (height, width) of the image -> the pixels of it; a ValueError says what is wrong with it.
        is_crowd: drawn roughly around many things: ignored, but for the objects in it.
    """

    name: str
    where: str
    draw: Callable[[tuple[int, int]], Patch]
    is_crowd: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """What a file says of one image.

    Attributes:
        name: the image's file, as the tool knows it.
        size: (height, width) of the image in the tool; None where the file does not say.
        regions: later ones lie over earlier ones.
        where: the file, and the image's place in it.
    """

    name: str
    size: tuple[int, int] | None
    regions: Sequence[Region]
    where: str


@dataclass
class AnnotationFile:
    """What is read of one file, or of all of them.

    Attributes:
        names: of classes, in the tool's order where it has one.
        colours: of classes, by name, where the tool says.
        images: as they come.
        left_out: how many objects of each kind have no area, such as points.
        notes: what a user should know besides.
    """

    names: list[str] = field(default_factory=list)
    colours: dict[str, tuple[int, ...]] = field(default_factory=dict)
    images: list[AnnotatedImage] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LabelledPatch:
    """One connected part of a label map, to be written.

    Attributes:
        name: of its class.
        patch: its pixels.
        confidence: the mean over them; None for a label that is no prediction.
        is_uncertain: the mean is below what was asked for.
    """

    name: str
    patch: Patch
    confidence: float | None = None
    is_uncertain: bool = False


@dataclass(frozen=True)
class LabelledImage:
    """One image to be written; attributes as of `AnnotatedImage`, `file` being where it lies, if that is known."""

    name: str
    size: tuple[int, int]
    patches: Sequence[LabelledPatch]
    file: Path | None = None


@dataclass(frozen=True)
class Style:
    """How objects are written.

    Attributes:
        shapes: polygons or masks.
        tolerance: how many pixels a simplified polygon may be away from the region's outline; 0 keeps every pixel.
    """

    shapes: str = "masks"
    tolerance: float = 0.5


def is_ignored(name: str) -> bool:
    """Whether a name stands for pixels to ignore."""
    return name.lower() in IGNORED_NAMES


def require_extra(module: str, what: str) -> None:
    """Say at the door that a format needs one more package."""
    is_there = importlib.util.find_spec(module) is not None
    require(is_there, f"{what} needs {module}: pip install 'u2pl_hf[annotations]'")


# What libraries raise about outlines, runs and bitmaps that are none.
UNDRAWABLE = (ValueError, TypeError, LookupError, OverflowError, OSError, SyntaxError, MemoryError)


def label_map(image: AnnotatedImage, size: tuple[int, int], ids: Mapping[str, int], rest: int) -> np.ndarray:
    """Regions -> uint8 (H,W) class ids, 255 = ignore; crowds first, then all in their order.

    Args:
        size: (height, width) of the photograph, upright.
        ids: of each class's name.
        rest: what pixels are that lie in no region.

    Raises:
        InputError: the tool had an image of another size, or a region cannot be drawn.
    """
    (height, width), (own_height, own_width) = size, image.size or size
    turned = "; as it is stored, before its EXIF orientation turns it" if (own_height, own_width) == size[::-1] else ""
    told = f"the image is {width}x{height}, but {image.where} annotates one of {own_width}x{own_height}{turned}"
    require((own_height, own_width) == size, told)
    labels = np.full(size, rest, np.uint8)
    for region in sorted(image.regions, key=lambda region: not region.is_crowd):
        with refusing(UNDRAWABLE, f"{region.where} cannot be drawn"):
            patch = region.draw(size)
        height, width = patch.mask.shape
        inside = labels[patch.top : patch.top + height, patch.left : patch.left + width]
        inside[patch.mask] = IGNORE if region.is_crowd or is_ignored(region.name) else ids[region.name]
    return labels
