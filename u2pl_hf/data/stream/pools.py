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


class RowPool:
    """Any row of a stream's rows.

    Reads in one thread, beside the computation. Rows that cannot be read are replaced like the stream's.

    Args:
        stream: its rows, labels and augmentation count; its order does not.
        deliver: puts a batch, as loaders give them, on the device: (images, labels or None, valid).
        presence: bool (rows,C), the classes of each row's label, where there are labels.
    """

    def __init__(self, stream: SampleStream, deliver: Callable[[dict], tuple], presence: Tensor | None = None):
        self.stream, self.deliver, self.presence = stream, deliver, presence
        self.size = len(stream.indices)
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="pool")

    def reachable(self) -> tuple[int, int]:
        """All rows, at any time."""
        return 0, self.size

    def add(self, loaded: dict) -> Tensor:
        """The rows of a batch's images; there is nothing to keep."""
        return loaded["rows"]

    def request(self, rows: Tensor, seeds: Tensor) -> Future:
        """Begin to read rows (K,), augmented with seeds (K,); -1 stands for an image of padding."""
        return self.reader.submit(self._read, *_to_host(rows, seeds))

    def receive(self, requested: Future) -> tuple[Tensor, Tensor | None, Tensor]:
        """What was requested, on the device."""
        return self.deliver(requested.result())

    def _read(self, wanted: Tensor, arrived: torch.cuda.Event | None) -> dict:
        _wait(arrived)
        return _for_device(collate([self._sample(row, seed) for row, seed in wanted.t().tolist()]), arrived)

    def _sample(self, row: int, seed: int) -> dict:
        return self.stream.at(row, seed) if row >= 0 else empty_sample(self.stream)


class Reservoir(RowPool):
    """The latest crops of a stream of this process, as they were augmented.

    Row numbers count the places of all processes' reservoirs; a process reaches its own. What a place holds follows
    from the number of samples served, so that a resumed run reads its crops anew and needs none in the checkpoint.

    Args:
        stream, deliver: as for RowPool.
        rank, world_size: of this process, and how many there are.
        start: samples that this process has been served before.
        max_bytes: of crops that are kept; one batch at least.
    """

    def __init__(
        self,
        stream: SampleStream,
        deliver: Callable[[dict], tuple],
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        max_bytes: int = RESERVOIR_BYTES,
    ):
        super().__init__(stream, deliver)
        side = stream.augmentation.crop_size
        places = max(stream.batch_size, max_bytes // (4 * side * side))
        self.places = min(places, -(-len(stream.indices) // world_size))
        self.size, self.rank, self.world_size, self.served = self.places * world_size, rank, world_size, start
        self.crops: dict[int, dict] = {}

    def reachable(self) -> tuple[int, int]:
        """The places that are filled, and before the first batch those that it will fill."""
        first = self.rank * self.places
        return first, first + min(self.places, max(self.served, self.stream.batch_size))

    def add(self, loaded: dict) -> Tensor:
        """Keep a batch's crops; their places."""
        numbers = range(self.served, self.served + len(loaded["ids"]))
        for inside, number in enumerate(numbers):
            names = [name for name in ("pixel_values", "valid", "labels") if name in loaded]
            # Copies: a loading process's batch would be held in shared memory.
            kept = {name: loaded[name][inside].clone() for name in names}
            self.crops[number] = kept | {"id": loaded["ids"][inside], "row": int(loaded["rows"][inside]), "skipped": []}
        self.served = numbers.stop
        self.crops = {number: crop for number, crop in self.crops.items() if number >= self.served - self.places}
        return torch.tensor([self.rank * self.places + number % self.places for number in numbers])

    def request(self, rows: Tensor, seeds: Tensor) -> Future:
        """Begin to collect the crops at places (K,); the seeds do not matter."""
        # What the places hold now, before the next batch comes.
        return self.reader.submit(self._collect, self.crops, self.served, *_to_host(rows, seeds))

    def _collect(self, crops: dict[int, dict], served: int, wanted: Tensor, arrived: torch.cuda.Event | None) -> dict:
        _wait(arrived)
        numbers = [self._number(row - self.rank * self.places, served) for row in wanted[0].tolist()]
        samples = [crops[n] if n in crops else self.stream[self._of_stream(n), None] for n in numbers]
        return _for_device(collate(samples), arrived)

    def _number(self, place: int, served: int) -> int:
        """The last of this process's samples at a place."""
        last = max(served, self.stream.batch_size) - 1
        return last - (last - place) % self.places

    def _of_stream(self, number: int) -> int:
        """The number in the stream of all processes of this process's sample."""
        batch, inside = divmod(number, self.stream.batch_size)
        return (batch * self.world_size + self.rank) * self.stream.batch_size + inside


def empty_sample(stream: SampleStream) -> dict:
    """A sample that is all padding."""
    side = stream.augmentation.crop_size
    sample = {
        "pixel_values": torch.zeros(3, side, side, dtype=torch.uint8),
        "valid": torch.zeros(side, side, dtype=torch.bool),
        "id": "",
        "row": -1,
        "skipped": [],
    }
    return sample | ({"labels": torch.full((side, side), IGNORE, dtype=torch.uint8)} if stream.with_labels else {})


def _wait(arrived: torch.cuda.Event | None) -> None:
    if arrived is not None:
        # The reading thread's own device is the first one, where waiting and pinning would open a second context.
        torch.cuda.set_device(arrived.device)
        arrived.synchronize()


def _for_device(batch: dict, arrived: torch.cuda.Event | None) -> dict:
    """Pinned, where a GPU is to take it: else the host would wait for the copy."""
    if arrived is None:
        return batch
    return {name: part.pin_memory() if isinstance(part, Tensor) else part for name, part in batch.items()}


def _to_host(rows: Tensor, seeds: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Rows and seeds on the way to the host, and an event that tells of their arrival: nobody waits here."""
    wanted = torch.stack([rows, seeds])
    if wanted.device.type != "cuda":
        return wanted.cpu(), None
    wanted, arrived = wanted.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record()
    return wanted, arrived
