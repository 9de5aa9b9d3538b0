import math

import numpy as np
import pytest

from u2pl_hf.constants import default_palette
from u2pl_hf.evaluation.pictures import (
    BORDER_COLOUR,
    IGNORE_COLOUR,
    colour_mask,
    entropy_map,
    overlay,
    picture_grid,
    with_legend,
)

# Published with PASCAL VOC: background, aeroplane, bicycle, ..., and the last class, tv/monitor.
VOC = {
    0: [0, 0, 0],
    1: [128, 0, 0],
    2: [0, 128, 0],
    3: [128, 128, 0],
    8: [64, 0, 0],
    15: [192, 128, 128],
    20: [0, 64, 128],
}


def test_default_palette_is_that_of_voc():
    palette = default_palette(256)
    for class_id, colour in VOC.items():
        assert palette[class_id] == colour
    assert len({tuple(colour) for colour in palette}) == 256


def test_colour_mask_and_overlay():
    palette = [[10, 20, 30], [200, 100, 50]]
    ids = np.array([[0, 1, 255]], np.uint8)
    assert colour_mask(ids, palette).tolist() == [[[10, 20, 30], [200, 100, 50], list(IGNORE_COLOUR)]]
    image = np.full((1, 3, 3), 100, np.uint8)
    assert overlay(image, ids, palette, 0.5).tolist() == [[[55, 60, 65], [150, 100, 75], [100, 100, 100]]]
    assert np.array_equal(overlay(image, ids, palette, 0.0), image)


def test_black_and_ignored_pixels_are_bare_and_contours_are_white():
    ids = np.array([[0, 0, 0, 1, 1, 1, 255, 255]] * 2, np.uint8)
    image = np.full((2, 8, 3), 100, np.uint8)
    found = overlay(image, ids, default_palette(2), 0.5, contour=True)
    red, bare, white = [114, 50, 50], [100] * 3, [255] * 3
    assert found.tolist() == [[bare, bare, white, red, red, white, bare, bare]] * 2
    large = overlay(image.repeat(400, axis=1), ids.repeat(400, axis=1), default_palette(2), contour=True)
    assert ((large == 255).all(-1).sum(1) == 10).all()  # 3200 pixels wide: lines of 5


def test_legend_names_the_classes_that_occur():
    picture = np.full((30, 400, 3), 7, np.uint8)
    names, palette = ["background", "a cat", "a dog"], [[0, 0, 0], [200, 10, 20], [10, 200, 20]]
    found = with_legend(picture, np.array([[0, 2, 255]], np.uint8), palette, names)
    assert found.shape[1:] == (400, 3) and np.array_equal(found[:30], picture)
    below = {tuple(colour) for colour in found[30:].reshape(-1, 3)}
    assert tuple(palette[2]) in below and tuple(palette[1]) not in below
    narrow = with_legend(picture[:, :9], np.array([[1]], np.uint8), palette, names)
    assert narrow.shape[1] > 50 and np.array_equal(narrow[:30, :9], picture[:, :9])


def test_entropy_border_surrounds_the_unreliable_pixels():
    entropy = np.zeros((7, 7))
    entropy[2:5, 2:5] = 1.0
    valid = np.ones((7, 7), bool)
    valid[6] = False
    picture = entropy_map(entropy, 0.5, valid, num_labels=4)
    border = np.all(picture == BORDER_COLOUR, axis=-1)
    expected = np.zeros((7, 7), bool)
    expected[2:5, 2:5] = True
    expected[3, 3] = False
    assert np.array_equal(border, expected)
    assert np.all(picture[6] == IGNORE_COLOUR)


@pytest.mark.parametrize("gamma", [None, math.nan, 99.0])
def test_entropy_without_border(gamma):
    picture = entropy_map(np.array([[0.0, math.log(5)]]), gamma, num_labels=5)
    assert picture[0, 0].sum() < picture[0, 1].sum()
    assert not np.all(picture == BORDER_COLOUR, axis=-1).any()


def test_grid_has_a_row_per_sample_and_takes_missing_parts():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, (20, 30)).astype(np.uint8)
    image = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    full = {
        "image": image,
        "ground_truth": ids,
        "prediction": ids,
        "pseudo_label": ids,
        "entropy": rng.random((20, 30)),
        "gamma": 0.5,
    }
    bare = {
        "image": image,
        "ground_truth": None,
        "prediction": ids,
        "pseudo_label": None,
        "entropy": None,
        "gamma": None,
    }
    one = picture_grid([full], default_palette(3), ["a", "b", "c"], cell_width=60)
    two = picture_grid([full, bare], default_palette(3), ["a", "b", "c"], cell_width=60)
    assert one.width == two.width > 5 * 60
    assert 40 <= two.height - one.height <= 50
