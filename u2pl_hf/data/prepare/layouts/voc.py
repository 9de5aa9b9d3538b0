"""PASCAL VOC 2012, with the augmented labels of SBD if they are there."""

from collections.abc import Sequence, Set

from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.prepare.layouts.base import About, Layout, Row, require, unique_by
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.id_lists import match_ids, nothing_matches, parse_ids
from u2pl_hf.data.source.masks import require_scipy
from u2pl_hf.errors import InputError

NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
FINE_TRAIN = 1464
ABOUT = About(
    title="PASCAL VOC 2012 for semantic segmentation",
    text="Images of the PASCAL Visual Object Classes challenge 2012 with 21 classes. Labels are the official ones "
    "where they exist, else the augmented ones of the Semantic Boundaries Dataset (SBD).",
    licence="The images come from flickr and are subject to its terms of use; see "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ for the challenge's rules.",
    metadata={
        "license": "other",
        "license_name": "flickr-terms-of-use",
        "license_link": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    },
)


def voc_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """The palette of VOC: the bits of the class id, lowest first, are dealt in turn to the high bits of r, g and b."""

    def channel(class_id: int, first_bit: int) -> int:
        return sum((class_id >> (3 * k + first_bit) & 1) << (7 - k) for k in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def voc_layout(members: Sequence[Member]) -> Layout:
    """Rows of VOC: validation as listed; train is every other image with a label, or the train list alone.

    Raises:
        InputError: images, labels or lists are missing; SBD labels without scipy.
    """
    root = _voc_root(members)
    bad: list[tuple[str, str]] = []
    images = unique_by(((m.stem, m) for m in members if m.parts[:-2] == root and _is(m, "JPEGImages", ".jpg")),
                       "images", bad)  # fmt: skip
    labels, has_augmented = _labels(members, bad)
    require(
        labels, "no labels found: looked for SegmentationClass/*.png, SegmentationClassAug/*.png and SBD's cls/*.mat"
    )
    if any(coding == "sbd" for _, coding in labels.values()):
        require_scipy()
    usable = images.keys() & labels.keys()
    require(usable, "no image has a label of its name: JPEGImages and the label folders share no id")
    validation, val_note = _listed(members, "val.txt", images.keys(), usable)
    train_list, train_note = _listed(members, "train.txt", images.keys(), usable, is_needed=not has_augmented)
    train = usable.difference(validation) if has_augmented else usable.intersection(train_list).difference(validation)
    rows = [Row(i, "train", images[i], *labels[i]) for i in sorted(train)]
    rows += [Row(i, "validation", images[i], *labels[i]) for i in sorted(usable.intersection(validation))]
    require(train, "no image is left for training: val.txt lists all that have a label")
    both = sorted(set(validation).intersection(train_list))
    overlap = f"{len(both)} images are in train.txt and in val.txt: they are for validation" if both else ""
    is_classic = len(train_list) == FINE_TRAIN < len(train) and train.issuperset(train_list)
    return Layout(
        "voc",
        rows,
        ClassList(tuple(NAMES), voc_colours(len(NAMES))),
        ABOUT,
        bad,
        {f"voc_classic/{FINE_TRAIN}/labeled.txt": train_list} if is_classic else {},
        [note for note in (train_note, val_note, overlap) if note],
    )


def _is(member: Member, folder: str, suffix: str) -> bool:
    return len(member.parts) > 1 and member.parts[-2] == folder and member.suffix == suffix


def _voc_root(members: Sequence[Member]) -> tuple[str, ...]:
    """The folder above JPEGImages. With several years side by side, the one called VOC2012."""
    roots = {member.parts[:-2] for member in members if _is(member, "JPEGImages", ".jpg")}
    require(roots, "no images found: looked for JPEGImages/*.jpg, as in VOCtrainval_11-May-2012.tar")
    chosen = roots if len(roots) == 1 else {root for root in roots if root and root[-1] == "VOC2012"}
    if len(chosen) != 1:
        listed = ", ".join(sorted("/".join(root) for root in roots))
        raise InputError(f"several folders hold JPEGImages ({listed}): pass --root of one of them")
    return chosen.pop()


def _labels(members: Sequence[Member], bad: list[tuple[str, str]]) -> tuple[dict[str, tuple[Member, str]], bool]:
    """(mask, coding) of each id, the most trusted label first; and whether there are augmented labels."""
    kinds = [("cls", ".mat", "sbd"), ("SegmentationClassAug", ".png", "ids"), ("SegmentationClass", ".png", "ids")]
    labels: dict[str, tuple[Member, str]] = {}
    counts = []
    for folder, suffix, coding in kinds:
        found = unique_by(((m.stem, m) for m in members if _is(m, folder, suffix)), "labels", bad)
        counts.append(len(found))
        labels.update({key: (member, coding) for key, member in found.items()})
    return labels, counts[0] + counts[1] > 0


def _listed(
    members: Sequence[Member], name: str, images: Set[str], usable: set[str], is_needed: bool = True
) -> tuple[list[str], str]:
    """The images of a list, and a note if some of its lines are of no use."""
    lists = [m for m in members if m.parts[-3:] == ("ImageSets", "Segmentation", name)]
    lists = [m for m in lists if "VOC2012" in m.parts] or lists
    if len(lists) > 1:
        raise InputError(f"{name} is there {len(lists)} times ({lists[0]}; {lists[1]}): pass only one data set")
    if not lists:
        if is_needed:
            raise InputError(f"no ImageSets/Segmentation/{name} found: it says which images are for {name[:-4]}")
        return [], ""
    lines = parse_ids(lists[0].read(), str(lists[0]))
    found, missing = match_ids(lines, images, str(lists[0]))
    if is_needed and not found:
        raise nothing_matches(missing, images, str(lists[0]))
    used, listed = len(usable.intersection(found)), len(found) + len(missing)
    if is_needed and not used:
        raise InputError(f"none of the {listed} images in {lists[0]} has a label here: pass their labels as well")
    note = f"{name} lists {listed} ids, {listed - used} of them have no image or no label here"
    return found, note if used < listed else ""
