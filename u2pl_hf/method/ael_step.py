"""One training step of U2PL with AEL. The order stands in `AELStep.forward`; the parts are in `ael.py`."""

import dataclasses
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from u2pl_hf.method import ael, losses, schedules
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.ael import CategoryBank, ConfidenceBank, ImagePool
from u2pl_hf.method.step import Batch, MethodSettings, StepOutput, U2PLStep
from u2pl_hf.method.teacher import batch_statistics


@dataclass
class Chosen:
    """Images of a pool that were asked for: their rows (K,), the classes they are to give, and the images to come."""

    rows: Tensor
    classes: Tensor
    images: Future


class AELStep(U2PLStep):
    """U2PL with AEL. Owns the two banks besides teacher and queues; all belong into a checkpoint.

    Donors and partners are chosen by the pass before the one that needs them, from the banks as that pass leaves them,
    and read while it computes. A pass that finds nothing chosen, such as the first one of a resumed run, chooses for
    itself, from the same banks and the same seed: the same images.

    Args:
        settings, student: as for U2PL.
        labelled, unlabelled: the pools that donors and partners come from.
    """

    def __init__(self, settings: MethodSettings, student: nn.Module, labelled: ImagePool, unlabelled: ImagePool):
        super().__init__(settings, student)
        self.pool_l, self.pool_u = labelled, unlabelled
        self.bank = ConfidenceBank(settings.num_labels, settings.confidence_momentum)
        self.categories = CategoryBank(unlabelled.size, settings.num_labels)
        self.register_buffer("rare", torch.tensor(settings.rare_classes), persistent=False)
        self.register_buffer("presence", labelled.presence, persistent=False)
        self.chosen: dict[str, Chosen] = {}

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step; `step` counts from 0. Updates the banks and pushes this step's negatives."""
        settings, labelled, size = self.settings, len(batch.x_l), batch.x_l.shape[-2:]
        batch, stats = self.copy_paste(batch)
        if step < settings.warmup_steps:
            result, output = self.learn_labels(student, batch)
            result.stats |= stats
            self.update_confidence(output, batch.y_l, result)
            self.chosen["donors"] = self.choose_donors(batch.next_seed, labelled)
            return result

        x_u, y_u, pseudo_labels, prob_u, cutmix_stats = self.pseudo_label(batch)
        images = torch.cat([batch.x_l, x_u])
        output = student(images)
        contrastive = step >= settings.contrastive_start_steps
        with torch.no_grad(), batch_statistics(self.teacher):
            teacher = self.teacher(images, output_representation=contrastive, output_auxiliary=False)
        fine = dataclasses.replace(output, logits=pl.resize_logits(output.logits, size))

        # Labelled images learn from the teacher too: its labels of this pass stand beside the mixed pseudo-labels.
        teacher_logits = pl.resize_logits(teacher.logits, size)
        prob_l, labels_l = teacher_logits[:labelled].movedim(1, -1).softmax(dim=-1).max(dim=-1)
        labels_l = labels_l.masked_fill(batch.y_l == pl.IGNORE, pl.IGNORE)
        labels, prob = torch.cat([labels_l, pseudo_labels]), torch.cat([prob_l, prob_u])

        alpha = schedules.unreliable_share(step / total_steps, settings.unreliable_share)
        entropy, valid = pl.pixel_entropy(teacher_logits), labels != pl.IGNORE
        gamma = pl.masked_quantile(entropy, 1.0 - alpha, valid)
        reliable, unreliable = pl.split_at(entropy, valid, gamma)

        loss_s = self.supervised_loss(fine, batch.y_l)
        targets = labels.masked_fill(~reliable, pl.IGNORE)
        loss_u, kept = ael.equalised_consistency(fine.logits, targets, prob, self.bank.confidence)
        total = loss_s + settings.unsupervised_weight * loss_u
        named = {"loss_supervised": loss_s, "loss_unsupervised": loss_u}
        if contrastive:
            confident, uncertain = self.entropy_tails(entropy[labelled:], valid[labelled:])
            loss_c, contrast_stats = self.contrast(output, teacher, batch.y_l, pseudo_labels, confident, uncertain)
            total = total + settings.contrastive_weight * loss_c
            named["loss_contrastive"] = loss_c
            stats |= contrast_stats
        else:
            total = total + self.attached(output)
        stats |= cutmix_stats | {"alpha": alpha, "gamma": gamma, "kept_share": kept}
        stats["reliable_share"] = reliable[labelled:].float().mean()
        if y_u is not None:
            stats["accuracy_reliable"] = losses.accuracy(pseudo_labels, y_u, reliable[labelled:])
            stats["accuracy_unreliable"] = losses.accuracy(pseudo_labels, y_u, unreliable[labelled:])
        named = {name: value.detach() for name, value in ({"loss": total} | named).items()}
        result = StepOutput(total, named, stats)

        self.update_confidence(output, batch.y_l, result)
        self.chosen["donors"] = self.choose_donors(batch.next_seed, labelled)
        self.chosen["partners"] = self.choose_partners(batch.next_seed, len(x_u))
        return result

    @torch.no_grad()
    def copy_paste(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """The batch with rare classes of other labelled images pasted into its own, and their share."""
        donors = self.chosen.pop("donors", None) or self.choose_donors(batch.seed, len(batch.x_l))
        x, labels, _ = self.pool_l.receive(donors.images)
        # An image is no donor to itself.
        itself = donors.rows == self.pool_l.add(batch.loaded_l).to(donors.rows.device, non_blocking=True)
        labels = labels.masked_fill(itself.view(-1, 1, 1), pl.IGNORE)
        x_l, y_l, pasted = ael.paste_classes(batch.x_l, batch.y_l, x, labels, donors.classes)
        return dataclasses.replace(batch, x_l=x_l, y_l=y_l), {"pasted_share": pasted.float().mean()}

    @torch.no_grad()
    def pseudo_label(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor, Tensor, dict]:
        """The teacher's labels for x_u and its partners, then adaptive CutMix of all that belongs to them.

        Returns:
            x_u, y_u, pseudo-labels with 255 on padding, the teacher's probability of each of them, and statistics.
        """
        partners = self.chosen.pop("partners", None) or self.choose_partners(batch.seed, len(batch.x_u))
        x, y, valid = self.pool_u.receive(partners.images)
        images, valid = torch.cat([batch.x_u, x]), torch.cat([batch.valid_u, valid])
        coarse = self.teacher(images, output_representation=False, output_auxiliary=False).logits
        logits = pl.resize_logits(coarse, images.shape[-2:])
        prob, labels = logits.movedim(1, -1).softmax(dim=-1).max(dim=-1)
        labels = labels.masked_fill(~valid, pl.IGNORE)
        base, seen = len(batch.x_u), pl.nearest_on_corners(labels, coarse.shape[-2:])
        rows = self.pool_u.add(batch.loaded_u).to(partners.rows.device, non_blocking=True)
        # Of a row that comes twice the last one counts: a pool may by now hold the batch's image in a partner's place.
        self.categories.update(torch.cat([partners.rows, rows]), torch.cat([seen[base:], seen[:base]]))

        boxes, is_component = ael.draw_class_boxes(labels[base:], partners.classes)
        x_u = torch.where(boxes.unsqueeze(1), x, batch.x_u)
        mixed = (torch.where(boxes, pair[base:], pair[:base]) for pair in (labels, prob))
        y_u = None if batch.y_u is None else torch.where(boxes, y, batch.y_u)
        confidence = (prob[:base] * batch.valid_u).sum() / batch.valid_u.sum().clamp(min=1)
        stats = {"confidence": confidence, "component_share": is_component.float().mean()}
        return x_u, y_u, *mixed, stats

    def entropy_tails(self, entropy: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels that may be anchors, and those that may be negatives: the two ends of the entropy, bool (B_u,H,W)."""
        share = self.settings.entropy_tail
        low, high = (pl.masked_quantile(entropy, q, valid) for q in (share, 1.0 - share))
        return pl.split_at(entropy, valid, low)[0], pl.split_at(entropy, valid, high)[1]

    def update_confidence(self, output, y_l: Tensor, result: StepOutput) -> None:
        """Take this step's labelled images into the confidence bank, and tell what it holds."""
        logits = output.logits.detach()[: len(y_l)]
        self.bank.update(logits, pl.nearest_on_corners(y_l, logits.shape[-2:]))
        result.stats["confidence_per_class"] = self.bank.confidence.clone()

    @torch.no_grad()
    def choose_donors(self, seed: int, number: int) -> Chosen:
        """For each of `number` labelled images a labelled one that has one of three rare classes; -1 for none."""
        generator = torch.Generator(self.rare.device).manual_seed(seed)
        classes = min(self.settings.copy_paste_classes, len(self.rare))
        classes = ael.draw_rare_classes(self.bank.confidence, self.rare, classes, generator)
        rows = ael.draw_rows(self.presence[:, classes].any(dim=1).expand(number, -1), generator)
        lottery = torch.rand(number, generator=generator, device=rows.device)
        rows = rows.masked_fill(lottery >= self.settings.copy_paste_probability, -1)
        return self._ask(self.pool_l, rows, classes, generator)

    @torch.no_grad()
    def choose_partners(self, seed: int, number: int) -> Chosen:
        """For each of `number` unlabelled images a class, and an image that shows it or else any."""
        # Not the donors' draws again.
        generator = torch.Generator(self.rare.device).manual_seed(seed ^ 1)
        classes = ael.draw_uncertain_classes(self.bank.confidence, number, generator)
        first, last = self.pool_u.reachable()
        rows = ael.draw_rows(self.categories.holds[first:last].t()[classes], generator) + first
        return self._ask(self.pool_u, rows, classes, generator)

    @staticmethod
    def _ask(pool: ImagePool, rows: Tensor, classes: Tensor, generator: torch.Generator) -> Chosen:
        seeds = torch.randint(2**31, rows.shape, generator=generator, device=rows.device)
        return Chosen(rows, classes, pool.request(rows, seeds))
