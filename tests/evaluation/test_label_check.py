"""Confident learning on pixels against loops in numpy, and what kinds of mistakes are told on made-up probabilities."""

import math

import numpy as np
import pytest
from PIL import Image

from u2pl_hf.constants import IGNORE
from u2pl_hf.evaluation import label_check as lc
from u2pl_hf.evaluation.check_pages import check_page, draw_check

SKY, CAR, DOG = range(3)
SIDE = 80


def noise(classes: int = 4, shape=(9, 11), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.ones(classes), shape).transpose(2, 0, 1).astype(np.float32)
    labels = rng.integers(0, classes, shape).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = IGNORE
    return scores, labels


def scores_of(truth: np.ndarray, sure: float = 0.9) -> np.ndarray:
    """Probabilities (3,H,W) of models that see the truth."""
    return np.where(truth == np.arange(3)[:, None, None], sure, (1 - sure) / 2).astype(np.float32)


def square(top: int = 20, left: int = 30, side: int = 24, inside: int = CAR, around: int = SKY) -> np.ndarray:
    mask = np.full((SIDE, SIDE), around, np.uint8)
    mask[top : top + side, left : left + side] = inside
    return mask


def found_in(scores: np.ndarray, labels: np.ndarray, thresholds=(0.8, 0.8, 0.8)) -> lc.Finding:
    confident = lc.confident_classes(scores, np.array(thresholds))
    regions = lc.suspect_regions(scores, labels, confident, border=2, min_share=0.001)
    joint = lc.confident_joint(np.where(lc.border_band(labels, 2), IGNORE, labels), confident, 3)
    return lc.finding(regions, lc.best_shift(scores, labels, 12), joint, labels.size)


def test_thresholds_and_joint_are_those_of_a_loop():
    images, own = [noise(seed=seed) for seed in range(3)], lc.SelfConfidence(4)
    each: list[list[float]] = [[], [], [], []]
    for scores, labels in images:
        own.update(scores, labels)
        for y, x in np.ndindex(labels.shape):
            if labels[y, x] != IGNORE:
                each[labels[y, x]].append(float(scores[labels[y, x], y, x]))
    thresholds = own.thresholds()
    assert thresholds == pytest.approx([math.fsum(values) / len(values) for values in each])
    thresholds += 0.2  # labels are noise here, and some class always reaches its own
    joint, expected = np.zeros((4, 4), int), np.zeros((4, 4), int)
    for scores, labels in images:
        confident = lc.confident_classes(scores, thresholds)
        joint += lc.confident_joint(labels, confident, 4)
        for y, x in np.ndindex(labels.shape):
            reached = [(scores[j, y, x], j) for j in range(4) if scores[j, y, x] >= thresholds[j]]
            best = max(reached)[1] if reached else IGNORE
            assert confident[y, x] == best
            if reached and labels[y, x] != IGNORE:
                expected[labels[y, x], best] += 1
    assert (joint == expected).all() and expected.sum() > 50 and (confident == IGNORE).any()


def test_a_class_that_labels_nothing_is_never_suspected():
    scores, labels = noise()
    labels[labels == 3] = IGNORE
    own = lc.SelfConfidence(4)
    own.update(scores, labels)
    assert own.thresholds()[3] == math.inf and not (lc.confident_classes(scores, own.thresholds()) == 3).any()


@pytest.mark.parametrize("labels", [np.full((30, 40), IGNORE, np.uint8), np.zeros((30, 40), np.uint8)])
def test_nothing_is_found_where_nothing_is_labelled_or_there_is_one_class(labels):
    scores, own = np.ones((1, 30, 40), np.float32), lc.SelfConfidence(1)
    own.update(scores, labels)
    confident = lc.confident_classes(scores, own.thresholds())
    assert lc.suspect_regions(scores, labels, confident, border=2, min_share=0) == []
    found = lc.finding([], lc.best_shift(scores, labels, 5), lc.confident_joint(labels, confident, 1), labels.size)
    assert found == lc.Finding(0.0, None, [], None) and found.facts(["wall"])["kind"] is None


def test_the_band_is_as_wide_as_it_says():
    labels = np.zeros((9, 9), np.uint8)
    labels[:, 4:] = 7
    assert (lc.border_band(labels, 2).all(axis=0) == [0, 0, 1, 1, 1, 1, 0, 0, 0]).all()
    assert not lc.border_band(labels, 0).any()
    assert lc.band_width((480, 720)) == 5 and lc.band_width((100, 90)) == 2


@pytest.mark.parametrize(
    ("labels", "truth", "kind", "labelled", "predicted"),
    [
        (square(inside=DOG), square(inside=CAR), lc.CLASS, DOG, CAR),
        (square(side=0), square(), lc.MISSING, SKY, CAR),
        (square(side=12), square(), lc.EXTENT, SKY, CAR),
    ],
)
def test_a_region_is_told_by_its_kind(labels, truth, kind, labelled, predicted):
    found = found_in(scores_of(truth), labels)
    assert found.kind == kind and found.shift is None and found.score > 0.1
    (_, region), *_ = found.regions
    assert (region.kind, region.labelled, region.predicted) == (kind, labelled, predicted)
    assert region.margin == pytest.approx(0.85)
    x, y, width, height = region.box
    assert x >= 30 and y >= 20 and x + width <= 54 and y + height <= 54 and region.pixels <= width * height


def test_a_region_ends_at_the_band_and_at_the_smallest_size():
    labels, scores = square(side=0), scores_of(square(side=8))
    confident = lc.confident_classes(scores, np.full(3, 0.8))
    (region,) = lc.suspect_regions(scores, labels, confident, border=2, min_share=64 / SIDE**2)
    assert (region.box, region.pixels) == ((30, 20, 8, 8), 64)
    assert lc.suspect_regions(scores, labels, confident, border=2, min_share=65 / SIDE**2) == []
    labels = square(side=8, inside=DOG)
    (region,) = lc.suspect_regions(scores, labels, confident, border=2, min_share=0)
    assert (region.box, region.pixels) == ((32, 22, 4, 4), 16)


def test_what_the_label_is_the_likelier_for_is_not_suspect():
    """The other class reaches its low threshold, and that of the label, 0.7, misses its own."""
    labels = square(side=0)
    scores = np.zeros((3, SIDE, SIDE), np.float32)
    scores[SKY], scores[CAR] = 0.7, 0.3
    assert found_in(scores, labels, (0.8, 0.2, 0.2)).kind is None


def test_a_shift_is_that_of_a_loop():
    scores, labels = noise(3)
    best = (0.0,)
    for down, right in np.ndindex(7, 7):
        down, right = down - 3, right - 3
        pairs = [
            (scores[labels[y - down, x - right], y, x], scores[labels[y, x], y, x])
            for y, x in np.ndindex(labels.shape)
            if 0 <= y - down < 9 and 0 <= x - right < 11 and IGNORE not in (labels[y, x], labels[y - down, x - right])
        ]
        after, before = np.mean(pairs, axis=0) if pairs else (0, 0)
        best = max(best, (after - before, right, down, after, before))
    found = lc.best_shift(scores, labels, 3)
    assert (found.right, found.down) == best[1:3] != (0, 0)
    assert (found.agreement, found.before) == pytest.approx(best[3:])


def test_a_shifted_mask_is_told_and_moved_back():
    truth = square(30, 20, 36)
    truth[60:, :50] = DOG
    labels = np.roll(truth, (-6, 9), (0, 1))
    found = found_in(scores_of(truth), labels)
    assert found.kind == lc.SHIFT and (found.shift.right, found.shift.down) == (-9, 6)
    assert found.shift.agreement > found.shift.before and found.score > found_in(scores_of(truth), truth).score == 0
    assert lc.best_shift(scores_of(truth), truth, 12) is None


def test_what_is_mixed_up_everywhere_counts_less():
    region = lc.Region((0, 0, 8, 8), SKY, CAR, 64, 0.5, lc.MISSING)
    rare, often = np.array([[998, 64], [0, 999]]), np.array([[499, 499 + 64], [0, 999]])
    first, second = (lc.finding([region], None, joint, 6400) for joint in (rare, often))
    assert first.score == pytest.approx(0.5 * 0.1 * math.log(1000))
    assert second.score == pytest.approx(0.5 * 0.1 * math.log(2))
    both = lc.finding([region, region], None, rare, 6400)
    assert both.score == pytest.approx(math.sqrt(2) * first.score) and both.regions[0] == (first.score, region)


def test_pictures_outline_the_regions_and_the_page_is_escaped():
    labels, truth = square(side=0), square()
    found, suspect = found_in(scores_of(truth), labels), np.where(labels == truth, np.uint8(IGNORE), truth)
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    picture = draw_check(image, labels, truth, suspect, found, [[0, 0, 0], [0, 0, 200], [0, 200, 0]])
    assert isinstance(picture, Image.Image) and picture.size == (4 * 160 + 3 * 6, 160)
    red = (np.asarray(picture) == (230, 20, 40)).all(axis=-1)
    ys, xs = np.nonzero(red)
    assert xs.min() >= 3 * 166 + 58 and xs.max() <= 3 * 166 + 110 and ys.min() >= 38 and ys.max() <= 90
    facts = {"id": "<b>x", "picture": "pictures/001.png"} | found.facts(["sky", "<car>", "dog"])
    page = check_page("a & b", [facts])
    assert "<b>" not in page and "&lt;b&gt;x" in page and "&lt;car&gt;" in page and "a &amp; b" in page
    assert "<script" not in page and "http" not in page
