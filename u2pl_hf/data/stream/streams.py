"""Endless streams of training samples that go on exactly where they stopped.

Sample number n of a stream is a function of (seed, stream name, n) alone, and of the number of processes where rows
are streamed: n decides the epoch, the place in that epoch's order, and the augmentation. The position is one counter,
the order does not depend on the number of workers, and nothing has to be replayed to resume.
"""

import atexit
import itertools
import multiprocessing
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.source.rows import CONNECTIONS
from u2pl_hf.data.sources import Source
from u2pl_hf.data.stream.order import BlockShuffle, FullShuffle, Window
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError

# Decoded samples are kept in memory where the whole stream fits: a small labelled set is then decoded once.
CACHE_BYTES = 256 * 2**20


class SampleStream(Dataset):
    """Augmented samples of some rows of a source, by their number in the stream.

    Args:
        source: where the rows are.
        indices: rows of this stream.
        augmentation: applied to each sample.
        seed, name: decide order and augmentation; streams of different names are independent.
        with_labels: False never touches the label column.
        is_required: a damaged row stops instead of being skipped, and a missing label is damage instead of all 255;
            by default where labels are read.
        batch_size, world_size: how samples are numbered; see u2pl_hf.data.stream.order.
        cache_bytes: memory for decoded samples, per worker.

    Raises:
        InputError: on reading a damaged labelled image. A damaged unlabelled one is replaced by the stream's next.
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
        is_required: bool | None = None,
        batch_size: int = 1,
        world_size: int = 1,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.source, self.indices, self.augmentation = source, np.asarray(indices), augmentation
        self.key = (seed, zlib.crc32(name.encode()))
        self.with_labels, self.is_required = with_labels, with_labels if is_required is None else is_required
        self.batch_size, self.world_size = batch_size, world_size
        self.cache_bytes, self.cache = cache_bytes, {}
        if source.streamed:
            places = [np.searchsorted(self.indices, block) for block in source.rows.blocks(self.indices)]
            self.order = BlockShuffle(self.key, places, batch_size, world_size)
        else:
            self.order = FullShuffle(self.key, len(self.indices))

    def __getitem__(self, item: tuple[int, dict | None]) -> dict:
        """A sample: pixel_values uint8 (3,S,S), valid bool (S,S), labels uint8 (S,S) if with_labels, id, row, skipped.

        `row` is its place among `indices`.

        Args:
            item: the sample's number, and its undecoded image where that is at hand.
        """
        number, cell = item
        seed = np.random.SeedSequence([*self.key, 1, number]).generate_state(1)[0]
        return self._sample(lambda step: self.order.place(number + step), int(seed), cell)

    def at(self, row: int, seed: int) -> dict:
        """A sample of a given row, augmented with `seed`, whatever the order."""
        return self._sample(lambda step: (row + step) % len(self.indices), seed, None)

    def _sample(self, place: Callable[[int], int], seed: int, cell: dict | None) -> dict:
        """The first of the rows at place(0), place(1) ... that can be read, augmented."""
        skipped: list[str] = []
        for step in range(len(self.indices)):
            row = place(step)
            index = int(self.indices[row])
            try:
                image, label = self._read(index, None if step else cell)
            except InputError as error:
                if self.is_required:
                    raise
                skipped.append(str(error))
            else:
                sample = self.augmentation(image, label, seed)
                return sample | {"id": self.source.ids[index], "row": row, "skipped": skipped}
        raise InputError(f"none of the {len(self.indices)} unlabelled images can be read")

    def _read(self, index: int, cell: dict | None) -> tuple[np.ndarray, np.ndarray | None]:
        if index in self.cache:
            return self.cache[index]
        image, label = self.source.read_image(index, cell), None
        if self.with_labels and (self.is_required or self.source.rows.cell(index, "label") is not None):
            label = self.source.read_label(index)
        elif self.with_labels:
            label = np.full(image.shape[:2], IGNORE, np.uint8)
        if (image.nbytes + (0 if label is None else label.nbytes)) * len(self.indices) <= self.cache_bytes:
            self.cache[index] = (image, label)
        return image, label


def _with_images(stream: SampleStream, numbers: Iterable[int]) -> Iterator[tuple[int, dict]]:
    """Numbers of one process's samples, in its order, with their undecoded images.

    Each block is read once per epoch and one window ahead of its use.
    """
    order, current, cells, ahead = stream.order, None, {}, {}
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="blocks")

    def fetch(window: Window) -> list[Future]:
        blocks = [stream.indices[block] for block in order.window_blocks(window)]
        return [pool.submit(stream.source.rows.read, block, "image") for block in blocks]

    for number in numbers:
        window, used = order.window(number)
        if window != current:
            current, cells = window, {}
            for future in ahead.pop(window, None) or fetch(window):
                cells |= future.result()
        following = order.after(window)
        if used >= 0.5 and following not in ahead:
            ahead[following] = fetch(following)
        yield number, cells[int(stream.indices[order.place(number)])]


def _batches(stream: SampleStream, rank: int, start_batch: int) -> Iterator[list[tuple[int, dict | None]]]:
    """Numbers of the samples of each batch of one process, without end, with their images where those are streamed.

    Streamed images are fetched by the process itself and handed to its workers: every block is fetched once, however
    many workers there are.
    """
    size = stream.batch_size
    firsts = ((batch * stream.world_size + rank) * size for batch in itertools.count(start_batch))
    numbers = (number for first in firsts for number in range(first, first + size))
    samples = _with_images(stream, numbers) if stream.source.streamed else ((number, None) for number in numbers)
    while True:
        yield list(itertools.islice(samples, size))


def collate(samples: list[dict]) -> dict:
    """Samples as one batch: stacked tensors, rows int64 (B,), ids, and skipped, what could not be read."""
    batch = {name: torch.stack([s[name] for s in samples]) for name in ("valid", "labels") if name in samples[0]}
    # channels_last from the decoder to the model: nothing is transposed on the way.
    pixels = torch.stack([s["pixel_values"].permute(1, 2, 0) for s in samples]).permute(0, 3, 1, 2)
    skipped = [text for s in samples for text in s["skipped"]]
    rows = torch.tensor([s["row"] for s in samples])
    return batch | {"pixel_values": pixels, "rows": rows, "ids": [s["id"] for s in samples], "skipped": skipped}


def _start_worker(worker: int) -> None:
    """Workers are the parallelism: threads inside them would only fight for the same cores.

    They end with their parent. A signal to the whole group (Ctrl-C, a scheduler) must not end them before it, while it
    still needs batches to come to a point where it can stop.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for name in {"SIGINT", "SIGTERM", "SIGUSR1"}.intersection(dir(signal)):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Python ends such processes by a signal that they ignore, and would wait for them after an unforeseen error."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def endless_loader(
    stream: SampleStream, *, rank: int = 0, start_batch: int = 0, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """Batches of a stream without end, see `collate`; to be iterated once.

    Batch k of process r holds the samples (k * world_size + r) * batch_size and following: processes share none.
    """
    return DataLoader(
        stream,
        batch_sampler=_batches(stream, rank, start_batch),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        # Its own, or starting the workers would draw from torch's global generator.
        generator=torch.Generator(),
    )
