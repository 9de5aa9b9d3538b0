"""A model for inference alone: BatchNorm is part of the convolution before it, and no kernel reads padding alone."""

import copy
import itertools
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from u2pl_hf.model.backbone_u2pl import BasicBlock, Bottleneck, ClosingNorm, U2PLBackbone
from u2pl_hf.model.modeling_u2pl import U2PLASPP

# Where bn1 comes behind conv1, bn2 behind conv2 ...; anywhere else, only neighbours in an nn.Sequential are pairs.
PAIRED_BY_NUMBER = (U2PLBackbone, BasicBlock, Bottleneck)


class TrimmedConv(nn.Module):
    """A 3x3 convolution of stride 1, without the rows and columns of its kernel that would see nothing but padding.

    Where its dilation is as large as the map, a 3x3 convolution is a 1x1 one (Chen et al., arXiv 1706.05587, 3.3): with
    dilation 36 and output stride 16, on images of up to 576 pixels.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B,in,h,w) -> (B,out,h,w)."""
        conv = self.conv
        sees = [dilation < side for dilation, side in zip(conv.dilation, x.shape[-2:], strict=True)]
        rows, columns = (slice(None) if more else slice(1, 2) for more in sees)
        padding = [dilation if more else 0 for dilation, more in zip(conv.dilation, sees, strict=True)]
        return F.conv2d(x, conv.weight[:, :, rows, columns], conv.bias, 1, padding, conv.dilation, conv.groups)


def folded(model: nn.Module) -> nn.Module:
    """A copy in eval mode that computes the same, but for rounding, with less work.

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
    for aspp in [module for module in model.modules() if isinstance(module, U2PLASPP)]:
        for branch in aspp.branches[1:]:
            branch[0] = TrimmedConv(branch[0]).eval()
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
