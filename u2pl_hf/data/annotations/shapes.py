"""Shapes <-> pixels. A pixel belongs to a shape if its centre does: that of the first pixel is (0.5, 0.5)."""

import operator
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from u2pl_hf.data.annotations import Patch

# Of a mask in a file: more are no photograph, and would take the memory before they are compared with one.
MOST_PIXELS = 2**28


def polygon(points: Sequence[Sequence[float]], size: tuple[int, int]) -> Patch:
    """The inside of a polygon by the even-odd rule, so that a way that is gone twice cuts nothing.

    Args:
        points: (N,2) of x and y in pixels, at least 3; they may lie outside of the image.
        size: (height, width) of the image.

    Raises:
        ValueError: fewer points, or numbers that are not finite.
    """
    corners = np.asarray(points, float)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError("a polygon is three or more points of x and y")
    left, top = (int(np.clip(np.floor(v), 0, most)) for v, most in zip(corners.min(0), size[::-1], strict=True))
    right, bottom = (int(np.clip(np.ceil(v), 0, most)) for v, most in zip(corners.max(0), size[::-1], strict=True))
    height, width = max(0, bottom - top), max(0, right - left)
    x, y = (corners - (left, top)).T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    # The rows of whose centres an edge crosses the line: from `first` on, before `end`.
    first = np.clip(np.ceil(np.minimum(y, next_y) - 0.5), 0, height).astype(int)
    end = np.clip(np.ceil(np.maximum(y, next_y) - 0.5), 0, height).astype(int)
    counts = end - first
    edge = np.repeat(np.arange(len(x)), counts)
    rows = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    crossings = x[edge] + (rows + 0.5 - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
    times = np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1)).reshape(height, width + 1)
    return Patch(left, top, times.cumsum(1)[:, :-1] % 2 == 1)


def box(x: float, y: float, width: float, height: float, turn: float, about: tuple, size: tuple[int, int]) -> Patch:
    """A rectangle, turned clockwise by degrees about a point."""
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
    return polygon(_turned(corners, turn, about), size)


def ellipse(centre: tuple[float, float], radii: tuple[float, float], turn: float, size: tuple[int, int]) -> Patch:
    """An ellipse, as a polygon that stays within a hundredth of its radius."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    corners = np.array(centre) + np.stack([np.cos(angles), np.sin(angles)], 1) * radii
    return polygon(_turned(corners, turn, centre), size)


def _turned(points: np.ndarray, degrees: float, about: tuple[float, float]) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (points - about) @ np.array([[cos, sin], [-sin, cos]]) + about


def placed(mask: np.ndarray, left: int, top: int, size: tuple[int, int]) -> Patch:
    """A mask at a place; what hangs over the image's border is cut.

    Raises:
        ValueError: it lies outside.
    """
    height, width = size
    if left >= width or top >= height or left + mask.shape[1] <= 0 or top + mask.shape[0] <= 0:
        raise ValueError(f"it lies outside of the image of {width}x{height}")
    inside = mask[max(0, -top) : height - top, max(0, -left) : width - left]
    return Patch(max(0, left), max(0, top), inside)


def from_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """Runs of pixels in rows, in turn outside and inside, as bool (h,w).

    Raises:
        ValueError: their sum is not height x width, or one is negative.
    """
    # In Python's integers, which do not wrap around; numpy's would let runs through that reach out of their memory.
    counts = [operator.index(count) for count in counts]
    if min(height, width) <= 0 or min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"its runs hold {sum(counts)} pixels, not {width}x{height}")
    if sum(counts) > MOST_PIXELS:
        raise ValueError(f"it is said to have {width}x{height} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)


def to_runs(places: np.ndarray, total: int) -> list[int]:
    """The inverse: rising places of the pixels inside, of `total` pixels."""
    last = np.flatnonzero(np.diff(places) != 1)
    starts, ends = places[np.r_[0, last + 1]], places[np.r_[last, len(places) - 1]] + 1
    return np.diff(np.r_[0, np.stack([starts, ends], 1).ravel(), total]).tolist()


def connected_parts(labels: np.ndarray) -> Iterator[tuple[int, Patch]]:
    """(class id or 255, pixels) of each connected part of a label map (H,W); parts that touch at corners are one."""
    for value in np.unique(labels):
        count, marks, stats, _ = cv2.connectedComponentsWithStats((labels == value).astype(np.uint8), connectivity=8)
        for number in range(1, count):
            left, top, width, height = stats[number, :4].tolist()
            yield int(value), Patch(left, top, marks[top : top + height, left : left + width] == number)


def outline(patch: Patch, tolerance: float) -> np.ndarray:
    """One polygon (N,2) around a connected part; a hole is joined to the outside by a cut that is gone both ways.

    It runs a quarter of a pixel inside the outermost pixels, so that `polygon` and other programs, which round to less
    than that, give the same pixels again for `tolerance` 0.

    Args:
        tolerance: how many pixels a simplified outline may be away.
    """
    double = patch.mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    rings, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [ring for _, ring in sorted(zip(tree[0][:, 3], rings, strict=True), key=lambda pair: pair[0] >= 0)]
    ring, *holes = (_simplified(ring, tolerance) for ring in rings)
    for hole in holes:
        near = int(((ring - hole[0]) ** 2).sum(1).argmin())
        ring = np.concatenate([ring[: near + 1], hole, hole[:1], ring[near:]])
    return ring + np.array([patch.left, patch.top])


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    short = cv2.approxPolyDP(ring, 2 * tolerance, closed=True) if tolerance else ring
    # Of what is smaller than the tolerance nothing would be left.
    return (short if len(short) > 2 else ring)[:, 0] / 2 + 0.25
