import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.rows import encode, make_source, make_table, write_parquet
from u2pl_hf.data.source import rows as rows_module
from u2pl_hf.data.source.checks import check_some_readable
from u2pl_hf.data.source.rows import METADATA_KEY, Rows, open_parquet
from u2pl_hf.data.sources import joined, load_source, materialised
from u2pl_hf.errors import InputError

COLUMNS = {"id": "id", "image": "image", "label": "label"}
IMAGES = [encode(np.full((4, 6, 3), i, np.uint8)) for i in range(11)]
LABELS = [encode(np.full((4, 6), i % 3, np.uint8)) for i in range(11)]
IDS = [f"ä/{i}" for i in range(11)]


@pytest.fixture(params=[1, 4])
def rows(request, tmp_path) -> Rows:
    folder = write_parquet(tmp_path / "set", make_table(IMAGES, LABELS, IDS), shards=2, group=request.param)
    return open_parquet(sorted(map(str, (folder / "data").iterdir())), COLUMNS)


def test_cells_and_ids_come_as_they_were_written(rows):
    assert len(rows) == 11 and rows.ids() == IDS
    for copy in (rows, pickle.loads(pickle.dumps(rows))):
        assert [copy.cell(i, "image")["bytes"] for i in range(11)] == IMAGES
        assert {i: cell["bytes"] for i, cell in copy.read(np.array([9, 2, 3]), "label").items()} == {
            i: LABELS[i] for i in (2, 3, 9)
        }


def test_blocks_hold_every_row_once_and_neighbours_of_one_file(rows, monkeypatch):
    for size in (1, 2 * len(IMAGES[0]), 10**6):
        monkeypatch.setattr(rows_module, "BLOCK_BYTES", size)
        for wanted in (np.arange(11), np.array([0, 1, 5, 6, 10]), np.array([7])):
            blocks = rows.blocks(wanted)
            assert np.concatenate(blocks).tolist() == wanted.tolist()
            # The files hold six and five rows.
            assert all(len({row >= 6 for row in block.tolist()}) == 1 for block in blocks)
        if size == 10**6:
            assert len(rows.blocks(np.arange(11))) == 2


def test_labels_may_be_missing(tmp_path):
    table = make_table(IMAGES, LABELS, IDS).to_dict()
    table["label"][3] = None
    features = make_table(IMAGES, LABELS).features
    arrow = pa.table(table, schema=features.arrow_schema)
    sets = [None if i == 3 else [i % 3] for i in range(11)]
    metadata = arrow.schema.metadata | {METADATA_KEY: json.dumps({"classes": sets}).encode()}
    (tmp_path / "set").mkdir()
    pq.write_table(arrow.replace_schema_metadata(metadata), tmp_path / "set" / "train.parquet", row_group_size=1)
    for streaming in (False, True):
        source = load_source(str(tmp_path / "set"), streaming=streaming)
        assert source.rows.has_label().tolist() == [i != 3 for i in range(11)]
        presence = source.class_presence()
        assert presence.shape == (11, 255) and presence.sum() == 10 and not presence[3].any()
        assert all(presence[i, i % 3] for i in range(11) if i != 3)
        with pytest.raises(InputError, match="ä/3 has no label"):
            source.read_label(3)


@pytest.mark.parametrize("group", [1, 4, 20])
@pytest.mark.parametrize("kind", ["struct", "paths", "bytes"])
def test_labels_may_be_missing_in_parquet_of_others(tmp_path, group, kind):
    """Without our metadata: all, some or none of a row group have a label, in every form that a label can have."""
    missing, form = {1, 4, 5, 6, 7, 10}, {"struct": "{}", "paths": "{}", "bytes": ""}[kind]
    files = [tmp_path / f"{i}.png" for i in range(11)]
    for file, label in zip(files, LABELS, strict=True):
        file.write_bytes(label)
    cells = [
        {"bytes": None if kind == "paths" else label, "path": str(file) if kind == "paths" else None} if form else label
        for label, file in zip(LABELS, files, strict=True)
    ]
    labels = [None if i in missing else cell for i, cell in enumerate(cells)]
    if form:  # A cell of nothing is no label either.
        labels[1] = {"bytes": None, "path": None}
    (tmp_path / "set").mkdir()
    images = pa.array([{"bytes": image, "path": None} for image in IMAGES])
    table = pa.table({"id": IDS, "image": images, "label": pa.array(labels)})
    pq.write_table(table, tmp_path / "set" / "train.parquet", row_group_size=group)
    local, streamed = (load_source(str(tmp_path / "set"), streaming=streaming) for streaming in (False, True))
    for source in (local, streamed):
        assert source.rows.has_label().tolist() == [i not in missing for i in range(11)]
        assert source.read_label(9)[0, 0] == 0


def test_sizes_are_known_without_reading(tmp_path, rows):
    lengths = [len(image) for image in IMAGES]
    assert make_source(IMAGES).rows.sizes.tolist() == lengths
    assert len(rows.sizes) == 11 and (rows.sizes >= lengths).all()
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(IMAGES[i])
    (tmp_path / "photos" / "3.png").symlink_to(tmp_path / "nowhere.png")
    photos = load_source(str(tmp_path / "photos"), label_column=None)
    assert photos.rows.sizes.tolist() == [*lengths[:3], -1]
    assert joined([photos, make_source(IMAGES)]).rows.sizes.tolist() == [*lengths[:3], -1, *lengths]


@pytest.mark.parametrize("note", [{"classes": [[0]] * 10}, {"classes": "abc"}, {"classes": [["0"]] * 11}, [], {}, None])
def test_a_note_of_classes_that_does_not_fit_is_not_used(tmp_path, note):
    """As of a file that another program left rows out of."""
    arrow = pa.table(
        make_table(IMAGES, LABELS, IDS).to_dict(), schema=make_table(IMAGES, LABELS, IDS).features.arrow_schema
    )
    content = json.dumps(note).encode() if note is not None else b"\xff{"
    (tmp_path / "set").mkdir()
    table = arrow.replace_schema_metadata(arrow.schema.metadata | {METADATA_KEY: content})
    pq.write_table(table, tmp_path / "set" / "train.parquet", row_group_size=1)
    source = load_source(str(tmp_path / "set"), streaming=True)
    assert source.rows.class_sets() is None and source.class_presence()[np.arange(11), np.arange(11) % 3].all()


def test_several_sources_are_one(rows, tmp_path):
    first = make_source(IMAGES[:4], LABELS[:4])
    folder = write_parquet(tmp_path / "second", make_table(IMAGES, LABELS, IDS), shards=2)
    second = load_source(str(folder), label_column=None, streaming=True)
    both = joined([first, second])
    assert both.ids == first.ids + IDS and both.streamed
    assert [int(both.read_image(i)[0, 0, 0]) for i in range(15)] == [*range(4), *range(11)]
    assert both.rows.read(np.array([14, 3, 4]), "image").keys() == {3, 4, 14}
    assert np.concatenate(both.rows.blocks(np.array([1, 3, 6, 14]))).tolist() == [1, 3, 6, 14]
    assert joined([second, second]).ids[10:12] == ["0:ä/10", "1:ä/0"]


def test_materialised_rows_are_the_same_and_need_their_files_no_more(tmp_path):
    folder = write_parquet(tmp_path / "set", make_table(IMAGES, LABELS, IDS), shards=2)
    source = load_source(str(folder), streaming=True)
    for _ in range(2):
        kept = materialised(source, [1, 4, 9])
        assert kept.ids == [IDS[i] for i in (1, 4, 9)] and not kept.streamed
        assert [int(kept.read_image(i)[0, 0, 0]) for i in range(3)] == [1, 4, 9]
        assert [int(kept.read_label(i)[0, 0]) for i in range(3)] == [1, 1, 0]


def test_a_plain_folder_of_images_is_named_by_its_files(tmp_path):
    for name in ("a/1.png", "b/ü 2.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), len(name), np.uint8)).save(tmp_path / "photos" / name)
    for streaming in (False, True):
        source = load_source(str(tmp_path / "photos"), label_column=None, streaming=streaming)
        assert source.ids == ["a/1", "b/ü 2"] and (source.read_image(1) == len("b/ü 2.png")).all()
    with pytest.raises(InputError, match=r"without labels; make a data set .*prepare_dataset.py folder"):
        load_source(str(tmp_path / "photos"))


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (["train_1.jpg", "test_2.jpg", "dev3.PNG"], ["dev3", "test_2", "train_1"]),
        (["val/1.Jpg", "evaluation/1.jpg", "2.tiff", ".hidden.jpg", ".git/3.png", "notes.txt"],
         ["2", "evaluation/1", "val/1"]),
        (["train/a.jpg", "train/a.png", "validation/b.jpg", "a b.c/x.y.png"],
         ["a b.c/x.y", "train/a.jpg", "train/a.png", "validation/b"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
def test_names_do_not_decide_which_photographs_there_are(tmp_path, files, ids, streaming, caplog):
    caplog.set_level("INFO")
    for name in files:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(IMAGES[0])
    source = load_source(str(tmp_path / "photos"), label_column=None, streaming=streaming)
    assert source.ids == ids and len(source.rows) == len(ids) and source.read_image(0).shape == (4, 6, 3)
    assert f"{len(ids)} photographs" in caplog.text and ("1 .txt" in caplog.text) == ("notes.txt" in files)
    with pytest.raises(InputError, match="no subset 'test'; it has train"):
        load_source(str(tmp_path / "photos"), "test", label_column=None, streaming=streaming)


def test_links_in_a_folder_of_photographs_are_followed_once(tmp_path):
    for folder in ("photos", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(IMAGES[0])
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "one.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert load_source(str(tmp_path / "photos"), label_column=None).ids == ["a", "more/a", "one"]


def test_a_folder_of_images_with_a_table_is_no_plain_one(tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    for i in range(2):
        (tmp_path / "set" / "train" / f"val_{i}.png").write_bytes(IMAGES[i])
    (tmp_path / "set" / "train" / "metadata.csv").write_text("file_name,place\nval_0.png,x\nval_1.png,y\n")
    source = load_source(str(tmp_path / "set"), label_column=None)
    assert source.ids == ["train/val_0", "train/val_1"]
    assert load_source(str(tmp_path / "set"), id_column="place", label_column=None).ids == ["x", "y"]


def test_wrong_parquet_is_told(tmp_path):
    folder = write_parquet(tmp_path / "set", make_table(IMAGES))
    with pytest.raises(InputError, match=r"no column 'mask'.*--label_column"):
        load_source(str(folder), label_column="mask", streaming=True)
    with pytest.raises(InputError, match="no subset 'test'; it has train"):
        load_source(str(folder), "test", label_column=None, streaming=True)
    next((folder / "data").iterdir()).write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="train-00000"):
        load_source(str(folder), label_column=None, streaming=True)


def test_a_set_of_unreadable_images_is_refused_and_a_readable_one_is_enough():
    broken = make_source([b"x"] * 20)
    with pytest.raises(InputError, match="8 unlabelled images were tried and none can be read: image of im_0"):
        check_some_readable(broken, list(range(20)))
    check_some_readable(make_source([b"x"] * 19 + [IMAGES[0]]), list(range(20)))
