"""Anybody's images and masks: images/, masks/ and, if there are any, unlabelled/."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.prepare.layouts.base import About, Layout, Row, require, unique_by
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.id_lists import SUFFIXES, match_ids, nothing_matches, read_ids
from u2pl_hf.errors import InputError

FOLDERS = {"images": "images", "masks": "masks", "unlabelled": "unlabelled", "unlabeled": "unlabelled"}
# Other names of masks/, where there is none.
MASKS = {"labels", "annotations"}
SUBSETS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SUBSETS |= dict.fromkeys(("val", "valid", "validation"), "validation")
DEFAULT_VALIDATION = "0.2"
ABOUT = About(
    title="Images and masks for semantic segmentation",
    text="Prepared from a folder of images and masks.",
    licence="Not known to the tool that wrote this card: add the licence of your images.",
)
LOOKED_FOR = "looked for files below images/ and masks/ (and unlabelled/), of the same path but for the suffix"


@dataclass(frozen=True)
class _File:
    """A file below images/, masks/ or unlabelled/; `subset` is train, validation, test or "", said by `folder`."""

    key: str
    member: Member
    kind: str
    subset: str
    folder: str


def folder_layout(
    members: Sequence[Member],
    find_classes: Callable[[list[Member]], ClassList],
    *,
    classes: ClassList | None = None,
    validation: str = DEFAULT_VALIDATION,
    seed: int = 0,
) -> Layout:
    """Rows of a folder; an id is the path below images/ or unlabelled/ without its suffix.

    Folders called train, val or test, below images/ or above it, are the subsets; their name is part of the ids.

    Args:
        find_classes: makes the class list out of the masks where `classes` is None.
        validation: share, count or list file of the labelled images to validate on, where no folder is called val.
        seed: another seed draws another validation set.

    Raises:
        InputError: nothing found, no mask belongs to an image, or a validation set that cannot be drawn.
    """
    bad: list[tuple[str, str]] = []
    files = _found(members)
    others = [file for file in files if file.member.suffix not in SUFFIXES]
    groups = {kind: [f for f in files if f.kind == kind and f.member.suffix in SUFFIXES] for kind in FOLDERS.values()}
    require(groups["images"], f"no images found: {LOOKED_FOR}{_advice(others, 'images', 'JPEG or PNG')}")
    require(groups["masks"], f"no masks found: {LOOKED_FOR}{_advice(others, 'masks', 'PNG')}{_polygons(members)}")
    images = unique_by(((f.key, f.member) for f in groups["images"] + groups["unlabelled"]), "images", bad)
    masks = unique_by(((f.key, f.member) for f in groups["masks"]), "masks", bad)
    below_images = {file.key: file for file in groups["images"]}
    _require_pairs(below_images.keys(), masks.keys())
    unclear = {key for key, _ in bad}
    bad += [(key, "the mask has no image") for key in sorted(masks.keys() - below_images.keys() - unclear)]
    bad += [(key, "the name is not valid text") for key in sorted(images) if not _is_text(key)]
    images = {key: member for key, member in images.items() if key not in {key for key, _ in bad}}
    chosen = {key: masks.get(key) if key in below_images else None for key in images}
    require(
        [mask for mask in chosen.values() if mask], f"no image with a mask can be used: {bad and ': '.join(bad[0])}"
    )
    subsets, more_notes = _subsets(chosen, below_images, validation, seed)
    notes = [f"{len(others)} files are no images and left out: {_counted(others)}"] if others else []
    classes = classes or find_classes([mask for mask in chosen.values() if mask])
    coding = "colours" if classes.colours else "ids"
    rows = [Row(key, subsets[key], images[key], chosen[key], coding) for key in sorted(subsets)]
    unlabelled = [row.id for row in rows if row.mask is None]
    if unlabelled:
        notes.append(f"{len(unlabelled)} images have no mask: they are unlabelled rows")
    return Layout("folder", rows, classes, ABOUT, bad, notes=notes + more_notes)


def _found(members: Sequence[Member]) -> list[_File]:
    """What lies below the first folder of such a name."""
    places = [(member, place) for member in members if (place := _place(member.parts[:-1], FOLDERS)) is not None]
    if not any(FOLDERS[m.parts[place].lower()] == "masks" and m.suffix in SUFFIXES for m, place in places):
        other = {member: place for member in members if (place := _place(member.parts[:-1], MASKS)) is not None}
        places += [(m, place) for m, place in other.items() if _place(m.parts[:-1], FOLDERS) is None]
    above = {_subset(m.parts[:place])[0] for m, place in places if m.parts[place].lower() == "images"}
    # A folder above all images is no subset but the name of the whole.
    return [_file(member, place, len(above) > 1) for member, place in places]


def _file(member: Member, place: int, has_subsets_above: bool) -> _File:
    inside = member.parts[place + 1 :]
    subset, at = _subset(inside[:-1])
    folder = member.parts[place : place + at + 2]
    above, at = _subset(member.parts[:place])
    if above and has_subsets_above:
        inside = (member.parts[at], *inside)
        if not subset:
            subset, folder = above, member.parts[at : place + 1]
    # One letter can be written in two ways; file systems differ, and image and mask must meet.
    key = unicodedata.normalize("NFC", str(PurePosixPath(*inside).with_suffix("")))
    return _File(key, member, FOLDERS.get(member.parts[place].lower(), "masks"), subset, "/".join(folder))


def _place(folders: tuple[str, ...], names: Container[str]) -> int | None:
    return next((n for n, part in enumerate(folders) if part.lower() in names), None)


def _subset(folders: tuple[str, ...]) -> tuple[str, int]:
    """The subset that a folder names, such as Train or val2017, and which of them; ("", -1) if none does."""
    names = [SUBSETS.get(re.sub(r"[-_]?\d{4}$", "", folder.lower()), "") for folder in folders]
    return next(((name, n) for n, name in enumerate(names) if name), ("", -1))


def _counted(files: list[_File]) -> str:
    counts = Counter(file.member.suffix or "(no suffix)" for file in files)
    return ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common(3)) + f", such as {files[0].member.name}"


def _advice(others: list[_File], kind: str, form: str) -> str:
    here = [file for file in others if file.kind == kind]
    return f"; there are {_counted(here)}: save them as {form}" if here else ""


def _polygons(members: Sequence[Member]) -> str:
    found = [member for member in members if member.suffix == ".json"]
    remedy = "if they hold polygons, make masks of them first (LabelMe's labelme2voc.py does, for its own)"
    return f"; {len(found)} .json files are there, such as {found[0].name}: {remedy}" if found else ""


def _require_pairs(images: Set[str], masks: Set[str]) -> None:
    if not images & masks:
        example = f"images/{min(images)}, masks/{min(masks)}"
        raise InputError(f"no mask belongs to an image, as their names differ ({example}): {LOOKED_FOR}")


def _is_text(key: str) -> bool:
    try:
        key.encode()
        return True
    except UnicodeEncodeError:
        return False


def _subsets(
    masks: dict[str, Member | None], below_images: dict[str, _File], validation: str, seed: int
) -> tuple[dict[str, str], list[str]]:
    """Subset of each id to keep. Folders named after subsets decide; without one for validation, images are drawn."""
    named = {key: below_images[key].subset for key in masks if key in below_images}
    subsets = {key: named.get(key) or "train" for key in masks}
    tests = [key for key, subset in subsets.items() if subset == "test"]
    notes = [f"{len(tests)} images below {below_images[tests[0]].folder} are left out"] if tests else []
    loose = [key for key, subset in named.items() if not subset]
    if loose and any(named.values()):
        notes.append(f"{len(loose)} images in no folder of a subset are for training, such as {min(loose)}")
    listed = [key for key, subset in subsets.items() if subset == "validation"]
    lonely = {key for key in listed if masks[key] is None}
    if lonely:
        notes.append(f"{len(lonely)} validation images without a mask are left out, such as {min(lonely)}")
        require(set(listed) - lonely, f"no image below {below_images[min(lonely)].folder} has a mask to validate on")
    kept = {key: subset for key, subset in subsets.items() if subset != "test" and key not in lonely}
    if not listed:
        drawn, note = _draw(sorted(key for key in kept if masks[key]), validation, seed)
        return kept | dict.fromkeys(drawn, "validation"), notes + note
    if validation != DEFAULT_VALIDATION:
        notes.append(f"--validation {validation} is not used: {below_images[listed[0]].folder} holds validation images")
    return kept, notes


def _draw(labelled: list[str], validation: str, seed: int) -> tuple[set[str], list[str]]:
    """Validation ids: a list file's, or as many as asked for, drawn by hashes so that files added later move few."""
    require(labelled, "no image with a mask is left for training, as those below a folder of test images are left out")
    if Path(validation).is_file():
        what = f"--validation {validation}"
        found, absent = match_ids(read_ids(Path(validation), what), labelled, what)
        if not found:
            raise nothing_matches(absent, labelled, what)
        if absent:
            raise InputError(f"{what} lists {len(absent)} ids without image or mask: {absent[0]}")
        require(
            set(labelled).difference(found), f"{what} lists all {len(found)} labelled images: none is left to train on"
        )
        return set(found), [f"validation: {len(found)} of {len(labelled)} labelled images, those of {validation}"]
    count = _count(len(labelled), validation)
    drawn = sorted(labelled, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())[:count]
    why = "since no folder says which; --validation chooses others"
    note = f"validation: {count} of {len(labelled)} labelled images drawn, {why}"
    return set(drawn), [] if validation == "0" else [note]


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
