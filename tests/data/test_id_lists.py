import logging

import pytest

from u2pl_hf.data.source.id_lists import match_ids, parse_ids
from u2pl_hf.data.source.splits import resolve_split
from u2pl_hf.errors import InputError

IDS = ["001", "002", "003"]
CITY = ["aachen_000000_000019", "ulm_000001_000019"]
NESTED = ["train/001", "train/b/002", "val/001", "val/b/002"]


def found(lines, ids):
    return match_ids(parse_ids("\n".join(lines).encode(), "list"), ids, "list")


@pytest.mark.parametrize(
    "lines",
    [
        ["002", "001"],
        ["images/002.png masks/002.png", "images/001.png masks/001.png"],
        ["/images/train/002.png\t/segmentation/train/002_gtFine.png", "/images/train/001.png\t/x.png"],
        ["image,mask", "images/002.png,masks/002.png", "images/001.png,masks/001.png"],
        ['"file_name";"label"', '"002.PNG";"002.png"', '"001.PNG";"001.png"'],
        ["C:\\data\\images\\002.jpeg\r", "C:\\data\\images\\001.jpeg\r"],
        ["id", "002", "001"],
        ["002  1", "001 -1"],
        ["./002.tif", "./001.tif"],
    ],
)
def test_lists_of_other_works(lines):
    assert found(lines, IDS) == (["002", "001"], [])


@pytest.mark.parametrize(
    ("line", "ids", "name"),
    [
        (f"leftImg8bit/train/ulm/{CITY[1]}_leftImg8bit.png gtFine/{CITY[1]}_gtFine_labelIds.png", CITY, CITY[1]),
        (f"/leftImg8bit/train/ulm/{CITY[1]}_leftImg8bit.png\t/gtFine/x.png", CITY, CITY[1]),
        (f"{CITY[0]}_leftImg8bit.png", CITY, CITY[0]),
        ("ulm", [f"ulm_leftImg8bit.{i}" for i in range(2)] + ["ulm"], "ulm"),
        ("photos/train/001.jpg", NESTED, "train/001"),
        ("val/images/001.jpg", NESTED, "val/001"),
        ("train/b/002", NESTED, "train/b/002"),
        ("JPEGImages/x.jpg", ["train/x", "train/y"], "train/x"),
        ("images/my photo, 1.jpg masks/my photo, 1.png", ["my photo, 1", "my"], "my photo, 1"),
        ("my photo, 1", ["my photo, 1", "my"], "my photo, 1"),
        ("images/u\u0308.png", ["\u00fc"], "\u00fc"),
        ("images/v1.2.png", ["v1.2", "v1"], "v1.2"),
        ("001", ["001.png", "002.png"], "001.png"),
        ("a.png", ["a", "a.png"], "a.png"),
        ("data/train/1.png", ["train/1", "train/sub/1"], "train/1"),
    ],
)  # fmt: skip
def test_a_file_stands_for_one_id(line, ids, name):
    assert found([line], ids) == ([name], [])


def test_an_unclear_line_is_refused():
    with pytest.raises(InputError, match=r"list: 'images/001\.png' may be train/001 or val/001; list ids as they are"):
        found(["images/001.png"], NESTED)


def test_lines_without_an_image_are_given_back(caplog):
    caplog.set_level(logging.INFO)
    assert found(["b/003.png", "image/1.png", "x"], IDS) == (["003"], ["image/1.png", "x"])
    assert caplog.messages == ["list: 1 lines name files, such as 'b/003.png' for '003'"]


@pytest.mark.parametrize("lines", [["001", "002", "001"], ["001", "images/001.png"], ["x", "x"]])
def test_an_image_twice_is_refused(lines):
    with pytest.raises(InputError, match=r"list lists 1 images more than once, such as '(001|x)'"):
        found(lines, IDS)


def test_encodings():
    text = "\ufeff001\r\n\r\n 002 \r\n"
    assert parse_ids(text.encode(), "list") == parse_ids(text[1:].encode("utf-16"), "list") == ["001", "002"]
    for content, message in (
        (b"\x89PNG\r\n\x1a\n", "list is not a text file in UTF-8"),
        (b"0\x000\x001\x00", "list is not a text file in UTF-8"),
        (b" \n\n", "list lists no image"),
    ):
        with pytest.raises(InputError, match=message):
            parse_ids(content, "list")


def test_split_with_nothing_that_matches(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("image,mask\na/x.png,b/x.png\na/y.png,b/y.png\n")
    for drop in (False, True):
        with pytest.raises(InputError) as error:
            resolve_split(str(path), IDS, 0, drop_absent=drop)
        assert "none of its 2 labelled images; a line of it is 'a/x.png,b/x.png', an id of the data '001'" in str(
            error.value
        )
        assert "--drop_absent_ids" not in str(error.value)


def test_an_image_in_both_lists_is_told(tmp_path, caplog):
    (tmp_path / "labeled.txt").write_text("001\n002\n")
    (tmp_path / "unlabeled.txt").write_text("images/002.png\nimages/003.png\n")
    assert resolve_split(str(tmp_path), IDS, 0) == ([0, 1], [1, 2])
    assert (
        f"split {tmp_path}: 1 images are in both of its lists, such as 002: they are used in both ways"
        in caplog.messages
    )


def test_an_unlabelled_list_of_which_nothing_is_there(tmp_path):
    (tmp_path / "labeled.txt").write_text("001\n")
    (tmp_path / "unlabeled.txt").write_text("x\ny\n")
    with pytest.raises(InputError, match="none of its 2 unlabelled images"):
        resolve_split(str(tmp_path), IDS, 0)
    assert resolve_split(str(tmp_path), IDS, 0, drop_absent=True) == ([0], [])


@pytest.mark.parametrize("line", ["val/0", "val/0.jpg", "images/validation/0.jpg masks/0.png", "cam2/0.jpg"])
def test_an_image_of_another_folder_is_another_one(line):
    ids = ["train/0", "train/1", "val/1", "cam2/5"]
    assert match_ids([line], ids, "list") == ([], [line])
    assert match_ids(["training/0.jpg"], ids, "list") == (["train/0"], [])
