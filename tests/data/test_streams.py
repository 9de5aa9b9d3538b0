import itertools
import zlib

import numpy as np
import pytest
import torch

from tests.data.rows import encode, make_source, make_table, numbered_source, write_parquet
from u2pl_hf.data.source import rows as rows_module
from u2pl_hf.data.sources import load_source
from u2pl_hf.data.stream.streams import SampleStream, endless_loader
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError


def make_stream(source, name="labelled", seed=0, indices=None, **layout) -> SampleStream:
    indices = list(range(len(source.ids))) if indices is None else indices
    with_labels = name == "labelled"
    return SampleStream(source, indices, WeakAugmentation(9), seed=seed, name=name, with_labels=with_labels, **layout)


def take(loader, count: int) -> list[dict]:
    return list(itertools.islice(iter(loader), count))


def drawn(batches: list[dict]) -> list[tuple[str, int]]:
    """(id, checksum of the augmented pixels) of each sample."""
    return [
        (name, zlib.crc32(pixels.numpy().tobytes()))
        for batch in batches
        for name, pixels in zip(batch["ids"], batch["pixel_values"], strict=True)
    ]


@pytest.fixture(scope="module", params=["local", "streamed, a row a group", "streamed, five rows a group"])
def source(request, tmp_path_factory):
    """24 rows, in memory or read from three parquet files in blocks of a few rows."""
    images = [encode(np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8)) for i in range(24)]
    labels = [encode(np.full((12, 12), i % 4, np.uint8)) for i in range(24)]
    if request.param == "local":
        yield make_source(images, labels)
        return
    group = 1 if "a row" in request.param else 5
    folder = write_parquet(tmp_path_factory.mktemp("set"), make_table(images, labels), shards=3, group=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK_BYTES", 3 * len(images[0]))
        patch.setattr("u2pl_hf.data.stream.order.WINDOW_BLOCKS", 2)
        yield load_source(str(folder), streaming=True)


@pytest.mark.parametrize("name", ["labelled", "unlabelled"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_three_epochs_hold_every_row_once_each_and_processes_share_none(source, name, workers, processes):
    per_epoch = 24 // 3 // processes
    of_process = [
        take(
            endless_loader(
                make_stream(source, name, batch_size=3, world_size=processes), rank=rank, num_workers=workers
            ),
            3 * per_epoch,
        )
        for rank in range(processes)
    ]
    orders = []
    for epoch in range(3):
        part = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        ids = [i for batches in of_process for batch in batches[part] for i in batch["ids"]]
        assert sorted(ids) == sorted(source.ids)
        orders.append(tuple(ids))
    assert len(set(orders)) == 3
    samples = [sample for batches in of_process for sample in drawn(batches)]
    assert len(set(samples)) > 60  # augmentations differ from epoch to epoch


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_twenty_times_the_sequence_is_the_same(source, processes):
    rng = np.random.default_rng(0)
    for rank in range(processes):
        layout = {"batch_size": 2, "world_size": processes}
        whole = drawn(take(endless_loader(make_stream(source, "unlabelled", **layout), rank=rank), 80))
        pieces, start = [], 0
        stops = [*np.sort(rng.choice(np.arange(1, 80), 20, replace=False)).tolist(), 80]
        for turn, stop in enumerate(stops):
            loader = endless_loader(
                make_stream(source, "unlabelled", **layout),
                rank=rank,
                start_batch=start,
                num_workers=2 if turn % 7 == 3 else 0,
            )
            pieces += drawn(take(loader, stop - start))
            start = stop
        assert pieces == whole


def test_uneven_rows_are_dealt_without_loss(tmp_path):
    """Seven rows over two streaming processes: each has epochs of its own share, and the shares are disjoint."""
    images = [encode(np.full((12, 12, 3), i, np.uint8)) for i in range(7)]
    source = load_source(str(write_parquet(tmp_path / "set", make_table(images))), label_column=None, streaming=True)
    for epoch in range(3):
        shares = [
            [
                i
                for b in take(endless_loader(make_stream(source, "unlabelled", world_size=2), rank=r), 4 * length)
                for i in b["ids"]
            ][epoch * length :][:length]
            for r, length in ((0, 3), (1, 4))
        ]
        assert sorted(shares[0] + shares[1]) == sorted(source.ids)
    with pytest.raises(InputError, match="7 images cannot be dealt to 8"):
        make_stream(source, "unlabelled", world_size=8)


def test_streaming_reads_each_block_once_per_epoch_and_no_label(tmp_path, monkeypatch):
    images = [encode(np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8)) for i in range(40)]
    table = make_table(images, [encode(np.zeros((12, 12), np.uint8))] * 40)
    source = load_source(str(write_parquet(tmp_path / "set", table, shards=2)), streaming=True)
    reads = []
    original = type(source.rows).read
    monkeypatch.setattr(
        type(source.rows),
        "read",
        lambda self, rows, role: reads.append((list(rows), role)) or original(self, rows, role),
    )
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 4 * len(images[0]))
    stream = make_stream(source, "unlabelled", indices=[i for i in range(40) if i % 5], batch_size=4)
    assert len(take(endless_loader(stream, num_workers=2), 8)) == 8
    rows = [row for part, _ in reads for row in part]
    assert {role for _, role in reads} == {"image"}
    assert not any(row % 5 == 0 for row in rows)
    assert max(map(len, (part for part, _ in reads))) > 1
    # Workers' batches are prepared ahead, so the second epoch may have begun.
    assert sorted(rows[:32]) == [i for i in range(40) if i % 5]


def test_streams_are_independent_of_each_other_and_of_other_seeds():
    source = numbered_source(50)
    orders = [
        [i for i, _ in drawn(take(endless_loader(make_stream(source, name, seed=seed, batch_size=5)), 10))]
        for name, seed in (("labelled", 0), ("unlabelled", 0), ("labelled", 1))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_batches_have_the_promised_types():
    batch = take(endless_loader(make_stream(numbered_source(4), batch_size=3)), 1)[0]
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape == (3, 3, 9, 9)
    assert batch["labels"].dtype == torch.uint8 and batch["valid"].dtype == torch.bool and len(batch["ids"]) == 3
    assert batch["skipped"] == []


def test_labels_are_never_read_for_unlabelled_rows():
    source = numbered_source(5)
    del source.rows.columns["label"]
    batch = take(endless_loader(make_stream(source, "unlabelled", batch_size=5)), 1)[0]
    assert "labels" not in batch and sorted(batch["ids"]) == source.ids


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_unlabelled_image_is_skipped_and_named(tmp_path, streaming):
    images = [encode(np.full((5, 5, 3), i, np.uint8)) for i in range(4)]
    images[2] = b"damaged"
    folder = write_parquet(tmp_path / "set", make_table(images))
    source = load_source(str(folder), label_column=None, streaming=streaming)
    batches = take(endless_loader(make_stream(source, "unlabelled", batch_size=4)), 3)
    seen = [i for batch in batches for i in batch["ids"]]
    assert set(seen) == {"im_0", "im_1", "im_3"} and len(seen) == 12
    assert all("im_2" in text for batch in batches for text in batch["skipped"])
    assert sum(len(batch["skipped"]) for batch in batches) >= 3
    with pytest.raises(InputError, match="none of the"):
        take(endless_loader(make_stream(source, "unlabelled", indices=[2])), 1)


def test_a_damaged_labelled_image_stops():
    with pytest.raises(InputError, match="im_0"):
        take(endless_loader(make_stream(make_source([b"x"], [b"x"]))), 1)
