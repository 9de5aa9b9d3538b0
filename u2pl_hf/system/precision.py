"""How a step is computed, as opposed to what: number types, memory layout, kernels, compilation, determinism.

Every choice is a field of RunArguments and changes the last bits of a result, so all of them belong to the recipe.
docs/performance.md has the measurements and says which operations are deterministic.
"""

import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from u2pl_hf.errors import InputError
from u2pl_hf.training.recipe.arguments import RunArguments

COMPILER = "inductor"


def prepare_device(args: RunArguments, device: torch.device) -> None:
    """Check that the device can do what is asked for, and make the settings that hold for the whole process.

    Call it before the first computation on the device.

    Raises:
        InputError: the device has no such number type, or nothing to compile with.
    """
    check_number_type(args.mixed_precision, device)
    if args.compile:
        check_compiler(device)
    if args.deterministic:
        # cuBLAS reads this when its first handle is made: before the first matrix product or convolution, that is.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != args.deterministic:
        # Only where it changes something: the call imports the compiler, which takes seconds.
        torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.deterministic = args.deterministic
    # Crops have one size: the search for the fastest convolution is done once for each layer.
    torch.backends.cudnn.benchmark = not args.deterministic
    if device.type == "cuda":
        set_tf32(args.tf32)


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


def memory_format(args: RunArguments) -> torch.memory_format:
    """Layout of weights and images: with channels last, convolutions need no reordering of their input."""
    return torch.channels_last if args.channels_last else torch.contiguous_format


def build_sgd(groups: list[dict], **options) -> torch.optim.SGD:
    """SGD that updates all parameters of a group in one fused kernel; arguments as for torch's SGD."""
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    optimizer = torch.optim.SGD(groups, **options, fused=fused or None)
    optimizer.register_load_state_dict_post_hook(_lay_out_momentum)
    if options["momentum"]:
        # A first step that the gradient scaler skips would leave the fused kernel's new buffers unwritten. From zero,
        # the first step's momentum is its gradient, as it should be.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _lay_out_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded momentum the strides of its parameter.

    Checkpoints hold contiguous tensors. Fused kernels walk through memory without looking at strides, and foreach
    kernels fall back to a loop.
    """
    for parameter, state in optimizer.state.items():
        momentum = state["momentum_buffer"]
        if momentum.stride() != parameter.stride():
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)


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


def tune_networks(args: RunArguments, student: nn.Module, method: nn.Module) -> None:
    """Gradient checkpointing of the student, and compilation of student and teacher, where asked for.

    Call it when the method has copied its teacher and accelerate has wrapped the student's forward.
    """
    if args.gradient_checkpointing:
        checkpoint_gradients(student)
    if args.compile:
        for network in (student, *(child for child in method.children() if isinstance(child, PreTrainedModel))):
            # In place, so that names of parameters stay, and whoever holds the network calls the compiled forward.
            # Not dynamic: a run has a few kinds of batches, each worth a graph of its own.
            network.compile(backend=COMPILER, dynamic=False)


@contextmanager
def without_tuning(args: RunArguments) -> Iterator[None]:
    """For evaluation: its images have many sizes, and tuning for each would take longer than computing it.

    Networks run uncompiled, and cuDNN does not search for the fastest convolution.
    """
    searching = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        with torch.compiler.set_stance("force_eager") if args.compile else nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = searching


def lay_out(images: Tensor, args: RunArguments) -> Tensor:
    """Images (B,3,H,W) in the layout of the weights; they come with channels last from the decoder."""
    return images.contiguous(memory_format=memory_format(args))
