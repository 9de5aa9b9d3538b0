"""The real scripts on a tiny rendered data set: train, go on, evaluate, predict, and every mistake at the door."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from tests.in_process import ROOT, run_here
from u2pl_hf.errors import InputError
from u2pl_hf.training.build import build_run
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.recipe.command import parse_arguments
from u2pl_hf.training.run.report import summary

SMALL = {"base_width": 8, "head_channels": 8, "crop_size": 65, "batch_size": 2, "unlabelled_batch_size": 2}
QUICK = {"cpu_threads": 1, "num_workers": 0, "logging_steps": 1, "picture_samples": 2}
TINY = [str(part) for name, value in (SMALL | QUICK).items() for part in (f"--{name}", value)]
LAUNCHER = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "training_scripts" / "launch" / "cpu.yaml")]
CODE = ["configuration_u2pl.py", "backbone_u2pl.py", "dpt_u2pl.py", "modeling_u2pl.py", "image_processing_u2pl.py"]
EXPORTED = ["config.json", "model.safetensors", "preprocessor_config.json", "README.md", *CODE]
RECIPES = ROOT / "training_scripts" / "recipes"


def run_script(script: str, *arguments, launcher=(), cwd=ROOT, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, str(ROOT / "training_scripts" / script), *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=300)


def result_of(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def u2pl_run(tiny_data, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("runs") / "u2pl"
    options = ["--dataset", tiny_data, "--split", "1/4", "--max_steps", "6", "--warmup_steps", "2", "--eval_steps", "3"]
    options += [*TINY, "--output_dir", output]
    done = run_script("train_u2pl.py", RECIPES / "demo_u2pl.yaml", *options, launcher=LAUNCHER)
    return output, result_of(done)


def test_run_folder_is_complete(u2pl_run):
    output, result = u2pl_run
    others = ["recipe.yaml", "labeled.txt", "metrics.jsonl", "results.json", "pictures/step-000006.png"]
    for name in [*EXPORTED, *(f"best/{name}" for name in EXPORTED), *others]:
        assert (output / name).is_file(), name
    assert json.loads((output / "results.json").read_text()) == result
    assert len((output / "labeled.txt").read_text().split()) == 6 == result["num_labelled"]
    assert result["last"]["step"] == 6 and result["best"]["mean_iou"] >= result["last"]["mean_iou"]
    assert set(result["last"]["per_class_iou"]) == set(result["class_names"])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "eval_mean_iou" in line] == [3, 6]
    assert all("loss_contrastive" in line for line in lines if line["step"] > 2 and "loss" in line)


def test_export_is_the_teacher_exactly(u2pl_run, tiny_data):
    """evaluate.py on the export finds what training reported of the teacher."""
    output, result = u2pl_run
    evaluated = result_of(run_here("evaluate.py", output, "--dataset", tiny_data, "--subset", "validation"))
    assert evaluated["mean_iou"] == pytest.approx(result["last"]["mean_iou"], abs=1e-9)
    assert evaluated["per_class_iou"] == result["last"]["per_class_iou"]
    best = result_of(run_here("evaluate.py", output / "best", "--dataset", tiny_data, "--subset", "validation"))
    assert best["mean_iou"] == pytest.approx(result["best"]["mean_iou"], abs=1e-9)


def test_predict_writes_mask_and_overlay(u2pl_run, tmp_path):
    output, result = u2pl_run
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (57, 83, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    result_of(run_here("predict.py", output, tmp_path / "photo.jpg", "--output_dir", tmp_path / "out"))
    mask = Image.open(tmp_path / "out" / "photo_mask.png")
    assert mask.mode == "P" and mask.size == (83, 57) and np.asarray(mask).max() < len(result["class_names"])
    assert Image.open(tmp_path / "out" / "photo_overlay.png").size == (83, 57)
    model = AutoModelForSemanticSegmentation.from_pretrained(output)
    pixels = AutoImageProcessor.from_pretrained(output)(Image.open(tmp_path / "photo.jpg"), return_tensors="pt")
    with torch.no_grad():
        logits = model(**pixels).logits
    upsampled = torch.nn.functional.interpolate(logits, size=(57, 83), mode="bilinear", align_corners=True)
    assert (upsampled.argmax(1)[0].numpy() == np.asarray(mask)).mean() > 0.999


def test_finished_run_is_not_repeated(u2pl_run, tiny_data):
    output, result = u2pl_run
    before = (output / "model.safetensors").stat().st_mtime_ns
    done = run_here("train_u2pl.py", output / "recipe.yaml", "--num_workers", "0")
    assert result_of(done) == result and "finished already" in done.stderr
    # What people are told of it: scores, and commands that can be pasted.
    assert f"mean                  {100 * result['last']['mean_iou']:.2f}" in done.stderr
    commands = [shlex.split(line) for line in done.stderr.splitlines() if line.startswith("  python ")]
    assert [Path(words[1]) for words in commands] == [
        ROOT / "training_scripts" / f"{name}.py" for name in ("evaluate", "predict")
    ]
    assert commands[0][2:] == [str(output), "--dataset", str(tiny_data), "--subset", "validation"]
    assert (output / "model.safetensors").stat().st_mtime_ns == before


def test_stopped_run_goes_on_to_the_same_weights(u2pl_run, tmp_path):
    """What a run leaves that is killed after its checkpoint at step 3, then the rest of it: equal to the bit."""
    output, _ = u2pl_run
    stopped = tmp_path / "stopped"
    shutil.copytree(output / "checkpoints", stopped / "checkpoints")
    for name in ("recipe.yaml", "labeled.txt", "metrics.jsonl"):
        shutil.copy(output / name, stopped / name)
    done = run_here("train_u2pl.py", output / "recipe.yaml", *TINY, "--output_dir", stopped)
    assert result_of(done)["last"] == json.loads((output / "results.json").read_text())["last"]
    assert "resuming from" in done.stderr
    start = done.stderr[done.stderr.index("u2pl on cpu (") :]
    assert (
        "images: 6 labelled, 18 unlabelled (the steps see 8 of them), 5 to evaluate on; classes: 7\n"
        "from step 6 to 6, 2 of them warm-up" in start
    )
    assert (stopped / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
    before, after = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (output, stopped))
    for first, second in zip(before, after, strict=True):
        first, second = json.loads(first), json.loads(second)
        assert first.pop("images_per_second", 0) >= 0 <= second.pop("images_per_second", 0)
        assert first == second


@pytest.mark.parametrize(("started", "program"), [
    ("scripts/train_u2pl.py", "python scripts/evaluate.py"), ("u2pl train", "u2pl evaluate")])  # fmt: skip
def test_the_next_command_evaluates_as_the_run_did(started, program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    args = run_arguments(dataset="my data", id_column="name", eval_mode="slide", eval_window=99, streaming=True)
    scores = {"mean_iou": 0.5, "per_class_iou": {"sky": None, "road": 0.5}, "step": 7}
    told = summary(args, {"last": scores, "best": scores, "seconds": 90.0}).splitlines()
    assert told[0].split() == ["IoU", "in", "per", "cent", "last", "best", "(step", "7)"]
    assert [line.split() for line in told[1:4]] == [
        ["mean", "50.00", "50.00"],
        ["sky", "-", "-"],
        ["road", "50.00", "50.00"],
    ]
    assert told[4] == "runs/u2pl: 1,000 steps in 1.5 minutes; next:"
    options = "runs/u2pl --dataset 'my data' --subset validation --id_column name --streaming --mode slide --window 99"
    assert told[5] == f"  {program} {options}"


@pytest.fixture(scope="session")
def damaged(tiny_data, tmp_path_factory):
    """A copy of the tiny data set with one thing wrong."""
    import datasets

    def make(change=None, drop=None) -> Path:
        folder = tmp_path_factory.mktemp("damaged")
        for subset in ("train", "validation"):
            rows = datasets.load_dataset(str(tiny_data), split=subset, cache_dir=str(folder / "cache"))
            rows = rows.cast_column("image", datasets.Image(decode=False)).cast_column(
                "label", datasets.Image(decode=False)
            )
            rows = rows.map(change, keep_in_memory=True) if change else rows
            rows = rows.remove_columns(drop) if drop else rows
            (folder / "data").mkdir(exist_ok=True)
            rows.to_parquet(str(folder / "data" / f"{subset}-00000-of-00001.parquet"))
        return folder

    return make


def png(array: np.ndarray) -> dict:
    import io

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def refused(tmp_path: Path, *options, message: str, recipe: Path = RECIPES / "demo_suponly.yaml") -> None:
    """One line that says `message`, and nothing written."""
    arguments = [recipe, *TINY, "--max_steps", "2", "--output_dir", tmp_path / "new", *options]
    with pytest.raises(InputError) as error:
        build_run(parse_arguments([str(a) for a in arguments], ""))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_mistake_ends_the_script_with_one_line(tmp_path):
    options = ["--dataset", tmp_path / "nowhere", "--output_dir", tmp_path / "new"]
    done = run_script("train_u2pl.py", RECIPES / "demo_suponly.yaml", *options, launcher=[*LAUNCHER, "--quiet"])
    assert done.returncode != 0 and not done.stdout and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "nowhere" in done.stderr
    assert not (tmp_path / "new").exists()


def test_data_sets_that_are_refused(tmp_path, damaged, tiny_data):
    labels = ["--num_labels", "7"]
    refused(tmp_path, "--dataset", tmp_path / "nowhere", message="nowhere")
    refused(tmp_path, "--dataset", damaged(drop="label"), *labels, message="no column 'label'")
    too_large = damaged(lambda row: {"label": png(np.full((64, 64), 9, np.uint8))})
    refused(tmp_path, "--dataset", too_large, *labels, message="9")
    other_size = damaged(lambda row: {"label": png(np.zeros((64, 32), np.uint8))})
    refused(tmp_path, "--dataset", other_size, *labels, message="size")
    unreadable = damaged(lambda row: {"image": {"bytes": b"not an image", "path": None}})
    refused(tmp_path, "--dataset", unreadable, *labels, message="train_")


def test_options_that_are_refused(tmp_path, tiny_data, u2pl_run):
    data = ["--dataset", tiny_data]
    ids = tmp_path / "ids.txt"
    ids.write_text("train_0001\nno_such_image\n")
    refused(tmp_path, *data, "--split", ids, message="no_such_image")
    ids.write_text("")
    refused(tmp_path, *data, "--split", ids, message=str(ids))
    refused(tmp_path, *data, "--crop_size", "513", message="crop_size")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: suponly\nlearning_rat: 0.1\n")
    refused(tmp_path, *data, message="did you mean 'learning_rate'", recipe=recipe)
    refused(tmp_path, *data, "--eval_subset", "test", message="test")
    (tmp_path / "file").write_text("")
    refused(tmp_path, *data, "--output_dir", tmp_path / "file" / "run", message="is a file")


def test_output_folder_of_another_run_is_left_alone(u2pl_run):
    output, _ = u2pl_run
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    done = run_here("train_u2pl.py", output / "recipe.yaml", "--seed", "5")
    assert done.returncode == 2 and "another run" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
