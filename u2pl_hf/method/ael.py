"""U2PL with AEL (adaptive equalization learning, Hu et al., NeurIPS 2021); its parts are in equalization.py."""

import dataclasses
import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from u2pl_hf.errors import InputError, refuse, require
from u2pl_hf.fields import setting
from u2pl_hf.method import equalization as eq
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.base import Batch, ImagePools, StepOutput, register, require_in_time
from u2pl_hf.method.partners import Chosen, ClassPartners, ask, class_banks
from u2pl_hf.method.pseudo_labels import PseudoLabelled
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.method.u2pl_settings import PAPER, U2PLSettings

logger = logging.getLogger(__name__)
# Of frequent_classes: all classes are rare.
NO_CLASS = "none"


@register
class AEL(U2PL):
    """U2PL with AEL. Owns the two banks besides teacher and queues; all belong into a checkpoint.

    Donors are chosen as partners are, see `ClassPartners`.
    """

    name, title = "u2pl_ael", "U2PL + AEL"
    about = f"{U2PL.about} AEL (Hu et al., NeurIPS 2021) shows classes that the student knows badly more often."

    @dataclass(frozen=True)
    class Settings(U2PLSettings):
        """Those of U2PL, and of AEL."""

        frequent_classes: list[str] = setting(
            [],
            "names or numbers of the classes that copy-paste leaves alone, or none; default: those with more than "
            "1/classes of the labelled pixels",
        )
        copy_paste_classes: int = setting(3, "rare classes that a pass pastes", at_least=1, at_most=255)
        copy_paste_probability: float = setting(0.5, "probability that a labelled image is pasted into", at_most=1)
        confidence_momentum: float = setting(0.999, "of the moving average of each class's confidence", at_most=1)
        contrastive_start_steps: int = setting(0, "step that the contrastive loss begins at")
        contrastive_start_epochs: float = setting(0.0, "the same in epochs", counts="contrastive_start_steps")
        entropy_tail: float = setting(
            0.2, "anchors lie below this quantile of the entropy, negatives as far above", at_most=1
        )

    def __init__(self, settings: Settings, student: nn.Module, pools: ImagePools):
        super().__init__(settings, student, pools)
        self.pool_l = pools.labelled
        self.bank, self.categories = class_banks(pools, self.num_labels, settings.confidence_momentum, at_once=False)
        self.partners = ClassPartners(pools.unlabelled, self.bank, self.categories)
        names = [student.config.id2label[c] for c in range(self.num_labels)]
        frequent = frequent_classes(settings.frequent_classes, names, pools.counts)
        rare = [c for c in range(self.num_labels) if c not in frequent]
        self.register_buffer("rare", torch.tensor(rare), persistent=False)
        self.register_buffer("presence", pools.counts > 0, persistent=False)
        self.donors: Chosen | None = None

    @classmethod
    def check(cls, settings: Settings, *, num_labels: int | None = None, total_steps: int | None = None) -> None:
        """Refuse what belongs to U2PL alone, and a contrastive loss that never begins."""
        if settings.variant != "paper":
            raise InputError(f"--variant {settings.variant} goes with --method u2pl: pass one of them")
        refuse((getattr(settings, name) not in (None, off), f"--{name} goes with --method u2pl, not u2pl_ael")
               for name, off in PAPER.items() if name != "ema_decay")  # fmt: skip
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
        batch, stats = self.copy_paste(batch)
        if self.in_warmup(batch, step, total_steps):
            result, output = self.learn_labels(student, batch)
            result.stats |= stats
            self.update_confidence(output, batch.y_l, result.stats)
            self.donors = self.choose_donors(batch.further.next_seed, labelled)
            return result

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
        named = {"loss_supervised": loss_s, "loss_unsupervised": loss_u}
        if contrastive:
            tails = self.entropy_tails(split_u.entropy, split_u.valid)
            loss_c, contrast_stats = self.contrast(output, teacher, batch.y_l, mixed.labels, *tails)
            total = total + settings.contrastive_weight * loss_c
            named["loss_contrastive"] = loss_c
            stats |= contrast_stats
        else:
            total = total + self.attached(output)
        stats |= self.told(mixed, split_u) | {"kept_share": kept}
        named = {name: value.detach() for name, value in ({"loss": total} | named).items()}
        self.update_confidence(output, batch.y_l, stats)
        self.donors = self.choose_donors(batch.further.next_seed, labelled)
        self.partners.prepare(batch)
        return StepOutput(total, named, stats, mixed.counts(self.num_labels))

    @torch.no_grad()
    def copy_paste(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """The batch with rare classes of other labelled images pasted into its own, and their share."""
        donors, self.donors = self.donors or self.choose_donors(batch.seed, len(batch.x_l)), None
        x, labels, _ = self.pool_l.receive(donors.images)
        # An image is no donor to itself.
        itself = donors.rows == self.pool_l.add(batch.further.loaded_l).to(donors.rows.device, non_blocking=True)
        labels = labels.masked_fill(itself.view(-1, 1, 1), pl.IGNORE)
        x_l, y_l, pasted = eq.paste_classes(batch.x_l, batch.y_l, x, labels, donors.classes)
        return dataclasses.replace(batch, x_l=x_l, y_l=y_l), {"pasted_share": pasted.float().mean()}

    def pseudo_label(self, batch: Batch) -> PseudoLabelled:
        """The teacher's labels for x_u and its partners, then adaptive CutMix of all that belongs to them."""
        return self.partners.mix(self.teacher, batch)

    def entropy_tails(self, entropy: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels that may be anchors, and those that may be negatives: the two ends of the entropy, bool (B_u,H,W)."""
        share = self.settings.entropy_tail
        low, high = (pl.masked_quantile(entropy, q, valid) for q in (share, 1.0 - share))
        return pl.split_at(entropy, valid, low)[0], pl.split_at(entropy, valid, high)[1]

    @torch.no_grad()
    def choose_donors(self, seed: int, number: int) -> Chosen:
        """For each of `number` labelled images a labelled one that has one of three rare classes; -1 for none."""
        generator = torch.Generator(self.rare.device).manual_seed(seed)
        classes = min(self.settings.copy_paste_classes, len(self.rare))
        classes = eq.draw_rare_classes(self.bank.confidence, self.rare, classes, generator)
        rows = eq.draw_rows(self.presence[:, classes].any(dim=1).expand(number, -1), generator)
        lottery = torch.rand(number, generator=generator, device=rows.device)
        rows = rows.masked_fill(lottery >= self.settings.copy_paste_probability, -1)
        return ask(self.pool_l, rows, classes, generator)


def frequent_classes(told: list[str], names: list[str], counts: Tensor) -> set[int]:
    """The classes that copy-paste leaves alone: those told, else those with more than 1/C of the labelled pixels.

    Args:
        told: names or numbers, or NO_CLASS alone.
        counts: pixels of each class in each labelled image, int64 (labelled,C).

    Raises:
        InputError: there is no such class, or none is left.
    """
    total = counts.sum(dim=0)
    numbers = {str(c): c for c in range(len(names))} | {name: c for c, name in enumerate(names)}
    chosen = [] if told == [NO_CLASS] else told
    unknown = [name for name in chosen if name not in numbers]
    if unknown:
        listed = ", ".join(names)
        raise InputError(f"--frequent_classes {unknown[0]} is no class; there are {listed}, or 0 to {len(names) - 1}")
    frequent = {numbers[name] for name in chosen}
    if not told:
        frequent = {c for c, pixels in enumerate(total.tolist()) if pixels * len(names) > total.sum()}
    if len(frequent) == len(names):
        raise InputError("--frequent_classes names every class; leave out those that copy-paste is to paste")
    logger.info("copy-paste draws from %s", ", ".join(name for c, name in enumerate(names) if c not in frequent))
    return frequent
