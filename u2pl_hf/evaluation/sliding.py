"""Sliding windows over images: mean logits in finished rows, so that no more than one row of windows is held.

Shapes: B images of 3 x H x W, C classes.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl_hf.pixels import normalize

# The other heads would be half of the decoder's work.
LOGITS_ONLY = {"output_representation": False, "output_auxiliary": False}
# Finished rows are handed out in pieces, so that what is computed from them stays small as well.
PIECE = 64


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners aligned; (B,C,h,w) -> (B,C,*size)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


@torch.no_grad()
def slide_rows(
    model, images: Tensor, *, window: int, stride: int, window_batch: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Mean logits of all windows over each pixel, image after image, top to bottom.

    Beside the network's own memory this needs C x window x W floats.

    Args:
        model: as for `inference.segment`.
        images: (B,3,H,W) on the model's device: normalised floats, or bytes, which are normalised window by window.
        window: side in pixels; an image smaller than that is not padded.
        stride: step of the windows, at most `window`; the last row and column are shifted inside the image.
        window_batch: windows per forward pass.

    Yields:
        (place in the batch, first row, logits (C,n,W) float32 of n finished rows); valid until the next is asked for.
    """
    batch, _, height, width = images.shape
    tall, wide = min(window, height), min(window, width)
    rows, columns = window_starts(height, tall, stride), window_starts(width, wide, stride)
    over_row, over_column = (
        _count(starts, side, length, images.device)
        for starts, side, length in ((rows, tall, height), (columns, wide, width))
    )
    # One sequence for the whole batch: a pass may hold windows of two rows, or of two images.
    windows = _window_logits(
        model, images, list(itertools.product(range(batch), rows, columns)), tall, wide, window_batch
    )
    for image in range(batch):
        band = None
        for y, following in zip(rows, [*rows[1:], height], strict=True):
            for x in columns:
                logits = next(windows)
                band = logits.new_zeros(len(logits), tall, width) if band is None else band
                band[:, :, x : x + wide] += logits
            done = following - y
            for first in range(0, done, PIECE):
                last = min(first + PIECE, done)
                count = over_row[y + first : y + last, None] * over_column
                yield image, y + first, band[:, first:last].div_(count)
            # What later windows will add to moves up; class by class, as a copy of all would be as large again.
            for scores in band:
                scores[: tall - done] = scores[done:].clone()
                scores[tall - done :] = 0


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last one ends with the image."""
    return [*range(0, length - window, stride), length - window]


def _count(starts: list[int], side: int, length: int, device: torch.device) -> Tensor:
    """How many windows lie over each place along one side, float (length,)."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + side] += 1
    return count.to(device)


def _window_logits(
    model, images: Tensor, corners: list[tuple[int, int, int]], tall: int, wide: int, window_batch: int
) -> Iterator[Tensor]:
    """Logits (C,tall,wide) of each window, in the order of the corners (place in the batch, y, x)."""
    for first in range(0, len(corners), window_batch):
        chunk = corners[first : first + window_batch]
        crops = torch.stack([images[b, :, y : y + tall, x : x + wide] for b, y, x in chunk])
        crops = normalize(crops, None) if crops.dtype == torch.uint8 else crops
        yield from resize(model(crops, **LOGITS_ONLY).logits.float(), (tall, wide))
