"""COCO 2017 with 81 classes: the 80 kinds of things, and the background."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from u2pl_hf.constants import IGNORE, default_palette
from u2pl_hf.data.prepare.archives import DAMAGED, Member, list_nested
from u2pl_hf.data.prepare.layouts import About, Layout, paired, unique_by
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.id_lists import subset_of
from u2pl_hf.errors import InputError, refusing, require

# Of masks that come without a JSON file.
NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
]  # fmt: skip
PANOPTIC = ("panoptic_train2017", "panoptic_val2017")
MASKS = "masks/*.png, and for annotations/panoptic_{train,val}2017.json as in panoptic_annotations_trainval2017.zip"
LINK = "https://cocodataset.org/#termsofuse"
ABOUT = About(
    title="COCO 2017 for semantic segmentation",
    text="Images of COCO 2017 with its kinds of things as classes, and all else as background.",
    licence="The annotations are under the Creative Commons Attribution 4.0 licence; the images come from flickr and "
    f"are subject to its terms of use, see {LINK}.",
    metadata={"license": "other", "license_name": "coco-terms-of-use", "license_link": LINK},
)


def coco_layout(members: Sequence[Member], masks: Sequence[Member] | None = None) -> Layout:
    """Rows of COCO: train2017 and val2017; ids such as 000000177254. Panoptic annotations are made class ids.

    Args:
        masks: files among which PNGs are masks of class ids, whatever their folders are called.

    Raises:
        InputError: images or labels are missing, both kinds of labels are there, or a JSON file is damaged.
    """
    bad: list[tuple[str, str]] = []
    photographs = [member for member in members if member.suffix == ".jpg"]
    used = [member for member in photographs if _subset(member) in ("train", "validation")]
    images = unique_by(((member.path.stem, member) for member in used), "images", bad)
    require(images, "no images found: looked for train2017/*.jpg and val2017/*.jpg")
    drawn = _in_folder(members, "masks") if masks is None else [member for member in masks if member.suffix == ".png"]
    annotations = [member for member in members if member.suffix == ".json" and member.path.stem in PANOPTIC]
    require(drawn or annotations, f"no labels found: looked for {MASKS if masks is None else 'PNGs in --masks'}")
    both = f"masks and panoptic annotations are both there ({', '.join(map(str, drawn[:1] + annotations[:1]))})"
    require(not (drawn and annotations), f"{both}: pass one of them")
    parts = [_panoptic(annotation, members, bad) for annotation in annotations]
    found = unique_by(((member.path.stem, member) for member in drawn), "labels", bad)
    parts = parts or [(NAMES, {key: (mask, "ids") for key, mask in found.items()})]
    names, labels = parts[0][0], {key: label for _, part in parts for key, label in part.items()}
    require(all(own == names for own, _ in parts), f"{' and '.join(map(str, annotations))} name other things")
    rows, notes = paired(images, labels, _subset, bad)
    others = len(photographs) - len(used)
    notes += [f"{others} images outside train2017 and val2017 are left out"] * bool(others)
    classes = ClassList(("background", *names), tuple(map(tuple, default_palette(len(names) + 1))))
    return Layout("coco", rows, classes, ABOUT, bad, notes=notes)


def _subset(member: Member) -> str:
    return subset_of(member.path.parent.name)


def _panoptic(
    annotation: Member, members: Sequence[Member], bad: list[tuple[str, str]]
) -> tuple[list[str], dict[str, tuple]]:
    """Names of the things, and (mask, coding, segments) by id, of one JSON file; its PNGs may still lie in a zip."""
    stem = annotation.path.stem
    pngs = _in_folder(members, stem)
    if not pngs:
        zips = [member for member in members if member.path.name == f"{stem}.zip"]
        pngs = _in_folder([member for archive in zips[:1] for member in list_nested(archive)], stem)
    require(pngs, f"no labels found of {annotation}: looked for {stem}/*.png and {stem}.zip")
    names, segments = _read_panoptic(annotation)
    masks = unique_by(((member.path.stem, member) for member in pngs), "labels", bad)
    bad += [(key, f"{annotation} names no such image") for key in sorted(masks.keys() - segments.keys())]
    lonely = sorted(segments.keys() - masks.keys() - {key for key, _ in bad})
    bad += [(key, f"{annotation} names it, but there is no {stem}/{key}.png") for key in lonely]
    return names, {key: (masks[key], "panoptic", segments[key]) for key in masks.keys() & segments.keys()}


def _in_folder(members: Sequence[Member], folder: str) -> list[Member]:
    return [member for member in members if member.suffix == ".png" and member.path.parent.name == folder]


def _read_panoptic(annotation: Member) -> tuple[list[str], dict[str, Mapping[int, int]]]:
    """Names of the things by rising category id, and of each image's segments the class id.

    Stuff is background. Crowds, which are drawn roughly around many things, and pixels of no segment (0) are ignored.
    """
    kinds = (ValueError, LookupError, TypeError, AttributeError, *DAMAGED)
    with refusing(kinds, f"{annotation} is no panoptic JSON file of COCO"):
        content = json.loads(annotation.read(), object_hook=_slim)
        things = sorted((c["id"], c["name"]) for c in content["categories"] if c["isthing"])
        class_ids = {c["id"]: 0 for c in content["categories"]} | {i: n for n, (i, _) in enumerate(things, 1)}
        images = {}
        for file, segments in content["annotations"]:
            for category in {category for _, category, _ in segments} - class_ids.keys():
                told = f"{annotation}: {file} has a segment of category {category}, which the file does not name"
                raise InputError(told)
            known = {segment: IGNORE if is_crowd else class_ids[category] for segment, category, is_crowd in segments}
            images[PurePosixPath(file).stem] = {0: IGNORE} | known
    return [name for _, name in things], images


def _slim(entry: dict):
    """What is needed of one object of the JSON file: kept whole, hundreds of megabytes would become gigabytes."""
    if "segments_info" in entry:
        return entry["file_name"], entry["segments_info"]
    if "category_id" in entry:
        return entry["id"], entry["category_id"], entry["iscrowd"]
    return entry if "isthing" in entry or "annotations" in entry else None
