"""In which order the rows of a stream come: functions of a sample's number, so that resuming replays nothing.

Samples are numbered through over all processes: batch k of process r holds the numbers
(k * world_size + r) * batch_size and following.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from u2pl_hf.errors import require

# A window is what a streaming process holds in memory and shuffles within; the next one is fetched meanwhile.
WINDOW_BLOCKS = 8


class FullShuffle:
    """Every epoch is a random permutation of all rows, for rows that can be read at any time.

    The order depends on nothing but the seed, and processes take turns in it.

    Args:
        key: decides the order.
        length: number of rows.
    """

    def __init__(self, key: tuple[int, ...], length: int):
        self.key, self.length = tuple(key), length

    def place(self, number: int) -> int:
        """The row, in [0, length), of a sample."""
        epoch, place = divmod(number, self.length)
        return int(_permutation(self.key, epoch, self.length)[place])


@lru_cache(maxsize=8)
def _permutation(key: tuple[int, ...], epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([*key, 0, epoch]).permutation(length)


class Window(NamedTuple):
    """A stretch of one process's epoch."""

    rank: int
    epoch: int
    index: int


class BlockShuffle:
    """Every epoch is a random order of blocks, dealt to the processes and shuffled within windows of a few blocks.

    For rows that are read over a network: each process reads blocks of its own, as wholes, once per epoch. Two
    processes share at most the block at their border.

    Args:
        key: decides the order, together with the number of processes.
        blocks: rows of each block; together all rows, each once.
        batch_size, world_size: the numbering of the samples.

    Raises:
        InputError: fewer rows than processes.
    """

    def __init__(self, key: tuple[int, ...], blocks: list[np.ndarray], batch_size: int, world_size: int):
        self.key, self.blocks, self.batch_size, self.world_size = tuple(key), blocks, batch_size, world_size
        self.length = sum(map(len, blocks))
        require(self.length >= world_size, f"{self.length} images cannot be dealt to {world_size} processes")
        self._epochs: dict[tuple[int, int], tuple] = {}

    def place(self, number: int) -> int:
        """The row of a sample."""
        rank, epoch, place = self._position(number)
        return int(self._epoch(rank, epoch)[0][place])

    def window(self, number: int) -> tuple[Window, float]:
        """The window of a sample, and the share of the window that comes before it."""
        rank, epoch, place = self._position(number)
        windows = self._epoch(rank, epoch)[1]
        start, end = np.searchsorted(windows, [windows[place], windows[place] + 1])
        return Window(rank, epoch, int(windows[place])), (place - start) / (end - start)

    def after(self, window: Window) -> Window:
        """The process's next window."""
        is_last = window.index == self._epoch(window.rank, window.epoch)[1][-1]
        return Window(window.rank, window.epoch + is_last, 0 if is_last else window.index + 1)

    def window_blocks(self, window: Window) -> list[np.ndarray]:
        """The rows of a window, by block."""
        rows, windows, blocks = self._epoch(window.rank, window.epoch)
        inside = windows == window.index
        return [np.sort(rows[inside & (blocks == b)]) for b in np.unique(blocks[inside])]

    def _position(self, number: int) -> tuple[int, int, int]:
        """(process, its epoch, place in it) of a sample."""
        batch, inside = divmod(number, self.batch_size)
        turn, rank = divmod(batch, self.world_size)
        share = self._share(rank)
        return rank, *divmod(turn * self.batch_size + inside, share.stop - share.start)

    def _share(self, rank: int) -> slice:
        return slice(rank * self.length // self.world_size, (rank + 1) * self.length // self.world_size)

    def _epoch(self, rank: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of a process's epoch in order, with the window and the block of each; two epochs are kept."""
        if (rank, epoch) not in self._epochs:
            self._epochs = dict([*self._epochs.items()][-1:]) | {(rank, epoch): self._ordered(rank, epoch)}
        return self._epochs[rank, epoch]

    def _ordered(self, rank: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([*self.key, 0, epoch])
        order = rng.permutation(len(self.blocks))
        share = self._share(rank)
        rows = np.concatenate([self.blocks[b] for b in order])[share]
        block = np.repeat(np.arange(len(order)), [len(self.blocks[b]) for b in order])[share]
        window = (block - block[0]) // WINDOW_BLOCKS
        shuffled = np.lexsort((rng.random(self.length)[share], window))
        return rows[shuffled], window, block[shuffled]
