"""What a method is given: the images of a pass, and pools to ask for further ones.

`_l` and `_u` mark labelled and unlabelled; x (B,3,H,W) normalised images, y_l (B_l,H,W) labels with 255 = ignore,
valid_u bool (B_u,H,W) without padding.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Further:
    """For methods with pools, see `ImagePool`: what the loaders gave, and the seed of the process's next pass."""

    loaded_l: dict
    loaded_u: dict | None
    next_seed: int


@dataclass(frozen=True)
class Batch:
    """One process's images of one pass; the unlabelled half is None where the method does not use it.

    y_u are labels of the unlabelled images where someone wants to watch the pseudo-labels; nothing is learnt from them.
    `seed` is the pass's own, for what is to be drawn from a generator.
    """

    x_l: Tensor
    y_l: Tensor
    x_u: Tensor | None = None
    valid_u: Tensor | None = None
    y_u: Tensor | None = None
    seed: int = 0
    further: Further | None = None


class ImagePool(Protocol):
    """Images by row.

    size: rows of the pool, over all processes.
    """

    size: int

    def reachable(self) -> tuple[int, int]:
        """The rows, from the first up to but without the last, that this process may ask for now."""

    def add(self, loaded: dict) -> Tensor:
        """Take note of the images of a batch, as its loader gave them; their rows, int64 (B,)."""

    def request(self, rows: Tensor, seeds: Tensor) -> Future:
        """Begin to read rows (K,), augmented with seeds (K,), beside the computation; -1 stands for an empty image."""

    def receive(self, requested: Future) -> tuple[Tensor, Tensor | None, Tensor]:
        """What was requested: images (K,3,H,W), labels (K,H,W) where the pool has any, and valid bool (K,H,W)."""


class ImagePools(Protocol):
    """Further images of a run for methods that ask for some; nothing is read before that.

    counts: pixels of each class in each labelled image, int64 (labelled,C).
    passes: forward passes per optimizer step.
    """

    labelled: ImagePool
    unlabelled: ImagePool
    counts: Tensor
    passes: int


@dataclass
class Chosen:
    """Images of a pool that were asked for: their rows (K,), the classes they are to give, and the images to come."""

    rows: Tensor
    classes: Tensor
    images: Future


def ask(pool: ImagePool, rows: Tensor, classes: Tensor, generator: torch.Generator) -> Chosen:
    """Begin to read rows of a pool, with seeds of the generator."""
    seeds = torch.randint(2**31, rows.shape, generator=generator, device=rows.device)
    return Chosen(rows, classes, pool.request(rows, seeds))
