"""Counts, and what is warned of, against numbers by hand."""

import numpy as np

from u2pl_hf.data import overview

NAMES = ["road", "sky", "crack", "lamp", "nothing"]
LABELLED = np.array([[60, 40, 0, 0, 0], [0, 90, 0, 0, 0], [199_000, 0, 100, 0, 0], [0, 0, 0, 0, 0], [30, 0, 0, 0, 0]])
SCORED = np.array([[50, 0, 0, 50, 0], [100, 0, 10, 0, 0]])
SIZES = np.array([[10, 10], [10, 10], [400, 500], [10, 20], [10, 10]])


def test_counts_are_those_of_a_loop():
    images, pixels, share = overview.class_facts(LABELLED)
    for class_id in range(5):
        column = [int(row[class_id]) for row in LABELLED]
        assert (images[class_id], pixels[class_id]) == (sum(n > 0 for n in column), sum(column))
        assert share[class_id] == sum(column) / 199_320
    ignored = [0, 0.1, 1 - 199_100 / 200_000, 1, 0.7]
    np.testing.assert_allclose(overview.ignored_shares(LABELLED, SIZES), ignored, atol=1e-12)
    assert overview.size_facts(SIZES) == {"smallest": [10, 10], "median": [10, 10], "largest": [400, 500]}
    assert set(overview.size_facts(SIZES[:0]).values()) == {None}


def test_each_fault_of_classes_is_told_once():
    told = overview.class_warnings(NAMES, LABELLED, SCORED)
    for rule, names in (
        ("in validation, but in no labelled image", "lamp"),
        ("in labelled images, but in no validation image", "sky"),
        ("in no image", "nothing"),
        ("in a single labelled image", "crack"),
        ("less than 0.1% of the labelled pixels", "sky, crack"),
        ("more than 99% of the labelled pixels", "road"),
    ):
        (line,) = [line for line in told if rule in line]
        assert line.endswith(f"({names})") and line.startswith(f"{names.count(',') + 1} of 5 classes")
        told.remove(line)
    assert not told
    assert overview.class_warnings(["a", "b"], np.array([[9, 1], [1, 9]]), np.array([[5, 5]])) == []


def test_odd_masks_are_told():
    ids = [f"im_{n}" for n in range(5)]
    odd = overview.mask_warnings(ids, LABELLED, overview.ignored_shares(LABELLED, SIZES), "labelled")
    assert [line.split(" (")[-1] for line in odd] == ["im_3)", "im_3, im_4)", "im_1, im_4)"]
    assert odd[0].startswith("1 of 5 labelled masks are ignored (255) altogether")
    many = overview.mask_warnings([str(n) for n in range(30)], np.eye(30, 2, dtype=int), np.zeros(30), "validation")
    assert "28 of 30 validation masks are ignored (255) altogether" in many[0] and many[0].endswith("9 and 20 more)")


def test_small_images_and_other_scales_are_told():
    labelled = np.array([[600, 400], [200, 256], [100, 80]])
    (small,) = overview.size_warnings(labelled, np.empty((0, 2), int), 513)
    assert small.startswith("2 of 3 labelled images") and small.endswith("--crop_size 252")
    alike, larger = np.array([[300, 300]] * 3), np.array([[700, 700]] * 3)
    assert overview.size_warnings(alike, alike * 2, 513) == []
    for pair in ((alike, larger), (larger, alike)):
        (line,) = overview.size_warnings(*pair, 513)
        assert "other scales" in line and "of 700" in line and "of 300" in line


def test_chosen_rows_show_every_class():
    rng = np.random.default_rng(0)
    counts = np.zeros((100, 9), int)
    counts[:, 0] = 50
    for class_id in range(1, 9):  # class 1 in one image, the last in 36
        rows = rng.choice(100, class_id**2 // 2 + 1, replace=False)
        counts[rows, class_id] = rng.integers(1, 50, len(rows))
    for most in (8, 24, 100, 200):
        rows = overview.rows_with_every_class(counts, most)
        assert counts[rows].any(axis=0).all() and len(set(rows)) == len(rows) == min(most, 100)
    assert overview.rows_with_every_class(counts, 1) == np.flatnonzero(counts[:, 1]).tolist()
