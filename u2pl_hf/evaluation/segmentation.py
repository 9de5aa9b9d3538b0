"""Class scores of images: whole or by sliding windows, at several scales, mirrored; at once or in pieces of rows.

Shapes: B images of 3 x H x W, C classes.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl_hf.errors import require
from u2pl_hf.pixels import normalize

# The other heads would be half of the decoder's work.
LOGITS_ONLY = {"output_representation": False, "output_auxiliary": False}
# Finished rows are handed out in pieces, so that what is computed from them stays small as well.
PIECE = 64


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
    stride = math.ceil(window * 2 / 3) if stride is None else stride
    require(mode in ("whole", "slide"), f"mode is {mode!r}: pass 'whole' or 'slide'")
    are_positive = scales and all(0 < scale < math.inf for scale in scales)
    require(are_positive, f"scales are {list(scales)}: pass one or more numbers above 0")
    require(window_batch is None or window_batch >= 1, f"window_batch is {window_batch}: pass at least 1")
    fits, told = mode == "whole" or 1 <= stride <= window, "pass 1 <= stride <= window, or pixels are missed"
    require(fits, f"window {window} and stride {stride}: {told}")
    protocol = {"mode": mode, "scales": [float(scale) for scale in scales], "flip": bool(flip)}
    return protocol | ({"window": window, "stride": stride} if mode == "slide" else {})


def views_of(protocol: dict) -> list[tuple[float, bool]]:
    """(scale, mirrored) of each."""
    return list(itertools.product(protocol["scales"], (False, True) if protocol["flip"] else (False,)))


def segment(model, pixel_values: Tensor, **options) -> Tensor:
    """Class scores at input size; the model's train/eval mode is the caller's.

    Args:
        model: U2PLForSemanticSegmentation, or what gives `.logits` (b,C,h,w) for float images (b,3,H,W) likewise.
        pixel_values: (B,3,H,W), bytes, or normalised floats, on the model's device.
        mode: "whole", or "slide": square windows whose last row and column are shifted inside the image; logits are
            summed and divided by how many windows saw the pixel. An image smaller than the window is not padded.
        window: side of a window in pixels (769).
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
    return _assemble(segment_rows(model, pixel_values, **options), pixel_values)


@torch.no_grad()
def segment_rows(
    model, images: Tensor, *, window_batch: int | None = None, **options
) -> Iterator[tuple[int, int, Tensor]]:
    """What `segment` gives, in pieces of rows.

    Sliding windows at scale 1, mirrored or not, never hold the scores of a whole image: one row of windows is what
    they need, C x window x W floats (twice with flip). Otherwise the pieces are whole images; with several views they
    take three times C x H x W floats.

    Args:
        model: as for `segment`.
        images: (B,3,H,W) on the model's device: normalised floats, or bytes, which are normalised here.
        window_batch: as for `segment`.
        **options: the other options of `segment`.

    Yields:
        (place in the batch, first row, scores (C,n,W) of n rows), image after image, top to bottom; valid until the
        next is asked for.
    """
    protocol = describe_protocol(window_batch=window_batch, **options)
    views, slides = views_of(protocol), protocol["mode"] == "slide"
    windows = {"window_batch": window_batch or (1 if images.device.type == "cpu" else 4)}
    windows |= {name: protocol[name] for name in ("window", "stride") if slides}
    if slides and set(protocol["scales"]) == {1.0}:
        rows = [slide_rows(model, _mirrored(images, mirrored), **windows) for _, mirrored in views]
        for pieces in zip(*rows, strict=True):
            upright = [_mirrored(scores, view[1]) for view, (*_, scores) in zip(views, pieces, strict=True)]
            yield *pieces[0][:2], _average(upright, len(views))
        return
    pixels, size = _normalised(images), images.shape[-2:]

    def logits(scale: float, mirrored: bool) -> Tensor:
        view = _mirrored(resize(pixels, [max(1, round(n * scale)) for n in size]), mirrored)
        if slides:
            scores = _assemble(slide_rows(model, view, **windows), view)
        else:
            scores = resize(model(view, **LOGITS_ONLY).logits.float(), view.shape[-2:])
        return resize(_mirrored(scores, mirrored), size)

    whole = _average((logits(*view) for view in views), len(views))
    yield from ((place, 0, scores) for place, scores in enumerate(whole))


@torch.no_grad()
def slide_rows(
    model, images: Tensor, *, window: int, stride: int, window_batch: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Mean logits of all windows over each pixel, in pieces of rows as `segment_rows` gives them.

    Beside the network's own memory this needs C x window x W floats.
    """
    batch, _, height, width = images.shape
    tall, wide = min(window, height), min(window, width)
    rows, columns = ([*range(0, n - side, stride), n - side] for n, side in ((height, tall), (width, wide)))
    # One sequence for the whole batch: a pass may hold windows of two rows, or of two images.
    corners = list(itertools.product(range(batch), rows, columns))
    windows = _window_logits(model, images, corners, tall, wide, window_batch)
    for image in range(batch):
        band = None
        for y, following in zip(rows, [*rows[1:], height], strict=True):
            for x in columns:
                logits = next(windows)
                # The last channel counts the windows.
                band = logits.new_zeros(len(logits) + 1, tall, width) if band is None else band
                band[:-1, :, x : x + wide] += logits
                band[-1, :, x : x + wide] += 1
            done = following - y
            for first in range(0, done, PIECE):
                piece = band[:, first : min(first + PIECE, done)]
                yield image, y + first, piece[:-1].div_(piece[-1])
            # What later windows will add to moves up; class by class, as a copy of all would be as large again.
            for scores in band:
                scores[: tall - done] = scores[done:].clone()
                scores[tall - done :] = 0


def _window_logits(
    model, images: Tensor, corners: list[tuple[int, int, int]], tall: int, wide: int, window_batch: int
) -> Iterator[Tensor]:
    """Logits (C,tall,wide) of each window, in the order of the corners (place in the batch, y, x)."""
    for first in range(0, len(corners), window_batch):
        chunk = corners[first : first + window_batch]
        crops = _normalised(torch.stack([images[b, :, y : y + tall, x : x + wide] for b, y, x in chunk]))
        yield from resize(model(crops, **LOGITS_ONLY).logits.float(), (tall, wide))


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners aligned; (B,C,h,w) -> (B,C,*size)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def _normalised(images: Tensor) -> Tensor:
    return normalize(images, None) if images.dtype == torch.uint8 else images


def _mirrored(maps: Tensor, mirrored: bool) -> Tensor:
    return maps.flip(-1) if mirrored else maps


def _average(views: Iterable[Tensor], number: int) -> Tensor:
    """One view: its logits (..,C,H,W). Several: the mean of their softmax probabilities."""
    if number == 1:
        return next(iter(views))
    total = None
    for logits in views:
        probability = logits.softmax(dim=-3)
        total = probability if total is None else total.add_(probability)
    return total / number


def _assemble(pieces: Iterable[tuple[int, int, Tensor]], images: Tensor) -> Tensor:
    """Scores (B,C,H,W) of whole images from pieces of rows."""
    total = None
    for image, first, scores in pieces:
        if total is None:
            total = scores.new_empty(len(images), len(scores), *images.shape[-2:])
        total[image, :, first : first + scores.shape[1]] = scores
    return total
