"""Configuration of the U2PL segmentation network: its architecture and nothing about training."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
OUTPUT_STRIDES = (8, 16)
STEMS = ("deep", "plain")


@strict
class U2PLConfig(PreTrainedConfig):
    r"""Architecture of a [`U2PLForSemanticSegmentation`]: DeepLabv3+ on a dilated ResNet with a representation head.

    The defaults are the published ResNet-101 network. Classes are given as usual, by `num_labels` or `id2label`.

    backbone (`str`, *optional*, defaults to `"resnet101"`):
        One of `resnet18`, `resnet34`, `resnet50`, `resnet101`.
    output_stride (`int`, *optional*, defaults to 8):
        Input size over the size of the last backbone stage: 8 or 16.
    stem (`str`, *optional*, defaults to `"deep"`):
        `"deep"`: three 3x3 convolutions. `"plain"`: one 7x7 convolution.
    base_width (`int`, *optional*, defaults to 64):
        Channels of the first stage's 3x3 convolutions. The later stages have 2, 4 and 8 times as many.
    aspp_dilations (`list[int]`, *optional*, defaults to `(12, 24, 36)`):
        Dilations of the 3x3 branches of the spatial pyramid.
    head_channels (`int`, *optional*, defaults to 256):
        Channels inside the pyramid and every head.
    representation_channels (`int`, *optional*, defaults to 256):
        Channels of the representation; 0 builds no representation head (a supervised-only network).
    auxiliary_head (`bool`, *optional*, defaults to `False`):
        Whether a second classifier sits on the third backbone stage.
    dropout (`float`, *optional*, defaults to 0.1):
        Probability of dropping a channel after each 3x3 convolution of the heads.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that count in no loss.
    palette (`list[list[int]]`, *optional*):
        Red, green and blue of every class, for pictures.
    """

    model_type = "u2pl"

    backbone: str = "resnet101"
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

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # Called here as well as by the base class, which would wrap the ValueError into an error of another type.
        self.validate_architecture()

    def validate_architecture(self):
        """Raise a ValueError, in one line, for an architecture that cannot be built."""
        for name, choices in (("backbone", BACKBONES), ("output_stride", OUTPUT_STRIDES), ("stem", STEMS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {getattr(self, name)!r}")
        for name in ("base_width", "head_channels", "num_labels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.representation_channels < 0:
            raise ValueError(f"representation_channels must be 0 or more, got {self.representation_channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if any(len(color) != 3 or not all(0 <= value <= 255 for value in color) for color in self.palette or []):
            raise ValueError("palette must hold one [red, green, blue] of 0 to 255 for each class")


__all__ = ["U2PLConfig"]
