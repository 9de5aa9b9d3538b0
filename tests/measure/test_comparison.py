"""What is made of the results of a comparison's runs, given as results.json has them."""

import re
from fractions import Fraction

from u2pl_hf.measure.comparison import BASE, HALF, PASTED, TWICE, Arm, best_of, fitting, headline, weigh
from u2pl_hf.measure.comparison_page import class_rows, render, score_rows, verdict_lines

ARMS = [Arm(name, f"<{name}>", {"method": BASE}) for name in (BASE, "other", TWICE)]
ARMS.append(Arm(HALF, f"<{HALF}>", {"method": BASE}, Fraction(1, 2)))


def run(mean: float, road: float | None = 0.5, **more) -> dict:
    scores = {"step": 9, "mean_iou": mean, "per_class_iou": {"ro<ad": road, "sky": mean}}
    return {
        "class_names": ["ro<ad", "sky"],
        "last": scores,
        "best": scores,
        "seconds": 60.0,
        "peak_memory_mb": 700,
        "num_labelled": 6,
    } | more


def found(other=(0.60, 0.62), roads=(0.3, 0.31), **more):
    results = {BASE: [run(0.50), run(0.52)], "other": [run(m, r, **more) for m, r in zip(other, roads, strict=True)]}
    return weigh(ARMS, results | {TWICE: [run(0.51), run(0.53)], HALF: [run(0.30), None]})


def test_an_arm_is_weighed_against_suponly():
    base, other, twice, half = found()
    assert base.gain is None and base.verdict is None and twice.verdict is None
    assert [round(d, 6) for d in other.gain.each] == [0.1, 0.1] and other.verdict.kind == "helps"
    assert other.verdict.hurt == ["ro<ad"] and round(other.classes["sky"].mean, 6) == 0.1
    assert (
        len(half.gain.each) == 1 and best_of(found()) == "other" and headline(found()).startswith("Yes, <other> helps")
    )
    nothing = found(other=(0.505, 0.521))
    assert best_of(nothing) is None and headline(nothing).startswith("Too early: <other>")


def test_a_winner_that_needs_no_unlabelled_image_is_called_that():
    arms = [ARMS[0], Arm("other", "AEL", {}, pasted=0.5), Arm(PASTED, "SupOnly + copy-paste", {}, pasted=0.5)]
    results = {BASE: [run(0.50), run(0.52)], "other": [run(0.60), run(0.62)], PASTED: [run(0.55), run(0.57)]}
    assert headline(weigh(arms, results)).startswith("Yes, AEL helps: +10.0 points over SupOnly, and +5.0 over SupOnly")
    _, other, pasted = found = weigh(arms, results | {PASTED: [run(0.61), run(0.63)]})
    assert other.verdict.kind == "no gain shown" and pasted.verdict.kind == "helps" and best_of(found) == PASTED
    assert headline(found).startswith("No unlabelled image is needed: SupOnly + copy-paste helps most, +11.0")


def test_rows_say_what_was_measured():
    _, base, other, _, half = score_rows(found())
    assert base == ["<suponly>", "51.00", "1.41", "51.00", "", "", "", "1.0", "700"]
    assert other[1:7] == ["61.00", "1.41", "61.00", "+10.0", "0.0", "+10.0 +10.0"] and half[4:7] == [
        "-20.0",
        "",
        "-20.0",
    ]
    assert class_rows(found())[1][:3] == ["ro<ad", "50.0", "-19.5 ± 0.7"]
    gains = "+10.0 points over SupOnly, and +9.0 over SupOnly with twice the steps"
    assert verdict_lines(found()) == [f"<other>: helps, {gains}; hurts these classes: ro<ad"]


def test_the_page_escapes_and_passes_on_warnings():
    signs = [
        {"step": 4, "kind": "lost", "line": "<sky> is lost", "classes": ["<sky>"]},
        {"step": 6, "kind": "lost", "line": "roof is lost", "classes": ["roof"]},
        {"step": 9, "kind": "stuck", "line": "stuck at 1"},
    ]
    page = render(
        "Tea & <cake>",
        found(health=signs),
        about="a",
        missing=["x_fold1"],
        further=[{"words": "w", "command": "c <d>"}],
        circumstances="c",
        curves=None,
        label_picture="labels.png",
        pictures="pictures.png",
    )
    assert "<title>Tea &amp; &lt;cake&gt;</title>" in page and "c &lt;d&gt;" in page and "x_fold1" in page
    assert "&lt;other&gt;: +10.0 points, 50 % of what the other half" in page and 'src="labels.png"' in page
    assert "&lt;other&gt;, 2 of 2 runs: &lt;sky&gt; is lost; later, or in other runs, roof" in page
    assert page.count("is lost") == 1 and "&lt;other&gt;, 2 of 2 runs: stuck at 1" in page
    assert not re.search("<(other|sky|suponly|d|cake)>", page) and "curves.png" not in page


def test_options_go_to_those_who_take_them():
    assert fitting(["--frequent_classes", "sky", "--seed", "1"], "u2pl_ael") == ["--seed", "1"]
    assert fitting(["--frequent_classes", "sky"], "suponly", pastes=True) == ["--frequent_classes", "sky"]
    told = ["--warmup_steps", "3", "--seed", "1", "--confidence_threshold=0.8", "--aspp_dilations", "1", "2", "3"]
    assert fitting(told, "suponly") == ["--seed", "1", "--aspp_dilations", "1", "2", "3"]
    assert fitting(told, "fixmatch") == [*told[2:]]
    assert fitting(told, "u2pl") == [*told[:4], *told[5:]]
