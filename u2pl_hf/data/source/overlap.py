"""Images that are in two sets at once. Stored bytes decide: names repeat (0001.jpg), and copies are renamed."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from u2pl_hf.data.source.rows import CONNECTIONS, stored_bytes
from u2pl_hf.data.source.sources import Labelled, Source

logger = logging.getLogger(__name__)


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
    rows = np.asarray(rows, int)
    if source.streamed:
        known = {*evaluation.ids, *labelled.ids}
        alike = np.array([source.ids[row] in known for row in rows], bool)
    else:
        alike = np.isin(source.rows.sizes[rows], labelled.sizes + evaluation.sizes)
    digests = _digests(source, rows[alike])
    images = [set(found.images) for found in (evaluation, labelled)]
    scored, again = ({row for row, digest in digests.items() if digest in known} for known in images)
    names = set(evaluation.ids)
    namesakes = [row for row in rows.tolist() if source.ids[row] in names and row not in scored]
    for found, message in (
        (scored, "%d unlabelled images are evaluation images, such as %s: they are left out"),
        (again - scored, "%d unlabelled images are labelled ones as well, such as %s: they are used as both"),
        (namesakes, "%d unlabelled images have the id of an evaluation image and other bytes, such as %s: they stay"),
    ):
        _tell([source.ids[row] for row in found], message)
    return [row for row in rows.tolist() if row not in scored]


def _tell(ids: list[str], message: str) -> None:
    if ids:
        logger.warning(message, len(ids), min(ids))


def _digests(source: Source, rows: np.ndarray) -> dict[int, bytes]:
    """sha256 of each image as stored."""

    def digest(block: np.ndarray) -> dict[int, bytes]:
        cells = source.rows.read(block, "image")
        return {row: hashlib.sha256(stored_bytes(cell)).digest() for row, cell in cells.items()}

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        blocks = source.rows.blocks(rows) if len(rows) else []
        return {row: value for found in pool.map(digest, blocks) for row, value in found.items()}
