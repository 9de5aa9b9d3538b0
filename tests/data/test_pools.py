"""Pools of further images against the streams that they stand beside."""

import numpy as np
import pytest
import torch

from tests.data.rows import encode, make_source, make_table, numbered_source, write_parquet
from u2pl_hf.data.source.checks import check_classes, check_labelled
from u2pl_hf.data.sources import load_source
from u2pl_hf.data.stream.pools import Reservoir, RowPool
from u2pl_hf.data.stream.streams import SampleStream, endless_loader
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError


def make_stream(source, name="unlabelled", indices=None, **layout) -> SampleStream:
    indices = list(range(len(source.ids))) if indices is None else indices
    return SampleStream(
        source, indices, WeakAugmentation(9), seed=0, name=name, with_labels=name == "labelled", **layout
    )


def ask(pool, rows: list[int], seeds: list[int]) -> dict:
    return pool.receive(pool.request(torch.tensor(rows), torch.tensor(seeds)))


def as_it_is(loaded: dict) -> dict:
    return loaded


def test_any_row_with_its_label_and_nothing_for_minus_one():
    source = numbered_source(7)
    pool = RowPool(make_stream(source, "labelled", indices=[1, 3, 5, 6]), as_it_is)
    assert pool.size == 4 and pool.reachable() == (0, 4)
    got = ask(pool, [2, -1, 0], [4, 5, 6])
    assert got["ids"] == ["im_5", "", "im_1"] and got["rows"].tolist() == [2, -1, 0]
    for place, row in ((0, 5), (2, 1)):
        valid = got["valid"][place]
        assert (got["pixel_values"][place][:, valid] == row).all() and (got["labels"][place][valid] == row % 4).all()
    assert not got["valid"][1].any() and (got["labels"][1] == 255).all()


def test_equal_seeds_give_equal_crops_and_others_differ():
    source = make_source([encode(np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8))])
    pool = RowPool(make_stream(source), as_it_is)
    first, second = (ask(pool, [0, 0, 0], [1, 1, 2])["pixel_values"] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_damaged_rows():
    images = [encode(np.full((12, 12, 3), i, np.uint8)) for i in range(3)]
    images[1] = images[1][:40]
    source = make_source(images, [encode(np.zeros((12, 12), np.uint8))] * 3)
    got = ask(RowPool(make_stream(source), as_it_is), [1], [0])
    assert got["ids"] == ["im_2"] and "im_1" in got["skipped"][0]
    with pytest.raises(InputError, match="im_1"):
        ask(RowPool(make_stream(source, "labelled"), as_it_is), [1], [0])


def test_rows_of_batches_are_places_in_the_list():
    stream = make_stream(numbered_source(10), indices=[9, 7, 5, 3, 1], batch_size=2)
    pool, batches = RowPool(stream, as_it_is), iter(endless_loader(stream))
    for _ in range(5):
        batch = next(batches)
        assert [f"im_{[9, 7, 5, 3, 1][row]}" for row in pool.add(batch)] == batch["ids"]


@pytest.fixture
def streamed(tmp_path):
    images = [encode(np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8)) for i in range(24)]
    return load_source(str(write_parquet(tmp_path / "set", make_table(images))), label_column=None, streaming=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_reservoir_gives_the_crops_that_were_served_last(streamed, rank):
    """Against a list of everything that was served; and a reservoir that starts in the middle, as a resumed run's."""
    layout = {"batch_size": 3, "world_size": 2}
    options = {"rank": rank, "max_bytes": 7 * 4 * 81}
    batches = iter(endless_loader(make_stream(streamed, **layout), rank=rank))
    pool, served, rows = Reservoir(make_stream(streamed, **layout), as_it_is, **options), [], []
    assert pool.size == 14 and pool.reachable() == (7 * rank, 7 * rank + 3)
    for number in range(9):
        if number == 0:  # Nothing has been served: the first batch's own crops.
            early = ask(pool, [7 * rank + 2], [0])
        batch = next(batches)
        places = pool.add(batch).tolist()
        assert places == [7 * rank + n % 7 for n in range(3 * number, 3 * number + 3)]
        served += list(batch["pixel_values"])
        rows += batch["rows"].tolist()
        assert torch.equal(early["pixel_values"][0], served[2])
        filled = min(7, len(served))
        assert pool.reachable() == (7 * rank, 7 * rank + filled) and len(pool.crops) == filled
        resumed = Reservoir(make_stream(streamed, **layout), as_it_is, start=len(served), **options)
        for reservoir in (pool, resumed):
            got = ask(reservoir, list(range(7 * rank, 7 * rank + filled)), [0] * filled)
            for place in range(filled):
                last = max(n for n in range(len(served)) if n % 7 == place)
                assert torch.equal(got["pixel_values"][place], served[last])
                assert got["rows"][place] == rows[last]


def test_a_reservoir_is_not_larger_than_the_set_and_holds_a_batch(streamed):
    assert Reservoir(make_stream(streamed), as_it_is).size == 24
    assert Reservoir(make_stream(streamed, batch_size=5), as_it_is, max_bytes=1).size == 5


def test_requests_are_not_touched_by_the_next_batch(streamed):
    stream = make_stream(streamed, batch_size=2)
    pool, batches = Reservoir(stream, as_it_is, max_bytes=2 * 4 * 81), iter(endless_loader(stream))
    first = next(batches)
    pool.add(first)
    asked = pool.request(torch.tensor([0, 1]), torch.tensor([0, 0]))
    pool.add(next(batches))
    assert pool.receive(asked)["ids"] == first["ids"]


def test_label_counts():
    labels = [np.full((4, 6), c, np.uint8) for c in (0, 2, 0)]
    labels[2][0] = [1, 1, 255, 255, 255, 3]
    source = make_source([encode(np.zeros((4, 6, 3), np.uint8))] * 3, [encode(label) for label in labels])
    counts = check_labelled(source, [2, 1], 4, what="training").counts
    assert counts.tolist() == [[18, 2, 0, 1], [0, 0, 24, 0]]


def test_classes_without_a_pixel_are_told_and_one_class_teaches_nothing(caplog):
    names = ["sky", "road", "car"]
    check_classes(np.array([[5, 0, 2], [0, 0, 1]]), names, what="labelled", at_least=2)
    assert "1 of 3 classes have no pixel in the labelled images: road" in caplog.text
    check_classes(np.array([[0, 7, 0]]), names, what="evaluation", at_least=1)
    assert "2 of 3 classes have no pixel in the evaluation images: sky, car" in caplog.text
    with pytest.raises(InputError, match="the 2 labelled images have pixels of road alone, and 2 or more classes"):
        check_classes(np.array([[0, 7, 0], [0, 1, 0]]), names, what="labelled", at_least=2)
    for what, at_least in (("labelled", 2), ("evaluation", 1)):
        with pytest.raises(InputError, match=f"{what} images have pixels of no class .all are 255"):
            check_classes(np.zeros((4, 3), int), names, what=what, at_least=at_least)
    caplog.clear()
    check_classes(np.array([[1, 1, 1]]), names, what="labelled", at_least=2)
    assert not caplog.text
