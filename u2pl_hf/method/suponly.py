"""SupOnly: the supervised baseline."""

from torch import nn

from u2pl_hf.method.base import Step, StepOutput, register
from u2pl_hf.method.batch import Batch


@register
class SupOnly(Step):
    """The supervised loss on labelled images. There is no teacher."""

    name, title = "suponly", "SupOnly"
    about = "A supervised baseline: it learns from the labelled images only."
    uses_unlabelled = False

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """L_s (equation 2)."""
        return self.learn_labels(student, batch)[0]
