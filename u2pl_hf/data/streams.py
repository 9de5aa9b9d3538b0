"""Endless training streams that resume exactly.

Sample number n of a stream is a pure function of the seed, the stream's name and n: the epoch is n // length, the
image stands at place n % length of that epoch's permutation, and the augmentation has a seed of its own. The state
of a stream is therefore one counter. The order does not depend on the number of workers, and resuming replays nothing.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from u2pl_hf.data.sources import Source
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError

logger = logging.getLogger(__name__)

CACHE_BYTES = 512 * 2**20
# Numbers of samples are below 2**63; these two keep the seeds of orders and of augmentations apart.
ORDER, AUGMENTATION = 0, 1


class SampleStream(Dataset):
    """Endless stream of augmented samples of some rows of a source: `stream[n]` for n = 0, 1, 2, ...

    `indices` are the rows to show, each once per epoch; `seed` must not be negative, and streams of different `name`
    are independent at the same seed. Without `with_labels` labels are never read. Up to `cache_bytes` of decoded
    images and labels are kept in each process, by default for labelled streams only, because these are small.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        augmentation: WeakAugmentation,
        *,
        seed: int,
        name: str,
        with_labels: bool,
        cache_bytes: int | None = None,
    ):
        if not len(indices):
            raise InputError(f"{source.name}: the {name} stream has no images; pass another split")
        self.source = source
        self.indices = list(indices)
        self.augmentation = augmentation
        self.name = name
        self.with_labels = with_labels
        name_key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        self._entropy = (seed, name_key)
        self._free_bytes = cache_bytes if cache_bytes is not None else CACHE_BYTES if with_labels else 0
        self._decoded: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._unreadable: set[int] = set()

    def __getitem__(self, n: int) -> dict[str, torch.Tensor | str]:
        """Sample n: pixel_values uint8 (3, S, S), valid bool (S, S), id, and labels uint8 (S, S) if there are any.

        An unlabelled image that cannot be read is replaced by the next one of the epoch's order, with a warning once
        per process; a labelled one raises InputError.
        """
        index, image, label = self._readable(n)
        seed = int(np.random.SeedSequence([*self._entropy, AUGMENTATION, n]).generate_state(1, np.uint64)[0])
        return {**self.augmentation(image, label, seed), "id": self.source.ids[index]}

    def _readable(self, n: int) -> tuple[int, np.ndarray, np.ndarray | None]:
        epoch, place = divmod(n, len(self.indices))
        order = _order(self._entropy, len(self.indices), epoch)
        for position in itertools.chain(range(place, len(order)), range(place)):
            index = self.indices[order[position]]
            if index in self._unreadable:
                continue
            try:
                return index, *self._arrays(index)
            except InputError as error:
                if self.with_labels:
                    raise
                self._unreadable.add(index)
                logger.warning("%s stream: skipped for good: %s", self.name, error)
        raise InputError(f"{self.source.name}: no image of the {self.name} stream can be read")

    def _arrays(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        if index in self._decoded:
            return self._decoded[index]
        image = self.source.read_image(index)
        label = self.source.read_label(index) if self.with_labels else None
        needed = image.nbytes + (0 if label is None else label.nbytes)
        # First come, first kept: every image is shown once per epoch, so that replacing one gains nothing.
        if needed <= self._free_bytes:
            self._free_bytes -= needed
            self._decoded[index] = (image, label)
        return image, label


@lru_cache(maxsize=8)
def _order(entropy: tuple[int, int], length: int, epoch: int) -> np.ndarray:
    """Permutation of one epoch. Two streams with batches across two epochs need four of them at a time."""
    return np.random.default_rng([*entropy, ORDER, epoch]).permutation(length)


class _Batches(Sampler):
    """Numbers of the samples of each batch of one process, without end."""

    def __init__(self, batch_size: int, rank: int, world_size: int, start_batch: int):
        self.batch_size, self.rank, self.world_size, self.start_batch = batch_size, rank, world_size, start_batch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in itertools.count(self.start_batch):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


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
    """Loader without end over the batches of process `rank`, beginning with batch number `start_batch`.

    Batch k of process r holds samples (k * world_size + r) * batch_size + i, so that processes never share a sample.
    To resume, pass the number of batches already used. A batch is a dict of stacked tensors, with a list of str as id.
    """
    return DataLoader(
        stream,
        batch_sampler=_Batches(batch_size, rank, world_size, start_batch),
        collate_fn=_collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_one_thread,
        pin_memory=pin_memory,
        # A loader draws a seed for its workers; from torch's global generator that would disturb the training's draws.
        generator=torch.Generator(),
    )


def _collate(samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {name: values if name == "id" else torch.stack(values) for name, values in columns.items()}


def _one_thread(worker: int) -> None:
    # There is one worker per core: threads inside the workers would only fight for the cores.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
