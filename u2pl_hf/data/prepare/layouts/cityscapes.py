"""Cityscapes with fine labels."""

from collections.abc import Sequence

from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.prepare.layouts import About, Layout, paired, unique_by
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import require

COLOURS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
CLASSES = ClassList(tuple(COLOURS), tuple(COLOURS.values()))
SUBSETS = {"train": "train", "val": "validation"}
IMAGE = "_leftImg8bit.png"
TRAIN_IDS = "_gtFine_labelTrainIds.png"
LABEL_IDS = "_gtFine_labelIds.png"
LINK = "https://www.cityscapes-dataset.com/license/"
ABOUT = About(
    title="Cityscapes for semantic segmentation",
    text="Street scenes of the Cityscapes data set with fine labels, mapped to the 19 classes of the benchmark.",
    licence=f"Cityscapes may be used for research under the terms at {LINK}. "
    "They forbid redistribution: keep this folder to yourself, and publish lists and weights instead.",
    metadata={"license": "other", "license_name": "cityscapes", "license_link": LINK},
)


def cityscapes_layout(members: Sequence[Member]) -> Layout:
    """Rows of Cityscapes: train and val; ids such as aachen_000000_000019. Train ids are taken as they are if stored.

    Raises:
        InputError: images or labels are missing.
    """
    bad: list[tuple[str, str]] = []
    images, masks, train_ids = (
        unique_by(((m.path.name[: -len(ending)], m) for m in _ending(members, ending) if _subset(m)), what, bad)
        for ending, what in ((IMAGE, "images"), (LABEL_IDS, "labels"), (TRAIN_IDS, "labels"))
    )
    require(images, f"no images found: looked for leftImg8bit/{{train,val}}/CITY/*{IMAGE}")
    require(masks | train_ids, f"no labels found: looked for gtFine/{{train,val}}/CITY/*{LABEL_IDS} or *{TRAIN_IDS}")
    labels = {key: (mask, "cityscapes") for key, mask in masks.items()}
    labels |= {key: (mask, "ids") for key, mask in train_ids.items()}
    rows, notes = paired(images, labels, _subset, bad)
    others = [member for member in _ending(members, IMAGE) if not _subset(member)]
    notes = [f"{len(others)} images outside train and val are left out"] * bool(others) + notes
    return Layout("cityscapes", rows, CLASSES, ABOUT, bad, notes=notes)


def _ending(members: Sequence[Member], ending: str) -> list[Member]:
    return [member for member in members if member.path.name.endswith(ending)]


def _subset(member: Member) -> str | None:
    """Of a file in SUBSET/CITY; None in other folders."""
    return SUBSETS.get(member.path.parent.parent.name)
