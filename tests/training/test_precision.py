"""Number types, memory layout, kernels, compilation and determinism of training."""

import copy
import os
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.model import backbone_u2pl
from u2pl_hf.system import precision
from u2pl_hf.system.precision import prepare_device, set_tf32, spare_slow_gradients, without_tuning
from u2pl_hf.training.optimizers import build_sgd

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def flags_restored():
    """Settings of the whole process, as other tests expect them."""
    cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    yield
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before
    torch.set_float32_matmul_precision(matmul)
    torch.use_deterministic_algorithms(False)


def refusal(device, **changes) -> str:
    with pytest.raises(InputError) as error:
        prepare_device(device, **{"number_type": "no"} | changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def losses_and_weights(data, output, **changes):
    """Losses of each step, and the student afterwards."""
    trainer = make_trainer(data, output, **{"max_steps": 5, "warmup_steps": 2, "learning_rate": 0.01} | changes)
    losses = []
    trainer.run.method.register_forward_hook(lambda *call: losses.append(call[-1].total.item()))
    trainer.train()
    return torch.tensor(losses), trainer


# Number types


def test_fp16_on_a_cpu_is_refused_at_the_door(tiny_data, tmp_path):
    assert "pass bf16 or no" in refusal(CPU, number_type="fp16")
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        make_trainer(tiny_data, tmp_path / "run", mixed_precision="fp16")


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    assert "Tesla V100; pass fp16 or no" in refusal(CUDA, number_type="bf16")


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_set_for_products_and_convolutions_without_a_warning(allowed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_tf32(allowed)
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert torch.backends.cudnn.allow_tf32 == allowed


# Memory layout


def test_channels_last_is_a_choice_and_changes_only_rounding(tiny_data, tmp_path):
    losses = []
    for chosen in (True, False):
        seen = []
        trainer = make_trainer(tiny_data, tmp_path / str(chosen), channels_last=chosen, max_steps=4, learning_rate=1e-3)
        layout = torch.channels_last if chosen else torch.contiguous_format
        for network in (trainer.run.student, trainer.run.method.teacher):
            network.backbone.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            assert all(p.is_contiguous(memory_format=layout) for p in network.parameters() if p.dim() == 4)
        trainer.run.method.register_forward_hook(lambda *call: losses.append(call[-1].total.item()))
        trainer.train()
        training = [images for images in seen if images.shape[-1] == 65]
        assert len(training) >= 1 + 3 * 3
        assert all(images.is_contiguous(memory_format=layout) for images in training)
    torch.testing.assert_close(torch.tensor(losses[:4]), torch.tensor(losses[4:]), rtol=1e-4, atol=0)


# Optimizer


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((6, 4, 3, 3), (6, 4, 1, 1), (6,))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(t.to(memory_format=torch.channels_last) if t.dim() == 4 else t) for t in tensors]


def set_gradients(values: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for value in values:
        value.grad = torch.empty_like(value).copy_(torch.randn(value.shape, generator=generator))


def sgd(values, **options):
    return torch.optim.SGD(values, lr=0.1, momentum=0.9, weight_decay=1e-4, **options)


def ours(values):
    return build_sgd([{"params": values}], lr=0.1, momentum=0.9, weight_decay=1e-4)


def test_optimizer_is_sgd():
    plain, fast = parameters(), parameters()
    for values, optimizer in ((plain, sgd(plain, foreach=False)), (fast, ours(fast))):
        for step in range(3):
            set_gradients(values, step)
            optimizer.step()
    for expected, found in zip(plain, fast, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_first_step_that_is_skipped_leaves_no_trace():
    """Mixed precision begins with a scale that overflows: torch's fused kernel would keep unwritten momentum."""
    plain, fast = parameters(), parameters()
    for values, optimizer in ((plain, sgd(plain, foreach=False)), (fast, ours(fast))):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in range(3):
            set_gradients(values, step)
            scaler.scale(torch.zeros(()))
            for value in values:
                value.grad.mul_(scaler.get_scale())
            if step == 0:
                values[0].grad[0, 0, 0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0
    for expected, found in zip(plain, fast, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_momentum_of_a_checkpoint_gets_the_layout_of_its_parameter():
    """A fused kernel would add momentum to other elements than its own."""
    values = parameters()
    optimizer = ours(values)
    set_gradients(values, 0)
    optimizer.step()
    content = optimizer.state_dict()
    saved = {key: state["momentum_buffer"].clone() for key, state in content["state"].items()}
    content["state"] = {key: {"momentum_buffer": momentum.contiguous()} for key, momentum in saved.items()}
    optimizer.load_state_dict(content)
    for key, value in enumerate(values):
        momentum = optimizer.state[value]["momentum_buffer"]
        assert momentum.stride() == value.stride() and torch.equal(momentum, saved[key])


# Compilation


def compiled_graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture
def quick_compiler(monkeypatch):
    """Captures graphs and differentiates them, but generates no code; and a network with one block a stage."""
    monkeypatch.setattr(precision, "COMPILER", "aot_eager")
    monkeypatch.setitem(backbone_u2pl._ARCHITECTURES, "resnet18", (backbone_u2pl.BasicBlock, (1, 1, 1, 1)))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.no_cover  # tracing the tracer doubles its time
def test_compiled_training_has_four_graphs_and_the_same_losses(tiny_data, tmp_path, quick_compiler):
    options = {"max_steps": 20, "warmup_steps": 10, "eval_steps": 5, "picture_samples": 2, "learning_rate": 1e-3}
    expected, eager = losses_and_weights(tiny_data, tmp_path / "eager", **options)
    assert compiled_graphs() == 0
    trainer = make_trainer(tiny_data, tmp_path / "compiled", compile=True, **options)
    losses, graphs = [], []
    trainer.run.method.register_forward_hook(lambda *call: losses.append(call[-1].total.item()))
    trainer.run.method.register_forward_hook(lambda *_: graphs.append(compiled_graphs()))
    trainer.train()
    # The student with labelled images; then with all, the teacher on unlabelled images and the teacher on all.
    assert graphs == [1] * 10 + [4] * 10
    # Evaluation and pictures have compiled nothing, though their images are of another size.
    assert compiled_graphs() == 4 and not counters["graph_break"]
    torch.testing.assert_close(torch.tensor(losses)[:15], expected[:15], rtol=1e-4, atol=0)
    assert trainer.run.student.state_dict().keys() == eager.run.student.state_dict().keys()


def test_compiler_that_is_missing_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "needs the compiler no-such-compiler" in refusal(CPU, compiled=True)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(precision, "find_spec", lambda name: object())
    assert "needs the compiler no-such-compiler" in refusal(CUDA, compiled=True)
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    assert "needs the package triton" in refusal(CUDA, compiled=True)
    monkeypatch.setattr(precision.shutil, "which", lambda name: name)
    monkeypatch.setattr(precision.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "needs Python's headers" in refusal(CPU, compiled=True)


# Gradient checkpointing


def test_checkpointed_student_learns_the_same(tiny_data, tmp_path):
    expected, plain = losses_and_weights(tiny_data, tmp_path / "plain")
    losses, trainer = losses_and_weights(tiny_data, tmp_path / "checkpointed", gradient_checkpointing=True)
    assert trainer.run.student.backbone.gradient_checkpointing
    assert not trainer.run.method.teacher.backbone.gradient_checkpointing
    assert torch.equal(losses, expected)
    for name, value in plain.run.student.state_dict().items():
        assert torch.equal(trainer.run.student.state_dict()[name], value), name


# Determinism


@pytest.mark.parametrize("changes", [{}, {"supervised_loss": "ohem", "variant": "official", "auxiliary_head": True}])
def test_deterministic_training_runs_and_learns_the_same(tiny_data, tmp_path, changes, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    expected, plain = losses_and_weights(tiny_data, tmp_path / "plain", max_steps=3, warmup_steps=1, **changes)
    assert torch.backends.cudnn.benchmark
    found, trainer = losses_and_weights(
        tiny_data, tmp_path / "deterministic", max_steps=3, warmup_steps=1, deterministic=True, **changes
    )
    assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for name, value in plain.run.student.state_dict().items():
        torch.testing.assert_close(trainer.run.student.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_evaluation_is_not_tuned():
    torch.backends.cudnn.benchmark = True
    with without_tuning():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


def test_slow_depthwise_convolutions_of_a_cpu_compute_in_float32():
    def convolution(**options) -> nn.Conv2d:
        return nn.Conv2d(4, 4, 3, padding=1, groups=4, **options)

    strided, dilated, plain = convolution(stride=2), convolution(dilation=2), convolution()
    dense = nn.Conv2d(4, 4, 3, stride=2)
    network = nn.Sequential(strided, dilated, plain, dense)
    names, x = list(network.state_dict()), torch.randn(2, 4, 9, 9).bfloat16()
    expected = [
        torch.nn.functional.conv2d(x.float(), c.weight, c.bias, c.stride, 1, c.dilation, 4) for c in network[:2]
    ]
    spare_slow_gradients(network)
    with torch.autocast("cpu", torch.bfloat16):
        for found, right in zip((c(x) for c in copy.deepcopy(network)[:2]), expected, strict=True):
            assert found.dtype == torch.bfloat16 and torch.equal(found, right.bfloat16())
    assert list(network.state_dict()) == names and {type(plain), type(dense)} == {nn.Conv2d}


@pytest.mark.parametrize("dilation", [2, 3, 5])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_dilated_depthwise_convolution_by_phases_is_the_same(dilation, kernel):
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    plain = nn.Conv2d(4, 4, kernel, padding=padding, dilation=dilation, groups=4, dtype=torch.float64)
    by_phases = copy.deepcopy(plain)
    spare_slow_gradients(by_phases)
    x = torch.randn(2, 4, 11, 13, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(x)
    results = []
    for module in (plain, by_phases):
        own = x.clone().requires_grad_()
        out = module(own)
        (out * weights).sum().backward()
        results.append((out, own.grad, module.weight.grad, module.bias.grad))
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right)
    # What is compared is two ways: the second one never convolves with a dilation.
    with TorchFunctionLog() as log:
        by_phases(x.requires_grad_())
    assert log.dilations == [1 if 2 * dilation <= 11 else dilation]


class TorchFunctionLog(torch.overrides.TorchFunctionMode):
    """Notes the dilation of each convolution."""

    def __init__(self):
        super().__init__()
        self.dilations = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.conv2d:
            dilation = args[5] if len(args) > 5 else 1
            self.dilations.append(dilation if isinstance(dilation, int) else dilation[0])
        return function(*args, **(kwargs or {}))
