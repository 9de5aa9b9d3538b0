"""Prediction of images, and the one evaluation that training and evaluate.py share; `segment` lies beside it.

Shapes: B images of 3 x H x W, C classes.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.mean_iou import IGNORE_INDEX, MeanIoU
from u2pl_hf.evaluation.segmentation import describe_protocol, segment, segment_rows, views_of
from u2pl_hf.pixels import normalize

__all__ = [
    "class_names",
    "count_pixels",
    "describe_protocol",
    "evaluate_model",
    "evaluating",
    "named_scores",
    "predict_image",
    "predict_images",
    "score_image",
    "segment",
]


def predict_image(model, image: np.ndarray, device: torch.device | str, **segment_options) -> np.ndarray:
    """Class ids (H,W) uint8 of one RGB image (H,W,3) uint8; options as for `segment`."""
    return predict_images(model, [image], device, **segment_options)[0][0]


def predict_images(
    model,
    images: Sequence[np.ndarray],
    device: torch.device | str,
    *,
    with_confidence: bool = False,
    progress: Callable[[int], None] | None = None,
    **segment_options,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Class ids, and how sure the model is of them, of images of one size; see `segment_rows` for the memory.

    Args:
        model: U2PLForSemanticSegmentation on `device`; train/eval modes are restored afterwards.
        images: RGB (H,W,3) uint8, all of one size.
        device: where to compute.
        with_confidence: also give the confidence 1 - entropy / log C of the class probabilities.
        progress: called with the number of pixels done since the last call.
        **segment_options: options of `segment`.

    Returns:
        Ids (B,H,W) uint8, and the confidence (B,H,W) uint8 from 0, all classes alike, to 255, sure; else None.
    """
    with evaluating(model):
        ids, confidence = _predict(images, model, device, segment_options, with_confidence, progress)
    return ids.cpu().numpy(), None if confidence is None else confidence.cpu().numpy()


def score_image(model, image: np.ndarray, device: torch.device | str, **segment_options) -> Tensor:
    """Class scores (C,H,W) float32, on the device, of one RGB image (H,W,3) uint8; what they are, `segment` says."""
    pixels = torch.from_numpy(np.stack([image])).permute(0, 3, 1, 2).contiguous().to(device)
    with evaluating(model):
        return segment(model, normalize(pixels, None), **segment_options)[0]


def _predict(
    images: Sequence[np.ndarray], model, device, segment_options: dict, with_confidence: bool = False, progress=None
) -> tuple[Tensor, Tensor | None]:
    """Ids and confidence as for `predict_images`, on the device."""
    # A photograph may be large: alone it is not copied, unless torch would warn that it cannot be written to.
    stacked = images[0][None] if len(images) == 1 and images[0].flags.writeable else np.stack(images)
    stacked = torch.from_numpy(stacked).permute(0, 3, 1, 2).to(device)
    ids = torch.empty((len(stacked), *stacked.shape[-2:]), dtype=torch.uint8, device=device)
    confidence = torch.empty_like(ids) if with_confidence else None
    are_logits = len(views_of(describe_protocol(**segment_options))) == 1
    for image, first, scores in segment_rows(model, stacked, **segment_options):
        rows = slice(first, first + scores.shape[1])
        ids[image, rows] = scores.argmax(dim=0)
        if confidence is not None:
            confidence[image, rows] = _confidence(scores.softmax(dim=0) if are_logits else scores)
        if progress is not None:
            progress(scores[0].numel())
    return ids, confidence


def _confidence(probability: Tensor) -> Tensor:
    """1 - entropy / log C of probabilities (C,H,W), as bytes (H,W); a single class is sure."""
    entropy = torch.special.entr(probability).sum(dim=0) / math.log(max(len(probability), 2))
    return (255 * (1 - entropy)).round().clamp(0, 255).to(torch.uint8)


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
    model,
    source,
    indices: Sequence[int],
    *,
    device: torch.device | str,
    batch_size: int = 1,
    on_sample: Callable[[str, np.ndarray, np.ndarray, np.ndarray], None] | None = None,
    progress: bool | None = None,
    rank: int = 0,
    world_size: int = 1,
    **segment_options,
) -> dict:
    """Score the model on images of a source.

    Every process calls this with all indices and takes each `world_size`-th; each image counts once, and all
    processes return the same result.

    Args:
        model: U2PLForSemanticSegmentation on `device`; train/eval modes are restored afterwards.
        source: has ids, read_image(i) -> (H,W,3) uint8 and read_label(i) -> (H,W) uint8.
        indices: rows of the source.
        device: where to compute.
        batch_size: neighbouring images of the same size share a forward pass, up to this many.
        on_sample: called as on_sample(id, image, label, prediction) with uint8 arrays, on the process that has it.
        progress: True shows a progress bar on rank 0.
        rank: which process this is.
        world_size: how many there are; above 1 torch.distributed must be initialised.
        **segment_options: mode, window, stride, scales, flip, window_batch of `segment`.

    Returns:
        `named_scores` of all processes' counts.

    Raises:
        InputError: a label does not fit its image or the model's classes; the message names the id.
    """
    metric = count_pixels(
        model,
        source,
        list(indices)[rank::world_size],
        device=device,
        batch_size=batch_size,
        on_sample=on_sample,
        progress=bool(progress) and rank == 0,
        **segment_options,
    )
    if world_size > 1:
        metric.all_reduce()
    return named_scores(metric, class_names(model))


def count_pixels(
    model, source, indices: Sequence[int], *, device, batch_size=1, on_sample=None, progress=False, **segment_options
) -> MeanIoU:
    """The confusion matrix of this process's images; arguments as for `evaluate_model`.

    Raises:
        InputError: as there. Other processes may be told before the matrices are summed (`MeanIoU.all_reduce`).
    """
    describe_protocol(**segment_options)
    num_labels = model.config.num_labels
    metric = MeanIoU(num_labels, IGNORE_INDEX, device=device)
    with evaluating(model), tqdm(total=len(indices), desc="evaluate", disable=not progress) as bar:
        for batch in _same_size_batches(source, indices, num_labels, batch_size):
            predictions, _ = _predict([image for _, image, _ in batch], model, device, segment_options)
            labels = torch.from_numpy(np.stack([label for _, _, label in batch])).to(device)
            metric.update(predictions, labels)
            if on_sample is not None:
                for (sample_id, image, label), ids in zip(batch, predictions.cpu().numpy(), strict=True):
                    on_sample(sample_id, image, label, ids)
            bar.update(len(batch))
    return metric


def class_names(model) -> list[str]:
    """The model's classes in the order of their ids."""
    return [model.config.id2label[c] for c in range(model.config.num_labels)]


def named_scores(metric: MeanIoU, names: Sequence[str]) -> dict:
    """The result of `MeanIoU.compute`, with numbers per class as {name: fraction or None}, absent classes as names."""
    result = metric.compute()
    for key in ("per_class_iou", "per_class_accuracy"):
        result[key] = dict(zip(names, result[key], strict=True))
    result["absent_classes"] = [names[c] for c in result["absent_classes"]]
    return result


def _same_size_batches(source, indices: Sequence[int], num_labels: int, batch_size: int) -> Iterator[list[tuple]]:
    """Lists of up to batch_size neighbouring (id, image, label) of one size; one batch is in memory at a time."""
    batch: list[tuple] = []
    for index in indices:
        sample = (source.ids[index], source.read_image(index), source.read_label(index))
        _check_sample(*sample, num_labels)
        if batch and (len(batch) == batch_size or batch[-1][1].shape != sample[1].shape):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _check_sample(sample_id: str, image: np.ndarray, label: np.ndarray, num_labels: int) -> None:
    if image.shape[:2] != label.shape:
        (h, w), (lh, lw) = image.shape[:2], label.shape
        raise InputError(f"id {sample_id}: the image is {w}x{h} and its label {lw}x{lh} pixels: they must be equal")
    wrong = label[(label >= num_labels) & (label != IGNORE_INDEX)]
    if wrong.size:
        raise InputError(
            f"id {sample_id}: the label holds {int(wrong[0])}, the model has {num_labels} classes"
            f" (0..{num_labels - 1}, {IGNORE_INDEX} = ignore): evaluate on the data set it was trained for"
        )
