"""The rule of `u2pl compare`, against Student's t from a table of its own and against cases that are plain to see."""

import math

import numpy as np
import pytest

from u2pl_hf.measure.verdict import T90, difference, judge, winner

BASE = [0.50, 0.52, 0.51]


def shifted(*points: float) -> list[float]:
    return [score + point / 100 for score, point in zip(BASE, points, strict=True)]


def test_paired_differences():
    d = difference([0.5, None, 0.7, 0.9], [0.4, 0.3, 0.5, 0.6])
    each = np.array([0.1, 0.2, 0.3])
    assert np.allclose(d.each, each) and math.isclose(d.mean, 0.2) and math.isclose(d.deviation, each.std(ddof=1))
    # Of two degrees of freedom, 90 % of Student's t lie below 4 p (1 - p) = 0.36: t = (2 p - 1) sqrt(2 / 0.36).
    t = 0.8 * math.sqrt(2 / 0.36)
    assert d.lower == pytest.approx(0.2 - t * 0.1 / math.sqrt(3), abs=1e-4)
    assert d.upper == pytest.approx(0.2 + t * 0.1 / math.sqrt(3), abs=1e-4)
    assert difference([None], [0.1]) is None
    alone = difference([0.9], [0.1])
    assert alone.deviation is None and alone.lower == -math.inf and alone.upper == math.inf


def test_quantiles_are_those_of_draws():
    rng = np.random.default_rng(0)
    for freedom in (1, 4, 9):
        draws = rng.standard_normal((400_000, freedom + 1))
        t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(freedom + 1))
        assert (t < T90[freedom - 1]).mean() == pytest.approx(0.9, abs=0.003)


@pytest.mark.parametrize(
    ("method", "twice", "half", "kind"),
    [
        (shifted(3, 4, 3), shifted(1, 1, 2), shifted(-4, -5, -4), "helps"),
        (shifted(3, 4, 3), None, None, "helps"),
        # As sure, but SupOnly gets as far in the same time.
        (shifted(3, 4, 3), shifted(4, 4, 4), shifted(-4, -5, -4), "too early"),
        (shifted(0, 1, -1), shifted(2, 3, 1), shifted(-0.2, 0, 0.1), "too early"),
        (shifted(0, 1, -1), shifted(0.3, 0, 0), shifted(-0.2, 0, 0.1), "no room"),
        (shifted(0, 1, -1), shifted(0.3, 0, 0), shifted(-3, -4, -3), "no gain shown"),
        # A large mean that rests on one of three.
        (shifted(9, 0, 0), shifted(0.3, 0, 0), shifted(-3, -4, -3), "no gain shown"),
        # Sure, and less than a point.
        (shifted(0.5, 0.6, 0.5), shifted(0.3, 0, 0), shifted(-3, -4, -3), "no gain shown"),
        (shifted(-3, -4, -3), shifted(0.3, 0, 0), shifted(-3, -4, -3), "hurts"),
        (shifted(-3, -4, -3), shifted(2, 2, 2), shifted(-3, -4, -3), "too early"),
    ],
)
def test_the_rule(method, twice, half, kind):
    assert judge(method, BASE, twice=twice, half=half).kind == kind


def test_what_copy_paste_brings_is_not_counted_as_the_methods():
    twice, method = shifted(1, 1, 2), shifted(3, 4, 3)
    found = judge(method, BASE, twice=twice, pasted=shifted(1, 1, 1))
    told = "+3.3 points over SupOnly, and +2.0 over SupOnly with twice the steps and +2.3 over SupOnly with copy-paste"
    assert found.kind == "helps" and found.words == told
    found = judge(method, BASE, twice=BASE, pasted=shifted(4, 4, 4))
    assert found.kind == "no gain shown" and found.words.endswith("not above SupOnly with copy-paste")
    assert judge(method, BASE, twice=BASE, pasted=[None] * 3).kind == "helps"


def test_runs_that_are_missing():
    assert judge([None] * 3, BASE) is None
    found = judge([0.9, None, None], BASE)
    assert (
        found.kind == "no gain shown"
        and "a single pair" in found.words
        and "less than a point" in judge(shifted(0.5, 0.6, 0.5), BASE).words
    )
    # Controls that are not there yet decide nothing.
    assert judge(shifted(3, 4, 3), BASE, twice=[None] * 3, half=[None] * 3).kind == "helps"


def test_classes_that_are_hurt():
    classes = {
        "road": ([0.9, 0.9, 0.91], [0.9, 0.89, 0.9]),
        "person": ([0.1, 0.12, 0.1], [0.3, 0.33, 0.31]),
        "once": ([0.1, 0.5, 0.5], [0.5, 0.5, 0.5]),
        "absent": ([None] * 3, [None] * 3),
    }
    assert judge(shifted(3, 4, 3), BASE, classes=classes).hurt == ["person"]


def test_the_winner_helps_most():
    verdicts = {"a": judge(shifted(3, 4, 3), BASE), "b": judge(shifted(5, 6, 5), BASE), "c": judge(BASE, BASE)}
    assert winner(verdicts, {"a": 0.03, "b": 0.05, "c": 0.0}) == "b"
    assert winner({"c": verdicts["c"]}, {"c": 0.0}) is None
