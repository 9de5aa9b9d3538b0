"""Images to the model's input, and logits to masks, as in training and evaluation."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.utils import TensorType

# ImageNet's, for pixels in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
# Of these numbers nobody says which is black and which is white.
NO_RANGE = {"F": "floating-point numbers", "I": "32-bit integers"}
# PIL gives their 16 bits, spread over the whole range, as I.
SIXTEEN_BITS_AS_I = ("PNG", "PPM")
DARKEST = 16
# What preprocessor_config.json may hold besides, by the hand of transformers.
SERVICE_KEYS = {"processor_class", "image_processor_type", "feature_extractor_type", "auto_map"}


class UnclearPixelsError(ValueError):
    """An image whose pixels could only be guessed; the message, one line, goes behind a file's name."""


def check_mode(image: Image.Image) -> None:
    """Refuse, by its header alone, an image that `upright_rgb` would refuse for its type of numbers.

    Raises:
        UnclearPixelsError: which it has.
    """
    if image.mode in NO_RANGE and not (image.mode == "I" and image.format in SIXTEEN_BITS_AS_I):
        raise UnclearPixelsError(
            f"its pixels are {NO_RANGE[image.mode]} (mode {image.mode}), of which nothing says what is black and what "
            "is white; store it with 8 bits per channel"
        )


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a PIL image as training, evaluation, predict.py and the page read them too: the one rule.

    Turned upright as the EXIF orientation says. 8 bits as they are, of 16 bits the upper 8; grey, palettes and the
    other colour spaces become RGB; transparency is dropped; of several frames the first.

    Returns:
        uint8 (H,W,3) RGB.

    Raises:
        UnclearPixelsError: floating-point or 32-bit numbers, or 16 bits of which only the lower 12 are used.
        OSError, SyntaxError, ValueError: PIL's, for a damaged file.
    """
    check_mode(image)
    # Of 16-bit colour, PIL gives the upper 8 bits; only the way to decode it, until it is decoded, says so.
    is_deep = image.mode.startswith("I") or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    pixels = np.asarray(turned.convert("RGB"))
    if is_deep and pixels.max() < DARKEST:
        raise UnclearPixelsError(
            f"it has 16 bits per channel but no value from {DARKEST << 8} on, as 12-bit cameras write it, and would be "
            "read as nearly black; store it with 8 bits per channel"
        )
    return pixels


class U2PLImageProcessor(BaseImageProcessor):
    """Image processor of [`U2PLForSemanticSegmentation`]: normalises images of any size and does not resize them.

    Its own class because logits are brought to image size on the grid of the published method, corners aligned; those
    of transformers do not align them, which moves borders by up to two pixels.

    Args:
        image_mean, image_std: per channel, for pixels in [0, 1]; ImageNet's.

    Raises:
        TypeError: another option.
    """

    def __init__(self, image_mean: list[float] | None = None, image_std: list[float] | None = None, **service):
        if unknown := sorted(service.keys() - SERVICE_KEYS):
            raise TypeError(f"{', '.join(unknown)}: this image processor has only image_mean and image_std")
        super().__init__(**service)
        self.image_mean = list(IMAGE_MEAN if image_mean is None else image_mean)
        self.image_std = list(IMAGE_STD if image_std is None else image_std)

    def preprocess(self, images: ImageInput, return_tensors: str | TensorType | None = None) -> BatchFeature:
        """Normalise one or several images.

        Args:
            images: PIL images, read by `upright_rgb`; one with an EXIF orientation is itself turned upright, so that
                its `size` is that of its mask. Or arrays or tensors, uint8 or floats from 0 to 1: RGB (H,W,3) or
                (3,H,W), or grey (H,W). All of one size where tensors are asked for.
            return_tensors: "pt", "np", or None for a list of arrays.

        Returns:
            `pixel_values`: float32 (B,3,H,W).

        Raises:
            ValueError: another shape or type of numbers, floats outside [0, 1], or a PIL image that `upright_rgb`
                refuses.
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
        if isinstance(image, Image.Image):
            pixels = upright_rgb(image)
            ImageOps.exif_transpose(image, in_place=True)
        else:
            pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = np.stack([pixels] * 3)
        elif pixels.ndim == 3 and pixels.shape[-1] == 3:
            pixels = pixels.transpose(2, 0, 1)
        is_float = pixels.dtype.kind == "f"
        if pixels.ndim != 3 or pixels.shape[0] != 3 or not (is_float or pixels.dtype == np.uint8):
            raise ValueError(
                f"an image is {pixels.dtype} {pixels.shape}: pass a PIL image, or uint8, or floats from 0 to 1, of "
                "shape (H,W,3), (3,H,W) or (H,W)"
            )
        if is_float and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"an image has floats from {pixels.min():.4g} to {pixels.max():.4g}: pass floats from 0 to 1, or uint8"
            )
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.image_mean, self.image_std))
        return (pixels.astype(np.float32) / np.float32(1 if is_float else 255) - mean) / std

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
