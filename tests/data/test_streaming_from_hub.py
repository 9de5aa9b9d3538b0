"""Data on a Hub, read in place: the same rows as locally, and no more bytes than are needed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, constants

from tests.data.rows import encode, make_table, write_parquet
from u2pl_hf import hub_cache
from u2pl_hf.data.source.sources import load_source
from u2pl_hf.errors import InputError

ROOT = Path(__file__).parents[2]
ROWS = 200
PROGRAM = """
import itertools, json, sys
import numpy as np
from u2pl_hf.data.source import rows
rows.BLOCK_BYTES = 30_000
from u2pl_hf.data.source.sources import load_source, materialised
from u2pl_hf.data.stream.streams import SampleStream, endless_loader
from u2pl_hf.data.stream.transforms import WeakAugmentation
streaming = "streaming" in sys.argv
source = load_source("user/photos", streaming=streaming)
labelled = materialised(source, [5, 50, 150]) if streaming else source
stream = SampleStream(source, [i for i in range(200) if i % 50 != 5], WeakAugmentation(33), seed=0, name="unlabelled",
                      with_labels=False, batch_size=4)
first = [b["ids"] for b in itertools.islice(endless_loader(stream, num_workers=2), 3)]
print(json.dumps({"ids": source.ids, "classes": source.class_names, "batches": first,
                  "pixel": [int(labelled.read_image(i)[0, 0, 0]) for i in ((0, 1, 2) if streaming else (5, 50, 150))]}))
"""


@pytest.fixture
def hub(tmp_path, hub):
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(ROWS)]
    table = make_table(images, [encode(np.zeros((64, 64), np.uint8))] * ROWS)
    folder = write_parquet(tmp_path / "photos", table, shards=4)
    (folder / "class_names.txt").write_text("wall,1,2,3\nwire,4,5,6\n")
    api = HfApi(endpoint=hub.url)
    api.create_repo("user/photos", repo_type="dataset")
    api.upload_folder(repo_id="user/photos", repo_type="dataset", folder_path=folder)
    hub.folder = folder
    return hub


def run(hub, tmp_path, program, *arguments, **variables) -> str:
    environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hub_data_set_is_streamed_with_few_bytes(hub, tmp_path):
    size = sum(file.stat().st_size for file in hub.folder.rglob("*.parquet"))
    hub.sent.clear()
    streamed = json.loads(run(hub, tmp_path, PROGRAM, "streaming").splitlines()[-1])
    used = hub.sent["user/photos"]
    local = load_source(str(hub.folder))
    assert streamed["ids"] == local.ids and streamed["classes"] == ["wall", "wire"]
    assert local.palette == [[1, 2, 3], [4, 5, 6]]
    assert streamed["pixel"] == [local.read_image(i)[0, 0, 0] for i in (5, 50, 150)]
    # 3 labelled rows, two windows of 8 blocks of 30,000 bytes, and 64 kB of footer a file, out of more than 2 MB.
    assert size > 2_000_000 and used < 0.45 * size
    # Labelled rows are there from the first time.
    hub.sent.clear()
    assert json.loads(run(hub, tmp_path, PROGRAM, "streaming").splitlines()[-1]) == streamed
    assert hub.sent["user/photos"] < used
    kept = json.loads(run(hub, tmp_path, PROGRAM).splitlines()[-1])
    assert kept["ids"] == streamed["ids"] and kept["pixel"] == streamed["pixel"]
    # From the cache of the Hub, once all files are there.
    program = """
from u2pl_hf.data.source.sources import load_source
for streaming in (False, True):
    source = load_source("user/photos", streaming=streaming)
    print(source.ids[7], source.class_names, source.read_image(50)[0, 0, 0])
"""
    expected = [f"{local.ids[7]} ['wall', 'wire'] {local.read_image(50)[0, 0, 0]}"] * 2
    for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert run(hub, tmp_path, program, **variables).splitlines() == expected


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
