"""The contrastive part as one would first write it: a loop over classes, queues on the host, one percentile per use.

It computes the same as `u2pl_hf.method` and serves as the yardstick of step.py.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class PlainQueues:
    """A list of host tensors, grown by concatenation and cut at the front."""

    def __init__(self, lengths: list[int], dim: int):
        self.lengths = lengths
        self.keys = [torch.zeros(0, dim) for _ in lengths]

    def push(self, class_id: int, keys: Tensor) -> None:
        """Append keys (K,D); the oldest leave."""
        joined = torch.cat([self.keys[class_id], keys.cpu()])
        self.keys[class_id] = joined[-self.lengths[class_id] :]


def pseudo_label(logits: Tensor, size: tuple[int, int], valid: Tensor) -> Tensor:
    """Upsample, softmax, argmax."""
    prob = F.softmax(F.interpolate(logits, size, mode="bilinear", align_corners=True), dim=1)
    labels = prob.argmax(1)
    labels[~valid] = 255
    return labels


def split(logits: Tensor, size: tuple[int, int], pseudo_labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Reliable and unreliable pixels, the threshold found on the host."""
    prob = F.softmax(F.interpolate(logits, size, mode="bilinear", align_corners=True), dim=1)
    entropy = -(prob * torch.log(prob + 1e-10)).sum(1)
    valid = pseudo_labels != 255
    gamma = np.percentile(entropy[valid].cpu().numpy(), 100 * (1 - alpha))
    return valid & (entropy < gamma), valid & (entropy >= gamma)


def select_and_push(
    labels: Tensor, labelled: int, unreliable: Tensor, prob: Tensor, teacher: Tensor, queues: PlainQueues, settings
) -> list[tuple[int, Tensor, Tensor]]:
    """Anchor pixels and positive of each class, its negatives pushed; labels (B,h,w) with 255 where none counts."""
    ranks = torch.argsort(torch.argsort(prob, dim=1, descending=True), dim=1)
    vectors = teacher.permute(0, 2, 3, 1)
    classes = []
    for c in range(prob.shape[1]):
        anchor = (labels == c) & (prob[:, c] > settings.anchor_threshold)
        negative = torch.zeros_like(anchor)
        others = (labels[:labelled] != c) & (labels[:labelled] != 255)
        negative[:labelled] = others & (ranks[:labelled, c] < settings.low_rank)
        window = (ranks[labelled:, c] >= settings.low_rank) & (ranks[labelled:, c] < settings.high_rank)
        negative[labelled:] = unreliable & window
        keys = vectors[negative]
        keys = keys[torch.randperm(len(keys))[: settings.new_keys_per_class]]
        queues.push(c, keys)
        if anchor.any():
            classes.append((c, anchor, vectors[anchor].mean(0)))
    return classes


def contrastive_loss(student: Tensor, classes: list, queues: PlainQueues, settings) -> Tensor:
    """Mean over classes of InfoNCE on cosine similarity."""
    vectors = student.permute(0, 2, 3, 1)
    total, used = vectors.sum() * 0.0, 0
    for c, anchor, positive in classes:
        keys = queues.keys[c].to(student.device)
        if not len(keys):
            continue
        anchors = vectors[anchor]
        anchors = anchors[torch.randint(len(anchors), (settings.num_anchors,))]
        drawn = torch.randint(len(keys), (settings.num_anchors * settings.num_negatives,))
        negatives = keys[drawn].view(settings.num_anchors, settings.num_negatives, -1)
        positives = positive.expand(settings.num_anchors, 1, -1)
        similarity = F.cosine_similarity(anchors.unsqueeze(1), torch.cat([positives, negatives], 1), dim=2)
        target = torch.zeros(settings.num_anchors, dtype=torch.long, device=student.device)
        total = total + F.cross_entropy(similarity / settings.temperature, target)
        used += 1
    return total / max(used, 1)
