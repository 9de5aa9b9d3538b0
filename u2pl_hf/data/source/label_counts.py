"""Which classes the labels of a run hold, and which of them are frequent."""

import logging

import numpy as np

from u2pl_hf.errors import InputError

logger = logging.getLogger(__name__)


def check_classes(counts: np.ndarray, names: list[str], *, what: str, at_least: int) -> None:
    """Tell which classes have no pixel in the `what` images; counts (rows,C) are pixels of each class.

    Raises:
        InputError: fewer than `at_least` classes have one.
    """
    there = counts.any(axis=0)
    absent = ", ".join(name for name, is_there in zip(names, there, strict=True) if not is_there)
    if there.sum() < at_least:
        found = f"of {', '.join(np.array(names)[there])} alone" if there.any() else "of no class (all are 255, ignored)"
        raise InputError(
            f"the {len(counts)} {what} images have pixels {found}, and {at_least} or more classes are needed: mend the "
            "masks, or what the class list says of their values, and prepare the data again"
        )
    if absent:
        logger.warning("%d of %d classes have no pixel in the %s images: %s", (~there).sum(), len(names), what, absent)


def frequent_classes(counts: np.ndarray) -> list[int]:
    """The classes whose share of all counted pixels is more than 1/C: counts (rows,C)."""
    total = counts.sum(axis=0)
    return np.flatnonzero(total * len(total) > total.sum()).tolist()
