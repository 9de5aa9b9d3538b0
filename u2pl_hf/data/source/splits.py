"""Which images are labelled."""

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from u2pl_hf.data.source.id_lists import match_ids, nothing_matches, read_ids
from u2pl_hf.data.source.published_splits import SPLITS, published_ids
from u2pl_hf.data.source.stratify import stratified_draw
from u2pl_hf.errors import InputError

log = logging.getLogger(__name__)

LABELLED, UNLABELLED = "labeled.txt", "unlabeled.txt"
FORMS = (
    "a file with one id or image file per line, a folder with labeled.txt and unlabeled.txt, a published split such as "
    "voc_classic/92, a fraction such as 1/16, a count such as 25, or 'all'"
)


def write_ids(path: Path, ids: Iterable[str]) -> None:
    """Write a list file."""
    path.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")


def resolve_split(
    split: str,
    ids: list[str],
    seed: int,
    *,
    has_label: Sequence[bool] | None = None,
    class_presence: Callable[[], np.ndarray] | None = None,
    drop_absent: bool = False,
    splits_dir: str | os.PathLike | None = None,
    dataset_dir: str | os.PathLike | None = None,
) -> tuple[list[int], list[int]]:
    """Places of the labelled and of the unlabelled images among `ids`, both in the data's order.

    A file, or a folder without unlabeled.txt, makes all other images unlabelled; so do fractions, counts and "all".

    Args:
        split: a list file, a folder of lists, a published name, a fraction, a count or "all".
        ids: ids of the training subset.
        seed: fractions and counts draw from it.
        has_label: for each id, whether the image has a label (default: all). The others are unlabelled in any split;
            fractions, counts and "all" refer to the images that have one.
        class_presence: gives bool (len(ids), C), which class occurs in which image; called for fractions and counts
            only, which are then stratified, and depend on the ids but not on their order. Without it the draw is
            uniform over places.
        drop_absent: use what is there of lists with ids that the data does not have.
        splits_dir: folder with the published lists, see `fetch_list`.
        dataset_dir: folder of the data; lists in its splits/<split> are preferred to the published ones.

    Raises:
        InputError: the split has another form, is empty, lists ids that the data does not have, or labels an image
            without label.
    """
    with_label = np.flatnonzero(np.ones(len(ids), bool) if has_label is None else np.asarray(has_label, bool))
    if re.fullmatch(r"\d+/\d+|\d*\.\d+|\d+|all", split) and not os.path.isfile(split):
        chosen, others = _draw(split, ids, with_label, seed, class_presence), None
    else:
        chosen, others = _places(split, ids, *_lists(split, splits_dir, dataset_dir), drop_absent)
        if bare := chosen - set(with_label.tolist()):
            raise InputError(f"split {split} labels '{ids[min(bare)]}', which has no label")
    others = set(range(len(ids))) - chosen if others is None else others
    return sorted(chosen), sorted(others)


def _draw(
    split: str, ids: list[str], rows: np.ndarray, seed: int, class_presence: Callable[[], np.ndarray] | None
) -> set[int]:
    number = _number(split, len(rows))
    rng = np.random.default_rng(seed)
    if class_presence is None or number == len(rows):
        return set(rows[rng.permutation(len(rows))[:number]].tolist())
    rows = np.array(sorted(rows, key=ids.__getitem__))
    presence = np.asarray(class_presence(), bool)[rows]
    drawn = stratified_draw(presence, number, rng)
    missing = np.flatnonzero(presence.any(0) & ~presence[drawn].any(0))
    if len(missing):
        log.warning("split %s: no labelled image shows class %s", split, ", ".join(map(str, missing)))
    return set(rows[drawn].tolist())


def _number(split: str, total: int) -> int:
    """How many of `total` images a fraction, a count or "all" labels."""
    if total == 0:
        raise InputError(f"split {split} needs images with labels, and no training image has one")
    if split == "all":
        return total
    try:
        share = Fraction(split)
    except ZeroDivisionError:
        raise InputError(f"split {split} is not a number; pass {FORMS}") from None
    is_count = split.isdigit()
    if share <= 0 or share > (total if is_count else 1):
        raise InputError(
            f"split {split} does not fit {total} training images with labels: at least one, at most all are labelled"
        )
    return int(share) if is_count else max(1, round(share * total))


def _lists(
    split: str, splits_dir: str | os.PathLike | None, dataset_dir: str | os.PathLike | None
) -> tuple[list[str], list[str] | None]:
    """Listed ids; None for unlabelled ones that are all the others."""
    folders = [Path(split)] + ([Path(dataset_dir, "splits", split)] if dataset_dir else [])
    for folder in folders:
        if (folder / LABELLED).is_file():
            log.info("split %s: lists in %s", split, folder)
            files = [file for file in (folder / LABELLED, folder / UNLABELLED) if file.is_file()]
            labelled, *unlabelled = (read_ids(file) for file in files)
            return labelled, unlabelled[0] if unlabelled else None
    if split in SPLITS and not os.path.isfile(split):
        labelled, unlabelled = (
            published_ids(f"{SPLITS[split]}/{name}", splits_dir=splits_dir) for name in (LABELLED, UNLABELLED)
        )
        return labelled, unlabelled
    if re.fullmatch(r"[A-Za-z][\w-]*/\d+", split) and not Path(split).exists():
        near = difflib.get_close_matches(split, SPLITS, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no split {split}: {guess}Published ones are {', '.join(SPLITS)}; or pass {FORMS}")
    if not os.path.isfile(split):
        raise InputError(f"split {split} is not a file; pass {FORMS}")
    return read_ids(Path(split)), None


def _places(
    split: str, ids: list[str], labelled: list[str], unlabelled: list[str] | None, drop_absent: bool
) -> tuple[set[int], set[int] | None]:
    """Places of the listed images; absent ones are an error, or left out."""
    place = {name: index for index, name in enumerate(ids)}
    lists = {"labelled": labelled} if unlabelled is None else {"labelled": labelled, "unlabelled": unlabelled}
    places, absent = {}, {}
    for kind, lines in lists.items():
        found, absent[kind] = match_ids(lines, ids, f"split {split}")
        if not found and (kind == "labelled" or not drop_absent):
            raise nothing_matches(absent[kind], ids, f"split {split}", f"{kind} ")
        places[kind] = {place[name] for name in found}
        lists[kind] = found + absent[kind]  # without a header
    if any(absent.values()):
        _report_absent(split, lists, absent, drop_absent)
    if both := places["labelled"] & places.get("unlabelled", set()):
        shown = f"such as {ids[min(both)]}: they are used in both ways"
        log.warning("split %s: %d images are in both of its lists, %s", split, len(both), shown)
    return places["labelled"], places.get("unlabelled")


def _report_absent(split: str, lists: dict[str, list[str]], absent: dict[str, list[str]], drop: bool) -> None:
    counts = " and ".join(f"{len(absent[kind])} of {len(lists[kind])} {kind}" for kind in lists)
    names = [i for kind in lists for i in absent[kind]]
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    if not drop:
        raise InputError(
            f"split {split} lists ids that the data does not have, {counts}: {shown}; "
            "--drop_absent_ids uses those that are there"
        )
    log.warning("split %s: dropped listed ids that the data does not have, %s: %s", split, counts, shown)
