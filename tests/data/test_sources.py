import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from tests.data.rows import encode, make_source, make_table
from u2pl_hf.data.source.checks import check_labelled, check_some_readable
from u2pl_hf.data.sources import load_source
from u2pl_hf.errors import InputError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack([GREY, GREY + 50, GREY + 100], axis=-1)


def write_folder(path, table, subset: str = "train"):
    path.mkdir(exist_ok=True)
    table.to_parquet(str(path / f"{subset}-00000-of-00001.parquet"))
    return str(path)


def test_palette_masks_keep_their_ids():
    palette = Image.fromarray(GREY % 5).convert("P")
    palette.putdata((GREY % 5).ravel().tolist())
    palette.putpalette([7, 8, 9, 200, 100, 0] + [255 - i // 3 for i in range(6 * 3)])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    source = make_source([encode(COLOUR)] * 2, [buffer.getvalue(), encode(GREY % 5)])
    for index in range(2):
        assert (source.read_label(index) == GREY % 5).all() and source.read_label(index).dtype == np.uint8


def test_colour_masks_are_refused():
    with pytest.raises(InputError, match="im_0"):
        make_source([encode(COLOUR)], [encode(COLOUR)]).read_label(0)


def test_labels_are_turned_as_they_say_themselves():
    exif = Image.Exif()
    for orientation, expected in ((3, GREY[::-1, ::-1]), (6, np.rot90(GREY, -1)), (1, GREY)):
        exif[0x0112] = orientation
        source = make_source([encode(COLOUR)] * 2, [encode(GREY, kind, exif=exif) for kind in ("PNG", "TIFF")])
        assert all(np.array_equal(source.read_label(index), expected) for index in range(2))


def test_labels_that_are_not_exact_are_refused():
    with pytest.raises(InputError, match="label of im_0 is JPEG, whose values are not exact: store masks as PNG"):
        make_source([encode(COLOUR)], [encode(GREY, "JPEG")]).read_label(0)


def test_images_of_every_mode_become_rgb():
    rgba = np.dstack([COLOUR, np.full_like(GREY, 128)])
    images = [
        encode(COLOUR),
        encode(GREY),
        encode(rgba),
        encode(COLOUR, "JPEG", "CMYK", quality=100),
        encode(COLOUR, mode="P"),
    ]
    images.append(encode(GREY.astype(np.uint16) * 256))
    source = make_source(images)
    for index in range(len(images)):
        image = source.read_image(index)
        assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    assert (source.read_image(1) == GREY[..., None]).all()
    assert (source.read_image(5) == GREY[..., None]).all()


@pytest.mark.parametrize(
    "stored, message",
    [
        (encode(GREY.astype(np.float32) / 255, "TIFF"), "floating-point"),
        (encode(GREY.astype(np.int32), "TIFF"), "32-bit"),
        (encode(GREY.astype(np.uint16) * 80), "12-bit"),
    ],
)
def test_images_that_would_be_read_as_black_are_refused(stored, message):
    source = make_source([stored, encode(COLOUR)], [encode(GREY % 2)] * 2)
    with pytest.raises(InputError, match=rf"image im_0 cannot be read .*{message}.*8 bits per channel"):
        check_labelled(source, [0, 1], 2, what="training")
    check_some_readable(source, [0, 1])
    with pytest.raises(InputError, match=f"none can be read: image im_0 .*{message}"):
        check_some_readable(source, [0])


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    source = make_source([encode(COLOUR, "JPEG", exif=exif, quality=100), encode(GREY, "JPEG", exif=exif)])
    assert source.read_image(0).shape == source.read_image(1).shape == (8, 6, 3)


def test_damaged_images_are_named():
    good = encode(COLOUR, "JPEG")
    source = make_source([b"no image", good[: len(good) // 2], b""])
    for index in range(3):
        with pytest.raises(InputError, match=f"im_{index}"):
            source.read_image(index)


def test_load_local_folder(tmp_path):
    folder = write_folder(tmp_path / "set", make_table([encode(COLOUR)] * 3, [encode(GREY % 2)] * 3, ["ä", "b/1", "c"]))
    (tmp_path / "set" / "class_names.txt").write_text("one\ntwo")
    source = load_source(folder, "train")
    assert source.ids == ["ä", "b/1", "c"] and source.class_names == ["one", "two"]
    (tmp_path / "set" / "class_names.txt").write_text('\ufeff"#one"\n"x 1 2 3"\n', encoding="utf-8")
    assert load_source(str(tmp_path / "set")).class_names == ["#one", "x 1 2 3"]
    (tmp_path / "set" / "class_names.txt").write_text("one", encoding="utf-16")
    with pytest.raises(InputError, match=r"class_names\.txt cannot be read as text in UTF-8"):
        load_source(str(tmp_path / "set"))
    assert (source.read_image(1) == COLOUR).all() and (source.read_label(2) == GREY % 2).all()
    assert source.size(0) == (6, 8)
    unlabelled = write_folder(tmp_path / "unlabelled", make_table([encode(COLOUR)]))
    assert (load_source(unlabelled, "train", label_column=None).read_image(0) == COLOUR).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": "test"}, "no subset 'test'; it has train: pass --subset train, which are the training images"),
        ({"subset": "x", "subset_option": "--eval_subset"}, "no subset 'x'; it has train: pass --eval_subset train"),
        ({"id_column": "image"}, "--id_column and --image_column both name 'image'"),
        ({"image_column": "label"}, "--image_column and --label_column both name 'label'"),
        ({"label_column": "id"}, "--id_column and --label_column both name 'id'"),
        ({"label_column": "mask"}, "no column 'mask'.*--label_column"),
        ({"id_column": "name"}, "--id_column"),
        ({"image_column": "picture"}, "--image_column"),
    ],
)
def test_wrong_names_are_told(tmp_path, options, message):
    folder = write_folder(tmp_path / "set", make_table([encode(COLOUR)], [encode(GREY)]))
    with pytest.raises(InputError, match=message):
        load_source(folder, **options)


def test_another_subset_than_train_is_named(tmp_path):
    table = make_table([encode(COLOUR)], [encode(GREY)])
    for subset in ("train", "test"):
        folder = write_folder(tmp_path / "set", table, subset)
    for streaming in (False, True):
        with pytest.raises(InputError, match=r"pass --eval_subset test$"):
            load_source(folder, "validation", streaming=streaming, subset_option="--eval_subset")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.5, 2.5], "column 'key' .* holds float in row 0, where ids are text or integers; pass --id_column"),
        (["a", None], "column 'key' .* holds nothing in row 1"),
        ([True, False], "holds bool in row 0"),
        ([[1], [2]], "holds list in row 0"),
        ([7, 7], "has the id '7' more than once"),
    ],
)
def test_ids_are_text_or_integers(tmp_path, values, message, streaming):
    table = make_table([encode(COLOUR)] * 2, [encode(GREY)] * 2).add_column("key", values)
    folder = write_folder(tmp_path / "set", table)
    with pytest.raises(InputError, match=message):
        load_source(folder, id_column="key", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_a_column_of_ids_are_numbered(tmp_path, streaming, caplog):
    table = make_table([encode(COLOUR)] * 3, [encode(GREY)] * 3).remove_columns("id")
    source = load_source(write_folder(tmp_path / "set", table), streaming=streaming)
    assert source.ids == ["train-0", "train-1", "train-2"] and "numbered, train-0 to train-2" in caplog.text
    with pytest.raises(InputError, match=r"no column 'name'.*--id_column"):
        load_source(str(tmp_path / "set"), id_column="name", streaming=streaming)


def test_missing_data_sets_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "nowhere"), "./nowhere", str(tmp_path / "empty"), "someone/no-such-data-set"):
        with pytest.raises(InputError) as error:
            load_source(name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_a_label_column_without_images_is_told(tmp_path):
    table = make_table([encode(COLOUR)] * 2).add_column("label", [3, 4])
    with pytest.raises(InputError, match=r"column 'label' .* holds no images"):
        load_source(write_folder(tmp_path / "set", table))


def test_double_ids_are_told(tmp_path):
    folder = write_folder(tmp_path / "set", make_table([encode(COLOUR)] * 3, [encode(GREY)] * 3, ["a", "b", "a"]))
    with pytest.raises(InputError, match="'a' more than once"):
        load_source(folder)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (encode(COLOUR), encode(np.full((6, 8), 5, np.uint8)), "holds the value 5, but there are 5 classes"),
        (encode(COLOUR), encode(np.zeros((6, 9), np.uint8)), "differ in size: 8x6 and 9x6"),
        (b"x", encode(GREY % 5), "image of im_1"),
        (encode(COLOUR), b"x", "label of im_1"),
    ],
)
def test_bad_labelled_rows_are_named(image, label, message):
    good = encode(np.where(GREY > 40, 255, GREY % 5).astype(np.uint8))
    source = make_source([encode(COLOUR), image, image], [good, label, label])
    found = check_labelled(source, [0], 5, what="training")
    assert found.counts.tolist() == np.bincount((GREY[GREY <= 40]) % 5)[None].tolist() and found.ids == ["im_0"]
    assert found.sizes == [len(encode(COLOUR))] and found.images == [hashlib.sha256(encode(COLOUR)).digest()]
    with pytest.raises(InputError, match=message) as error:
        check_labelled(source, range(3), 5, what="training")
    assert "im_1" in str(error.value) and "and 1 more" in str(error.value)


def test_digests_of_labels_are_of_their_ids_and_not_of_their_bytes():
    """The same mask compressed in another way is the same; other ids, or another shape, are not."""
    masks = [GREY % 3, GREY % 3, (GREY + 1) % 3, (GREY % 3).reshape(8, 6)]
    images = [encode(np.zeros((*mask.shape, 3), np.uint8)) for mask in masks]
    stored = [encode(mask, compress_level=level) for mask, level in zip(masks, (9, 0, 9, 9), strict=True)]
    found = check_labelled(make_source(images, stored), range(4), 3, what="training")
    assert stored[0] != stored[1] and found.labels[0] == found.labels[1] and len(set(found.labels)) == 3
    assert found.images[0] == found.images[2] != found.images[3]


def test_files_that_were_replaced_are_read_again(tmp_path):
    """`datasets` would ask the card alone, which stays as it was, and give what it has cached."""
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    config = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n"
    (folder / "README.md").write_text(f"---\n{config}---\n# A set\n")
    for ids in (["a", "b"], ["c", "d"]):
        make_table([encode(COLOUR)] * 2, None, ids).to_parquet(str(folder / "data" / "train-00000.parquet"))
        assert load_source(str(folder), label_column=None).ids == ids


@pytest.mark.parametrize("name", ["my photos", "data/my photos", "é", "a..b", "-x", "C:\\data", "x" * 120])
def test_what_can_be_no_data_set_is_one_line(name):
    with pytest.raises(InputError, match="no such folder; an id of the Hub has the form OWNER/NAME"):
        load_source(name)


def test_values_beside_a_data_set_are_no_order(tmp_path):
    write_folder(tmp_path, make_table([encode(COLOUR)], None, ["a"]))
    (tmp_path / "class_names.txt").write_text("fg,1\nbg,0\n")
    with pytest.raises(InputError, match=r"gives the classes the values 1 0 .*in the order of its lines"):
        load_source(str(tmp_path), label_column=None)
    (tmp_path / "class_names.txt").write_text("bg,0\nfg,1\n")
    assert load_source(str(tmp_path), label_column=None).class_names == ["bg", "fg"]
