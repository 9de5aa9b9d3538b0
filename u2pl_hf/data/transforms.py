"""Geometry of single images before batching, and normalisation of batches on the device."""

import math
import os
import random

import numpy as np
import torch

# Without this, importing albumentations asks the network for a newer version: slow, and no business of a training run.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2

VOID = 255
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
MEAN_COLOUR = tuple(round(255 * mean) for mean in IMAGE_MEAN)


class WeakAugmentation:
    """The weak augmentation of both streams: random scale, even padding, random crop, flip.

    The scale is drawn from [scale_range[0], 1] or from [1, scale_range[1]], each with probability one half, so that
    shrinking and enlarging are equally frequent. `flip` is the probability of a horizontal flip. The padding is the
    mean colour (about 0 after normalisation), label 255 and valid False.
    """

    def __init__(self, crop_size: int, scale_range: tuple[float, float] = (0.5, 2.0), flip: float = 0.5):
        smallest, largest = scale_range
        if crop_size < 1 or not 0 < smallest <= 1 <= largest or not 0 <= flip <= 1:
            raise ValueError(f"crop_size={crop_size}, scale_range={scale_range}, flip={flip}: out of range")
        # An image with fewer pixels a side could shrink to nothing.
        self.smallest_side = math.ceil(1 / smallest)
        self.compose = A.Compose(
            [
                A.OneOf([_scale(smallest - 1, 0), _scale(0, largest - 1)], p=1.0),
                A.PadIfNeeded(crop_size, crop_size, fill=MEAN_COLOUR, fill_mask=VOID, p=1.0),
                A.RandomCrop(crop_size, crop_size, p=1.0),
                # Last, because flipping the crop costs less than flipping the enlarged image.
                A.HorizontalFlip(p=flip),
            ],
            additional_targets={"padding": "mask"},
        )

    def __call__(self, image: np.ndarray, label: np.ndarray | None, seed: int) -> dict[str, torch.Tensor]:
        """Augment one image: uint8 (H, W, 3) and, if given, its label uint8 (H, W).

        Returns pixel_values uint8 (3, S, S), valid bool (S, S), False on padding, and labels uint8 (S, S) if a label
        was given. The same seed gives the same output in any process; it must not be negative.
        """
        # Not Compose.set_random_seed: it gives each transform a generator of its own with the same seed, so that for
        # example the crop's height would repeat the draw of the scale. One shared generator keeps draws independent.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        # Padding is marked by the label's fill value in a mask of zeros that goes through the same geometry.
        arrays = {"image": image, "padding": np.zeros(image.shape[:2], np.uint8)}
        if label is not None:
            arrays["mask"] = label
        out = self.compose(**{name: _at_least(array, self.smallest_side) for name, array in arrays.items()})
        # Copies: an image that needs no change comes back as the very array that the caller may keep.
        sample = {
            "pixel_values": torch.from_numpy(out["image"].transpose(2, 0, 1).copy()),
            "valid": torch.from_numpy(out["padding"] == 0),
        }
        if label is not None:
            sample["labels"] = torch.from_numpy(out["mask"].copy())
        return sample


def _scale(low: float, high: float) -> A.RandomScale:
    """Scale by 1 + uniform(low, high)."""
    return A.RandomScale((low, high), interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST, p=1.0)


def _at_least(array: np.ndarray, side: int) -> np.ndarray:
    """Repeat the pixels of an image whose shorter side is below `side`."""
    times = math.ceil(side / min(array.shape[:2]))
    return array.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else array


def normalize(pixel_values: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Normalise uint8 (B, 3, H, W) to float32 with ImageNet's mean and deviation, on the tensor's device.

    Where `valid`, bool (B, H, W), is False the result is exactly 0.
    """
    mean, std = (pixel_values.new_tensor(value, dtype=torch.float32).view(3, 1, 1) for value in (IMAGE_MEAN, IMAGE_STD))
    normalized = (pixel_values.float() / 255 - mean) / std
    return normalized if valid is None else normalized.masked_fill(~valid[:, None], 0.0)
