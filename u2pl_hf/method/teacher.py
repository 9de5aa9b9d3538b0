"""The teacher: an exponential moving average of the student (paper, section 3.1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@torch.no_grad()
def copy_student(teacher: nn.Module, student: nn.Module) -> None:
    """Make the teacher equal to the student, parameters and buffers; they share no memory."""
    teacher.load_state_dict(student.state_dict())


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float, *, buffers: bool = False) -> None:
    """theta_t <- decay theta_t + (1 - decay) theta_s over parameters.

    U2PL leaves buffers alone: BatchNorm statistics of its teacher come from that one's own passes over the mixed
    batches. A teacher that only ever evaluates has them averaged as well; whole numbers are copied.
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    if buffers:
        both = list(zip(teacher.buffers(), student.buffers(), strict=True))
        pairs += [pair for pair in both if pair[0].is_floating_point()]
        for own, new in both:
            if not own.is_floating_point():
                own.copy_(new)
    own, new = zip(*pairs, strict=True)
    torch._foreach_lerp_(own, new, 1.0 - decay)


@torch.no_grad()
def relative_distance(teacher: nn.Module, student: nn.Module) -> float | None:
    """|theta_t - theta_s| / |theta_s| over parameters that learn and both have; None where there are none.

    Reads one number from the device.
    """
    theirs = dict(teacher.named_parameters())
    pairs = [(theirs[name], own) for name, own in student.named_parameters() if own.requires_grad and name in theirs]
    if not pairs:
        return None
    apart = sum((other - own).float().square().sum() for other, own in pairs)
    return (apart / sum(own.float().square().sum() for _, own in pairs)).sqrt().item()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm uses and updates batch statistics; all else is in eval mode, so that nothing is dropped.

    Leaves the whole model in eval mode.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    try:
        yield
    finally:
        model.eval()
