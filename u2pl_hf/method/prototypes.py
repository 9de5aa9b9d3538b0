"""Positives of the contrastive loss that are averaged over steps (U2PL's published code, `contrastive.anchor_ema`)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from u2pl_hf.method.losses import unit_vectors
from u2pl_hf.method.queues import several_processes


class Prototypes(nn.Module):
    """z_c^+ <- d z_c^+ + (1 - d) z_c, with z_c the batch's mean of equation 12 and d = min(1 - 1 / i, momentum).

    Unit vectors; i counts the steps that had pixels of the class. A class without any keeps its prototype, which the
    published code forgets. The same on all processes.
    """

    def __init__(self, num_classes: int, channels: int, momentum: float = 0.999):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("vectors", torch.zeros(num_classes, channels))
        self.register_buffer("updates", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def update(self, representation: Tensor, positives: Tensor) -> Tensor:
        """Take in the teacher's representation (B,D,h,w) under bool (B,C,h,w); returns all prototypes (C,D)."""
        pixels = representation.float().movedim(1, -1).flatten(0, 2)
        mask = positives.transpose(0, 1).flatten(1).float()
        with torch.autocast(pixels.device.type, enabled=False):
            sums = torch.cat([mask @ pixels, mask.sum(dim=1, keepdim=True)], dim=1)
        if several_processes():
            dist.all_reduce(sums)
        # An overflow in half precision must not stay here for good.
        known = (sums[:, -1] > 0) & sums.isfinite().all(dim=1)
        self.updates += known
        decay = (1.0 - 1.0 / self.updates.clamp(min=1)).clamp(max=self.momentum).unsqueeze(1)
        moved = unit_vectors(torch.lerp(unit_vectors(sums[:, :-1]), self.vectors, decay))
        self.vectors.copy_(torch.where(known.unsqueeze(1), moved, self.vectors))
        return self.vectors
