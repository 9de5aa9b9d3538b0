"""The backbones: dilated ResNets with timm's names, and those of transformers as the heads want them."""

from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone

from .configuration_u2pl import U2PLConfig
from .dpt_u2pl import TAPS, PlainConv, positions_as_published, resize
from .image_processing_u2pl import IMAGE_MEAN, IMAGE_STD


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = False
) -> list[nn.Module]:
    """Layers that keep the size of a map (B, in, h, w), or divide it by `stride`."""
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def separable_conv_bn_relu(in_channels: int, out_channels: int, dilation: int = 1) -> list[nn.Module]:
    """A 3x3 convolution of each channel alone, and a 1x1 over all of them; size is kept."""
    depthwise = PlainConv(in_channels, in_channels, 3, dilation=dilation, groups=in_channels, bias=False)
    return [depthwise, *conv_bn_relu(in_channels, out_channels, 1)]


class ClosingNorm(nn.BatchNorm2d):
    """The BatchNorm that ends a residual branch: its weight starts at 0, so that a block starts as its shortcut.

    It is known by its type because transformers shows `_init_weights` no module without parameters of its own when
    the model is defined outside transformers: the block that holds it would never be seen.
    """


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, both dilated, and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = ClosingNorm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, h, w) -> (B, planes, h / stride, w / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; stride and dilation sit on the 3x3."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, dilation: int):
        super().__init__()
        out_channels = planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = ClosingNorm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, h, w) -> (B, 4 planes, h / stride, w / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


# Block type and number of blocks in each stage.
_ARCHITECTURES = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
# The last stage multiplies its dilation block by block (multi-grid); a stage of two blocks takes the first two.
_MULTI_GRID = (2, 4, 8)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _stage_layout(blocks: tuple[int, ...], output_stride: int) -> list[tuple[int, list[int]]]:
    """Stride of each stage and dilation of each of its blocks."""
    early = [(1, [1] * blocks[0]), (2, [1] * blocks[1])]
    if output_stride == 16:
        return [*early, (2, [1] * blocks[2]), (1, list(_MULTI_GRID[: blocks[3]]))]
    # The first block still sees the features of the undilated stage before it.
    third = [1] + [2] * (blocks[2] - 1)
    return [*early, (1, third), (1, [2 * grid for grid in _MULTI_GRID[: blocks[3]]])]


class U2PLBackbone(nn.Module):
    """Dilated ResNet whose parameters are named as in timm, so that ImageNet weights load by name."""

    def __init__(self, config: U2PLConfig):
        super().__init__()
        self.gradient_checkpointing = False
        block, blocks = _ARCHITECTURES[config.backbone]
        width = config.base_width
        if config.stem == "deep":
            self.conv1 = nn.Sequential(
                *conv_bn_relu(3, width, 3, stride=2),
                *conv_bn_relu(width, width, 3),
                nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            )
            channels = 2 * width
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            channels = width
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        for i, (stride, dilations) in enumerate(_stage_layout(blocks, config.output_stride)):
            planes = width * 2**i
            stage = []
            for j, dilation in enumerate(dilations):
                stage.append(block(channels, planes, stride if j == 0 else 1, dilation))
                channels = planes * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.channels = width * block.expansion, 4 * width * block.expansion, channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) -> features of the first, the last but one and the last stage."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        low = self._run_stage(self.layer1, x)
        third = self._run_stage(self.layer3, self._run_stage(self.layer2, low))
        return low, third, self._run_stage(self.layer4, third)

    def _run_stage(self, stage: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        if not (self.gradient_checkpointing and self.training):
            return stage(x)
        for block in stage:
            # Only the non-reentrant kind can tell the second forward from the first.
            x = self._gradient_checkpointing_func(
                block, x, use_reentrant=False, context_fn=partial(_checkpoint_contexts, block)
            )
        return x


class U2PLAutoBackbone(nn.Module):
    """A backbone of transformers, or of timm by way of transformers, as the heads want it.

    Images are padded at the right and at the bottom, with the mean colour, to whole patches or whole cells of the last
    stage, and the features that see nothing but padding are cut off: many backbones would leave out the image's last
    rows and columns, and each stage others. Convolutional networks that leave out none get them as they are. DPT on a
    plain vision transformer has them resized to the nearest number of patches instead, as published.
    """

    def __init__(self, config: U2PLConfig):
        super().__init__()
        self.image_scale = self.image_shift = None
        self.features = AutoBackbone.from_config(config.backbone_config, trust_remote_code=False)
        # Of DeepLabv3+: low-level, auxiliary head, ASPP.
        self.taps = tuple(range(TAPS)) if config.head == "dpt" else (0, -2, -1)
        self.channels = tuple(self.features.channels[i] for i in self.taps)
        self._normalise_as(config)
        # Backbones that are no plain transformers come to 1/32 in small steps.
        self.multiple = 1 if _leaves_out_nothing(self.features) else config.patch or 32
        self.resizes = config.head == "dpt" and config.patch is not None
        if config.head == "dpt" and config.backbone == "dinov2":
            embeddings = self.features.embeddings
            embeddings.interpolate_pos_encoding = MethodType(positions_as_published, embeddings)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) -> features of the first, the last but one and the last of the chosen stages; DPT: of all."""
        height, width = x.shape[-2:]
        if self.image_scale is not None:
            x = x * self.image_scale + self.image_shift
        if self.resizes:
            m = self.multiple
            size = [torch.sym_max(m, (2 * side + m) // (2 * m) * m) for side in (height, width)]
            maps = self.features(resize(x, size)).feature_maps
            return tuple(maps[i] for i in self.taps)
        if self.multiple == 1:
            maps = self.features(x).feature_maps
            return tuple(maps[i] for i in self.taps)
        # No negative numbers: ONNX divides and takes remainders of these in another way than Python.
        right, bottom = (self.multiple - (side - 1) % self.multiple - 1 for side in (width, height))
        x = F.pad(x, (0, right, 0, bottom))
        maps = self.features(x).feature_maps
        return tuple(_cut(maps[i], x.shape[-2:], height, width) for i in self.taps)

    def _normalise_as(self, config: U2PLConfig) -> None:
        """Keep how ImageNet's normalisation becomes the backbone's: (x std + mean - mean_b) / std_b."""
        if config.backbone_image_mean is None and config.backbone_image_std is None:
            return
        mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
        own_mean = mean if config.backbone_image_mean is None else torch.tensor(config.backbone_image_mean)
        own_std = std if config.backbone_image_std is None else torch.tensor(config.backbone_image_std)
        # Stored with the weights: from_pretrained leaves buffers that are not in the file unset.
        del self.image_scale, self.image_shift
        self.register_buffer("image_scale", (std / own_std).view(1, 3, 1, 1))
        self.register_buffer("image_shift", ((mean - own_mean) / own_std).view(1, 3, 1, 1))


def _leaves_out_nothing(features: nn.Module) -> bool:
    """Whether a network of convolutions gives ceil(n / stride) features for any n: none of its strides loses pixels.

    What takes steps by other means, as transformers do, has linear layers, or a convolution that does not overlap; and
    what enlarges maps again, as HRNet does, needs whole cells for the sizes to fit.
    """
    kinds = nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d
    layers = [layer for layer in features.modules() if isinstance(layer, kinds) and layer.stride not in (1, (1, 1))]
    others = any(isinstance(layer, nn.Linear | nn.Upsample | nn.ConvTranspose2d) for layer in features.modules())
    return bool(layers) and not others and all(_reaches_the_edge(layer) for layer in layers)


def _reaches_the_edge(layer: nn.Module) -> bool:
    sides = zip(*(_pair(getattr(layer, name, 1)) for name in ("kernel_size", "padding", "dilation")), strict=True)
    return all(2 * padding == dilation * (kernel - 1) for kernel, padding, dilation in sides)


def _pair(value: int | tuple[int, int] | str) -> tuple:
    return value if isinstance(value, tuple) else (value, value)


def _cut(features: torch.Tensor, padded: torch.Size, height: int, width: int) -> torch.Tensor:
    """The features of a padded image that see some of the first `height` rows and `width` columns."""
    # Rounded up, in whole numbers.
    h, w = ((n * f + p - 1) // p for n, f, p in zip((height, width), features.shape[-2:], padded, strict=True))
    return features[..., :h, :w]


def _checkpoint_contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _running_statistics_kept(block)


@contextmanager
def _running_statistics_kept(block: nn.Module):
    """Let BatchNorm update copies of its buffers: the first forward has updated the real ones already.

    It has to update something, for autograd to save as many tensors as in the first forward.
    """
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    real = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, real, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, real, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
