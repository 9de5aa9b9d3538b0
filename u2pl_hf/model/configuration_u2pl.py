"""Configuration of the U2PL segmentation network: its architecture and nothing about training."""

import copy

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
OUTPUT_STRIDES = (8, 16)
STEMS = ("deep", "plain")
HEAD_NAMES = ("deeplabv3plus", "deeplabv3plus_light", "dpt")
# Stages that UniMatch V2's published code reads with DPT where they are not spread evenly, by their number.
DPT_STAGES = {24: (5, 12, 18, 24)}
# Where people without this package find the classes: in the files that lie beside the weights.
AUTO_MAP = {
    "AutoConfig": "configuration_u2pl.U2PLConfig",
    "AutoModel": "modeling_u2pl.U2PLForSemanticSegmentation",
    "AutoModelForSemanticSegmentation": "modeling_u2pl.U2PLForSemanticSegmentation",
    "AutoImageProcessor": "image_processing_u2pl.U2PLImageProcessor",
}


@strict
class U2PLConfig(PreTrainedConfig):
    r"""Architecture of a [`U2PLForSemanticSegmentation`]: DeepLabv3+ or DPT, with a representation head.

    The defaults are the published network on a dilated ResNet-101. Classes are given as usual, by `num_labels` or
    `id2label`.

    backbone (`str` or `PreTrainedConfig`, *optional*, defaults to `"resnet101"`):
        One of `resnet18`, `resnet34`, `resnet50`, `resnet101`: dilated ResNets of this package. Or the configuration of
        a backbone of transformers (ConvNeXt, Swin, DINOv2 ...), which moves to `backbone_config`; this field then holds
        its model type.
    backbone_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of a backbone for `AutoBackbone`. The first of its `out_features` is the low-level branch, the
        last goes to ASPP, the last but one to the auxiliary head; DPT reads four. Where it names a single stage, as
        they do by default, four are taken, spread over the depth.
    head (`str`, *optional*, defaults to `"deeplabv3plus"`):
        What stands on the backbone. `"deeplabv3plus_light"` is DeepLabv3+ of its own paper (Chen et al., ECCV 2018),
        with depthwise separable convolutions and 48 low-level channels; the published network of U2PL has full
        convolutions and `head_channels`. `"dpt"` goes with a `backbone_config`: a plain vision transformer, whose maps
        become a pyramid, or a backbone that has one.
    backbone_image_mean, backbone_image_std (`list[float]`, *optional*):
        What the weights of that backbone were trained with, for pixels in [0, 1], where it is not ImageNet's. The
        model's input stays normalised with ImageNet's; the backbone's own is made of it inside.
    output_stride (`int`, *optional*, defaults to 8):
        Input size over the size of the last stage of a built-in ResNet: 8 or 16.
    stem (`str`, *optional*, defaults to `"deep"`):
        Of a built-in ResNet. `"deep"`: three 3x3 convolutions. `"plain"`: one 7x7 convolution.
    base_width (`int`, *optional*, defaults to 64):
        Channels of a built-in ResNet's first 3x3 convolutions. The later stages have 2, 4 and 8 times as many.
    aspp_dilations (`list[int]`, *optional*, defaults to `(12, 24, 36)`):
        Dilations of the 3x3 branches of DeepLabv3+'s spatial pyramid.
    head_channels (`int`, *optional*, defaults to 256):
        Channels inside the pyramid and every head. Published with DPT: 64, 128, 256 and 384 for DINOv2 S, B, L and g.
    representation_channels (`int`, *optional*, defaults to 256):
        Channels of the representation; 0 builds no representation head (a supervised-only network).
    auxiliary_head (`bool`, *optional*, defaults to `False`):
        Whether a second classifier sits on the last but one backbone stage.
    dropout (`float`, *optional*, defaults to 0.1):
        Probability of dropping a channel after each 3x3 convolution of DeepLabv3+ and its heads.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that count in no loss.
    palette (`list[list[int]]`, *optional*):
        Red, green and blue of every class, for pictures.
    temperature (`float`, *optional*, defaults to 1.0):
        What the classifier's logits are divided by, so that their softmax is as sure as it is right (Guo et al.,
        arXiv 1706.04599). `u2pl calibrate` measures it on a trained model; training starts from 1.
    """

    model_type = "u2pl"

    backbone: str | PreTrainedConfig = "resnet101"
    backbone_config: PreTrainedConfig | dict | None = None
    backbone_image_mean: list[float] | None = None
    backbone_image_std: list[float] | None = None
    head: str = "deeplabv3plus"
    output_stride: int = 8
    stem: str = "deep"
    base_width: int = 64
    aspp_dilations: list[int] | tuple[int, ...] = (12, 24, 36)
    head_channels: int = 256
    representation_channels: int = 256
    auxiliary_head: bool = False
    dropout: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    palette: list[list[int]] | None = None
    temperature: float | int = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # Written here because transformers writes an entry for one auto class only; one class serves two.
        self.auto_map = dict(AUTO_MAP)
        if isinstance(self.backbone, PreTrainedConfig):
            self.backbone_config = self.backbone
        if self.backbone_config is not None:
            self.backbone_config = _with_several_stages(self.backbone_config, self.head)
            self.backbone = self.backbone_config.model_type
        # Called here as well as by the base class, which would wrap the ValueError into an error of another type.
        self.validate_architecture()

    @property
    def patch(self) -> int | None:
        """Side of the patches of a plain vision transformer, which keeps their size; None for other backbones."""
        size = getattr(self.backbone_config, "patch_size", None)
        if isinstance(size, list | tuple) and len(set(size)) == 1:
            size = size[0]
        return size if isinstance(size, int) and size >= 8 else None

    def validate_architecture(self):
        """Raise a ValueError, in one line, for an architecture that cannot be built."""
        if self.backbone_config is None and self.backbone not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise ValueError(
                f"backbone must be one of {known}, or a configuration for AutoBackbone, got {self.backbone!r}"
            )
        if self.head == "dpt" and (self.backbone_config is None or len(self.backbone_config.out_indices) != 4):
            raise ValueError("head dpt needs a backbone of transformers or timm, and four of its stages")
        for name, choices in (("output_stride", OUTPUT_STRIDES), ("stem", STEMS), ("head", HEAD_NAMES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {getattr(self, name)!r}")
        for name in ("backbone_image_mean", "backbone_image_std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or min(values) <= 0):
                raise ValueError(f"{name} must be three numbers above 0, for red, green and blue, got {values}")
        for name in ("base_width", "head_channels", "num_labels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.representation_channels < 0:
            raise ValueError(f"representation_channels must be 0 or more, got {self.representation_channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0, got {self.temperature}")
        if any(len(color) != 3 or not all(0 <= value <= 255 for value in color) for color in self.palette or []):
            raise ValueError("palette must hold one [red, green, blue] of 0 to 255 for each class")


def _with_several_stages(config: PreTrainedConfig | dict, head: str) -> PreTrainedConfig:
    """A configuration for AutoBackbone, with two or more `out_features`.

    Raises a ValueError where it is of no backbone, or of one without several stages.
    """
    if isinstance(config, dict):
        config = AutoConfig.for_model(**config)
    if not hasattr(config, "out_indices"):
        raise ValueError(f"backbone_config is a {type(config).__name__}, which AutoBackbone does not take")
    if isinstance(getattr(config, "hidden_sizes", None), tuple):
        # As ConvNeXt has it by default, whose backbone then fails to add it to a list (transformers 5.23).
        config = copy.deepcopy(config)
        config.hidden_sizes = list(config.hidden_sizes)
    if len(config.out_indices or ()) >= 2:
        return config
    config = copy.deepcopy(config)
    if config.model_type == "timm_backbone":
        # Its stages have no names before it is built. The last four have strides of 4 to 32 in most networks.
        config._out_indices = [-4, -3, -2, -1]
        return config
    stages = [name for name in config.stage_names if name != "stem"]
    wanted = min(4, len(stages))
    if wanted < 2:
        raise ValueError(f"backbone_config has stages {', '.join(config.stage_names)}: two besides the stem are needed")
    chosen = [len(stages) * (i + 1) // wanted for i in range(wanted)]
    chosen = DPT_STAGES.get(len(stages), chosen) if head == "dpt" else chosen
    config.out_features = [stages[number - 1] for number in chosen]
    return config


__all__ = ["U2PLConfig"]
