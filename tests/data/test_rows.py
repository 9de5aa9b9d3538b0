import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.rows import encode, make_source, make_table, write_parquet
from u2pl_hf.data import rows as rows_module
from u2pl_hf.data.rows import METADATA_KEY, ParquetRows
from u2pl_hf.data.sources import check_some_readable, joined, load_source, materialised
from u2pl_hf.errors import InputError

COLUMNS = {"id": "id", "image": "image", "label": "label"}
IMAGES = [encode(np.full((4, 6, 3), i, np.uint8)) for i in range(11)]
LABELS = [encode(np.full((4, 6), i % 3, np.uint8)) for i in range(11)]
IDS = [f"ä/{i}" for i in range(11)]


@pytest.fixture(params=[1, 4])
def rows(request, tmp_path) -> ParquetRows:
    folder = write_parquet(tmp_path / "set", make_table(IMAGES, LABELS, IDS), shards=2, group=request.param)
    return ParquetRows(sorted(map(str, (folder / "data").iterdir())), COLUMNS)


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
        kept = materialised(source, [1, 4, 9], cache_dir=tmp_path / "cache")
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
