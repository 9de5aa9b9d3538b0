"""The U2PL network: DeepLabv3+ on a dilated ResNet, with a representation head beside the classifier.

Shapes: B images, C classes, D representation channels, H x W input, h x w feature size (stride 4).
"""

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_u2pl import U2PLConfig


@dataclass
class U2PLOutput(ModelOutput):
    """Output of [`U2PLForSemanticSegmentation`].

    loss: scalar, where labels were given.
    logits: (B, C, h, w).
    representation: (B, D, h, w), not normalised; None where it was not asked for or the model has no such head.
    aux_logits: (B, C, h', w') at the size of the third backbone stage; None likewise.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    representation: torch.Tensor | None = None
    aux_logits: torch.Tensor | None = None


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
                *_conv_bn_relu(3, width, 3, stride=2),
                *_conv_bn_relu(width, width, 3),
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
        self.low_level_channels = width * block.expansion
        self.auxiliary_channels = 4 * width * block.expansion
        self.out_channels = channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) -> features of the first, third and fourth stage."""
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


class OutputConv(nn.Conv2d):
    """The 1x1 convolution that ends a head; a class of its own because it is initialised in another way."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)


def _conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = False
) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def _head(in_channels: int, out_channels: int, convs: int, config: U2PLConfig) -> nn.Sequential:
    """`convs` times 3x3 convolution, BN, ReLU and Dropout, then a 1x1 convolution."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += _conv_bn_relu(in_channels, config.head_channels, 3, bias=True)
        layers.append(nn.Dropout2d(config.dropout))
        in_channels = config.head_channels
    return nn.Sequential(*layers, OutputConv(in_channels, out_channels))


class U2PLASPP(nn.Module):
    """Atrous spatial pyramid pooling: the whole image, 1x1, and 3x3 at several dilations, brought together."""

    def __init__(self, in_channels: int, config: U2PLConfig):
        super().__init__()
        channels = config.head_channels
        self.image_pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_bn_relu(in_channels, channels, 1))
        self.branches = nn.ModuleList([nn.Sequential(*_conv_bn_relu(in_channels, channels, 1))])
        for dilation in config.aspp_dilations:
            self.branches.append(nn.Sequential(*_conv_bn_relu(in_channels, channels, 3, dilation=dilation)))
        self.project = nn.Sequential(
            *_conv_bn_relu(channels * (1 + len(self.branches)), channels, 3), nn.Dropout2d(config.dropout)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, h, w) -> (B, head_channels, h, w)."""
        pooled = self.image_pooling(x).expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([pooled, *(branch(x) for branch in self.branches)], dim=1))


def _resize(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class U2PLPreTrainedModel(PreTrainedModel):
    """What [`U2PLForSemanticSegmentation`] needs for loading, initialisation and checkpointing."""

    config_class = U2PLConfig
    base_model_prefix = "u2pl"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ("BasicBlock", "Bottleneck")

    def _init_weights(self, module: nn.Module):
        # Through transformers' `init`, which leaves alone what from_pretrained has loaded.
        if isinstance(module, OutputConv):
            # No BN follows, so fan-out would make the first logits larger the fewer classes there are: with two
            # their standard deviation would be 11. This is torch's default for a convolution.
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            init.constant_(module.weight, 0.0 if isinstance(module, ClosingNorm) else 1.0)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


class U2PLForSemanticSegmentation(U2PLPreTrainedModel):
    """DeepLabv3+ with, beside the classifier, a head for the representation that the contrastive loss compares."""

    def __init__(self, config: U2PLConfig):
        super().__init__(config)
        # from_pretrained(..., output_stride=32) sets the field after the configuration was checked.
        config.validate_architecture()
        channels = config.head_channels
        self.backbone = U2PLBackbone(config)
        self.aspp = U2PLASPP(self.backbone.out_channels, config)
        self.low_level = nn.Sequential(*_conv_bn_relu(self.backbone.low_level_channels, channels, 1, bias=True))
        self.classifier = _head(2 * channels, config.num_labels, 2, config)
        self.representation_head = None
        if config.representation_channels:
            self.representation_head = _head(2 * channels, config.representation_channels, 2, config)
        self.auxiliary_head = None
        if config.auxiliary_head:
            self.auxiliary_head = _head(self.backbone.auxiliary_channels, config.num_labels, 1, config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_representation: bool = True,
        output_auxiliary: bool = True,
    ) -> U2PLOutput:
        """Segment images.

        pixel_values: (B, 3, H, W), normalised.
        labels: (B, H, W) class ids; `loss` is then the cross-entropy of the logits at the labels' size.
        output_representation, output_auxiliary: False skips the work of that head.
        """
        low, third, high = self.backbone(pixel_values)
        low = self.low_level(low)
        # Low-level features come first: the order of the published weights.
        features = torch.cat([low, _resize(self.aspp(high), low.shape[-2:])], dim=1)
        logits = self.classifier(features)
        representation = aux_logits = loss = None
        if output_representation and self.representation_head is not None:
            representation = self.representation_head(features)
        if output_auxiliary and self.auxiliary_head is not None:
            aux_logits = self.auxiliary_head(third)
        if labels is not None:
            loss = self._cross_entropy(logits, labels)
        return U2PLOutput(loss=loss, logits=logits, representation=representation, aux_logits=aux_logits)

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the pixels that count; 0, with a gradient of 0, where none does."""
        ignore = self.config.semantic_loss_ignore_index
        upsampled = _resize(logits.float(), labels.shape[-2:])
        # Summed apart: on GPUs, torch's own sum over maps depends on the order of threads.
        total = F.cross_entropy(upsampled, labels.long(), ignore_index=ignore, reduction="none").sum()
        return total / (labels != ignore).sum().clamp(min=1)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn at the base learning rate."""
        return list(self.backbone.parameters())

    def head_parameters(self) -> list[nn.Parameter]:
        """Every other parameter; some recipes let these learn faster."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("backbone.")]


__all__ = ["U2PLForSemanticSegmentation", "U2PLOutput", "U2PLPreTrainedModel"]
