"""Images outside the batches, for methods that ask for some by row: of the whole set, or of those seen lately.

`RowPool` gives any row of a data set, freshly augmented. Where rows are streamed, fetching single ones would cost a
request each, often of a whole row group: there `Reservoir` gives the latest crops of the stream instead, as they were.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.stream.streams import SampleStream, collate

# What a reservoir may keep of crops, per process.
RESERVOIR_BYTES = 256 * 2**20
# Puts a batch, as loaders give them, on the device: (images, labels or None, valid).
Deliver = Callable[[dict], tuple]


class RowPool:
    """Any row of a stream's rows.

    Reads in one thread, beside the computation. Rows that cannot be read are replaced like the stream's.

    Args:
        stream: its rows, labels and augmentation count; its order does not.
        deliver: see `Deliver`.
    """

    def __init__(self, stream: SampleStream, deliver: Deliver):
        self.stream, self.deliver = stream, deliver
        self.size = len(stream.indices)
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="pool")

    def reachable(self) -> tuple[int, int]:
        """All rows, at any time."""
        return 0, self.size

    def add(self, loaded: dict) -> Tensor:
        """The rows of a batch's images; there is nothing to keep."""
        return loaded["rows"]

    def request(self, rows: Tensor, seeds: Tensor) -> Future:
        """Begin to read rows (K,), augmented with seeds (K,); -1 stands for an image of padding. Nobody waits here."""
        wanted, arrived = torch.stack([rows, seeds]), None
        if wanted.is_cuda:
            wanted, arrived = wanted.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        return self.reader.submit(self._read, self._sampler(), wanted, arrived)

    def receive(self, requested: Future) -> tuple[Tensor, Tensor | None, Tensor]:
        """What was requested, on the device."""
        return self.deliver(requested.result())

    def _read(self, sample: Callable[[int, int], dict], wanted: Tensor, arrived: torch.cuda.Event | None) -> dict:
        if arrived is not None:
            # The reading thread's own device is the first one, where waiting and pinning would open a second context.
            torch.cuda.set_device(arrived.device)
            arrived.synchronize()
        batch = collate([sample(row, seed) for row, seed in wanted.t().tolist()])
        if arrived is None:
            return batch
        # Else the host would wait for the copy to the GPU.
        return {name: part.pin_memory() if isinstance(part, Tensor) else part for name, part in batch.items()}

    def _sampler(self) -> Callable[[int, int], dict]:
        """Gives the sample of a row and a seed."""
        return lambda row, seed: self.stream.at(row, seed) if row >= 0 else self._padding()

    def _padding(self) -> dict:
        shape = (self.stream.augmentation.crop_size,) * 2
        pixels, valid = torch.zeros(3, *shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.bool)
        labels = {"labels": torch.full(shape, IGNORE, dtype=torch.uint8)} if self.stream.with_labels else {}
        return {"pixel_values": pixels, "valid": valid, "id": "", "row": -1, "skipped": []} | labels


class Reservoir(RowPool):
    """The latest crops of a stream of this process, as they were augmented.

    Row numbers count the places of all processes' reservoirs; a process reaches its own. What a place holds follows
    from the number of samples served, so that a resumed run reads its crops anew and needs none in the checkpoint.

    Args:
        stream, deliver: as for RowPool.
        rank: of this process.
        start: samples that this process has been served before.
        max_bytes: of crops that are kept; one batch at least.
    """

    def __init__(
        self, stream: SampleStream, deliver: Deliver, rank: int = 0, start: int = 0, max_bytes: int = RESERVOIR_BYTES
    ):
        super().__init__(stream, deliver)
        places = max(stream.batch_size, max_bytes // (4 * stream.augmentation.crop_size**2))
        self.places = min(places, -(-len(stream.indices) // stream.world_size))
        self.size, self.rank, self.served = self.places * stream.world_size, rank, start
        self.crops: dict[int, dict] = {}

    def reachable(self) -> tuple[int, int]:
        """The places that are filled, and before the first batch those that it will fill."""
        first = self.rank * self.places
        return first, first + min(self.places, max(self.served, self.stream.batch_size))

    def add(self, loaded: dict) -> Tensor:
        """Keep a batch's crops; their places."""
        numbers = range(self.served, self.served + len(loaded["ids"]))
        names = {"pixel_values", "valid", "labels"}.intersection(loaded)
        for inside, number in enumerate(numbers):
            # Copies: a loading process's batch would be held in shared memory.
            kept = {name: loaded[name][inside].clone() for name in names}
            self.crops[number] = kept | {"id": loaded["ids"][inside], "row": int(loaded["rows"][inside]), "skipped": []}
        self.served = numbers.stop
        self.crops = {number: crop for number, crop in self.crops.items() if number >= self.served - self.places}
        return torch.tensor([self.rank * self.places + number % self.places for number in numbers])

    def _sampler(self) -> Callable[[int, int], dict]:
        """Gives the crop at a place, as the places are now, before the next batch comes; the seed does not matter."""
        stream, crops, last = self.stream, self.crops, max(self.served, self.stream.batch_size) - 1

        def sample(place: int, _seed: int) -> dict:
            # The last of this process's samples there.
            number = last - (last - place + self.rank * self.places) % self.places
            if number in crops:
                return crops[number]
            batch, inside = divmod(number, stream.batch_size)
            return stream[(batch * stream.world_size + self.rank) * stream.batch_size + inside, None]

        return sample
