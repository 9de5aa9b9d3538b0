"""What one pass over labelled images finds: damage, sizes, class ids; which classes there are; images in two sets.

Stored bytes decide whether two images are one: names repeat (0001.jpg), and copies are renamed.
"""

import hashlib
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.source.rows import CONNECTIONS, stored_bytes
from u2pl_hf.data.sources import Source
from u2pl_hf.errors import InputError, require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """What one pass over labelled images finds, row by row.

    Attributes:
        ids: of the rows.
        counts: int64 (rows,C), pixels of each class; 255 is not counted.
        sizes: bytes of each image as stored.
        images, labels: sha256 of each image as stored, and of its class ids, whatever they were compressed with.
    """

    ids: list[str]
    counts: np.ndarray
    sizes: list[int]
    images: list[bytes]
    labels: list[bytes]


def check_labelled(
    source: Source, indices: Iterable[int], num_labels: int, *, what: str, faults: list[str] | None = None
) -> Labelled:
    """Decode these rows once and refuse any that cannot be trained or evaluated on.

    Args:
        faults: where given, a line for each bad row goes there, and the others are told of as long as there are any.

    Raises:
        InputError: names the first bad id and how many more there are.
    """
    indices = list(indices)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda i: _checked(source, i, num_labels), indices))
    good = [(index, row) for index, row in zip(indices, found, strict=True) if not isinstance(row, str)]
    problems = [problem for problem in found if isinstance(problem, str)]
    if faults is not None:
        faults += problems
    if problems and (faults is None or not good):
        more = f" (and {len(problems) - 1} more {what} images have problems)" if len(problems) > 1 else ""
        raise InputError(problems[0] + more)
    counts, *others = map(list, zip(*(row for _, row in good), strict=True))
    return Labelled([source.ids[i] for i, _ in good], np.stack(counts), *others)


def _checked(source: Source, index: int, num_labels: int) -> str | tuple[np.ndarray, int, bytes, bytes]:
    """What is wrong with a row, or the row of `Labelled` for it."""
    cell, name = source.rows.cell(index, "image"), source.ids[index]
    try:
        image, label = source.read_image(index, cell), source.read_label(index)
        (h, w), (lh, lw) = image.shape[:2], label.shape
        require((h, w) == (lh, lw), f"image and label of {name} differ in size: {w}x{h} and {lw}x{lh}")
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
        highest = np.flatnonzero(counts[:IGNORE]).max(initial=0)
        known = f"there are {num_labels} classes (0..{num_labels - 1}, 255)"
        require(highest < num_labels, f"label of {name} holds the value {highest}, but {known}")
    except InputError as error:
        return str(error)
    stored, pixels = stored_bytes(cell), str(label.shape).encode() + label.tobytes()
    return counts[:num_labels], len(stored), hashlib.sha256(stored).digest(), hashlib.sha256(pixels).digest()


def check_some_readable(source: Source, indices: list[int], tries: int = 8) -> None:
    """Refuse unlabelled images of which none out of a few can be read.

    Raises:
        InputError: quotes the first problem.
    """
    problems = []
    for place in np.unique(np.linspace(0, len(indices) - 1, tries).astype(int)):
        try:
            source.read_image(indices[place])
            return
        except InputError as error:
            problems.append(str(error))
    raise InputError(f"{len(problems)} unlabelled images were tried and none can be read: {problems[0]}")


def check_classes(counts: np.ndarray, names: list[str], *, what: str, at_least: int) -> None:
    """Tell which classes have no pixel in the `what` images; counts (rows,C) are pixels of each class.

    Raises:
        InputError: fewer than `at_least` classes have one.
    """
    there = counts.any(axis=0)
    absent = ", ".join(np.array(names)[~there])
    found = f"of {', '.join(np.array(names)[there])} alone" if there.any() else "of no class (all are 255, ignored)"
    rule = f"the {len(counts)} {what} images have pixels {found}, and {at_least} or more classes are needed"
    remedy = "mend the masks, or what the class list says of their values, and prepare the data again"
    require(there.sum() >= at_least, f"{rule}: {remedy}")
    if absent:
        logger.warning("%d of %d classes have no pixel in the %s images: %s", (~there).sum(), len(names), what, absent)


def warn_of_scored_training(labelled: Labelled, evaluation: Labelled) -> None:
    """Tell how many labelled training images are evaluation images, and how many have the id of another one."""
    scored, names = set(evaluation.images), set(evaluation.ids)
    both = [name for name, digest in zip(labelled.ids, labelled.images, strict=True) if digest in scored]
    _tell(both, "%d labelled images are evaluation images as well, such as %s: scores flatter")
    namesakes = list(names.intersection(labelled.ids).difference(both))
    _tell(namesakes, "%d labelled images have the id of an evaluation image and other bytes, such as %s: are they two?")


def without_evaluation(source: Source, rows: list[int], labelled: Labelled, evaluation: Labelled) -> list[int]:
    """Those of some unlabelled `rows` that are no evaluation images, byte for byte; warnings tell of all others.

    Only images of which the size fits are read. Streamed ones would each have to be fetched: of them, those that have
    the id of an evaluation or labelled image are compared.
    """
    rows, images = np.asarray(rows, int), [set(found.images) for found in (evaluation, labelled)]
    if source.streamed:
        is_alike = np.isin([source.ids[row] for row in rows], [*evaluation.ids, *labelled.ids])
    else:
        is_alike = np.isin(source.rows.sizes[rows], labelled.sizes + evaluation.sizes)
    scored, again = set(), set()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        blocks = source.rows.blocks(rows[is_alike]) if is_alike.any() else []
        for digests in pool.map(lambda block: _digests(source, block), blocks):
            scored |= {row for row, digest in digests.items() if digest in images[0]}
            again |= {row for row, digest in digests.items() if digest in images[1]}
    names, others = set(evaluation.ids), [row for row in rows.tolist() if row not in scored]
    namesakes = [row for row in others if source.ids[row] in names]
    for found, message in (
        (scored, "%d unlabelled images are evaluation images, such as %s: they are left out"),
        (again - scored, "%d unlabelled images are labelled ones as well, such as %s: they are used as both"),
        (namesakes, "%d unlabelled images have the id of an evaluation image and other bytes, such as %s: they stay"),
    ):
        _tell([source.ids[row] for row in found], message)
    return others


def _digests(source: Source, block: np.ndarray) -> dict[int, bytes]:
    cells = source.rows.read(block, "image")
    return {row: hashlib.sha256(stored_bytes(cell)).digest() for row, cell in cells.items()}


def _tell(ids: list[str], message: str) -> None:
    if ids:
        logger.warning(message, len(ids), min(ids))
