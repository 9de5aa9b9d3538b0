"""ADE20K with the 150 classes of the scene parsing challenge of 2016."""

import re
from collections.abc import Sequence

from u2pl_hf.constants import default_palette
from u2pl_hf.data.prepare.archives import Member, content_of
from u2pl_hf.data.prepare.layouts import About, Layout, paired, unique_by
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.id_lists import parse_ids, subset_of
from u2pl_hf.errors import require

NUM_CLASSES = 150
CLASS_FILE = "objectInfo150.txt"
ARCHIVE = "as in ADEChallengeData2016.zip"
LINK = "http://groups.csail.mit.edu/vision/datasets/ADE20K/terms/"
ABOUT = About(
    title="ADE20K for semantic segmentation",
    text="Scenes of ADE20K with the 150 classes of the MIT scene parsing challenge; all else is ignored.",
    licence=f"ADE20K is for research and education that are not commercial, under the terms at {LINK}.",
    metadata={"license": "other", "license_name": "ade20k", "license_link": LINK},
)


def ade20k_layout(members: Sequence[Member]) -> Layout:
    """Rows of ADE20K: training and validation; ids such as ADE_train_00001609.

    Raises:
        InputError: images, annotations or the list of classes are missing.
    """
    bad: list[tuple[str, str]] = []
    images, masks = (
        unique_by(((m.path.stem, m) for m in _below(members, folder, suffix)), what, bad)
        for folder, suffix, what in (("images", ".jpg", "images"), ("annotations", ".png", "labels"))
    )
    require(images, f"no images found: looked for images/{{training,validation}}/*.jpg, {ARCHIVE}")
    require(masks, f"no labels found: looked for annotations/{{training,validation}}/*.png, {ARCHIVE}")
    names = _class_names(members)
    labels = {key: (mask, "ade20k") for key, mask in masks.items()}
    rows, notes = paired(images, labels, _subset, bad)
    classes = ClassList(names, tuple(map(tuple, default_palette(NUM_CLASSES))))
    return Layout("ade20k", rows, classes, ABOUT, bad, notes=notes)


def _below(members: Sequence[Member], folder: str, suffix: str) -> list[Member]:
    found = [member for member in members if member.suffix == suffix and member.path.parent.parent.name == folder]
    return [member for member in found if _subset(member) in ("train", "validation")]


def _subset(member: Member) -> str:
    return subset_of(member.path.parent.name)


def _class_names(members: Sequence[Member]) -> tuple[str, ...]:
    """The first name of each class."""
    found = [member for member in members if member.path.name == CLASS_FILE]
    there = f"{CLASS_FILE}, which names the classes, is there {len(found)} times"
    require(len(found) == 1, f"{there}: pass it once, {ARCHIVE}")
    rows = [re.split(r"\s*\t\s*", line) for line in parse_ids(content_of(found[0]), str(found[0]))]
    rows = [row for row in rows if row[0].isdecimal() and len(row) > 1]
    names = tuple(row[-1].partition(",")[0].strip() for row in rows)
    is_whole = [int(row[0]) for row in rows] == list(range(1, NUM_CLASSES + 1))
    rule = f"the classes 1 to {NUM_CLASSES}, one per line: columns split by tabs, the number first, the name last"
    told = f"{found[0]} does not hold {rule}; take it from ADEChallengeData2016.zip"
    require(is_whole and len({*names} - {""}) == NUM_CLASSES, told)
    return names
