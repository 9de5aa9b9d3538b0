"""The parts of AEL (adaptive equalization learning, Hu et al., NeurIPS 2021): badly known classes are seen more often.

How well a class is known is its confidence c, and it decides what is pasted into labelled images, what is mixed into
unlabelled ones, and which pixels count in the consistency loss. `ael.py` joins the parts.

Shapes: B images, C classes, H x W the crop, h x w the feature size; 255 means ignore. Boxes are int64 (B,4): top, left,
height, width, in pixels.
"""

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from u2pl_hf.method.losses import pixel_losses
from u2pl_hf.method.mixing import box_masks
from u2pl_hf.method.pseudo_labels import IGNORE, nearest_on_corners, one_hot_mask
from u2pl_hf.method.queues import several_processes

# A class belongs to an image's categories from this share of the crop on, and a component is large from this one on.
CATEGORY_SHARE = 0.01
COMPONENT_SHARE = 0.005
# Of the confidence in each class; AEL's 0.999, from 0 on, is for runs of 50,000 steps.
MOMENTUM = 0.99


class ConfidenceBank(nn.Module):
    """Confidence c in [0, 1) per class: the moving average of the student's mean probability of the true class.

    It begins at 0, as published, or (`at_once`) with the first mean of a class that comes; it is the same on all
    processes. It moves once per pass, and the `passes` of a step are to move it as one would that has all their images.
    """

    def __init__(self, num_classes: int, momentum: float = 0.999, *, at_once: bool = False, passes: int = 1):
        super().__init__()
        self.momentum, self.at_once = momentum ** (1.0 / passes), at_once
        self.register_buffer("confidence", torch.zeros(num_classes))

    def learn(self, logits: Tensor, labels: Tensor) -> None:
        """`update` with labels (B,H,W) of the crop, at feature size; logits may be of more images, which come later."""
        logits = logits.detach()[: len(labels)]
        self.update(logits, nearest_on_corners(labels, logits.shape[-2:]))

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch: logits (B,C,h,w) of the student, labels (B,h,w). Absent classes keep their value."""
        own = one_hot_mask(labels, logits.shape[1])
        prob = logits.float().softmax(dim=1) * own
        sums = torch.stack([prob.sum(dim=(0, 2, 3)), own.sum(dim=(0, 2, 3)).float()])
        if several_processes():
            dist.all_reduce(sums)
        mean = sums[0] / sums[1].clamp(min=1)
        moved = torch.lerp(mean, self.confidence, self.momentum)
        moved = torch.where(self.confidence > 0, moved, mean) if self.at_once else moved
        # An overflow in half precision must not stay here for good.
        known = (sums[1] > 0) & mean.isfinite()
        self.confidence.copy_(torch.where(known, moved, self.confidence))


class CategoryBank(nn.Module):
    """Which classes each unlabelled image shows, as the teacher saw it last: bool (rows,C), equal on all processes."""

    def __init__(self, rows: int, num_classes: int):
        super().__init__()
        self.register_buffer("holds", torch.zeros(rows, num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Replace what is known of rows (K,) by their pseudo-labels (K,h,w): classes on at least 1 % of the crop."""
        found = one_hot_mask(labels, self.holds.shape[1]).float().mean(dim=(2, 3)) >= CATEGORY_SHARE
        packed = torch.cat([rows.unsqueeze(1), found], dim=1)
        if several_processes():
            everyone = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, packed)
            packed = torch.cat(everyone)
        rows, found = packed[:, 0], packed[:, 1:].bool()
        # Of a row that comes twice the last one counts, whatever order a device writes in.
        same = rows.unsqueeze(1) == rows
        last = (same * torch.arange(1, len(rows) + 1, device=rows.device)).argmax(dim=1)
        self.holds[rows] = found[last]

    def _load_from_state_dict(self, state: dict, prefix: str, *args) -> None:
        # Another number of processes has a reservoir of other rows: it is to be learnt anew.
        if state[f"{prefix}holds"].shape != self.holds.shape:
            state = state | {f"{prefix}holds": torch.zeros_like(self.holds)}
        super()._load_from_state_dict(state, prefix, *args)


def _waiting_times(logits: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Exponential times with rates exp(logits): the order of arrival is that of draws without repetition.

    torch.multinomial would make the host wait, to see whether its weights are weights.
    """
    return torch.empty(shape, device=logits.device).exponential_(generator=generator) * (-logits).exp()


def draw_rare_classes(confidence: Tensor, rare: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    """`number` different classes out of rare (R,), drawn with probability softmax(sqrt(1 - c)): int64 (number,)."""
    lottery = _waiting_times((1.0 - confidence[rare]).sqrt(), (len(rare),), generator)
    return rare[lottery.topk(number, largest=False).indices]


def draw_uncertain_classes(confidence: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    """`number` classes, drawn with replacement and probability softmax(1 - c): int64 (number,)."""
    return _waiting_times(1.0 - confidence, (number, len(confidence)), generator).argmin(dim=1)


def draw_rows(holds: Tensor, generator: torch.Generator | None) -> Tensor:
    """For each line of bool (K,R) one of the rows that hold, uniformly; one of all rows where none does: int64 (K,)."""
    return (torch.rand(holds.shape, generator=generator, device=holds.device) + holds).argmax(dim=1)


def paste_classes(
    x: Tensor, labels: Tensor, donor_x: Tensor, donor_labels: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adaptive copy-paste: the donors' pixels of `classes` (K,) over images (B,3,H,W) and labels (B,H,W).

    Returns:
        images, labels, and which pixels are pasted, bool (B,H,W).
    """
    pasted = (donor_labels.unsqueeze(-1) == classes).any(dim=-1)
    return torch.where(pasted.unsqueeze(1), donor_x, x), torch.where(pasted, donor_labels, labels), pasted


def component_boxes(masks: np.ndarray, lottery: np.ndarray) -> np.ndarray:
    """The bounding box of a random connected component (8 neighbours) of each mask.

    Args:
        masks: uint8 (B,H,W), 1 where the class is.
        lottery: float (B,) in [0, 1), decides the component.

    Returns:
        int64 (B,4); all 0 where no component is larger than 0.5 % of the crop.
    """
    boxes = np.zeros((len(masks), 4), np.int64)
    for box, mask, place in zip(boxes, masks, lottery, strict=True):
        _, _, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        # The first one is everything else.
        large = statistics[1:][statistics[1:, cv2.CC_STAT_AREA] > COMPONENT_SHARE * mask.size]
        if len(large):
            left, top, width, height, _ = large[int(place * len(large))]
            box[:] = top, left, height, width
    return boxes


def half_boxes(number: int, height: int, width: int, device: torch.device) -> Tensor:
    """Random boxes of half the area: the height a share 0.5^U(0,1) of the crop's, the position uniform; (number,4)."""
    lottery = torch.rand(3, number, device=device)
    box_h = (height * 0.5 ** lottery[0]).round()
    box_w = (height * width / 2 / box_h).round().clamp(max=width)
    top, left = (lottery[1] * (height - box_h + 1)).floor(), (lottery[2] * (width - box_w + 1)).floor()
    return torch.stack([top, left, box_h, box_w], dim=1).long()


def draw_class_boxes(labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Where adaptive CutMix takes pixels from: a random component of one class per image, else half the area.

    Components are found on the host, for which all masks travel there at once; the only wait of a step.

    Args:
        labels: pseudo-labels (B,H,W) of the images to take from.
        classes: int64 (B,).

    Returns:
        bool (B,H,W), True inside the box, and bool (B,), whether it is that of a component.
    """
    masks = (labels == classes.view(-1, 1, 1)).to(torch.uint8).cpu().numpy()
    found = torch.from_numpy(component_boxes(masks, torch.rand(len(masks)).numpy()))
    found = found.to(labels.device, non_blocking=True)
    is_component = found[:, 2] > 0
    boxes = torch.where(is_component.unsqueeze(1), found, half_boxes(len(masks), *labels.shape[1:], labels.device))
    return box_masks(*boxes.unsqueeze(-1).unbind(dim=1), *labels.shape[1:]), is_component


def keep_rates(confidence: Tensor) -> Tensor:
    """How often a pixel counts that the student gives to a class: (1 - c) / max(1 - c), in [0, 1]: (C,) -> (C,)."""
    lack = 1.0 - confidence
    return lack / lack.max().clamp(min=torch.finfo(lack.dtype).tiny)


def equalised_consistency(
    student_logits: Tensor, targets: Tensor, target_confidence: Tensor, confidence: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the teacher's labels: sure ones weigh more, and pixels of well-known classes are left out often.

    A pixel weighs the square of the teacher's probability of its label, times keep ~ Bernoulli(keep_rates of the
    student's class). The sum is over the kept weight.

    Args:
        student_logits: (B,C,H,W), already at crop size.
        targets: (B,H,W) ids, 255 where nothing is to be learnt.
        target_confidence: (B,H,W), the teacher's probability of the targets.
        confidence: (C,), see ConfidenceBank.

    Returns:
        Scalar loss (0, attached to the graph, where no pixel is kept), and the share of the targets that is kept.
    """
    with torch.no_grad():
        guess = student_logits.movedim(1, -1).argmax(dim=-1)
        kept = (torch.rand(guess.shape, device=guess.device) < keep_rates(confidence)[guess]) & (targets != IGNORE)
        weight = (target_confidence.square() * kept).flatten()
        total = weight.sum()
        share = kept.sum() / (targets != IGNORE).sum().clamp(min=1)
    loss = (pixel_losses(student_logits, targets) * weight).sum()
    return loss / torch.where(total > 0, total, torch.ones_like(total)), share
