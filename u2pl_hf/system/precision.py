"""How networks are computed, as opposed to what: number types, memory layout, kernels, compilation, determinism.

Every choice changes the last bits of a result. docs/performance.md has the measurements and says which operations are
deterministic.
"""

import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl_hf.errors import InputError, TrainingError

COMPILER = "inductor"
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare_device(
    device: torch.device, number_type: str, *, tf32: bool = True, compiled: bool = False, deterministic: bool = False
) -> None:
    """Check that the device can do what is asked for, and make the settings that hold for the whole process.

    Call it before the first computation on the device.

    Raises:
        InputError: the device has no such number type, or nothing to compile with.
    """
    check_number_type(number_type, device)
    if compiled:
        check_compiler(device)
    if deterministic:
        # cuBLAS reads this when its first handle is made: before the first matrix product or convolution, that is.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        # Only where it changes something: the call imports the compiler, which takes seconds.
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    # Crops have one size: the search for the fastest convolution is done once for each layer.
    torch.backends.cudnn.benchmark = not deterministic
    if device.type == "cuda":
        set_tf32(tf32)


def check_number_type(number_type: str, device: torch.device, option: str = "--mixed_precision") -> None:
    """Refuse a number type that the device lacks.

    Raises:
        InputError: names the option and what to pass.
    """
    if number_type == "fp16" and device.type == "cpu":
        raise InputError(f"{option} fp16 needs a GPU, and there is none; pass bf16 or no")
    # Older GPUs emulate bfloat16, at a fraction of the speed of float32.
    if number_type == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise InputError(f"{option} bf16 is not supported by this GPU, {name}; pass fp16 or no")


def check_compiler(device: torch.device, advice: str = "install it or pass --compile false") -> None:
    """Tell what torch.compile will miss, in one line instead of its traceback in the middle of the first step.

    Raises:
        InputError: names what is missing, and `advice`.
    """
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise InputError(f"--compile needs the package triton on a GPU; {advice}")
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        names = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    if not any(shutil.which(name) for name in names):
        raise InputError(f"--compile needs the compiler {' or '.join(names)}; {advice}")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise InputError(f"--compile needs Python's headers ({header}); {advice}")


def set_tf32(allowed: bool) -> None:
    """Let CUDA's float32 matrix products and convolutions round their factors to TF32 (10 bits of mantissa), or not."""
    with warnings.catch_warnings():
        # torch 2.9 recommends its newer settings here; but its compiler fails where those are used, and 2.6 has none.
        warnings.filterwarnings("ignore", "Please use the new API settings")
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def checkpoint_gradients(student: nn.Module) -> None:
    """Make the backbone compute its features twice instead of keeping them.

    Raises:
        InputError: it cannot do that.
    """
    with warnings.catch_warnings():
        # The newer name is not in all versions of transformers that we run with.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing_enable", FutureWarning)
        # No block of the built-in ResNets draws random numbers, so there is no generator state to restore.
        draws = student.config.backbone_config is not None
        try:
            student.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": draws})
        except ValueError as error:
            raise InputError(
                f"--gradient_checkpointing true: the backbone {student.config.backbone} cannot do it; leave it out"
            ) from error


class _InOwnType:
    """Computes in the type of its weights under autocast, and gives what comes after it the type that came."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class _ByPhases(_InOwnType):
    """Computes a convolution of dilation d as d x d plain ones side by side, each on the pixels that it keeps apart."""

    def forward(self, x: Tensor) -> Tensor:
        d, (batch, channels, height, width) = self.dilation[0], x.shape
        # Without gradients there is no slow kernel; and where d is large, phases would be padding mostly.
        if not torch.is_grad_enabled() or 2 * d > min(height, width):
            return super().forward(x)
        h, w = -(-height // d), -(-width // d)
        x = F.pad(x, (0, w * d - width, 0, h * d - height)).permute(0, 2, 3, 1)
        phases = x.reshape(batch, h, d, w, d, channels).permute(2, 4, 0, 1, 3, 5).flatten(0, 2)
        weight, padding = self.weight, tuple(side // 2 for side in self.kernel_size)
        out = F.conv2d(phases.permute(0, 3, 1, 2), weight, self.bias, 1, padding, 1, self.groups)
        out = out.permute(0, 2, 3, 1).unflatten(0, (d, d, batch)).permute(2, 3, 0, 4, 1, 5)
        out = out.reshape(batch, h * d, w * d, channels)[:, :height, :width].permute(0, 3, 1, 2)
        return out.contiguous(memory_format=torch.channels_last)


@cache
def _computing(way: type, kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (way, kind), {"__module__": kind.__module__})


def spare_slow_gradients(network: nn.Module) -> None:
    """Compute the depthwise convolutions otherwise, in place, for which oneDNN has no fast kernel of gradients on CPUs.

    With a dilation it has none: such a one is computed as plain ones. With a stride there is one for float32 alone.
    """
    for module in network.modules():
        if not (isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1):
            continue
        one, dilation = module.stride == (1, 1), module.dilation
        kept = tuple(d * (side - 1) for d, side in zip(dilation, module.kernel_size, strict=True))
        keeps = isinstance(module.padding, tuple) and tuple(2 * side for side in module.padding) == kept
        if one and keeps and dilation[0] == dilation[1] > 1 and module.padding_mode == "zeros":
            module.__class__ = _computing(_ByPhases, type(module))
        elif not one or max(dilation) > 1:
            module.__class__ = _computing(_InOwnType, type(module))


def compile_networks(networks: Iterable[nn.Module], *, dynamic: bool = False) -> None:
    """torch.compile networks in place, so that names of parameters stay, and whoever holds one calls the compiled one.

    dynamic: sizes may change from image to image; in training a few kinds of batches are each worth a graph.
    """
    for network in networks:
        network.compile(backend=COMPILER, dynamic=dynamic)


@contextmanager
def without_tuning() -> Iterator[None]:
    """For evaluation: its images have many sizes, and tuning for each would take longer than computing it.

    Networks run uncompiled, and cuDNN does not search for the fastest convolution.
    """
    searching = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    # Without a compiled network, nobody has loaded the compiler, which takes seconds.
    compiled = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = searching


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Networks inside run in `precision`; their logits are float32 again. Memory that runs out is told in one line.

    Raises:
        TrainingError: out of memory.
    """
    dtype = PRECISIONS[precision]
    try:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        raise TrainingError(
            f"out of memory ({text}): pass --mode slide, a smaller --window, --batch_size 1 or --window_batch 1"
        ) from error
