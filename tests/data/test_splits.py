import pytest

from u2pl_hf.data.splits import read_ids, resolve_split, write_ids
from u2pl_hf.errors import InputError

IDS = [f"im_{i:03d}" for i in range(100)]


@pytest.mark.parametrize(
    ("split", "number"),
    [("1/16", 6), ("0.25", 25), ("7", 7), ("1", 1), ("1/1", 100), ("all", 100), ("1/1000", 1)],
)
def test_drawn_splits(split, number):
    labelled, unlabelled = resolve_split(split, IDS, seed=3)
    assert len(labelled) == number and sorted(labelled + unlabelled) == list(range(100))
    assert labelled == sorted(labelled) == resolve_split(split, IDS, seed=3)[0]
    if number < 100:
        assert labelled != resolve_split(split, IDS, seed=4)[0]


def test_listed_split(tmp_path):
    path = tmp_path / "labeled.txt"
    path.write_bytes("\ufeffim_007\r\n\r\n im_003 \r\nim_050".encode())
    labelled, unlabelled = resolve_split(str(path), IDS, seed=0)
    assert labelled == [3, 7, 50] and len(unlabelled) == 97
    write_ids(path, ["b", "a"])
    assert read_ids(path) == ["b", "a"]


@pytest.mark.parametrize("split", ["0", "0/5", "2/1", "1/0", "101", "1.5", "nowhere.txt", "-1", "half"])
def test_impossible_splits_are_refused(split):
    with pytest.raises(InputError) as error:
        resolve_split(split, IDS, seed=0)
    assert split in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "lists no image"), (b"im_001\nim_001\n", "more than once"), (b"\xff\xfe\x00", "not a text file"),
     (b"im_001\nx\ny\nz\nw\n", "4 of 5 ids that the data does not have: x, y, z ...")],
)  # fmt: skip
def test_bad_lists_are_refused(tmp_path, content, message):
    path = tmp_path / "labeled.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        resolve_split(str(path), IDS, seed=0)
