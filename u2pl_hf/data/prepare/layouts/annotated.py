"""Photographs, and what an annotation tool exported of them."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from u2pl_hf.constants import IGNORE, IMAGE_SUFFIXES
from u2pl_hf.data.annotations import AnnotatedImage, AnnotationFile, is_ignored, label_map
from u2pl_hf.data.annotations.reading import ImageNames, read_annotations
from u2pl_hf.data.annotations.writing import BACKGROUND
from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.prepare.layouts import About, ImageRow, Layout, unique_by
from u2pl_hf.data.prepare.layouts.folder import (
    DEFAULT_VALIDATION,
    SURROGATE,
    FolderFile,
    found_files,
    loose_file,
    subsets_of,
)
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import require

ABOUT = About(
    title="Photographs annotated for semantic segmentation",
    text="Prepared from photographs and the file of an annotation tool.",
    licence="Not known to the tool that wrote this card: add the licence of your images.",
)
EMPTY_IMAGES = ("unlabelled", "background")


@dataclass(frozen=True, eq=False)
class Drawing:
    """Stands where a mask file stands in other layouts: regions, drawn when the row is prepared.

    Attributes:
        source: a sum of the files that they come from: what was prepared of others is not gone on with.
        ids: of each class's name.
        rest: what pixels are that lie in no region.
    """

    source: str
    image: AnnotatedImage = field(repr=False)
    ids: Mapping[str, int]
    rest: int
    kind: str = "drawn"
    size: int = 0

    def draw(self, size: tuple[int, int]) -> np.ndarray:
        """uint8 (H,W) class ids, 255 = ignore, see `label_map`."""
        return label_map(self.image, size, self.ids, self.rest)


def annotated_layout(
    members: Sequence[Member],
    annotations: Sequence[Member],
    kind: str | None = None,
    classes: ClassList | None = None,
    background: str | None = None,
    empty: str = EMPTY_IMAGES[0],
    validation: str = DEFAULT_VALIDATION,
    seed: int = 0,
) -> Layout:
    """Rows of photographs; an id is the path below images/, or of the whole, without its suffix.

    Args:
        members: the photographs, in folders as of `folder_layout`; where none is called images, all image files.
        annotations: the tool's files.
        kind: their format; None: as they look.
        classes: names in the order of the ids; None: as the files have them.
        background: the class of pixels in no region, first in the list where it is no class yet; None: the class
            background, or 255 where there is none.
        empty: what images are that are listed without an object: unlabelled, or background throughout.
        validation, seed: as of `folder_layout`.

    Raises:
        InputError: nothing found, damaged files, names that the class list lacks, fewer than two classes.
    """
    read, bad = read_annotations(annotations, kind), []
    classes, rest, notes = _classes(read, classes, background)
    require(empty == EMPTY_IMAGES[0] or rest != IGNORE, "--empty background: no class is it; pass --background NAME")
    files = _photographs(members)
    require(files, "no images found: looked for image files below --root")
    images = unique_by(((file.key, file.member) for file in files), "images", bad)
    found = _matched(read.images, images, bad)
    require(found, f"no annotated image is there, such as {read.images[0].name if read.images else '(none is named)'}")
    bare = sorted(key for key, image in found.items() if not image.regions)
    if bare:
        become = (
            "unlabelled rows; --empty background makes them background" if empty != BACKGROUND else classes.names[rest]
        )
        notes.append(f"{len(bare)} images are listed without an object, such as {bare[0]}: they are {become}")
    ids, source = (
        {name: n for n, name in enumerate(classes.names)},
        hashlib.sha256(repr(annotations).encode()).hexdigest(),
    )
    drawings = {
        k: Drawing(source, image, ids, rest) for k, image in found.items() if image.regions or empty == BACKGROUND
    }
    require(drawings, "no image has an object: annotate some, or pass --empty background")
    bad += [(key, "the name is not valid text") for key in sorted(images) if SURROGATE.search(key)]
    unclear = {key for key, _ in bad}
    chosen = {key: drawings.get(key) for key in images.keys() - unclear}
    subsets, more_notes = subsets_of(chosen, {file.key: file for file in files}, validation, seed)
    rows = [ImageRow(key, subsets[key], images[key], chosen[key], "drawn") for key in sorted(subsets)]
    if unlabelled := sum(row.mask is None for row in rows):
        notes.append(f"{unlabelled} images have no annotation: they are unlabelled rows")
    return Layout("annotations", rows, classes, ABOUT, bad, notes=notes + read.notes + more_notes)


def _classes(
    read: AnnotationFile, classes: ClassList | None, background: str | None
) -> tuple[ClassList, int, list[str]]:
    """Classes, the id of pixels in no region, and notes."""
    names = [name for name in read.names if not is_ignored(name)]
    if classes:
        used = {region.name for image in read.images for region in image.regions if not is_ignored(region.name)}
        unknown = sorted(used.difference(classes.names))
        told = f"--classes does not name {', '.join(unknown[:5])}, which the annotations do"
        require(not unknown, f"{told}: add it, and --map {''.join(unknown[:1])}=ignore if it is not wanted")
        names, palette = list(classes.names), classes.palette
    else:
        palette = [list(read.colours[name]) for name in names] if names and {*names} <= read.colours.keys() else None
    added = background is not None and not is_ignored(background) and background not in names
    if added:
        names, palette = [background, *names], palette and [[0, 0, 0], *palette]
    rest_name = background or (BACKGROUND if BACKGROUND in names else None)
    rest = names.index(rest_name) if rest_name in names else IGNORE
    hint = "; --background NAME makes pixels of no object a class" if rest == IGNORE else ""
    require(
        len(names) > 1, f"the annotations name {', '.join(names) or 'no class'} alone, two or more are needed{hint}"
    )
    require(len(names) <= IGNORE, f"the annotations name {len(names)} classes, and {IGNORE} is the most")
    told = (
        f"pixels of no object are {names[rest]}" if rest != IGNORE else f"pixels of no object are ignored (255){hint}"
    )
    notes = [told]
    if read.left_out.total():
        listed = ", ".join(f"{count} {kind}" for kind, count in read.left_out.most_common() if count)
        notes.append(f"objects without an area are left out: {listed}")
    if palette and len({tuple(colour) for colour in palette}) < len(palette):
        palette = None
        notes.append("two classes have one colour, so none is kept: the default ones are shown")
    return ClassList(tuple(names), palette and tuple(map(tuple, palette))), rest, notes


def _photographs(members: Sequence[Member]) -> list[FolderFile]:
    """Those below images/ and unlabelled/; where there is no images/, all."""
    files = [f for f in found_files(members) if f.kind != "masks" and f.member.suffix in IMAGE_SUFFIXES]
    if any(file.kind == "images" for file in files):
        return files
    return [loose_file(member) for member in members if member.suffix in IMAGE_SUFFIXES]


def _matched(listed: Sequence[AnnotatedImage], images: Mapping[str, Member], bad: list) -> dict[str, AnnotatedImage]:
    """The photograph of each annotated image; what has none, or several, goes to `bad`."""
    paths = {key: PurePosixPath(member.name) for key, member in images.items()}
    names = ImageNames(paths, lambda text: unicodedata.normalize("NFC", text))
    found: dict[str, AnnotatedImage] = {}
    for image in listed:
        keys = names.find(image.name)
        if len(keys) == 1 and keys[0] in found:
            bad.append((keys[0], f"it is annotated twice: {found[keys[0]].where} and {image.where}"))
        elif len(keys) == 1:
            found[keys[0]] = image
        else:
            told = f"{image.where} may mean {' or '.join(keys[:2])}" if keys else f"{image.where} has no such image"
            bad.append((image.name, told))
    return found
