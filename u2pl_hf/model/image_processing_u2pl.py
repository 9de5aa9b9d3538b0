"""Images to the model's input, and logits to masks, as in training and evaluation."""

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.utils import TensorType

# ImageNet's, for pixels in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class U2PLImageProcessor(BaseImageProcessor):
    """Image processor of [`U2PLForSemanticSegmentation`]: normalises images of any size and does not resize them.

    Its own class because logits are brought to image size on the grid of the published method, corners aligned; those
    of transformers do not align them, which moves borders by up to two pixels.

    Args:
        image_mean, image_std: per channel, for pixels in [0, 1]; ImageNet's.
    """

    def __init__(self, image_mean: list[float] | None = None, image_std: list[float] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.image_mean = list(IMAGE_MEAN if image_mean is None else image_mean)
        self.image_std = list(IMAGE_STD if image_std is None else image_std)

    def preprocess(self, images: ImageInput, return_tensors: str | TensorType | None = None, **kwargs) -> BatchFeature:
        """Normalise one or several images.

        Args:
            images: PIL images of any mode, or uint8 arrays or tensors: RGB (H,W,3) or (3,H,W), or grey (H,W). All of
                one size where tensors are asked for.
            return_tensors: "pt", "np", or None for a list of arrays.

        Returns:
            `pixel_values`: float32 (B,3,H,W).
        """
        pixels = [self._normalise(image) for image in _flat(images)]
        if return_tensors is not None and len({p.shape for p in pixels}) > 1:
            sizes = ", ".join(f"{p.shape[2]}x{p.shape[1]}" for p in pixels)
            raise ValueError(f"images of sizes {sizes} make no batch: pass them one at a time")
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def to_dict(self) -> dict:
        """What preprocessor_config.json holds: no class names.

        AutoImageProcessor finds the class by the model's config.json. Were it named here as well, the pipelines of
        transformers 5 would take it for a video processor's name and ask whether to run its code.
        """
        return {k: v for k, v in super().to_dict().items() if k not in ("image_processor_type", "auto_map")}

    def _normalise(self, image) -> np.ndarray:
        if hasattr(image, "convert"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = np.stack([pixels] * 3)
        elif pixels.ndim == 3 and pixels.shape[-1] == 3:
            pixels = pixels.transpose(2, 0, 1)
        if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != np.uint8:
            raise ValueError(
                f"an image is {pixels.dtype} {pixels.shape}: pass a PIL image, or uint8 (H,W,3), (3,H,W) or (H,W)"
            )
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.image_mean, self.image_std))
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def post_process_semantic_segmentation(self, outputs, target_sizes=None) -> list[torch.Tensor]:
        """Masks from the model's output.

        Args:
            outputs: output of the model, with `logits` (B,C,h,w).
            target_sizes: B pairs (height, width), such as the images' sizes; None leaves the logits' size.

        Returns:
            B masks (height, width) of class ids, int64.
        """
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise ValueError(f"{len(logits)} images and {len(target_sizes)} target_sizes: pass one for each")
        return [
            F.interpolate(one[None].float(), size=tuple(map(int, size)), mode="bilinear", align_corners=True)[0].argmax(
                0
            )
            for one, size in zip(logits, target_sizes, strict=True)
        ]


def _flat(images: ImageInput) -> list:
    # A mask-like grey array is an image as well, which the library's own helper takes for a batch of rows.
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2:
        return [images]
    return make_flat_list_of_images(images)


__all__ = ["U2PLImageProcessor"]
