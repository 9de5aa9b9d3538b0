"""Strong augmentation of unlabelled images after the teacher has labelled them: CutMix, CutOut, ClassMix.

Image and pseudo-label change together; the valid mask is the pseudo-label's 255.
Shapes: images (B,3,H,W) normalised, pseudo-labels (B,H,W). Inputs are not changed.
"""

import torch
from torch import Tensor

from u2pl_hf.method.pseudo_labels import IGNORE, one_hot_mask


def draw_boxes(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """One random box of half the area per image: bool (B,H,W), True inside.

    The width is uniform over the integers floor(W/2 + 1) .. W - 1, the height is half the area over the width, and the
    position is uniform over all places inside the image.
    """
    smallest = width // 2 + 1
    box_w = torch.randint(smallest, max(width, smallest + 1), (batch, 1), device=device)
    box_h = (height * width / 2 / box_w).round().clamp(max=height)
    left = (torch.rand(batch, 1, device=device) * (width - box_w + 1)).floor()
    top = (torch.rand(batch, 1, device=device) * (height - box_h + 1)).floor()
    return box_masks(top, left, box_h, box_w, height, width)


def box_masks(top: Tensor, left: Tensor, box_h: Tensor, box_w: Tensor, height: int, width: int) -> Tensor:
    """Boxes, each number (B,1), as bool (B,height,width), True inside."""
    inside_x = _between(torch.arange(width, device=left.device), left, left + box_w)
    inside_y = _between(torch.arange(height, device=top.device), top, top + box_h)
    return inside_y.unsqueeze(2) & inside_x.unsqueeze(1)


def _between(values: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return (values >= start) & (values < end)


def take_from_next(taken: Tensor, *maps: Tensor) -> list[Tensor]:
    """Where bool (B,H,W) holds, pixels of the next image of the batch: maps (B,H,W) or (B,K,H,W), all alike."""
    return [torch.where(taken if m.dim() == 3 else taken.unsqueeze(1), m.roll(-1, 0), m) for m in maps]


def cutmix(images: Tensor, pseudo_labels: Tensor, num_classes: int) -> list[Tensor]:
    """Inside a random box, pixels come from the next image of the batch."""
    boxes = draw_boxes(len(images), *images.shape[-2:], images.device)
    return take_from_next(boxes, images, pseudo_labels)


def cutout(images: Tensor, pseudo_labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Inside a random box the image is 0 and the pseudo-label 255."""
    boxes = draw_boxes(len(images), *images.shape[-2:], images.device)
    return images.masked_fill(boxes.unsqueeze(1), 0.0), pseudo_labels.masked_fill(boxes, IGNORE)


def classmix(images: Tensor, pseudo_labels: Tensor, num_classes: int) -> list[Tensor]:
    """A random half (rounded down) of each image's pseudo-classes stays; all else comes from the next image."""
    present = one_hot_mask(pseudo_labels, num_classes).flatten(2).any(dim=2)
    lottery = torch.rand(present.shape, device=images.device).masked_fill(~present, -1.0)
    place = lottery.argsort(dim=1, descending=True).argsort(dim=1)
    kept_classes = present & (place < present.sum(dim=1, keepdim=True) // 2)
    ids = pseudo_labels.clamp(max=num_classes - 1).long()
    kept = kept_classes.gather(1, ids.flatten(1)).view_as(ids) & (pseudo_labels != IGNORE)
    return take_from_next(~kept, images, pseudo_labels)


STRONG_AUGMENTATIONS = {"cutmix": cutmix, "cutout": cutout, "classmix": classmix}
