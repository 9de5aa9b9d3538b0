"""u2pl plan: which recipe fits, for GPUs that are not here."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.prepared import grey_png, write_folder
from u2pl_hf.commands import plan, prepare
from u2pl_hf.training.recipe.command import parse_arguments

SIDE = 300


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A prepared data set of four photographs, and a folder of three more."""
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    masks = noise.integers(0, 3, (4, SIDE, SIDE)).astype(np.uint8)
    write_folder(root, {f"in/masks/{n}.png": grey_png(mask) for n, mask in enumerate(masks)})
    for name in [*(f"in/images/{n}.png" for n in range(4)), *(f"more/{n}.jpg" for n in range(3))]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(root / name)
    prepare.main(["folder", "--root", str(root / "in"), "--output_dir", str(root / "data"), "--workers", "1"])
    return root


def planned(monkeypatch, capsys, card: plan.Card | None, *options) -> dict:
    monkeypatch.setattr(plan, "graphics_card", lambda: card)
    plan.main(list(map(str, options)))
    out, told = capsys.readouterr()
    facts = json.loads(out)
    assert told.endswith(f"{facts['command']}\n") and all(row["recipe"] in told for row in facts["recipes"])
    program, command, *words = facts["command"].split()
    args = parse_arguments(words, "")
    assert (program, command, words[0]) == ("u2pl", "train", facts["recipe"]) and args.split == "all"
    return facts | {"args": args}


def gpu(gib: int, has_bf16: bool = True) -> plan.Card:
    return plan.Card(f"GPU of {gib} GiB", gib * 2**30 // 10**6, has_bf16)


@pytest.mark.parametrize(
    ("card", "recipe"),
    [
        (None, "own_data_cpu_u2pl_robust"),
        (gpu(2), "own_data_cpu_u2pl_robust"),
        (gpu(8), "own_data_dinov2_8gb_fixmatch"),
        (gpu(24), "own_data_dinov2_fixmatch"),
    ],
)
def test_the_first_recipe_that_fits(photos, monkeypatch, capsys, card, recipe):
    facts = planned(monkeypatch, capsys, card, "--dataset", photos / "data", "--unlabelled_dataset", photos / "more")
    assert facts["recipe"] == recipe and facts["args"].unlabelled_dataset == [str(photos / "more")]
    assert (facts["labelled_images"], facts["unlabelled_images"], facts["classes"]) == (3, 3, 3)
    *on_gpu, anywhere = facts["recipes"]
    for row in on_gpu:
        assert row["needed_mb"] == round(1.5 * row["counted_mb"]) + 1000
        assert row["fits"] == (card is not None and row["needed_mb"] <= card.memory)
    assert anywhere == {"recipe": "own_data_cpu_u2pl_robust", "counted_mb": None, "needed_mb": None, "fits": True}
    # On one GPU, of 24 GB and of 8: as the recipes' names and comments have it.
    assert on_gpu[1]["needed_mb"] < 24_000 and on_gpu[2]["needed_mb"] < 8_000 < on_gpu[0]["needed_mb"]


def test_without_unlabelled_images_and_bfloat16(photos, monkeypatch, capsys):
    facts = planned(monkeypatch, capsys, gpu(16, has_bf16=False), "--dataset", photos / "data")
    assert facts["recipe"] == "own_data_dinov2_suponly" and facts["unlabelled_images"] == 0
    assert (facts["args"].mixed_precision, facts["args"].crop_size) == ("fp16", 518)


def test_small_images_get_small_crops(tiny_data, monkeypatch, capsys):
    """Of 64 pixels: a crop of 518 would be refused, and 56 are four patches."""
    facts = planned(monkeypatch, capsys, gpu(24), "--dataset", tiny_data)
    assert facts["args"].crop_size == 56 and facts["args"].backbone == "facebook/dinov2-small"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dataset", "nowhere"], "data set nowhere"),
        (["--unlabelled_dataset", "x"], "required: --dataset"),
        (["--dataset", "DATA", "--unlabelled_dataset", "nowhere"], "data set nowhere"),
    ],
)
def test_bad_data_are_told_in_one_line(photos, monkeypatch, capsys, options, told):
    with pytest.raises(SystemExit) as ended:
        plan.main([str(photos / "data") if word == "DATA" else word for word in options])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out and told in err and err.count("\n") == 1
