import json

import numpy as np
import pytest
from PIL import Image

from u2pl_hf.evaluation.curves import COLOURS, HEIGHT, MARGIN, WIDTH, draw_curves, nice_ticks, read_metrics, save_curves


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (21.4, 27.3, [20, 22, 24, 26, 28]),
        (0, 0.93, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (50, 50, [50, 60]),
        (0, 0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, ticks):
    found = nice_ticks(low, high)
    assert found == pytest.approx(ticks)


def marks(picture: Image.Image, colour: tuple) -> np.ndarray:
    """Rows and columns of the pixels of a colour inside the axes."""
    pixels = np.asarray(picture).astype(int)
    inside = np.zeros(pixels.shape[:2], bool)
    for left in range(0, picture.width, WIDTH):
        inside[MARGIN[1] - 5 : HEIGHT - MARGIN[3] + 5, left + MARGIN[0] - 5 : left + WIDTH - MARGIN[2] + 5] = True
    return np.argwhere((np.abs(pixels - colour).sum(2) < 60) & inside)


def test_points_lie_where_their_numbers_say():
    """Two evaluations, at the lower left and the upper right corner of axes that run from 20 to 30 and 0 to 10."""
    metrics = [{"step": 0, "eval_mean_iou": 0.2}, {"step": 10, "eval_mean_iou": 0.3}]
    found = marks(draw_curves(metrics), COLOURS[0])
    left = found[found[:, 1] < WIDTH]
    top, right = left[left[:, 0].argmin()], left[left[:, 1].argmax()]
    assert left[:, 0].max() == pytest.approx(HEIGHT - MARGIN[3] + 4, abs=2)  # a dot's radius below its centre
    assert left[:, 1].min() == pytest.approx(MARGIN[0] - 4, abs=2)
    assert top[0] == pytest.approx(MARGIN[1] - 4, abs=2) and right[1] == pytest.approx(WIDTH - MARGIN[2] + 4, abs=2)


def test_each_loss_has_a_colour_and_its_height():
    metrics = [{"step": s, "loss": 3.0, "loss_supervised": 1.0, "loss_unsupervised": 2.0} for s in range(10, 110, 10)]
    picture = draw_curves(metrics)
    heights = [marks(picture, colour) for colour in COLOURS[:2]]
    # 1 and 2 of axes that run from 0 to 2.
    bottom, top = HEIGHT - MARGIN[3], MARGIN[1]
    assert np.median(heights[0][:, 0]) == pytest.approx((bottom + top) / 2, abs=2)
    assert np.median(heights[1][:, 0]) == pytest.approx(top, abs=2)


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 5, "eval_mean_iou": None}],
        [{"step": 1, "loss": None, "loss_supervised": None}, {"step": 2, "loss_supervised": float("nan")}],
        [{"step": 7, "loss_supervised": 0.0, "values": [1, 2]}, {"step": 7, "eval_mean_iou": 0.0}],
    ],
)
def test_little_to_draw(metrics):
    assert draw_curves(metrics).size == (2 * WIDTH, HEIGHT)


def test_a_line_that_was_not_finished_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "eval_mean_iou": 0.5}) + '\n{"step": 2, "eva')
    assert read_metrics(path) == [{"step": 1, "eval_mean_iou": 0.5}]
    save_curves(path, tmp_path / ".curves.png.partial")
    assert Image.open(tmp_path / ".curves.png.partial").format == "PNG"
