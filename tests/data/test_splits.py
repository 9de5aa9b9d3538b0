import logging

import numpy as np
import pytest

from u2pl_hf.data.source.id_lists import read_ids
from u2pl_hf.data.source.splits import resolve_split
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
    path.write_text("b\na\n")
    assert read_ids(path) == ["b", "a"]


@pytest.mark.parametrize("split", ["0", "0/5", "2/1", "1/0", "101", "1.5", "nowhere.txt", "-1", "half"])
def test_impossible_splits_are_refused(split):
    with pytest.raises(InputError) as error:
        resolve_split(split, IDS, seed=0)
    assert split in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "lists no image"), (b"im_001\nim_001\n", "more than once"), (b"\xff\xfe\x00", "not a text file"),
     (b"im_001\nx\ny\nz\nw\n", "does not have, 4 of 5 labelled: x, y, z ...")],
)  # fmt: skip
def test_bad_lists_are_refused(tmp_path, content, message):
    path = tmp_path / "labeled.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        resolve_split(str(path), IDS, seed=0)


def write_lists(folder, labelled, unlabelled=None):
    folder.mkdir(parents=True)
    (folder / "labeled.txt").write_text("\n".join(labelled))
    if unlabelled:
        (folder / "unlabeled.txt").write_text("\n".join(unlabelled))
    return str(folder)


def test_folder_of_lists(tmp_path):
    split = write_lists(tmp_path / "a", ["im_009", "im_002"], ["im_050", "im_004"])
    assert resolve_split(split, IDS, seed=0) == ([2, 9], [4, 50])
    split = write_lists(tmp_path / "b", ["im_009", "im_002"])
    assert len(resolve_split(split, IDS, seed=0)[1]) == 98


def test_lists_of_the_data_are_preferred_to_the_published_ones(tmp_path):
    write_lists(tmp_path / "splits" / "voc_classic" / "92", ["im_001"], ["im_002"])
    assert resolve_split("voc_classic/92", IDS, 0, dataset_dir=tmp_path) == ([1], [2])


def test_lists_may_name_cityscapes_files(tmp_path):
    ids = ["aachen_000000_000019", "ulm_000001_000019"]
    split = write_lists(tmp_path / "s", [f"leftImg8bit/train/ulm/{ids[1]}_leftImg8bit.png"], ids[:1])
    assert resolve_split(split, ids, 0) == ([1], [0])


@pytest.mark.parametrize(
    ("split", "message"),
    [("voc_clasic/92", "did you mean voc_classic/92"), ("cityscapes/373", "did you mean cityscapes/37[2]"),
     ("coco/1_51", r"no split coco/1_51: did you mean coco/1_512\? .*ade20k/1_64, 1_32, 1_16, .*coco/1_512,"),
     ("mine/5", r"no split mine/5: Published ones are voc_classic/92, .*cityscapes_ael/372; or pass a file")],
)  # fmt: skip
def test_unknown_names_list_the_known_ones(split, message):
    with pytest.raises(InputError, match=message):
        resolve_split(split, IDS, seed=0)


def test_absent_ids(tmp_path, caplog):
    split = write_lists(tmp_path / "s", ["im_003", "x"], ["im_004", "y", "z", "w"])
    with pytest.raises(InputError, match=r"1 of 2 labelled and 3 of 4 unlabelled: x, y, z \.\.\.; --drop_absent_ids"):
        resolve_split(split, IDS, seed=0)
    assert resolve_split(split, IDS, seed=0, drop_absent=True) == ([3], [4])
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"split {split}: dropped listed ids that the data does not have, 1 of 2 labelled and 3 of 4 unlabelled: "
        "x, y, z ..."
    ]
    with pytest.raises(InputError, match="none of its 2 labelled images"):
        resolve_split(split, IDS[50:], seed=0, drop_absent=True)


def test_rows_without_label_are_only_unlabelled(tmp_path):
    has_label = [i % 4 == 1 for i in range(100)]
    for split, number in (("all", 25), ("0.2", 5), ("7", 7)):
        labelled, unlabelled = resolve_split(split, IDS, seed=0, has_label=has_label)
        assert len(labelled) == number and all(i % 4 == 1 for i in labelled)
        assert sorted(labelled + unlabelled) == list(range(100))
    with pytest.raises(InputError, match="split 26 does not fit 25 training images"):
        resolve_split("26", IDS, seed=0, has_label=has_label)
    with pytest.raises(InputError, match="no training image has one"):
        resolve_split("all", IDS, seed=0, has_label=[False] * 100)
    split = write_lists(tmp_path / "s", ["im_001", "im_008", "im_004"])
    with pytest.raises(InputError, match="labels 'im_004', which has no label"):
        resolve_split(split, IDS, seed=0, has_label=has_label)


def test_fractions_are_stratified_where_the_classes_are_known(caplog):
    presence = np.zeros((100, 3), bool)
    presence[:, 0] = True
    presence[40:50, 1] = True
    presence[7, 2] = True
    for seed in range(20):
        labelled, unlabelled = resolve_split("1/10", IDS, seed, class_presence=lambda: presence)
        assert len(labelled) == 10 and sum(40 <= i < 50 for i in labelled) == 1
        assert sorted(labelled + unlabelled) == list(range(100))
    assert "split 1/10: no labelled image shows class 2" in caplog.messages
    assert len(caplog.messages) == 20


def test_stratified_draw_depends_on_ids_and_not_on_their_order():
    presence = np.random.default_rng(0).random((100, 5)) < 0.2
    turn = np.random.default_rng(1).permutation(100)
    turned_ids = [IDS[i] for i in turn]
    chosen, _ = resolve_split("9", IDS, 3, class_presence=lambda: presence)
    turned, _ = resolve_split("9", turned_ids, 3, class_presence=lambda: presence[turn])
    assert {IDS[i] for i in chosen} == {turned_ids[i] for i in turned}


def test_classes_are_looked_up_only_for_a_draw(tmp_path):
    def never():
        raise AssertionError("looked up")

    for split in ("all", "1/1", write_lists(tmp_path / "s", ["im_001"])):
        resolve_split(split, IDS, 0, class_presence=never)
    presence = np.ones((100, 2), bool)
    presence[::2] = False
    has_label = presence[:, 0]
    labelled, _ = resolve_split("10", IDS, 0, has_label=has_label, class_presence=lambda: presence)
    assert len(labelled) == 10 and all(i % 2 for i in labelled)


def test_a_draw_without_classes_is_what_it_was():
    """Results measured on the demo depend on it."""
    assert resolve_split("1/20", IDS, 0)[0] == [5, 20, 36, 82, 93]
