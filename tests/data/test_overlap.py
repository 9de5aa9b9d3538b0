import numpy as np
import pytest

from tests.data.rows import encode, make_source, make_table, write_parquet
from u2pl_hf.data.source.checks import check_labelled, warn_of_scored_training, without_evaluation
from u2pl_hf.data.sources import Source, load_source

# Numbers 0 and 1 are labelled, 2 and 3 are evaluation images, the others are neither; all have about one size.
IMAGES = [encode(np.full((4, 6, 3), i, np.uint8)) for i in range(8)]
MASK = encode(np.zeros((4, 6), np.uint8))


def labelled(numbers: list[int], ids: list[str]):
    source = make_source([IMAGES[i] for i in numbers], [MASK] * len(numbers))
    return check_labelled(Source(source.rows, ids), range(len(ids)), 2, what="training")


TRAINED, SCORED = labelled([0, 1], ["a", "b"]), labelled([2, 3], ["c", "d"])


@pytest.fixture(params=["kept", "files", "streamed"])
def opened(request, tmp_path):
    """Opens images as a data set: in a table, as photographs, in parquet files that stay where they are."""

    def open_(numbers: list[int], ids: list[str]) -> Source:
        if request.param == "files":
            (tmp_path / "photos").mkdir()
            for number, name in zip(numbers, ids, strict=True):
                (tmp_path / "photos" / f"{name}.png").write_bytes(IMAGES[number])
            return load_source(str(tmp_path / "photos"), label_column=None)
        table = make_table([IMAGES[i] for i in numbers], ids=ids)
        folder = write_parquet(tmp_path / "set", table, group=2)
        return load_source(str(folder), label_column=None, streaming=request.param == "streamed")

    return open_


def test_evaluation_images_are_left_out_and_others_stay(opened, caplog):
    """By bytes: of the same id, one is the evaluation image and one is another; labelled images are told of."""
    source = opened([0, 2, 4, 5, 6], ["a", "c", "d", "e", "f"])
    assert without_evaluation(source, [0, 1, 2, 3], TRAINED, SCORED) == [0, 2, 3]
    assert "1 unlabelled images are evaluation images, such as c: they are left out" in caplog.text
    assert "1 unlabelled images are labelled ones as well, such as a" in caplog.text
    assert "1 unlabelled images have the id of an evaluation image and other bytes, such as d" in caplog.text


def test_renamed_copies_are_found_where_bytes_are_at_hand(opened):
    source = opened([3, 7, 2], ["p", "q", "r"])
    assert without_evaluation(source, [0, 1, 2], TRAINED, SCORED) == ([0, 1, 2] if source.streamed else [1])


def test_other_images_are_not_told_of(opened, caplog):
    assert without_evaluation(opened([4, 5, 6], ["x", "y", "z"]), [0, 2], TRAINED, SCORED) == [0, 2]
    warn_of_scored_training(TRAINED, SCORED)
    assert not caplog.text


def test_images_of_another_size_are_not_read(tmp_path, monkeypatch):
    source = make_source([b"x" * 1000] * 50 + [IMAGES[2]])
    read = []
    monkeypatch.setattr(source.rows, "read", lambda rows, role: read.extend(rows.tolist()) or {})
    without_evaluation(source, list(range(51)), TRAINED, SCORED)
    assert read == [50]


def test_labelled_images_that_are_scored_are_told(caplog):
    warn_of_scored_training(labelled([2, 3, 0], ["x", "y", "c"]), SCORED)
    assert "2 labelled images are evaluation images as well, such as x" in caplog.text
    assert "1 labelled images have the id of an evaluation image and other bytes, such as c" in caplog.text
