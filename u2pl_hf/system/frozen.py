"""Parts of a network that do not learn: their parameters have no gradient, their BatchNorm no new statistics."""

from functools import cache

from torch import nn
from transformers import PreTrainedModel

from u2pl_hf.errors import InputError


class Frozen:
    """Stays in eval mode, whoever calls `train`. A type of its own, so that copies of a module have it too."""

    def train(self, mode: bool = True):
        """Eval mode, for all that is inside as well."""
        return super().train(False)


@cache
def _frozen(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (Frozen, kind), {"__module__": kind.__module__})


def freeze(model: PreTrainedModel, part: str) -> PreTrainedModel:
    """Keep a part of a fresh network as it is, in place; weights may still be loaded. Names of tensors stay.

    Args:
        part: `backbone`, all of it; `batchnorm`, the backbone's BatchNorm, statistics and affine; `none`.

    Raises:
        InputError: there is nothing to freeze.
    """
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if part == "batchnorm" and not norms:
        raise InputError(
            f"--freeze batchnorm: the backbone {model.config.backbone} has no BatchNorm; pass backbone, or none"
        )
    # BatchNorm in a frozen backbone too: the teacher calls `train` of each.
    for module in {"none": [], "batchnorm": norms, "backbone": [model.backbone, *norms]}[part]:
        module.__class__ = _frozen(type(module))
        module.requires_grad_(False).eval()
    return model
