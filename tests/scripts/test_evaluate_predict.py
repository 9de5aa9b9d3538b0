"""The real scripts, on a tiny model with random weights and a tiny data set."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation, U2PLImageProcessor
from u2pl_hf.evaluation import MeanIoU
from u2pl_hf.evaluation.inference import predict_image
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.pictures import default_palette, overlay

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["wall", "tree", "car", "sky"]


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs a script in this process: many starts of Python would take long."""

    def run(script: str, *arguments) -> subprocess.CompletedProcess:
        path = ROOT / "training_scripts" / script
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        return subprocess.CompletedProcess(sys.argv, end.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = U2PLConfig(
        backbone="resnet18",
        base_width=8,
        head_channels=8,
        representation_channels=8,
        id2label=dict(enumerate(NAMES)),
        label2id={name: c for c, name in enumerate(NAMES)},
    )
    U2PLForSemanticSegmentation(config).save_pretrained(path)
    U2PLImageProcessor().save_pretrained(path)
    return path


def write_data(path, num_labels, ids):
    rng = np.random.default_rng(0)
    sizes = [(40, 48), (40, 48), (33, 57)]
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    labels = [rng.choice([*range(num_labels), 255], size).astype(np.uint8) for size in sizes]
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Image()})
    rows = {"id": ids, "image": list(map(Image.fromarray, images)), "label": list(map(Image.fromarray, labels))}
    path.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path / "validation-00000-of-00001.parquet")
    return images, labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    images, labels = write_data(folder, len(NAMES), ["one", "town/two", "town/three"])
    return folder, images, labels


def start(script, *arguments, launcher=(sys.executable,), **environment):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"} | environment
    return subprocess.run(
        [*launcher, str(ROOT / "training_scripts" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env | {"HF_HUB_OFFLINE": "1"},
        timeout=200,
    )


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refused(done):
    """The one error line of a run that must fail."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def score(folder, ids, labels):
    metric = MeanIoU(len(NAMES))
    for sample_id, label in zip(ids, labels, strict=True):
        with Image.open(folder / f"{sample_id}.png") as mask:
            assert mask.mode == "L"
            metric.update(np.array(mask), label)
    return metric.compute()


def test_evaluate_scores_what_it_saves(model_dir, data, tmp_path):
    folder, images, labels = data
    arguments = [model_dir, "--dataset", folder, "--subset", "validation", "--device", "cpu", "--batch_size", 2]
    done = start(
        "evaluate.py", *arguments, "--save_predictions", tmp_path / "masks", "--output_file", tmp_path / "r.json"
    )
    result = result_of(done)
    expected = score(tmp_path / "masks", ["one", "town/two", "town/three"], labels)
    assert result["mean_iou"] == expected["mean_iou"]
    assert result["per_class_iou"] == dict(zip(NAMES, expected["per_class_iou"], strict=True))
    assert result["accuracy"] == expected["accuracy"]
    assert result["protocol"] == {"mode": "whole", "scales": [1.0], "flip": False}
    assert (result["num_images"], result["subset"]) == (3, "validation")
    assert {"torch", "transformers"} <= set(result["versions"])
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert all(name in done.stderr for name in [*NAMES, "mIoU"])
    model = load_model(str(model_dir), device="cpu")
    with Image.open(tmp_path / "masks" / "town" / "three.png") as mask:
        assert np.array_equal(np.array(mask), predict_image(model, images[2], "cpu"))


def test_evaluate_two_processes_slide_scales_flip(model_dir, data, tmp_path):
    folder, _, labels = data
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    options = ["--mode", "slide", "--window", 33, "--stride", 16, "--scales", 1, 1.5, "--flip", "--device", "cpu"]
    arguments = [model_dir, "--dataset", folder, *options, "--save_predictions", tmp_path]
    result = result_of(start("evaluate.py", *arguments, launcher=launcher, CUDA_VISIBLE_DEVICES=""))
    assert result["mean_iou"] == score(tmp_path, ["one", "town/two", "town/three"], labels)["mean_iou"]
    assert result["protocol"] == {"mode": "slide", "scales": [1.0, 1.5], "flip": True, "window": 33, "stride": 16}


def test_evaluate_refuses(model_dir, data, tmp_path, here):
    folder, _, _ = data
    assert "nowhere" in refused(start("evaluate.py", tmp_path / "nowhere", "--dataset", folder))
    assert "nothing_here" in refused(here("evaluate.py", model_dir, "--dataset", tmp_path / "nothing_here"))
    write_data(tmp_path / "more", len(NAMES) + 2, ["one", "two", "three"])
    line = refused(here("evaluate.py", model_dir, "--dataset", tmp_path / "more"))
    assert "4 classes" in line
    write_data(tmp_path / "escape", len(NAMES), ["one", "two", "../three"])
    masks = tmp_path / "deep" / "masks"
    line = refused(here("evaluate.py", model_dir, "--dataset", tmp_path / "escape", "--save_predictions", masks))
    assert "../three" in line
    assert not masks.exists()


def test_predict_any_size_folders_globs_and_exif(model_dir, tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (37, 53, 3)).astype(np.uint8)
    (tmp_path / "folder").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown with sides exchanged
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "folder" / "colour.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "folder" / "grey.PNG")
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    done = start(
        "predict.py", model_dir, tmp_path / "*.jpg", tmp_path / "folder", "--output_dir", out, "--device", "cpu"
    )
    files = result_of(done)["files"]
    assert [Path(file["mask"]).name for file in files] == ["turned_mask.png", "colour_mask.png", "grey_mask.png"]
    model = load_model(str(model_dir), device="cpu")
    with Image.open(out / "colour_mask.png") as mask, Image.open(out / "colour_overlay.png") as laid_over:
        ids = np.array(mask)
        assert mask.mode == "L"
        assert np.array_equal(ids, predict_image(model, pixels, "cpu"))
        assert np.array_equal(np.array(laid_over), overlay(pixels, ids, default_palette(len(NAMES))))
    with Image.open(out / "turned_mask.png") as mask:
        assert mask.size == (37, 53)


def test_predict_refuses(model_dir, tmp_path, here):
    out = tmp_path / "out"
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    assert "broken.jpg" in refused(start("predict.py", model_dir, tmp_path / "broken.jpg", "--output_dir", out))
    assert "*.gif" in refused(here("predict.py", model_dir, tmp_path / "*.gif", "--output_dir", out))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "same.png")
    assert "same.png" in refused(here("predict.py", model_dir, tmp_path / "a", tmp_path / "b", "--output_dir", out))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "segformer"}')
    assert "segformer" in refused(here("predict.py", other, tmp_path / "a", "--output_dir", out))
    assert not out.exists()


def test_a_model_whose_weights_are_not_all_there_is_refused(model_dir, tmp_path):
    model = U2PLForSemanticSegmentation.from_pretrained(model_dir)
    state = {f"other.{name}": value for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="weights are not in its file"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize("script", ["evaluate.py", "predict.py"])
def test_help_helps(script):
    done = start(script, "--help")
    assert done.returncode == 0
    assert f"python training_scripts/{script}" in done.stdout
