"""A method from outside the package: consistency where the teacher is confident enough (after FixMatch)."""

import copy
from dataclasses import dataclass

import torch

from u2pl_hf.method import MethodSettings, Step, StepOutput, register, setting
from u2pl_hf.method.losses import confidence_loss
from u2pl_hf.method.mixing import cutmix
from u2pl_hf.method.pseudo_labels import IGNORE, resize_logits
from u2pl_hf.method.teacher import update_teacher


@register
class Confident(Step):
    """CutMix of images that a moving average has labelled; what it is unsure of is not learnt."""

    name, title = "confident", "Confident consistency"
    about = "It learned from pixels whose pseudo-labels were confident (a test of tests/training)."

    @dataclass(frozen=True)
    class Settings(MethodSettings):
        """Of this method alone."""

        confidence_threshold: float = setting(0.5, "least confidence that counts", at_least=0, at_most=1)
        teacher_decay: float = setting(0.9, "of the moving average", at_most=1)

    def __init__(self, settings, student, pools=None):
        super().__init__(settings, student, pools)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()

    @classmethod
    def state_bytes(cls, settings, weights, num_labels, channels):
        """The teacher is one more network."""
        return {"teacher": weights}

    def forward(self, student, batch, step, total_steps):
        """L_s + L_u."""
        with torch.no_grad():
            logits = resize_logits(self.teacher(batch.x_u).logits, batch.x_u.shape[-2:])
            confidence, labels = logits.softmax(dim=1).max(dim=1)
            sure = batch.valid_u & (confidence >= self.settings.confidence_threshold)
            x_u, labels = cutmix(batch.x_u, labels.masked_fill(~sure, IGNORE), logits.shape[1])
        output = student(torch.cat([batch.x_l, x_u]))
        loss_s = self.supervised_loss(output, batch.y_l)
        logits, valid = resize_logits(output.logits[len(batch.x_l) :], x_u.shape[-2:]), torch.ones_like(sure)
        loss_u = confidence_loss(logits, labels, torch.ones_like(confidence), valid, 0.0)
        named = {"loss": loss_s + loss_u, "loss_supervised": loss_s, "loss_unsupervised": loss_u}
        return StepOutput(named["loss"], named, {"confidence": confidence.mean()})

    def finish(self, student, step):
        """The moving average."""
        update_teacher(self.teacher, student, self.settings.teacher_decay, buffers=True)

    def model_to_evaluate(self, student, step):
        """The teacher."""
        return self.teacher
