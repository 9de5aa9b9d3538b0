"""Classes of masks that come without a class list."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm.auto import tqdm

from u2pl_hf.data.prepare.archives import Member
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.data.source.masks import IGNORE, BadMask, open_mask, stored_values
from u2pl_hf.errors import InputError

HINT = "pass --classes FILE with one line NAME,VALUE (or NAME,R,G,B) per class"
SHOWN = 12


def infer_classes(masks: Sequence[Member], workers: int) -> ClassList:
    """class_0 ... for masks that hold 0..C-1 and 255 = ignore. Masks that cannot be read are left to later.

    Raises:
        InputError: no mask holds class ids, only one class, or values with gaps between them.
    """
    with ThreadPoolExecutor(workers) as pool:
        found = list(tqdm(pool.map(_values, masks), "looking for classes", len(masks), unit="mask", leave=False))
    if all(isinstance(values, str) for values in found):
        raise InputError(f"no mask can be read: {found[0]} ({masks[0].name})")
    counts = Counter(value for values in found if not isinstance(values, str) for value in values)
    classes = sorted(value for value in counts if value != IGNORE)
    if classes != list(range(len(classes))) or len(classes) < 2:
        raise InputError(f"the masks hold {_described(counts)}: without a class list they must hold 0, 1 ... and 255 "
                         f"for pixels to ignore, with no value left out; {HINT}")  # fmt: skip
    return ClassList(tuple(f"class_{value}" for value in classes))


def _values(mask: Member) -> list[int] | str:
    try:
        return np.unique(stored_values(open_mask(mask.read())[0])).tolist()
    except BadMask as error:
        return str(error)
    except Exception as error:  # damaged files raise errors of many kinds; the row is reported when it is prepared
        return f"damaged ({error})"


def _described(counts: Counter) -> str:
    """The values, and of rare ones in how many masks they are: one stray mask is told from a whole set."""
    rare = max(counts.values()) / 10
    parts = [f"{v} (in {n} mask{'s' * (n > 1)})" if n <= rare else str(v) for v, n in sorted(counts.items())]
    only = "only " if len(parts) < 3 else ""
    return only + ", ".join(parts[:SHOWN]) + (f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")
