import copy
import functools
import html
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard, hf_hub_download

from u2pl_hf.hub.dataset_license import dataset_license
from u2pl_hf.hub.model_card import TEMPLATE, render_model_card
from u2pl_hf.hub.push import push_files

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
    "hardware": {"device": "cpu", "name": "X", "threads": 2, "processes": 1},
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
    data = ModelCard(render_model_card(RESULTS)).data
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
    card = render_model_card(RESULTS)
    for text in (
        "| best | 900 | 43.00 | 82.00 |",
        "| last | 1200 | 41.24 | 81.25 |",
        "| sky | 15.00 | 12.47 |",
        "| tram | - | - |",
        "46 labelled and 321 unlabelled images",
        "12,345,678 parameters",
        "mode slide, window 769, stride 513, scales 1, flip False",
        "- seed: 3",
        "- batch size labelled: 8",
        "- seconds: 1234",
        "- hardware: device cpu, name X, threads 2, processes 1",
        RESULTS["command"],
        "](pictures/step_1200.png)",
        "arxiv.org/abs/2203.03884",
    ):
        assert text in card
    assert "\n\n\n" not in card


def test_methods_tell_of_themselves():
    """The card knows no names; what results of before lack is filled in for the methods of then."""
    own = {"method": "mine", "method_title": "My way", "method_about": "It guesses (Me, 2026).", "num_labelled": 5}
    card = render_model_card(own | {"num_unlabelled": 7})
    assert (
        "A My way model" in card and "5 labelled and 7 unlabelled images." in card and "It guesses (Me, 2026)." in card
    )
    for unused in (0, None):
        assert "from 5 labelled images." in render_model_card(own | {"num_unlabelled": unused})
    assert "A U2PL model" in render_model_card(RESULTS) and "in a contrastive loss" in render_model_card(RESULTS)
    old = render_model_card(RESULTS | {"method": "suponly"})
    assert "A SupOnly model" in old and "labelled images only" in old and "unlabelled images." not in old
    assert "A model trained" in render_model_card({"method": "mine"})


def test_missing_facts_are_left_out():
    card = render_model_card({"method": "suponly", "class_names": ["a", "b"]})
    for absent in ("None", "Results", "![", "seed", "Undefined", "unlabelled"):
        assert absent not in card
    assert ModelCard(card).data.eval_results is None


@pytest.mark.parametrize("missing", [key for key in RESULTS if key != "class_names"])
def test_any_single_fact_may_be_missing(missing):
    for results in ({k: v for k, v in RESULTS.items() if k != missing}, RESULTS | {missing: None}):
        card = render_model_card(results)
        assert "None" not in card
        assert ModelCard(card).data.license == "apache-2.0"


def test_a_local_folder_is_named_without_its_path(tmp_path):
    card = render_model_card(RESULTS | {"dataset": str(tmp_path / "camvid"), "command": None})
    assert str(tmp_path) not in card
    assert ModelCard(card).data.datasets is None
    assert ModelCard(card).data.eval_results[0].dataset_name == "camvid"


def test_rendering_changes_nothing_in_its_input():
    results = copy.deepcopy(RESULTS)
    render_model_card(results)
    assert results == RESULTS


def test_the_template_holds_no_score():
    body = TEMPLATE.read_text()
    assert "mIoU" in body
    assert not any(ch.isdigit() for ch in body.split("## Results")[1].split("## How to load")[0])


def cells(card: str, first: str) -> list[str]:
    line = next(line for line in card.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_runs_are_shown_with_mean_and_deviation_over_seeds():
    scores = [0.41236, 0.39, 0.442]
    seeds = [
        RESULTS | {"seed": seed, "last": RESULTS["last"] | {"mean_iou": score}} for seed, score in enumerate(scores)
    ]
    baseline = RESULTS | {"method": "suponly", "variant": None}
    elsewhere = RESULTS | {"dataset": "someone/else"}
    unscored = RESULTS | {"seed": 9, "last": None}
    card = render_model_card(seeds[0], others=[*seeds, baseline, elsewhere, unscored])
    mean, deviation = 100 * np.mean(scores), 100 * np.std(scores, ddof=1)
    assert cells(card, "u2pl") == [
        "u2pl",
        "paper",
        "**0** 1 2",
        f"{mean:.2f}",
        f"{deviation:.2f}",
        "43.00",
    ]
    assert cells(card, "suponly") == ["suponly", "-", "3", "41.24", "", "43.00"]
    assert "someone/else" not in card


def test_no_other_runs_no_table():
    for others in ([], [RESULTS], [RESULTS | {"dataset": "someone/else", "seed": 4}]):
        assert "Beside other runs" not in render_model_card(RESULTS, others=others)


@pytest.mark.parametrize(
    ("split", "method", "row"),
    [
        ("voc_classic/366", "u2pl", ["65.88", "73.66"]),
        ("voc_blender/5291", "suponly", ["77.13", "80.50"]),
        ("cityscapes/744", "u2pl_ael", ["74.43", "76.47", "78.51"]),
        ("cityscapes_ael/372", "u2pl_ael", ["76.48"]),
    ],
)
def test_the_papers_row_stands_apart(split, method, row):
    card = render_model_card(RESULTS | {"split": split, "method": method})
    measured, _, published = card.partition("### Beside the paper")
    assert cells(published, row[0]) == row
    assert not any(value in measured for value in row)
    # And it is no result of this model.
    values = [result.metric_value for result in ModelCard(card).data.eval_results]
    assert sorted(values) == [0.41236, 0.43001]


@pytest.mark.parametrize("split", ["1/16", "voc_classic/91", "splits/46/labeled.txt", "all", None, "demo/366"])
def test_other_splits_have_no_row(split):
    assert "Beside the paper" not in render_model_card(RESULTS | {"split": split})


def test_what_differs_from_the_paper_is_told():
    run = RESULTS | {
        "split": "voc_classic/366", "num_labelled": 366, "num_unlabelled": 1000, "max_steps": 51_000, "crop_size": 321,
        "batch_size_labelled": 16, "backbone": "resnet101", "num_evaluation": 1449,
        "architecture": {"stem": "deep", "base_width": 64, "output_stride": 16},
        "initialised_with": {"backbone": "timm/resnet101s.gluon_in1k", "commit": "ab12"},
    }  # fmt: skip
    card = render_model_card(run)
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", card.partition("not the same here")[2], re.M)
    # 80 epochs of 10,216 unlabelled images, 16 per step, are 51,080 steps: the same but for rounding.
    assert rows == [
        ("output stride", "16", "8"),
        ("crop size", "321", "513"),
        ("unlabelled", "1000", "10216"),
        ("weights to start from", "timm/resnet101s.gluon_in1k", "of ImageNet"),
    ]
    assert ModelCard(card).data.base_model == "timm/resnet101s.gluon_in1k"
    assert ("steps", "3000", "about 51080") in re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", render_model_card(run | {"max_steps": 3000}), re.M
    )


def test_base_model_is_one_of_the_hub():
    local = {"backbone": "resnet.pth", "sha256": "ab"}
    assert ModelCard(render_model_card(RESULTS | {"initialised_with": local})).data.base_model is None
    fetched = {"model": "user/net", "commit": "ab12"}
    assert ModelCard(render_model_card(RESULTS | {"initialised_with": fetched})).data.base_model == "user/net"


def test_licence_of_the_data(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert dataset_license(str(tmp_path)) == "cc-by-4.0"
    assert "licence cc-by-4.0" in render_model_card(RESULTS | {"dataset_license": "cc-by-4.0"})
    other = tmp_path / "other"
    other.mkdir()
    assert dataset_license(str(other)) is None
    (other / "README.md").write_text("---\nlicense: other\nlicense_name: cityscapes\n---\n")
    dataset_license.cache_clear()
    assert dataset_license(str(other)) == "cityscapes"
    assert dataset_license("demo") is None


def test_licence_of_data_on_the_hub(tmp_path, hub, monkeypatch, caplog):
    from_here = functools.partial(hf_hub_download, cache_dir=tmp_path / "cache")
    monkeypatch.setattr("u2pl_hf.hub.dataset_license.hf_hub_download", from_here)
    (tmp_path / "README.md").write_text("---\nlicense: [cc0-1.0, mit]\n---\n")
    card = {"README.md": tmp_path / "README.md"}
    push_files(card, "user/streets", repo_type="dataset", revision="v2", commit_message="x", later="")
    assert dataset_license("user/streets", "v2") == "cc0-1.0, mit"
    assert dataset_license("user/streets") is None and not caplog.messages
    assert dataset_license("user/nowhere") is None and "licence of user/nowhere" in caplog.text


NASTY = ["a|b", "a\nb", "---", "`x`", "<script>alert(1)</script>", "a: [b", "\\", "*x*", "![p](http://x)", "&lt;",
         "\u2028", "no", "{{ 7 }}", "# x", ""]  # fmt: skip


def shown_cells(line: str) -> list[str]:
    """Of a row of a table, as Markdown shows them."""
    parts = re.split(r"(?<!\\)(?:\\\\)*\|", line.strip())
    return [html.unescape(re.sub(r"\\(.)", r"\1", part.strip())) for part in parts[1:-1]]


@pytest.mark.parametrize("name", NASTY)
def test_names_of_others_stay_what_they_are(name):
    scores = {"step": 1, "mean_iou": 0.5, "per_class_iou": {"road": 0.5, name: 0.25}}
    results = RESULTS | {"class_names": ["road", name], "last": scores, "best": scores, "dataset": name,
                         "backbone": name, "protocol": {"mode": name}, "split": name, "model_name": name or None,
                         "settings": {name: name}}  # fmt: skip
    other = results | {"seed": 9, "split": f"{name}2"}
    text = render_model_card(results, others=[other])
    card = ModelCard(text)
    shown = " ".join(name.splitlines())
    rows = [shown_cells(line) for line in text.splitlines() if line.endswith("| 25.00 | 25.00 |")]
    assert rows == [[shown.strip(), "25.00", "25.00"]]
    assert "".join(name.splitlines()) == "" or card.data.model_name == shown
    assert card.data.license == "apache-2.0" and "<script>" not in card.text
    assert [line for line in text.splitlines() if line.strip() == "---"] == ["---", "---"]
    assert len(re.findall(r"(?m)^# ", text)) == 1


@pytest.mark.parametrize("command", ["train.py --x 'a", "train.py '```\n# x'"])
def test_commands_that_are_none_are_left_out(command):
    assert "```bash" not in render_model_card(RESULTS | {"command": command})
