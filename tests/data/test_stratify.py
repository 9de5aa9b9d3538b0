import numpy as np
import pytest

from u2pl_hf.data.source.splits import parts_of, stratified_draw


def drawn_rows(presence, number, seed=0):
    return stratified_draw(np.asarray(presence, bool), number, np.random.default_rng(seed))


def test_classes_that_occur_often_enough_are_always_drawn():
    rng = np.random.default_rng(1)
    tested = 0
    for _ in range(500):
        images, classes = int(rng.integers(1, 100)), int(rng.integers(1, 25))
        frequencies = rng.choice([0.01, 0.03, 0.1, 0.3, 0.9], classes)
        presence = rng.random((images, classes)) < frequencies
        number = int(rng.integers(1, images + 1))
        rows = drawn_rows(presence, number)
        assert len(set(rows)) == len(rows) == number
        expected_once = [c for c in range(classes) if sum(presence[:, c]) >= images / number]
        if len(expected_once) <= number:
            tested += 1
            assert all(any(presence[r, c] for r in rows) for c in expected_once)
    assert tested > 300


def test_one_class_per_image_gives_the_rounded_shares():
    counts = [64, 32, 16, 16, 160]
    presence = np.repeat(np.eye(5, dtype=bool), counts, axis=0)
    for number in (18, 36, 72, 144):
        rows = drawn_rows(presence, number, seed=number)
        assert presence[rows].sum(0).tolist() == [c * number // 288 for c in counts]


def test_proportions_are_closer_than_those_of_a_uniform_draw():
    """As in a real data set: one class nearly everywhere, one frequent, many rarer ones."""
    rng = np.random.default_rng(0)
    presence = rng.random((1464, 21)) < np.r_[0.98, 0.4, rng.uniform(0.02, 0.12, 19)]
    for number in (92, 366):
        ideal = presence.sum(0) * number / 1464
        assert np.abs(presence[drawn_rows(presence, number)].sum(0) - ideal).max() <= 1
        uniform = np.random.default_rng(0).permutation(1464)[:number]
        assert np.abs(presence[uniform].sum(0) - ideal).max() > 4


@pytest.mark.parametrize("presence", [np.zeros((7, 3)), np.ones((7, 3)), np.zeros((7, 0))])
def test_images_that_do_not_differ(presence):
    rows = {tuple(drawn_rows(presence, 3, seed)) for seed in range(20)}
    assert {len(r) for r in rows} == {3} and len(rows) > 5


def test_the_seed_alone_decides():
    presence = np.random.default_rng(2).random((50, 6)) < 0.2
    assert (drawn_rows(presence, 9, 4) == drawn_rows(presence, 9, 4)).all()
    assert set(drawn_rows(presence, 9, 4)) != set(drawn_rows(presence, 9, 5))


def test_parts_hold_all_once_and_share_every_class():
    presence = np.repeat(np.eye(4, dtype=bool), [30, 12, 9, 3], axis=0)
    parts = parts_of(presence, 3, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(54))
    assert [presence[part].sum(0).tolist() for part in parts] == [[10, 4, 3, 1]] * 3
    sizes = [len(part) for part in parts_of(np.zeros((8, 2), bool), 3, np.random.default_rng(0))]
    assert sorted(sizes) == [2, 3, 3]
