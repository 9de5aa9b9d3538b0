"""Which images are labelled."""

import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from u2pl_hf.errors import InputError

FORMS = "a file with one id per line, a fraction such as 1/16, a count such as 25, or 'all'"


def read_ids(path: Path) -> list[str]:
    """Ids of a list file: one per line, blank lines and surrounding white space ignored.

    Raises:
        InputError: no such file, no id in it, or an id twice.
    """
    if not path.is_file():
        raise InputError(f"split {path} is not a file; pass {FORMS}")
    try:
        ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"split {path} is not a text file; pass {FORMS}") from error
    if not ids:
        raise InputError(f"split {path} lists no image: at least one labelled image is needed")
    if len(set(ids)) < len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise InputError(f"split {path} lists '{twice}' more than once")
    return ids


def write_ids(path: Path, ids: Iterable[str]) -> None:
    """Write a list file."""
    path.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")


def resolve_split(split: str, ids: list[str], seed: int) -> tuple[list[int], list[int]]:
    """Places of the labelled and of the unlabelled images among `ids`, both in the data's order.

    Args:
        split: a list file, a fraction, a count or "all".
        ids: ids of the training subset.
        seed: fractions and counts draw from it.

    Raises:
        InputError: the split has another form, is empty, or lists ids that the data does not have.
    """
    if re.fullmatch(r"\d+/\d+|\d*\.\d+|\d+|all", split) and not Path(split).is_file():
        chosen = _draw(split, len(ids), seed)
    else:
        chosen = _listed(Path(split), ids)
    return sorted(chosen), sorted(set(range(len(ids))) - chosen)


def _draw(split: str, total: int, seed: int) -> set[int]:
    if split == "all":
        return set(range(total))
    try:
        share = Fraction(split)
    except ZeroDivisionError:
        raise InputError(f"split {split} is not a number; pass {FORMS}") from None
    is_count = split.isdigit()
    if share <= 0 or share > (total if is_count else 1):
        raise InputError(f"split {split} does not fit {total} training images: at least one, at most all are labelled")
    number = int(share) if is_count else max(1, round(share * total))
    return set(np.random.default_rng(seed).permutation(total)[:number].tolist())


def _listed(path: Path, ids: list[str]) -> set[int]:
    place = {name: index for index, name in enumerate(ids)}
    listed = read_ids(path)
    absent = [name for name in listed if name not in place]
    if absent:
        shown = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise InputError(f"split {path} lists {len(absent)} of {len(listed)} ids that the data does not have: {shown}")
    return {place[name] for name in listed}
