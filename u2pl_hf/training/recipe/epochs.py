"""Epochs as steps: published settings are in epochs, and a split decides how many steps that is."""

import logging
import math

from u2pl_hf.training.recipe.arguments import EPOCHS, RunArguments

logger = logging.getLogger(__name__)


def steps_per_epoch(args: RunArguments, labelled: int, unlabelled: int, images_per_step: tuple[int, int]) -> int:
    """Steps of one pass over the list that takes more of them, for suponly the labelled one; the last may be partial.

    Args:
        labelled, unlabelled: images of the lists.
        images_per_step: of each list, over all passes and processes.
    """
    steps = math.ceil(labelled / images_per_step[0])
    return steps if args.method == "suponly" else max(steps, math.ceil(unlabelled / images_per_step[1]))


def epochs_to_steps(args: RunArguments, per_epoch: int) -> None:
    """Set the fields that count steps from those that count epochs, where these are given.

    Raises:
        InputError: less than one step, or a warm-up or a wait for the contrastive loss as long as the run.
    """
    given = {epochs: steps for epochs, steps in EPOCHS.items() if getattr(args, epochs)}
    for epochs, steps in given.items():
        setattr(args, steps, round(getattr(args, epochs) * per_epoch))
    if given:
        told = ", ".join(f"{steps} {getattr(args, steps)}" for steps in given.values())
        logger.info("an epoch is %d steps: %s", per_epoch, told)
    args.check_schedule()
