"""The losses: supervised, unsupervised, contrastive. Pure functions, computed in float32 or better.

Shapes: B images, C classes, H x W the crop, h x w the feature size, D representation channels, A anchors and N
negatives per anchor; 255 means ignore.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl_hf.method.pseudo_labels import IGNORE, precise_dtype
from u2pl_hf.method.queues import ClassQueues

# Negatives of L_c that are gathered at once, in bytes: few enough for a cache to be of use.
NEGATIVES_BYTES = 2**25
# What the reverse cross-entropy takes for log 0.
LOG_OF_ZERO = math.log(1e-4)


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Mean cross-entropy over pixels that are not ignored; 0, attached to the graph, where all are (equation 2)."""
    total = pixel_losses(logits, labels, ignore_index).sum()
    return total / (labels != ignore_index).sum().clamp(min=1)


def pixel_losses(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross-entropy of each pixel, 0 where it is ignored: logits (B,C,H,W), labels (B,H,W) -> (B*H*W,).

    Summing is another kernel's work: on GPUs, a sum that torch's loss makes itself depends on the order of threads.
    """
    if logits.is_contiguous(memory_format=torch.channels_last) and not logits.is_contiguous():
        # The classes of a pixel lie side by side: a list of pixels is a view, and its kernels are the faster ones.
        logits, labels = logits.movedim(1, -1).flatten(0, 2), labels.flatten()
    losses = F.cross_entropy(_precise(logits), labels.long(), ignore_index=ignore_index, reduction="none")
    return losses.flatten()


def ohem_cross_entropy(
    logits: Tensor, labels: Tensor, threshold: float = 0.7, min_kept: int = 100_000, ignore_index: int = IGNORE
) -> Tensor:
    """Cross-entropy over hard pixels only (online hard example mining; Cityscapes' supervised loss).

    A pixel is kept where the probability of its label is at most max(threshold, the min_kept-th smallest such
    probability); with fewer than min_kept valid pixels all are kept.

    Args:
        logits: (B,C,H,W), already at label size.
        labels: (B,H,W) ids.
        threshold: probability in [0, 1].
        min_kept: K, pixels of the whole batch that are kept at least.

    Returns:
        Scalar mean over the kept pixels; 0, attached to the graph, where no pixel is valid.
    """
    losses = pixel_losses(logits, labels, ignore_index)
    valid = labels.flatten() != ignore_index
    # Ignored pixels sort last: with fewer than K valid ones the K-th is infinite, and everything is kept.
    prob = torch.exp(-losses.detach()).masked_fill(~valid, torch.inf)
    if min_kept > prob.numel():
        limit = prob.new_full((), torch.inf)
    elif min_kept > 0:
        # Not kthvalue, which on GPUs torch 2.6 refuses as non-deterministic (of equal values it names any).
        limit = prob.topk(min_kept, largest=False, sorted=False).values.max().clamp(min=threshold)
    else:
        limit = prob.new_full((), threshold)
    kept = valid & (prob <= limit)
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def symmetric_losses(logits: Tensor, labels: Tensor, weight: float) -> Tensor:
    """`pixel_losses` plus `weight` times the reverse cross-entropy -sum_c q_c log y_c, log 0 set to log 1e-4.

    With one-hot labels that is -log 1e-4 (1 - q_label): bounded, so that a wrong label cannot pull without end (U2PL's
    published code, branch with_AEL, `sym_ce`). 0 on ignored pixels.
    """
    losses = pixel_losses(logits, labels)
    return losses - weight * LOG_OF_ZERO * (1.0 - torch.exp(-losses)) if weight else losses


def unsupervised_loss(
    student_logits: Tensor, pseudo_labels: Tensor, reliable: Tensor, *, symmetric: float = 0.0
) -> Tensor:
    """L_u: cross-entropy on reliable pseudo-labels (paper, equations 3 and 8).

    The mean over reliable pixels is weighted by B*H*W / number of reliable pixels.

    Args:
        student_logits: (B,C,H,W), already at crop size.
        pseudo_labels: (B,H,W) ids, 255 on padding.
        reliable: bool (B,H,W).
        symmetric: weight of the reverse cross-entropy, see `symmetric_losses`.

    Returns:
        Scalar; 0, attached to the graph, where no pixel is reliable.
    """
    targets = pseudo_labels.masked_fill(~reliable, IGNORE)
    number = (targets != IGNORE).sum().clamp(min=1)
    return targets.numel() / number * (symmetric_losses(student_logits, targets, symmetric).sum() / number)


def confidence_loss(
    student_logits: Tensor,
    pseudo_labels: Tensor,
    confidence: Tensor,
    valid: Tensor,
    threshold: float,
    *,
    symmetric: float = 0.0,
) -> Tensor:
    """FixMatch's consistency: cross-entropy where the teacher is sure, divided by the number of all valid pixels.

    While few pixels are confident, the loss is small: that is its warm-up.

    Args:
        student_logits: (B,C,H,W), already at crop size.
        pseudo_labels: (B,H,W) ids, 255 where nothing is to be learnt.
        confidence: (B,H,W), the teacher's probability of them.
        valid: bool (B,H,W), no padding.
        threshold: least confidence that counts.
        symmetric: weight of the reverse cross-entropy, see `symmetric_losses`.

    Returns:
        Scalar; 0, attached to the graph, where no pixel is valid.
    """
    targets = pseudo_labels.masked_fill(~(valid & (confidence >= threshold)), IGNORE)
    return symmetric_losses(student_logits, targets, symmetric).sum() / valid.sum().clamp(min=1)


def accuracy(pseudo_labels: Tensor, labels: Tensor, where: Tensor) -> Tensor:
    """Share of right pseudo-labels (B,H,W) among the pixels of `where` that have a label; NaN where there is none."""
    counted = where & (labels != IGNORE)
    return ((pseudo_labels == labels) & counted).sum() / counted.sum()


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors (...,D) of length 1, in float32 or better."""
    return F.normalize(_precise(vectors), dim=-1, eps=1e-8)


def nce_from_similarity(to_positive: Tensor, to_negatives: Tensor) -> Tensor:
    """-log of the positive's share: its similarity, and the logsumexp of the negatives'; any shape, both alike."""
    return torch.logaddexp(to_positive, to_negatives) - to_positive


class SampledLogSumExp(torch.autograd.Function):
    """log sum_n exp(anchor . negative_n / temperature) over negatives that are named by their rows in a table.

    The gathered negatives, by far the largest tensor of the loss, exist only for a few classes at a time: their part in
    the gradient, the softmax-weighted mean, is computed in the same visit. Gradients flow to the anchors alone.
    """

    @staticmethod
    def forward(ctx, anchors: Tensor, table: Tensor, rows: Tensor, temperature: float) -> Tensor:
        """anchors (S,A,D) float, table (R,D) of any type, rows int64 (S,A,N) -> (S,A)."""
        of_class = rows[0].numel() * table.shape[1] * anchors.element_size()
        at_once = max(1, NEGATIVES_BYTES // of_class)
        parts = zip(anchors.split(at_once), rows.split(at_once), strict=True)
        results, means = zip(*(_visit(part, table, r, temperature) for part, r in parts), strict=True)
        ctx.save_for_backward(torch.cat(means))
        return torch.cat(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        """d/d anchor = grad * mean / temperature; the division is done already."""
        (means,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * means, None, None, None


def _visit(anchors: Tensor, table: Tensor, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    negatives = table.index_select(0, rows.flatten()).to(anchors.dtype).unflatten(0, rows.shape)
    similarity = torch.einsum("sad,sand->san", anchors, negatives) / temperature
    result = similarity.logsumexp(dim=-1)
    weights = (similarity - result.unsqueeze(-1)).exp() / temperature
    return result, torch.einsum("san,sand->sad", weights, negatives)


def draw_pixels(mask: Tensor, number: int) -> Tensor:
    """For each row of a bool (C,P) mask, `number` columns where it holds, uniformly with replacement: int64 (C,number).

    Rows without any give arbitrary columns.
    """
    place = mask.cumsum(dim=1, dtype=torch.int32)
    count = place[:, -1:]
    draw = torch.rand(len(mask), number, device=mask.device, dtype=precise_dtype(mask.device))
    wanted = torch.minimum((draw * count).to(torch.int32), count - 1) + 1
    return torch.searchsorted(place, wanted).clamp(max=mask.shape[1] - 1)


def class_means(vectors: Tensor, mask: Tensor) -> Tensor:
    """Mean of the vectors (P,D) under each row of a bool (C,P) mask (paper, equation 12): (C,D); zeros if empty."""
    with torch.autocast(vectors.device.type, enabled=False):
        total = mask.to(vectors.dtype) @ vectors
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def visited_classes(used: Tensor, bound: int) -> Tensor:
    """The classes to compute L_c for: all that are used, or a random `bound` of them; int64 (S,).

    S must not depend on values that lie on an accelerator, since reading them would stall it: there S is the bound, and
    unused classes fill it up. A CPU reads its own counts at no cost.
    """
    bound = min(bound, len(used))
    if used.device.type == "cpu":
        bound = min(bound, max(1, int(used.sum())))
    lottery = torch.rand(len(used), device=used.device) + used
    return lottery.topk(bound).indices


def contrastive_loss(
    student_representation: Tensor,
    teacher_representation: Tensor,
    anchors: Tensor,
    queues: ClassQueues,
    *,
    positives: Tensor | None = None,
    prototypes: Tensor | None = None,
    num_anchors: int = 256,
    num_negatives: int = 50,
    temperature: float = 0.5,
    max_classes: int = 32,
) -> tuple[Tensor, Tensor]:
    """L_c: each class's anchors against its positive and negatives from its queue (paper, equation 4).

    Args:
        student_representation: (B,D,h,w), gradients flow here.
        teacher_representation: (B,D,h,w), detached; its mean over a class's anchor pixels is the positive.
        anchors: bool (B,C,h,w), see `anchor_mask`.
        queues: the negatives of each class, this step's already pushed.
        positives: bool (B,C,h,w), pixels of the positive where they are not the anchors' (variant `official`).
        prototypes: (C,D), the positives where they are not these pixels' mean.
        num_anchors, num_negatives: drawn with replacement, the negatives for each anchor.
        max_classes: bound on time and memory; of more classes a random choice is used, whose mean is unbiased.

    Returns:
        The mean over classes that have an anchor and a non-empty queue (0, attached to the graph, where none has), and
        which classes these were, bool (C,).
    """
    mask = anchors.transpose(0, 1).flatten(1)
    used = mask.any(dim=1) & (queues.fill > 0)
    classes = visited_classes(used, max_classes)
    counted, mask = used[classes], mask[classes]
    positive_mask = mask if positives is None else positives.transpose(0, 1).flatten(1)[classes]
    student = _precise(student_representation).movedim(1, -1).flatten(0, 2)
    teacher = _precise(teacher_representation.detach()).movedim(1, -1).flatten(0, 2)
    drawn = unit_vectors(F.embedding(draw_pixels(mask, num_anchors), student))
    rows = queues.draw(classes, num_anchors * num_negatives).unflatten(1, (num_anchors, num_negatives))
    with torch.autocast(drawn.device.type, enabled=False):
        means = class_means(teacher, positive_mask) if prototypes is None else prototypes[classes]
        means = unit_vectors(means)
        to_positive = torch.einsum("sad,sd->sa", drawn, means) / temperature
        to_negatives = SampledLogSumExp.apply(drawn, queues.storage, rows, temperature)
    per_class = nce_from_similarity(to_positive, to_negatives).mean(dim=1)
    return per_class.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1), used
