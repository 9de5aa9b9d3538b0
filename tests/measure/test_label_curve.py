"""What labels bring, and what methods bring beside them, by numbers that are reckoned by hand."""

from fractions import Fraction

import pytest

from u2pl_hf.measure.comparison import BASE, HALF, TWICE, Arm, weigh
from u2pl_hf.measure.label_curve import curve_lines, label_curve, label_facts, label_lines, label_rows

ARMS = [
    Arm(BASE, "SupOnly"),
    Arm("good", "Good"),
    Arm("bad", "Bad"),
    Arm(TWICE, "Longer"),
    Arm(HALF, "Half", share=Fraction(1, 2)),
    Arm("suponly_quarter", "Quarter", share=Fraction(1, 4)),
]


def run(score: float, labelled: int) -> dict:
    scores = {"mean_iou": score, "per_class_iou": {"sky": score}}
    return {"class_names": ["sky"], "last": scores, "best": scores, "num_labelled": labelled}


def curve_of(half=(0.45, 0.43), **others):
    scores = {BASE: (0.50, 0.52), "good": (0.53, 0.54), "bad": (0.49, 0.51), TWICE: (0.5, 0.5), HALF: half}
    scores |= {"suponly_quarter": (0.30, 0.32)} | others
    labelled = {HALF: (6, 7), "suponly_quarter": (3, 3)}
    results = {}
    for name, each in scores.items():
        pairs = zip(each, labelled.get(name, (12, 13)), strict=True)
        results[name] = [None if score is None else run(score, number) for score, number in pairs]
    return label_curve(weigh([arm for arm in ARMS if arm.id in results], results))


def test_a_gain_is_told_as_a_part_of_what_labels_bring():
    curve = curve_of()
    assert [s.number for s in curve.shares] == [3, 6.5, 12.5]
    assert [s.mean for s in curve.shares] == pytest.approx([0.31, 0.44, 0.51])
    # 5 and 9 points by the other half; 3 and 2 by the good method.
    assert curve.room.each == pytest.approx([0.05, 0.09]) and curve.room.mean == pytest.approx(0.07)
    assert [gain.mean for gain in curve.gains] == pytest.approx([0.025, -0.01])
    assert [gain.of_room for gain in curve.gains] == pytest.approx([2.5 / 7, -1 / 7])
    # Two values that differ by 2 d deviate by d times the root of 2.
    assert label_rows(curve)[1:] == [
        ["Quarter", "3", "31.00", "1.41"],
        ["Half", "6", "44.00", "1.41"],
        ["SupOnly", "12", "51.00", "1.41"],
    ]
    assert label_lines(curve) == [
        "The other half of the labels brings SupOnly +7.0 ± 2.8 points.",
        "Good: +2.5 points, 36 % of what the other half of the labels brings.",
        "Bad: -1.0 points.",
    ]
    facts = label_facts(curve)
    assert [share["share"] for share in facts["suponly"]] == [0.25, 0.5, 1]
    assert facts["suponly"][1]["deviation"] == pytest.approx(0.01 * 2**0.5)
    assert facts["methods"]["good"]["of_last_doubling"] == pytest.approx(2.5 / 7)


def test_the_picture_has_methods_at_all_labels():
    suponly, good, bad, further = curve_lines(curve_of()).values()
    assert [number for number, _ in suponly] == [3, 6.5, 12.5]
    assert [score for _, score in suponly] == pytest.approx([31, 44, 51])
    assert good == [(12.5, pytest.approx(53.5))] and bad == [(12.5, pytest.approx(50))]
    # On a line over doublings, the good method lies 2.5 / 7 of a doubling ahead.
    assert further == [(12.5, pytest.approx(51)), (25, pytest.approx(58))]
    assert len(curve_lines(curve_of(half=(0.495, 0.515)))) == 3


def test_little_room_and_missing_runs():
    little = curve_of(half=(0.495, 0.515))
    assert [gain.of_room for gain in little.gains] == [None, None]
    line, *gains = label_lines(little)
    assert line.endswith("+0.5 ± 0.0 points, less than one: too little to measure methods by.")
    assert gains == ["Good: +2.5 points.", "Bad: -1.0 points."]
    assert label_facts(little)["methods"]["good"]["of_last_doubling"] is None
    # Pairs alone count: 5 points of the first fold.
    one = curve_of(half=(0.45, None))
    assert one.room.each == pytest.approx([0.05]) and label_rows(one)[2] == ["Half", "6", "45.00", ""]
    line, *_ = label_lines(curve_of(half=(None, None)))
    assert line == "What the other half of the labels brings is not known: SupOnly with half of them was not run."
    assert curve_of(half=(None, None), suponly_quarter=(None, None)) is None
    assert curve_of(suponly=(None, None)) is None
