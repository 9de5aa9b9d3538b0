"""Photographs of visitors and the model's facts: all of the page that needs no Gradio.

Shapes: an image is RGB (H,W,3) uint8, class ids are (H,W) uint8, entropy is (H,W) float32 in nats.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from u2pl_hf.evaluation.photographs import find_images, read_photograph
from u2pl_hf.method.pseudo_labels import masked_quantile, split_at

# Decoded, this many pixels are 300 MB.
MAX_PIXELS = 100_000_000
LONGEST_SIDE = 1024


def read_photo(path: str | Path) -> np.ndarray:
    """An image file of a visitor.

    Raises:
        InputError: as `read_photograph`, or more than MAX_PIXELS pixels; names the file, and not where it lies.
    """
    return read_photograph(path, Path(path).name, MAX_PIXELS)


def find_examples(paths: Sequence[str]) -> list[Path]:
    """Image files, and the image files of folders, each read once to see that it can be.

    Raises:
        InputError: a path without an image, or an image that cannot be read.
    """
    files = list(find_images(paths))
    for file in files:
        read_photo(file)
    return files


def shrink(image: np.ndarray, longest_side: int) -> np.ndarray:
    """The image with its longest side reduced to `longest_side`, averaged, not sampled; never enlarged."""
    if max(image.shape[:2]) <= longest_side:
        return image
    small = Image.fromarray(image)
    small.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return np.array(small)


def class_shares(ids: np.ndarray) -> list[tuple[int, float]]:
    """(class id, share of the pixels) of the classes that occur, largest first; equal ones by class id."""
    shares = enumerate((np.bincount(ids.ravel()) / ids.size).tolist())
    return sorted(((c, share) for c, share in shares if share), key=lambda of_class: -of_class[1])


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


def model_title(name: str) -> str:
    """A Hub id as it is, a folder as its last two parts: as short, and the whole path is nobody else's business."""
    path = Path(name)
    return "/".join(path.resolve().parts[-2:]) if path.is_dir() else name


def describe_model(model) -> str:
    """Backbone, parameters and classes in a few words."""
    config = model.config
    classes = f"{config.num_labels} class{'es' if config.num_labels > 1 else ''}"
    return f"{config.backbone} backbone, {model.num_parameters() / 1e6:.1f} million parameters, {classes}"


def card_scores(name: str, revision: str | None = None) -> list[str]:
    """One phrase for each mean IoU that the model's card reports; none without a card.

    A run's card also tells of its best evaluation, whose model lies elsewhere: the score of the weights here is first.

    Args:
        name: exported folder or Hub id.
        revision: branch, tag or commit on the Hub.
    """
    folder = Path(name)
    try:
        path = folder / "README.md" if folder.is_dir() else hf_hub_download(name, "README.md", revision=revision)
        results = ModelCard.load(path, ignore_metadata_errors=True).data.eval_results or []
    except (HfHubHTTPError, OSError, ValueError, yaml.YAMLError):  # no file, no network, YAML that cannot be read
        return []
    # Cards are written by hand as well.
    scores = [r for r in results if r.metric_type == "mean_iou" and isinstance(r.metric_value, int | float)]
    scores.sort(key=lambda result: (result.metric_name or "").startswith("mIoU (best"))
    return [
        f"{100 * result.metric_value:.1f} % {result.metric_name or 'mIoU'} on "
        + ", ".join(filter(None, (result.dataset_name, result.dataset_split)))
        for result in scores
    ]
