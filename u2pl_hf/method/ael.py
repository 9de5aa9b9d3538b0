"""U2PL with AEL (adaptive equalization learning, Hu et al., NeurIPS 2021); its parts are in equalization.py."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from u2pl_hf.errors import InputError, refuse, require
from u2pl_hf.fields import setting
from u2pl_hf.method import equalization as eq
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.base import StepOutput, register, require_in_time
from u2pl_hf.method.batch import Batch, ImagePools
from u2pl_hf.method.copy_paste import CopyPaste
from u2pl_hf.method.partners import ClassPartners, class_banks
from u2pl_hf.method.pseudo_labels import PseudoLabelled
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.method.u2pl_settings import AEL_HAS, PAPER, U2PLSettings


@register
class AEL(U2PL):
    """U2PL with AEL. Owns the two banks besides teacher and queues; all belong into a checkpoint."""

    name, title = "u2pl_ael", "U2PL + AEL"
    brings_bank = True
    about = f"{U2PL.about} AEL (Hu et al., NeurIPS 2021) shows classes that the student knows badly more often."

    @dataclass(frozen=True)
    class Settings(U2PLSettings):
        """Those of U2PL, and of AEL."""

        copy_paste_probability: float = setting(0.5, "probability that a labelled image is pasted into", at_most=1)
        confidence_momentum: float = setting(0.999, "of the moving average of each class's confidence", at_most=1)
        contrastive_start_steps: int = setting(0, "step that the contrastive loss begins at")
        contrastive_start_epochs: float = setting(0.0, "the same in epochs", counts="contrastive_start_steps")
        entropy_tail: float = setting(
            0.2, "anchors lie below this quantile of the entropy, negatives as far above", at_most=1
        )

    def __init__(self, settings: Settings, student: nn.Module, pools: ImagePools):
        super().__init__(settings, student, pools)
        self.bank, self.categories = class_banks(pools, self.num_labels, settings.confidence_momentum, at_once=False)
        self.partners = ClassPartners(pools.unlabelled, self.bank, self.categories)
        if self.settings.copy_paste_probability:
            self.copy_paste = CopyPaste(self.settings, student, pools, self.bank)

    @classmethod
    def check(cls, settings: Settings, *, num_labels: int | None = None, total_steps: int | None = None) -> None:
        """Refuse what belongs to U2PL alone, and a contrastive loss that never begins."""
        if settings.variant != "paper":
            raise InputError(f"--variant {settings.variant} goes with --method u2pl: pass one of them")
        refuse((getattr(settings, name) not in (None, off), f"--{name} goes with --method u2pl, not u2pl_ael")
               for name, off in PAPER.items() if name not in AEL_HAS)  # fmt: skip
        mixing = settings.strong_augmentation
        require(mixing == "cutmix", f"--strong_augmentation {mixing} goes with --method u2pl: AEL has its own CutMix")
        super().check(settings, num_labels=num_labels, total_steps=total_steps)
        if total_steps and settings.contrastive_weight:
            otherwise = "; to do without that loss, pass --contrastive_weight 0"
            require_in_time(settings, "contrastive_start", total_steps, otherwise)

    @classmethod
    def mixes_batch(cls, settings: Settings) -> bool:
        """Partners come from the pool."""
        return False

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step; `step` counts from 0. Updates the banks and pushes this step's negatives."""
        settings, labelled, size = self.settings, len(batch.x_l), batch.x_l.shape[-2:]
        if self.in_warmup(batch, step, total_steps):
            return self.learn_labels(student, batch)[0]

        mixed = self.pseudo_label(batch)
        images = torch.cat([batch.x_l, mixed.x])
        output = student(images)
        contrastive = step >= settings.contrastive_start_steps
        teacher = self.teach(images, output_representation=contrastive)
        fine = dataclasses.replace(output, logits=pl.resize_logits(output.logits, size))

        # Labelled images learn from the teacher too: its labels of this pass stand beside the mixed pseudo-labels.
        teacher_logits = pl.resize_logits(teacher.logits, size)
        labels_l, prob_l = pl.label_pixels(teacher_logits[:labelled], size)
        labels_l = labels_l.masked_fill(batch.y_l == pl.IGNORE, pl.IGNORE)
        labels, prob = torch.cat([labels_l, mixed.labels]), torch.cat([prob_l, mixed.prob])
        split = self.split(teacher_logits, labels, step / total_steps)
        split_u = split.part(slice(labelled, None))

        loss_s = self.supervised_loss(fine, batch.y_l)
        targets = labels.masked_fill(~split.reliable, pl.IGNORE)
        loss_u, kept = eq.equalised_consistency(fine.logits, targets, prob, self.bank.confidence)
        total = loss_s + settings.unsupervised_weight * loss_u
        named, stats = {"loss_supervised": loss_s, "loss_unsupervised": loss_u}, {}
        if contrastive:
            tails = self.entropy_tails(split_u.entropy, split_u.valid)
            loss_c, contrast_stats = self.contrast(output, teacher, batch.y_l, mixed.labels, *tails)
            total = total + settings.contrastive_weight * loss_c
            named["loss_contrastive"] = loss_c
            stats |= contrast_stats
        else:
            total = total + self.attached(output)
        stats |= self.told(mixed, split_u) | {"kept_share": kept}
        self.update_confidence(output, batch.y_l, stats)
        self.partners.prepare(batch)
        return StepOutput(total, {"loss": total} | named, stats, mixed.counts(self.num_labels))

    def pseudo_label(self, batch: Batch) -> PseudoLabelled:
        """The teacher's labels for x_u and its partners, then adaptive CutMix of all that belongs to them."""
        return self.partners.mix(self.teacher, batch)

    def entropy_tails(self, entropy: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels that may be anchors, and those that may be negatives: the two ends of the entropy, bool (B_u,H,W)."""
        share = self.settings.entropy_tail
        low, high = (pl.masked_quantile(entropy, q, valid) for q in (share, 1.0 - share))
        return pl.split_at(entropy, valid, low)[0], pl.split_at(entropy, valid, high)[1]
