"""benchmarks/planted_mistakes.py: what it plants, where it writes it, and what it counts."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.sources import load_source

PATH = Path(__file__).parents[2] / "benchmarks" / "planted_mistakes.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mask() -> np.ndarray:
    """A road under a sky that is ignored at its left, a car on the road."""
    ids = np.zeros((60, 100), np.uint8)
    ids[:, :10], ids[30:, 10:], ids[40:52, 40:60] = IGNORE, 1, 2
    return ids


def test_an_object_gets_another_class(bench):
    wrong, planted = bench.plant(mask(), "class", [0, 1, 2, 3], np.random.default_rng(0), "x")
    # Sky and road are too large to be objects.
    assert (planted.id, planted.kind, planted.box, planted.was) == ("x", "class", (40, 40, 20, 12), 2)
    assert planted.labelled in (0, 1, 3) and (wrong[40:52, 40:60] == planted.labelled).all()
    assert ((wrong != mask()) == (mask() == 2)).all()


def test_an_object_becomes_what_surrounds_it(bench):
    wrong, planted = bench.plant(mask(), "missing", [0, 1, 2, 3], np.random.default_rng(0))
    assert (planted.labelled, planted.was) == (1, 2) and (wrong[30:, 10:] == 1).all()
    assert bench.plant(np.zeros((60, 100), np.uint8), "missing", [0, 1], np.random.default_rng(0)) is None
    lonely = np.where(mask() == 2, mask(), np.uint8(IGNORE))
    assert bench.plant(lonely, "missing", [0, 1, 2], np.random.default_rng(0)) is None


def test_a_mask_moves_by_8_to_16_pixels(bench):
    ids = np.random.default_rng(0).integers(0, 200, (60, 100)).astype(np.uint8)
    for seed in range(20):
        wrong, _ = bench.plant(ids, "shift", [0], np.random.default_rng(seed))
        # Its middle is to be found somewhere in the whole mask, and nowhere else.
        (y,), (x,) = np.nonzero(
            (np.lib.stride_tricks.sliding_window_view(ids, (8, 8)) == wrong[26:34, 46:54]).all((2, 3))
        )
        assert 7.2 <= np.hypot(y - 26, x - 46) <= 16.8
    wrong = bench.shifted(ids, 3, -2)
    assert (wrong[:-2, 3:] == ids[2:, :-3]).all() and (wrong[:-2, :3] == ids[2:, :1]).all()


def test_a_share_of_the_masks_is_wrong_a_third_of_each_kind(bench):
    masks = [mask() for _ in range(60)]
    wrong, planted = bench.plant_all(masks, [f"i{n}" for n in range(60)], 0.2, seed=3)
    assert [p.kind for p in planted] == ["class", "shift", "missing"] * 4 and len({p.id for p in planted}) == 12
    assert {f"i{n}" for n in range(60) if (wrong[n] != masks[n]).any()} == {p.id for p in planted}
    assert all((m == mask()).all() for m in masks)
    assert bench.plant_all(masks, [f"i{n}" for n in range(60)], 0.2, seed=3)[1] == planted


def test_scores_are_counted(bench):
    planted = [
        bench.Planted(f"p{n}", kind, (0, 0, 1, 1)) for n, kind in enumerate(["class", "shift", "missing", "shift"])
    ]
    order = [("p1", "shift"), ("x", "class"), ("p0", "missing"), ("y", "class"), ("p2", "missing")]
    found = bench.scores(planted, [{"id": name, "kind": kind} for name, kind in order], 40)
    assert found["precision"] == {"4": 0.5, "10": 0.3, "20": 0.15} and found["precision_by_chance"] == 0.1
    assert found["recall"] == {"class": 1, "shift": 0.5, "missing": 0}
    assert found["kind_told"] == {"class": 0, "shift": 0.5, "missing": 1}


def test_the_copy_differs_where_it_says_so(bench, tiny_data, tmp_path):
    bench.write_data(str(tiny_data), tmp_path / "data", 0.25, 0)
    planted = {p["id"] for p in json.loads((tmp_path / "data" / "mistakes.json").read_text())["planted"]}
    assert len(planted) == 6
    for subset in ("train", "validation"):
        old, new = (load_source(str(folder), subset) for folder in (tiny_data, tmp_path / "data"))
        assert old.ids == new.ids and old.class_names == new.class_names
        pairs = [(old.read_label(row), new.read_label(row)) for row in range(len(old.ids))]
        wrong = {name for name, (a, b) in zip(old.ids, pairs, strict=True) if (a != b).any()}
        assert wrong == (planted if subset == "train" else set())
        assert all((old.read_image(row) == new.read_image(row)).all() for row in (0, len(old.ids) - 1))


def test_each_image_is_held_out_of_one_fold(bench, tmp_path):
    ids = [f"i{n}" for n in range(10)]
    lists = bench.write_folds(ids, tmp_path / "lists", 0)
    learnt = [path.read_text().split() for path in lists.values()]
    assert sorted(name for fold in learnt for name in fold) == sorted(ids * 2) and len(learnt) == 3
    assert {len(fold) for fold in learnt} == {6, 7}
