"""The head of DPT (Ranftl et al., ICCV 2021), as UniMatch V2's published code has it (model/semseg/dpt.py).

Four maps of the backbone, each brought to F channels, are fused from the deepest to the first. A plain vision
transformer gives them all at the size of its patches, and they become a pyramid first.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

TAPS = 4
# Channels of the pyramid, by those of the transformer, where they are not 1/8, 1/4, 1/2 and all of them.
NECKS = {1024: (256, 512, 1024, 1024), 1536: (1536, 1536, 1536, 1536)}


class PlainConv(nn.Conv2d):
    """A convolution that no BatchNorm follows; known by its type, because it is initialised in another way."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        padding = dilation * (kernel // 2)
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias)


class OutputConv(PlainConv):
    """The 1x1 convolution that ends a head."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = PlainConv(channels, channels, 3)
        self.conv2 = PlainConv(channels, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, F, h, w) -> same."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))


class Fusion(nn.Module):
    """One level: what came from below, if anything, plus its own map.

    The deepest level has nothing to add its map to: as published, it has a `skip` all the same, which nothing uses.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.skip = ResidualUnit(channels)
        self.unit = ResidualUnit(channels)
        self.project = PlainConv(channels, channels, 1)

    def forward(self, x: torch.Tensor, deeper: torch.Tensor | None) -> torch.Tensor:
        """(B, F, h, w) twice -> the same size.

        The published code projects after its resize; the two commute, and here the map is four times smaller.
        """
        return self.project(self.unit(x if deeper is None else deeper + self.skip(x)))


class U2PLDPT(nn.Module):
    """Four maps -> one of `width` channels: 8 times the size of the patches, or the size of a pyramid's first map."""

    def __init__(self, channels: Sequence[int], width: int, from_patches: bool):
        super().__init__()
        self.projects = self.resizes = None
        if from_patches:
            hidden, channels = channels, NECKS.get(channels[-1], [max(1, channels[-1] // n) for n in (8, 4, 2, 1)])
            self.projects = nn.ModuleList(PlainConv(c, n, 1) for c, n in zip(hidden, channels, strict=True))
            first, second, _, last = channels
            self.resizes = nn.ModuleList(
                [
                    nn.ConvTranspose2d(first, first, 4, 4),
                    nn.ConvTranspose2d(second, second, 2, 2),
                    nn.Identity(),
                    PlainConv(last, last, 3, stride=2),
                ]
            )
        self.inputs = nn.ModuleList(PlainConv(n, width, 3, bias=False) for n in channels)
        self.fusions = nn.ModuleList(Fusion(width) for _ in range(TAPS))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (B, c_i, h_i, w_i), the first of the backbone first -> (B, F, h, w)."""
        if self.projects is not None:
            maps = [resize(project(x)) for resize, project, x in zip(self.resizes, self.projects, maps, strict=True)]
        fused, maps = None, [conv(x) for conv, x in zip(self.inputs, maps, strict=True)]
        for level in reversed(range(TAPS)):
            if fused is not None:
                fused = resize(fused, maps[level].shape[-2:])
            fused = self.fusions[level](maps[level], fused)
        return fused if self.projects is None else resize(fused, [2 * side for side in fused.shape[-2:]])


def dpt_classifier(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    """What reads the fused map: 3x3 convolution, ReLU, 1x1."""
    return nn.Sequential(PlainConv(in_channels, width, 3), nn.ReLU(inplace=True), OutputConv(width, out_channels))


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear, on the grid of the published method: corners aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def positions_as_published(self: nn.Module, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """DINOv2's position embeddings (1, 1 + patches, D) for an image of any size; takes the place of a method.

    As its authors interpolate (bicubic, 0.1 patch added to the size that the scale is made of), where transformers
    takes the size itself. As matrix products, whose gradient is the same in every run on a GPU.
    """
    table, (patch_height, patch_width) = self.position_embeddings, self.patch_embeddings.patch_size
    side, rows, columns = math.isqrt(table.shape[1] - 1), height // patch_height, width // patch_width
    # The size of its training is not interpolated. No branch: an exported network takes all sizes.
    offset = 0.1 * torch.sym_min(1, (rows - side) ** 2 + (columns - side) ** 2)
    vertical, horizontal = (_bicubic(n, side, offset, table.device) for n in (rows, columns))
    grid = table[0, 1:].view(side, side, -1).float()
    # "meta", where a plan counts, has no autocast.
    with torch.autocast("cpu" if table.is_meta else table.device.type, enabled=False):
        grid = torch.einsum("ri,cj,ijd->rcd", vertical, horizontal, grid)
    return torch.cat([table[:, :1], grid.flatten(0, 1).unsqueeze(0).to(table.dtype)], dim=1)


def _bicubic(number: int, side: int, offset: float, device: torch.device) -> torch.Tensor:
    """Weights (number, side) of a cubic interpolation (a = -0.75) from `side` to `number` points, edges continued."""
    scale = (number + offset) / side
    centres = (torch.arange(number, device=device) + 0.5) / scale - 0.5
    x = (centres.unsqueeze(1) - torch.arange(-2, side + 2, device=device)).abs()
    near = (1.25 * x - 2.25) * x * x + 1
    far = -0.75 * (((x - 5) * x + 8) * x - 4)
    weights = torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    first, last = (weights[:, part].sum(dim=1, keepdim=True) for part in (slice(3), slice(side + 1, None)))
    return torch.cat([first, weights[:, 3 : side + 1], last], dim=1)
