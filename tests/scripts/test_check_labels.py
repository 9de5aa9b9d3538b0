"""u2pl check-labels: images are checked by runs that were not trained on them, and by no others."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.in_process import run_here
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.commands.check_labels import CheckRun, out_of_fold
from u2pl_hf.data.sources import load_source
from u2pl_hf.pixels import normalize

IDS = [f"train_{number:04d}" for number in range(24)]
TINY = ["--base_width", 8, "--head_channels", 8, "--representation_channels", 8, "--aspp_dilations", 1, 2, 3,
        "--crop_size", 65, "--batch_size", 2, "--max_steps", 2, "--eval_steps", 0, "--picture_samples", 0,
        "--trackers", "none", "--num_workers", 0, "--cpu_threads", 1]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data):
    """A run that was trained on the first sixteen images, and copies of it that say otherwise."""
    root = tmp_path_factory.mktemp("runs")
    (root / "list.txt").write_text("".join(f"{name}\n" for name in IDS[:16]))
    data = ["--dataset", tiny_data, "--split", root / "list.txt", "--output_dir", root / "first"]
    done = run_here("train_u2pl.py", "demo_suponly", *TINY, *data)
    assert done.returncode == 0, done.stderr
    for name in ("second", "all", "renamed", "elsewhere", "stranger", "unfinished", "columns"):
        shutil.copytree(root / "first", root / name)
    listed = {"second": IDS[8:], "all": IDS, "stranger": ["x"]}
    for name, ids in listed.items():
        (root / name / "labeled.txt").write_text("".join(f"{i}\n" for i in ids))
    config = root / "renamed" / "config.json"
    config.write_text(config.read_text().replace("dotted disc", "dotted dish"))
    recipe = (root / "first" / "recipe.yaml").read_text()
    (root / "elsewhere" / "recipe.yaml").write_text(recipe.replace(str(tiny_data), "/data/others"))
    (root / "columns" / "recipe.yaml").write_text(recipe.replace("label_column: label", "label_column: mask"))
    (root / "unfinished" / "results.json").unlink()
    return root


def checked(runs, tiny_data, folder, *names, options=()):
    places = [runs / name for name in names]
    return run_here("check_labels.py", "--dataset", tiny_data, "--runs", *places, "--output_dir", folder, *options)


@pytest.fixture(scope="module")
def both(runs, tiny_data):
    """A check by two runs: what it said, and its folder."""
    done = checked(runs, tiny_data, runs / "check", "first", "second", options=["--pictures", 3])
    assert done.returncode == 0, done.stderr
    return done, runs / "check"


def test_what_two_runs_have_not_both_seen_is_checked(both):
    done, folder = both
    assert "8 of 24 labelled images are left out" in done.stderr and "--fold 1/3" in done.stderr
    assert {path.name for path in folder.iterdir()} == {"check.json", "check.txt", "check.html", "pictures"}
    facts, result = json.loads((folder / "check.json").read_text()), json.loads(done.stdout.splitlines()[-1])
    images, ids = facts["images"], [image["id"] for image in facts["images"]]
    assert facts["checked"] == 16 and facts["left_out"] == 8 and facts["suspect"] == len(images) >= 3
    # Those that both were trained on are 8 to 15.
    assert {*ids} <= {*IDS[:8], *IDS[16:]} and len({*ids}) == len(ids) and result["first"] == ids[:20]
    assert (folder / "check.txt").read_text().split() == ids
    scores = [image["score"] for image in images]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0
    assert [image["picture"] for image in images[:4]] == [f"pictures/00{n}.png" for n in (1, 2, 3)] + [None]
    page = (folder / "check.html").read_text()
    for rank, image in enumerate(images[:3], 1):
        with Image.open(folder / image["picture"]) as picture:
            assert picture.size == (4 * 128 + 3 * 6, 128)
        assert f"{rank}. {image['id']}" in page and image["picture"] in page and f"  {image['id']}  " in done.stderr
    for image in images:
        for region in image["regions"]:
            x, y, width, height = region["box"]
            assert 0 <= x < x + width <= 64 and 0 <= y < y + height <= 64 and region["labelled"] != region["predicted"]


def test_an_earlier_check_is_replaced(runs, tiny_data, both, tmp_path):
    shutil.copytree(both[1], tmp_path / "check")
    again = checked(runs, tiny_data, tmp_path / "check", "first", options=["--pictures", 1, "--border", 0])
    assert again.returncode == 0, again.stderr
    assert [path.name for path in (tmp_path / "check" / "pictures").iterdir()] == ["001.png"]
    assert json.loads((tmp_path / "check" / "check.json").read_text())["checked"] == 8


def test_thresholds_are_of_runs_that_have_not_seen_the_image(runs, tiny_data, both):
    """By a loop over images: the mean of the probabilities of the runs whose labeled.txt does not name them."""
    source = load_source(str(tiny_data))
    model = U2PLForSemanticSegmentation.from_pretrained(runs / "first").eval()
    own: dict[int, list] = {}
    for row in [*range(8), *range(16, 24)]:
        image, label = torch.from_numpy(source.read_image(row).copy()), source.read_label(row)
        with torch.no_grad():
            logits = model(normalize(image.permute(2, 0, 1)[None], None)).logits
        logits = torch.nn.functional.interpolate(logits, label.shape, mode="bilinear", align_corners=True)
        scores = logits.softmax(1)[0].numpy()
        for class_id in np.unique(label[label != 255]).tolist():
            own.setdefault(class_id, []).append(scores[class_id][label == class_id])
    expected = {source.class_names[c]: float(np.concatenate(values).mean()) for c, values in own.items()}
    found = json.loads(both[0].stdout.splitlines()[-1])["thresholds"]
    assert {name: value for name, value in found.items() if value is not None} == pytest.approx(expected, rel=1e-4)


def test_probabilities_are_the_mean_over_runs_that_were_not_trained_on_the_image():
    config = {
        "backbone": "resnet18",
        "base_width": 8,
        "head_channels": 8,
        "representation_channels": 8,
        "num_labels": 3,
    }
    models = [U2PLForSemanticSegmentation(U2PLConfig(**config)).eval() for _ in range(3)]
    learnt = [{"a"}, {"b"}, set()]
    runs = [CheckRun(model, ids, {"mode": "whole"}) for model, ids in zip(models, learnt, strict=True)]
    image = np.random.default_rng(0).integers(0, 256, (33, 40, 3)).astype(np.uint8)
    alone = [out_of_fold([CheckRun(run.model, set(), run.options)], "", image) for run in runs]
    assert np.abs(alone[1] - alone[2]).max() > 1e-3 and alone[0].sum(0) == pytest.approx(1, abs=1e-5)
    for name, able in (("a", (1, 2)), ("b", (0, 2)), ("c", (0, 1, 2))):
        assert out_of_fold(runs, name, image) == pytest.approx(np.mean([alone[i] for i in able], axis=0), abs=1e-6)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["all"], "nothing to check: 24 of 24 labelled images are left out: all --runs were trained on them; train"),
        (["first", "renamed"], "/renamed has other classes than"),
        (["first", "columns"], "/columns has another label_column than"),
        (["elsewhere"], "/elsewhere was trained on data set /data/others, not on"),
        (["stranger"], "/stranger was trained on none of the images of"),
        (["first", "unfinished"], "/unfinished holds no finished run"),
        (["nowhere"], "/nowhere holds no finished run"),
    ],
)
def test_runs_that_do_not_fit_are_refused_in_one_line(runs, tiny_data, tmp_path, names, told):
    done = checked(runs, tiny_data, tmp_path / "check", *names)
    assert done.returncode == 2 and not done.stdout and told in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "check").exists()


def test_a_folder_with_anything_else_is_left_alone(runs, tiny_data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = checked(runs, tiny_data, tmp_path, "first")
    assert done.returncode == 2 and "holds notes.txt, which no check wrote" in done.stderr
    done = checked(runs, tiny_data, tmp_path / "notes.txt", "first")
    assert done.returncode == 2 and "notes.txt is a file" in done.stderr
