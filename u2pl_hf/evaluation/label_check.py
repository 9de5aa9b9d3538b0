"""Which labels are likely wrong: confident learning on pixels, in regions, and signs that a whole mask is shifted.

Northcutt, Jiang, Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021 (arXiv 1911.00068);
here a sample is a pixel. Shapes: probabilities (C,H,W) float of models that were not trained on the image; labels (H,W)
uint8 class ids, 255 = ignored.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from u2pl_hf.constants import IGNORE

# Kinds of mistakes.
CLASS, MISSING, EXTENT, SHIFT = "class", "missing", "extent", "shift"
# The shorter side of what `best_shift` compares has between once and twice as many pixels.
COMPARED_SIDE = 64
# A move is believed in from this gain on, and weighs so much beside regions: see `finding`.
SHIFT_GAIN, SHIFT_WEIGHT = 0.12, 5.0


@dataclass(frozen=True)
class Region:
    """Connected pixels of one label that the models confidently take for one other class.

    Attributes:
        box: x, y, width, height in pixels.
        labelled, predicted: class ids.
        pixels: its size, without the band along borders of labels.
        margin: mean of p_predicted - p_labelled over them.
        kind: "class": half or more of a labelled object; "extent": else, beside pixels labelled as what is predicted,
            such as an object that was drawn too small; "missing": else, such as an object that was not drawn.
    """

    box: tuple[int, int, int, int]
    labelled: int
    predicted: int
    pixels: int
    margin: float
    kind: str


@dataclass(frozen=True)
class Shift:
    """A move of a whole mask that makes it fit better.

    Attributes:
        right, down: pixels to move it by.
        agreement: mean probability of the moved labels.
        before: of the labels as they are, on the same pixels of the image.
    """

    right: int
    down: int
    agreement: float
    before: float


@dataclass(frozen=True)
class Finding:
    """What is suspect in one mask.

    Attributes:
        score: the higher, the likelier the mask is wrong; 0 where nothing is suspect.
        kind: "shift", or that of the region that adds most; None where nothing is suspect.
        regions: each with what it adds to the score, highest first.
        shift: the best move, where it is one to believe in.
    """

    score: float
    kind: str | None
    regions: list[tuple[float, Region]]
    shift: Shift | None

    def facts(self, names: Sequence[str]) -> dict:
        """As JSON, classes by name."""
        regions = []
        for score, region in self.regions:
            named = {"labelled": names[region.labelled], "predicted": names[region.predicted]}
            regions.append(asdict(region) | named | {"score": score})
        shift = asdict(self.shift) if self.shift else None
        return {"score": self.score, "kind": self.kind, "shift": shift, "regions": regions}


class SelfConfidence:
    """Sums for the thresholds t_c: the mean probability of class c over the pixels that are labelled c."""

    def __init__(self, num_labels: int):
        self.sums, self.pixels = np.zeros(num_labels), np.zeros(num_labels, np.int64)

    def update(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Add an image."""
        rows, columns = np.nonzero(labels != IGNORE)
        classes = labels[rows, columns]
        own = probabilities[classes, rows, columns]
        self.sums += np.bincount(classes, own, minlength=len(self.sums))
        self.pixels += np.bincount(classes, minlength=len(self.sums))

    def thresholds(self) -> np.ndarray:
        """(C,) float64; infinite for a class that labels nothing, which nothing can then be suspected of."""
        return np.divide(self.sums, self.pixels, out=np.full(len(self.sums), np.inf), where=self.pixels > 0)


def confident_classes(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The class of highest probability among those that reach their thresholds, (H,W) uint8; 255 where none does."""
    reached = np.where(probabilities >= thresholds[:, None, None], probabilities, -1)
    found = reached.argmax(axis=0).astype(np.uint8)
    found[reached.max(axis=0) < 0] = IGNORE
    return found


def confident_joint(labels: np.ndarray, confident: np.ndarray, num_labels: int) -> np.ndarray:
    """How many pixels are labelled i and confidently j, (C,C) int64."""
    counted = (labels != IGNORE) & (confident != IGNORE)
    pairs = labels[counted].astype(np.int64) * num_labels + confident[counted]
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)


def border_band(labels: np.ndarray, width: int) -> np.ndarray:
    """Pixels within `width` (rows or columns) of one with another label, 255 among them: bool (H,W)."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)  # the highest and the lowest id around


def band_width(shape: tuple[int, ...]) -> int:
    """Of a band along borders of labels, where nothing is said: a hundredth of the shorter side, at least 2."""
    return max(2, round(min(shape) / 100))


def suspect_pixels(labels: np.ndarray, confident: np.ndarray, border: int) -> np.ndarray:
    """Pixels that are confidently of another class than their label, off the borders of labels: bool (H,W).

    Args:
        confident: of `confident_classes`.
        border: width of the band along borders that is left out, since annotators and models differ there anyway.
    """
    inside = ~border_band(labels, border) & (labels != IGNORE)
    return inside & (confident != IGNORE) & (confident != labels)


def suspect_regions(
    probabilities: np.ndarray, labels: np.ndarray, confident: np.ndarray, *, border: int, min_share: float
) -> list[Region]:
    """Connected components of the suspect pixels of one label and one confident class.

    Args:
        confident, border: as for `suspect_pixels`.
        min_share: smallest region, as a share of the image.
    """
    suspect, found, least = suspect_pixels(labels, confident, border), [], max(1, min_share * labels.size)
    inside = ~border_band(labels, border)
    for i, j in np.unique(np.stack([labels[suspect], confident[suspect]], axis=1), axis=0).tolist():
        pair = suspect & (labels == i) & (confident == j)
        _, places, stats, _ = cv2.connectedComponentsWithStats(pair.astype(np.uint8))
        for number in np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= least) + 1:
            region, (*box, pixels) = places == number, stats[number].tolist()
            margin = float((probabilities[j][region] - probabilities[i][region]).mean())
            if margin <= 0:  # j reaches its threshold, and i, which does not, is the likelier all the same
                continue
            kind = region_kind(region, inside & (labels == i), labels == j, 2 * border + 2)
            found.append(Region(tuple(box), i, j, pixels, margin, kind))
    return found


def region_kind(region: np.ndarray, own: np.ndarray, other: np.ndarray, near: int) -> str:
    """See `Region.kind`; all are bool (H,W).

    Args:
        own: pixels labelled as the region is.
        other: pixels labelled as what is predicted there.
        near: how far pixels may lie from the region to be beside it.
    """
    _, places = cv2.connectedComponents(own.astype(np.uint8))
    around = places == places[region][0]
    if 2 * region.sum() >= around.sum():
        return CLASS
    grown = cv2.dilate(region.astype(np.uint8), np.ones((2 * near + 1, 2 * near + 1), np.uint8)).astype(bool)
    return EXTENT if (grown & other).any() else MISSING


def best_shift(probabilities: np.ndarray, labels: np.ndarray, reach: int) -> Shift | None:
    """The move of the mask, up to `reach` pixels along each side, with the highest mean probability of its labels.

    Each is compared with the mask as it is on the pixels that the moved mask still covers. None where no move is
    better, or nothing is labelled.
    """
    thin = max(1, min(labels.shape) // COMPARED_SIDE)
    scores, labels = probabilities[:, ::thin, ::thin], labels[::thin, ::thin]
    reach, valid = min(reach // thin, *(n - 1 for n in labels.shape)), labels != IGNORE
    size = [n + reach for n in labels.shape]  # so that nothing comes in again at the other side
    own = labels == np.arange(len(scores))[:, None, None]

    def along(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Sum of image(x) mask(x - d) over pixels and classes, for each move d: (2 reach + 1, 2 reach + 1)."""
        spectrum = (np.fft.rfft2(image, size) * np.fft.rfft2(mask, size).conj()).sum(axis=0)
        return np.roll(np.fft.irfft2(spectrum, size), (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]

    pixels = along(valid[None], valid[None]).round()
    after, before = along(scores * valid, own), along((scores * own).sum(axis=0, keepdims=True), valid[None])
    gain = np.divide(after - before, pixels, out=np.zeros_like(pixels), where=pixels > 0)
    down, right = np.unravel_index(gain.argmax(), gain.shape)
    # Sums of frequencies are not exact.
    if gain[down, right] < 1e-6:
        return None
    agreement, before = (float(sums[down, right] / pixels[down, right]) for sums in (after, before))
    return Shift(int(right - reach) * thin, int(down - reach) * thin, agreement, before)


def unusual(region: Region, joint: np.ndarray) -> float:
    """The negative logarithm of how often its label is confidently its other class outside of it, one more of each."""
    elsewhere = joint[region.labelled].copy()
    elsewhere[region.predicted] -= region.pixels
    return float(np.log((elsewhere + 1).sum()) - np.log(elsewhere[region.predicted] + 1))


def finding(regions: Sequence[Region], shift: Shift | None, joint: np.ndarray, pixels: int) -> Finding:
    """Regions and shift of a mask of so many pixels as one score.

    A region counts for its mean margin; for the square root of its share of the image, so that a clear small one is not
    lost behind a vague large one; and for how unusual it is: the negative logarithm of how often this label is
    confidently the other class elsewhere, since what models mix up everywhere says little about one mask. Regions and
    shift add up as squares, so that many weak ones do not outdo a strong one.

    Args:
        joint: of all images, off the borders of labels, see `confident_joint`.
    """
    scores = [r.margin * (r.pixels / pixels) ** 0.5 * unusual(r, joint) for r in regions]
    ranked = sorted(zip(map(float, scores), regions, strict=True), key=lambda pair: -pair[0])
    # Of the probability that the labels lack, what the move takes away.
    gain = (shift.agreement - shift.before) / (1 - shift.before) if shift else 0.0
    believed = shift if gain >= SHIFT_GAIN else None
    score = float(np.linalg.norm([*scores, SHIFT_WEIGHT * gain if believed else 0.0]))
    return Finding(score, SHIFT if believed else ranked[0][1].kind if ranked else None, ranked, believed)
