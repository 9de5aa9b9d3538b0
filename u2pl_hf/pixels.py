"""Pixels as all read them: training, evaluation, predict.py and the page. Nothing that augments is imported here."""

from functools import lru_cache

import torch
from torch import Tensor

from u2pl_hf.constants import IMAGE_MEAN, IMAGE_STD

# The rule for files is there, since it goes to the Hub with each model; here for all who read files.
from u2pl_hf.model.image_processing_u2pl import UnclearPixelsError, check_mode, upright_rgb

__all__ = ["DAMAGED", "UnclearPixelsError", "check_mode", "normalize", "upright_rgb"]

# What damaged files make PIL raise while it decodes.
DAMAGED = (OSError, SyntaxError, ValueError)


@lru_cache
def statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation, (1,3,1,1) on the device."""
    # Kept, because copying them to the device would make the host wait in every step.
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return mean, std


def normalize(pixel_values: Tensor, valid: Tensor | None) -> Tensor:
    """uint8 (B,3,H,W) -> float32 with ImageNet's mean 0 and deviation 1; exactly 0 where `valid` (B,H,W) is False."""
    mean, std = statistics(pixel_values.device)
    normal = (pixel_values.float() / 255.0 - mean) / std
    return normal if valid is None else normal * valid.unsqueeze(1)


def denormalize(images: Tensor) -> Tensor:
    """The uint8 pixels (B,3,H,W) that `normalize` made these images of; where those were not valid, the mean colour."""
    mean, std = statistics(images.device)
    return ((images * std + mean) * 255.0).round().byte()
