"""u2pl next: the choice and what is written, on a tiny model with random weights and rendered photographs."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from tests.data.rows import encode, make_table, write_parquet
from tests.in_process import run_here
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation, predict
from u2pl_hf.commands import next as command
from u2pl_hf.commands import prepare
from u2pl_hf.data.demo import DemoSpec, render
from u2pl_hf.data.sources import load_source
from u2pl_hf.evaluation.photographs import read_photograph
from u2pl_hf.method.acquisition import class_weights, image_rarity
from u2pl_hf.pixels import normalize as normalised

NAMES, SIDE = ["wall", "tree", "car"], 48
PHOTOS = [render(DemoSpec(size=SIDE), "train", number)[0] for number in range(10)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model; a data set of two labelled images and one to validate on; photographs, three of which it holds."""
    root = tmp_path_factory.mktemp("next")
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: c for c, name in enumerate(NAMES)}}
    config = U2PLConfig(backbone="resnet18", base_width=8, head_channels=8, representation_channels=8, **names)
    U2PLForSemanticSegmentation(config).save_pretrained(root / "model")
    mask = np.repeat(np.array([0, 1, 2], np.uint8), SIDE // 3)[:, None].repeat(SIDE, axis=1)
    for subset, rows in (("train", [0, 1]), ("validation", [2])):
        images = [encode(PHOTOS[row]) for row in rows]
        ids = [f"{subset}_{row}" for row in rows]
        write_parquet(root / "data", make_table(images, [encode(mask)] * len(rows), ids), subset=subset)
    (root / "data" / "class_names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (root / "photos" / "deep").mkdir(parents=True)
    for number, photo in enumerate(PHOTOS):
        (root / "photos" / f"{number}.png").write_bytes(encode(photo))
    Image.fromarray(PHOTOS[3][:33, :40]).save(root / "photos" / "deep" / "small.jpg")
    (root / "photos" / "torn.png").write_bytes(encode(PHOTOS[3])[:800])
    return root


@pytest.fixture
def chosen(world, tmp_path, capsys):
    """Runs the command; returns its JSON, next.json and the folder."""

    def run(*options, photos="photos"):
        folder = tmp_path / f"out{len([*tmp_path.iterdir()])}"
        words = [world / "model", "--unlabelled", world / photos, "--output_dir", folder, "--device", "cpu", *options]
        command.main(list(map(str, words)))
        return (
            json.loads(capsys.readouterr().out.splitlines()[-1]),
            json.loads((folder / "next.json").read_text()),
            folder,
        )

    return run


def test_the_choice_is_that_of_loops(world, chosen):
    """Scores from predictions of `u2pl_hf.predict`, and the choice by plain distances, of the data set's images too."""
    told, facts, folder = chosen("--dataset", world / "data", "--number", 3, "--alpha", 0.3)
    images = {image["id"]: image for image in facts["images"]}
    assert set(images) == {"3", "4", "5", "6", "7", "8", "9", "deep/small"} and facts["left_out"] == 3
    (fault,) = facts["skipped"]
    assert "torn" in fault
    model = U2PLForSemanticSegmentation.from_pretrained(world / "model").eval()
    weights = class_weights(torch.tensor([[SIDE * SIDE // 3] * 3]))
    features, unreliable, divergence, rarity = {}, [], [], []
    for name, image in images.items():
        suffix = "jpg" if "small" in name else "png"
        pixels = read_photograph(world / "photos" / f"{name}.{suffix}")
        views = [predict(model, view) for view in (pixels, pixels[:, ::-1].copy())]
        entropy = views[0].entropy
        unreliable.append(entropy[entropy >= np.quantile(entropy, 0.7)].mean())
        divergence.append(divergence_of(model, pixels))
        counts = np.bincount(views[0].labels.ravel(), minlength=3)
        rarity.append(image_rarity(torch.from_numpy(counts)[None], weights).item())
        features[name] = feature_of(model, pixels)
        values = [image[key] for key in ("entropy", "unreliable_entropy", "divergence", "rarity")]
        assert values == pytest.approx([entropy.mean(), unreliable[-1], divergence[-1], rarity[-1]], rel=1e-4)
    parts = np.array([unreliable, divergence])
    score = (parts / parts.mean(1, keepdims=True)).mean(0) * rarity
    assert [image["score"] for image in facts["images"]] == pytest.approx(score.tolist(), rel=1e-4)
    # All eight are among the best 5 x 3.
    centres, order = [feature_of(model, PHOTOS[row]) for row in (0, 1)], []
    for _ in range(3):
        gaps = {n: min(math.dist(f, c) for c in centres) for n, f in features.items() if n not in order}
        order.append(max(gaps, key=gaps.get))
        centres.append(features[order[-1]])
    assert told["chosen"] == order == (folder / "next.txt").read_text().split()
    assert [images[name]["chosen"] for name in order] == [1, 2, 3]


def inputs(pixels: np.ndarray) -> torch.Tensor:
    return normalised(torch.from_numpy(pixels).permute(2, 0, 1)[None], None)


@torch.no_grad()
def divergence_of(model, pixels: np.ndarray) -> float:
    def probability(image):
        size = image.shape[-2:]
        return torch.nn.functional.interpolate(model(image).logits, size, mode="bilinear", align_corners=True).softmax(
            1
        )

    p, q = probability(inputs(pixels)), probability(inputs(pixels).flip(-1)).flip(-1)
    mean = (p + q) / 2
    return ((p * (p / mean).log() + q * (q / mean).log()).sum(1) / 2).mean().item()


@torch.no_grad()
def feature_of(model, pixels: np.ndarray) -> list[float]:
    views = torch.cat([inputs(pixels), inputs(pixels).flip(-1)])
    return normalize(model.backbone(views)[-1].mean((2, 3)).mean(0), dim=0).tolist()


def test_masks_are_corrected_and_prepared(world, chosen, tmp_path):
    told, facts, folder = chosen("--number", 4)
    assert facts["left_out"] == 0 and len(told["chosen"]) == 4
    pairs = folder / "to_correct"
    model = U2PLForSemanticSegmentation.from_pretrained(world / "model").eval()
    for name in told["chosen"]:
        assert (folder / "overlays" / f"{name}.png").is_file()
        (image,) = (pairs / "images").glob(f"{name}.*")
        assert image.read_bytes() == (world / "photos" / f"{name}{image.suffix}").read_bytes()
        found = predict(model, image)
        with Image.open(pairs / "masks" / f"{name}.png") as mask:
            ids = np.array(mask)
            assert mask.mode == "P"
        unsure = found.entropy >= np.quantile(found.entropy, 0.8)
        assert (ids == np.where(unsure, 255, found.labels)).mean() > 0.999
    # As a painting program saves it: in colours.
    first = pairs / "masks" / f"{told['chosen'][0]}.png"
    Image.open(first).convert("RGB").save(first)
    words = ["folder", "--root", pairs, "--classes", pairs / "classes.txt", "--output_dir", tmp_path / "data"]
    prepare.main(list(map(str, [*words, "--validation", 0, "--workers", 1])))
    source = load_source(str(tmp_path / "data"))
    assert source.class_names == NAMES and set(source.ids) == set(told["chosen"])
    again = source.read_label(source.ids.index(told["chosen"][0]))
    assert 0.7 < np.mean(again < 3) < 0.85
    # And then they are labelled.
    _, later, _ = chosen("--number", 4, "--dataset", tmp_path / "data", "--eval_subset", "train")
    assert later["left_out"] == 4 and not {image["id"] for image in later["images"]} & set(told["chosen"])


def test_a_name_that_is_there_twice_is_no_labelled_image(world, chosen, caplog):
    (world / "namesakes").mkdir()
    for name, number in (("train_0", 5), ("train_1", 6), ("copy", 1)):
        (world / "namesakes" / f"{name}.png").write_bytes(encode(PHOTOS[number]))
    told, facts, _ = chosen("--dataset", world / "data", "--number", 2, photos="namesakes")
    assert set(told["chosen"]) == {"train_0", "train_1"} and facts["left_out"] == 1
    assert "2 images have the id of a labelled image and other bytes, such as train_0: they stay" in caplog.text


def test_data_without_validation_images(world, chosen):
    """As after a comparison by folds."""
    shutil.copytree(world / "data", world / "alone")
    for file in (world / "alone").rglob("validation*"):
        file.unlink()
    told, _, _ = chosen("--dataset", world / "alone", "--number", 2)
    assert len(told["chosen"]) == 2


def test_all_pixels_of_a_mask_where_asked(chosen):
    told, _, folder = chosen("--number", 1, "--masks", "all")
    ids = np.array(Image.open(folder / "to_correct" / "masks" / f"{told['chosen'][0]}.png"))
    assert ids.max() < 3


def test_strategies_to_compare_with(chosen):
    told, facts, _ = chosen("--number", 3, "--strategy", "entropy")
    ranked = sorted(facts["images"], key=lambda image: -image["entropy"])
    assert told["chosen"] == [image["id"] for image in ranked[:3]] and len(ranked) == 11
    draws = [chosen("--number", 3, "--strategy", "random", "--seed", seed)[0]["chosen"] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2] and all(len(set(draw)) == 3 for draw in draws)


def test_sliding_windows_and_batches_give_the_same_choice(chosen):
    """Windows as large as the image are the image."""
    whole, facts, _ = chosen("--number", 3)
    for options in (["--batch_size", 4], ["--max_whole_pixels", 0, "--batch_size", 3]):
        other, found, _ = chosen("--number", 3, *options)
        assert other["chosen"] == whole["chosen"]
        for here, there in zip(found["images"], facts["images"], strict=True):
            values = [[image[key] for key in ("score", "divergence", "rarity")] for image in (here, there)]
            assert values[0] == pytest.approx(values[1], rel=1e-3)
    told, _, _ = chosen("--number", 3, "--max_whole_pixels", 0, "--window", 33)
    assert len(told["chosen"]) == 3


def test_where_all_images_are_one_and_fewer_than_asked_for(world, chosen, caplog):
    (world / "same").mkdir()
    for number in range(3):
        (world / "same" / f"{number}.png").write_bytes(encode(PHOTOS[0]))
    told, facts, _ = chosen("--number", 5, photos="same")
    assert told["chosen"] == ["0", "1", "2"] and len({image["score"] for image in facts["images"]}) == 1
    assert "3 images are there to choose from, fewer than --number 5: all are taken" in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--unlabelled", "nowhere"], "data set nowhere"),
        (["--unlabelled", "data", "--dataset", "data"], "all 2 images of --unlabelled data are labelled: pass others"),
        (["--unlabelled", "photos", "--dataset", "data", "--eval_subset", "val"], "pass --eval_subset"),
        (["--unlabelled", "photos", "--split", "4"], "--split says nothing without --dataset"),
        (["--unlabelled", "photos", "--number", "0"], "--number is 0: it must be at least 1"),
        (["--unlabelled", "photos", "--alpha", "2"], "--alpha is 2: it must lie in [0, 1]"),
        (["--unlabelled", "photos", "--output_dir", "model"], "--output_dir model is not an empty folder"),
        (["--unlabelled", "torn", "--output_dir", "out2"], "none of the 1 images can be read: image x cannot be read"),
    ],
)
def test_mistakes_are_one_line(world, monkeypatch, options, told):
    monkeypatch.chdir(world)
    (world / "torn").mkdir(exist_ok=True)
    (world / "torn" / "x.png").write_bytes(encode(PHOTOS[3])[:800])
    done = run_here("label_next.py", "model", "--output_dir", "out", "--device", "cpu", *options)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and not done.stdout and told in errors[0]
    assert len(errors) == 1 and "Traceback" not in done.stderr
    assert not any(path.name in ("next.txt", "to_correct") for path in world.rglob("*"))
