"""Images that a step may ask for, besides those of its batch."""

from concurrent.futures import Future
from typing import Protocol

from torch import Tensor


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
