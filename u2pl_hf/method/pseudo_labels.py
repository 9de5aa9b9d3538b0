"""From teacher output to pseudo-labels, entropy, reliable and unreliable pixels, anchors and negatives.

Shapes: B images, C classes, H x W the crop, h x w the feature size (stride 4); 255 means ignore.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl_hf.constants import IGNORE

if TYPE_CHECKING:
    from u2pl_hf.method.alignment import Alignment

# Below it, a CPU is faster with the classes of a pixel apart in memory.
FEW_CLASSES = 16


@dataclass(frozen=True)
class PseudoLabelled:
    """What the student is given of the unlabelled images, mixed.

    Attributes:
        x: (B_u,3,H,W).
        labels: the teacher's labels, int64 (B_u,H,W), 255 on padding.
        prob: the teacher's probability of each label (B_u,H,W).
        y: true labels (B_u,H,W), where someone wants to watch.
        stats: the teacher's mean confidence, and what else there is to tell.
        weak: x without its changes of colour (B_u,3,H,W), where it has any.
    """

    x: Tensor
    labels: Tensor
    prob: Tensor
    y: Tensor | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)
    weak: Tensor | None = None

    def counts(self, num_classes: int) -> dict[str, Tensor]:
        """How many labels each class has, int64 (C,), in every fourth row and column, which tell the shares as well."""
        return {"pseudo_share_per_class": one_hot_mask(self.labels[:, ::4, ::4], num_classes).sum(dim=(0, 2, 3))}


@dataclass(frozen=True)
class Split:
    """One split of pixels (N,H,W) by entropy, which serves both losses: reliable and unreliable are bool (N,H,W)."""

    entropy: Tensor
    valid: Tensor
    reliable: Tensor
    unreliable: Tensor
    alpha: float
    gamma: Tensor

    def part(self, place: slice) -> "Split":
        """Of some of the images."""
        maps = (value[place] for value in (self.entropy, self.valid, self.reliable, self.unreliable))
        return Split(*maps, self.alpha, self.gamma)


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64, for positions among millions of elements; float32 on Apple GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize (B,C,h,w) -> (B,C,*size) in float32; every resize of the method uses align_corners=True."""
    logits = logits.float()
    few = logits.device.type == "cpu" and logits.shape[1] < FEW_CLASSES
    if few:
        # A CPU's kernels take whole vectors of one axis: of a row, where the classes do not fill one.
        logits = logits.contiguous()
    if logits.shape[-2:] == torch.Size(size):
        return logits
    if few and min(logits.shape[-2:]) > 1:
        # Up and down, then across: as matrix products, whose gradient is several times as fast there.
        rows, columns = (_bilinear(n, m) for n, m in zip(logits.shape[-2:], size, strict=True))
        with torch.autocast("cpu", enabled=False):
            return rows @ (logits @ columns.T)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


@cache
def _bilinear(n: int, m: int) -> Tensor:
    """Weights (m, n) that resize n > 1 points to m, corners aligned."""
    place = torch.arange(m, dtype=torch.float64) * ((n - 1) / max(m - 1, 1))
    below = place.long().clamp(max=n - 2)
    weights = torch.zeros(m, n, dtype=torch.float64)
    weights.scatter_(1, torch.stack([below, below + 1], dim=1), torch.stack([1 - place + below, place - below], dim=1))
    return weights.float()


def label_pixels(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The most probable class of each pixel and its probability: (B,C,h,w) -> int64 and float32 (B,*size)."""
    logits = resize_logits(logits, size)
    if logits.is_contiguous():
        prob, labels = logits.softmax(dim=1).max(dim=1)
        return labels, prob
    # Classes last, as they lie in memory: several times faster over the whole crop.
    prob, labels = logits.movedim(1, -1).softmax(dim=-1).max(dim=-1)
    return labels, prob


def teacher_logits(teacher, images: Tensor, valid: Tensor, alignment: "Alignment | None") -> Tensor:
    """The teacher's logits (B,C,h,w) of unlabelled images, aligned where an `Alignment` is given, which learns them."""
    logits = teacher(images, output_representation=False, output_auxiliary=False).logits
    if alignment is None:
        return logits
    alignment.learn(logits, valid)
    return alignment.align(logits)


def label_images(
    teacher, images: Tensor, valid: Tensor, alignment: "Alignment | None" = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The teacher's labels of images (B,3,H,W), 255 where bool (B,H,W) `valid` does not hold, and their probability.

    See `teacher_logits`.

    Returns:
        labels int64 (B,H,W), probability float32 (B,H,W), and the mean of it to log.
    """
    logits = teacher_logits(teacher, images, valid, alignment)
    labels, prob = label_pixels(logits, images.shape[-2:])
    confidence = (prob * valid).sum() / valid.sum().clamp(min=1)
    return labels.masked_fill(~valid, IGNORE), prob, {"confidence": confidence}


def nearest_on_corners(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest sampling of (B,H,W) maps on the align_corners grid -> (B,*size); 513 -> 129 is every fourth pixel.

    `F.interpolate(mode="nearest")` samples another grid, which would shift labels against the features.
    """
    rows, columns = (_corner_grid(n, m, maps.device) for n, m in zip(maps.shape[-2:], size, strict=True))
    return maps[:, rows][:, :, columns]


def _corner_grid(n: int, m: int, device: torch.device) -> Tensor:
    # In whole numbers, so that the place does not depend on rounding: i (n - 1) / (m - 1), to the nearest.
    intervals = max(m - 1, 1)
    return (torch.arange(m, device=device) * (2 * (n - 1)) + intervals) // (2 * intervals)


def pixel_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the softmax over dim 1: (B,C,H,W) -> (B,H,W), in [0, log C] (paper, equation 5).

    Computed in float32 at least, whatever autocast or the input's type say.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # log S - sum(exp(x) x) / S with x = logits - max: no logarithm per class, and quick in channels_last too.
    below_top = logits - logits.amax(dim=1, keepdim=True)
    weight = below_top.exp()
    total = weight.sum(dim=1)
    return total.log() - (weight * below_top).sum(dim=1) / total


def masked_quantile(values: Tensor, q: float, mask: Tensor) -> Tensor:
    """The q-quantile of `values` where `mask` holds, with linear interpolation as in numpy.quantile.

    Args:
        values: floating point, any shape and number of elements.
        q: in [0, 1].
        mask: bool, same shape.

    Returns:
        A scalar tensor of the type of `values`; NaN where the mask is empty.

    Only the shorter tail is selected, with a length known beforehand: the count under the mask stays on the device.
    """
    flat, mask = values.flatten(), mask.flatten()
    upper = q >= 0.5
    tail = math.ceil((flat.numel() - 1) * (1 - q if upper else q)) + 2
    hidden = flat.masked_fill(~mask, -math.inf if upper else math.inf)
    ordered = hidden.topk(min(tail, flat.numel()), largest=upper).values
    last = mask.sum() - 1
    position = last.clamp(min=0).to(precise_dtype(values.device)) * q
    low = position.floor().long()
    high = torch.minimum(low + 1, last.clamp(min=0))
    places = torch.stack([low, high])
    places = last.clamp(min=0) - places if upper else places
    below, above = ordered[places].to(position.dtype)
    result = torch.where(low == high, below, torch.lerp(below, above, position - low))
    return torch.where(last >= 0, result, math.nan).to(values.dtype)


def class_quantiles(values: Tensor, labels: Tensor, q: float, num_classes: int) -> Tensor:
    """The q-quantile of `values` under each class of `labels`, any shape, both alike: (C,), NaN where there is none.

    As `masked_quantile` of each class, in one sort of all values: nothing depends on how many pixels a class has.
    """
    flat, labels = values.flatten(), labels.flatten().long()
    order = flat.argsort()
    order = order[labels[order].argsort(stable=True)]
    edges = torch.searchsorted(labels[order], torch.arange(num_classes + 1, device=labels.device))
    first, number = edges[:-1], edges.diff()
    last = (number - 1).clamp(min=0)
    position = last.to(precise_dtype(values.device)) * q
    low = position.floor().long()
    # A class without pixels may begin behind the last one.
    places = (first + torch.stack([low, torch.minimum(low + 1, last)])).clamp(max=flat.numel() - 1)
    below, above = flat[order][places].to(position.dtype)
    return torch.where(number > 0, torch.lerp(below, above, position - low), math.nan).to(values.dtype)


def split_at(entropy: Tensor, valid: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(reliable, unreliable): valid pixels with entropy below gamma, and at or above it."""
    below = entropy < gamma
    return valid & below, valid & (entropy >= gamma)


def split_by_entropy(entropy: Tensor, valid: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Split pixels at gamma, the (1 - alpha) quantile of the entropy over valid pixels (paper, equation 6).

    Args:
        entropy: (B,H,W) in nats.
        valid: bool (B,H,W), pixels that have a pseudo-label.
        alpha: share of unreliable pixels, in [0, 1].

    Returns:
        reliable, unreliable: bool (B,H,W), disjoint, together equal to `valid`.
    """
    return split_at(entropy, valid, masked_quantile(entropy, 1.0 - alpha, valid))


def one_hot_mask(classes: Tensor, num_classes: int) -> Tensor:
    """(B,h,w) ids -> bool (B,C,h,w); ignored pixels belong to no class."""
    ids = torch.arange(num_classes, device=classes.device).view(1, -1, 1, 1)
    return classes.unsqueeze(1) == ids


def anchor_mask(classes: Tensor, prob: Tensor, threshold: float) -> Tensor:
    """Pixels that may be anchors of each class (paper, equations 9 to 11).

    Args:
        classes: (B,h,w) ids: labels of labelled images first, then pseudo-labels with 255 on all but reliable pixels.
        prob: (B,C,h,w) teacher probabilities.
        threshold: delta_p; the class's own probability must be above it.

    Returns:
        bool (B,C,h,w).
    """
    own = prob.gather(1, classes.clamp(max=prob.shape[1] - 1).long().unsqueeze(1)).squeeze(1)
    return one_hot_mask(classes.masked_fill(~(own > threshold), IGNORE), prob.shape[1])


def top_classes(prob: Tensor, number: int) -> Tensor:
    """The classes of the `number` largest probabilities, largest first: (B,C,h,w) -> int64 (B,h,w,min(number,C)).

    The place of class c in that list is its rank O(c). Equal probabilities may come in any order.
    """
    # Selection costs less than sorting all classes.
    return prob.movedim(1, -1).topk(min(number, prob.shape[1]), dim=-1).indices


def mark_classes(classes: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Bool (B,C,h,w): the listed classes (B,h,w,K), all different, of the pixels where bool (B,h,w) holds."""
    marks = torch.zeros(*where.shape, num_classes, dtype=torch.bool, device=where.device)
    return marks.scatter_(-1, classes, where.unsqueeze(-1).expand_as(classes)).movedim(-1, 1)


def negative_mask(
    labels_l: Tensor, prob_l: Tensor, unreliable_u: Tensor, prob_u: Tensor, low_rank: int, high_rank: int
) -> Tensor:
    """Pixels that qualify as negatives of each class (paper, equations 13 to 16).

    A labelled pixel of another class qualifies where the teacher finds the class likely (rank below low_rank); an
    unreliable pixel where the class is unlikely (rank in [low_rank, high_rank)).

    Args:
        labels_l: (B_l,h,w) ids, 255 = ignore.
        prob_l: (B_l,C,h,w) teacher probabilities.
        unreliable_u: bool (B_u,h,w), without padding.
        prob_u: (B_u,C,h,w) teacher probabilities.
        low_rank, high_rank: r_l and r_h.

    Returns:
        bool (B_l + B_u,C,h,w), labelled images first.
    """
    num_classes, valid = prob_l.shape[1], labels_l != IGNORE
    labelled = mark_classes(top_classes(prob_l, low_rank), valid, num_classes)
    own = labels_l.masked_fill(~valid, 0).long().unsqueeze(1)
    # No pixel is a negative of its own class; an ignored one is none of any.
    labelled.scatter_(1, own, False)
    unlikely = top_classes(prob_u, high_rank)[..., low_rank:]
    return torch.cat([labelled, mark_classes(unlikely, unreliable_u, num_classes)])


def default_low_rank(num_classes: int) -> int:
    """r_l for a number of classes: the paper's 3, less where fewer than six classes would leave no negatives."""
    return max(1, min(3, num_classes // 2))
