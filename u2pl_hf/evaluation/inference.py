"""One way to segment images, for `u2pl_hf.predict`, predict.py, evaluate.py, training and the page; and their scores.

Shapes: B images of 3 x H x W, C classes.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from u2pl_hf.constants import IGNORE, default_palette
from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.evaluation.folding import folded
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.mean_iou import MeanIoU
from u2pl_hf.evaluation.photographs import read_photograph
from u2pl_hf.evaluation.pictures import overlay, with_legend
from u2pl_hf.evaluation.segmentation import describe_protocol, segment, segment_rows, views_of
from u2pl_hf.pixels import DAMAGED, upright_rgb
from u2pl_hf.system.precision import computing

__all__ = ["Prediction", "describe_protocol", "evaluate_model", "predict", "predict_image", "predict_images", "segment"]

# 2048 x 1024. With a ResNet-50 at output stride 8 such an image takes 2.2 GB, see docs/inference.md.
MAX_WHOLE_PIXELS = 2**21


def class_names(model) -> list[str]:
    """The model's classes in the order of their ids."""
    return [model.config.id2label[c] for c in range(model.config.num_labels)]


def class_colours(model) -> list[list[int]]:
    """C rows of [r, g, b]: the model's own, or PASCAL VOC's."""
    return model.config.palette or default_palette(model.config.num_labels)


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
        drawn = overlay(self.image, self.labels, self.palette, opacity, contour=contour)
        drawn = with_legend(drawn, self.labels, self.palette, self.class_names) if legend else drawn
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
            id. Load it once for many photographs, and pass `evaluation.folding.folded` of it, as is done here.
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
        model = folded(load_model(os.fspath(model), device=device, revision=revision))
    if isinstance(image, str | os.PathLike):
        image = read_photograph(image)
    elif isinstance(image, Image.Image):
        with refusing(DAMAGED, "the image cannot be used"):
            image = np.array(upright_rgb(image))
    is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    require(is_rgb, f"the image is {image.dtype} {image.shape}: pass RGB (H,W,3) uint8, a PIL image or a file")
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


def predict_image(model, image: np.ndarray, device: torch.device | str, **segment_options) -> np.ndarray:
    """Class ids (H,W) uint8 of one RGB image (H,W,3) uint8; options as for `segment`."""
    return predict_images(model, [image], device, **segment_options)[0][0]


def predict_images(
    model, images: Sequence[np.ndarray], device: torch.device | str, *, with_confidence: bool = False, **options
) -> tuple[np.ndarray, np.ndarray | None]:
    """Class ids, and how sure the model is of them, of images of one size.

    Args:
        model: U2PLForSemanticSegmentation on `device`; train/eval modes are restored afterwards.
        images: RGB (H,W,3) uint8, all of one size.
        device: where to compute.
        with_confidence: also give the confidence 1 - entropy / log C of the class probabilities.
        **options: of `segment`, and `progress`, called with the number of pixels done since the last call.

    Returns:
        Ids (B,H,W) uint8, and the confidence (B,H,W) uint8 from 0, all classes alike, to 255, sure; else None.
    """
    ids, entropy = ids_and_entropy(model, images, device, with_entropy=with_confidence, **options)
    sure = None if entropy is None else confidence_of(entropy.cpu().numpy(), model.config.num_labels)
    return ids.cpu().numpy(), None if sure is None else as_bytes(sure)


def ids_and_entropy(
    model,
    images: Sequence[np.ndarray],
    device: torch.device | str,
    *,
    with_entropy: bool = True,
    progress: Callable[[int], object] = lambda pixels: None,
    **segment_options,
) -> tuple[Tensor, Tensor | None]:
    """Ids (B,H,W) uint8 and entropy (B,H,W) float32 in nats, on the device; arguments as for `predict_images`."""
    # A photograph may be large: alone it is not copied, unless torch would warn that it cannot be written to.
    stacked = images[0][None] if len(images) == 1 and images[0].flags.writeable else np.stack(images)
    stacked = torch.from_numpy(stacked).permute(0, 3, 1, 2).to(device)
    ids = torch.empty((len(stacked), *stacked.shape[-2:]), dtype=torch.uint8, device=device)
    entropy = torch.empty_like(ids, dtype=torch.float32) if with_entropy else None
    are_logits = len(views_of(describe_protocol(**segment_options))) == 1
    with evaluating(model):
        for image, first, scores in segment_rows(model, stacked, **segment_options):
            rows = slice(first, first + scores.shape[1])
            ids[image, rows] = scores.argmax(dim=0)
            if entropy is not None:
                probability = scores.softmax(dim=0) if are_logits else scores
                entropy[image, rows] = torch.special.entr(probability).sum(dim=0)
            progress(scores[0].numel())
    return ids, entropy


def confidence_of(entropy: np.ndarray, num_labels: int) -> np.ndarray:
    """1 - entropy / log C, from 0, all classes alike, to 1, sure; a single class is sure."""
    return np.clip(1 - entropy / math.log(max(num_labels, 2)), 0, 1)


def as_bytes(share: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as uint8 from 0 to 255."""
    return (255 * share).round().astype(np.uint8)


@contextlib.contextmanager
def evaluating(model) -> Iterator[None]:
    """Put the model into eval mode and afterwards each module back into the mode it had."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def evaluate_model(
    model, source, indices: Sequence[int], *, rank: int = 0, world_size: int = 1, progress: bool = False, **options
) -> dict:
    """Score the model on images of a source.

    Every process calls this with all indices and takes each `world_size`-th; each image counts once, and all
    processes return the same result.

    Args:
        rank: which process this is.
        world_size: how many there are; above 1 torch.distributed must be initialised.
        progress: whether to show a progress bar on rank 0.
        **options: of `count_pixels`, where the other arguments are explained.

    Returns:
        `named_scores` of all processes' counts.

    Raises:
        InputError: a label does not fit its image or the model's classes; the message names the id.
    """
    metric = count_pixels(model, source, list(indices)[rank::world_size], progress=progress and rank == 0, **options)
    if world_size > 1:
        metric.all_reduce()
    return named_scores(metric, class_names(model))


def count_pixels(
    model,
    source,
    indices: Sequence[int],
    *,
    device: torch.device | str,
    batch_size: int = 1,
    on_sample: Callable[[str, np.ndarray, np.ndarray, np.ndarray], None] | None = None,
    progress: bool = False,
    **segment_options,
) -> MeanIoU:
    """The confusion matrix of images.

    Args:
        model: U2PLForSemanticSegmentation on `device`; train/eval modes are restored afterwards.
        source: has ids, read_image(i) -> (H,W,3) uint8 and read_label(i) -> (H,W) uint8.
        indices: rows of the source.
        device: where to compute.
        batch_size: neighbouring images of the same size share a forward pass, up to this many.
        on_sample: called as on_sample(id, image, label, prediction) with uint8 arrays.
        progress: whether to show a progress bar.
        **segment_options: mode, window, stride, scales, flip, window_batch of `segment`.

    Raises:
        InputError: as for `evaluate_model`.
    """
    num_labels = model.config.num_labels
    metric = MeanIoU(num_labels, IGNORE, device=device)
    with tqdm(total=len(indices), desc="evaluate", disable=not progress) as bar:
        for batch in same_size_batches(labelled_samples(source, indices, num_labels), batch_size):
            _, images, labels = zip(*batch, strict=True)
            predictions, _ = ids_and_entropy(model, images, device, with_entropy=False, **segment_options)
            metric.update(predictions, torch.from_numpy(np.stack(labels)).to(device))
            if on_sample is not None:
                for sample, ids in zip(batch, predictions.cpu().numpy(), strict=True):
                    on_sample(*sample, ids)
            bar.update(len(batch))
    return metric


def named_scores(metric: MeanIoU, names: Sequence[str]) -> dict:
    """The result of `MeanIoU.compute`, with numbers per class as {name: fraction or None}, absent classes as names."""
    result = metric.compute()
    each = {key: dict(zip(names, result[key], strict=True)) for key in ("per_class_iou", "per_class_accuracy")}
    return result | each | {"absent_classes": [names[c] for c in result["absent_classes"]]}


def same_size_batches(samples: Iterable[tuple], batch_size: int) -> Iterator[list[tuple]]:
    """Up to batch_size neighbours whose images, the second item of each, have one size.

    Raises:
        InputError: what reading a sample raises; those before it have been given by then.
    """
    batch, failure = [], None
    try:
        for sample in samples:
            if batch and batch[-1][1].shape != sample[1].shape:
                yield batch
                batch = []
            batch.append(sample)
            if len(batch) == batch_size:
                yield batch
                batch = []
    except InputError as error:
        failure = error
    if batch:
        yield batch
    if failure:
        raise failure


def labelled_samples(source, indices: Sequence[int], num_labels: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(id, image, label), checked, one after the other.

    Raises:
        InputError: as for `evaluate_model`.
    """
    for index in indices:
        sample_id, image, label = source.ids[index], source.read_image(index), source.read_label(index)
        (h, w), (lh, lw) = image.shape[:2], label.shape
        sizes = f"the image is {w}x{h} and its label {lw}x{lh} pixels: they must be equal"
        require((h, w) == (lh, lw), f"id {sample_id}: {sizes}")
        wrong = next(iter(label[(label >= num_labels) & (label != IGNORE)]), None)
        known = f"the model has {num_labels} classes (0..{num_labels - 1}, {IGNORE} = ignore)"
        told = f"id {sample_id}: the label holds {wrong}, {known}: evaluate on the data set it was trained for"
        require(wrong is None, told)
        yield sample_id, image, label
