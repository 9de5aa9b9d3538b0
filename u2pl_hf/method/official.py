"""Variant `official`: anchors, positives and negatives as the published code chooses them, not as the paper does.

Kept so that the published numbers can be reproduced and the difference measured. Six things differ from the paper:

1. Only image 0 of the labelled and image 0 of the unlabelled batch have classes, several per pixel: `multi_hot`.
2. Labelled pixels are never negatives: their label would have to be c and not c at once.
3. Unlabelled negatives of c need c in their own multi-hot map as well as the rank window.
4. Anchors are listed by class id but read by the place among the classes present: `meet_queues`.
5. Unlabelled anchors are the alpha share of lowest entropy, not all reliable pixels: `lowest_entropy`.
6. The positive is the mean over all pixels of the class that may hold anchors, whatever their probability; negatives
   need p(c) < 1; the loss is the mean over all classes present, and 0 with fewer than two.

For measuring what each costs, single ones can be put right: `fixed` names them by number. With all six put right,
pixels and loss are the paper's.

Shapes: B images, C classes, h x w the feature size; labelled images (`_l`) come first, unlabelled ones (`_u`) after.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from u2pl_hf.method import losses
from u2pl_hf.method.pseudo_labels import IGNORE, masked_quantile, negative_mask, one_hot_mask
from u2pl_hf.method.queues import ClassQueues

DEFECTS = range(1, 7)


class Selection(NamedTuple):
    """Which pixels serve each class, bool (B,C,h,w) each."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


def multi_hot(classes: Tensor, num_classes: int) -> Tensor:
    """(B,h,w) ids -> bool (B,C,h,w): at each pixel image 0 gets the classes of all images, the others none.

    An ignored pixel adds class 0, except in image 0, where it takes all classes away.
    """
    union = one_hot_mask(classes.masked_fill(classes == IGNORE, 0), num_classes).any(dim=0)
    result = classes.new_zeros(len(classes), *union.shape, dtype=torch.bool)
    result[0] = union & (classes[0] != IGNORE)
    return result


def lowest_entropy(entropy: Tensor, valid: Tensor, alpha: float) -> Tensor:
    """The valid pixels up to the alpha quantile of entropy: bool, the shape of `entropy`; none where none is valid."""
    return valid & (entropy <= masked_quantile(entropy, alpha, valid))


def select_pixels(
    labels_l: Tensor,
    pseudo_labels_u: Tensor,
    confident_u: Tensor,
    unreliable_u: Tensor,
    prob: Tensor,
    *,
    anchor_threshold: float,
    low_rank: int,
    high_rank: int,
    fixed: Collection[int] = (),
) -> Selection:
    """Anchors, positives and negatives of each class.

    Args:
        labels_l: (B_l,h,w) ids, 255 = ignore.
        pseudo_labels_u: (B_u,h,w) ids, 255 on padding only.
        confident_u: bool (B_u,h,w), see `lowest_entropy`.
        unreliable_u: bool (B_u,h,w), entropy at or above its (1 - alpha) quantile.
        prob: (B_l + B_u,C,h,w) teacher probabilities.
        anchor_threshold: delta_p.
        low_rank, high_rank: r_l and r_h.
        fixed: defects that are put right.
    """
    to_classes = one_hot_mask if 1 in fixed else multi_hot
    classes_l, classes_u = (to_classes(ids, prob.shape[1]) for ids in (labels_l, pseudo_labels_u))
    positives = torch.cat([classes_l, classes_u & confident_u.unsqueeze(1)])
    anchors = positives & (prob > anchor_threshold)
    labelled = len(labels_l)
    negatives = negative_mask(labels_l, prob[:labelled], unreliable_u, prob[labelled:], low_rank, high_rank)
    negatives_l, negatives_u = negatives.split([labelled, len(unreliable_u)])
    if 2 not in fixed:
        negatives_l = torch.zeros_like(negatives_l)
    if 3 not in fixed:
        negatives_u = negatives_u & classes_u
    negatives = torch.cat([negatives_l, negatives_u])
    if 6 not in fixed:
        negatives = negatives & (prob < 1)
    return Selection(anchors, anchors if 6 in fixed else positives, negatives)


def meet_queues(mask: Tensor, present: Tensor) -> Tensor:
    """Give the queue of the k-th class present the pixels of class id k; queues of absent classes get none.

    With every class present each keeps its own. mask (B,C,h,w), present (C,), both bool -> bool (B,C,h,w).
    """
    place = (present.cumsum(dim=0) - 1).clamp(min=0)
    return mask[:, place] & present.view(1, -1, 1, 1)


def contrastive_loss(
    student_representation: Tensor,
    teacher_representation: Tensor,
    anchors: Tensor,
    queues: ClassQueues,
    *,
    positives: Tensor,
    fixed: Collection[int] = (),
    **options,
) -> tuple[Tensor, Tensor]:
    """L_c with the published pairing of classes and queues; arguments and result as in `losses.contrastive_loss`.

    A class is present where it has a positive, even if no anchor. The second result says whose queues were used.
    """
    present = positives.transpose(0, 1).flatten(1).any(dim=1)
    if 4 not in fixed:
        anchors, positives = meet_queues(anchors, present), meet_queues(positives, present)
    representations = student_representation, teacher_representation
    loss, used = losses.contrastive_loss(*representations, anchors, queues, positives=positives, **options)
    if 6 in fixed:
        return loss, used
    number = present.sum()
    used &= number >= 2
    # The mean over classes in use becomes the mean over classes present: one that is not in use counts as 0.
    return loss * used.sum() / number.clamp(min=1), used
