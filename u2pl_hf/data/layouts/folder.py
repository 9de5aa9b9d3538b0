"""Anybody's images and masks: images/, masks/ and, if there are any, unlabelled/."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from u2pl_hf.data.archives import Member
from u2pl_hf.data.class_list import ClassList
from u2pl_hf.data.layouts.base import About, Layout, Row, require, unique_by
from u2pl_hf.data.splits import read_ids
from u2pl_hf.errors import InputError

FOLDERS = {"images": "images", "masks": "masks", "unlabelled": "unlabelled", "unlabeled": "unlabelled"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
SUBSETS = {"train": "train", "val": "validation", "validation": "validation", "test": None}
ABOUT = About(
    title="Images and masks for semantic segmentation",
    text="Prepared from a folder of images and masks.",
    licence="Not known to the tool that wrote this card: add the licence of your images.",
)
LOOKED_FOR = "looked for files below images/ and masks/ (and unlabelled/), of the same path but for the suffix"


def folder_layout(
    members: Sequence[Member],
    find_classes: Callable[[list[Member]], ClassList],
    *,
    classes: ClassList | None = None,
    validation: str = "0.2",
    seed: int = 0,
) -> Layout:
    """Rows of a folder; an id is the path below images/ or unlabelled/ without its suffix.

    Args:
        find_classes: makes the class list out of the masks where `classes` is None.
        validation: share, count or list file of the labelled images to validate on, where images/ has no subsets.
        seed: another seed draws another validation set.

    Raises:
        InputError: nothing found, no mask belongs to an image, or a validation set that cannot be drawn.
    """
    bad: list[tuple[str, str]] = []
    groups, notes = _grouped(members)
    require(groups["images"], f"no images found: {LOOKED_FOR}")
    labelled_or_not = groups["images"] + groups["unlabelled"]
    images = unique_by(labelled_or_not, "images", bad)
    masks = unique_by(groups["masks"], "masks", bad)
    below_images = {key for key, _ in groups["images"]}
    _require_pairs(below_images, masks)
    unclear = {key for key, _ in bad}
    bad += [(key, "the mask has no image") for key in sorted(masks.keys() - below_images - unclear)]
    bad += [(key, "the name is not valid text") for key in sorted(images) if not _is_text(key)]
    images = {key: member for key, member in images.items() if key not in {key for key, _ in bad}}
    chosen = {key: masks.get(key) if key in below_images else None for key in images}
    subsets, more_notes = _subsets(chosen, below_images, validation, seed)
    classes = classes or find_classes([mask for mask in chosen.values() if mask])
    coding = "colours" if classes.colours else "ids"
    rows = [Row(key, subsets[key], images[key], chosen[key], coding) for key in sorted(subsets)]
    unlabelled = [row.id for row in rows if row.mask is None]
    if unlabelled:
        notes.append(f"{len(unlabelled)} images have no mask: they are unlabelled rows")
    return Layout("folder", rows, classes, ABOUT, bad, notes=notes + more_notes)


def _grouped(members: Iterable[Member]) -> tuple[dict[str, list[tuple[str, Member]]], list[str]]:
    """(id, file) of images, masks and unlabelled images: what lies below the first folder of such a name."""
    groups: dict[str, list[tuple[str, Member]]] = {name: [] for name in FOLDERS.values()}
    others = []
    for member in members:
        place = next((n for n, part in enumerate(member.parts[:-1]) if part.lower() in FOLDERS), None)
        if place is None:
            continue
        if member.suffix not in SUFFIXES:
            others.append(member.name)
            continue
        inside = PurePosixPath(*member.parts[place + 1 :]).with_suffix("")
        # One letter can be written in two ways; file systems differ, and image and mask must meet.
        key = unicodedata.normalize("NFC", str(inside))
        groups[FOLDERS[member.parts[place].lower()]].append((key, member))
    notes = [f"{len(others)} files are no images and left out, such as {others[0]}"] if others else []
    return groups, notes


def _require_pairs(images: set[str], masks: dict[str, Member]) -> None:
    require(masks, f"no masks found: {LOOKED_FOR}")
    if not images & masks.keys():
        example = f"images/{min(images)}, masks/{min(masks)}"
        raise InputError(f"no mask belongs to an image, as their names differ ({example}): {LOOKED_FOR}")


def _is_text(key: str) -> bool:
    try:
        key.encode()
        return True
    except UnicodeEncodeError:
        return False


def _subsets(
    masks: dict[str, Member | None], below_images: set[str], validation: str, seed: int
) -> tuple[dict[str, str], list[str]]:
    """Subset of each id to keep. Folders named after subsets decide; else validation images are drawn."""
    first = {key.partition("/")[0] if "/" in key else "" for key in below_images}
    if not first <= SUBSETS.keys():
        drawn = _draw(sorted(key for key, mask in masks.items() if mask), validation, seed)
        return {key: "validation" if key in drawn else "train" for key in masks}, []
    subsets = {key: SUBSETS[key.partition("/")[0]] if key in below_images else "train" for key in masks}
    tests = sum(subset is None for subset in subsets.values())
    lonely = [key for key, subset in subsets.items() if subset == "validation" and masks[key] is None]
    notes = [f"{tests} images below images/test are left out"] if tests else []
    if lonely:
        notes.append(f"{len(lonely)} validation images without a mask are left out, such as {min(lonely)}")
    return {k: subset for k, subset in subsets.items() if subset and k not in lonely}, notes


def _draw(labelled: list[str], validation: str, seed: int) -> set[str]:
    """Validation ids: a list file's, or as many as asked for, drawn by hashes so that files added later move few."""
    if Path(validation).is_file():
        listed = read_ids(Path(validation))
        absent = sorted(set(listed).difference(labelled))
        if absent:
            raise InputError(f"--validation {validation} lists {len(absent)} ids without image or mask: {absent[0]}")
        return set(listed)
    count = _count(len(labelled), validation)
    return set(sorted(labelled, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())[:count])


def _count(total: int, validation: str) -> int:
    try:
        share = float(validation)
    except ValueError:
        share = -1.0
    if validation.isdecimal():
        count = int(validation)
    else:
        count = min(max(1, round(share * total)), total - 1) if 0 < share < 1 else -1
    if not 0 <= count < total:
        raise InputError(
            f"--validation {validation} does not fit {total} labelled images: pass a share such as 0.2, a count below "
            f"{total}, a file with one id per line, or 0 for none"
        )
    return count
