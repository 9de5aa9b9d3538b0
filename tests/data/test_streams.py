import dataclasses
import itertools

import pytest
import torch

from tests.data.rows import encode, make_source, numbered_source
from u2pl_hf.data.streams import SampleStream, endless_loader
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError


def make_stream(source, name="labelled", with_labels=True, seed=0, indices=None) -> SampleStream:
    indices = list(range(len(source.ids))) if indices is None else indices
    return SampleStream(source, indices, WeakAugmentation(9), seed=seed, name=name, with_labels=with_labels)


def take(loader, count: int) -> list[dict]:
    return list(itertools.islice(iter(loader), count))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_row_once_per_epoch_and_none_shared(workers, processes):
    source = numbered_source(12)
    batches = [
        take(endless_loader(make_stream(source), 3, rank=r, world_size=processes, num_workers=workers), 12 // processes)
        for r in range(processes)
    ]
    for epoch in range(3):
        per_process = 4 // processes
        part = slice(epoch * per_process, (epoch + 1) * per_process)
        ids = [i for of_process in batches for batch in of_process[part] for i in batch["ids"]]
        assert sorted(ids) == sorted(source.ids)
    orders = [tuple(i for b in batches[0][e * 4 // processes :][: 4 // processes] for i in b["ids"]) for e in range(3)]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_gives_the_very_next_sample(workers):
    source = numbered_source(7)
    whole = take(endless_loader(make_stream(source), 2), 14)
    for start in (0, 1, 5, 9):
        rest = take(endless_loader(make_stream(source), 2, start_batch=start, num_workers=workers), 14 - start)
        for expected, got in zip(whole[start:], rest, strict=True):
            assert expected["ids"] == got["ids"]
            assert all(torch.equal(expected[k], got[k]) for k in ("pixel_values", "valid", "labels"))


def test_streams_are_independent_of_each_other_and_of_other_seeds():
    source = numbered_source(50)
    orders = [
        [i for batch in take(endless_loader(make_stream(source, name, seed=seed), 5), 10) for i in batch["ids"]]
        for name, seed in (("labelled", 0), ("unlabelled", 0), ("labelled", 1))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_batches_have_the_promised_types():
    batch = take(endless_loader(make_stream(numbered_source(4)), 3), 1)[0]
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape == (3, 3, 9, 9)
    assert batch["labels"].dtype == torch.uint8 and batch["valid"].dtype == torch.bool and len(batch["ids"]) == 3


def test_labels_are_never_read_for_unlabelled_rows():
    source = numbered_source(5)
    blind = dataclasses.replace(source, rows=source.rows.remove_columns("label"))
    batch = take(endless_loader(make_stream(blind, "unlabelled", with_labels=False), 5), 1)[0]
    assert "labels" not in batch and sorted(batch["ids"]) == source.ids


def test_a_damaged_unlabelled_image_is_skipped_and_named_once(caplog):
    import numpy as np

    images = [encode(np.full((5, 5, 3), i, np.uint8)) for i in range(4)]
    images[2] = b"damaged"
    source = make_source(images)
    batches = take(endless_loader(make_stream(source, "unlabelled", with_labels=False), 4), 3)
    seen = [i for batch in batches for i in batch["ids"]]
    assert set(seen) == {"im_0", "im_1", "im_3"} and len(seen) == 12
    assert caplog.text.count("im_2") == 1
    with pytest.raises(InputError, match="none of the"):
        take(endless_loader(make_stream(source, "unlabelled", with_labels=False, indices=[2]), 1), 1)


def test_a_damaged_labelled_image_stops():
    with pytest.raises(InputError, match="im_0"):
        take(endless_loader(make_stream(make_source([b"x"], [b"x"])), 1), 1)
