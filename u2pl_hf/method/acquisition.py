"""Which unlabelled images are worth a label: where a model is unsure, how rare it is, and a choice of unlike ones.

Shapes: B or N images, C classes, D features, H x W an image. Entropies and divergences are in nats.
"""

import torch
from torch import Tensor

from u2pl_hf.method.pseudo_labels import pixel_entropy, precise_dtype, split_by_entropy

# Rarer classes count as this share of the pixels: of a few stray ones nobody knows whether they are the class at all.
RAREST = 0.001


def unreliable_pixels(entropy: Tensor, alpha: float) -> Tensor:
    """One image's unreliable pixels, as in U2PL: (H,W) -> bool (H,W), entropy at or above its (1 - alpha) quantile."""
    return split_by_entropy(entropy, torch.ones_like(entropy, dtype=torch.bool), alpha)[1]


def unreliable_entropy(entropy: Tensor, alpha: float) -> Tensor:
    """Mean entropy (H,W) of one image over its unreliable pixels, a scalar: with alpha 0 that of the highest ones."""
    return entropy[unreliable_pixels(entropy, alpha)].mean()


def view_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two predictions of the same pixels: (B,C,H,W) each -> (B,H,W), in [0, log 2].

    The entropy of their mean, less the mean of their entropies (Lin, IEEE Transactions on Information Theory, 1991).
    """
    mean = torch.logaddexp(logits.log_softmax(dim=1), others.log_softmax(dim=1))
    return (pixel_entropy(mean) - (pixel_entropy(logits) + pixel_entropy(others)) / 2).clamp(min=0)


def class_weights(pixels: Tensor) -> Tensor:
    """How rare classes are: int (N,C) pixels of each -> float (C,), the inverse of a class's share.

    Scaled so that their mean over all these pixels is 1; a share below `RAREST` counts as that.
    """
    share = pixels.sum(0).to(precise_dtype(pixels.device)) / pixels.sum().clamp(min=1)
    weights = 1 / share.clamp(min=RAREST)
    return weights / (share * weights).sum().clamp(min=RAREST)


def image_rarity(pixels: Tensor, weights: Tensor) -> Tensor:
    """Mean weight of the classes in each image: int (N,C) pixels, (C,) of `class_weights` -> (N,); 1 is ordinary."""
    return (pixels.to(weights.dtype) @ weights) / pixels.sum(1).clamp(min=1)


def acquisition_score(entropy: Tensor, divergence: Tensor, rarity: Tensor) -> Tensor:
    """What labels of each image promise, (N,) each -> (N,).

    Entropy and divergence count alike, as each is divided by its mean over the images; rarity is a factor.
    """
    parts = torch.stack([entropy, divergence])
    smallest = torch.finfo(parts.dtype).tiny
    return (parts / parts.mean(dim=1, keepdim=True).clamp(min=smallest)).mean(dim=0) * rarity


def k_centre_greedy(features: Tensor, number: int, covered: Tensor) -> list[int]:
    """Rows that cover the others: each next one is the farthest from all before (Sener and Savarese, ICLR 2018).

    Args:
        features: (N,D).
        number: how many; all where there are fewer.
        covered: (M,D), what is there already; with M = 0 the first row is the first choice.

    Returns:
        Places in `features` in the order of choice. Of equal ones the first is taken.
    """
    distance = features.new_full((len(features),), torch.inf)
    if len(covered):
        # Differences, not products: equal rows are at distance 0 exactly.
        distance = torch.cdist(features, covered, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
    chosen: list[int] = []
    for _ in range(min(number, len(features))):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (features - features[chosen[-1]]).norm(dim=1))
        distance[chosen] = -1
    return chosen
