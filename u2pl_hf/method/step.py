"""One training step of each method: batches and progress in, named losses out. The order of the method stands here.

`_l` and `_u` mark labelled and unlabelled; x (B,3,H,W) normalised images, y_l (B_l,H,W) labels with 255 = ignore,
valid_u bool (B_u,H,W) without padding.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from u2pl_hf.method import losses, official, schedules
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.mixing import STRONG_AUGMENTATIONS
from u2pl_hf.method.queues import ClassQueues, gather_keys, select_keys
from u2pl_hf.method.teacher import batch_statistics, copy_student, update_teacher


@dataclass(frozen=True)
class MethodSettings:
    """Everything the step depends on besides batches and progress; method.md's symbols in the field comments."""

    num_labels: int
    variant: str = "paper"  # or "official"
    fixed_defects: tuple[int, ...] = ()  # of "official", see official.py
    supervised_loss: str = "ce"  # or "ohem"
    ohem_threshold: float = 0.7
    ohem_min_kept: int = 100_000
    auxiliary_weight: float = 0.4
    warmup_steps: int = 0
    ema_decay: float = 0.99
    unreliable_share: float = 0.20  # alpha_0
    unsupervised_weight: float = 1.0  # lambda_u
    contrastive_weight: float = 0.1  # lambda_c
    strong_augmentation: str = "cutmix"
    strong_probability: float = 0.5
    anchor_threshold: float = 0.3  # delta_p
    low_rank: int = 3  # r_l
    high_rank: int = 20  # r_h
    temperature: float = 0.5  # tau
    num_anchors: int = 256
    num_negatives: int = 50
    queue_length: int = 30_000
    background_queue_length: int = 50_000
    new_keys_per_class: int = 256
    # With AEL only, see ael.py.
    rare_classes: tuple[int, ...] = ()  # those that copy-paste draws from
    copy_paste_classes: int = 3
    copy_paste_probability: float = 0.5
    confidence_momentum: float = 0.999
    contrastive_start_steps: int = 0
    entropy_tail: float = 0.2  # anchors below this quantile of the entropy, negatives as far above


@dataclass(frozen=True)
class Batch:
    """One process's images of one pass; the unlabelled half is None for methods that do not use it.

    y_u are labels of the unlabelled images where someone wants to watch the pseudo-labels; nothing is learnt from them.
    loaded_l and loaded_u are what the loaders gave, for the pools of methods that ask for further images. What is drawn
    ahead for a pass follows from its seed: `seed` of this pass, `next_seed` of the process's next one.
    """

    x_l: Tensor
    y_l: Tensor
    x_u: Tensor | None = None
    valid_u: Tensor | None = None
    y_u: Tensor | None = None
    loaded_l: dict = field(default_factory=dict)
    loaded_u: dict = field(default_factory=dict)
    seed: int = 0
    next_seed: int = 0


@dataclass
class StepOutput:
    """`total` is what backward runs on; `named` and `stats` are detached and stay on the device.

    Stats are scalars, or one number per class.
    """

    total: Tensor
    named: dict[str, Tensor]
    stats: dict[str, Tensor | float] = field(default_factory=dict)


class SupervisedStep(nn.Module):
    """SupOnly: the supervised loss on labelled images. There is no teacher."""

    uses_unlabelled = False

    def __init__(self, settings: MethodSettings):
        super().__init__()
        self.settings = settings

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step; `step` counts from 0."""
        return self.learn_labels(student, batch)[0]

    def learn_labels(self, student: nn.Module, batch: Batch) -> tuple:
        """The supervised loss alone, and the student's output that it comes from."""
        output = student(batch.x_l)
        loss = self.supervised_loss(output, batch.y_l) + self.attached(output)
        return StepOutput(loss, {"loss": loss.detach(), "loss_supervised": loss.detach()}), output

    @staticmethod
    def attached(output) -> Tensor | float:
        """0 for a representation that no loss uses.

        Every parameter must be part of every step's graph, or distributed training waits for its gradient.
        """
        return 0.0 if output.representation is None else 0.0 * output.representation.float().mean()

    def supervised_loss(self, output, y_l: Tensor) -> Tensor:
        """L_s of the first len(y_l) images, with the auxiliary head's part where there is one (equation 2)."""
        loss = self._label_loss(output.logits[: len(y_l)], y_l)
        if output.aux_logits is not None:
            loss = loss + self.settings.auxiliary_weight * self._label_loss(output.aux_logits[: len(y_l)], y_l)
        return loss

    def _label_loss(self, logits: Tensor, y_l: Tensor) -> Tensor:
        logits = pl.resize_logits(logits, y_l.shape[-2:])
        if self.settings.supervised_loss == "ohem":
            return losses.ohem_cross_entropy(logits, y_l, self.settings.ohem_threshold, self.settings.ohem_min_kept)
        return losses.cross_entropy(logits, y_l)

    def begin(self, student: nn.Module, step: int) -> None:
        """Called before each step with the unwrapped student."""

    def finish(self, student: nn.Module, step: int) -> None:
        """Called after the optimizer's step with the unwrapped student."""

    def evaluated(self, student: nn.Module, step: int) -> nn.Module:
        """The model to validate and export after `step` finished steps."""
        return student


class U2PLStep(SupervisedStep):
    """U2PL, variant `paper` (algorithm 1). Owns the teacher and the queues; both belong into a checkpoint."""

    uses_unlabelled = True
    contrastive_loss = staticmethod(losses.contrastive_loss)
    keys_in_order = False

    def __init__(self, settings: MethodSettings, student: nn.Module):
        super().__init__(settings)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        lengths = [settings.background_queue_length] + [settings.queue_length] * (settings.num_labels - 1)
        self.queues = ClassQueues(lengths, student.config.representation_channels)

    def begin(self, student: nn.Module, step: int) -> None:
        """When warm-up ends, the teacher becomes a copy of the student."""
        if step == self.settings.warmup_steps:
            copy_student(self.teacher, student)

    def finish(self, student: nn.Module, step: int) -> None:
        """The teacher's moving average."""
        since_warmup = step - self.settings.warmup_steps
        if since_warmup >= 0:
            update_teacher(self.teacher, student, schedules.ema_decay(since_warmup, self.settings.ema_decay))

    def evaluated(self, student: nn.Module, step: int) -> nn.Module:
        """The student during warm-up, the teacher after it."""
        return self.teacher if step > self.settings.warmup_steps else student

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step; `step` counts from 0. Pushes this step's negatives into the queues."""
        if step < self.settings.warmup_steps:
            return super().forward(student, batch, step, total_steps)
        settings, size, labelled = self.settings, batch.x_u.shape[-2:], len(batch.x_l)

        x_u, y_u, pseudo_labels, confidence = self.pseudo_label(batch)
        images = torch.cat([batch.x_l, x_u])
        output = student(images)
        with torch.no_grad(), batch_statistics(self.teacher):
            teacher = self.teacher(images, output_auxiliary=False)

        # One split of the unlabelled pixels serves both the unsupervised and the contrastive loss.
        alpha = schedules.unreliable_share(step / total_steps, settings.unreliable_share)
        entropy = pl.pixel_entropy(pl.resize_logits(teacher.logits[labelled:], size))
        valid = pseudo_labels != pl.IGNORE
        gamma = pl.masked_quantile(entropy, 1.0 - alpha, valid)
        reliable, unreliable = pl.split_at(entropy, valid, gamma)

        loss_s = self.supervised_loss(output, batch.y_l)
        student_logits = pl.resize_logits(output.logits[labelled:], size)
        loss_u = losses.unsupervised_loss(student_logits, pseudo_labels, reliable)
        confident = self.confident_pixels(entropy, valid, reliable, alpha)
        loss_c, stats = self.contrast(output, teacher, batch.y_l, pseudo_labels, confident, unreliable)
        total = loss_s + settings.unsupervised_weight * loss_u + settings.contrastive_weight * loss_c
        named = {"loss": total, "loss_supervised": loss_s, "loss_unsupervised": loss_u, "loss_contrastive": loss_c}
        stats |= {"alpha": alpha, "gamma": gamma, "confidence": confidence}
        stats["reliable_share"] = reliable.float().mean()
        if y_u is not None:
            stats["accuracy_reliable"] = losses.accuracy(pseudo_labels, y_u, reliable)
            stats["accuracy_unreliable"] = losses.accuracy(pseudo_labels, y_u, unreliable)
        return StepOutput(total, {name: value.detach() for name, value in named.items()}, stats)

    @torch.no_grad()
    def pseudo_label(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The teacher's labels for x_u, then strong augmentation of images, labels if any, and pseudo-labels together.

        Returns:
            x_u, y_u, pseudo-labels with 255 on padding, and the mean confidence before the augmentation.
        """
        x_u, y_u = batch.x_u, batch.y_u
        logits = self.teacher(x_u, output_representation=False, output_auxiliary=False).logits
        # Classes last, as they lie in memory: several times faster over the whole crop.
        prob, pseudo_labels = pl.resize_logits(logits, x_u.shape[-2:]).movedim(1, -1).softmax(dim=-1).max(dim=-1)
        confidence = (prob * batch.valid_u).sum() / batch.valid_u.sum().clamp(min=1)
        pseudo_labels = pseudo_labels.masked_fill(~batch.valid_u, pl.IGNORE)
        # Drawn on the host, where the outcome is needed: one draw per batch and process.
        if torch.rand(()).item() < self.settings.strong_probability:
            mix = STRONG_AUGMENTATIONS[self.settings.strong_augmentation]
            # Labels to watch travel as one more channel of their image.
            images = x_u if y_u is None else torch.cat([x_u, y_u.unsqueeze(1).to(x_u.dtype)], dim=1)
            images, pseudo_labels = mix(images, pseudo_labels, self.settings.num_labels)
            x_u, y_u = images[:, :3], None if y_u is None else images[:, 3].long()
        return x_u, y_u, pseudo_labels, confidence

    def confident_pixels(self, entropy: Tensor, valid: Tensor, reliable: Tensor, alpha: float) -> Tensor:
        """The unlabelled pixels that may be anchors, bool (B_u,H,W): all reliable ones."""
        return reliable

    def select(self, y_l: Tensor, pseudo_labels: Tensor, confident: Tensor, unreliable: Tensor, prob: Tensor):
        """Anchors, positives and negatives of each class, bool (B,C,h,w); all arguments at feature size."""
        settings, labelled = self.settings, len(y_l)
        classes = torch.cat([y_l, pseudo_labels.masked_fill(~confident, pl.IGNORE)])
        anchors = pl.anchor_mask(classes, prob, settings.anchor_threshold)
        negatives = pl.negative_mask(
            y_l, prob[:labelled], unreliable, prob[labelled:], settings.low_rank, settings.high_rank
        )
        return anchors, anchors, negatives

    def contrast(self, output, teacher, y_l: Tensor, pseudo_labels: Tensor, confident: Tensor, unreliable: Tensor):
        """L_c at feature size: choose anchors and negatives, push the negatives, then contrast."""
        settings, size = self.settings, teacher.logits.shape[-2:]
        with torch.no_grad():
            prob = teacher.logits.float().softmax(dim=1)
            maps = (pl.nearest_on_corners(m, size) for m in (y_l, pseudo_labels, confident, unreliable))
            anchors, positives, negatives = self.select(*maps, prob)
            keys, valid = select_keys(
                teacher.representation, negatives, settings.new_keys_per_class, in_order=self.keys_in_order
            )
            keys, valid = gather_keys(keys, valid)
            self.queues.push(keys, valid)
        loss, used = self.contrastive_loss(
            output.representation,
            teacher.representation,
            anchors,
            self.queues,
            positives=positives,
            num_anchors=settings.num_anchors,
            num_negatives=settings.num_negatives,
            temperature=settings.temperature,
        )
        stats = {
            "anchor_classes": used.sum().float(),
            "queue_fill": self.queues.fill.float().mean() / self.queues.capacity.float().mean(),
            "anchors_per_class": anchors.sum(dim=(0, 2, 3)),
            "new_keys_per_class": valid.sum(dim=1),
            "queue_fill_per_class": self.queues.fill / self.queues.capacity,
        }
        return loss, stats


class OfficialU2PLStep(U2PLStep):
    """U2PL, variant `official`: only the contrastive part differs, see official.py."""

    keys_in_order = True

    def contrastive_loss(self, *representations: Tensor, **options) -> tuple[Tensor, Tensor]:
        """L_c with the published pairing of classes and queues."""
        return official.contrastive_loss(*representations, fixed=self.settings.fixed_defects, **options)

    def confident_pixels(self, entropy: Tensor, valid: Tensor, reliable: Tensor, alpha: float) -> Tensor:
        """The unlabelled pixels that may be anchors, bool (B_u,H,W): the alpha share of lowest entropy."""
        return reliable if 5 in self.settings.fixed_defects else official.lowest_entropy(entropy, valid, alpha)

    def select(self, y_l: Tensor, pseudo_labels: Tensor, confident: Tensor, unreliable: Tensor, prob: Tensor):
        """Anchors, positives and negatives of each class, bool (B,C,h,w); all arguments at feature size."""
        return official.select_pixels(
            y_l,
            pseudo_labels,
            confident,
            unreliable,
            prob,
            anchor_threshold=self.settings.anchor_threshold,
            low_rank=self.settings.low_rank,
            high_rank=self.settings.high_rank,
            fixed=self.settings.fixed_defects,
        )
