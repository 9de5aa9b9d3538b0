"""Class scores of images: whole or by sliding windows, at several scales, mirrored; at once or in pieces of rows.

Shapes: B images of 3 x H x W, C classes.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.sliding import LOGITS_ONLY, resize, slide_rows
from u2pl_hf.pixels import normalize

MODES = ("whole", "slide")


def describe_protocol(
    *,
    mode: str = "whole",
    window: int = 769,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window_batch: int | None = None,
) -> dict:
    """The options of `segment` that decide the score, checked, with the stride filled in; window only when sliding.

    Raises:
        InputError: an option is out of range; the message says which.
    """
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}: pass 'whole' or 'slide'")
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise InputError(f"scales are {list(scales)}: pass one or more numbers above 0")
    if window_batch is not None and window_batch < 1:
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
    window_batch: int | None = None,
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
        window_batch: windows per forward pass; by default 1 on the CPU, where more only need memory, and 4 elsewhere.

    Returns:
        Float32 (B,C,H,W): logits for one scale without flip. With several views, the average over the views of the
        softmax probabilities, so that no view counts more because its logits are larger. The argmax is the class.

    Raises:
        InputError: an option is out of range.
    """
    protocol = describe_protocol(
        mode=mode, window=window, stride=stride, scales=scales, flip=flip, window_batch=window_batch
    )
    if _can_slide_in_rows(protocol):
        return _assemble(_slide_views(model, pixel_values, protocol, window_batch), pixel_values)
    size, views = pixel_values.shape[-2:], views_of(protocol)

    def logits(scale: float, mirrored: bool) -> Tensor:
        view = resize(pixel_values, [max(1, round(n * scale)) for n in size])
        view = view.flip(-1) if mirrored else view
        if mode == "slide":
            scores = _assemble(slide_rows(model, view, **_window_options(protocol, window_batch, view.device)), view)
        else:
            scores = resize(model(view, **LOGITS_ONLY).logits.float(), view.shape[-2:])
        return resize(scores.flip(-1) if mirrored else scores, size)

    return _average((logits(*view) for view in views), len(views))


@torch.no_grad()
def segment_rows(
    model, images: Tensor, *, window_batch: int | None = None, **segment_options
) -> Iterator[tuple[int, int, Tensor]]:
    """What `segment` gives, to the last bit, in pieces of rows.

    Sliding windows at scale 1, mirrored or not, never hold the scores of a whole image: one row of windows is what
    they need, C x window x W floats (twice with flip). Otherwise the pieces are whole images, and memory is that of
    `segment`: with several views three times C x H x W floats.

    Args:
        model: as for `segment`.
        images: (B,3,H,W) uint8 on the model's device.
        window_batch: as for `segment`.
        **segment_options: the other options of `segment`.

    Yields:
        (place in the batch, first row, scores (C,n,W) of n rows), image after image, top to bottom; valid until the
        next is asked for.
    """
    protocol = describe_protocol(window_batch=window_batch, **segment_options)
    if _can_slide_in_rows(protocol):
        yield from _slide_views(model, images, protocol, window_batch)
    else:
        scores = segment(model, normalize(images, None), window_batch=window_batch, **segment_options)
        yield from ((image, 0, whole) for image, whole in enumerate(scores))


def _can_slide_in_rows(protocol: dict) -> bool:
    return protocol["mode"] == "slide" and set(protocol["scales"]) == {1.0}


def _slide_views(model, images: Tensor, protocol: dict, window_batch: int | None) -> Iterator[tuple[int, int, Tensor]]:
    """Scores in rows, as `segment_rows` yields them, of sliding windows at scale 1."""
    options = _window_options(protocol, window_batch, images.device)
    views = [mirrored for _, mirrored in views_of(protocol)]
    rows = [slide_rows(model, images.flip(-1) if mirrored else images, **options) for mirrored in views]
    for pieces in zip(*rows, strict=True):
        image, first, _ = pieces[0]
        upright = (
            scores.flip(-1) if mirrored else scores for mirrored, (_, _, scores) in zip(views, pieces, strict=True)
        )
        yield image, first, _average(upright, len(views))


def views_of(protocol: dict) -> list[tuple[float, bool]]:
    """(scale, mirrored) of each."""
    return list(itertools.product(protocol["scales"], (False, True) if protocol["flip"] else (False,)))


def _average(views: Iterable[Tensor], number: int) -> Tensor:
    """One view: its logits (..,C,H,W). Several: the mean of their softmax probabilities."""
    if number == 1:
        return next(iter(views))
    total = None
    for logits in views:
        probability = logits.softmax(dim=-3)
        total = probability if total is None else total.add_(probability)
    return total / number


def _window_options(protocol: dict, window_batch: int | None, device: torch.device) -> dict:
    default = 1 if device.type == "cpu" else 4
    return {"window": protocol["window"], "stride": protocol["stride"], "window_batch": window_batch or default}


def _assemble(pieces: Iterable[tuple[int, int, Tensor]], images: Tensor) -> Tensor:
    """Scores (B,C,H,W) of whole images from pieces of rows."""
    total = None
    for image, first, scores in pieces:
        if total is None:
            batch, _, height, width = images.shape
            total = scores.new_empty(batch, len(scores), height, width)
        total[image, :, first : first + scores.shape[1]] = scores
    return total
