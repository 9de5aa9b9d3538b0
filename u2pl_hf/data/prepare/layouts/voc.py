"""PASCAL VOC 2012, with the augmented labels of SBD if they are there."""

from collections.abc import Sequence, Set

from u2pl_hf.constants import default_palette
from u2pl_hf.data.prepare.archives import Member, content_of
from u2pl_hf.data.prepare.layouts import About, ImageRow, Layout, unique_by
from u2pl_hf.data.prepare.masks import require_scipy
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.id_lists import match_ids, parse_ids, require_match
from u2pl_hf.errors import require

NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
CLASSES = ClassList(tuple(NAMES), tuple(map(tuple, default_palette(len(NAMES)))))
FINE_TRAIN = 1464
# (folder, suffix, coding) of labels; the more trusted come later.
LABELS = [("cls", ".mat", "sbd"), ("SegmentationClassAug", ".png", "ids"), ("SegmentationClass", ".png", "ids")]
LINK = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
ABOUT = About(
    title="PASCAL VOC 2012 for semantic segmentation",
    text="Images of the PASCAL Visual Object Classes challenge 2012 with 21 classes. Labels are the official ones "
    "where they exist, else the augmented ones of the Semantic Boundaries Dataset (SBD).",
    licence=f"The images come from flickr and are subject to its terms of use; see {LINK} for the challenge's rules.",
    metadata={"license": "other", "license_name": "flickr-terms-of-use", "license_link": LINK},
)


def voc_layout(members: Sequence[Member]) -> Layout:
    """Rows of VOC: validation as listed; train is every other image with a label, or the train list alone.

    Raises:
        InputError: images, labels or lists are missing; SBD labels without scipy.
    """
    root = _voc_root(members)
    bad: list[tuple[str, str]] = []
    images = [member for member in _in_folder(members, "JPEGImages", ".jpg") if member.path.parts[:-2] == root]
    images = unique_by(((member.path.stem, member) for member in images), "images", bad)
    labels: dict[str, tuple[Member, str]] = {}
    for folder, suffix, coding in LABELS:
        found = ((member.path.stem, member) for member in _in_folder(members, folder, suffix))
        labels |= {key: (member, coding) for key, member in unique_by(found, "labels", bad).items()}
    places = "SegmentationClass/*.png, SegmentationClassAug/*.png and SBD's cls/*.mat"
    require(labels, f"no labels found: looked for {places}")
    if any(coding == "sbd" for _, coding in labels.values()):
        require_scipy()
    usable = images.keys() & labels.keys()
    require(usable, "no image has a label of its name: JPEGImages and the label folders share no id")
    has_augmented = any(_in_folder(members, folder, suffix) for folder, suffix, _ in LABELS[:2])
    validation, val_note = _listed(members, "val.txt", images.keys(), usable)
    train_list, train_note = _listed(members, "train.txt", images.keys(), usable, is_needed=not has_augmented)
    train = (usable if has_augmented else usable.intersection(train_list)).difference(validation)
    require(train, "no image is left for training: val.txt lists all that have a label")
    subsets = {"train": sorted(train), "validation": sorted(usable.intersection(validation))}
    rows = [ImageRow(i, subset, images[i], *labels[i]) for subset, ids in subsets.items() for i in ids]
    is_classic = len(train_list) == FINE_TRAIN < len(train) and train.issuperset(train_list)
    splits = {f"voc_classic/{FINE_TRAIN}/labeled.txt": train_list} if is_classic else {}
    notes = train_note + val_note
    if both := set(validation).intersection(train_list):
        notes.append(f"{len(both)} images are in train.txt and in val.txt: they are for validation")
    return Layout("voc", rows, CLASSES, ABOUT, bad, splits, notes)


def _in_folder(members: Sequence[Member], folder: str, suffix: str) -> list[Member]:
    return [member for member in members if member.path.parent.name == folder and member.suffix == suffix]


def _voc_root(members: Sequence[Member]) -> tuple[str, ...]:
    """The folder above JPEGImages. With several years side by side, the one called VOC2012."""
    roots = {member.path.parts[:-2] for member in _in_folder(members, "JPEGImages", ".jpg")}
    require(roots, "no images found: looked for JPEGImages/*.jpg, as in VOCtrainval_11-May-2012.tar")
    chosen = roots if len(roots) == 1 else {root for root in roots if root and root[-1] == "VOC2012"}
    listed = ", ".join(sorted("/".join(root) for root in roots))
    require(len(chosen) == 1, f"several folders hold JPEGImages ({listed}): pass --root of one of them")
    return chosen.pop()


def _listed(
    members: Sequence[Member], name: str, images: Set[str], usable: set[str], is_needed: bool = True
) -> tuple[list[str], list[str]]:
    """The images of a list, and a note if some of its lines are of no use."""
    lists = [m for m in members if m.path.parts[-3:] == ("ImageSets", "Segmentation", name)]
    lists = [m for m in lists if "VOC2012" in m.path.parts] or lists
    twice = f"{name} is there {len(lists)} times ({'; '.join(map(str, lists[:2]))})"
    require(len(lists) < 2, f"{twice}: pass only one data set")
    require(lists or not is_needed, f"no ImageSets/Segmentation/{name} found: it says which images are for {name[:-4]}")
    if not lists:
        return [], []
    what = str(lists[0])
    found, missing = match_ids(parse_ids(content_of(lists[0]), what), images, what)
    used, listed = len(usable.intersection(found)), len(found) + len(missing)
    if is_needed:
        require_match(found, missing, images, what)
        require(used, f"none of the {listed} images in {what} has a label here: pass their labels as well")
    note = f"{name} lists {listed} ids, {listed - used} of them have no image or no label here"
    return found, [note] * (used < listed)
