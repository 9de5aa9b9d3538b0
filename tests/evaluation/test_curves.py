import json

import numpy as np
import pytest
from PIL import Image

from u2pl_hf.evaluation.curves import (
    COLOURS,
    HEIGHT,
    WIDTH,
    draw_curves,
    draw_doublings,
    draw_panels,
    read_metrics,
    save_curves,
)


def test_points_are_those_of_the_metrics():
    metrics = [{"step": s, "loss": 3.0, "loss_supervised": 1.0, "loss_unsupervised": s} for s in range(1, 101)]
    metrics += [{"step": 50, "eval_mean_iou": 0.2}, {"step": 100, "eval_mean_iou": 0.3}]
    scores, losses = draw_curves(metrics).axes
    (line,) = scores.lines
    assert np.allclose(line.get_xydata(), [(50, 20), (100, 30)]) and line.get_marker() == "o"
    assert [line.get_label() for line in losses.lines] == ["supervised", "unsupervised"]
    # Means over a fortieth of the steps, here 2; the first one is alone.
    assert np.allclose(losses.lines[1].get_xydata()[[0, 1, 99]], [(1, 1), (2, 1.5), (100, 99.5)])
    assert [line.get_color() for line in losses.lines] == list(COLOURS[:2]) and losses.get_ylim()[0] == 0
    for axes in (scores, losses):
        assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] >= 100
    assert "per cent" in scores.get_title("left") and [text.get_text() for text in losses.get_legend().get_texts()] == [
        "supervised", "unsupervised"]  # fmt: skip


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 5, "eval_mean_iou": None}],
        [{"step": 1, "loss": None, "loss_supervised": None}, {"step": 2, "loss_supervised": float("nan")}],
        [{"step": 7, "loss_supervised": 0.0, "values": [1, 2]}, {"step": 7, "eval_mean_iou": 0.0}],
        [{"step": 1, "loss_supervised": 1e300}, {"step": 2, "loss_supervised": 1e14}],
    ],
)
def test_little_to_draw(tmp_path, metrics):
    draw_curves(metrics).savefig(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (2 * WIDTH, HEIGHT)


def test_doublings_are_equally_wide():
    lines = {"all": [(25, 40.0), (50, 45.0), (100, 48.0)], "other": [(100, 50.0)], "more": [(100, 48.0), (200, 51.0)]}
    figure = draw_doublings("scores", lines, "labelled images", dashed="more")
    (axes,) = figure.axes
    at = axes.transData.transform([(x, 0) for x in (25, 50, 100, 200)])[:, 0]
    assert np.allclose(np.diff(at), at[1] - at[0])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["25", "50", "100", "200"]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "--"]
    assert [line.get_marker() for line in axes.lines] == ["o", "o", "None"]
    assert np.allclose(axes.lines[1].get_xydata(), [(100, 50)])


def test_no_two_of_many_lines_look_alike():
    (axes,) = draw_panels({"scores": {str(n): [(0, n), (9, n)] for n in range(7)}}, 9).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 7


def test_a_line_that_was_not_finished_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "eval_mean_iou": 0.5}) + '\n{"step": 2, "eva')
    assert read_metrics(path) == [{"step": 1, "eval_mean_iou": 0.5}]
    save_curves(path, tmp_path / ".curves.png.partial")
    assert Image.open(tmp_path / ".curves.png.partial").format == "PNG"
