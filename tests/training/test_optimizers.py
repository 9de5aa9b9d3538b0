"""SGD and AdamW: their state by name, and runs that go on to the same bits."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.method.test_step import make_student
from tests.training.test_trainer import make_trainer
from u2pl_hf.training.optimizers import build_optimizer, load_named_state, named_state
from u2pl_hf.training.recipe.arguments import run_arguments


def stepped(student, optimizer, seed: int):
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        parameter.grad = torch.empty_like(parameter).normal_(generator=generator)
    optimizer.step()


@pytest.mark.parametrize(("name", "kinds"), [
    ("sgd", {"momentum_buffer"}), ("adamw", {"exp_avg", "exp_avg_sq", "step"})])  # fmt: skip
def test_state_by_name_gives_the_same_steps(name, kinds, tmp_path):
    args = run_arguments(optimizer=name, learning_rate=0.01, head_lr_factor=3.0)
    student = make_student().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(args, student)
    for seed in range(3):
        stepped(student, optimizer, seed)
    state = named_state(optimizer, student)
    names = {parameter for parameter, _ in student.named_parameters()}
    assert {key.partition("/")[0] for key in state} == kinds
    assert {key.partition("/")[2] for key in state} == names
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "state.safetensors")

    other = copy.deepcopy(student)
    resumed = build_optimizer(args, other)
    load_named_state(resumed, other, load_file(tmp_path / "state.safetensors"))
    for parameter, own in resumed.state.items():
        assert all(t.stride() == parameter.stride() for t in own.values() if t.shape == parameter.shape)
    for seed in (3, 4):
        stepped(student, optimizer, seed)
        stepped(other, resumed, seed)
    for (key, value), found in zip(student.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, found), key


def test_adamw_equals_its_formula():
    """One step from zero: p - lr factor (sign(g) + decay p), whatever the gradient's size."""
    args = run_arguments(optimizer="adamw", learning_rate=0.01, head_lr_factor=3.0, weight_decay=0.1)
    student = make_student()
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    optimizer = build_optimizer(args, student)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["factor"]
    stepped(student, optimizer, 0)
    for name, parameter in student.named_parameters():
        rate = 0.01 if name.startswith("backbone.") else 0.03
        sign = parameter.grad / (parameter.grad.abs() + 1e-8)
        expected = before[name] * (1 - rate * 0.1) - rate * sign
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)


def test_momentum_of_older_checkpoints_is_told_by_number():
    args, student = run_arguments(), make_student()
    optimizer = build_optimizer(args, student)
    stepped(student, optimizer, 0)
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = {str(n): optimizer.state[parameter]["momentum_buffer"] for n, parameter in enumerate(order)}
    other = copy.deepcopy(student)
    resumed = build_optimizer(args, other)
    load_named_state(resumed, other, numbered)
    for key, tensor in named_state(resumed, other).items():
        assert torch.equal(tensor, named_state(optimizer, student)[key]), key


def test_adamw_run_goes_on_to_the_same_bits(tiny_data, tmp_path):
    options = {"optimizer": "adamw", "learning_rate": 1e-3, "max_steps": 5, "save_steps": 3}
    whole = make_trainer(tiny_data, tmp_path / "whole", **options).train()
    assert whole["optimizer"] == "adamw" and whole["last"]["mean_iou"] > 0
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000003"
    make_trainer(tiny_data, tmp_path / "rest", resume=str(checkpoint), **options).train()
    found = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "rest")]
    assert found[0] == found[1]
