"""UniMatch V2 (Yang et al., 2024), as its published code has it (unimatch_v2.py): FixMatch with two views."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from u2pl_hf.errors import InputError
from u2pl_hf.method.base import StepOutput, register
from u2pl_hf.method.batch import Batch, ImagePools
from u2pl_hf.method.fixmatch import FixMatch


@register
class UniMatchV2(FixMatch):
    """FixMatch with two strong views of each image, whose features lose complementary channels."""

    name, title = "unimatch_v2", "UniMatch V2"
    about = (
        f"{FixMatch.about} UniMatch V2 (Yang, Zhao and Zhao, 2024) shows the student two such views, and lets each "
        "lose those channels of the backbone's features that the other one keeps."
    )

    def __init__(self, settings: FixMatch.Settings, student: nn.Module, pools: ImagePools | None = None):
        super().__init__(settings, student, pools)
        self.channels = student.feature_channels

    @classmethod
    def check(
        cls, settings: FixMatch.Settings, *, num_labels: int | None = None, total_steps: int | None = None
    ) -> None:
        """Refuse what has one view only."""
        if settings.partner != "next":
            raise InputError(f"--partner {settings.partner} goes with --method fixmatch or u2pl, not unimatch_v2")
        super().check(settings, num_labels=num_labels, total_steps=total_steps)

    @classmethod
    def labels_alone(cls, settings: FixMatch.Settings, total_steps: int) -> bool:
        """Always."""
        return True

    @classmethod
    def student_images(cls, labelled: int, unlabelled: int) -> int:
        """Two views of the unlabelled ones."""
        return labelled + 2 * unlabelled

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step; labelled images have a pass of their own."""
        first, second = self.views(batch, 2)
        output = student(batch.x_l)
        scales = complementary_scales(len(batch.x_u), self.channels, batch.x_u.device)
        views = student(torch.cat([first.x, second.x]), feature_scales=scales)
        loss_s = self.supervised_loss(output, batch.y_l)
        parts = zip(views.logits.chunk(2), (first, second), strict=True)
        loss_u = sum(self.consistency(logits, view) for logits, view in parts) / 2
        return self.told(loss_s, loss_u, self.attached(output) + self.attached(views), first)


def complementary_scales(images: int, channels: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """Factors on the features of two views: (2 images, D) for each stage's number D of channels, the first view first.

    The first view's are 0 or 2 with equal probability, the second's what is missing to 2: what one loses, the other
    has. Half of the images, drawn anew, keep all in both views. Stages of one width share a draw, as the taps of a
    transformer do in the published code; others draw apart.
    """
    kept, scales = torch.rand(images, device=device).argsort() < images // 2, {}
    for number in dict.fromkeys(channels):
        mask = 2.0 * torch.randint(0, 2, (images, number), device=device)
        mask = torch.where(kept.unsqueeze(1), torch.ones_like(mask), mask)
        scales[number] = torch.cat([mask, 2.0 - mask])
    return tuple(scales[number] for number in channels)
