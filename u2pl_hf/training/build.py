"""From arguments to a run: processes, data, networks, optimizer and streams, put together in one place."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.constants import default_palette
from u2pl_hf.method import Step
from u2pl_hf.method.batch import ImagePools
from u2pl_hf.system.frozen import freeze
from u2pl_hf.system.precision import (
    checkpoint_gradients,
    compile_networks,
    prepare_device,
    spare_slow_gradients,
)
from u2pl_hf.system.processes import (
    cpu_cores,
    join_processes,
    start_accelerator,
    synchronize_batchnorm,
    together,
)
from u2pl_hf.training.batches import Batches
from u2pl_hf.training.inputs import TrainingData, load_training_data
from u2pl_hf.training.optimizers import build_optimizer
from u2pl_hf.training.recipe.arguments import BACKBONES, RunArguments
from u2pl_hf.training.recipe.schedule import StepSize, scaled_learning_rate, with_steps
from u2pl_hf.training.run.checkpoint import first_step
from u2pl_hf.training.run.run_folder import RunFolder
from u2pl_hf.training.run.tracking import choose_trackers
from u2pl_hf.training.run.upload import check_push
from u2pl_hf.training.weights.backbones import backbone_config, backbone_normalisation, check_crop
from u2pl_hf.training.weights.initialize import find_starting_point

logger = logging.getLogger(__name__)


class Networks(NamedTuple):
    """What a step computes with.

    Attributes:
        student: the network itself.
        wrapped: the student as forward passes call it: distributed, under autocast.
        method: the step, with teacher and queues where it has some.
        optimizer: of the student.
    """

    student: U2PLForSemanticSegmentation
    wrapped: nn.Module
    method: Step
    optimizer: torch.optim.Optimizer


@dataclass
class Run:
    """One run of one recipe: built and not yet begun, or finished.

    Attributes:
        student, wrapped, method, optimizer: see `Networks`.
        args: checked arguments, with steps where they were epochs.
        processes: how many take part, or are planned to.
        output: its folder.
        data, batches: what it learns from, and the streams of it.
        size: images of a step.
        learning_rate: base rate at step 0.
        checkpoint: what it goes on from, if anything.
        initialised_with: what its weights were at step 0; None for fresh ones.
        results: what results.json says, once it is finished.
    """

    student: U2PLForSemanticSegmentation
    wrapped: nn.Module
    method: Step
    optimizer: torch.optim.Optimizer
    args: RunArguments
    accelerator: Accelerator
    processes: int
    output: RunFolder
    data: TrainingData
    batches: Batches
    size: StepSize
    learning_rate: float
    checkpoint: Path | None
    initialised_with: dict | None
    results: dict | None = None

    @property
    def folder(self) -> Path:
        """Where everything of the run lies."""
        return self.output.path

    @cached_property
    def model(self) -> PreTrainedModel:
        """The finished run's model, as from_pretrained loads it: on the CPU, in eval mode."""
        return U2PLForSemanticSegmentation.from_pretrained(self.folder)


def build_run(args: RunArguments) -> Run:
    """Everything that a run needs; all that a user can get wrong shows here, before anything is written.

    Raises:
        InputError: data set, split, labels, weights, output folder or trackers cannot be used.
    """
    accelerator = start(args)
    output = RunFolder(args)
    together(accelerator, lambda: check_push(args, accelerator.is_main_process))
    together(accelerator, output.check)
    # Those that a plan is made for need not be here.
    processes = (args.plan and args.plan_processes) or accelerator.num_processes
    args, data, size, learning_rate = together(accelerator, lambda: _load_data(args, output, processes))
    output.args = args
    student = build_student(args, data.class_names, data.palette)
    fingerprint = data.fingerprint, accelerator.num_processes
    checkpoint, initialised_with = together(
        accelerator, lambda: find_starting_point(student, args, output, *fingerprint)
    )
    batches = Batches(args, data, accelerator, first_step(checkpoint))
    return Run(
        *assemble(args, accelerator, student, batches),
        args=args,
        accelerator=accelerator,
        processes=processes,
        output=output,
        data=data,
        batches=batches,
        size=size,
        learning_rate=learning_rate,
        checkpoint=checkpoint,
        initialised_with=initialised_with,
    )


def start(args: RunArguments) -> Accelerator:
    """Meet the other processes, and make the settings that hold for this one as a whole.

    Raises:
        InputError: the device cannot do what is asked for, or a tracker is not there.
    """
    processes = join_processes()
    precision = {"tf32": args.tf32, "compiled": args.compile, "deterministic": args.deterministic}
    together(processes, lambda: prepare_device(processes.device, args.mixed_precision, **precision))
    accelerator = start_accelerator(
        # Such as the mask token of DINOv2, and what comes after the last chosen stage.
        unused_parameters=args.backbone not in BACKBONES and args.freeze != "backbone",
        mixed_precision=args.mixed_precision,
        log_with=together(processes, lambda: choose_trackers(args)),
        project_dir=args.output_dir,
    )
    if accelerator.device.type == "cpu":
        # Launchers set one thread per process, which would leave cores idle.
        torch.set_num_threads(args.cpu_threads or max(1, cpu_cores() // accelerator.num_processes))
    return accelerator


def build_student(
    args: RunArguments, class_names: list[str], palette: list[list[int]] | None = None
) -> U2PLForSemanticSegmentation:
    """The student with the fresh weights of the run's seed, on the CPU, and frozen what --freeze says."""
    torch.manual_seed(args.seed)
    other = backbone_config(args)
    config = U2PLConfig(
        backbone=args.backbone if other is None else other,
        stem=args.stem,
        base_width=args.base_width,
        **({"output_stride": args.output_stride} if other is None else backbone_normalisation(args)),
        head=args.head,
        head_channels=args.head_channels,
        representation_channels=args.representation_channels if args.step_class.uses_representation else 0,
        aspp_dilations=args.aspp_dilations,
        dropout=args.dropout,
        auxiliary_head=args.auxiliary_head,
        id2label=dict(enumerate(class_names)),
        label2id={name: i for i, name in enumerate(class_names)},
        palette=palette or default_palette(len(class_names)),
    )
    check_crop(args, config)
    return freeze(U2PLForSemanticSegmentation(config), args.freeze)


def assemble(
    args: RunArguments, accelerator: Accelerator, student: U2PLForSemanticSegmentation, pools: ImagePools | None = None
) -> Networks:
    """Student, method and optimizer on the device of this process, as a step computes with them."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    student = synchronize_batchnorm(accelerator, student).to(accelerator.device, memory_format=layout)
    method = args.step_class(args.settings, student, pools).to(accelerator.device)
    wrapped, optimizer = accelerator.prepare(student, build_optimizer(args, student))
    tune_networks(args, student, method)
    return Networks(student, wrapped, method, optimizer)


def tune_networks(args: RunArguments, student: nn.Module, method: Step) -> None:
    """Gradient checkpointing of the student, compilation of student and teacher, where asked for; kernels of a CPU.

    Call it when the method has copied its teacher and accelerate has wrapped the student's forward.
    """
    if student.device.type == "cpu":
        spare_slow_gradients(student)
    if args.gradient_checkpointing:
        checkpoint_gradients(student)
    if args.compile:
        compile_networks([student, *(child for child in method.children() if isinstance(child, PreTrainedModel))])


def _load_data(
    args: RunArguments, output: RunFolder, processes: int
) -> tuple[RunArguments, TrainingData, StepSize, float]:
    """Data, and what follows from their numbers of images: steps of the run, images of a step, learning rate."""
    data, size = load_training_data(args), StepSize.of(args, processes)
    output.check_labelled_ids(data.labelled_ids)
    args = with_steps(args, size.steps_per_epoch(len(data.labelled), len(data.unlabelled)))
    learning_rate = scaled_learning_rate(args, size.labelled)
    args.step_class.check(args.settings, num_labels=len(data.class_names), total_steps=args.max_steps)
    if args.unlabelled_batch_size == 1 and args.step_class.mixes_batch(args.settings):
        logger.warning(
            "--unlabelled_batch_size 1: a pass has no second image to mix with, so nothing is mixed; pass 2 or more"
        )
    return args, data, size, learning_rate
