"""What a table says of the room that labels leave, and of the place where a method passes SupOnly."""

import pytest

from u2pl_hf.measure.room import CANNOT_TELL, HEAD, ahead_from, crossing, mean_curve, room_lines, room_rows
from u2pl_hf.measure.table_picture import has_curves, save_table_curves


def run(method, seed, score, *, labelled=10, split="10", steps=100, curve=None):
    return {"method": method, "seed": seed, "num_labelled": labelled, "split": split, "max_steps": steps,
            "batch_size_labelled": 4, "hardware": {"processes": 2}, "last": {"mean_iou": score},
            "curve": curve}  # fmt: skip


def groups(ceiling=0.5):
    base = [run("suponly", seed, score) for seed, score in ((0, 0.30), (1, 0.20), (2, 0.34))]
    rows = [("SupOnly", base)]
    if ceiling:
        rows.append(("all", [run("suponly", 0, ceiling, labelled=90, split="all")]))
    return [*rows, ("Ours", [run("u2pl", 0, 0.36), run("u2pl", 1, 0.24), run("u2pl", 7, 0.9)])]


def test_gains_are_of_the_same_seed_and_a_share_of_the_room():
    # Room: 0.5 - (0.30 + 0.20 + 0.34) / 3 = 0.22; gains 0.06 and 0.04, of seed 7 there is no SupOnly.
    assert room_rows(groups()) == [HEAD, ["Ours", "10", "+5.0", "+6.0 +4.0", "23 %", "-"]]
    told = "SupOnly ends at 28.0 with 10 labels and at 50.0 with 90: room for 22.0 points."
    assert room_lines(groups()) == [told]


def test_suponly_with_copy_paste_is_weighed_as_a_method():
    pasted = [run("suponly", 0, 0.32) | {"settings": {"copy_paste_probability": 0.5}}]
    rows = room_rows([("pasted", pasted), *groups()])
    assert rows[1] == ["pasted", "10", "+2.0", "+2.0", "9 %", "-"] and rows[2] == room_rows(groups())[1]


def test_little_room_cannot_tell():
    assert room_rows(groups(ceiling=0.35))[1][4] == CANNOT_TELL
    (line,) = room_lines(groups(ceiling=0.35))
    assert "room for 7.0 points, under 8, so this cannot tell" in line


def test_without_a_ceiling_the_room_is_not_known():
    assert room_rows(groups(ceiling=None))[1][4] == "-"
    assert "not known" in room_lines(groups(ceiling=None))[0]


@pytest.mark.parametrize("change", [{"labelled": 11}, {"steps": 200}])
def test_other_labels_or_steps_are_not_compared(change):
    rows = [*groups()[:2], ("Ours", [run("u2pl", 0, 0.36, **change)])]
    assert room_rows(rows) == [HEAD] and room_lines(rows) == []


def test_the_crossing_is_where_a_method_stays_ahead():
    def of(*scores, seed=0, method="u2pl"):
        return [run(method, seed, 0.3, curve=[[10 * (i + 1), score] for i, score in enumerate(scores)])]

    base = of(0.1, 0.2, 0.25, 0.25, method="suponly")
    # A step has 4 labelled images in each of 2 processes.
    assert mean_curve(base) == {80: 0.1, 160: 0.2, 240: 0.25, 320: 0.25}
    assert crossing(of(0.2, 0.1, 0.26, 0.3), base) == 240 and ahead_from(of(0.2, 0.1, 0.26, 0.3), base) == "240 images"
    assert ahead_from(of(0.2, 0.3, 0.3, 0.25), base) == "never"
    assert crossing(of(0.2, 0.3, 0.3, 0.3), base) == 80
    # The mean of two seeds, at the evaluations of both.
    assert mean_curve(of(0.1, 0.2) + of(0.3, 0.4, 0.5, seed=1)) == pytest.approx({80: 0.2, 160: 0.3})
    assert ahead_from([run("u2pl", 0, 0.3)], base) == "-"
    # SupOnly's curve is that of the same seeds.
    assert crossing(of(0.2, 0.3, 0.3, 0.3), base + of(0.9, 0.9, 0.9, 0.9, seed=1, method="suponly")) == 80


def test_curves_are_drawn_where_a_method_and_suponly_have_some(tmp_path):
    curve = [[10, 0.1], [20, 0.2]]
    rows = [("SupOnly", [run("suponly", 0, 0.2, curve=curve)]), ("Ours", [run("u2pl", 0, 0.3, curve=curve)])]
    assert has_curves(rows) and not has_curves(groups()) and not has_curves(rows[:1])
    save_table_curves([*rows, *groups()], tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
