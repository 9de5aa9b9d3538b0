"""--freeze: what does not learn keeps every bit, in student and teacher; all else learns."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from tests.model.test_backbones import TINY
from tests.training.distributed import on_two_processes
from tests.training.test_initialize import plain_resnet18, refused
from tests.training.test_processes import assert_same_everywhere
from tests.training.test_trainer import make_trainer
from u2pl_hf.evaluation.inference import evaluating
from u2pl_hf.hub.model_card import render_model_card
from u2pl_hf.measure.side_by_side import grouped
from u2pl_hf.method.teacher import batch_statistics, update_teacher
from u2pl_hf.system.frozen import Frozen
from u2pl_hf.system.processes import _running_statistics, synchronize_batchnorm
from u2pl_hf.training.plan import plan_run
from u2pl_hf.training.recipe.schedule import describe_step

NORMS = nn.modules.batchnorm._BatchNorm
# Where warm-up ends, the teacher has its own second pass, and the optimizer has decayed and moved what it holds.
USUAL = {"max_steps": 4, "warmup_steps": 1, "stem": "plain", "weight_decay": 0.1, "momentum": 0.9}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A trained backbone whose signals neither vanish nor explode: fresh convolutions, statistics of its own."""
    torch.manual_seed(3)
    trained = {name: torch.randn(t.shape) * (2 / t[0].numel()) ** 0.5 for name, t in plain_resnet18().items()}
    for name, tensor in trained.items():
        if tensor.dim() == 1:
            torch.nn.init.uniform_(tensor, *((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.1, 0.1)))
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(trained, path)
    return str(path)


def expected_frozen(network: nn.Module, part: str) -> set[str]:
    """Names of the tensors that may not move."""
    if part == "backbone":
        return {f"backbone.{name}" for name in network.backbone.state_dict()}
    norms = [name for name, module in network.backbone.named_modules() if isinstance(module, NORMS)]
    return {f"backbone.{norm}.{name}" for norm in norms for name in network.backbone.get_submodule(norm).state_dict()}


def moved(before: dict, network: nn.Module) -> set[str]:
    """Names of the tensors that have other bits than before; signs of zeros count."""
    after = network.state_dict()
    return {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}


def copied(network: nn.Module) -> dict:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("method", ["u2pl", "suponly"])
@pytest.mark.parametrize("part", ["backbone", "batchnorm"])
def test_what_is_frozen_keeps_its_bits_and_all_else_learns(tiny_data, tmp_path, weights, part, method):
    trainer = make_trainer(
        tiny_data, tmp_path / "run", method=method, freeze=part, backbone_weights=weights, save_steps=2, **USUAL
    )
    run = trainer.run
    networks = [run.student, *([run.method.teacher] if method == "u2pl" else [])]
    before, frozen = copied(run.student), expected_frozen(run.student, part)
    trained = load_file(weights)
    assert all(torch.equal(before[f"backbone.{name}"], t) for name, t in trained.items() if name[:2] != "fc")
    run.student.train()
    results = trainer.train()
    for network in networks:
        assert moved(before, network) == before.keys() - frozen
    # Not in the optimizer: so neither decayed nor remembered.
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in run.student.named_parameters() if name not in frozen}
    state = load_file(tmp_path / "run" / "checkpoints" / "step-000004" / "optimizer.safetensors")
    assert state.keys() == {f"momentum_buffer/{n}" for n, _ in run.student.named_parameters() if n not in frozen}
    # The exported model is like any other: all of it learns again.
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run").train()
    assert all(p.requires_grad for p in loaded.parameters()) and all(m.training for m in loaded.modules())
    assert not moved(loaded.state_dict(), networks[-1])
    assert results["frozen"] == run.args.frozen and f"frozen: {run.args.frozen}" in describe_step(run.args, 1, 0.1)
    assert f"frozen: {run.args.frozen}" in render_model_card(results)
    assert len(grouped([results, results | {"frozen": None}])) == 2  # no two seeds of one setting


def test_the_heads_batchnorm_learns_and_the_frozen_stays_whoever_calls_train(tiny_data, tmp_path, weights):
    trainer = make_trainer(tiny_data, tmp_path / "run", freeze="batchnorm", backbone_weights=weights, **USUAL)
    for network in (trainer.run.student, trainer.run.method.teacher):
        norms = {name: m for name, m in network.named_modules() if isinstance(m, NORMS)}
        own = {name for name in norms if name.startswith("backbone.")}
        assert own and own < norms.keys()
        with batch_statistics(network):
            assert {name for name, norm in norms.items() if not norm.training} == own
        network.train()
        with evaluating(network):
            assert not any(norm.training for norm in norms.values())
        assert {name for name, norm in norms.items() if not norm.training} == own
    # Three processes would round the sum of what is equal: it is not averaged.
    statistics = {id(tensor) for tensor in _running_statistics(network)}
    assert statistics == {id(b) for n in norms.keys() - own for b in (norms[n].running_mean, norms[n].running_var)}
    # On several GPUs only the heads' are synchronised; parameters and buffers are the same tensors as before.
    student = trainer.run.student
    before = {name: tensor.data_ptr() for name, tensor in student.state_dict().items()}
    accelerator = type("SeveralGPUs", (), {"distributed_type": DistributedType.MULTI_GPU})
    synchronised = {n for n, m in synchronize_batchnorm(accelerator, student).named_modules()
                    if isinstance(m, nn.SyncBatchNorm)}  # fmt: skip
    assert synchronised == norms.keys() - own
    assert before == {name: tensor.data_ptr() for name, tensor in student.state_dict().items()}


@pytest.mark.parametrize("options", [{"freeze": "backbone"}, {"freeze": "batchnorm", "gradient_checkpointing": True}])
def test_a_run_that_goes_on_ends_in_the_same_bits(tiny_data, tmp_path, weights, options):
    options = USUAL | options | {"backbone_weights": weights, "save_steps": 2, "optimizer": "adamw"}
    make_trainer(tiny_data, tmp_path / "whole", **options).train()
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "step-000002")
    make_trainer(tiny_data, tmp_path / "rest", resume=checkpoint, **options).train()
    found = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "rest")]
    assert found[0] == found[1]
    other = options | {"freeze": "none", "resume": checkpoint}
    assert "freeze is " in refused(tiny_data, tmp_path, **other)


def test_checkpointing_changes_nothing_with_frozen_batchnorm(tiny_data, tmp_path, weights):
    found = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            tiny_data, tmp_path / f"{checkpointing}", freeze="batchnorm", backbone_weights=weights,
            gradient_checkpointing=checkpointing, **USUAL | {"max_steps": 2},
        )  # fmt: skip
        trainer.train()
        found.append(copied(trainer.run.student))
    assert not moved(found[0], trainer.run.student)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.99, 0.9996])
def test_the_moving_average_of_equal_numbers_is_exact(decay):
    student = nn.BatchNorm2d(10_000)
    for tensor in (*student.parameters(), student.running_mean, student.running_var):
        nn.init.normal_(tensor, std=100.0)
    teacher = copy.deepcopy(student)
    update_teacher(teacher, student, decay, buffers=True)
    assert not moved(copied(student), teacher)


def train_frozen(data: Path, folder: Path, weights: str) -> None:
    for part in ("backbone", "batchnorm"):
        trainer = make_trainer(data, folder / part, freeze=part, backbone_weights=weights, **USUAL)
        run, before = trainer.run, copied(trainer.run.student)
        trainer.train()
        for network in (run.student, run.method.teacher):
            assert moved(before, network) == before.keys() - expected_frozen(run.student, part)
        assert_same_everywhere([run.student, run.method])
        torch.distributed.barrier()


def test_two_processes_do_not_wait_for_what_is_frozen(tiny_data, tmp_path, weights):
    on_two_processes(train_frozen, tiny_data, tmp_path, weights)


def test_backbones_of_transformers(tiny_data, tmp_path):
    for name in ("resnet", "swin"):
        TINY[name].save_pretrained(tmp_path / name)
    fresh = make_trainer(tiny_data, tmp_path / "fresh", backbone=str(tmp_path / "swin"), backbone_weights="none")
    fresh.run.student.backbone.features.save_pretrained(tmp_path / "swin")
    frozen = {"backbone": str(tmp_path / "swin"), "freeze": "backbone"}
    trainer = make_trainer(tiny_data, tmp_path / "run", **frozen)
    before, pixels = copied(trainer.run.student), torch.randn(2, 3, 65, 65)
    # Swin drops whole paths at random while it learns; a frozen one does not.
    features = [trainer.run.student.train().backbone(pixels)[-1] for _ in range(2)]
    assert torch.equal(*features) and not features[0].requires_grad
    trainer.train()
    assert moved(before, trainer.run.student) == {name for name in before if not name.startswith("backbone.")}
    assert "swin has no BatchNorm; pass backbone" in refused(tiny_data, tmp_path, **frozen | {"freeze": "batchnorm"})

    options = {"backbone": str(tmp_path / "resnet"), "backbone_weights": "none"}
    make_trainer(tiny_data, tmp_path / "first", **options, max_steps=2).train()
    options |= {"backbone_weights": None, "initial_model": str(tmp_path / "first"), "freeze": "batchnorm"}
    trainer = make_trainer(tiny_data, tmp_path / "second", **options)
    norms = [m for m in trainer.run.student.backbone.modules() if isinstance(m, NORMS)]
    assert norms and all(isinstance(norm, Frozen) for norm in norms)


def test_fresh_weights_are_not_frozen(tiny_data, tmp_path, weights):
    for options in ({}, {"backbone_weights": "none"}, {"backbone": "some/backbone", "backbone_weights": "none"}):
        for part in ("backbone", "batchnorm"):
            told = refused(tiny_data, tmp_path, freeze=part, **options)
            assert f"--freeze {part} would keep fresh weights: pass --backbone_weights or --initial_model" in told
    told = refused(tiny_data, tmp_path, freeze="backbone", backbone_weights=weights, gradient_checkpointing=True)
    assert "--gradient_checkpointing saves nothing with --freeze backbone" in told
    assert "--freeze all must be one of none, backbone, batchnorm" in refused(tiny_data, tmp_path, freeze="all")


def test_a_plan_has_neither_gradients_nor_momentum_nor_activations_of_what_is_frozen(tiny_data, tmp_path, weights):
    def plan(part: str) -> dict:
        options = USUAL | {"base_width": 64, "backbone_weights": str(wide), "head_channels": 64}
        return plan_run(make_trainer(tiny_data, tmp_path / "run", freeze=part, **options).run)

    wide = tmp_path / "wide.safetensors"
    save_file(plain_resnet18(64), wide)
    learning, frozen = plan("none"), plan("backbone")
    # A ResNet-18 without its classifier has 11,176,512 parameters (torchvision: 11,689,512 with 1000 x 513 of it).
    assert (learning["frozen_parameters"], frozen["frozen_parameters"]) == (0, 11_689_512 - 1000 * 513)
    sizes, other = frozen["memory_per_process_mb"], learning["memory_per_process_mb"]
    assert sizes["weights"] == other["weights"] and sizes["teacher"] == other["teacher"]
    for part in ("gradients", "momentum"):
        assert sizes[part] == pytest.approx(other[part] - 4 * 11.176512, abs=1)
    assert sizes["activations"] < 0.7 * other["activations"]
    assert plan("batchnorm")["frozen_parameters"] == 9_600
