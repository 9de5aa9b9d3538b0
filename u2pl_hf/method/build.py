"""The step of each method."""

from typing import Protocol

from torch import nn

from u2pl_hf.method.ael import ImagePool
from u2pl_hf.method.ael_step import AELStep
from u2pl_hf.method.step import MethodSettings, OfficialU2PLStep, SupervisedStep, U2PLStep


class ImagePools(Protocol):
    """Further images for methods that ask for some; nothing is read before that."""

    labelled: ImagePool
    unlabelled: ImagePool


def build_step(
    method: str, settings: MethodSettings, student: nn.Module, pools: ImagePools | None = None
) -> SupervisedStep:
    """The step of a method: `suponly`, `u2pl` (`settings.variant` says which one), or `u2pl_ael`, which needs pools."""
    if method == "suponly":
        return SupervisedStep(settings)
    if method == "u2pl_ael":
        return AELStep(settings, student, pools.labelled, pools.unlabelled)
    return {"paper": U2PLStep, "official": OfficialU2PLStep}[settings.variant](settings, student)
