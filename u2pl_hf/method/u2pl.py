"""U2PL (Wang et al., CVPR 2022): algorithm 1 in order. Variant `official` chooses other pixels, see official.py."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from u2pl_hf.errors import refuse
from u2pl_hf.method import losses, official, schedules
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.alignment import Alignment
from u2pl_hf.method.base import Step, StepOutput, register, require_in_time
from u2pl_hf.method.batch import Batch, ImagePools
from u2pl_hf.method.mixing import STRONG_AUGMENTATIONS
from u2pl_hf.method.partners import ClassPartners, class_banks
from u2pl_hf.method.prototypes import Prototypes
from u2pl_hf.method.pseudo_labels import PseudoLabelled, Split
from u2pl_hf.method.queues import ClassQueues, gather_keys, select_keys
from u2pl_hf.method.teacher import batch_statistics, copy_student, update_teacher
from u2pl_hf.method.u2pl_settings import U2PLSettings
from u2pl_hf.method.views import strong_view
from u2pl_hf.method.warmup import Stability, latest_end


@register
class U2PL(Step):
    """U2PL (algorithm 1). Owns the teacher and the queues; both belong into a checkpoint."""

    name, title = "u2pl", "U2PL"
    about = (
        "U2PL (Wang et al., CVPR 2022) also learns from pixels whose pseudo-labels are too uncertain to train on: it "
        "uses them as negatives, in a contrastive loss, for the classes they almost surely do not belong to."
    )
    uses_representation = True

    Settings = U2PLSettings

    def __init__(self, settings: U2PLSettings, student: nn.Module, pools: ImagePools | None = None):
        super().__init__(settings, student, pools)
        settings = self.settings
        self.num_labels = student.config.num_labels
        self.low_rank, self.high_rank = settings.ranks(self.num_labels)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        lengths = [settings.background_queue_length] + [settings.queue_length] * (self.num_labels - 1)
        self.queues = ClassQueues(lengths, student.config.representation_channels)
        self.prototypes = self.bank = self.partners = self.alignment = None
        if settings.prototype_momentum:
            channels = student.config.representation_channels
            self.prototypes = Prototypes(self.num_labels, channels, settings.prototype_momentum)
        if settings.distribution_alignment:
            self.alignment = Alignment(settings.distribution_alignment, pools.counts, pools.passes)
        if settings.partner == "class" or settings.protect_unlearnt:
            self.bank, self.categories = class_banks(pools, self.num_labels)
        if settings.partner == "class":
            self.partners = ClassPartners(pools.unlabelled, self.bank, self.categories)
        self.stability = Stability(self.num_labels, settings.warmup_limit) if settings.warmup == "auto" else None

    @classmethod
    def check(cls, settings: U2PLSettings, *, num_labels: int | None = None, total_steps: int | None = None) -> None:
        """Refuse ranks that leave no negatives, defects that are not there, and a warm-up without an end."""
        super().check(settings, num_labels=num_labels, total_steps=total_steps)
        low, high = settings.ranks(num_labels) if num_labels else (1, 2)
        refuse([
            (num_labels and not 1 <= low < min(high, num_labels),
             f"--low_rank {low} --high_rank {high} leave no rank for negatives among {num_labels} classes: "
             f"low_rank must lie in 1..{(num_labels or 0) - 1} and below high_rank"),
            (settings.fixed_defects and settings.variant != "official",
             "--fixed_defects needs --variant official, whose differences from the paper they are"),
            (not {*settings.fixed_defects} <= {*official.DEFECTS},
             f"--fixed_defects {settings.fixed_defects} must be among 1 2 3 4 5 6"),
            *settings.unpublished(),
            (settings.partner == "class" and settings.strong_augmentation != "cutmix",
             f"--partner class goes with --strong_augmentation cutmix, not {settings.strong_augmentation}"),
            (settings.partner == "class" and settings.strong_probability == 0,
             "--partner class takes nothing with --strong_probability 0: leave one of them out"),
            (settings.prototype_momentum and not settings.contrastive_weight,
             "--prototype_momentum is about the contrastive loss, which --contrastive_weight 0 leaves out"),
            (settings.warmup == "steps" and settings.warmup_limit != type(settings).warmup_limit,
             f"--warmup_limit {settings.warmup_limit} needs --warmup auto"),
            (settings.warmup == "auto" and (settings.warmup_steps or settings.warmup_epochs),
             "--warmup auto finds out how long it takes: leave out --warmup_steps and --warmup_epochs"),
            (settings.warmup == "auto" and settings.ema_from_start is False,
             "--warmup auto watches the teacher's average: leave out --ema_from_start false"),
        ])  # fmt: skip
        if total_steps:
            require_in_time(settings, "warmup", total_steps)

    @classmethod
    def described(cls, settings: U2PLSettings) -> str:
        """With a word on what is not the paper's."""
        robust = " The variant is not the published method: it has other views, another selection and another teacher."
        return super().described(settings) + (robust if settings.variant == "robust" else "")

    @classmethod
    def mixes_batch(cls, settings: U2PLSettings) -> bool:
        """CutOut takes nothing from other images, and a class's partners are no images of the batch."""
        return settings.strong_augmentation != "cutout" and settings.partner != "class"

    @classmethod
    def unlabelled_from(cls, settings: U2PLSettings) -> int:
        """Warm-up takes labelled images alone, but where it watches unlabelled ones to find its end."""
        return settings.warmup_steps

    @classmethod
    def latest_start(cls, settings: U2PLSettings, total_steps: int) -> int:
        """The end of warm-up."""
        return latest_end(settings.warmup_limit, total_steps) if settings.warmup == "auto" else settings.warmup_steps

    @classmethod
    def state_bytes(cls, settings: U2PLSettings, weights: int, num_labels: int, channels: int) -> dict[str, int]:
        """The teacher, and queues in half precision."""
        keys = settings.background_queue_length + (num_labels - 1) * settings.queue_length
        return {"teacher": weights, "queues": 2 * keys * channels}

    @property
    def warmup_end(self) -> float:
        """The first step after warm-up; infinite while a run has not found it."""
        return self.settings.warmup_steps if self.stability is None else self.stability.end

    def in_warmup(self, batch: Batch, step: int, total_steps: int) -> bool:
        """Whether a pass, which this has to begin, learns from labelled images alone."""
        if self.stability is not None:
            self.stability.watch(self.teacher, batch, step, total_steps)
        warming = step < self.warmup_end
        if warming and self.partners is not None and batch.further.loaded_u is not None:
            # They are watched only; but what a reservoir holds is to follow from the step.
            self.partners.pool.add(batch.further.loaded_u)
        return warming

    def learns_unlabelled(self, step: int) -> bool:
        """From the end of warm-up on."""
        return step >= self.warmup_end

    def found(self) -> dict[str, int | float | None]:
        """The end of a warm-up that ends by itself."""
        return {} if self.stability is None else self.stability.found()

    def learn_labels(self, student: nn.Module, batch: Batch) -> tuple:
        """As ever, into the confidence bank too, and how stable the teacher is."""
        result, output = super().learn_labels(student, batch)
        self.update_confidence(output, batch.y_l, result.stats)
        if self.stability is not None:
            result.stats |= self.stability.told()
        return result, output

    def begin(self, student: nn.Module, step: int) -> None:
        """When warm-up ends, the teacher becomes a copy of the student, unless it is an average already."""
        if step == self.warmup_end and not self.settings.ema_from_start:
            copy_student(self.teacher, student)

    def finish(self, student: nn.Module, step: int) -> None:
        """The teacher's moving average."""
        largest = self.settings.ema_decay
        if self.settings.ema_from_start:
            update_teacher(self.teacher, student, schedules.early_ema_decay(step, largest), buffers=True)
        elif step >= self.warmup_end:
            update_teacher(self.teacher, student, schedules.ema_decay(step - self.warmup_end, largest))

    def model_to_evaluate(self, student: nn.Module, step: int) -> nn.Module:
        """The student during warm-up, the teacher after it, and always where it averages from the start."""
        return self.teacher if self.settings.ema_from_start or step > self.warmup_end else student

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step; `step` counts from 0. Pushes this step's negatives into the queues."""
        settings, labelled = self.settings, len(batch.x_l)
        if self.in_warmup(batch, step, total_steps):
            return self.learn_labels(student, batch)[0]
        mixed = self.pseudo_label(batch)
        output = student(torch.cat([batch.x_l, mixed.x]))
        teacher = self.teach(torch.cat([batch.x_l, mixed.x if mixed.weak is None else mixed.weak]))
        logits = teacher.logits[labelled:]
        if self.alignment is not None:
            logits = self.alignment.align(logits)
        logits = pl.resize_logits(logits, mixed.x.shape[-2:])
        split = self.split(logits, mixed.labels, step / total_steps)
        loss_s = self.supervised_loss(output, batch.y_l)
        loss_u = self.consistency(output.logits[labelled:], mixed, split)
        loss_c, stats = self.contrast(output, teacher, batch.y_l, mixed.labels, self.confident(split), split.unreliable)
        risen = schedules.rampup(step - self.warmup_end, settings.unsupervised_rampup * total_steps)
        total = loss_s + settings.unsupervised_weight * risen * loss_u + settings.contrastive_weight * loss_c
        named = {"loss": total, "loss_supervised": loss_s, "loss_unsupervised": loss_u, "loss_contrastive": loss_c}
        self.update_confidence(output, batch.y_l, stats)
        if self.partners is not None:
            self.partners.prepare(batch)
        stats |= self.told(mixed, split)
        return StepOutput(total, named, stats, mixed.counts(self.num_labels))

    @torch.no_grad()
    def teach(self, images: Tensor, **options):
        """The teacher's output for labelled and mixed images, with their own statistics, or averaged ones."""
        with nullcontext() if self.settings.ema_from_start else batch_statistics(self.teacher):
            return self.teacher(images, output_auxiliary=False, **options)

    def update_confidence(self, output, y_l: Tensor, stats: dict) -> None:
        """Take this step's labelled images into the confidence bank, where there is one, and tell what it holds."""
        if self.bank is not None:
            self.bank.learn(output.logits, y_l)
            stats["confidence_per_class"] = self.bank.confidence.clone()

    def split(self, logits: Tensor, labels: Tensor, progress: float) -> Split:
        """Reliable and unreliable pixels of the teacher's logits (N,C,H,W) at crop size (equations 5 to 7)."""
        alpha = schedules.unreliable_share(progress, self.settings.unreliable_share)
        entropy, valid = pl.pixel_entropy(logits), labels != pl.IGNORE
        if self.settings.class_quantiles:
            gammas = pl.class_quantiles(entropy, labels, 1.0 - alpha, self.num_labels)
            gamma, limit = gammas.nanmean(), gammas[labels.clamp(max=self.num_labels - 1)]
        else:
            gamma = limit = pl.masked_quantile(entropy, 1.0 - alpha, valid)
        reliable, unreliable = pl.split_at(entropy, valid, limit)
        if self.settings.protect_unlearnt:
            unlearnt = self.bank.confidence < self.settings.protect_unlearnt
            reliable = reliable & ~unlearnt[pl.top_classes(logits, self.low_rank)].any(dim=-1)
        return Split(entropy, valid, reliable, unreliable, alpha, gamma)

    def consistency(self, logits: Tensor, mixed: PseudoLabelled, split: Split) -> Tensor:
        """L_u of the student's logits for the mixed images."""
        floor, symmetric = self.settings.confidence_floor, self.settings.symmetric_cross_entropy
        logits = pl.resize_logits(logits, mixed.x.shape[-2:])
        if floor is None:
            return losses.unsupervised_loss(logits, mixed.labels, split.reliable, symmetric=symmetric)
        targets = mixed.labels.masked_fill(~split.reliable, pl.IGNORE)
        return losses.confidence_loss(logits, targets, mixed.prob, split.valid, floor, symmetric=symmetric)

    @staticmethod
    def told(mixed: PseudoLabelled, split: Split) -> dict[str, Tensor | float]:
        """What a run logs of the pseudo-labels."""
        stats = mixed.stats | {"alpha": split.alpha, "gamma": split.gamma}
        stats["reliable_share"] = split.reliable.float().mean()
        if mixed.y is not None:
            stats["accuracy_reliable"] = losses.accuracy(mixed.labels, mixed.y, split.reliable)
            stats["accuracy_unreliable"] = losses.accuracy(mixed.labels, mixed.y, split.unreliable)
        return stats

    @torch.no_grad()
    def pseudo_label(self, batch: Batch) -> PseudoLabelled:
        """The teacher's labels for x_u, then strong augmentation of images, pseudo-labels and labels to watch."""
        settings = self.settings
        if self.partners is not None:
            more = {"colour": settings.strong_colour, "alignment": self.alignment}
            return self.partners.mix(self.teacher, batch, settings.strong_probability, **more)
        labels, prob, stats = pl.label_images(self.teacher, batch.x_u, batch.valid_u, self.alignment)
        # What belongs to an image travels as further channels of it.
        parts = {"weak": batch.x_u, "prob": prob.unsqueeze(1)}
        if settings.strong_colour:
            parts["x"] = strong_view(batch.x_u) * batch.valid_u.unsqueeze(1)
        if batch.y_u is not None:
            parts["y"] = batch.y_u.unsqueeze(1).to(prob.dtype)
        sizes = [part.shape[1] for part in parts.values()]
        images, labels = self.mix(torch.cat([*parts.values()], dim=1), labels)
        # Apart again, as the batch lies in memory.
        last = batch.x_u.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        pieces = (piece.contiguous(memory_format=layout) for piece in images.split(sizes, dim=1))
        parts = dict(zip(parts, pieces, strict=True))
        x, y = parts.get("x", parts["weak"]), parts["y"][:, 0].long() if "y" in parts else None
        weak = parts["weak"] if "x" in parts else None
        return PseudoLabelled(x, labels, parts["prob"][:, 0], y, stats, weak)

    def mix(self, images: Tensor, labels: Tensor) -> Sequence[Tensor]:
        """CutMix or another of images and pseudo-labels; drawn on the host where one draw decides for the batch."""
        settings, mix = self.settings, STRONG_AUGMENTATIONS[self.settings.strong_augmentation]
        if settings.strong_per_image:
            chosen = torch.rand(len(images), 1, 1, device=images.device) < settings.strong_probability
            mixed_images, mixed_labels = mix(images, labels, self.num_labels)
            images = torch.where(chosen.unsqueeze(1), mixed_images, images)
            return images, torch.where(chosen, mixed_labels, labels)
        if torch.rand(()).item() < settings.strong_probability:
            return mix(images, labels, self.num_labels)
        return images, labels

    def confident(self, split: Split) -> Tensor:
        """The unlabelled pixels that may be anchors, bool (B_u,H,W): all reliable ones; officially see defect 5."""
        if self.settings.variant != "official" or 5 in self.settings.fixed_defects:
            return split.reliable
        return official.lowest_entropy(split.entropy, split.valid, split.alpha)

    def select(self, y_l: Tensor, pseudo_labels: Tensor, confident: Tensor, unreliable: Tensor, prob: Tensor):
        """Anchors, positives and negatives of each class, bool (B,C,h,w); all arguments at feature size."""
        settings, labelled, ranks = self.settings, len(y_l), (self.low_rank, self.high_rank)
        if settings.variant == "official":
            return official.select_pixels(
                y_l,
                pseudo_labels,
                confident,
                unreliable,
                prob,
                anchor_threshold=settings.anchor_threshold,
                low_rank=self.low_rank,
                high_rank=self.high_rank,
                fixed=settings.fixed_defects,
            )
        classes = torch.cat([y_l, pseudo_labels.masked_fill(~confident, pl.IGNORE)])
        anchors = pl.anchor_mask(classes, prob, settings.anchor_threshold)
        return anchors, anchors, pl.negative_mask(y_l, prob[:labelled], unreliable, prob[labelled:], *ranks)

    def contrast(self, output, teacher, y_l: Tensor, pseudo_labels: Tensor, confident: Tensor, unreliable: Tensor):
        """L_c at feature size: choose anchors and negatives, push the negatives, then contrast."""
        settings, size = self.settings, teacher.logits.shape[-2:]
        is_official = settings.variant == "official"
        with torch.no_grad():
            prob = teacher.logits.float().softmax(dim=1)
            maps = (pl.nearest_on_corners(m, size) for m in (y_l, pseudo_labels, confident, unreliable))
            anchors, positives, negatives = self.select(*maps, prob)
            keys, valid = select_keys(
                teacher.representation, negatives, settings.new_keys_per_class, in_order=is_official
            )
            keys, valid = gather_keys(keys, valid)
            self.queues.push(keys, valid)
        more = {"fixed": settings.fixed_defects} if is_official else {}
        if self.prototypes is not None:
            more["prototypes"] = self.prototypes.update(teacher.representation, positives)
        contrastive_loss = official.contrastive_loss if is_official else losses.contrastive_loss
        loss, used = contrastive_loss(
            output.representation,
            teacher.representation,
            anchors,
            self.queues,
            positives=positives,
            num_anchors=settings.num_anchors,
            num_negatives=settings.num_negatives,
            temperature=settings.temperature,
            **more,
        )
        stats = {
            "anchor_classes": used.sum().float(),
            "queue_fill": self.queues.fill.float().mean() / self.queues.capacity.float().mean(),
            "anchors_per_class": anchors.sum(dim=(0, 2, 3)),
            "new_keys_per_class": valid.sum(dim=1),
            "queue_fill_per_class": self.queues.fill / self.queues.capacity,
        }
        return loss, stats
