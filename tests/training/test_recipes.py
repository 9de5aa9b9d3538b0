"""The recipes against the published table, and plans against numbers worked out by hand."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.training.test_trainer import make_trainer
from u2pl_hf.command_line import readable
from u2pl_hf.data.source.published_splits import SPLITS
from u2pl_hf.errors import InputError
from u2pl_hf.training.build import build_student
from u2pl_hf.training.plan import (
    _losses,
    kept_bytes,
    memory,
    plan_run,
    plan_without_data,
    published_counts,
)
from u2pl_hf.training.recipe.arguments import RunArguments, run_arguments
from u2pl_hf.training.recipe.command import parse_arguments

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "training_scripts" / "recipes"
# processes, labelled and unlabelled images of each, crop, epochs, learning rate, head factor, weight decay, loss, and
# epochs of warm-up. An epoch of AEL is twice as long, since only the bases of its mixed images count.
PUBLISHED = {
    "voc_suponly": (2, 8, 0, 513, 80, 0.001, 10, 1e-4, "ce", 0),
    "voc_u2pl": (4, 4, 4, 513, 80, 0.001, 10, 1e-4, "ce", 1),
    "cityscapes_suponly": (4, 4, 0, 769, 200, 0.01, 1, 5e-4, "ohem", 0),
    "cityscapes_u2pl": (8, 2, 2, 769, 200, 0.01, 1, 5e-4, "ohem", 0),
    "cityscapes_u2pl_ael": (8, 2, 1, 769, 100, 0.01, 10, 1e-4, "ohem", 0),
}
# UniMatch V2's: unlabelled images of a process of four, crop, epochs, steps of SupOnly (its list of labelled images is
# repeated to 3,000, 3,000, 6,000, 30,000; 93, 187, 375, 937 steps an epoch), and at the smallest split the steps
# worked out by hand here and those of the published code, which leaves out an epoch's last, partial one.
DINOV2 = {
    "voc": (4, 518, 60, 5_580, "voc_unimatch/92", 39_360, 39_300),  # 10,582 - 92 = 10,490; / 16 = 655.6
    "cityscapes": (2, 798, 180, 33_660, "cityscapes_unimatch/1_16", 62_820, 62_640),  # 2,975 - 186; / 8 = 348.6
    "ade20k": (2, 518, 60, 22_500, "ade20k/1_64", 149_220, 149_160),  # 20,210 - 316 = 19,894; / 8 = 2,486.8
    "coco": (4, 518, 20, 18_740, "coco/1_512", 147_580, 147_560),  # 118,287 - 232 = 118,055; / 16 = 7,378.4
}
CLASSES = {"voc": 21, "cityscapes": 19, "ade20k": 150, "coco": 81}
# What all of them say of the method, or leave to the defaults.
METHOD = {
    "unreliable_share": 0.2, "unsupervised_weight": 1.0, "ema_decay": 0.99, "strong_augmentation": "cutmix",
    "strong_probability": 0.5, "anchor_threshold": 0.3, "low_rank": None, "high_rank": 20, "temperature": 0.5,
    "num_anchors": 256, "num_negatives": 50, "queue_length": 30_000, "background_queue_length": 50_000,
    "new_keys_per_class": 256, "contrastive_weight": 0.1, "variant": "paper", "fixed_defects": [],
    "ohem_threshold": 0.7, "ohem_min_kept": 100_000, "seed": 0,
}  # fmt: skip


def recipe(name: str, *options: str) -> RunArguments:
    return parse_arguments([str(RECIPES / f"{name}.yaml"), *options], "")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    processes, labelled, unlabelled, crop, epochs, rate, head, decay, loss, warmup = PUBLISHED[name]
    args = recipe(name)
    assert (args.batch_size, args.unlabelled_batch_size) == (labelled, unlabelled or labelled)
    assert args.reference_batch_size == processes * labelled == 16
    assert (args.crop_size, args.epochs, args.learning_rate) == (crop, epochs, rate)
    assert (args.head_lr_factor, args.weight_decay, args.momentum) == (head, decay, 0.9)
    assert args.supervised_loss == loss and getattr(args, "warmup_epochs", 0) == warmup
    assert args.auxiliary_head == (loss == "ohem") and args.auxiliary_weight == 0.4
    assert (args.backbone, args.stem, args.output_stride) == ("resnet101", "deep", 8)
    assert (args.eval_mode, args.eval_window) == ("slide" if "city" in name else "whole", 769)
    own = METHOD.keys() & args.flat().keys()
    settled = args.flat() | asdict(args.settings.settled())
    assert {key: settled[key] for key in own} == {key: METHOD[key] for key in own}
    assert own == METHOD.keys() or args.method == "suponly"
    assert name == f"{name.partition('_')[0]}_{args.method}"
    if args.method == "u2pl_ael":
        assert args.frequent_classes == ["0", "1", "2", "8", "10"] and args.contrastive_start_epochs == 10
    assert f"--num_processes {processes} " in (RECIPES / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_on_one_gpu_the_step_has_the_same_images(name):
    args, single = recipe(name), recipe(f"{name}_1gpu")
    layout = {"batch_size", "unlabelled_batch_size", "gradient_accumulation_steps"}
    there, here = args.recipe(), single.recipe()
    assert {key for key in there if there[key] != here[key]} <= layout
    # OHEM keeps its least number of pixels of a pass: passes are as large as a process's share.
    assert args.supervised_loss == "ce" or single.batch_size == args.batch_size
    passes = single.gradient_accumulation_steps
    assert single.batch_size * passes == 16
    if args.method != "suponly":
        assert single.unlabelled_batch_size * passes == args.unlabelled_batch_size * 16 // args.batch_size


@pytest.mark.parametrize("method", ["suponly", "fixmatch", "unimatch_v2", "u2pl"])
@pytest.mark.parametrize("family", DINOV2)
def test_published_settings_with_dinov2(family, method):
    images, crop, epochs, steps_suponly, split, steps, published = DINOV2[family]
    args = recipe(name := f"{family}_dinov2_{method}")
    # Published: twice the labelled images where there are no others.
    images *= 1 + (method == "suponly")
    assert (args.batch_size, args.unlabelled_batch_size, args.reference_batch_size) == (images, images, 4 * images)
    assert (args.crop_size, args.split, args.dataset) == (crop, split, f"data/{family}")
    assert (args.backbone, args.head, args.head_channels) == ("facebook/dinov2-base", "dpt", 128)
    assert (args.optimizer, args.learning_rate, args.head_lr_factor) == ("adamw", 5e-6, 40)
    assert (args.weight_decay, args.mixed_precision, args.freeze) == (0.01, "no", "none")
    ohem = ("ohem", 0.7, 200_000) if family == "cityscapes" else ("ce", 0.7, 100_000)
    assert (args.supervised_loss, args.ohem_threshold, args.ohem_min_kept) == ohem
    assert (args.eval_mode, args.eval_window) == (("slide", 798) if family == "cityscapes" else ("whole", 769))
    if method in ("fixmatch", "unimatch_v2"):
        assert (args.confidence_threshold, args.ema_decay, args.cutmix_probability) == (0.95, 0.996, 0.5)
    text = (RECIPES / f"{name}.yaml").read_text()
    assert "--num_processes 4 " in text
    small = recipe(name, *re.search(r"(--backbone \S+ --head_channels \d+)", text)[1].split())
    assert (small.backbone, small.head_channels) == ("facebook/dinov2-small", 64)
    if method in ("suponly", "u2pl"):  # the others have U2PL's steps, test_arguments.py says
        plan = plan_of(name, split, 4)
        assert plan["steps"] == (steps_suponly if method == "suponly" else steps) and 0 <= steps - published <= epochs
        assert plan["warmup_steps"] == (steps // epochs if method == "u2pl" else 0)
        assert 97e6 < plan["parameters"] < 98e6 and plan["classes"] == CLASSES[family]


@pytest.mark.parametrize(
    ("split", "labelled", "unlabelled"),
    [
        ("ade20k/1_32", 631, 19_579), ("ade20k/1_2", 10_105, 10_105), ("coco/1_32", 3_697, 114_590),
        ("cityscapes_unimatch/1_30", 100, 2_875), ("voc_unimatch/1464", 1_464, 9_118),
        ("cityscapes_ael/372", 372, 2_603),
    ],
)  # fmt: skip
def test_counts_of_published_splits(split, labelled, unlabelled):
    counts = published_counts(recipe("voc_u2pl", "--split", split))
    assert (counts.labelled, counts.unlabelled) == (labelled, unlabelled)


def test_every_published_split_is_counted():
    assert all(published_counts(recipe("voc_suponly", "--split", split)).labelled for split in SPLITS)


def test_own_data_differ_in_the_method_only():
    baseline, ours = recipe("own_data_suponly").recipe(), recipe("own_data_u2pl").recipe()
    assert {key for key in baseline if ours[key] != baseline[key]} <= {"method", "warmup_steps"}


def plan_of(name: str, split: str, processes: int, *options: str) -> dict:
    args = recipe(name, "--split", split, *options)
    return plan_without_data(args, published_counts(args), processes)


def test_voc_732_by_hand():
    plan = plan_of("voc_u2pl", "voc_classic/732", 4, "--images_per_second", "20")
    # 10,582 - 732 = 9,850; 9,850 / 16 = 615.6; 616 x 80 = 49,280; one epoch of warm-up.
    assert (plan["labelled_images"], plan["unlabelled_images"], plan["evaluation_images"]) == (732, 9850, 1449)
    assert (plan["steps_per_epoch"], plan["steps"], plan["warmup_steps"]) == (616, 49_280, 616)
    assert plan["images_per_step"] == {"labelled": 16, "unlabelled": 16}
    assert plan["labelled_epochs"] == pytest.approx(49_280 * 16 / 732)
    assert plan["unlabelled_epochs"] == pytest.approx(48_664 * 16 / 9850)
    assert (plan["learning_rate"], plan["head_learning_rate"]) == (0.001, pytest.approx(0.01))
    # 16 x 49,280 + 16 x 48,664 = 1,567,104 images at 20 a second are 78,355 s.
    assert plan["training_hours"] == pytest.approx(78_355.2 / 3600, abs=0.01)
    sizes = plan["memory_per_process_mb"]
    # 64.46 million float32; (50,000 + 20 x 30,000) x 256 half floats.
    assert plan["parameters"] == 64_459_989 and sizes["weights"] == sizes["momentum"] == sizes["teacher"] == 258
    assert sizes["queues"] == round(650_000 * 256 * 2 / 1e6) == 333
    assert sizes["all"] == pytest.approx(sum(size for name, size in sizes.items() if name != "all"), abs=3)
    # Three checkpoints of weights, momentum, teacher and queues, and two models.
    assert plan["disk_mb"] == 3 * (3 * 258 + 333) + 2 * 258
    assert plan["evaluations"] == 80 and plan["counts"] == "published" and "49,280" in readable(plan)


@pytest.mark.parametrize(
    ("name", "split", "processes", "steps"),
    [
        ("cityscapes_u2pl", "cityscapes/744", 8, 28_000),  # 2,975 - 744 = 2,231; / 16 = 139.4; 140 x 200
        ("cityscapes_u2pl", "cityscapes/1488", 8, 18_600),  # 1,488 labelled are more than 1,487 others; 93 x 200
        ("cityscapes_u2pl_ael", "cityscapes/1488", 8, 18_600),  # 1,487 / 8 = 185.9, more than 1,488 / 16; 186 x 100
        ("cityscapes_u2pl_ael", "cityscapes/744", 8, 27_900),  # 2,231 / 8 = 278.9; 279 x 100
        ("cityscapes_suponly", "cityscapes/744", 4, 9_400),  # 744 / 16 = 46.5; 47 x 200
        ("voc_suponly", "voc_classic/732", 2, 3_680),  # 732 / 16 = 45.75; 46 x 80
        ("voc_u2pl_1gpu", "voc_blender/5291", 1, 26_480),  # 5,291 / 16 = 330.7; 331 x 80
    ],
)
def test_steps_by_hand(name, split, processes, steps):
    assert plan_of(name, split, processes)["steps"] == steps


def test_only_published_splits_without_their_data_are_counted_so(tiny_data):
    assert published_counts(recipe("voc_u2pl", "--dataset", str(tiny_data))) is None
    assert published_counts(recipe("voc_u2pl", "--split", "1/8")) is None
    assert published_counts(recipe("voc_u2pl", "--unlabelled_dataset", "more")) is None
    assert published_counts(recipe("demo_u2pl", "--split", "voc_classic/92")) is None
    assert plan_of("voc_u2pl", "voc_classic/92", 4, "--num_labels", "5")["classes"] == 5
    with pytest.raises(InputError, match="leave no rank"):
        plan_of("voc_u2pl", "voc_classic/92", 4, "--low_rank", "30")


def test_a_plan_for_other_processes(tiny_data, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", plan=True, plan_processes=4, epochs=2.0, warmup_steps=0)
    plan = plan_run(trainer.run)
    assert plan["processes"] == 4 and plan["images_per_step"] == {"labelled": 8, "unlabelled": 8}
    assert plan["steps"] == 2 * 3 and plan["counts"] == "data"  # 18 / 8 = 2.25
    assert not (tmp_path / "run").exists()


def meta_student(args):
    with torch.device("meta"):
        return build_student(args, list("abcdefghijklmnop"))


def test_activations_are_counted_without_values_as_with_them():
    args = run_arguments(backbone="resnet18", base_width=8, head_channels=8, representation_channels=8, crop_size=65)
    meta = meta_student(args)
    counted = kept_bytes(lambda: _losses(args, meta, 4))
    real = meta_student(args).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*real.parameters(), *real.buffers()):
            tensor.fill_(0.01)
    assert counted == kept_bytes(lambda: _losses(args, real, 4))
    # Twice the images keep twice as much, half precision about half.
    double = kept_bytes(lambda: _losses(args, meta_student(args), 8))
    assert double == pytest.approx(2 * counted, rel=0.02)
    half = args.changed(mixed_precision="bf16")
    assert 0.45 < kept_bytes(lambda: _losses(half, meta_student(half), 4)) / counted < 0.75
    again = args.changed(gradient_checkpointing=True)
    assert kept_bytes(lambda: _losses(again, meta_student(again), 4)) < 0.8 * counted


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_attention_is_counted_as_it_is_computed(precision):
    """Without a matrix of its weights, which tensors without values would keep."""
    args = run_arguments(
        method="suponly", backbone="facebook/dinov2-small", head="dpt", head_channels=8, crop_size=98, batch_size=2,
        mixed_precision=precision,
    )  # fmt: skip
    counted = memory(args, meta_student(args), 5)["activations"]
    real = meta_student(args).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*real.parameters(), *real.buffers()):
            tensor.fill_(0.01)
    assert counted == round(kept_bytes(lambda: _losses(args, real, 2)) / 1e6) > 40


def test_kept_bytes_closed_form():
    weight, x = torch.ones(3, 5, requires_grad=True), torch.ones(7, 3)
    # x for the weight's gradient, and the square's input.
    assert kept_bytes(lambda: (x @ weight).square().sum()) == 4 * (7 * 3 + 7 * 5)


def test_the_script_plans_without_data():
    command = [
        sys.executable,
        "training_scripts/train_u2pl.py",
        "training_scripts/recipes/cityscapes_u2pl.yaml",
        "--plan",
        "--plan_processes",
        "8",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    plan = json.loads(done.stdout)
    assert done.returncode == 0 and plan["steps"] == 140 * 200 and plan["processes"] == 8
    assert "2,231" in done.stderr
