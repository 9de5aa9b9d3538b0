"""Anybody's images and masks: images/, masks/ and, if there are any, unlabelled/."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from u2pl_hf.constants import IMAGE_SUFFIXES
from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.prepare.layouts import About, ImageRow, Layout, unique_by
from u2pl_hf.data.prepare.masks import infer_classes
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.id_lists import match_ids, read_ids, require_match, subset_of
from u2pl_hf.errors import require

FOLDERS = {"images": "images", "masks": "masks", "unlabelled": "unlabelled", "unlabeled": "unlabelled"}
# Other names of masks/, where there is none.
MASKS = {"labels", "annotations"}
DEFAULT_VALIDATION = "0.2"
SURROGATE = re.compile("[\ud800-\udfff]")
ABOUT = About(
    title="Images and masks for semantic segmentation",
    text="Prepared from a folder of images and masks.",
    licence="Not known to the tool that wrote this card: add the licence of your images.",
)
LOOKED_FOR = "looked for files below images/ and masks/ (and unlabelled/), of the same path but for the suffix"


@dataclass(frozen=True)
class FolderFile:
    """A file below images/, masks/ or unlabelled/; `subset` is train, validation, test or "", said by `folder`."""

    key: str
    member: Member
    kind: str
    subset: str
    folder: str


def folder_layout(
    members: Sequence[Member],
    classes: ClassList | None = None,
    validation: str = DEFAULT_VALIDATION,
    seed: int = 0,
    workers: int = 1,
) -> Layout:
    """Rows of a folder; an id is the path below images/ or unlabelled/ without its suffix.

    Folders called train, val or test, below images/ or above it, are the subsets; their name is part of the ids.

    Args:
        classes: None: as the masks have them.
        validation: share, count or list file of the labelled images to validate on, where no folder is called val.
        seed: another seed draws another validation set.
        workers: threads that look through the masks for classes.

    Raises:
        InputError: nothing found, no mask belongs to an image, or a validation set that cannot be drawn.
    """
    bad: list[tuple[str, str]] = []
    files = found_files(members)
    others = [file for file in files if file.member.suffix not in IMAGE_SUFFIXES]
    of_kind = {
        kind: [f for f in files if f.kind == kind and f.member.suffix in IMAGE_SUFFIXES] for kind in FOLDERS.values()
    }
    require(of_kind["images"], f"no images found: {LOOKED_FOR}{_advice(others, 'images', 'JPEG or PNG')}")
    require(of_kind["masks"], f"no masks found: {LOOKED_FOR}{_advice(others, 'masks', 'PNG')}{_polygons(members)}")
    images = unique_by(((f.key, f.member) for f in of_kind["images"] + of_kind["unlabelled"]), "images", bad)
    masks = unique_by(((f.key, f.member) for f in of_kind["masks"]), "masks", bad)
    below_images = {file.key: file for file in of_kind["images"]}
    example = f"images/{min(below_images)}, masks/{min(masks, default='')}"
    pairs = below_images.keys() & masks.keys()
    require(pairs, f"no mask belongs to an image, as their names differ ({example}): {LOOKED_FOR}")
    unclear = {key for key, _ in bad}
    bad += [(key, "the mask has no image") for key in sorted(masks.keys() - below_images.keys() - unclear)]
    bad += [(key, "the name is not valid text") for key in sorted(images) if SURROGATE.search(key)]
    chosen = {key: masks.get(key) if key in below_images else None for key in images.keys() - {key for key, _ in bad}}
    used = [mask for _, mask in sorted(chosen.items()) if mask]
    require(used, f"no image with a mask can be used: {bad and ': '.join(bad[0])}")
    subsets, more_notes = subsets_of(chosen, below_images, validation, seed)
    classes = classes or infer_classes(used, workers)
    coding = "colours" if classes.colours else "ids"
    rows = [ImageRow(key, subsets[key], images[key], chosen[key], coding) for key in sorted(subsets)]
    notes = [f"{len(others)} files are no images and left out: {_counted(others)}"] if others else []
    if unlabelled := sum(row.mask is None for row in rows):
        notes.append(f"{unlabelled} images have no mask: they are unlabelled rows")
    return Layout("folder", rows, classes, ABOUT, bad, notes=notes + more_notes)


def found_files(members: Sequence[Member]) -> list[FolderFile]:
    """What lies below the first folder of such a name."""
    places = {member: place for member in members if (place := _place(member, FOLDERS)) is not None}
    kinds = {member: FOLDERS[member.path.parts[place].lower()] for member, place in places.items()}
    if not any(kind == "masks" and member.suffix in IMAGE_SUFFIXES for member, kind in kinds.items()):
        others = {m: place for m in members if m not in places and (place := _place(m, MASKS)) is not None}
        places, kinds = places | others, kinds | dict.fromkeys(others, "masks")
    above = {_subset(m.path.parts[: places[m]])[0] for m, kind in kinds.items() if kind == "images"}
    # A folder above all images is no subset but the name of the whole.
    return [_file(member, place, kinds[member], len(above) > 1) for member, place in places.items()]


def _file(member: Member, place: int, kind: str, has_subsets_above: bool) -> FolderFile:
    parts = member.path.parts
    inside = parts[place + 1 :]
    subset, at = _subset(inside[:-1])
    folder = parts[place : place + at + 2]
    above, at = _subset(parts[:place])
    if above and has_subsets_above:
        inside = (parts[at], *inside)
        if not subset:
            subset, folder = above, parts[at : place + 1]
    # One letter can be written in two ways; file systems differ, and image and mask must meet.
    key = unicodedata.normalize("NFC", str(PurePosixPath(*inside).with_suffix("")))
    return FolderFile(key, member, kind, subset, "/".join(folder))


def loose_file(member: Member) -> FolderFile:
    """An image that lies in no folder called images: its key is its whole path."""
    parts = member.path.parts
    subset, at = _subset(parts[:-1])
    key = unicodedata.normalize("NFC", str(member.path.with_suffix("")))
    return FolderFile(key, member, "images", subset, "/".join(parts[: at + 1]))


def _place(member: Member, names: Container[str]) -> int | None:
    return next((n for n, part in enumerate(member.path.parts[:-1]) if part.lower() in names), None)


def _subset(folders: tuple[str, ...]) -> tuple[str, int]:
    """The subset that a folder names, such as Train or val2017, and which of them; ("", -1) if none does."""
    return next(((name, n) for n, folder in enumerate(folders) if (name := subset_of(folder))), ("", -1))


def _counted(files: list[FolderFile]) -> str:
    counts = Counter(file.member.suffix or "(no suffix)" for file in files)
    return ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common(3)) + f", such as {files[0].member.name}"


def _advice(others: list[FolderFile], kind: str, form: str) -> str:
    here = [file for file in others if file.kind == kind]
    return f"; there are {_counted(here)}: save them as {form}" if here else ""


def _polygons(members: Sequence[Member]) -> str:
    found = [member for member in members if member.suffix == ".json"]
    remedy = "if they are LabelMe's or another tool's, prepare_dataset.py annotations reads them"
    return f"; {len(found)} .json files are there, such as {found[0].name}: {remedy}" if found else ""


def subsets_of(
    masks: dict[str, Member | None], below_images: dict[str, FolderFile], validation: str, seed: int
) -> tuple[dict[str, str], list[str]]:
    """Subset of each id to keep. Folders named after subsets decide; without one for validation, images are drawn."""
    named = {key: below_images[key].subset for key in masks if key in below_images}
    of_subset = {name: sorted(key for key in named if named[key] == name) for name in ("", "test", "validation")}
    loose, tests, listed = of_subset.values()
    lonely = [key for key in listed if masks[key] is None]
    kept = {key: named.get(key) or "train" for key in masks.keys() - {*tests, *lonely}}
    notes = [f"{len(tests)} images below {below_images[tests[0]].folder} are left out"] if tests else []
    if loose and any(named.values()):
        notes.append(f"{len(loose)} images in no folder of a subset are for training, such as {loose[0]}")
    if lonely:
        notes.append(f"{len(lonely)} validation images without a mask are left out, such as {lonely[0]}")
        require(set(listed) - {*lonely}, f"no image below {below_images[lonely[0]].folder} has a mask to validate on")
    if not listed:
        drawn, note = _draw(sorted(key for key in kept if masks[key]), validation, seed)
        return kept | dict.fromkeys(drawn, "validation"), notes + note
    if validation != DEFAULT_VALIDATION:
        notes.append(f"--validation {validation} is not used: {below_images[listed[0]].folder} holds validation images")
    return kept, notes


def _draw(labelled: list[str], validation: str, seed: int) -> tuple[list[str], list[str]]:
    """Validation ids: a list file's, or as many as asked for, drawn by hashes so that files added later move few."""
    require(labelled, "no image with a mask is left for training, as those below a folder of test images are left out")
    total, option = len(labelled), f"--validation {validation}"
    if Path(validation).is_file():
        found, absent = match_ids(read_ids(Path(validation), option), labelled, option)
        require_match(found, absent, labelled, option)
        require(not absent, f"{option} lists {len(absent)} ids without image or mask: {', '.join(absent[:1])}")
        require(len(found) < total, f"{option} lists all {total} labelled images: none is left to train on")
        return found, [f"validation: {len(found)} of {total} labelled images, those of {validation}"]
    if validation.isdecimal():
        count = int(validation)
    else:
        share = float(validation) if re.fullmatch(r"0?\.\d+", validation) else 0.0
        count = min(max(1, round(share * total)), total - 1) if share else total
    ways = f"a share such as 0.2, a count below {total}, a file with one id per line, or 0 for none"
    require(count < total, f"{option} does not fit {total} labelled images: pass {ways}")
    drawn = sorted(labelled, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())[:count]
    why = "since no folder says which; --validation chooses others"
    return drawn, [f"validation: {count} of {total} labelled images drawn, {why}"] if count else []
