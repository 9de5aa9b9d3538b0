"""The U2PL network: DeepLabv3+ or DPT, with a representation head beside the classifier.

Shapes: B images, C classes, D representation channels, H x W input, h x w size of the features that the heads read. Of
DeepLabv3+ that is stride 4 for ResNets and most others, the patch size for plain vision transformers; of DPT stride 4
as well, but 1/8 of the patch size for those.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import ModelOutput, can_return_tuple

from .backbone_u2pl import ClosingNorm, U2PLAutoBackbone, U2PLBackbone, conv_bn_relu, separable_conv_bn_relu
from .configuration_u2pl import U2PLConfig
from .dpt_u2pl import U2PLDPT, OutputConv, PlainConv, dpt_classifier, resize

LIGHT = "deeplabv3plus_light"
# Channels of its low-level branch, as in DeepLabv3+'s paper; the published network of U2PL has `head_channels` there.
LIGHT_LOW_LEVEL = 48


@dataclass
class U2PLOutput(ModelOutput):
    """Output of [`U2PLForSemanticSegmentation`].

    loss: scalar, where labels were given.
    logits: (B, C, h, w).
    representation: (B, D, h, w), not normalised; None where it was not asked for or the model has no such head.
    aux_logits: (B, C, h', w') at the size of the last but one backbone stage; None likewise.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    representation: torch.Tensor | None = None
    aux_logits: torch.Tensor | None = None


def _conv3x3(config: U2PLConfig, bias: bool = False) -> Callable[..., list[nn.Module]]:
    """What makes the layers of a 3x3 convolution, of (in_channels, out_channels, dilation=1)."""
    return separable_conv_bn_relu if config.head == LIGHT else partial(conv_bn_relu, kernel=3, bias=bias)


def _head(in_channels: int, out_channels: int, convs: int, config: U2PLConfig) -> nn.Sequential:
    """`convs` times 3x3 convolution, BN, ReLU and Dropout, then a 1x1 convolution."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += _conv3x3(config, bias=True)(in_channels, config.head_channels)
        layers.append(nn.Dropout2d(config.dropout))
        in_channels = config.head_channels
    return nn.Sequential(*layers, OutputConv(in_channels, out_channels))


class U2PLASPP(nn.Module):
    """Atrous spatial pyramid pooling: the whole image, 1x1, and 3x3 at several dilations, brought together."""

    def __init__(self, in_channels: int, config: U2PLConfig):
        super().__init__()
        channels, light = config.head_channels, config.head == LIGHT
        self.image_pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(in_channels, channels, 1))
        self.branches = nn.ModuleList([nn.Sequential(*conv_bn_relu(in_channels, channels, 1))])
        for dilation in config.aspp_dilations:
            self.branches.append(nn.Sequential(*_conv3x3(config)(in_channels, channels, dilation=dilation)))
        together = channels * (1 + len(self.branches))
        self.project = nn.Sequential(
            *conv_bn_relu(together, channels, 1 if light else 3),
            nn.Dropout2d(config.dropout),
            *(_conv3x3(config)(channels, channels) if light else ()),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, h, w) -> (B, head_channels, h, w)."""
        pooled = self.image_pooling(x).expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([pooled, *(branch(x) for branch in self.branches)], dim=1))


class U2PLPreTrainedModel(PreTrainedModel):
    """What [`U2PLForSemanticSegmentation`] needs for loading, initialisation and checkpointing."""

    config_class = U2PLConfig
    base_model_prefix = "u2pl"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ("BasicBlock", "Bottleneck")

    def _init_weights(self, module: nn.Module):
        # Through transformers' `init`, which leaves alone what from_pretrained has loaded.
        if isinstance(module, PlainConv | nn.ConvTranspose2d):
            # No BN follows, so fan-out would make the first logits larger the fewer classes there are: with two
            # their standard deviation would be 11. This is torch's default for a convolution.
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
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
    """DeepLabv3+ or DPT, with a representation head for the contrastive loss beside the classifier."""

    def __init__(self, config: U2PLConfig):
        super().__init__(config)
        # from_pretrained(..., output_stride=32) sets the field after the configuration was checked.
        config.validate_architecture()
        self.backbone = (U2PLBackbone if config.backbone_config is None else U2PLAutoBackbone)(config)
        self.representation_head = self.auxiliary_head = None
        (self._build_dpt if config.head == "dpt" else self._build_deeplab)(config)
        self.post_init()

    def _build_deeplab(self, config: U2PLConfig) -> None:
        low, auxiliary, high = self.backbone.channels
        channels = config.head_channels
        self.aspp = U2PLASPP(high, config)
        # The paper's classifier has one 3x3 convolution, the published network of U2PL two.
        branch, convs = (LIGHT_LOW_LEVEL, 1) if config.head == LIGHT else (channels, 2)
        self.low_level = nn.Sequential(*conv_bn_relu(low, branch, 1, bias=True))
        self.classifier = _head(branch + channels, config.num_labels, convs, config)
        if config.representation_channels:
            self.representation_head = _head(branch + channels, config.representation_channels, convs, config)
        if config.auxiliary_head:
            self.auxiliary_head = _head(auxiliary, config.num_labels, 1, config)

    def _build_dpt(self, config: U2PLConfig) -> None:
        width = config.head_channels
        self.dpt = U2PLDPT(self.backbone.channels, width, from_patches=config.patch is not None)
        self.classifier = dpt_classifier(width, width, config.num_labels)
        if config.representation_channels:
            self.representation_head = dpt_classifier(width, width, config.representation_channels)
        if config.auxiliary_head:
            self.auxiliary_head = dpt_classifier(self.backbone.channels[-2], width, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_representation: bool = True,
        output_auxiliary: bool = True,
        feature_scales: tuple[torch.Tensor, ...] | None = None,
    ) -> U2PLOutput:
        """Segment images.

        pixel_values: (B, 3, H, W), normalised.
        labels: (B, H, W) class ids; `loss` is then the cross-entropy of the logits at the labels' size.
        output_representation, output_auxiliary: False skips the work of that head.
        feature_scales: factors (B, channels) for each stage of `feature_channels`, between backbone and heads.
        """
        stages = self.backbone(pixel_values)
        if feature_scales is not None:
            stages = [stage * scale[:, :, None, None] for stage, scale in zip(stages, feature_scales, strict=True)]
        features = self.dpt(stages) if self.config.head == "dpt" else self._deeplab_features(*stages)
        logits = self._calibrated(self.classifier(features))
        representation = aux_logits = loss = None
        if output_representation and self.representation_head is not None:
            representation = self.representation_head(features)
        if output_auxiliary and self.auxiliary_head is not None:
            aux_logits = self.auxiliary_head(stages[-2])
        if labels is not None:
            loss = self._cross_entropy(logits, labels)
        return U2PLOutput(loss=loss, logits=logits, representation=representation, aux_logits=aux_logits)

    def _calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits over `config.temperature`, in float32 or more; as they are where that is 1, as in training.

        Here, and not where probabilities are made of them: so all get the same ones, people without this package, ONNX
        and `loss` too. What follows, resizing and the mean over windows, is linear; several views are averaged as
        probabilities, and each is then a calibrated one.
        """
        temperature = self.config.temperature
        if temperature == 1:
            return logits
        # In half precision the quotients of two different numbers may be equal, and the class another.
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature

    def _deeplab_features(self, low: torch.Tensor, _: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        low = self.low_level(low)
        # Low-level features come first: the order of the published weights.
        return torch.cat([low, resize(self.aspp(high), low.shape[-2:])], dim=1)

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the pixels that count; 0, with a gradient of 0, where none does."""
        ignore = self.config.semantic_loss_ignore_index
        upsampled = resize(logits.float(), labels.shape[-2:])
        # Summed apart: on GPUs, torch's own sum over maps depends on the order of threads.
        total = F.cross_entropy(upsampled, labels.long(), ignore_index=ignore, reduction="none").sum()
        return total / (labels != ignore).sum().clamp(min=1)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the stages that the heads read: the first, the last but one and the last; DPT: all four."""
        return self.backbone.channels

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn at the base learning rate."""
        return list(self.backbone.parameters())

    def head_parameters(self) -> list[nn.Parameter]:
        """Every other parameter; some recipes let these learn faster."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("backbone.")]


# pipeline("image-segmentation") looks only here before it says that a model is not supported, and then uses it.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[U2PLConfig.model_type] = U2PLForSemanticSegmentation.__name__

__all__ = ["U2PLForSemanticSegmentation", "U2PLOutput", "U2PLPreTrainedModel"]
