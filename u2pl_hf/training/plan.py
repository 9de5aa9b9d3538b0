"""What a run would do, as numbers that can be checked by hand: steps, images, memory, disk, hours."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from u2pl_hf.data.source.published_splits import SPLITS
from u2pl_hf.hub.paper import PUBLISHED
from u2pl_hf.method.losses import cross_entropy
from u2pl_hf.method.pseudo_labels import resize_logits
from u2pl_hf.system.precision import checkpoint_gradients
from u2pl_hf.training.build import Run, build_student
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.recipe.schedule import StepSize, scaled_learning_rate, with_steps


@dataclass(frozen=True)
class Counts:
    """How many images a run has, and classes; `origin` says who says so: data, or published."""

    labelled: int
    unlabelled: int
    evaluation: int
    classes: int
    origin: str = "data"


def published_counts(args: RunArguments) -> Counts | None:
    """The counts of a published split whose data set is not there to be counted; None for any other."""
    elsewhere = args.dataset != "demo" and not Path(args.dataset).exists() and not args.unlabelled_dataset
    if args.split not in SPLITS or not elsewhere:
        return None
    name, _, share = args.split.partition("/")
    data = PUBLISHED["datasets"][name.partition("_")[0]]
    # Most lists are called after their number of images.
    labelled = PUBLISHED["labelled_images"].get(name, {}).get(share) or int(share)
    unlabelled = data["training_images"] - labelled
    return Counts(labelled, unlabelled, data["evaluation_images"], args.num_labels or data["classes"], "published")


def plan_without_data(args: RunArguments, counts: Counts, processes: int) -> dict:
    """The plan of a run whose data set is elsewhere.

    Raises:
        InputError: settings that the run would refuse, as far as they show without data.
    """
    size = StepSize.of(args, processes)
    args = with_steps(args, size.steps_per_epoch(counts.labelled, counts.unlabelled))
    args.step_class.check(args.settings, num_labels=counts.classes, total_steps=args.max_steps)
    return describe_plan(args, counts, processes, scaled_learning_rate(args, size.labelled))


def plan_run(run: Run) -> dict:
    """The plan of a run."""
    data = run.data
    counts = Counts(len(data.labelled), len(data.unlabelled), len(data.evaluation.ids), len(data.class_names))
    plan = describe_plan(run.args, counts, run.processes, run.learning_rate)
    return plan | {"initialised_with": run.initialised_with}


def describe_plan(args: RunArguments, counts: Counts, processes: int, learning_rate: float) -> dict:
    """What a run would do.

    Args:
        args: with steps, where they were epochs.
        counts, processes: of the run.
        learning_rate: base rate at step 0.
    """
    size, unlabelled_from = StepSize.of(args, processes), args.step_class.unlabelled_from(args.settings)
    seen_l, seen_u = size.seen_in(args.max_steps, unlabelled_from)
    latest_start = args.step_class.latest_start(args.settings, args.max_steps)
    automatic = latest_start > unlabelled_from
    with torch.device("meta"):
        student = build_student(args, [f"class_{c}" for c in range(counts.classes)])
    sizes = memory(args, student, counts.classes)
    hours = round((seen_l + seen_u) / args.images_per_second / 3600, 2) if args.images_per_second else None
    return {
        "counts": counts.origin,
        "labelled_images": counts.labelled,
        "unlabelled_images": counts.unlabelled,
        "evaluation_images": counts.evaluation,
        "classes": counts.classes,
        "steps": args.max_steps,
        "warmup_steps": None if automatic else unlabelled_from,
        **({"automatic_warmup_up_to": latest_start} if automatic else {}),
        "evaluations": math.ceil(args.max_steps / (args.eval_steps or args.max_steps)),
        "steps_per_epoch": size.steps_per_epoch(counts.labelled, counts.unlabelled),
        "processes": processes,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "images_per_pass": {
            "labelled": args.batch_size,
            "unlabelled": size.unlabelled and args.unlabelled_batch_size,
        },
        "images_per_step": {"labelled": size.labelled, "unlabelled": size.unlabelled},
        "labelled_epochs": seen_l / counts.labelled,
        "unlabelled_epochs": seen_u / max(counts.unlabelled, 1),
        "learning_rate": learning_rate,
        "learning_rate_scale": learning_rate / args.learning_rate,
        "head_learning_rate": learning_rate * args.head_lr_factor,
        "parameters": sum(p.numel() for p in student.parameters()),
        "frozen_parameters": sum(p.numel() for p in student.parameters() if not p.requires_grad),
        "memory_per_process_mb": sizes,
        "disk_mb": disk(args, sizes),
        "images_per_second": args.images_per_second or None,
        "training_hours": hours,
    }


def memory(args: RunArguments, student: nn.Module, classes: int) -> dict[str, int]:
    """An estimate of what a process needs on its device, by part, in MB (10^6 bytes).

    Activations are those that one pass of the student keeps for its gradient, with its losses at crop size; counted,
    not measured. What kernels need besides comes on top, so `all` is a lower bound.
    """
    method, weights = args.step_class, sum(p.nbytes for p in student.parameters())
    learning = sum(p.nbytes for p in student.parameters() if p.requires_grad)
    state = {"momentum": learning} if args.optimizer == "sgd" else {"moments": 2 * learning}
    parts = {"weights": weights, "gradients": learning} | state
    parts |= method.state_bytes(args.settings, weights, classes, student.config.representation_channels)
    images = method.student_images(args.batch_size, args.unlabelled_batch_size)
    parts["activations"] = kept_bytes(lambda: _losses(args, student, images))
    return {name: round(size / 1e6) for name, size in (parts | {"all": sum(parts.values())}).items()}


def _losses(args: RunArguments, student: nn.Module, images: int) -> Tensor:
    """The student's pass over a step's images, and dense losses; the contrastive one keeps little."""
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(args.mixed_precision, torch.float32)
    if args.gradient_checkpointing:
        checkpoint_gradients(student)
    device, side = next(student.parameters()).device, args.crop_size
    # Under autocast, what lies between the layers is half as wide.
    pixels = torch.zeros(images, 3, side, side, device=device, dtype=half)
    output = student.to(half).train()(pixels)
    labels = torch.zeros(images, side, side, dtype=torch.long, device=device)
    loss = cross_entropy(resize_logits(output.logits, (side, side)), labels)
    if output.aux_logits is not None:
        loss = loss + cross_entropy(resize_logits(output.aux_logits, (side, side)), labels)
    return loss


def kept_bytes(compute: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the gradient of what `compute` returns, leaves (weights) left out."""
    kept: dict[int, torch.UntypedStorage] = {}
    leaves: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Kept, so that no other tensor gets its place meanwhile.
        kept[storage._cdata] = storage
        if tensor.is_leaf and tensor.requires_grad:
            leaves.add(storage._cdata)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), FusedAttention():
        compute()
    return sum(storage.nbytes() for place, storage in kept.items() if place not in leaves)


class FusedAttention(TorchFunctionMode):
    """Attention of tensors without values keeps what fused kernels keep, which have none of a device: no products."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not F.scaled_dot_product_attention or not args[0].is_meta:
            return function(*args, **kwargs)
        # Not of this one kernel.
        kwargs.pop("enable_gqa", None)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]


def disk(args: RunArguments, sizes: dict[str, int]) -> int:
    """MB that a run's folder grows to: checkpoints, one more while it is written, and the last and the best model."""
    passing = ("gradients", "activations", "all")
    checkpoint = sum(size for name, size in sizes.items() if name not in passing)
    return checkpoint * (args.keep_checkpoints + 1) + 2 * sizes["weights"]
