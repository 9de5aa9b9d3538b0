import json

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModel, AutoModelForSemanticSegmentation

from u2pl_hf.training.batches import seed_draws
from u2pl_hf.training.build import build_run
from u2pl_hf.training.plan import plan_run
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.trainer import Trainer


def make_trainer(data, output, **changes) -> Trainer:
    options = {
        "dataset": str(data), "output_dir": str(output), "split": "1/4", "backbone": "resnet18", "base_width": 8,
        "head_channels": 8, "representation_channels": 8, "aspp_dilations": [1, 2, 3], "crop_size": 65, "batch_size": 2,
        "num_workers": 0, "cpu_threads": 1, "max_steps": 3, "warmup_steps": 1, "learning_rate": 0.05,
        "picture_samples": 0,
    }  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)  # one process, one precision, else
    return Trainer(build_run(run_arguments(**options | changes)))


@pytest.mark.parametrize("method", ["u2pl", "suponly"])
def test_export_gives_the_logits_of_the_trained_model_exactly(tiny_data, tmp_path, method):
    trainer = make_trainer(tiny_data, tmp_path / "run", method=method)
    trainer.train()
    trained = trainer.run.method.teacher if method == "u2pl" else trainer.run.student
    pixels = torch.randn(2, 3, 65, 65)
    for auto in (AutoModelForSemanticSegmentation, AutoModel):
        loaded = auto.from_pretrained(tmp_path / "run")
        assert all(torch.equal(value, trained.state_dict()[name]) for name, value in loaded.state_dict().items())
        # The training's memory layout; another one means other kernels and another order of summation.
        loaded = loaded.to(memory_format=torch.channels_last)
        with torch.no_grad():
            assert torch.equal(loaded(pixels).logits, trained.eval()(pixels).logits)
    assert loaded.config.id2label[2] == "dotted square" and len(loaded.config.palette) == 7


def test_learning_rate_follows_the_poly_schedule_and_the_head_factor(tiny_data, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", max_steps=10, head_lr_factor=10.0)
    for step in (0, 5, 9):
        rate = trainer._set_learning_rate(step)
        assert rate == pytest.approx(0.05 * (1 - step / 10) ** 0.9)
        backbone, heads = (group["lr"] for group in trainer.run.optimizer.param_groups)
        assert (backbone, heads) == pytest.approx((rate, 10 * rate))
    counts = [sum(p.numel() for p in group["params"]) for group in trainer.run.optimizer.param_groups]
    assert sum(counts) == sum(p.numel() for p in trainer.run.student.parameters())


def test_same_seed_same_weights_other_seed_other_weights(tiny_data, tmp_path):
    def weights(name, seed):
        make_trainer(tiny_data, tmp_path / name, seed=seed).train()
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)


def test_plan_counts(tiny_data, tmp_path):
    plan = plan_run(make_trainer(tiny_data, tmp_path / "run").run)
    assert (plan["labelled_images"], plan["unlabelled_images"], plan["evaluation_images"]) == (6, 18, 5)
    assert plan["labelled_epochs"] == 1.0 and plan["unlabelled_epochs"] == pytest.approx(2 * 2 / 18)
    assert not (tmp_path / "run").exists()


def test_plan_tells_how_a_step_comes_about(tiny_data, tmp_path):
    options = {
        "gradient_accumulation_steps": 3,
        "scale_lr": True,
        "reference_batch_size": 12,
        "unlabelled_batch_size": 4,
    }
    plan = plan_run(make_trainer(tiny_data, tmp_path / "run", **options).run)
    assert (plan["processes"], plan["gradient_accumulation_steps"]) == (1, 3)
    assert plan["images_per_pass"] == {"labelled": 2, "unlabelled": 4}
    assert plan["images_per_step"] == {"labelled": 6, "unlabelled": 12}
    assert (plan["learning_rate"], plan["learning_rate_scale"]) == (0.025, 0.5)


def test_passes_and_seeds_draw_different_numbers():
    def draw(*key):
        seed_draws(*key)
        return torch.rand(()).item()

    draws = [draw(*key) for key in ((0, 0), (0, 1), (1, 0))]
    assert len(set(draws)) == 3 and draw(0, 0) == draws[0]


def test_bf16_trains_and_computes_losses_in_float32(tiny_data, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", mixed_precision="bf16")
    assert trainer.train()["last"]["mean_iou"] > 0


def test_official_variant_trains_and_goes_on_to_the_same_weights(tiny_data, tmp_path):
    options = {
        "variant": "official",
        "fixed_defects": [4],
        "contrastive_weight": 0.25,
        "max_steps": 5,
        "save_steps": 3,
        "logging_steps": 1,
    }
    results = make_trainer(tiny_data, tmp_path / "whole", **options).train()
    assert results["variant"] == "official" and results["last"]["mean_iou"] > 0
    assert results["settings"] == {"fixed_defects": [4], "contrastive_weight": 0.25}
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("loss_contrastive", 0) for line in lines) > 0

    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000003"
    rest = make_trainer(tiny_data, tmp_path / "rest", resume=str(checkpoint), **options)
    assert rest.train()["last"] == results["last"]
    whole, rest = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "rest"))
    assert whole == rest
