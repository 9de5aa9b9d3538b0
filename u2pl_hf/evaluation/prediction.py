"""One way to segment a photograph: for `u2pl_hf.predict`, predict.py and the page."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from u2pl_hf.data.source.decode import DAMAGED, upright_rgb
from u2pl_hf.errors import InputError, refusing
from u2pl_hf.evaluation import pictures
from u2pl_hf.evaluation.inference import class_colours, class_names, confidence_of, ids_and_entropy
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.photographs import read_photograph
from u2pl_hf.system.compute import computing

# 2048 x 1024. With a ResNet-50 at output stride 8 such an image takes 2.2 GB, see docs/inference.md.
MAX_WHOLE_PIXELS = 2**21


@dataclass(frozen=True, eq=False)
class Prediction:
    """A photograph and what a model says of it.

    Attributes:
        image: RGB (H,W,3) uint8, upright, as it was predicted.
        labels: the most probable class of each pixel, (H,W) uint8.
        entropy: of each pixel's class probabilities, (H,W) float32 in nats; None where it was not asked for.
        class_names: of the C classes, in the order of their ids.
        palette: C rows of [r, g, b].
        mode: how it was predicted, "whole" or "slide".
    """

    image: np.ndarray
    labels: np.ndarray
    entropy: np.ndarray | None
    class_names: list[str]
    palette: list[list[int]]
    mode: str

    @property
    def confidence(self) -> np.ndarray:
        """1 - entropy / log C, (H,W) float32: from 0, all classes alike, to 1, sure."""
        return confidence_of(self.entropy, len(self.class_names))

    def overlay(self, opacity: float = 0.5, *, contour: bool = True, legend: bool = False) -> Image.Image:
        """The photograph under its classes' colours.

        Args:
            opacity: of the colours, in [0, 1].
            contour: white lines between the classes.
            legend: the names of the classes that occur, below the picture, which grows by it.
        """
        drawn = pictures.overlay(self.image, self.labels, self.palette, opacity, contour=contour)
        if legend:
            drawn = pictures.with_legend(drawn, self.labels, self.palette, self.class_names)
        return Image.fromarray(drawn)


def predict(
    model,
    image: str | os.PathLike | Image.Image | np.ndarray,
    *,
    device: str = "auto",
    revision: str | None = None,
    precision: str = "no",
    **options,
) -> Prediction:
    """Segment one photograph of any size.

    Args:
        model: U2PLForSemanticSegmentation, which computes where it is, or the name of one: an exported folder or a Hub
            id. Load it once for many photographs.
        image: file, PIL image, or RGB array (H,W,3) uint8.
        device: where a model that is loaded by name computes.
        revision: branch, tag or commit of a model on the Hub.
        precision: "no", or autocast to "bf16" or "fp16".
        **options: `mode` "auto", "whole" or "slide", `max_whole_pixels`, from which size on "auto" slides, and
            `window`, `stride`, `scales`, `flip`, `window_batch` of `evaluation.inference.segment`.

    Raises:
        InputError: no such model or image, one that cannot be used, or an option out of range.
    """
    if isinstance(model, str | os.PathLike):
        model = load_model(os.fspath(model), device=device, revision=revision)
    if isinstance(image, str | os.PathLike):
        image = read_photograph(image)
    elif isinstance(image, Image.Image):
        with refusing(DAMAGED, "the image cannot be used"):
            image = np.array(upright_rgb(image))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"the image is {image.dtype} {image.shape}: pass RGB (H,W,3) uint8, a PIL image or a file")
    with computing(precision, next(model.parameters()).device):
        return predict_all(model, [image], **options)[0]


def predict_all(
    model,
    images: Sequence[np.ndarray],
    *,
    mode: str = "auto",
    max_whole_pixels: int = MAX_WHOLE_PIXELS,
    with_entropy: bool = True,
    **options,
) -> list[Prediction]:
    """Predictions of images (H,W,3) uint8 of one size, in one batch; options as for `predict`, and `progress`."""
    if mode == "auto":
        mode = "whole" if images[0].shape[0] * images[0].shape[1] <= max_whole_pixels else "slide"
    device = next(model.parameters()).device
    ids, entropy = ids_and_entropy(model, images, device, with_entropy=with_entropy, mode=mode, **options)
    labels = ids.cpu().numpy()
    entropy = [None] * len(images) if entropy is None else entropy.cpu().numpy()
    about = class_names(model), class_colours(model), mode
    return [Prediction(*each, *about) for each in zip(images, labels, entropy, strict=True)]
