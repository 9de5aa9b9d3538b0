"""Adaptive CutMix of AEL (Hu et al., NeurIPS 2021), for any method: partners that show badly known classes."""

import torch
from torch import Tensor, nn

from u2pl_hf.method import equalization as eq
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.alignment import Alignment
from u2pl_hf.method.batch import Batch, Chosen, ImagePool, ImagePools, ask
from u2pl_hf.method.pseudo_labels import PseudoLabelled
from u2pl_hf.method.views import strong_view


class ClassPartners:
    """Chooses partners of unlabelled images from the two banks of a method, and mixes them in.

    Partners are chosen by the pass before the one that needs them, from the banks as that pass leaves them, and read
    while it computes. A pass that finds nothing chosen, such as the first one of a resumed run, chooses for itself,
    from the same banks and the same seed: the same images.
    """

    def __init__(self, pool: ImagePool, bank: eq.ConfidenceBank, categories: eq.CategoryBank):
        self.pool, self.bank, self.categories = pool, bank, categories
        self.chosen: Chosen | None = None

    def learn(self, logits: Tensor, batch: Batch) -> None:
        """Take the student's logits (B_l,C,h,w) of labelled images into the bank, and choose for the next pass."""
        self.bank.learn(logits, batch.y_l)
        self.prepare(batch)

    def prepare(self, batch: Batch) -> None:
        """Choose for the pass that follows this batch."""
        self.chosen = self.choose(batch.further.next_seed, len(batch.x_u))

    @torch.no_grad()
    def choose(self, seed: int, number: int) -> Chosen:
        """For each of `number` unlabelled images a class, and an image that shows it or else any."""
        # Not the draws of others from this seed again.
        generator = torch.Generator(self.bank.confidence.device).manual_seed(seed ^ 1)
        classes = eq.draw_uncertain_classes(self.bank.confidence, number, generator)
        first, last = self.pool.reachable()
        rows = eq.draw_rows(self.categories.holds[first:last].t()[classes], generator) + first
        return ask(self.pool, rows, classes, generator)

    @torch.no_grad()
    def mix(
        self,
        teacher: nn.Module,
        batch: Batch,
        probability: float = 1.0,
        *,
        colour: bool = False,
        alignment: Alignment | None = None,
    ) -> PseudoLabelled:
        """The teacher's labels for x_u and its partners, then adaptive CutMix of all that belongs to them."""
        partners, self.chosen = self.chosen or self.choose(batch.seed, len(batch.x_u)), None
        x, y, valid = self.pool.receive(partners.images)
        images, valid = torch.cat([batch.x_u, x]), torch.cat([batch.valid_u, valid])
        coarse = pl.teacher_logits(teacher, images, valid, alignment)
        labels, prob = pl.label_pixels(coarse, images.shape[-2:])
        labels = labels.masked_fill(~valid, pl.IGNORE)
        base, seen = len(batch.x_u), pl.nearest_on_corners(labels, coarse.shape[-2:])
        rows = self.pool.add(batch.further.loaded_u).to(partners.rows.device, non_blocking=True)
        # Of a row that comes twice the last one counts: a pool may by now hold the batch's image in a partner's place.
        self.categories.update(torch.cat([partners.rows, rows]), torch.cat([seen[base:], seen[:base]]))

        boxes, is_component = eq.draw_class_boxes(labels[base:], partners.classes)
        if probability < 1:
            boxes = boxes & (torch.rand(base, 1, 1, device=boxes.device) < probability)
        weak = torch.where(boxes.unsqueeze(1), x, batch.x_u)
        mixed_labels, mixed_prob = (torch.where(boxes, pair[base:], pair[:base]) for pair in (labels, prob))
        y_u = None if batch.y_u is None else torch.where(boxes, y, batch.y_u)
        confidence = (prob[:base] * batch.valid_u).sum() / batch.valid_u.sum().clamp(min=1)
        stats = {"confidence": confidence, "component_share": is_component.float().mean()}
        if not colour:
            return PseudoLabelled(weak, mixed_labels, mixed_prob, y_u, stats)
        view = strong_view(images) * valid.unsqueeze(1)
        view = torch.where(boxes.unsqueeze(1), view[base:], view[:base])
        return PseudoLabelled(view, mixed_labels, mixed_prob, y_u, stats, weak)


def class_banks(
    pools: ImagePools, num_labels: int, momentum: float = eq.MOMENTUM, *, at_once: bool = True
) -> tuple[eq.ConfidenceBank, eq.CategoryBank]:
    """Empty banks; a method registers both, so that they are in its checkpoints."""
    bank = eq.ConfidenceBank(num_labels, momentum, at_once=at_once, passes=pools.passes)
    return bank, eq.CategoryBank(pools.unlabelled.size, num_labels)
