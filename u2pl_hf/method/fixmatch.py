"""FixMatch for segmentation, as UniMatch-V2's published code has it (fixmatch.py)."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from u2pl_hf.errors import require
from u2pl_hf.fields import setting
from u2pl_hf.method import losses, schedules
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.alignment import Alignment
from u2pl_hf.method.base import MethodSettings, Step, StepOutput, register
from u2pl_hf.method.batch import Batch, ImagePools
from u2pl_hf.method.mixing import box_masks, take_from_next
from u2pl_hf.method.partners import ClassPartners, class_banks
from u2pl_hf.method.pseudo_labels import PseudoLabelled
from u2pl_hf.method.teacher import update_teacher
from u2pl_hf.method.views import cutmix_boxes, strong_view


@register
class FixMatch(Step):
    """FixMatch. Owns the teacher, a moving average from the first step on."""

    name, title = "fixmatch", "FixMatch"
    about = (
        "FixMatch (Sohn et al., NeurIPS 2020), in its form for segmentation, also learns from unlabelled images: a "
        "teacher labels them as they are, and where it is sure, the student must say the same of a view that is "
        "strongly changed in colour and mixed with another image."
    )

    @dataclass(frozen=True)
    class Settings(MethodSettings):
        """Names of the published configuration in brackets."""

        confidence_threshold: float = setting(
            0.95, "least confidence of the teacher in a pixel that is learnt from (conf_thresh)", at_most=1
        )
        unsupervised_weight: float = setting(1.0, "weight of the loss on unlabelled images")
        strong_colour: bool = setting(True, "colour jitter, grey and blur in the student's view")
        cutmix_probability: float = setting(0.5, "of CutMix, one draw per image", at_most=1)
        partner: str = setting(
            "next",
            "what CutMix takes pixels from: the next image of the batch, or one that shows a class that is badly "
            "known, as AEL chooses it",
            choices=("next", "class"),
        )
        distribution_alignment: float = setting(
            0.0,
            "how far pseudo-labels are made as frequent as labels, class by class: 1 wholly; only where unlabelled "
            "images show about the same mix of classes",
            at_most=1,
        )
        ema_decay: float = setting(0.996, "largest decay of the teacher's moving average", at_most=1)

    def __init__(self, settings: Settings, student: nn.Module, pools: ImagePools | None = None):
        super().__init__(settings, student, pools)
        self.num_labels = student.config.num_labels
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.partners: ClassPartners | None = None
        self.alignment: Alignment | None = None
        if settings.distribution_alignment:
            self.alignment = Alignment(settings.distribution_alignment, pools.counts, pools.passes)
        if settings.partner == "class":
            banks = class_banks(pools, self.num_labels)
            self.bank, self.categories = banks
            self.partners = ClassPartners(pools.unlabelled, *banks)

    @classmethod
    def check(cls, settings: Settings, *, num_labels: int | None = None, total_steps: int | None = None) -> None:
        """Refuse partners that nothing is taken from."""
        super().check(settings, num_labels=num_labels, total_steps=total_steps)
        unused = settings.partner == "class" and not settings.cutmix_probability
        require(not unused, "--partner class takes nothing with --cutmix_probability 0: leave one of them out")

    @classmethod
    def mixes_batch(cls, settings: Settings) -> bool:
        """CutMix takes pixels of the next image."""
        return settings.partner == "next" and settings.cutmix_probability > 0

    @classmethod
    def state_bytes(cls, settings: Settings, weights: int, num_labels: int, channels: int) -> dict[str, int]:
        """The teacher."""
        return {"teacher": weights}

    def finish(self, student: nn.Module, step: int) -> None:
        """The teacher's moving average, over parameters and buffers."""
        update_teacher(self.teacher, student, schedules.ema_decay(step, self.settings.ema_decay), buffers=True)

    def model_to_evaluate(self, student: nn.Module, step: int) -> nn.Module:
        """The teacher."""
        return self.teacher

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step."""
        (view,) = self.views(batch, 1)
        output = student(torch.cat([batch.x_l, view.x]))
        loss_s = self.supervised_loss(output, batch.y_l)
        loss_u = self.consistency(output.logits[len(batch.x_l) :], view)
        if self.partners is not None:
            self.partners.learn(output.logits[: len(batch.x_l)], batch)
        return self.told(loss_s, loss_u, self.attached(output), view)

    @torch.no_grad()
    def views(self, batch: Batch, number: int) -> list[PseudoLabelled]:
        """Strong views of x_u, each with its own draws and all that belongs to it, mixed likewise; one of partners."""
        settings = self.settings
        if self.partners is not None:
            more = {"colour": settings.strong_colour, "alignment": self.alignment}
            return [self.partners.mix(self.teacher, batch, settings.cutmix_probability, **more)]
        labelled = pl.label_images(self.teacher, batch.x_u, batch.valid_u, self.alignment)
        return [self.view(batch, *labelled) for _ in range(number)]

    def view(self, batch: Batch, labels: Tensor, prob: Tensor, stats: dict[str, Tensor]) -> PseudoLabelled:
        """A strong view, boxes of it taken from the next images."""
        x, settings = batch.x_u, self.settings
        if settings.strong_colour:
            x = strong_view(x) * batch.valid_u.unsqueeze(1)
        boxes = cutmix_boxes(len(x), *x.shape[-2:], settings.cutmix_probability).to(x.device, non_blocking=True)
        taken = box_masks(*boxes.unsqueeze(-1).unbind(dim=1), *x.shape[-2:])
        watched = () if batch.y_u is None else (batch.y_u,)
        x, labels, prob, *y = take_from_next(taken, x, labels, prob, *watched)
        return PseudoLabelled(x, labels, prob, y[0] if y else None, stats)

    def consistency(self, logits: Tensor, view: PseudoLabelled) -> Tensor:
        """L_u of one view."""
        logits = pl.resize_logits(logits, view.x.shape[-2:])
        valid = view.labels != pl.IGNORE
        return losses.confidence_loss(logits, view.labels, view.prob, valid, self.settings.confidence_threshold)

    def told(self, loss_s: Tensor, loss_u: Tensor, attached: Tensor | float, view: PseudoLabelled) -> StepOutput:
        """The total, and what a run logs, of one view of the unlabelled images."""
        total = loss_s + self.settings.unsupervised_weight * loss_u + attached
        named = {"loss": total, "loss_supervised": loss_s, "loss_unsupervised": loss_u}
        valid = view.labels != pl.IGNORE
        sure = valid & (view.prob >= self.settings.confidence_threshold)
        stats = view.stats | {"confident_share": sure.sum() / valid.sum().clamp(min=1)}
        if view.y is not None:
            stats["accuracy_confident"] = losses.accuracy(view.labels, view.y, sure)
        return StepOutput(total, named, stats, view.counts(self.num_labels))
