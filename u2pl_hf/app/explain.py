"""What the page shows of one image: one forward pass, then numbers and pictures that need no other.

Shapes: an image is RGB (H,W,3) uint8, class ids are (H,W) uint8, entropy is (H,W) float32 in nats.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.inference import score_image
from u2pl_hf.method.pseudo_labels import masked_quantile, pixel_entropy, split_at
from u2pl_hf.pixels import DAMAGED, UnclearPixelsError, upright_rgb

# Decoded, this many pixels are 300 MB.
MAX_PIXELS = 100_000_000
LONGEST_SIDE = 1024
# The paper's share of unreliable pixels at the start of training; it falls to 0.
ALPHA_0 = 0.2


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image and what the network says of it.

    Attributes:
        image: as it was predicted, perhaps smaller than it was given.
        ids: the most probable class of each pixel.
        entropy: of each pixel's class probabilities.
        given_size: (height, width) before shrinking.
    """

    image: np.ndarray
    ids: np.ndarray
    entropy: np.ndarray
    given_size: tuple[int, int]


def explain(model, image: np.ndarray, longest_side: int = LONGEST_SIDE) -> Explanation:
    """Predict an image of any size; a larger one is first shrunk until its longest side has that many pixels.

    Args:
        model: U2PLForSemanticSegmentation; its device is used, its train/eval mode restored.
        image: RGB (H,W,3) uint8.
        longest_side: at least 1.
    """
    small = shrink(image, longest_side)
    scores = score_image(model, small, next(model.parameters()).device)
    entropy = pixel_entropy(scores[None])[0].cpu().numpy()
    return Explanation(small, scores.argmax(dim=0).cpu().numpy().astype(np.uint8), entropy, image.shape[:2])


def read_photo(path: str | Path) -> np.ndarray:
    """An image file as RGB (H,W,3) uint8, as `upright_rgb` reads it.

    Raises:
        InputError: no image, a damaged one, one whose pixels could only be guessed, or one of more than MAX_PIXELS
            pixels; the message names the file.
    """
    name = Path(path).name
    try:
        with Image.open(path) as image:
            _check_size(name, *image.size)
            return upright_rgb(image)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too many pixels; pass at most {MAX_PIXELS // 10**6} million") from error
    except InputError:
        raise
    except UnclearPixelsError as error:
        raise InputError(f"{name}: {error}") from error
    except DAMAGED as error:
        raise InputError(f"{name}: not an image that can be read; pass a JPEG, PNG, WebP, BMP or TIFF file") from error


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: {width} x {height} pixels are too many; pass at most {MAX_PIXELS // 10**6} million")


def shrink(image: np.ndarray, longest_side: int) -> np.ndarray:
    """The image with its longest side reduced to `longest_side`, averaged, not sampled; never enlarged."""
    if max(image.shape[:2]) <= longest_side:
        return image
    small = Image.fromarray(image)
    small.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def class_shares(ids: np.ndarray) -> list[tuple[int, float]]:
    """(class id, share of the pixels) of the classes that occur, largest first; equal ones by class id."""
    counts = np.bincount(ids.ravel())
    order = np.argsort(-counts, kind="stable")
    return [(int(c), float(counts[c] / ids.size)) for c in order if counts[c]]


def split_reliable(entropy: np.ndarray, alpha: float) -> tuple[float, np.ndarray]:
    """Gamma, and which pixels are unreliable at it (paper, equation 6), over this one image.

    In training the quantile runs over the batch; one image is all there is here.

    Args:
        entropy: (H,W) float32 in nats.
        alpha: share of unreliable pixels, in [0, 1].

    Returns:
        gamma in nats, the (1 - alpha) quantile; unreliable, bool (H,W): entropy >= gamma. Where many pixels are as
        uncertain as gamma they are all unreliable, so their share can exceed alpha.
    """
    values = torch.from_numpy(entropy)
    valid = torch.ones_like(values, dtype=torch.bool)
    gamma = masked_quantile(values, 1.0 - alpha, valid)
    return gamma.item(), split_at(values, valid, gamma)[1].numpy()
