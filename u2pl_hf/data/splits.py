"""Which images of a data set are labelled."""

import math
import os
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from u2pl_hf.errors import InputError

FORMS = "a file of ids, a fraction (1/16 or 0.0625), a number of images (25) or 'all'"
NAMED_IDS = 3


def read_ids(path: str | os.PathLike) -> list[str]:
    """Ids of a list, one a line; blank lines, a byte order mark and Windows line ends are ignored.

    Raises InputError if the file is missing, not text, or names an id twice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file; pass {FORMS}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8; pass a list of ids, one a line") from error
    ids = [line.strip() for line in lines if line.strip()]
    repeated = sorted({image_id for image_id in ids if ids.count(image_id) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        raise InputError(f"{path}: listed more than once: {_few(repeated)}; remove the repeats")
    return ids


def write_ids(path: str | os.PathLike, ids: Iterable[str]) -> None:
    """Write a list that `read_ids` reads, one id a line."""
    Path(path).write_text("".join(f"{image_id}\n" for image_id in ids), encoding="utf-8", newline="\n")


def resolve_split(split: str, ids: list[str], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the labelled and of the unlabelled images among `ids`, both in the order of `ids`.

    `split` is a file of labelled ids, a fraction in (0, 1] such as "1/16" or "0.0625", a whole number of labelled
    images such as "25", or "all". Fractions round up, as in the published lists; fractions and numbers draw with
    `seed`. Raises InputError if that leaves no labelled image or names ids that are not there.
    """
    count = _count(split.strip(), len(ids))
    if count is None:
        labelled = _listed(split, ids)
    else:
        labelled = np.random.default_rng(seed).permutation(len(ids))[:count].tolist()
    chosen = set(labelled)
    return sorted(chosen), [index for index in range(len(ids)) if index not in chosen]


def _count(split: str, total: int) -> int | None:
    """Number of labelled images, or None if the split is a file."""
    if split == "all":
        return total
    if re.fullmatch(r"\d+", split):
        count = int(split)
        if not 1 <= count <= total:
            raise InputError(f"split {split}: the number of labelled images must be in 1..{total}")
        return count
    if re.fullmatch(r"-?(\d+/\d+|\d*\.\d+)", split):
        # Fraction is exact: 0.07 * 100 in floats is slightly above 7, and would round up to 8.
        fraction = Fraction(split) if not re.search(r"/0+$", split) else Fraction(0)
        if not 0 < fraction <= 1:
            raise InputError(f"split {split}: a fraction must be above 0 and at most 1, for example 1/16")
        return math.ceil(fraction * total)
    return None


def _listed(split: str, ids: list[str]) -> list[int]:
    if not Path(split).expanduser().is_file():
        raise InputError(f"split {split!r}: no such file; pass {FORMS}")
    listed = read_ids(split)
    if not listed:
        raise InputError(f"split {split!r}: the file lists no ids; at least one labelled image is needed")
    place = {image_id: index for index, image_id in enumerate(ids)}
    absent = [image_id for image_id in listed if image_id not in place]
    if absent:
        raise InputError(
            f"split {split!r}: {len(absent)} of {len(listed)} listed ids are not in the data: {_few(absent)}; "
            "remove them or pass the data set that the list belongs to"
        )
    return [place[image_id] for image_id in listed]


def _few(ids: list[str]) -> str:
    return ", ".join(map(repr, ids[:NAMED_IDS])) + (", ..." if len(ids) > NAMED_IDS else "")
