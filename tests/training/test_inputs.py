import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.data.rows import write_parquet
from tests.training.test_trainer import make_trainer
from u2pl_hf.data import rows as rows_module
from u2pl_hf.errors import InputError


@pytest.fixture(scope="module")
def parquet_data(tiny_data, tmp_path_factory):
    """The tiny data set as prepared data lie on a disk: a row a group, several files."""
    folder = tmp_path_factory.mktemp("parquet")
    for subset, table in datasets.load_dataset(str(tiny_data)).items():
        undecoded = table.cast_column("image", datasets.Image(decode=False))
        write_parquet(folder, undecoded.cast_column("label", datasets.Image(decode=False)), shards=2, subset=subset)
    shutil.copy(tiny_data / "class_names.txt", folder)
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr("u2pl_hf.data.order.WINDOW_BLOCKS", 2)


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_streamed_and_local_data_are_the_same_images(tiny_data, parquet_data, tmp_path):
    """Labelled batches and evaluation are equal to the bit; only the order of unlabelled images differs."""
    local = make_trainer(tiny_data, tmp_path / "local", method="suponly")
    streamed = make_trainer(parquet_data, tmp_path / "streamed", method="suponly", streaming=True)
    assert local.data.labelled_ids == streamed.data.labelled_ids
    assert local.train()["last"] == streamed.train()["last"]
    assert weights(tmp_path / "local") == weights(tmp_path / "streamed")


def test_a_streaming_run_that_was_stopped_ends_in_the_same_weights(parquet_data, tmp_path):
    options = {"streaming": True, "max_steps": 6, "warmup_steps": 1, "save_steps": 3}
    make_trainer(parquet_data, tmp_path / "whole", **options).train()
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000003"
    assert checkpoint.name.endswith("3")
    stopped = make_trainer(parquet_data, tmp_path / "stopped", resume=str(checkpoint), **options)
    stopped.train()
    assert weights(tmp_path / "whole") == weights(tmp_path / "stopped")


def test_further_folders_of_photographs_are_unlabelled_images(tiny_data, tmp_path, caplog):
    """They need no ids and no labels; a damaged one is skipped, named once and counted."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), np.uint8)).save(tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "photos" / "b.jpg").write_bytes(b"no image")
    options = {"unlabelled_dataset": [str(tmp_path / "photos")], "unlabelled_batch_size": 3, "max_steps": 5}
    trainer = make_trainer(tiny_data, tmp_path / "run", split="all", **options)
    assert len(trainer.data.labelled) == 24 and len(trainer.data.unlabelled) == 3
    results = trainer.train()
    assert results["num_unlabelled"] == 3 and results["skipped_unlabelled"] == 1
    assert caplog.text.count("skipped: image of b") == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["skipped_unlabelled"] == 1
    more = make_trainer(tiny_data, tmp_path / "more", **options)
    assert len(more.data.unlabelled) == 18 + 3


def test_wrong_further_data_are_told(tiny_data, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        make_trainer(tiny_data, tmp_path / "run", unlabelled_dataset=["./nowhere"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 unlabelled images were tried and none can be read"):
        make_trainer(tiny_data, tmp_path / "run", split="all", unlabelled_dataset=[str(tmp_path / "bad")])
    with pytest.raises(InputError, match="--unlabelled_dataset"):
        make_trainer(tiny_data, tmp_path / "run", split="all")


def test_a_split_of_ones_own_holds_every_class(tiny_data, tmp_path):
    """Six of 24 images, drawn with several seeds: each class that is in enough images is in the draw."""
    drawn = set()
    for seed in range(4):
        data = make_trainer(tiny_data, tmp_path / f"run{seed}", seed=seed, method="suponly").data
        presence = data.labelled_source.class_presence()
        enough = presence.sum(0) >= 24 / 6
        assert enough.sum() >= 3 and presence[data.labelled].any(0)[enough].all()
        drawn.add(tuple(data.labelled))
    assert len(drawn) > 1


def test_watching_pseudo_labels_changes_nothing_but_the_log(tiny_data, tmp_path):
    options = {"max_steps": 4, "warmup_steps": 1, "logging_steps": 1}
    make_trainer(tiny_data, tmp_path / "blind", **options).train()
    make_trainer(tiny_data, tmp_path / "watched", watch_pseudo_labels=True, **options).train()
    assert weights(tmp_path / "blind") == weights(tmp_path / "watched")
    lines = [json.loads(line) for line in (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["accuracy_reliable"] for line in lines if line["step"] > 1 and "loss" in line]
    assert len(shares) == 3 and all(0 <= share <= 1 for share in shares)
    assert all(len(line["anchors_per_class"]) == 7 for line in lines if "anchors_per_class" in line)
    with pytest.raises(InputError, match="--watch_pseudo_labels needs"):
        make_trainer(tiny_data, tmp_path / "run", watch_pseudo_labels=True, streaming=True)
