"""A method in a file of its own, outside the package: all that a run has, without another edit."""

import json
import time
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSemanticSegmentation

from tests.training.distributed import Script
from tests.training.test_trainer import make_trainer
from u2pl_hf.commands import compare, table
from u2pl_hf.errors import InputError
from u2pl_hf.measure.queue import option_words
from u2pl_hf.method import METHODS
from u2pl_hf.training.plan import plan_run
from u2pl_hf.training.recipe.command import parse_arguments

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "training_scripts" / "recipes" / "demo_u2pl.yaml")
MODULE = Path(__file__).with_name("own_method.py")
OWN = {"method_module": str(MODULE), "method": "confident", "confidence_threshold": 0.3, "max_steps": 6,
       "save_steps": 2, "logging_steps": 1, "representation_channels": 0}  # fmt: skip


@pytest.fixture(autouse=True)
def no_other_test_sees_it():
    yield
    for name in [name for name, step in METHODS.items() if step.__module__.startswith("u2pl_hf_method")]:
        del METHODS[name]


def test_file_is_short_and_only_a_method():
    assert len(MODULE.read_text().splitlines()) <= 60


def test_it_plans_trains_and_leaves_a_model_with_its_own_words(tiny_data, tmp_path, capsys):
    folder = tmp_path / "own_confident_seed0"
    trainer = make_trainer(tiny_data, folder, **OWN)
    plan = plan_run(trainer.run)
    assert (plan["warmup_steps"], plan["images_per_step"]) == (0, {"labelled": 2, "unlabelled": 2})
    assert plan["memory_per_process_mb"].keys() == {"weights", "gradients", "momentum", "teacher", "activations", "all"}
    results = trainer.train()
    assert (results["method"], results["method_title"]) == ("confident", "Confident consistency")
    assert results["num_unlabelled"] == 18 and results["settings"] == {"confidence_threshold": 0.3}
    assert not any(name.startswith("representation_head") for name in trainer.run.student.state_dict())
    card = (folder / "README.md").read_text()
    assert "It learned from pixels whose pseudo-labels were confident" in card and "U2PL (Wang et al., CVPR" not in card
    assert AutoModelForSemanticSegmentation.from_pretrained(folder).config.num_labels == 7
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_unsupervised", "confidence"} <= lines[0].keys()

    make_trainer(tiny_data, tmp_path / "suponly", method="suponly").train()
    compare.main([str(folder), str(tmp_path / "suponly")])
    told = capsys.readouterr().err
    assert "confident" in told and "suponly" in told
    options = {name: value for name, value in trainer.args.recipe().items() if value not in (None, [])}
    row = {"id": "confident", "name": "Ours", "recipe": "demo_u2pl.yaml", "options": options}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"title": "Own", "rows": [row]}))
    table.main([str(tmp_path / "own.yaml"), "--output_dir", str(tmp_path), "--list"])
    assert f"| Ours | 6 | 6 | 0 | {100 * results['last']['mean_iou']:.2f}" in capsys.readouterr().err


def test_killed_it_goes_on_to_the_same_bits(tiny_data, tmp_path):
    """By the script, which knows the method from its file and, going on, from the recipe that the run wrote."""
    whole = make_trainer(tiny_data, tmp_path / "whole", **OWN | {"max_steps": 24})
    whole.train()
    options = whole.args.recipe() | {"output_dir": str(tmp_path / "run"), "picture_samples": 0}
    words = option_words({name: value for name, value in options.items() if value not in (None, [])})
    again = ["--num_workers", "0", "--cpu_threads", "1", "--save_steps", "2", "--trackers", "none"]
    process = Script(ROOT / "training_scripts" / "train_u2pl.py", [RECIPE, *words, *again], tmp_path / "log")
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        assert process.poll() is None, process.end()
        time.sleep(0.02)
    process.kill()
    process.end()
    assert not (tmp_path / "run" / "results.json").exists()
    args = parse_arguments([str(tmp_path / "run" / "recipe.yaml"), *again], "")
    assert args.method == "confident" and args.confidence_threshold == 0.3
    resumed = make_trainer(tiny_data, tmp_path / "run", **args.flat())
    assert resumed.run.checkpoint is not None
    resumed.train()
    whole, run = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == run


def test_help_lists_its_settings_with_the_fields_of_runs(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--method_module", str(MODULE), "--method", "confident", "--help"], "")
    told = capsys.readouterr().out
    assert "--confidence_threshold" in told and "--crop_size" in told and "--queue_length" not in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nothing_of_this_name", "own.py fails: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("x = 1", "own.py registers no method; decorate its Step"),
        ("from u2pl_hf.method import Step, register\n@register\nclass Mine(Step):\n    name = title = 'u2pl'\n",
         "two methods are called u2pl: give Mine another name"),
        (None, "is no Python file"),
    ],
)  # fmt: skip
def test_modules_that_are_refused(tmp_path, content, message):
    path = tmp_path / "own.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        parse_arguments([RECIPE, "--method_module", str(path)], "")


def test_settings_of_others_are_told_of_and_its_own_are_checked(tiny_data, tmp_path, caplog):
    recipe = [RECIPE, "--method_module", str(MODULE)]
    args = parse_arguments([*recipe, "--method", "confident", "--queue_length", "9"], "")
    assert "--queue_length has no meaning for --method confident" in caplog.text and "queue_length" not in args.flat()
    with pytest.raises(InputError, match=r"--confidence_threshold 2.0 must lie in \[0, 1\]"):
        parse_arguments([*recipe, "--method", "confident", "--confidence_threshold", "2"], "")
    with pytest.raises(InputError, match=r"--method confiden must be one of .*did you mean confident"):
        parse_arguments([*recipe, "--method", "confiden"], "")
