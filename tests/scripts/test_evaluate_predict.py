"""The real scripts, on a tiny model with random weights and a tiny data set."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.in_process import run_here
from tests.training.distributed import free_port, on_two_processes
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation, U2PLImageProcessor
from u2pl_hf.constants import default_palette
from u2pl_hf.evaluation import MeanIoU
from u2pl_hf.evaluation.inference import predict_image, segment
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.photographs import read_photograph
from u2pl_hf.evaluation.pictures import overlay, with_legend
from u2pl_hf.pixels import normalize

NAMES = ["wall", "tree", "car", "sky"]


@pytest.fixture
def here():
    """Runs a script in this process, which ends with `code`."""

    def run(script: str, *arguments, code: int | None = 2) -> subprocess.CompletedProcess:
        done = run_here(script, *arguments)
        assert done.returncode == (code or 0), done.stderr
        return done

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


def write_data(path, num_labels, ids, wrong=None):
    rng = np.random.default_rng(0)
    sizes = [(40, 48), (40, 48), (33, 57)]
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    labels = [rng.choice([*range(num_labels), 255], size).astype(np.uint8) for size in sizes]
    if wrong is not None:
        labels[wrong] = labels[wrong][1:]
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


def result_of(done):
    assert not done.returncode, done.stderr
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
            assert mask.mode == "P"
            metric.update(np.array(mask), label)
    return metric.compute()


def test_evaluate_says_when_nothing_is_labelled_and_which_subset_there_is(model_dir, tmp_path, here, caplog):
    write_data(tmp_path / "ignored", 0, ["a", "b", "c"])
    arguments = ["evaluate.py", model_dir, "--dataset", tmp_path / "ignored", "--device", "cpu"]
    assert json.loads(here(*arguments, code=None).stdout.splitlines()[-1])["mean_iou"] is None
    assert "all 3 images are 255 (ignored) throughout" in caplog.text
    assert "no subset 'val'; it has validation: pass --subset validation" in refused(
        here(*arguments, "--subset", "val")
    )


def test_evaluate_scores_what_it_saves(model_dir, data, tmp_path, here):
    folder, images, labels = data
    arguments = [model_dir, "--dataset", folder, "--subset", "validation", "--device", "cpu", "--batch_size", 2]
    writes = ["--save_predictions", tmp_path / "masks", "--save_overlays", tmp_path / "overlays"]
    done = here("evaluate.py", *arguments, *writes, "--output_file", tmp_path / "r.json", code=0)
    result = result_of(done)
    expected = score(tmp_path / "masks", ["one", "town/two", "town/three"], labels)
    assert result["mean_iou"] == expected["mean_iou"]
    assert result["per_class_iou"] == dict(zip(NAMES, expected["per_class_iou"], strict=True))
    assert result["per_class_accuracy"] == dict(zip(NAMES, expected["per_class_accuracy"], strict=True))
    assert result["accuracy"] == expected["accuracy"]
    assert result["protocol"] == {"mode": "whole", "scales": [1.0], "flip": False}
    assert (result["num_images"], result["subset"], result["precision"]) == (3, "validation", "no")
    assert {"torch", "transformers"} <= set(result["versions"])
    assert result["hardware"]["device"] == "cpu" and result["hardware"]["processes"] == 1
    assert result["dataset_revision"] is result["model_revision"] is None and result["seconds"] > 0
    stored = json.loads((tmp_path / "r.json").read_text())
    confusion = torch.tensor(stored.pop("confusion"))
    assert stored == result
    assert confusion.sum() == sum((label != 255).sum() for label in labels)
    assert (confusion.diagonal().sum() / confusion.sum()).item() == pytest.approx(result["accuracy"])
    assert all(name in done.stderr for name in [*NAMES, "mean", "all pixels"])
    model = load_model(str(model_dir), device="cpu")
    with Image.open(tmp_path / "masks" / "town" / "three.png") as mask:
        ids = np.array(mask)
    assert np.array_equal(ids, predict_image(model, images[2], "cpu"))
    with Image.open(tmp_path / "overlays" / "town" / "three.png") as pair:
        pair = np.array(pair)
    palette = default_palette(len(NAMES))
    assert np.array_equal(pair[:, :57], overlay(images[2], ids, palette, contour=True))
    assert np.array_equal(pair[:, 57:], overlay(images[2], labels[2], palette, contour=True))
    again = [*arguments, "--save_overlays", tmp_path / "overlays"]
    assert "--overwrite" in refused(here("evaluate.py", *again))


def evaluate_each(calls: dict[str, list], folder: Path) -> None:
    """Evaluate with the words of each call, as one of two processes; writes what came of it to folder/NAME-RANK."""
    for name, (port, *words) in calls.items():
        done = run_here("evaluate.py", *words, MASTER_PORT=str(port))
        told = json.dumps([done.returncode, done.stdout, done.stderr])
        (folder / f"{name}-{os.environ['RANK']}").write_text(told)


def test_two_processes_give_the_same_numbers_and_tell_an_error_once(model_dir, data, tmp_path, here):
    """The second image of the wrong data, which is the second process's, has a label that does not fit."""
    folder, _, labels = data
    options = ["--mode", "slide", "--window", "33", "--stride", "16", "--scales", "1", "1.5", "--flip"]
    arguments, masks = [str(model_dir), "--device", "cpu", "--dataset"], tmp_path / "masks"
    write_data(tmp_path / "wrong", len(NAMES), ["one", "two", "three"], wrong=1)
    same = [*arguments, str(folder), *options, "--reject_below", "0", "--output_file"]
    calls = {
        "same": [free_port(), *same, str(tmp_path / "two.json"), "--save_predictions", str(masks)],
        "wrong": [free_port(), *arguments, str(tmp_path / "wrong")],
    }
    on_two_processes(evaluate_each, calls, tmp_path)
    told = {path: json.loads((tmp_path / path).read_text()) for path in ("same-0", "same-1", "wrong-0", "wrong-1")}
    assert told["same-0"][0] == told["same-1"][0] == 0 and not told["same-1"][1]
    result = json.loads(told["same-0"][1].splitlines()[-1])
    here("evaluate.py", *same, tmp_path / "one.json", code=None)
    one, two = (json.loads((tmp_path / name).read_text())["confusion"] for name in ("one.json", "two.json"))
    assert one == two and np.sum(one) > 0
    assert (result["kept"]["share"], result["kept"]["mean_iou"]) == (1, result["mean_iou"])
    assert result["mean_iou"] == score(masks, ["one", "town/two", "town/three"], labels)["mean_iou"]
    assert result["protocol"] == {"mode": "slide", "scales": [1.0, 1.5], "flip": True, "window": 33, "stride": 16}
    assert result["hardware"]["processes"] == 2

    assert told["wrong-0"][:2] == told["wrong-1"][:2] == [2, ""] and "error: " not in told["wrong-1"][2]
    (line,) = (line for line in told["wrong-0"][2].splitlines() if line.startswith("error: "))
    assert "id two: the image is 48x40 and its label 48x39" in line


def test_evaluate_refuses(model_dir, data, tmp_path, here):
    folder, _, _ = data
    assert "nowhere" in refused(here("evaluate.py", tmp_path / "nowhere", "--dataset", folder))
    assert "nothing_here" in refused(here("evaluate.py", model_dir, "--dataset", tmp_path / "nothing_here"))
    assert "--dataset" in refused(here("evaluate.py", model_dir))
    arguments = ["evaluate.py", model_dir, "--device", "cpu", "--dataset"]
    assert "fp16 needs" in refused(here(*arguments, folder, "--precision", "fp16"))
    write_data(tmp_path / "more", len(NAMES) + 2, ["one", "two", "three"])
    assert "4 classes" in refused(here(*arguments, tmp_path / "more"))
    (tmp_path / "more" / "class_names.txt").write_text("wall\ntree\ncar\nsky\ncat\ndog\n")
    line = refused(here(*arguments, tmp_path / "more"))
    assert "the model has 4 classes" in line and "has 6" in line
    write_data(tmp_path / "escape", len(NAMES), ["one", "two", "../three"])
    masks = tmp_path / "deep" / "masks"
    assert "../three" in refused(here(*arguments, tmp_path / "escape", "--save_predictions", masks))
    assert not masks.exists()
    assert f"--output_file {tmp_path} is a folder" in refused(here(*arguments, folder, "--output_file", tmp_path))
    (tmp_path / "x.onnx").mkdir()
    assert "x.onnx is a folder" in refused(here("export_onnx.py", model_dir, tmp_path / "x.onnx"))


def test_other_class_names_are_warned_of_and_bf16_is_close(model_dir, tmp_path, here, caplog):
    write_data(tmp_path / "named", len(NAMES), ["one", "two", "three"])
    (tmp_path / "named" / "class_names.txt").write_text("wall\ntree\nlorry\nsky\n")
    options = ["--dataset", tmp_path / "named", "--device", "cpu"]
    exact = json.loads(here("evaluate.py", model_dir, *options, code=None).stdout.splitlines()[-1])
    assert "class 2 is car in the model and lorry in the data set" in caplog.text
    assert exact["absent_classes"] == [name for name, iou in exact["per_class_iou"].items() if iou is None]
    short = json.loads(
        here("evaluate.py", model_dir, *options, "--precision", "bf16", code=None).stdout.splitlines()[-1]
    )
    assert short["precision"] == "bf16"
    assert short["accuracy"] == pytest.approx(exact["accuracy"], abs=0.05)


def test_predict_any_size_folders_globs_and_exif(model_dir, tmp_path, here):
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
    arguments = [model_dir, tmp_path / "*.jpg", tmp_path / "folder", "--output_dir", out, "--device", "cpu"]
    options = ["--batch_size", 2, "--max_whole_pixels", 36 * 53]
    result = result_of(here("predict.py", *arguments, *options, code=0))
    files = result["files"]
    assert [Path(file["mask"]).name for file in files] == ["turned_mask.png", "colour_mask.png", "grey_mask.png"]
    assert {file["mode"] for file in files} == {"slide"}
    assert result["protocol"]["mode"] == "auto" and result["protocol"]["window"] == 769
    model = load_model(str(model_dir), device="cpu")
    with Image.open(out / "colour_mask.png") as mask, Image.open(out / "colour_overlay.png") as laid_over:
        ids = np.array(mask)
        assert mask.mode == "P"
        assert np.array_equal(ids, predict_image(model, pixels, "cpu"))
        palette = default_palette(len(NAMES))
        assert np.array_equal(np.array(laid_over), overlay(pixels, ids, palette, contour=True))
    with Image.open(out / "turned_mask.png") as mask:
        assert mask.size == (37, 53)
    assert not list(out.rglob(".*"))


def photographs(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)


def test_predict_keeps_sub_folders_and_goes_on(model_dir, tmp_path, here):
    root = tmp_path / "photos"
    photographs(root, "a.png", "may/a.png", "june/a.png", ".hidden/b.png")
    out = root / "results"  # inside the folder that is searched
    arguments = ["predict.py", model_dir, root, "--recursive", "--output_dir", out, "--device", "cpu"]
    first = json.loads(here(*arguments, "--save_confidence", code=None).stdout.splitlines()[-1])
    expected = {f"{name}_{kind}.png" for name in ("a", "may/a", "june/a") for kind in ("mask", "overlay", "confidence")}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == expected
    assert [file["mode"] for file in first["files"]] == ["whole"] * 3 and first["skipped"] == 0
    (out / "june" / "a_mask.png").unlink()
    kept = (out / "a_mask.png").stat().st_mtime_ns
    again = json.loads(here(*arguments, "--skip_existing", code=None).stdout.splitlines()[-1])
    assert [Path(file["mask"]).relative_to(out).as_posix() for file in again["files"]] == ["june/a_mask.png"]
    assert again["skipped"] == 2 and (out / "a_mask.png").stat().st_mtime_ns == kept
    glob = tmp_path / "by_glob"
    here("predict.py", model_dir, root / "*" / "a.png", "--output_dir", glob, "--device", "cpu", code=None)
    assert {path.relative_to(glob).as_posix() for path in glob.rglob("*_mask.png")} == {
        "june/a_mask.png",
        "may/a_mask.png",
    }


def test_predict_replaces_only_its_own(model_dir, tmp_path, here):
    photographs(tmp_path / "in", "1.png", "2.png")
    out = tmp_path / "in"  # beside the photographs
    arguments = [tmp_path / "in" / "1.png", "--output_dir", out, "--device", "cpu"]
    (out / "1_mask.png").write_bytes((out / "2.png").read_bytes())  # drawn by hand
    for options in ([], ["--skip_existing"]):
        line = refused(here("predict.py", model_dir, *arguments, *options))
        assert "1_mask.png is there and was not written by this program: pass another --output_dir" in line
    assert (out / "1_mask.png").read_bytes() == (out / "2.png").read_bytes()
    (out / "1_mask.png").unlink()
    here("predict.py", model_dir, *arguments, "--legend", "--no-contour", code=None)
    with Image.open(out / "1_overlay.png") as drawn, Image.open(out / "1_mask.png") as mask:
        pixels, ids, palette = read_photograph(out / "1.png"), np.array(mask), default_palette(len(NAMES))
        assert np.array_equal(np.array(drawn), with_legend(overlay(pixels, ids, palette), ids, palette, NAMES))
    first = (out / "1_mask.png").stat().st_mtime_ns
    skip = [model_dir, *arguments, "--skip_existing"]
    assert result_of(here("predict.py", *skip, code=None))["skipped"] == 1
    # The same photograph by another protocol is another result.
    assert result_of(here("predict.py", *skip, "--flip", code=None))["skipped"] == 0
    assert (out / "1_mask.png").stat().st_mtime_ns > first
    torch.manual_seed(1)
    config = U2PLConfig.from_pretrained(model_dir)
    U2PLForSemanticSegmentation(config).save_pretrained(tmp_path / "other")
    for options in ([], ["--skip_existing"]):
        line = refused(here("predict.py", tmp_path / "other", *arguments, *options))
        assert "1_overlay.png is of another model" in line and str(model_dir) in line
    shutil.copytree(model_dir, tmp_path / "moved")  # the same model is no other one
    here("predict.py", tmp_path / "moved", *arguments, code=None)


def test_evaluate_overwrites_only_its_own(model_dir, data, tmp_path, here):
    photographs(tmp_path / "masks", "town/two.png")
    arguments = [model_dir, "--dataset", data[0], "--device", "cpu", "--save_predictions", tmp_path / "masks"]
    line = refused(here("evaluate.py", *arguments, "--overwrite"))
    assert "town/two.png is there and was not written by this program: pass another folder" in line
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["town"]
    (tmp_path / "masks" / "town" / "two.png").unlink()
    for _ in range(2):
        here("evaluate.py", *arguments, "--overwrite", code=None)


@pytest.fixture
def calibrated(model_dir, tmp_path):
    """The same model with another temperature, and how probable it says each pixel's class is."""
    shutil.copytree(model_dir, tmp_path / "calibrated")
    config = json.loads((tmp_path / "calibrated" / "config.json").read_text()) | {"temperature": 0.05}
    (tmp_path / "calibrated" / "config.json").write_text(json.dumps(config))
    model = load_model(str(tmp_path / "calibrated"), device="cpu")

    def probability(image: np.ndarray) -> np.ndarray:
        scores = segment(model, normalize(torch.from_numpy(image).permute(2, 0, 1)[None], None))[0]
        return scores.softmax(dim=0).amax(dim=0).numpy()

    return tmp_path / "calibrated", probability


def test_predict_rejects_what_is_improbable(calibrated, model_dir, tmp_path, here, caplog):
    model, probability = calibrated
    photographs(tmp_path / "in", "1.png", "2.png")
    Image.fromarray(read_photograph(tmp_path / "in" / "2.png")[:7]).save(tmp_path / "in" / "2.png")
    pixels = {n: read_photograph(tmp_path / "in" / f"{n}.png") for n in (1, 2)}
    sure = {n: probability(image) for n, image in pixels.items()}
    floor = round(float(np.median(sure[1])), 3)
    arguments = ["predict.py", model, tmp_path / "in", "--output_dir", tmp_path / "out", "--device", "cpu"]
    done = here(*arguments, "--reject_below", floor, code=0)
    result = result_of(done)
    shares, sizes, palette = [], [], default_palette(len(NAMES))
    for n, file in zip(pixels, result["files"], strict=True):
        ids = np.array(Image.open(file["mask"]))
        kept = ids != 255
        # The folded model's last bits may decide at the floor itself.
        assert ((sure[n] >= floor) == kept).mean() > 0.99 and 0 < kept.mean() < 1
        whole = predict_image(load_model(str(model), device="cpu"), pixels[n], "cpu")
        assert np.array_equal(ids[kept], whole[kept])
        assert file["kept"] == pytest.approx(kept.mean())
        assert np.array_equal(np.array(Image.open(file["overlay"])), overlay(pixels[n], ids, palette, contour=True))
        shares.append(kept.mean()), sizes.append(kept.size)
    assert result["kept"] == pytest.approx(np.average(shares, weights=sizes)) and result["reject_below"] == floor
    assert f"{result['kept']:.2%} of their pixels are kept" in done.stderr and "calibrate" not in caplog.text
    # What is there is of these options alone; without them the results are those of before, and say nothing of it.
    again = [*arguments, "--skip_existing"]
    assert result_of(here(*again, "--reject_below", floor, code=0))["skipped"] == 2
    plain = result_of(here(*again, code=0))
    assert plain["skipped"] == 0 and "kept" not in plain and "kept" not in plain["files"][0]
    assert (np.array(Image.open(plain["files"][0]["mask"])) != 255).all()
    here("predict.py", model_dir, *arguments[2:], "--reject_below", 1, code=0)
    assert "u2pl calibrate would correct" in caplog.text
    for wrong in (1.5, -0.1, "nan"):
        line = refused(here(*arguments, "--reject_below", wrong))
        assert f"--reject_below is {wrong}: it must lie in [0, 1]" in line


def test_evaluate_scores_what_is_kept_beside_all(calibrated, data, tmp_path, here):
    model, probability = calibrated
    folder, images, labels = data
    floor = round(float(np.median(probability(images[0]))), 3)
    arguments = ["evaluate.py", model, "--dataset", folder, "--device", "cpu"]
    plain = result_of(here(*arguments, code=0))
    done = here(*arguments, "--reject_below", floor, "--save_predictions", tmp_path / "masks", code=0)
    result = result_of(done)
    metric, total, names = MeanIoU(len(NAMES)), 0, ["one", "town/two", "town/three"]
    for name, image, label in zip(names, images, labels, strict=True):
        whole, kept = predict_image(load_model(str(model), device="cpu"), image, "cpu"), probability(image) >= floor
        assert np.array_equal(np.array(Image.open(tmp_path / "masks" / f"{name}.png")), np.where(kept, whole, 255))
        metric.update(whole[kept], label[kept])
        total += (label != 255).sum()
    expected = metric.compute()
    assert result["kept"]["mean_iou"] == expected["mean_iou"] and result["kept"]["accuracy"] == expected["accuracy"]
    assert result["kept"]["share"] == metric.confusion.sum().item() / total and 0.2 < result["kept"]["share"] < 0.8
    assert result["kept"]["reject_below"] == floor and result["temperature"] == 0.05
    # All pixels count in the score itself, as without the option.
    assert "kept" not in plain and result["per_class_iou"] == plain["per_class_iou"]
    assert f"at least {floor:g} probable are {100 * result['kept']['share']:.2f} %" in done.stderr
    assert "--reject_below is 2: it must lie in [0, 1]" in refused(here(*arguments, "--reject_below", 2))
    nothing = result_of(here(*arguments, "--reject_below", 1, code=0))["kept"]
    assert (nothing["share"], nothing["mean_iou"], nothing["absent_classes"]) == (0, None, NAMES)


def test_predict_ends_at_a_damaged_body_and_keeps_what_is_done(model_dir, tmp_path, here):
    photographs(tmp_path / "in", "1.png", "2.png", "3.png")
    whole = (tmp_path / "in" / "2.png").read_bytes()
    (tmp_path / "in" / "2.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    arguments = ["predict.py", model_dir, tmp_path / "in", "--output_dir", out, "--device", "cpu", "--batch_size", 3]
    line = refused(here(*arguments))
    assert "2.png: not an image that can be read" in line and "--skip_existing" in line
    assert sorted(path.name for path in out.iterdir()) == ["1_mask.png", "1_overlay.png"]
    (tmp_path / "in" / "2.png").write_bytes(whole)
    again = json.loads(here(*arguments, "--skip_existing", code=None).stdout.splitlines()[-1])
    assert len(again["files"]) == 2 and again["skipped"] == 1


def test_predict_refuses(model_dir, tmp_path, here):
    out = tmp_path / "out"
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    assert "broken.jpg" in refused(here("predict.py", model_dir, tmp_path / "broken.jpg", "--output_dir", out))
    assert "*.gif" in refused(here("predict.py", model_dir, tmp_path / "*.gif", "--output_dir", out))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "same.png")
    assert "same.png" in refused(here("predict.py", model_dir, tmp_path / "a", tmp_path / "b", "--output_dir", out))
    line = refused(here("predict.py", model_dir, tmp_path / "a", "--output_dir", tmp_path / "a"))
    assert "is also a folder of images" in line
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    assert "--recursive" in refused(here("predict.py", model_dir, tmp_path / "outer", "--output_dir", out))
    photographs(tmp_path / "own", "x.png", "x_mask.png")
    line = refused(here("predict.py", model_dir, tmp_path / "own" / "x*.png", "--output_dir", tmp_path / "own"))
    assert "x_mask.png" in line and "overwritten" in line
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    line = refused(here("predict.py", model_dir, tmp_path / "float.tif", "--output_dir", out))
    assert "float.tif: its pixels are floating-point" in line
    arguments = ["predict.py", model_dir, tmp_path / "a", "--output_dir", out, "--device", "cpu"]
    assert "fp16 needs" in refused(here(*arguments, "--precision", "fp16"))
    assert "--opacity" in refused(here(*arguments, "--opacity", 2))
    assert "--batch_size" in refused(here(*arguments, "--batch_size", 0))
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
