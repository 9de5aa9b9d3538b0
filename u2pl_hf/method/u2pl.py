"""U2PL (Wang et al., CVPR 2022): algorithm 1 in order. Variant `official` chooses other pixels, see official.py."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from u2pl_hf.errors import refuse
from u2pl_hf.fields import setting
from u2pl_hf.method import losses, official, schedules
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.base import Batch, ImagePools, MethodSettings, Step, StepOutput, register, require_in_time
from u2pl_hf.method.mixing import STRONG_AUGMENTATIONS
from u2pl_hf.method.queues import ClassQueues, gather_keys, select_keys
from u2pl_hf.method.teacher import batch_statistics, copy_student, update_teacher
from u2pl_hf.method.warmup import Stability, latest_end


@dataclass(frozen=True)
class PseudoLabelled:
    """What the student is given of the unlabelled images, mixed.

    Attributes:
        x: (B_u,3,H,W).
        labels: the teacher's labels, int64 (B_u,H,W), 255 on padding.
        y: true labels, where someone wants to watch.
        stats: the teacher's mean confidence, and what else there is to tell.
        prob: the teacher's probability of each label (B_u,H,W), for methods that use it.
    """

    x: Tensor
    labels: Tensor
    y: Tensor | None
    stats: dict[str, Tensor]
    prob: Tensor | None = None


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


@register
class U2PL(Step):
    """U2PL (algorithm 1). Owns the teacher and the queues; both belong into a checkpoint."""

    name, title = "u2pl", "U2PL"
    about = (
        "U2PL (Wang et al., CVPR 2022) also learns from pixels whose pseudo-labels are too uncertain to train on: it "
        "uses them as negatives, in a contrastive loss, for the classes they almost surely do not belong to."
    )
    uses_representation = True

    @dataclass(frozen=True)
    class Settings(MethodSettings):
        """Symbols are the paper's."""

        variant: str = setting("paper", "as in the paper, or as in the published code", choices=("paper", "official"))
        fixed_defects: list[int] = setting(
            [], "of --variant official: differences to put right, 1 to 6 (docs/fidelity.md)"
        )
        warmup: str = setting(
            "steps",
            "supervised steps before the teacher starts: warmup_steps, or auto, until its labels are stable",
            choices=("steps", "auto"),
        )
        warmup_steps: int = setting(0, "how many, with --warmup steps")
        warmup_epochs: float = setting(0.0, "the same in epochs", counts="warmup_steps")
        warmup_limit: float = setting(0.5, "of --warmup auto: share of the steps that it takes at most", below=1)
        ema_decay: float = setting(0.99, "largest decay of the teacher's moving average", at_most=1)
        unreliable_share: float = setting(0.2, "alpha_0, share of pixels taken as unreliable at the start", at_most=1)
        unsupervised_weight: float = setting(1.0, "lambda_u")
        contrastive_weight: float = setting(0.1, "lambda_c; published code: 0.25 on VOC, 0.125 on Cityscapes")
        strong_augmentation: str = setting("cutmix", "mixing of unlabelled images", choices=tuple(STRONG_AUGMENTATIONS))
        strong_probability: float = setting(0.5, "probability of mixing, one draw per batch", at_most=1)
        anchor_threshold: float = setting(0.3, "delta_p, least probability of an anchor's class", at_most=1)
        low_rank: int | None = setting(None, "r_l; default min(3, classes // 2), at least 1")
        high_rank: int = setting(20, "r_h")
        temperature: float = setting(0.5, "tau of InfoNCE", above=0)
        num_anchors: int = setting(256, "anchors per class and step", at_least=1, at_most=100_000)
        num_negatives: int = setting(50, "negatives per anchor", at_least=1, at_most=100_000)
        queue_length: int = setting(30_000, "negatives kept per class", at_least=1, at_most=100_000_000)
        background_queue_length: int = setting(50_000, "negatives kept for class 0", at_least=1, at_most=100_000_000)
        new_keys_per_class: int = setting(
            256,
            "most negatives pushed per class, process and step; published code: all",
            at_least=1,
            at_most=100_000_000,
        )

        def __post_init__(self):
            object.__setattr__(self, "fixed_defects", sorted({*self.fixed_defects}))

        def ranks(self, num_labels: int) -> tuple[int, int]:
            """r_l and r_h for a number of classes."""
            low = pl.default_low_rank(num_labels) if self.low_rank is None else self.low_rank
            return low, self.high_rank

    def __init__(self, settings: Settings, student: nn.Module, pools: ImagePools | None = None):
        super().__init__(settings, student, pools)
        self.num_labels = student.config.num_labels
        self.low_rank, self.high_rank = settings.ranks(self.num_labels)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        lengths = [settings.background_queue_length] + [settings.queue_length] * (self.num_labels - 1)
        self.queues = ClassQueues(lengths, student.config.representation_channels)
        self.stability = Stability(self.num_labels, settings.warmup_limit) if settings.warmup == "auto" else None

    @classmethod
    def check(cls, settings: Settings, *, num_labels: int | None = None, total_steps: int | None = None) -> None:
        """Refuse ranks that leave no negatives, defects that are not there, and a warm-up without an end."""
        low, high = settings.ranks(num_labels) if num_labels else (1, 2)
        refuse([
            (num_labels and not 1 <= low < min(high, num_labels),
             f"--low_rank {low} --high_rank {high} leave no rank for negatives among {num_labels} classes: "
             f"low_rank must lie in 1..{(num_labels or 0) - 1} and below high_rank"),
            (settings.fixed_defects and settings.variant == "paper",
             "--fixed_defects needs --variant official, whose differences from the paper they are"),
            (not {*settings.fixed_defects} <= {*official.DEFECTS},
             f"--fixed_defects {settings.fixed_defects} must be among 1 2 3 4 5 6"),
            (settings.warmup == "auto" and (settings.warmup_steps or settings.warmup_epochs),
             "--warmup auto finds out how long it takes: leave out --warmup_steps and --warmup_epochs, or pass "
             "--warmup_steps 0 where a recipe has them"),
        ])  # fmt: skip
        if total_steps:
            require_in_time(settings, "warmup", total_steps)

    @classmethod
    def mixes_batch(cls, settings: Settings) -> bool:
        """CutOut takes nothing from other images."""
        return settings.strong_augmentation != "cutout"

    @classmethod
    def unlabelled_from(cls, settings: Settings) -> int:
        """Warm-up takes labelled images alone, but where it watches unlabelled ones to find its end."""
        return settings.warmup_steps

    @classmethod
    def latest_start(cls, settings: Settings, total_steps: int) -> int:
        """The end of warm-up."""
        return latest_end(settings.warmup_limit, total_steps) if settings.warmup == "auto" else settings.warmup_steps

    @classmethod
    def state_bytes(cls, settings: Settings, weights: int, num_labels: int, channels: int) -> dict[str, int]:
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
        return step < self.warmup_end

    def learns_unlabelled(self, step: int) -> bool:
        """From the end of warm-up on."""
        return step >= self.warmup_end

    def found(self) -> dict[str, int | float | None]:
        """The end of a warm-up that ends by itself."""
        return {} if self.stability is None else self.stability.found()

    def learn_labels(self, student: nn.Module, batch: Batch) -> tuple:
        """As ever, and how stable the teacher is."""
        result, output = super().learn_labels(student, batch)
        if self.stability is not None:
            result.stats |= self.stability.told()
        return result, output

    def begin(self, student: nn.Module, step: int) -> None:
        """When a warm-up of so many steps ends, the teacher becomes a copy of the student."""
        if self.stability is None and step == self.warmup_end:
            copy_student(self.teacher, student)

    def finish(self, student: nn.Module, step: int) -> None:
        """The teacher's moving average; from the first step on where its stability ends warm-up."""
        if self.stability is not None:
            decay = schedules.early_ema_decay(step, self.settings.ema_decay)
            update_teacher(self.teacher, student, decay, buffers=step < self.warmup_end)
        elif step >= self.warmup_end:
            update_teacher(self.teacher, student, schedules.ema_decay(step - self.warmup_end, self.settings.ema_decay))

    def model_to_evaluate(self, student: nn.Module, step: int) -> nn.Module:
        """The student during warm-up, the teacher after it."""
        return self.teacher if step > self.warmup_end else student

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step; `step` counts from 0. Pushes this step's negatives into the queues."""
        settings, labelled = self.settings, len(batch.x_l)
        if self.in_warmup(batch, step, total_steps):
            return self.learn_labels(student, batch)[0]
        mixed = self.pseudo_label(batch)
        images = torch.cat([batch.x_l, mixed.x])
        output = student(images)
        with torch.no_grad(), batch_statistics(self.teacher):
            teacher = self.teacher(images, output_auxiliary=False)

        logits = pl.resize_logits(teacher.logits[labelled:], mixed.x.shape[-2:])
        split = self.split(logits, mixed.labels, step / total_steps)
        loss_s = self.supervised_loss(output, batch.y_l)
        student_logits = pl.resize_logits(output.logits[labelled:], mixed.x.shape[-2:])
        loss_u = losses.unsupervised_loss(student_logits, mixed.labels, split.reliable)
        loss_c, stats = self.contrast(output, teacher, batch.y_l, mixed.labels, self.confident(split), split.unreliable)
        total = loss_s + settings.unsupervised_weight * loss_u + settings.contrastive_weight * loss_c
        named = {"loss": total, "loss_supervised": loss_s, "loss_unsupervised": loss_u, "loss_contrastive": loss_c}
        return StepOutput(total, _detached(named), stats | self.told(mixed, split))

    def split(self, logits: Tensor, labels: Tensor, progress: float) -> Split:
        """Reliable and unreliable pixels of the teacher's logits (N,C,H,W) at crop size (equations 5 to 7)."""
        alpha = schedules.unreliable_share(progress, self.settings.unreliable_share)
        entropy, valid = pl.pixel_entropy(logits), labels != pl.IGNORE
        gamma = pl.masked_quantile(entropy, 1.0 - alpha, valid)
        return Split(entropy, valid, *pl.split_at(entropy, valid, gamma), alpha, gamma)

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
            images, pseudo_labels = mix(images, pseudo_labels, self.num_labels)
            x_u, y_u = images[:, :3], None if y_u is None else images[:, 3].long()
        return PseudoLabelled(x_u, pseudo_labels, y_u, {"confidence": confidence})

    def confident(self, split: Split) -> Tensor:
        """The unlabelled pixels that may be anchors, bool (B_u,H,W): all reliable ones; officially see defect 5."""
        if self.settings.variant == "paper" or 5 in self.settings.fixed_defects:
            return split.reliable
        return official.lowest_entropy(split.entropy, split.valid, split.alpha)

    def select(self, y_l: Tensor, pseudo_labels: Tensor, confident: Tensor, unreliable: Tensor, prob: Tensor):
        """Anchors, positives and negatives of each class, bool (B,C,h,w); all arguments at feature size."""
        settings, labelled, ranks = self.settings, len(y_l), (self.low_rank, self.high_rank)
        if settings.variant != "paper":
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
        is_official = settings.variant != "paper"
        with torch.no_grad():
            prob = teacher.logits.float().softmax(dim=1)
            maps = (pl.nearest_on_corners(m, size) for m in (y_l, pseudo_labels, confident, unreliable))
            anchors, positives, negatives = self.select(*maps, prob)
            keys, valid = select_keys(
                teacher.representation, negatives, settings.new_keys_per_class, in_order=is_official
            )
            keys, valid = gather_keys(keys, valid)
            self.queues.push(keys, valid)
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
            **({"fixed": settings.fixed_defects} if is_official else {}),
        )
        stats = {
            "anchor_classes": used.sum().float(),
            "queue_fill": self.queues.fill.float().mean() / self.queues.capacity.float().mean(),
            "anchors_per_class": anchors.sum(dim=(0, 2, 3)),
            "new_keys_per_class": valid.sum(dim=1),
            "queue_fill_per_class": self.queues.fill / self.queues.capacity,
        }
        return loss, stats


def _detached(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in named.items()}
