"""Images that look alike: shrunk, compressed again, renamed. A difference hash of each, and the pairs that are near.

The hash says of 9x8 grey pixels whether each is darker than the next in its row: 64 signs.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from u2pl_hf.data.source.decode import decode_image, open_stored
from u2pl_hf.data.source.rows import CONNECTIONS
from u2pl_hf.data.sources import Source
from u2pl_hf.errors import InputError

NEAR = 4
# Of what is decoded for a hash: so many more than its 9x8 pixels that it matters little who shrinks the rest.
DECODED_SIDE = 128
# Pairs that are compared at a time.
BLOCK = 2**22


class Looks(NamedTuple):
    """What one look at images finds.

    Attributes:
        ids: of those that can be read.
        sizes: int (n,2), their height and width as stored.
        hashes: int8 (n,64), see `difference_hash`.
        brightness: float (n,), mean grey value, 0 to 255.
        faults: for each of the others, what training would say.
    """

    ids: list[str]
    sizes: np.ndarray
    hashes: np.ndarray
    brightness: np.ndarray
    faults: list[str]


def difference_hash(grey: Image.Image) -> np.ndarray:
    """int8 (64,) of 1 and -1 for a grey image of any size: is a pixel darker than the next?"""
    small = grey.resize((9, 8), Image.Resampling.LANCZOS)
    return np.where(np.diff(np.asarray(small, int)) > 0, 1, -1).astype(np.int8).ravel()


def look_at(source: Source, rows: Sequence[int], told: Callable[[int], object]) -> Looks:
    """Read images once, several at a time; none is kept. `told` is called with a number of images that are done."""

    def look(row: int, cell: dict) -> tuple | str:
        try:
            size = open_stored(cell, f"image of {source.ids[row]}").size[::-1]
            grey = Image.fromarray(decode_image(cell, source.ids[row], DECODED_SIDE)).convert("L")
            return size, difference_hash(grey), np.asarray(grey).mean()
        except InputError as error:
            return str(error)

    def look_at_block(block: np.ndarray) -> dict[int, tuple | str]:
        return {row: look(row, cell) for row, cell in source.rows.read(block, "image").items()}

    found = {}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for part in pool.map(look_at_block, source.rows.blocks(np.asarray(rows, int)) if len(rows) else []):
            found |= part
            told(len(part))
    good = [row for row in rows if not isinstance(found[row], str)]
    sizes = np.array([found[row][0] for row in good], int).reshape(-1, 2)
    hashes = np.array([found[row][1] for row in good], np.int8).reshape(-1, 64)
    brightness = np.array([found[row][2] for row in good], float)
    faults = [fault for fault in found.values() if isinstance(fault, str)]
    return Looks([source.ids[row] for row in good], sizes, hashes, brightness, faults)


def near_pairs(
    left: np.ndarray, right: np.ndarray | None = None, *, distance: int = NEAR, most: int = 20
) -> tuple[int, list[tuple[int, int, int]]]:
    """How many pairs of hashes differ in at most `distance` signs, and the nearest `most` of them.

    Args:
        left, right: int8 (n,64), (m,64); without `right`, pairs within `left`, each once.

    Returns:
        The count, and (signs that differ, row of left, row of right), nearest first.
    """
    others = (left if right is None else right).astype(np.float32).T
    count, nearest, step = 0, np.empty((0, 3), int), max(1, BLOCK // max(1, others.shape[1]))
    for start in range(0, len(left), step):
        # A product of signs is 64 less twice those that differ, exactly.
        product = left[start : start + step].astype(np.float32) @ others
        rows, columns = np.nonzero(product >= 64 - 2 * distance)
        pairs = np.stack([(64 - product[rows, columns].astype(int)) // 2, rows + start, columns], axis=1)
        pairs = pairs if right is not None else pairs[pairs[:, 1] < pairs[:, 2]]
        count += len(pairs)
        nearest = np.concatenate([nearest, pairs])
        nearest = nearest[np.lexsort(nearest.T[::-1])][:most]
    return count, [tuple(pair) for pair in nearest.tolist()]
