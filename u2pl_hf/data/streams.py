"""Endless streams of training samples that go on exactly where they stopped.

Sample number n of a stream is a function of (seed, stream name, n) alone: n decides the epoch, the place in that
epoch's permutation, and the augmentation. The position is one counter, the order does not depend on the number of
workers, and nothing has to be replayed to resume.
"""

import logging
import zlib
from collections.abc import Iterator
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from u2pl_hf.data.sources import Source
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError

logger = logging.getLogger(__name__)
# Decoded samples kept in memory, so that a small labelled set is decoded once and not once per epoch.
CACHE_BYTES = 256 * 2**20


class SampleStream(Dataset):
    """Augmented samples of some rows of a source, by their number in the stream.

    Args:
        source: where the rows are.
        indices: rows of this stream.
        augmentation: applied to each sample.
        seed, name: decide order and augmentation; streams of different names are independent.
        with_labels: False never touches the label column.

    Raises:
        InputError: on reading a damaged labelled image. A damaged unlabelled one is skipped and named once in the log.
    """

    def __init__(
        self,
        source: Source,
        indices: list[int],
        augmentation: WeakAugmentation,
        *,
        seed: int,
        name: str,
        with_labels: bool,
    ):
        self.source, self.indices, self.augmentation = source, np.asarray(indices), augmentation
        self.key = (seed, zlib.crc32(name.encode()))
        self.with_labels = with_labels
        self.cache: dict[int, tuple] = {}
        self.cached_bytes = 0
        self.skipped: set[int] = set()

    def __getitem__(self, number: int) -> dict:
        """pixel_values uint8 (3,S,S), valid bool (S,S), labels uint8 (S,S) if with_labels, id."""
        index, (image, label) = self._row(number)
        seed = np.random.SeedSequence([*self.key, 1, number]).generate_state(1)[0]
        return self.augmentation(image, label, int(seed)) | {"id": self.source.ids[index]}

    def _row(self, number: int) -> tuple[int, tuple]:
        for step in range(len(self.indices)):
            epoch, place = divmod(number + step, len(self.indices))
            index = int(self.indices[_permutation(*self.key, epoch, len(self.indices))[place]])
            try:
                return index, self._read(index)
            except InputError as error:
                if self.with_labels:
                    raise
                if index not in self.skipped:
                    self.skipped.add(index)
                    logger.warning("skipped: %s", error)
        raise InputError(f"none of the {len(self.indices)} unlabelled images can be read")

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        if index in self.cache:
            return self.cache[index]
        row = (self.source.read_image(index), self.source.read_label(index) if self.with_labels else None)
        size = sum(array.nbytes for array in row if array is not None)
        if self.cached_bytes + size <= CACHE_BYTES:
            self.cache[index] = row
            self.cached_bytes += size
        return row


@lru_cache(maxsize=8)
def _permutation(seed: int, name: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, name, 0, epoch]).permutation(length)


class _CountingSampler(Sampler):
    """Numbers of the samples of each batch of one process, without end."""

    def __init__(self, batch_size: int, rank: int, world_size: int, start_batch: int):
        self.batch_size, self.rank, self.world_size, self.start_batch = batch_size, rank, world_size, start_batch

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start_batch
        while True:
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            batch += 1


def _collate(samples: list[dict]) -> dict:
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0] if name != "id"}
    return batch | {"ids": [s["id"] for s in samples]}


def _limit_threads(worker: int) -> None:
    """Workers are the parallelism: threads inside them would only fight for the same cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def endless_loader(
    stream: SampleStream,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of a stream without end, as dicts of stacked tensors and `ids`.

    Batch k of process r holds the samples (k * world_size + r) * batch_size and following: processes share none.
    """
    return DataLoader(
        stream,
        batch_sampler=_CountingSampler(batch_size, rank, world_size, start_batch),
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_limit_threads,
        # Its own, or starting the workers would draw from torch's global generator.
        generator=torch.Generator(),
    )
