"""Which images are labelled."""

import difflib
import itertools
import logging
import operator
import os
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from u2pl_hf.data.source.id_lists import match_ids, read_ids, require_match
from u2pl_hf.data.source.published_splits import PINS, SPLITS, fetch_list
from u2pl_hf.errors import InputError, require

log = logging.getLogger(__name__)

LISTS = {"labelled": "labeled.txt", "unlabelled": "unlabeled.txt"}
FORMS = (
    "a file with one id or image file per line, a folder with labeled.txt and unlabeled.txt, a published split such as "
    "voc_classic/92, a fraction such as 1/16, a count such as 25, or 'all'"
)


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

    A file, a folder without unlabeled.txt and UniMatch V2's lists make all other images unlabelled; so do fractions,
    counts and "all".

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
        places = {"labelled": _draw(split, ids, with_label, seed, class_presence)}
    else:
        places = _places(split, ids, _lists(split, splits_dir, dataset_dir), drop_absent)
        bare = [ids[place] for place in sorted(places["labelled"].difference(with_label.tolist()))]
        require(not bare, f"split {split} labels '{''.join(bare[:1])}', which has no label")
    return sorted(places["labelled"]), sorted(places.get("unlabelled", {*range(len(ids))} - places["labelled"]))


def _draw(
    split: str, ids: list[str], rows: np.ndarray, seed: int, class_presence: Callable[[], np.ndarray] | None
) -> set[int]:
    number, rng = _number(split, len(rows)), np.random.default_rng(seed)
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
    require(total, f"split {split} needs images with labels, and no training image has one")
    if split == "all":
        return total
    share = 0 if re.search("/0+$", split) else Fraction(split)
    count = int(share) if split.isdigit() else max(1, round(share * total)) if 0 < share <= 1 else 0
    rule = f"does not fit {total} training images with labels: at least one, at most all are labelled"
    require(0 < count <= total, f"split {split} {rule}; pass {FORMS}")
    return count


def _lists(
    split: str, splits_dir: str | os.PathLike | None, dataset_dir: str | os.PathLike | None
) -> dict[str, list[str]]:
    """Lines of the list of labelled images, and of that of unlabelled ones where it is not all the others."""
    path = Path(split)
    for folder in (path, Path(dataset_dir, "splits", split)) if dataset_dir else (path,):
        if (folder / LISTS["labelled"]).is_file():
            log.info("split %s: lists in %s", split, folder)
            files = {kind: folder / name for kind, name in LISTS.items()}
            return {kind: read_ids(file) for kind, file in files.items() if file.is_file()}
    if path.is_file():
        return {"labelled": read_ids(path)}
    if split in SPLITS:
        paths = {kind: f"{SPLITS[split]}/{name}" for kind, name in LISTS.items()}
        pinned = {kind: path for kind, path in paths.items() if path in PINS}
        return {kind: read_ids(fetch_list(path, splits_dir=splits_dir)) for kind, path in pinned.items()}
    near = [f"did you mean {name}? " for name in difflib.get_close_matches(split, SPLITS, n=1)]
    is_name = re.fullmatch(r"[A-Za-z][\w-]*/(1_)?\d+", split) and not path.exists()
    families = itertools.groupby((name.split("/") for name in SPLITS), operator.itemgetter(0))
    listed = ", ".join(f"{family}/{', '.join(number for _, number in group)}" for family, group in families)
    published = f"{''.join(near)}Published ones are {listed}; or pass {FORMS}"
    raise InputError(f"no split {split}: {published}" if is_name else f"split {split} is not a file; pass {FORMS}")


def _places(split: str, ids: list[str], lists: dict[str, list[str]], drop_absent: bool) -> dict[str, set[int]]:
    """Places of the listed images; absent ones are an error, or left out."""
    place = {name: index for index, name in enumerate(ids)}
    places, absent, counts = {}, [], []
    for kind, lines in lists.items():
        found, missing = match_ids(lines, ids, f"split {split}")
        if kind == "labelled" or not drop_absent:
            require_match(found, missing, ids, f"split {split}", f"{kind} ")
        places[kind] = {place[name] for name in found}
        absent += missing
        counts.append(f"{len(missing)} of {len(found) + len(missing)} {kind}")
    names = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
    told = f"listed ids that the data does not have, {' and '.join(counts)}: {names}"
    require(drop_absent or not absent, f"split {split}: {told}; --drop_absent_ids uses those that are there")
    if absent:
        log.warning("split %s: dropped %s", split, told)
    if both := places["labelled"] & places.get("unlabelled", set()):
        shown = f"such as {ids[min(both)]}: they are used in both ways"
        log.warning("split %s: %d images are in both of its lists, %s", split, len(both), shown)
    return places


def parts_of(presence: np.ndarray, number: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of `number` parts that differ by one image at most, each with its share of every class.

    Args:
        presence: bool (N, C), which class occurs in which image.
        number: 1 .. N.
        rng: draws among equals.
    """
    left, parts = np.arange(len(presence)), []
    for part in range(number, 0, -1):
        drawn = stratified_draw(presence[left], len(left) // part, rng)
        parts.append(left[drawn])
        left = np.delete(left, drawn)
    return parts


def stratified_draw(presence: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `number` images, by iterative stratification (Sechidis et al., 2011) into drawn and left-out ones.

    Each side wants its share of every class. The class with the fewest images not yet placed comes first, for it has
    the least choice, and each of its images goes to the side that wants more of that class. Two rules are added: the
    sides have exact sizes, and all classes that are wanted in half a drawn image or more are drawn at least once;
    where these are more than `number`, the `number` most frequent of them.

    Args:
        presence: bool (N, C), which class occurs in which image.
        number: 1 .. N.
        rng: draws among equals.
    """
    total = len(presence)
    remaining = presence.sum(0)
    room = np.array([total - number, number])
    wanted = np.outer(room, remaining) / total
    frequency_rank = np.argsort(np.argsort(-remaining, kind="stable"))
    due = (wanted[1] >= 0.5) & (frequency_rank < number)
    side = np.full(total, -1)
    while (side < 0).any():
        rows, wish = np.flatnonzero(side < 0), room
        if remaining.any():
            rarest = np.argmin(np.where(remaining > 0, remaining, total + 1))
            rows, wish = rows[presence[rows, rarest]], wanted[:, rarest]
        for row in rng.permutation(rows):
            side[row] = _side(presence[row], remaining, due, room, wish, rng)
            room[side[row]] -= 1
            wanted[side[row]] -= presence[row]
            remaining = remaining - presence[row]
            if side[row] == 1:
                due = due & ~presence[row]
    return np.flatnonzero(side == 1)


def _side(shown: np.ndarray, remaining: np.ndarray, due: np.ndarray, room: np.ndarray, wish: np.ndarray, rng) -> int:
    """The side an image goes to, 1 for drawn, 0 for left out.

    Never more classes are due than images can still be drawn, and each has an image to draw; both stay true. Where this
    leaves a choice, the greater wish decides, then more room, then a draw.
    """
    if not room.all():
        return room[1] > 0
    if (due & shown & (remaining == 1)).any():
        return 1
    if due.sum() == room[1] and not (due & shown).any():
        return 0
    left, drawn = zip(wish, room, strict=True)
    return drawn > left if drawn != left else rng.integers(2)
