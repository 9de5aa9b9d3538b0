"""Class-wise first-in-first-out queues of negatives (paper, section 3.3 and algorithm 1).

All queues lie in one tensor on the training device, so that pushing to and sampling from every class is one indexed
operation each, without a loop over classes and without reading a count back to the host.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl_hf.method.pseudo_labels import precise_dtype


class ClassQueues(nn.Module):
    """One ring buffer of unit vectors per class.

    Only directions matter to the cosine similarity they are used in, so keys are normalised before they are stored;
    that also keeps them in the range of half precision.

    Args:
        lengths: capacity per class.
        dim: D, channels of the representation.
        dtype: storage type; similarity is computed in float32.
    """

    def __init__(self, lengths: Sequence[int], dim: int, dtype: torch.dtype = torch.float16):
        super().__init__()
        capacity = torch.tensor(lengths, dtype=torch.int64)
        self.register_buffer("capacity", capacity)
        self.register_buffer("start", capacity.cumsum(0) - capacity)
        # The last row takes every key that is not to be stored: writing there is cheaper than selecting.
        self.register_buffer("storage", torch.zeros(int(capacity.sum()) + 1, dim, dtype=dtype))
        self.register_buffer("pushed", torch.zeros_like(capacity))

    @property
    def fill(self) -> Tensor:
        """Keys held per class, int64 (C,)."""
        return torch.minimum(self.pushed, self.capacity)

    @torch.no_grad()
    def push(self, keys: Tensor, valid: Tensor) -> None:
        """Append keys (C,K,D) where `valid` (C,K) holds, in order; the oldest are overwritten.

        Of more keys than a queue holds, the last ones stay. Keys that are not finite are left out: an overflow in half
        precision must not stay in a queue for thousands of steps.
        """
        valid = valid & keys.isfinite().all(dim=-1)
        unit = F.normalize(keys.float(), dim=-1).to(self.storage.dtype)
        self.storage.index_copy_(0, self.rows(valid).flatten(), unit.flatten(0, 1))
        self.storage[-1].zero_()
        self.pushed += valid.sum(dim=1)

    def rows(self, valid: Tensor) -> Tensor:
        """Where `push` writes: rows of `storage`, int64 (C,K).

        No row but the last is named twice, since the order of writes to one row is not defined on every device.
        """
        place = valid.cumsum(dim=1)
        capacity = self.capacity.unsqueeze(1)
        stored = valid & (place > place[:, -1:] - capacity)
        row = self.start.unsqueeze(1) + (self.pushed.unsqueeze(1) + place - 1) % capacity
        return torch.where(stored, row, len(self.storage) - 1)

    def draw(self, classes: Tensor, number: int) -> Tensor:
        """Rows of `storage` that hold `number` keys of each of these classes (S,), uniformly with replacement.

        int64 (S,number); an empty queue gives the last row, which is zero.
        """
        fill, start = self.fill[classes].unsqueeze(1), self.start[classes].unsqueeze(1)
        lottery = torch.rand(len(classes), number, device=fill.device, dtype=precise_dtype(fill.device))
        place = torch.minimum((lottery * fill).long(), fill - 1)
        return torch.where(fill > 0, start + place, len(self.storage) - 1)

    def oldest_first(self, class_id: int) -> Tensor:
        """The content of one queue, oldest key first: (fill,D). For inspection; reads counts back to the host."""
        pushed, capacity, start = (int(x[class_id]) for x in (self.pushed, self.capacity, self.start))
        first = pushed % capacity if pushed > capacity else 0
        rows = self.storage[start : start + min(pushed, capacity)]
        return rows.roll(-first, 0)


def select_keys(representation: Tensor, mask: Tensor, bound: int, in_order: bool = False) -> tuple[Tensor, Tensor]:
    """A uniform random subset of at most `bound` pixels of each class.

    Args:
        representation: (B,D,h,w).
        mask: bool (B,C,h,w), the pixels to choose from.
        bound: K.
        in_order: the chosen pixels by image, row and column; else in random order.

    Returns:
        keys (C,K,D) and valid bool (C,K), the chosen ones first.
    """
    by_pixel = mask.movedim(1, -1).flatten(0, 2)
    pixels = len(by_pixel)
    bound = min(bound, pixels)
    # One shuffle serves all classes: the first `bound` pixels of a class in random order are a uniform subset.
    shuffle = torch.randperm(pixels, device=mask.device)
    place = by_pixel.index_select(0, shuffle).t().contiguous().cumsum(dim=1, dtype=torch.int32)
    slots = torch.arange(1, bound + 1, device=mask.device, dtype=torch.int32)
    # The k-th pixel of a class is the first one by which k have been counted; there is none beyond the last count.
    found = torch.searchsorted(place, slots.expand(len(place), -1).contiguous())
    chosen = shuffle[found.clamp(max=pixels - 1)]
    valid = slots <= place[:, -1:]
    if in_order:
        chosen = chosen.masked_fill(~valid, pixels).sort(dim=1).values.clamp(max=pixels - 1)
    vectors = representation.movedim(1, -1).flatten(0, 2)
    return vectors[chosen], valid


def several_processes() -> bool:
    """Whether other processes train with this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_keys(keys: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """All processes' keys side by side, (C,K,D) -> (C,W*K,D), in the same order on each, so that queues stay equal."""
    if not several_processes():
        return keys, valid
    # The validity travels as one more channel: one collective instead of two.
    packed = torch.cat([keys.float(), valid.unsqueeze(-1).float()], dim=-1).contiguous()
    everyone = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, packed)
    packed = torch.cat(everyone, dim=1)
    return packed[..., :-1], packed[..., -1] > 0.5
