"""Prediction of whole images and sliding windows, and the one evaluation that training and evaluate.py share.

Shapes: B images of 3 x H x W, C classes.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from u2pl_hf.data.transforms import normalize
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.mean_iou import IGNORE_INDEX, MeanIoU

MODES = ("whole", "slide")
# The other heads would be half of the decoder's work.
LOGITS_ONLY = {"output_representation": False, "output_auxiliary": False}


def describe_protocol(
    *,
    mode: str = "whole",
    window: int = 769,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window_batch: int = 4,
) -> dict:
    """The options of `segment` that decide the score, checked, with the stride filled in; window only when sliding.

    Raises:
        InputError: an option is out of range; the message says which.
    """
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}: pass 'whole' or 'slide'")
    if not scales or min(scales) <= 0:
        raise InputError(f"scales are {list(scales)}: pass one or more numbers above 0")
    if window_batch < 1:
        raise InputError(f"window_batch is {window_batch}: pass at least 1")
    protocol = {"mode": mode, "scales": [float(scale) for scale in scales], "flip": bool(flip)}
    if mode == "slide":
        stride = math.ceil(window * 2 / 3) if stride is None else stride
        if window < 1 or not 1 <= stride <= window:
            raise InputError(f"window {window} and stride {stride}: pass 1 <= stride <= window, or pixels are missed")
        protocol |= {"window": window, "stride": stride}
    return protocol


@torch.no_grad()
def segment(
    model,
    pixel_values: Tensor,
    *,
    mode: str = "whole",
    window: int = 769,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window_batch: int = 4,
) -> Tensor:
    """Class scores at input size; the model's train/eval mode is the caller's.

    Args:
        model: U2PLForSemanticSegmentation, or what gives `.logits` (b,C,h,w) for float images (b,3,H,W) likewise.
        pixel_values: (B,3,H,W), float, normalised, on the model's device.
        mode: "whole", or "slide": square windows whose last row and column are shifted inside the image; logits are
            summed and divided by how many windows saw the pixel. An image smaller than the window is not padded.
        window: side of a window in pixels.
        stride: step of the windows; by default two thirds of the window, rounded up.
        scales: the image is resized by each factor (bilinear), predicted, and the scores are brought back.
        flip: predict the mirror image as well.
        window_batch: windows per forward pass.

    Returns:
        Float32 (B,C,H,W): logits for one scale without flip. With several views, the average over the views of the
        softmax probabilities, so that no view counts more because its logits are larger. The argmax is the class.

    Raises:
        InputError: an option is out of range.
    """
    options = describe_protocol(
        mode=mode, window=window, stride=stride, scales=scales, flip=flip, window_batch=window_batch
    )
    size = pixel_values.shape[-2:]
    views = list(itertools.product(scales, (False, True) if flip else (False,)))
    total = None
    for scale, mirrored in views:
        view = _resize(pixel_values, [max(1, round(n * scale)) for n in size])
        view = view.flip(-1) if mirrored else view
        if mode == "slide":
            logits = _slide(model, view, window, options["stride"], window_batch)
        else:
            logits = _resize(model(view, **LOGITS_ONLY).logits.float(), view.shape[-2:])
        logits = _resize(logits.flip(-1) if mirrored else logits, size)
        if len(views) == 1:
            return logits
        probability = logits.softmax(dim=1)
        total = probability if total is None else total.add_(probability)
    return total / len(views)


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def _slide(model, pixel_values: Tensor, window: int, stride: int, window_batch: int) -> Tensor:
    """Mean logits (B,C,H,W) of all windows over each pixel."""
    batch, _, height, width = pixel_values.shape
    tall, wide = min(window, height), min(window, width)
    corners = list(itertools.product(range(batch), _starts(height, tall, stride), _starts(width, wide, stride)))
    total, count = None, pixel_values.new_zeros(batch, 1, height, width, dtype=torch.float32)
    for first in range(0, len(corners), window_batch):
        chunk = corners[first : first + window_batch]
        crops = torch.stack([pixel_values[b, :, y : y + tall, x : x + wide] for b, y, x in chunk])
        logits = _resize(model(crops, **LOGITS_ONLY).logits.float(), (tall, wide))
        if total is None:
            total = logits.new_zeros(batch, logits.shape[1], height, width)
        for (b, y, x), scores in zip(chunk, logits, strict=True):
            total[b, :, y : y + tall, x : x + wide] += scores
            count[b, :, y : y + tall, x : x + wide] += 1
    return total.div_(count)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last one ends with the image."""
    return [*range(0, length - window, stride), length - window]


def predict_image(model, image: np.ndarray, device: torch.device | str, **segment_options) -> np.ndarray:
    """Class ids (H,W) uint8 of one RGB image (H,W,3) uint8; options as for `segment`."""
    with evaluating(model):
        return _predict([image], model, device, segment_options)[0].cpu().numpy().astype(np.uint8)


def score_image(model, image: np.ndarray, device: torch.device | str, **segment_options) -> Tensor:
    """Class scores (C,H,W) float32, on the device, of one RGB image (H,W,3) uint8; what they are, `segment` says."""
    with evaluating(model):
        return _score([image], model, device, segment_options)[0]


def _predict(images: Sequence[np.ndarray], model, device, segment_options: dict) -> Tensor:
    """Class ids (B,H,W), int64, on the device, of RGB images (H,W,3) uint8 of one size."""
    return _score(images, model, device, segment_options).argmax(dim=1)


def _score(images: Sequence[np.ndarray], model, device, segment_options: dict) -> Tensor:
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)
    return segment(model, normalize(stacked, None), **segment_options)


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
        The result of `MeanIoU.compute`, with `per_class_iou` as {class name: fraction or None} and
        `absent_classes` as names.

    Raises:
        InputError: a label does not fit its image or the model's classes; the message names the id.
    """
    describe_protocol(**segment_options)
    names = [model.config.id2label[c] for c in range(model.config.num_labels)]
    metric = MeanIoU(len(names), IGNORE_INDEX, device=device)
    mine = list(indices)[rank::world_size]
    with evaluating(model), tqdm(total=len(mine), desc="evaluate", disable=not progress or rank > 0) as bar:
        for batch in _same_size_batches(source, mine, len(names), batch_size):
            predictions = _predict([image for _, image, _ in batch], model, device, segment_options)
            labels = torch.from_numpy(np.stack([label for _, _, label in batch])).to(device)
            metric.update(predictions, labels)
            if on_sample is not None:
                for (sample_id, image, label), ids in zip(batch, predictions.cpu().numpy(), strict=True):
                    on_sample(sample_id, image, label, ids.astype(np.uint8))
            bar.update(len(batch))
    if world_size > 1:
        metric.all_reduce()
    result = metric.compute()
    result["per_class_iou"] = dict(zip(names, result["per_class_iou"], strict=True))
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
