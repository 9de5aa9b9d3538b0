"""A model for inference alone: BatchNorm becomes part of the convolution before it."""

import copy
import itertools
from collections.abc import Iterator

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from u2pl_hf.model.backbone_u2pl import BasicBlock, Bottleneck, ClosingNorm, U2PLBackbone

# Where bn1 comes behind conv1, bn2 behind conv2 ...; anywhere else, only neighbours in an nn.Sequential are pairs.
PAIRED_BY_NUMBER = (U2PLBackbone, BasicBlock, Bottleneck)


def folded(model: nn.Module) -> nn.Module:
    """A copy in eval mode that computes the same, but for rounding, with fewer passes over its maps.

    For inference: neither to be trained nor saved. BatchNorm inside backbones of transformers and timm mostly stays.

    Args:
        model: U2PLForSemanticSegmentation, of any floating type; it stays as it is.
    """
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for owner, conv, norm in list(_neighbours(parent)):
            before, after = getattr(owner, conv), getattr(parent, norm)
            # Exactly these types: those that others derive from them do more, such as timm's.
            if type(before) is nn.Conv2d and type(after) in (nn.BatchNorm2d, ClosingNorm):
                setattr(owner, conv, fuse_conv_bn_eval(before, after))
                setattr(parent, norm, nn.Identity().eval())
    return model


def _neighbours(parent: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Modules that follow each other: owner and name of the first, and the name of the second in `parent`."""
    names = [name for name, _ in parent.named_children()]
    if isinstance(parent, nn.Sequential):
        yield from ((parent, *pair) for pair in itertools.pairwise(names))
    elif isinstance(parent, PAIRED_BY_NUMBER):
        for norm in [name for name in names if name.startswith("bn")]:
            conv = norm.replace("bn", "conv")
            # The deep stem is several convolutions.
            stem = getattr(parent, conv)
            yield (stem, str(len(stem) - 1), norm) if isinstance(stem, nn.Sequential) else (parent, conv, norm)
