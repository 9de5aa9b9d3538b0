"""The scores of evaluate.py, against numpy on the files it saved; on rendered images always, on real ones where given.

U2PL_TEST_DATA names a folder with voc_subset/*.tar (images and masks in the layout of VOC) and cityscapes_sample/*.zip
(the two official archives, or a part of them); both are prepared by prepare_dataset.py first.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.in_process import ROOT
from tests.scripts.test_evaluate_predict import here  # noqa: F401 - a fixture
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.data.source.class_list import read_class_list

REAL = os.environ.get("U2PL_TEST_DATA", "")
IMAGES = 12
PROTOCOLS = {
    "whole": [],
    "slide": ["--mode", "slide"],
    "scales_flip": ["--scales", 0.5, 1, "--flip"],
}
WINDOWS = {64: 40}  # of images of this width; else 257
ARCHIVES = {"voc": "voc_subset/*.tar", "cityscapes": "cityscapes_sample/*.zip"}


@pytest.fixture(scope="module", params=["demo", "voc", "cityscapes"])
def data(request, tmp_path_factory):
    """A folder with class names and at most twelve images as its subset `validation`."""
    if request.param == "demo":
        return request.getfixturevalue("tiny_data")
    archives = sorted(map(str, Path(REAL).glob(ARCHIVES[request.param]))) if REAL else []
    if not archives:
        pytest.skip("U2PL_TEST_DATA names no folder with these archives")
    prepared, few = tmp_path_factory.mktemp("prepared") / "all", tmp_path_factory.mktemp("few")
    command = [sys.executable, str(ROOT / "training_scripts" / "prepare_dataset.py"), request.param]
    command += ["--archive", *archives, "--output_dir", str(prepared)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    found = datasets.load_dataset(str(prepared))
    rows = found["validation" if "validation" in found else "train"]
    chosen = np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).astype(int)
    rows.select(chosen).to_parquet(few / "validation-00000-of-00001.parquet")
    (few / "class_names.txt").write_text((prepared / "class_names.txt").read_text())
    return few


@pytest.fixture(scope="module")
def model_dir(data, tmp_path_factory):
    names = read_class_list(data / "class_names.txt").names
    torch.manual_seed(1)
    config = U2PLConfig(
        backbone="resnet18",
        base_width=8,
        head_channels=16,
        representation_channels=8,
        id2label=dict(enumerate(names)),
        label2id={name: c for c, name in enumerate(names)},
    )
    path = tmp_path_factory.mktemp("model")
    model = U2PLForSemanticSegmentation(config)
    # As they start, weights say almost the same class everywhere.
    torch.nn.init.normal_(model.classifier[-1].weight)
    model.save_pretrained(path)
    return path


def options(data, protocol):
    """The protocol's, with windows that are smaller than the images."""
    rows = datasets.load_dataset("parquet", data_files=files(data), split="v", streaming=True)
    width = next(iter(rows))["image"].width
    return [*PROTOCOLS[protocol], "--window", WINDOWS.get(width, 257), "--device", "cpu"]


def files(data):
    return {"v": str(data / "**" / "validation-*.parquet")}


def scores_by_numpy(folder, data):
    """From the saved masks and the data set's own, class by class."""
    rows = datasets.load_dataset("parquet", data_files=files(data))["v"]
    predicted, true = [], []
    for row in rows:
        with Image.open(folder / f"{row['id']}.png") as mask:
            predicted.append(np.array(mask).ravel())
        true.append(np.array(row["label"]).ravel())
    predicted, true = np.concatenate(predicted), np.concatenate(true)
    known = true != 255
    predicted, true = predicted[known], true[known]
    iou, recall = {}, {}
    for c, name in enumerate(read_class_list(data / "class_names.txt").names):
        p, t = predicted == c, true == c
        iou[name] = (p & t).sum() / (p | t).sum() if (p | t).any() else None
        recall[name] = (p & t).sum() / t.sum() if t.any() else None
    return iou, recall, (predicted == true).mean(), len(np.unique(predicted))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_are_those_of_the_saved_masks(data, model_dir, protocol, tmp_path, here):  # noqa: F811
    arguments = [model_dir, "--dataset", data, *options(data, protocol)]
    saved = ["--save_predictions", tmp_path / "masks", "--output_file", tmp_path / "one.json"]
    result = json.loads(here("evaluate.py", *arguments, *saved, code=None).stdout.splitlines()[-1])
    iou, recall, accuracy, classes = scores_by_numpy(tmp_path / "masks", data)
    print(protocol, result["num_images"], "images, mean IoU", result["mean_iou"], "accuracy", accuracy, classes)
    assert classes > 1
    assert result["per_class_iou"] == {name: v if v is None else pytest.approx(v, abs=1e-12) for name, v in iou.items()}
    assert result["per_class_accuracy"] == {
        name: v if v is None else pytest.approx(v, abs=1e-12) for name, v in recall.items()
    }
    assert result["mean_iou"] == pytest.approx(np.mean([v for v in iou.values() if v is not None]), abs=1e-12)
    assert result["mean_accuracy"] == pytest.approx(np.mean([v for v in recall.values() if v is not None]), abs=1e-12)
    assert result["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert result["absent_classes"] == [name for name, v in iou.items() if v is None]


def test_two_processes_count_the_same_pixels(request, data, model_dir, tmp_path, here):  # noqa: F811
    if data == request.getfixturevalue("tiny_data"):
        pytest.skip("small images: test_evaluate_predict.py does this")
    arguments = [model_dir, "--dataset", data, *options(data, "slide"), "--output_file"]
    here("evaluate.py", *arguments, tmp_path / "one.json", code=None)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, ROOT / "training_scripts" / "evaluate.py", *arguments, tmp_path / "two.json"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["confusion"] == two["confusion"] and np.sum(one["confusion"]) > 0
    assert one["per_class_iou"] == two["per_class_iou"]
    assert (one["hardware"]["processes"], two["hardware"]["processes"]) == (1, 2)
