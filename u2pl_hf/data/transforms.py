"""Weak augmentation of one sample, before batching."""

import math
import os
import random

# albumentations asks the network for a newer version on import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from u2pl_hf.constants import IGNORE, IMAGE_MEAN


class WeakAugmentation:
    """Random scale, flip, padding to the crop and crop, for both streams.

    Scale: half of the time uniform in [smallest, 1], else uniform in [1, largest]; image bilinear, label nearest.
    Padding is even on both sides: mean colour in the image, 255 in the label, False in the valid mask.
    """

    def __init__(self, crop_size: int, scale_range: tuple[float, float] = (0.5, 2.0), flip: float = 0.5):
        self.crop_size = crop_size
        smallest, largest = scale_range
        scale_limits = ((smallest - 1.0, 0.0), (0.0, largest - 1.0))
        shortest = math.ceil(1.0 / smallest)
        colours = {"fill": [round(255 * m) for m in IMAGE_MEAN], "fill_mask": IGNORE}
        constant = {"border_mode": cv2.BORDER_CONSTANT, "position": "center", **colours}
        resize = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_NEAREST_EXACT, "p": 1.0}
        self.compose = A.Compose(
            [
                # A shorter side would be scaled to nothing.
                A.PadIfNeeded(shortest, shortest, **constant),
                # RandomScale multiplies by 1 + a draw from its limits.
                A.OneOf([A.RandomScale(limits, **resize) for limits in scale_limits], p=1.0),
                A.HorizontalFlip(p=flip),
                A.PadIfNeeded(crop_size, crop_size, **constant),
                A.RandomCrop(crop_size, crop_size),
            ]
        )

    def __call__(self, image: np.ndarray, label: np.ndarray | None, seed: int) -> dict[str, Tensor]:
        """Augment one sample; equal seeds give equal results.

        Args:
            image: uint8 (H,W,3).
            label: uint8 (H,W), or None.
            seed: in [0, 2^32).

        Returns:
            pixel_values uint8 (3,S,S), valid bool (S,S), and labels uint8 (S,S) if a label was given.
        """
        # set_random_seed would seed every transform alike, so that flip and crop repeated the draw of the scale.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        inside = np.zeros(image.shape[:2], np.uint8)
        masks = [inside] if label is None else [inside, label]
        done = self.compose(image=image, masks=masks)
        sample = {
            # A view: the channels stay last in memory, as the model wants them.
            "pixel_values": torch.from_numpy(np.ascontiguousarray(done["image"])).permute(2, 0, 1),
            "valid": torch.from_numpy(done["masks"][0] == 0),
        }
        if label is not None:
            sample["labels"] = torch.from_numpy(np.ascontiguousarray(done["masks"][1]))
        return sample
