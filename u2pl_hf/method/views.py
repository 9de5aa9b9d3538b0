"""Strong views of unlabelled images: colour jitter, grey and blur, on the device, pixel-aligned with their image.

Parameters are those of UniMatch's published code (dataset/transform.py). Shapes: images (B,3,H,W), normalised with
ImageNet's mean and deviation. All draws come from a generator on the CPU, torch's own where none is given: what is
drawn decides which images an operation touches, and the host must know that without waiting for the device.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl_hf.pixels import statistics

JITTER_PROBABILITY, GREY_PROBABILITY, BLUR_PROBABILITY = 0.8, 0.2, 0.5
# Brightness, contrast and saturation are multiplied by U(0.5, 1.5); hue is turned by U(-0.25, 0.25) of the circle.
STRENGTH, HUE = 0.5, 0.25
SIGMA = (0.1, 2.0)
# ITU-R 601-2, as PIL's convert("L").
LUMA = (0.299, 0.587, 0.114)
BLUR_RADIUS = math.ceil(3 * SIGMA[1])
# Of CutMix: share of the crop's area, and height over width.
AREA, RATIO = (0.02, 0.4), (0.3, 1 / 0.3)
CANDIDATES = 256


def strong_view(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Colour jitter (p 0.8), grey (p 0.2), blur (p 0.5), each image with its own draws: normalised (B,3,H,W) -> same.

    Padding, 0 everywhere, does not stay 0: mask it again where that matters.
    """
    mean, std = statistics(images.device)
    chosen = torch.rand(3, len(images), generator=generator) < torch.tensor(
        [[JITTER_PROBABILITY], [GREY_PROBABILITY], [BLUR_PROBABILITY]]
    )
    jittered, greyed, blurred = (row.nonzero().flatten() for row in chosen)
    pixels = (images.float() * std + mean).clamp(0, 1)
    pixels = _where(pixels, jittered, lambda x: colour_jitter(x, generator))
    pixels = _where(pixels, greyed, lambda x: grey(x).expand_as(x))
    sigma = torch.empty(len(blurred)).uniform_(*SIGMA, generator=generator)
    pixels = _where(pixels, blurred, lambda x: gaussian_blur(x, sigma))
    return ((pixels - mean) / std).to(images.dtype)


def _where(pixels: Tensor, rows: Tensor, change) -> Tensor:
    """Some of the images changed; `rows` lie on the host."""
    if not len(rows):
        return pixels
    rows = rows.to(pixels.device, non_blocking=True)
    return pixels.index_copy(0, rows, change(pixels[rows]))


def colour_jitter(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of its own for each image (B,3,H,W) in [0, 1]."""
    factors = torch.empty(3, len(pixels)).uniform_(1 - STRENGTH, 1 + STRENGTH, generator=generator)
    turns = torch.empty(len(pixels)).uniform_(-HUE, HUE, generator=generator)
    order = torch.rand(4, len(pixels), generator=generator).argsort(dim=0)
    return adjust_colours(pixels, factors, turns, order)


def adjust_colours(pixels: Tensor, factors: Tensor, turns: Tensor, order: Tensor) -> Tensor:
    """The four operations of colour jitter, each followed by a clamp to [0, 1].

    Args:
        pixels: (B,3,H,W) in [0, 1].
        factors: (3,B), of brightness, contrast, saturation; on the host, as the others.
        turns: (B,), of hue, in turns of the circle.
        order: int64 (4,B): which operation comes first, second ...; 3 is hue.
    """
    for operation in order:
        # x -> f x + (1 - f) y, where y is black, the mean grey of the image, or the grey of the pixel.
        factor = torch.cat([factors, torch.ones(1, len(turns))]).gather(0, operation.unsqueeze(0))[0]
        to_mean, to_grey = ((1 - factor) * (operation == kind) for kind in (1, 2))
        factor, to_mean, to_grey = (
            v.view(-1, 1, 1, 1).to(pixels.device, non_blocking=True) for v in (factor, to_mean, to_grey)
        )
        luma = grey(pixels)
        added = torch.addcmul(to_mean * luma.mean(dim=(2, 3), keepdim=True), to_grey, luma)
        pixels = torch.addcmul(added, factor, pixels).clamp_(0, 1)
        hued = (operation == 3).nonzero().flatten()
        pixels = _where(pixels, hued, lambda x, hued=hued: turn_hue(x, turns[hued]))
    return pixels


def grey(pixels: Tensor) -> Tensor:
    """Luma of (B,3,H,W) -> (B,1,H,W)."""
    return sum(weight * channel for weight, channel in zip(LUMA, pixels.split(1, dim=1), strict=True))


def turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Hue of HSV moved by `turns` (B,) of the circle: (B,3,H,W) in [0, 1] -> same."""
    red, green, blue = pixels.unbind(dim=1)
    value, low = pixels.amax(dim=1), pixels.amin(dim=1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue / 6 + turns.view(-1, 1, 1).to(pixels.device, non_blocking=True)
    # Each channel falls from the value to the lowest within a sixth of the circle and stays there (HSV to RGB, f(n)).
    place = torch.stack([n + hue * 6 for n in (5, 3, 1)], dim=1)
    # The remainder of a division by 6; torch's own takes one number at a time on a CPU.
    place = place - 6 * (place / 6).floor()
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(place, 4 - place).clamp(0, 1)


def gaussian_blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Blur of each image with its own deviation in pixels, edges continued: (B,3,H,W), (B,) -> (B,3,H,W)."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(pixels.device, pixels.dtype, non_blocking=True)
    kernel = kernel.repeat_interleave(3, dim=0)
    planes = pixels.flatten(0, 1).unsqueeze(0)
    padded = F.pad(planes, [BLUR_RADIUS] * 4, mode="replicate")
    # Autocast would round the photograph itself to 8 bits of mantissa.
    with torch.autocast(pixels.device.type, enabled=False):
        across = F.conv2d(padded, kernel[:, None, None, :], groups=len(kernel))
        return F.conv2d(across, kernel[:, None, :, None], groups=len(kernel)).view_as(pixels)


def cutmix_boxes(
    batch: int, height: int, width: int, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """With a probability of its own for each image a box inside it: int64 (B,4) top, left, height, width; 0 for none.

    Area uniform in 2 to 40 % of the image, height over width uniform in [0.3, 1/0.3]; ratio and place are drawn again
    until the box lies inside, as the published code does.
    """
    area, ratio, x, y = torch.rand(4, batch, CANDIDATES, generator=generator)
    area = (AREA[0] + (AREA[1] - AREA[0]) * area[:, :1]) * height * width
    ratio = RATIO[0] + (RATIO[1] - RATIO[0]) * ratio
    box_w, box_h = (area / ratio).sqrt().floor(), (area * ratio).sqrt().floor()
    left, top = (x * width).floor(), (y * height).floor()
    inside = (left + box_w <= width) & (top + box_h <= height)
    first = inside.to(torch.uint8).argmax(dim=1, keepdim=True)
    boxes = torch.stack([part.gather(1, first).squeeze(1) for part in (top, left, box_h, box_w)], dim=1).long()
    mixed = (torch.rand(batch, generator=generator) < probability) & inside.any(dim=1)
    return boxes * mixed.unsqueeze(1)
