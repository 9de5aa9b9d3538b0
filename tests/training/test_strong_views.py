"""FixMatch, UniMatch V2 and the options of U2PL in the trainer: resume, processes, backbones, precision."""

import pytest
import torch
import yaml
from transformers import AutoModelForSemanticSegmentation

from tests.model.test_backbones import TINY
from tests.training.distributed import on_two_processes
from tests.training.test_ael_training import lines_of
from tests.training.test_processes import assert_same_everywhere
from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.method.u2pl_settings import PAPER, ROBUST
from u2pl_hf.training.recipe.arguments import run_arguments

CLASS = {"partner": "class"}
# Networks that have seen nothing give the best of seven classes a little more than a seventh.
ALL = {"variant": "robust", "confidence_floor": 0.14, "class_quantiles": True, "unsupervised_rampup": 0.3,
       "symmetric_cross_entropy": 0.1, "prototype_momentum": 0.9, "protect_unlearnt": 1e-5}  # fmt: skip
METHODS = {
    "fixmatch, class": {"method": "fixmatch", "distribution_alignment": 0.5} | CLASS,
    "unimatch_v2": {"method": "unimatch_v2", "copy_paste_probability": 0.5, "distribution_alignment": 0.5},
    # Robust, and what else there is.
    "everything": ALL | CLASS | {"copy_paste_probability": 0.5},
}
SMALL = {"max_steps": 3, "warmup_steps": 1, "save_steps": 1, "keep_checkpoints": 9, "logging_steps": 1,
         "gradient_accumulation_steps": 2, "learning_rate": 0.01}  # fmt: skip


def options_of(name: str) -> dict:
    sure = {"confidence_threshold": 0.14} if METHODS[name].get("method") else {}
    return SMALL | sure | METHODS[name]


def assert_goes_on(data, folder, stop: int, **options):
    """A run that was stopped after some step ends in the bits of one that was not; returns both trainers."""
    whole = make_trainer(data, folder / "whole", **options)
    results = whole.train()
    checkpoint = folder / "whole" / "checkpoints" / f"step-{stop:06d}"
    rest = make_trainer(data, folder / "rest", resume=str(checkpoint), **options)
    assert rest.train()["last"] == results["last"]
    for one, other in ((whole.run.method, rest.run.method), (whole.run.student, rest.run.student)):
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    return whole, rest


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_to_the_same_bits(tiny_data, tmp_path, name):
    whole, _ = assert_goes_on(tiny_data, tmp_path, 2, **options_of(name))
    assert lines_of(tmp_path / "rest") == lines_of(tmp_path / "whole")[2:]
    lines = [line for line in lines_of(tmp_path / "whole") if "loss" in line]
    assert all(line["loss_unsupervised"] > 0 for line in lines[1:])
    method = whole.run.method
    if method.copy_paste is not None:
        assert any(line["pasted_share"] for line in lines) and (method.pasting_bank.confidence > 0).any()
    if "fixmatch" in name or name == "unimatch_v2":
        assert all(0 < line["confident_share"] <= 1 and 0 < line["confidence"] < 1 for line in lines)
        assert whole.run.student.representation_head is None
    if "class" in name or name == "everything":
        assert method.categories.holds.any() and (method.bank.confidence > 0).any()
    if method.alignment is not None:
        assert method.alignment.predicted.sum().item() == pytest.approx(1.0, abs=1e-5)
    if name == "everything":
        assert method.prototypes.updates.any() and all(len(line["confidence_per_class"]) == 7 for line in lines)
    exported = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(value, method.teacher.state_dict()[key]) for key, value in exported.items())


def _train_and_compare(data, folder) -> None:
    """Everything is equal on both processes after each step, and the resumed run ends in the same bits."""
    for name in METHODS:
        options = options_of(name) | {"max_steps": 2, "warmup_steps": 0, "gradient_accumulation_steps": 1}
        _, rest = assert_goes_on(data, folder / name, 1, **options)
        assert_same_everywhere([rest.run.student, rest.run.method])
        if rest.run.method.partners is not None:
            # What is chosen for the next pass is each process's own.
            pixels = rest.run.method.partners.chosen.images.result()["pixel_values"].sum()
            (folder / f"{name}{torch.distributed.get_rank()}").write_text(str(pixels))


def test_two_processes_stay_equal_and_go_on_to_the_same_bits(tiny_data, tmp_path):
    on_two_processes(_train_and_compare, tiny_data, tmp_path)
    for name in ("fixmatch, class", "everything"):
        assert (tmp_path / f"{name}0").read_text() != (tmp_path / f"{name}1").read_text()


@pytest.mark.parametrize(("method", "backbone"), [("fixmatch", "convnext"), ("unimatch_v2", "swin")])
def test_other_backbones_with_an_auxiliary_head(tiny_data, tmp_path, method, backbone):
    """Stages of different widths, dropped paths in training, no BatchNorm in the backbone."""
    TINY[backbone].save_pretrained(tmp_path / backbone)
    trainer = make_trainer(
        tiny_data, tmp_path / "run", method=method, backbone=str(tmp_path / backbone), backbone_weights="none",
        auxiliary_head=True, confidence_threshold=0.14, max_steps=3, gradient_accumulation_steps=2, logging_steps=1,
    )  # fmt: skip
    before = {name: value.clone() for name, value in trainer.run.student.named_parameters()}
    assert trainer.train()["last"]["mean_iou"] is not None
    lines = [line for line in lines_of(tmp_path / "run") if "loss" in line]
    assert len(lines) == 3 and all(line["loss_unsupervised"] > 0 for line in lines)
    changed = [not torch.equal(value, before[name]) for name, value in trainer.run.student.named_parameters()]
    assert sum(changed) > 0.8 * len(changed)


@pytest.mark.parametrize("name", ["unimatch_v2", "everything"])
def test_bf16_trains_and_watches_pseudo_labels(tiny_data, tmp_path, name):
    options = options_of(name) | {"mixed_precision": "bf16", "watch_pseudo_labels": True, "max_steps": 2}
    options |= {"gradient_accumulation_steps": 1}
    trainer = make_trainer(tiny_data, tmp_path / "run", **options)
    totals = []
    trainer.run.method.register_forward_hook(lambda *call: totals.append(call[-1].total))
    assert trainer.train()["last"]["mean_iou"] is not None
    assert all(total.isfinite() and total.dtype == torch.float32 for total in totals) and len(totals) == 2
    told = "accuracy_reliable" if name == "everything" else "accuracy_confident"
    lines = [line for line in lines_of(tmp_path / "run") if "loss_unsupervised" in line]
    assert lines and all(0 <= line[told] <= 1 for line in lines)


def test_a_run_of_before_goes_on(tiny_data, tmp_path):
    """Its recipe names numbers that now follow from the variant; telling them makes no other run."""
    told = {"ema_decay": 0.99, "strong_probability": 0.5}
    silent, spoken = (run_arguments(dataset="d", output_dir="o", **more).recipe() for more in ({}, told))
    assert silent == spoken and silent.items() >= told.items()
    robust = run_arguments(dataset="d", output_dir="o", variant="robust", confidence_floor=0.5).recipe()
    assert robust.items() >= (PAPER | ROBUST | {"confidence_floor": 0.5}).items()
    for recipe in (silent, robust):
        assert run_arguments(**recipe, output_dir="o").recipe() == recipe
    options = make_trainer(tiny_data, tmp_path / "run").args.recipe()
    (tmp_path / "run").mkdir()
    old = {name: value for name, value in options.items() if name not in PAPER} | told
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(old))
    make_trainer(tiny_data, tmp_path / "run")
    with pytest.raises(InputError, match=r"ema_decay is 0\.99 there and 0\.9 here"):
        make_trainer(tiny_data, tmp_path / "run", ema_decay=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "unimatch_v2"} | CLASS, "--partner class goes with --method fixmatch or u2pl, not unimatch_v2"),
        ({"variant": "official", "strong_colour": True}, "--strong_colour goes with --variant paper or robust"),
        ({"method": "u2pl_ael", "confidence_floor": 0.5}, "--confidence_floor goes with --method u2pl, not u2pl_ael"),
        ({"strong_augmentation": "classmix"} | CLASS, "--partner class goes with --strong_augmentation cutmix"),
        ({"partner": "nobody"}, "--partner nobody must be one of next, class"),
        ({"confidence_floor": 1.5}, "--confidence_floor 1.5 "),
        ({"prototype_momentum": 1.0}, "--prototype_momentum 1.0 "),
        ({"method": "fixmatch", "confidence_threshold": 1.1}, "--confidence_threshold 1.1 "),
        ({"method": "fixmatch", "cutmix_probability": -0.1}, "--cutmix_probability -0.1 "),
    ],
)
def test_wrong_input(tiny_data, tmp_path, options, message):
    with pytest.raises(InputError, match=message) as error:
        make_trainer(tiny_data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists() and "\n" not in str(error.value)
