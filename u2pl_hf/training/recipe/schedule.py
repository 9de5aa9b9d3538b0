"""How many images a step has and how many steps a run: published settings are in epochs, and meant for a batch size."""

import logging
import math
from dataclasses import dataclass

from u2pl_hf.command_line import LARGEST
from u2pl_hf.errors import InputError, refuse, require
from u2pl_hf.training.recipe.arguments import RunArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSize:
    """The images of one optimizer step, over all its passes and all processes.

    Attributes:
        labelled, unlabelled: how many; no unlabelled ones where the method takes none.
    """

    labelled: int
    unlabelled: int

    @classmethod
    def of(cls, args: RunArguments, processes: int) -> "StepSize":
        """Of a run on a number of processes."""
        passes = processes * args.gradient_accumulation_steps
        return cls(args.batch_size * passes, args.unlabelled_batch_size * passes * args.step_class.uses_unlabelled)

    def steps_per_epoch(self, labelled: int, unlabelled: int) -> int:
        """Steps of one pass over the list that takes more of them; the last may be partial."""
        steps = math.ceil(labelled / self.labelled)
        return max(steps, math.ceil(unlabelled / self.unlabelled)) if self.unlabelled else steps

    def seen_in(self, steps: int, unlabelled_from: int) -> tuple[int, int]:
        """Labelled and unlabelled images that the first `steps` see."""
        return steps * self.labelled, max(0, steps - unlabelled_from) * self.unlabelled


def with_steps(args: RunArguments, per_epoch: int) -> RunArguments:
    """The arguments with steps in the place of epochs, where these are given.

    Raises:
        InputError: less than one step, a part of the method that begins after the end, or no evaluation before it.
    """
    counted = {}
    for epochs, steps in args.given_epochs.items():
        value = getattr(args, epochs)
        counted[steps] = round(value * per_epoch)
        refuse([
            (counted[steps] < 1 and steps in ("max_steps", "eval_steps"), f"--{epochs} {value} is less than one step"),
            (counted[steps] > LARGEST, f"--{epochs} {value} is more than {LARGEST:,} steps"),
        ])  # fmt: skip
    if counted:
        args = args.changed(**counted)
        told = ", ".join(f"{name} {steps}" for name, steps in counted.items())
        logger.info("an epoch is %d steps: %s", per_epoch, told)
        args.step_class.check(args.settings, total_steps=args.max_steps)
    only = args.keep_best != "none" and args.eval_steps >= args.max_steps
    few = f"--keep_best {args.keep_best} chooses among evaluations, and there is one alone: pass --eval_steps"
    require(not only, f"{few} below {args.max_steps}, or leave it out")
    return args


def scaled_learning_rate(args: RunArguments, labelled_per_step: int) -> float:
    """The base learning rate of the run: with --scale_lr times labelled images per step over the recipe's.

    Raises:
        InputError: --scale_lr without a reference to scale from.
    """
    reference = args.reference_batch_size
    if args.scale_lr and reference is None:
        raise InputError(
            "--scale_lr needs --reference_batch_size, the labelled images per step that --learning_rate is meant for"
        )
    if reference not in (None, labelled_per_step) and not args.scale_lr:
        logger.warning(
            "%d labelled images per step, but the learning rate is meant for %d: change the number of processes, "
            "--batch_size or --gradient_accumulation_steps, or pass --scale_lr true",
            labelled_per_step,
            reference,
        )
    return args.learning_rate * (labelled_per_step / reference if args.scale_lr else 1.0)


def describe_step(args: RunArguments, processes: int, learning_rate: float) -> str:
    """One line about an optimizer step: its images, how they come about, and the learning rate they are used with."""
    passes, size = args.gradient_accumulation_steps, StepSize.of(args, processes)
    several = f"{processes} process{'es' * (processes > 1)} x {passes} pass{'es' * (passes > 1)}"
    images = f"{size.labelled} labelled images per step = {several} x {args.batch_size}"
    if size.unlabelled:
        images = f"{size.labelled} labelled + {size.unlabelled} unlabelled images per step"
        images += f" = {several} x ({args.batch_size} + {args.unlabelled_batch_size})"
    rate = f"learning rate {learning_rate:g}"
    if args.scale_lr:
        rate += f" = {args.learning_rate:g} x {size.labelled} / {args.reference_batch_size} (--scale_lr)"
    return f"{images}; {rate}{f'; frozen: {args.frozen}' if args.frozen else ''}"
