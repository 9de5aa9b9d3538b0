"""A warm-up that ends by itself: when the coming teacher's labels of the same images hardly change any more.

The measure is that of ST++ (Yang et al., CVPR 2022), which ranks images by how stable their predictions are. It needs
no labels, so a run with twenty labelled images has it as well.
"""

import logging
import math
from collections.abc import Sequence
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor, nn

from u2pl_hf.method.batch import Batch
from u2pl_hf.method.pseudo_labels import IGNORE, nearest_on_corners
from u2pl_hf.method.queues import several_processes
from u2pl_hf.pixels import denormalize, normalize

logger = logging.getLogger(__name__)
# Unlabelled crops that are watched: whole batches, until there are this many at least.
IMAGES = 32
# Share of all steps between two looks at them.
EVERY = 1 / 40
# Warm-up ends from this agreement on, or when it has not risen from so many looks to the next so many, by their means:
# single ones scatter by 0.1 while the network still learns, so that the highest one is soon a few looks old.
STABLE, PATIENCE = 0.75, 3


def latest_end(limit: float, total_steps: int) -> int:
    """The step that warm-up ends with at the latest, for a limit in [0, 1)."""
    return int(limit * total_steps)


def agreement(before: Tensor, after: Tensor, num_classes: int) -> Tensor:
    """How far two predictions agree: the IoU of a class's pixels in the one and in the other, mean over classes.

    Args:
        before, after: class ids, integers of one shape; 255 where a pixel does not count.

    Returns:
        Scalar float32 in [0, 1]. A class that is in neither is left out; 0 where no pixel counts.
    """
    known = (before != IGNORE) & (after != IGNORE)
    pairs = before[known].long() * num_classes + after[known].long()
    table = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    both = table.diagonal()
    either = table.sum(dim=0) + table.sum(dim=1) - both
    return (both / either.clamp(min=1)).sum() / (either > 0).sum().clamp(min=1)


def is_stable(agreements: Sequence[float]) -> bool:
    """Whether a series of agreements, the newest last, says that waiting for more brings nothing."""
    if agreements and agreements[-1] >= STABLE:
        return True
    recent, before = agreements[-PATIENCE:], agreements[-2 * PATIENCE : -PATIENCE]
    return len(before) == PATIENCE and fmean(recent) <= fmean(before)


class Stability(nn.Module):
    """Watches how the coming teacher labels the first unlabelled crops of process 0, and ends warm-up.

    The same on all processes. Nothing is read from the device but one triple of numbers at each look.

    A network that calls everything background agrees with itself perfectly. So a look counts only where more than half
    as many classes are predicted as the labelled images show that came with the watched ones.

    Args:
        num_classes: C, of the predictions.
        limit: share of the steps, in [0, 1), after which warm-up ends in any case.

    Attributes:
        end: the first step after warm-up; infinite until it is known.
        agreements: of the looks that counted.
    """

    def __init__(self, num_classes: int, limit: float):
        super().__init__()
        self.num_classes, self.limit = num_classes, limit
        self.end: float = math.inf
        self.agreements: list[float] = []
        self.looked_at: int | None = None
        # Pixels, and as a fourth channel 1 where they are none of padding: uint8 (N,4,H,W); nothing after warm-up.
        self.register_buffer("images", torch.empty(0, dtype=torch.uint8))
        # What was predicted at the last look: uint8 (N,h,w), 255 on padding.
        self.register_buffer("before", torch.empty(0, dtype=torch.uint8))
        # By id, whether it came in a label.
        self.register_buffer("shown", torch.zeros(IGNORE + 1, dtype=torch.uint8))

    @torch.no_grad()
    def watch(self, teacher: nn.Module, batch: Batch, step: int, total_steps: int) -> None:
        """Call it at the beginning of each pass; then `end` says whether this step belongs to warm-up.

        teacher: in eval mode; it computes as the step does, in pieces of the size of an unlabelled batch.
        """
        if self.end <= step:
            return
        if len(self.images) < IMAGES:
            self._collect(batch)
        elif step % max(1, round(EVERY * total_steps)) == 0 and step != self.looked_at:
            # Once in a step: all its passes are to agree.
            self.looked_at = step
            self._look(teacher, batch, step)
        if step >= latest_end(self.limit, total_steps):
            self._finish(step, "at its limit")

    def _collect(self, batch: Batch) -> None:
        new = torch.cat([denormalize(batch.x_u), batch.valid_u.unsqueeze(1).byte()], dim=1).contiguous()
        self.shown.index_fill_(0, batch.y_l.flatten(), 1)
        if several_processes():
            for part in (new, self.shown):
                dist.broadcast(part, src=0)
        self.images = torch.cat([self.images, new]) if len(self.images) else new

    def _look(self, teacher: nn.Module, batch: Batch, step: int) -> None:
        before, self.before = self.before, self._predict(teacher, batch)
        if not len(before):
            return
        predicted = torch.zeros_like(self.shown).index_fill_(0, self.before.flatten().long(), 1)
        classes = torch.stack([predicted, self.shown])[:, : self.num_classes].sum(dim=1)
        found = torch.stack([agreement(before, self.before, self.num_classes), *classes])
        if several_processes():
            # Other kernels on another device may round otherwise: what process 0 found holds.
            dist.broadcast(found, src=0)
        value, predicted, shown = found.tolist()
        if 2 * predicted > shown:
            self.agreements.append(value)
            if is_stable(self.agreements):
                self._finish(step, "stable" if value >= STABLE else "no longer rising")

    def _predict(self, teacher: nn.Module, batch: Batch) -> Tensor:
        """uint8 (N,h,w)."""
        # As the batches lie in memory: in another layout other kernels would run, and a compiled network compile anew.
        last = batch.x_u.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        predictions = []
        for part in self.images.split(len(batch.x_u)):
            x = normalize(part[:, :3], part[:, 3] > 0).contiguous(memory_format=layout)
            logits = teacher(x, output_representation=False, output_auxiliary=False).logits
            padding = nearest_on_corners(part[:, 3], logits.shape[-2:]) == 0
            predictions.append(logits.argmax(dim=1).masked_fill(padding, IGNORE).byte())
        return torch.cat(predictions)

    def _finish(self, step: int, why: str) -> None:
        if self.end <= step:
            return
        self.end = step
        told = f"agreement {self.agreements[-1]:.2f}" if self.agreements else "agreement not known"
        logger.info("warm-up ended at step %d: %s, %s", step, told, why)
        self.images, self.before = self.images.new_empty(0), self.before.new_empty(0)

    def told(self) -> dict[str, float]:
        """What a run logs during warm-up."""
        return {"agreement": self.agreements[-1]} if self.agreements else {}

    def found(self) -> dict[str, int | float | None]:
        """For results and cards."""
        end = None if math.isinf(self.end) else self.end
        return {"warmup_steps": end, "warmup_agreement": self.agreements[-1] if self.agreements else None}

    # What the host decides by is no buffer: it would have to be read from the device in every step.
    def get_extra_state(self) -> Tensor:
        """`end` and `agreements` for checkpoints, float64."""
        return torch.tensor([self.end, *self.agreements], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """The way back."""
        end, *self.agreements = state.tolist()
        self.end = end if math.isinf(end) else int(end)

    def _load_from_state_dict(self, state: dict, prefix: str, *args) -> None:
        # As many images as there were, of their size.
        for name in ("images", "before"):
            setattr(self, name, torch.empty_like(state[f"{prefix}{name}"], device=self.shown.device))
        super()._load_from_state_dict(state, prefix, *args)
