import copy

import pytest
from huggingface_hub import ModelCard

from u2pl_hf.hub.model_card import TEMPLATE, render_card

RESULTS = {
    "method": "u2pl",
    "variant": "paper",
    "dataset": "someone/streets",
    "subset": "validation",
    "split": "splits/46/labeled.txt",
    "num_labelled": 46,
    "num_unlabelled": 321,
    "seed": 3,
    "max_steps": 1200,
    "batch_size_labelled": 8,
    "seconds": 1234.5,
    "images_per_second": 15.26,
    "hardware": {"device": "cpu", "threads": 2},
    "versions": {"torch": "2.13.0"},
    "protocol": {"mode": "slide", "window": 769, "stride": 513, "scales": [1.0], "flip": False},
    "class_names": ["road", "sky", "tram"],
    "command": "accelerate launch training_scripts/train_u2pl.py recipe.yaml --seed 3",
    "last": {
        "step": 1200,
        "mean_iou": 0.41236,
        "accuracy": 0.8125,
        "per_class_iou": {"road": 0.7, "sky": 0.1247, "tram": None},
    },
    "best": {
        "step": 900,
        "mean_iou": 0.43001,
        "accuracy": 0.82,
        "per_class_iou": {"road": 0.71, "sky": 0.15002, "tram": None},
    },
    "pictures": "pictures/step_1200.png",
    "backbone": "resnet18",
    "parameters": 12345678,
}


def test_metadata_is_read_back():
    data = ModelCard(render_card(RESULTS)).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "image-segmentation")
    assert data.tags == ["u2pl", "semi-supervised", "semantic-segmentation"]
    assert data.datasets == ["someone/streets"]
    assert data.model_name == "u2pl-resnet18-streets-46"
    assert {(r.metric_name, r.metric_value) for r in data.eval_results} == {
        ("mIoU (best, step 900)", 0.43001),
        ("mIoU (last, step 1200)", 0.41236),
    }
    assert {(r.dataset_type, r.dataset_split) for r in data.eval_results} == {("someone/streets", "validation")}


def test_every_fact_is_printed():
    card = render_card(RESULTS)
    for text in (
        "| best | 900 | 43.00 | 82.00 |",
        "| last | 1200 | 41.24 | 81.25 |",
        "| sky | 15.00 | 12.47 |",
        "| tram | - | - |",
        "46 labelled and 321 unlabelled images",
        "12,345,678 parameters",
        "mode slide, window 769, stride 513, scales 1, flip False",
        "- seed: 3",
        "- labelled images per step: 8",
        "- seconds: 1234",
        "- hardware: device cpu, threads 2",
        RESULTS["command"],
        "](pictures/step_1200.png)",
        "arxiv.org/abs/2203.03884",
    ):
        assert text in card
    assert "\n\n\n" not in card


def test_missing_facts_are_left_out():
    card = render_card({"method": "suponly", "class_names": ["a", "b"]})
    for absent in ("None", "Results", "![", "seed", "Undefined", "unlabelled"):
        assert absent not in card
    assert ModelCard(card).data.eval_results is None


@pytest.mark.parametrize("missing", [key for key in RESULTS if key != "class_names"])
def test_any_single_fact_may_be_missing(missing):
    for results in ({k: v for k, v in RESULTS.items() if k != missing}, RESULTS | {missing: None}):
        card = render_card(results)
        assert "None" not in card
        assert ModelCard(card).data.license == "apache-2.0"


def test_a_local_folder_is_named_without_its_path(tmp_path):
    card = render_card(RESULTS | {"dataset": str(tmp_path / "camvid"), "command": None})
    assert str(tmp_path) not in card
    assert ModelCard(card).data.datasets is None
    assert ModelCard(card).data.eval_results[0].dataset_name == "camvid"


def test_rendering_changes_nothing_in_its_input():
    results = copy.deepcopy(RESULTS)
    render_card(results)
    assert results == RESULTS


def test_the_template_holds_no_score():
    body = TEMPLATE.read_text()
    assert "mIoU" in body
    assert not any(ch.isdigit() for ch in body.split("## Results")[1].split("## How to load")[0])
