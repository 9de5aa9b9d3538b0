"""What methods that look beyond their batches need of a run: pools of further images, and which classes are rare."""

import dataclasses
import logging
from collections.abc import Callable
from functools import cached_property

import torch

from u2pl_hf.data.source.checks import frequent_classes
from u2pl_hf.data.stream.pools import Reservoir, RowPool
from u2pl_hf.data.stream.transforms import WeakAugmentation
from u2pl_hf.errors import InputError
from u2pl_hf.method.step import MethodSettings
from u2pl_hf.training.inputs import TrainingData, training_stream, unlabelled_start
from u2pl_hf.training.recipe.arguments import NO_CLASS, RunArguments

logger = logging.getLogger(__name__)
# Donors of copy-paste come in more sizes than the images they are pasted into (AEL, adaptive copy-paste).
DONOR_SCALES = (0.1, 2.0)


class TrainingPools:
    """Pools of a run's labelled and unlabelled images, made when a method asks for them.

    Args:
        args, data: the run's.
        deliver: puts a loaded batch on the device: (images, labels or None, valid).
        start_step: the step that the run goes on with.
        rank, world_size: of this process, and how many there are.
    """

    def __init__(
        self,
        args: RunArguments,
        data: TrainingData,
        deliver: Callable[[dict], tuple],
        *,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.args, self.data, self.deliver = args, data, deliver
        self.start_step, self.rank, self.world_size = start_step, rank, world_size

    @cached_property
    def labelled(self) -> RowPool:
        """Any labelled image, in sizes from a tenth to twice its own."""
        augmentation = WeakAugmentation(self.args.crop_size, DONOR_SCALES)
        stream = training_stream(self.args, self.data, "labelled", augmentation, self.world_size)
        return RowPool(stream, self.deliver, torch.from_numpy(self.data.labels.counts > 0))

    @cached_property
    def unlabelled(self) -> RowPool:
        """Any unlabelled image; of streamed ones those seen lately."""
        augmentation = WeakAugmentation(self.args.crop_size)
        stream = training_stream(self.args, self.data, "unlabelled", augmentation, self.world_size)
        if not self.data.unlabelled_source.streamed:
            return RowPool(stream, self.deliver)
        start = unlabelled_start(self.args, self.start_step) * stream.batch_size
        return Reservoir(stream, self.deliver, rank=self.rank, world_size=self.world_size, start=start)


def method_settings(args: RunArguments, data: TrainingData) -> MethodSettings:
    """The step's settings for a run's classes and labels.

    Raises:
        InputError: the ranks leave no negatives, or --frequent_classes no rare class.
    """
    settings = args.method_settings(len(data.class_names))
    if args.method != "u2pl_ael":
        return settings
    rare = [c for c in range(len(data.class_names)) if c not in _frequent(args, data)]
    if not rare:
        raise InputError("--frequent_classes names every class; leave out those that copy-paste is to paste")
    logger.info("copy-paste draws from %s", ", ".join(data.class_names[c] for c in rare))
    # The bank moves once per pass, and a step's passes are to move it as one would that has all their images.
    momentum = settings.confidence_momentum ** (1.0 / args.gradient_accumulation_steps)
    return dataclasses.replace(settings, rare_classes=tuple(rare), confidence_momentum=momentum)


def _frequent(args: RunArguments, data: TrainingData) -> list[int]:
    names = data.class_names
    if args.frequent_classes == [NO_CLASS]:
        return []
    if not args.frequent_classes:
        return frequent_classes(data.labels.counts)
    numbers = {str(c): c for c in range(len(names))} | {name: c for c, name in enumerate(names)}
    unknown = [name for name in args.frequent_classes if name not in numbers]
    if unknown:
        raise InputError(
            f"--frequent_classes {unknown[0]} is no class; there are {', '.join(names)}, or 0 to {len(names) - 1}"
        )
    return [numbers[name] for name in args.frequent_classes]
