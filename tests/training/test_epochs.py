"""Epochs as steps, and runs that are told in epochs."""

import json

import pytest
import yaml

from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.recipe.command import parse_arguments
from u2pl_hf.training.recipe.schedule import StepSize, with_steps


@pytest.mark.parametrize(
    ("method", "lists", "images", "expected"),
    [
        ("u2pl", (732, 9850), (16, 16), 616),  # VOC, 9,850 / 16 = 615.6
        ("u2pl", (744, 2231), (16, 16), 140),  # Cityscapes, 139.4
        ("u2pl_ael", (744, 2231), (16, 8), 279),  # 278.9: half as many unlabelled images per step
        ("suponly", (732, 9850), (16, 0), 46),  # 45.75
        ("u2pl", (5291, 5291), (16, 16), 331),  # 330.7
        ("u2pl", (1488, 1487), (16, 16), 93),  # more labelled than unlabelled images
    ],
)
def test_an_epoch_is_one_pass_over_the_larger_list(method, lists, images, expected):
    args = run_arguments(method=method, batch_size=images[0], unlabelled_batch_size=images[1] or None)
    assert StepSize.of(args, 1).steps_per_epoch(*lists) == expected


def test_epochs_win_over_steps():
    args = run_arguments(epochs=80.0, warmup_epochs=1.0, max_steps=5, contrastive_start_steps=7, method="u2pl_ael")
    args = with_steps(args, 616)
    assert (args.max_steps, args.warmup_steps, args.eval_steps, args.contrastive_start_steps) == (49_280, 616, 0, 7)
    assert "max_steps" not in args.recipe() and args.recipe()["epochs"] == 80.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (100.0, 5.0)),
        (["--max_steps", "6"], (0.0, 5.0)),
        (["--eval_steps=0", "--max_steps=6"], (0.0, 0.0)),
        (["--epochs", "2"], (2.0, 5.0)),
        (["--max_steps", "6", "--epochs", "2"], (2.0, 5.0)),
    ],
)
def test_steps_on_the_command_line_win_over_epochs_of_a_recipe(tmp_path, options, expected):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 100\neval_epochs: 5.0\n")
    args = parse_arguments([*options, str(recipe)], "")
    assert (args.epochs, args.eval_epochs) == expected
    assert args.max_steps == (6 if any("max_steps" in option for option in options) else 1000)


def test_a_contrastive_loss_without_weight_need_not_begin():
    args = run_arguments(method="u2pl_ael", max_steps=5, contrastive_start_steps=5, contrastive_weight=0.0)
    assert args.contrastive_start_steps == args.max_steps


def test_a_run_told_in_epochs_goes_on_and_is_known_again(tiny_data, tmp_path):
    """18 unlabelled images, 2 a step: an epoch is 9 steps."""
    options = {"epochs": 0.7, "warmup_epochs": 0.2, "eval_epochs": 0.35, "max_steps": 1000, "save_steps": 4}
    trainer = make_trainer(tiny_data, tmp_path / "whole", **options)
    assert (trainer.args.max_steps, trainer.args.warmup_steps, trainer.args.eval_steps) == (6, 2, 3)
    results = trainer.train()
    assert (results["max_steps"], results["warmup_steps"], results["epochs"]) == (6, 2, 0.7)
    written = yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())
    assert written["epochs"] == 0.7 and "max_steps" not in written
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "step-000004")
    rest = make_trainer(tiny_data, tmp_path / "rest", resume=checkpoint, **options)
    assert rest.train()["last"] == results["last"]
    again = make_trainer(tiny_data, tmp_path / "whole", **options).train()
    assert again == json.loads((tmp_path / "whole" / "results.json").read_text())
    with pytest.raises(InputError, match=r"epochs is 0\.7 there and 0\.9 here"):
        make_trainer(tiny_data, tmp_path / "whole", **options | {"epochs": 0.9})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1.0}, "--epochs -1.0 must be a number from 0 on"),
        ({"epochs": 0.01}, "--epochs 0.01 is less than one step"),
        (
            {"epochs": 1.0, "warmup_epochs": 1.0},
            "--warmup_epochs 1 are 9 steps of 9: pass another number, or --warmup_steps",
        ),
        ({"epochs": 1.0, "warmup_epochs": 0.01}, "--warmup_epochs 0.01 are 0 steps of 9"),
        ({"eval_epochs": 0.01}, "--eval_epochs 0.01 is less than one step"),
        ({"epochs": float("inf")}, "--epochs inf must be a number from 0 on"),
    ],
)
def test_wrong_epochs(tiny_data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(tiny_data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
