import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.data.rows import encode, make_table, write_parquet
from tests.training.test_trainer import make_trainer
from u2pl_hf.data.source import rows as rows_module
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
    monkeypatch.setattr("u2pl_hf.data.stream.order.WINDOW_BLOCKS", 2)


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_streamed_and_local_data_are_the_same_images(tiny_data, parquet_data, tmp_path):
    """Labelled batches and evaluation are equal to the bit; only the order of unlabelled images differs."""
    local = make_trainer(tiny_data, tmp_path / "local", method="suponly")
    streamed = make_trainer(parquet_data, tmp_path / "streamed", method="suponly", streaming=True)
    assert local.run.data.labelled_ids == streamed.run.data.labelled_ids
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
    assert len(trainer.run.data.labelled) == 24 and len(trainer.run.data.unlabelled) == 3
    results = trainer.train()
    assert results["num_unlabelled"] == 3 and results["skipped_unlabelled"] == 1
    assert caplog.text.count("skipped: image of b") == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["skipped_unlabelled"] == 1
    more = make_trainer(tiny_data, tmp_path / "more", **options)
    assert len(more.run.data.unlabelled) == 18 + 3


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
        data = make_trainer(tiny_data, tmp_path / f"run{seed}", seed=seed, method="suponly").run.data
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
    with pytest.raises(InputError, match="--watch_pseudo_labels goes with no method without"):
        make_trainer(tiny_data, tmp_path / "run", watch_pseudo_labels=True, streaming=True)


def write_data(folder, masks, validation=2, ids=None):
    """Images of random pixels with these masks as a data set of two classes, the last ones for validation."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(0, 255, (70, 90, 3), np.uint8)) for _ in masks]
    cells = [None if mask is None else {"bytes": encode(mask), "path": None} for mask in masks]
    table = make_table(images, ids=ids).add_column("label", cells).cast_column("label", datasets.Image(decode=False))
    cut = len(masks) - validation
    write_parquet(folder, table.select(range(cut)), group=4)
    write_parquet(folder, table.select(range(cut, len(masks))), subset="validation")
    (folder / "class_names.txt").write_text("ground\nbox\n")
    return images


def halves(number: int = 0, value: int = 1) -> np.ndarray:
    """A mask of class 0 above and `value` below, each another one."""
    mask = np.zeros((70, 90), np.uint8)
    mask[30 + number :] = value
    return mask


def test_labels_that_teach_nothing_are_refused(tmp_path, caplog):
    ignored = np.full((70, 90), 255, np.uint8)
    for name, masks, message in (
        ("all", [ignored] * 6, "the 4 labelled images have pixels of no class"),
        ("one", [halves(value=255)] * 4 + [halves()] * 2, "the 4 labelled images have pixels of ground alone"),
        ("scored", [halves()] * 4 + [ignored] * 2, "the 2 evaluation images have pixels of no class"),
    ):
        write_data(tmp_path / name, masks)
        with pytest.raises(InputError, match=message):
            make_trainer(tmp_path / name, tmp_path / "run", split="all", method="suponly")
    write_data(tmp_path / "some", [halves()] * 4 + [halves(value=255)] * 2)
    make_trainer(tmp_path / "some", tmp_path / "run", split="all", method="suponly")
    assert "1 of 2 classes have no pixel in the evaluation images: box" in caplog.text


def test_evaluation_images_among_further_photographs_are_left_out(tmp_path, caplog):
    """The folder of all photographs: what is scored is not trained on, and the results tell how many were used."""
    images = write_data(tmp_path / "data", [halves(i) for i in range(6)])
    (tmp_path / "photos").mkdir()
    for number, image in enumerate([*images, encode(np.zeros((70, 90, 3), np.uint8))]):
        (tmp_path / "photos" / f"{number}.png").write_bytes(image)
    options = {"unlabelled_dataset": [str(tmp_path / "photos")], "unlabelled_batch_size": 2, "split": "all"}
    trainer = make_trainer(tmp_path / "data", tmp_path / "run", **options)
    source = trainer.run.data.unlabelled_source
    assert [source.ids[i] for i in trainer.run.data.unlabelled] == ["0", "1", "2", "3", "6"]
    assert (
        "2 unlabelled images are evaluation images" in caplog.text and "4 unlabelled images are labelled" in caplog.text
    )
    results = trainer.train()
    assert (results["num_unlabelled"], results["left_out_unlabelled"]) == (5, 2)
    for number in (0, 1, 2, 3, 6):
        (tmp_path / "photos" / f"{number}.png").unlink()
    with pytest.raises(InputError, match="all 2 unlabelled images are evaluation images"):
        make_trainer(tmp_path / "data", tmp_path / "other", **options)


def test_training_images_that_are_scored_are_told(tmp_path, caplog):
    images = write_data(tmp_path / "data", [halves(i) for i in range(6)])
    table = make_table([images[0], images[1], images[5]], [encode(halves())] * 3, ["im_0", "copy", "im_9"])
    write_parquet(tmp_path / "data", table, subset="validation")
    data = make_trainer(tmp_path / "data", tmp_path / "run", split="1/2", seed=1).run.data
    both = {"im_0", "im_1"}
    assert len(data.unlabelled) == 2 - len(both - set(data.labelled_ids)) == 2 - data.left_out
    assert "evaluation images" in caplog.text
    # Who names the training images for evaluation has been told, and goes on with all.
    data = make_trainer(tmp_path / "data", tmp_path / "run", split="1/2", eval_subset="train").run.data
    assert len(data.unlabelled) == 2 and data.left_out == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_each_labelled_image_is_held_out_by_one_fold(tmp_path, streaming, caplog):
    """Held out means neither trained on, with its label or without, nor chosen by the seed."""
    images = write_data(tmp_path / "data", [halves(i) for i in range(9)], validation=1)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        (tmp_path / "photos" / f"photo{number}.png").write_bytes(image)
    options = {"split": "3/4", "unlabelled_dataset": [str(tmp_path / "photos")], "streaming": streaming}
    whole = make_trainer(tmp_path / "data", tmp_path / "run", **options, seed=1).run.data
    held = []
    for number in (1, 2, 3):
        fold = make_trainer(tmp_path / "data", tmp_path / "run", fold=f"{number}/3", **options, seed=1).run.data
        assert not {*fold.evaluation.ids} & {*fold.labelled_ids} and len(fold.evaluation.ids) == 2
        assert {*fold.evaluation.ids} | {*fold.labelled_ids} == {*whole.labelled_ids}
        if not streaming:
            unlabelled = {fold.unlabelled_source.ids[i] for i in fold.unlabelled}
            assert not unlabelled & {name.replace("im_", "photo") for name in fold.evaluation.ids}
        masks = [fold.evaluation.read_label(row) for row in range(2)]
        assert all((mask == halves(int(name[3:]))).all() for mask, name in zip(masks, fold.evaluation.ids, strict=True))
        held += fold.evaluation.ids
    assert sorted(held) == sorted(whole.labelled_ids)
    run = make_trainer(tmp_path / "data", tmp_path / "run", fold="2/3", labelled_share=0.5, **options, seed=1)
    half = run.run.data
    assert half.evaluation.ids == held[2:4] and len(half.labelled_ids) == 2
    if not streaming:
        results = run.train()
        assert (results["subset"], results["num_evaluation"]) == ("part 2/3 of the labelled train images", 2)
    both = make_trainer(tmp_path / "data", tmp_path / "other", fold="all", **options, seed=1).run.data
    assert both.evaluation.ids == both.labelled_ids == whole.labelled_ids
    assert len(both.unlabelled) == 2 + 9


def test_wrong_folds_are_told(tmp_path):
    write_data(tmp_path / "data", [halves(i) for i in range(6)])
    for fold in ("4/3", "0/3", "1/1", "a", "1/3/3", ""):
        with pytest.raises(InputError, match="must be a part and their number, such as 1/3, or all"):
            make_trainer(tmp_path / "data", tmp_path / "run", fold=fold)
    with pytest.raises(InputError, match="--fold 1/5: the 4 labelled images are fewer than the parts; pass at most 4"):
        make_trainer(tmp_path / "data", tmp_path / "run", fold="1/5", split="all", method="suponly")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_does_not_go_on_with_other_labels_or_images(tmp_path, streaming):
    """Corrected masks, other photographs of the same names: neither from a checkpoint nor as a finished run."""
    masks = [halves(i) for i in range(8)]
    options = {"save_steps": 2, "split": "1/2", "streaming": streaming, "max_steps": 2}

    def again(**changes):
        return make_trainer(tmp_path / "data", tmp_path / "run", **options | changes)

    images = write_data(tmp_path / "data", masks)
    first = again()
    first.train()
    checkpoint, results = (tmp_path / "run" / name for name in ("checkpoints/step-000002", "results.json"))
    assert again().train()["last"] == first.train()["last"]
    labelled = int(first.run.data.labelled_ids[0][3:])
    for changed, message in ((labelled, "labels of labelled images"), (7, "labels of evaluation images")):
        write_data(tmp_path / "data", [halves(i + 9) if i == changed else mask for i, mask in enumerate(masks)])
        with pytest.raises(InputError, match=f"results.json was trained on other {message}"):
            again()
        with pytest.raises(InputError, match=f"step-000002 was trained on other {message}"):
            make_trainer(tmp_path / "data", tmp_path / "other", **options | {"resume": str(checkpoint)})
    write_data(tmp_path / "data", masks)
    table = make_table(
        [encode(np.zeros((70, 90, 3), np.uint8)), images[7]], [encode(m) for m in masks[6:]], ["im_6", "im_7"]
    )
    write_parquet(tmp_path / "data", table, subset="validation")
    with pytest.raises(InputError, match="trained on other bytes of evaluation images"):
        again()
    # Folders of earlier versions do not tell, and go on.
    results.write_text(json.dumps({k: v for k, v in json.loads(results.read_text()).items() if k != "data"}))
    assert again().train()["last"]["step"] == 2


def test_unlabelled_images_of_another_size_are_other_images(tmp_path):
    write_data(tmp_path / "data", [halves(i) for i in range(6)])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encode(np.zeros((70, 90, 3), np.uint8)))
    options = {
        "unlabelled_dataset": [str(tmp_path / "photos")],
        "split": "all",
        "max_steps": 2,
        "unlabelled_batch_size": 1,
    }
    make_trainer(tmp_path / "data", tmp_path / "run", **options).train()
    (tmp_path / "photos" / "a.png").write_bytes(encode(np.eye(70, 90, dtype=np.uint8)))
    with pytest.raises(InputError, match="trained on other sizes of unlabelled images"):
        make_trainer(tmp_path / "data", tmp_path / "run", **options)


def test_streamed_rows_without_a_label_are_unlabelled(tmp_path):
    masks = [halves(i) if i % 2 else None for i in range(10)] + [halves(), halves(1)]
    write_data(tmp_path / "data", masks)
    local, streamed = (
        make_trainer(tmp_path / "data", tmp_path / f"run_{streaming}", split="all", streaming=streaming).run.data
        for streaming in (False, True)
    )
    assert local.labelled_ids == streamed.labelled_ids == [f"im_{i}" for i in (1, 3, 5, 7, 9)]
    assert local.unlabelled == streamed.unlabelled == [0, 2, 4, 6, 8]
