"""What lies where in known data sets: files → rows to prepare. Here is what every layout gives."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.prepare.class_mapping import ClassMapping
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import require

SUBSETS = ("train", "validation")


@dataclass(frozen=True)
class ImageRow:
    """One image to prepare.

    Attributes:
        id: unique in the data set.
        subset: train or validation.
        mask: None for an unlabelled image; of the layout of annotation tools a `Drawing`.
        coding: how the mask holds classes, see `masks.decode_mask`; drawn: it is a `Drawing`.
        segments: of a panoptic mask, the class id of each segment.
    """

    id: str
    subset: str
    image: Member
    mask: Member | None
    coding: str = "ids"
    segments: Mapping[int, int] | None = None


@dataclass(frozen=True)
class About:
    """What the dataset card says of the origin.

    Attributes:
        title: heading.
        text: one paragraph.
        licence: one paragraph.
        metadata: licence fields of the card's front matter.
    """

    title: str
    text: str
    licence: str
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A data set, found but not yet read.

    Attributes:
        name: of the layout: voc, folder ...
        bad: (id, reason) of what cannot be used and is in no row.
        splits: lists of labelled ids by their path below `splits/`.
        notes: what the user should know of files that were listed or found but are not used.
        mapping: what becomes of `classes`, which are those of the masks; None: they stay.
        longest_side: what larger images, and their masks with them, are shrunk to; None: they stay.
    """

    name: str
    rows: list[ImageRow]
    classes: ClassList
    about: About
    bad: list[tuple[str, str]] = field(default_factory=list)
    splits: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mapping: ClassMapping | None = None
    longest_side: int | None = None

    @property
    def final_classes(self) -> ClassList:
        """The classes of the labels that are written."""
        return self.mapping.classes if self.mapping else self.classes


def unique_by(keyed: Iterable[tuple[str, Member]], what: str, bad: list[tuple[str, str]]) -> dict[str, Member]:
    """Members by id. An id with several files is unclear: it goes to `bad`, with all of its files."""
    groups: dict[str, list[Member]] = {}
    for key, member in keyed:
        groups.setdefault(key, []).append(member)
    for key, group in groups.items():
        if len(group) > 1:
            names = " and ".join(sorted(member.name for member in group)[:2])
            bad.append((key, f"the id is there {len(group)} times: {what} {names}"))
    return {key: group[0] for key, group in groups.items() if len(group) == 1}


def paired(
    images: Mapping[str, Member],
    masks: Mapping[str, tuple],
    subset: Callable[[Member], str],
    bad: list[tuple[str, str]],
) -> tuple[list[ImageRow], list[str]]:
    """Rows of images and of the masks of their ids, and notes; training images without a mask are unlabelled.

    Args:
        images, masks: by id; of a mask (member, coding ...), the last fields of its row.
        subset: of an image.
        bad: its ids are in no row; gets validation images without mask, and masks without image.

    Raises:
        InputError: no image has a mask.
    """
    require(images.keys() & masks.keys(), "no image has a label of its name: images and labels share no id")
    unclear = {key for key, _ in bad}
    keys = sorted(images.keys() - unclear)
    rows = [ImageRow(key, subset(images[key]), images[key], *masks.get(key, (None,))) for key in keys]
    bad += [(row.id, "the validation image has no label") for row in rows if not row.mask and row.subset != "train"]
    bad += [(key, "the mask has no image") for key in sorted(masks.keys() - images.keys() - unclear)]
    rows = [row for row in rows if row.mask or row.subset == "train"]
    unlabelled = sum(row.mask is None for row in rows)
    return rows, [f"{unlabelled} train images have no label: they are unlabelled rows"] * bool(unlabelled)
