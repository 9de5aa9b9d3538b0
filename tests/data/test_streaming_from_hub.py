"""Data on a Hub, read in place: the same rows as locally, and no more bytes than are needed."""

import itertools

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi, constants

from tests.data.rows import encode, make_table, write_parquet
from u2pl_hf import hub_cache
from u2pl_hf.data.source import rows
from u2pl_hf.data.sources import load_source, materialised
from u2pl_hf.data.stream.streams import SampleStream, endless_loader
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError

ROWS = 200


@pytest.fixture
def hub(tmp_path, hub, monkeypatch):
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(ROWS)]
    table = make_table(images, [encode(np.zeros((64, 64), np.uint8))] * ROWS)
    hub.folder = write_parquet(tmp_path / "photos", table, shards=4)
    (hub.folder / "class_names.txt").write_text("wall,1,2,3\nwire,4,5,6\n")
    api = HfApi(endpoint=hub.url)
    api.create_repo("user/photos", repo_type="dataset")
    api.upload_folder(repo_id="user/photos", repo_type="dataset", folder_path=hub.folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "BLOCK_BYTES", 30_000)
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_CACHE": tmp_path / "kept",
    }.items():
        monkeypatch.setattr(datasets.config, name, value)
    hub_cache.is_reachable.cache_clear()
    yield hub
    hub_cache.is_reachable.cache_clear()


def streamed(tmp_path):
    """Ids, classes, pixels of three labelled rows and the ids of three batches, as a run reads them."""
    source = load_source("user/photos", streaming=True)
    labelled = materialised(source, [5, 50, 150])
    unlabelled = [i for i in range(ROWS) if i % 50 != 5]
    options = {"seed": 0, "name": "unlabelled", "with_labels": False, "batch_size": 4}
    stream = SampleStream(source, unlabelled, WeakAugmentation(33), **options)
    batches = [batch["ids"] for batch in itertools.islice(endless_loader(stream, num_workers=2), 3)]
    return source.ids, source.class_names, [labelled.read_image(i)[0, 0, 0] for i in range(3)], batches


def test_a_hub_data_set_is_streamed_with_few_bytes(hub, tmp_path, monkeypatch):
    size = sum(file.stat().st_size for file in hub.folder.rglob("*.parquet"))
    hub.sent.clear()
    found = streamed(tmp_path)
    used = hub.sent["user/photos"]
    local = load_source(str(hub.folder))
    pixels = [local.read_image(i)[0, 0, 0] for i in (5, 50, 150)]
    assert found[:3] == (local.ids, ["wall", "wire"], pixels) and local.palette == [[1, 2, 3], [4, 5, 6]]
    # 3 labelled rows, two windows of 8 blocks of 30,000 bytes, and 64 kB of footer a file, out of more than 2 MB.
    assert size > 2_000_000 and used < 0.45 * size
    # Labelled rows are there from the first time.
    hub.sent.clear()
    assert streamed(tmp_path) == found and hub.sent["user/photos"] < used
    kept = load_source("user/photos")
    assert kept.ids == local.ids and [kept.read_image(i)[0, 0, 0] for i in (5, 50, 150)] == pixels
    # From the cache of the Hub, once all files are there.
    for name, value in (("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")):
        with monkeypatch.context() as patch:
            patch.setattr(constants, name, value)
            hub_cache.is_reachable.cache_clear()
            for streaming in (False, True):
                source = load_source("user/photos", streaming=streaming)
                assert source.ids == local.ids and source.class_names == ["wall", "wire"]
                assert source.read_image(50)[0, 0, 0] == pixels[1]


def test_what_the_cache_of_the_hub_has(tmp_path, monkeypatch):
    """A snapshot counts where its data are whole: that of the branch, or of the commit that was asked for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_cache, "is_reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "datasets--user--photos"
    with pytest.raises(InputError, match="data set user/photos: there is no such folder, and the Hub does not answer"):
        load_source("user/photos")

    def add(commit: str, *names: str):
        for name in names:
            (folder / "snapshots" / commit / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "snapshots" / commit / name).write_text("")

    add("aaa", "README.md", "class_names.txt")
    add("bbb", "data/train-00000-of-00002.parquet")
    assert hub_cache.cached_snapshot("user/photos", None) is None
    add("ccc", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet")
    assert hub_cache.cached_snapshot("user/photos", None).name == "ccc"
    add("bbb", "data/train-00001-of-00002.parquet")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bbb")
    assert hub_cache.cached_snapshot("user/photos", None).name == "bbb"
    assert hub_cache.cached_snapshot("user/photos", "ccc").name == "ccc"
    assert hub_cache.cached_snapshot("user/photos", "v2") is None
    assert hub_cache.place_to_read("user/photos", None) == str(folder / "snapshots" / "bbb")
