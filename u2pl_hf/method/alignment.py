"""Distribution alignment (ReMixMatch, Berthelot et al., ICLR 2020), per pixel: pseudo-labels as frequent as labels."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from u2pl_hf.method.pseudo_labels import nearest_on_corners
from u2pl_hf.method.queues import several_processes

# Of the predicted shares, per step: they remember about a hundred.
MOMENTUM = 0.99
# How many times more or less likely a class becomes at most.
LIMIT = 4.0
# Added to every share: no class is divided by nothing, and a class without labels is not made impossible.
SMOOTHING = 1e-3


class Alignment(nn.Module):
    """Makes classes that the teacher predicts less often than the labels have them more likely, and the others less.

    With pi the classes' shares of the labelled pixels and rho the moving average of the probabilities that the teacher
    gives them, p_c becomes proportional to p_c clip(pi_c / rho_c, 1/4, 4)^strength. Where unlabelled images show
    another mix of classes than labelled ones, that is wrong.

    Args:
        strength: in (0, 1].
        counts: pixels of each class in each labelled image, int64 (images,C).
        passes: per step; those of a step move rho as one that has all their images.
    """

    def __init__(self, strength: float, counts: Tensor, passes: int = 1):
        super().__init__()
        self.strength, self.momentum = strength, MOMENTUM ** (1.0 / passes)
        total = counts.sum(dim=0).double()
        self.register_buffer("labelled", (total / total.sum()).float(), persistent=False)
        self.register_buffer("predicted", torch.zeros(counts.shape[1]))

    @torch.no_grad()
    def learn(self, logits: Tensor, valid: Tensor) -> None:
        """Take in the teacher's logits (B,C,h,w) of unlabelled images, where bool (B,H,W) `valid` holds."""
        counted = nearest_on_corners(valid, logits.shape[-2:]).unsqueeze(1)
        sums = (logits.float().softmax(dim=1) * counted).sum(dim=(0, 2, 3))
        if several_processes():
            dist.all_reduce(sums)
        number = sums.sum()
        share = sums / number
        moved = torch.where(self.predicted.sum() > 0, torch.lerp(share, self.predicted, self.momentum), share)
        # A batch of padding alone, or an overflow in half precision, says nothing.
        self.predicted.copy_(torch.where((number > 0) & number.isfinite(), moved, self.predicted))

    def align(self, logits: Tensor) -> Tensor:
        """Logits (B,C,h,w) of aligned probabilities, float32 at least."""
        ratio = (self.labelled + SMOOTHING) / (self.predicted + SMOOTHING)
        shift = self.strength * ratio.clamp(1 / LIMIT, LIMIT).log()
        return (logits if logits.dtype == torch.float64 else logits.float()) + shift.view(1, -1, 1, 1)
