"""u2pl calibrate on a small model, and images whose labels are drawn from its logits times eight: 1/8 is right."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.hub.test_model_card import RESULTS
from tests.in_process import run_here
from tests.model.test_modeling import narrow_model, scramble
from u2pl_hf import U2PLForSemanticSegmentation, U2PLImageProcessor
from u2pl_hf.evaluation.inference import segment
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.hub.exported import exported_files
from u2pl_hf.hub.model_card import render_model_card
from u2pl_hf.measure.collection import add_run, write_collection
from u2pl_hf.model import modeling_u2pl
from u2pl_hf.pixels import normalize

CLASSES = 5


def write_parquet(folder: Path, images: list[np.ndarray], masks: list[np.ndarray], subset: str = "validation") -> None:
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Image()})
    pictures = {"image": [*map(Image.fromarray, images)], "label": [*map(Image.fromarray, masks)]}
    rows = {"id": [f"{subset}_{n}" for n in range(len(images))]} | pictures
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{subset}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Subsets: validation, of eight images; train, of one; test, of two without a label."""
    model, rng, folder = narrow_model().eval(), np.random.default_rng(0), tmp_path_factory.mktemp("data") / "photos"
    scramble(model)
    images, masks = [rng.integers(0, 256, (72, 80, 3)).astype(np.uint8) for _ in range(8)], []
    generator = torch.Generator().manual_seed(0)
    for image in images:
        scores = segment(model, normalize(torch.from_numpy(image).permute(2, 0, 1)[None], None))[0]
        probability = (8 * scores).softmax(dim=0).reshape(CLASSES, -1).T
        masks.append(probability.multinomial(1, generator=generator).reshape(72, 80).numpy().astype(np.uint8))
        masks[-1][:3] = 255
    write_parquet(folder, images, masks)
    write_parquet(folder, images[:1], masks[:1], "train")
    write_parquet(folder, images[:2], [np.full_like(masks[0], 255)] * 2, "test")
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    """What a run leaves: a model with its code, which here is of before, results and card."""
    model, folder = narrow_model(), tmp_path / "run"
    scramble(model)
    model.save_pretrained(folder)
    U2PLImageProcessor().save_pretrained(folder)
    (folder / "modeling_u2pl.py").write_text("# of before\n")
    (folder / "dpt_u2pl.py").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["temperature"]
    (folder / "config.json").write_text(json.dumps(config))
    results = RESULTS | {"pictures": None, "curves": None}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "README.md").write_text(render_model_card(results))
    return folder


def calibrate(*arguments, code: int = 0) -> dict | str:
    """The JSON of the command; of one that must fail its one error line."""
    done = run_here("calibrate.py", *arguments, "--device", "cpu")
    assert done.returncode == code, done.stderr
    if not code:
        return json.loads(done.stdout.splitlines()[-1]) | {"told": done.stderr}
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


def test_the_temperature_is_found_stored_and_told(run, data, tmp_path):
    logits = load_model(str(run), device="cpu")(torch.zeros(1, 3, 40, 40)).logits
    found = calibrate(run, "--dataset", data)
    assert found["temperature"] == found["fitted_temperature"] == pytest.approx(1 / 8, rel=0.05)
    assert found["ece"] < 0.5 * found["ece_before"] and found["nll"] < found["nll_before"]
    assert (found["fitted_images"], found["images"]) == (4, 4) and found["pixels"] == 4 * 69 * 80
    assert found["card"] and "expected calibration error" in found["told"]
    # Into the model, whoever loads it.
    model = load_model(str(run), device="cpu")
    assert model.config.temperature == found["temperature"]
    torch.testing.assert_close(model(torch.zeros(1, 3, 40, 40)).logits * found["temperature"], logits)
    assert (run / "modeling_u2pl.py").read_bytes() == Path(modeling_u2pl.__file__).read_bytes()
    assert (run / "dpt_u2pl.py").is_file() and not list(run.glob(".*"))
    # Into results and card, and with it to the Hub and into a collection.
    results, card = json.loads((run / "results.json").read_text()), (run / "README.md").read_text()
    assert results["calibration"].items() <= found.items() and results["last"] == RESULTS["last"]
    assert card == render_model_card(results) and "](reliability.png)" in card
    row = f"| {100 * found['ece_before']:.2f} | {100 * found['ece']:.2f} |"
    assert row in card and f"temperature of {found['temperature']}" in card and "None" not in card
    assert exported_files(run, "user/net")["reliability.png"] == run / "reliability.png"
    assert str(tmp_path) not in exported_files(run, "user/net")["README.md"].decode()
    add_run(run, tmp_path / "cards")
    write_collection(tmp_path / "cards")
    assert "](reliability.png)" in (tmp_path / "cards" / "run" / "README.md").read_text()
    assert Image.open(tmp_path / "cards" / "run" / "reliability.png").size == (1120, 300)
    # Again, and after somebody has edited the card.
    (run / "README.md").write_text(card + "\nTaken on a rainy day.\n")
    again = calibrate(run, "--dataset", data)
    assert not again["card"] and "was edited" in again["told"]
    assert again["temperature"] == found["temperature"] and again["ece_before"] == found["ece_before"]
    assert (run / "README.md").read_text() == card + "\nTaken on a rainy day.\n"


def test_what_is_no_better_on_the_other_half_is_not_taken(run, data, monkeypatch):
    monkeypatch.setattr("u2pl_hf.evaluation.calibration.fit_temperature", lambda *_: 3.0)
    found = calibrate(run, "--dataset", data)
    assert (found["temperature"], found["fitted_temperature"]) == (1.0, 3.0) and found["nll"] > found["nll_before"]
    assert "is no better: the model's temperature is 1" in found["told"]
    assert U2PLForSemanticSegmentation.from_pretrained(run).config.temperature == 1
    assert "no better is a temperature of 3.0" in (run / "README.md").read_text()


def test_a_folder_without_results_has_no_card(run, data):
    for name in ("results.json", "README.md"):
        (run / name).unlink()
    code = {path.name for path in run.glob("*.py")}
    for name in code:
        (run / name).unlink()
    found = calibrate(run, "--dataset", data, "--mode", "slide", "--window", 65, "--pixels", 4000)
    assert found["protocol"]["mode"] == "slide" and found["fitted_pixels"] == 4000 and not found["card"]
    assert "no results.json" in found["told"]
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "reliability.png"}
    assert {path.name for path in run.iterdir()} == names


def test_calibrate_refuses(run, data, tmp_path):
    before = {path: path.read_bytes() for path in run.iterdir()}
    line = calibrate("user/net", "--dataset", data, code=2)
    assert "model user/net is no folder" in line and "hf download user/net --local-dir FOLDER" in line
    line = calibrate(tmp_path / "nowhere", "--dataset", data, code=2)
    assert "nowhere is no folder" in line and "hf download" not in line
    assert "--subset train has 1 image" in calibrate(run, "--dataset", data, "--subset", "train", code=2)
    line = calibrate(run, "--dataset", data, "--subset", "test", code=2)
    assert "one half of its images is 255" in line
    assert "--pixels is 5: it must be at least 100" in calibrate(run, "--dataset", data, "--pixels", 5, code=2)
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "results.json").write_text("{")
    assert "results.json is no JSON" in calibrate(tmp_path / "damaged", "--dataset", data, code=2)
    assert {path: path.read_bytes() for path in run.iterdir()} == before
