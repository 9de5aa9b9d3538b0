"""The batches of one process: loaded, put on the device, and with the seeds of what is drawn for them ahead."""

import logging
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from u2pl_hf.data.stream.pools import Reservoir, RowPool
from u2pl_hf.data.stream.streams import SampleStream, endless_loader
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.method import Batch
from u2pl_hf.method.batch import Further
from u2pl_hf.pixels import normalize
from u2pl_hf.system.processes import EACH_PROCESS
from u2pl_hf.training.inputs import TrainingData
from u2pl_hf.training.recipe.arguments import RunArguments

logger = logging.getLogger(EACH_PROCESS)
# Donors of copy-paste come in more sizes than the images they are pasted into (AEL, adaptive copy-paste).
DONOR_SCALES = (0.1, 2.0)


class Batches:
    """What the passes of one process see of a run's data.

    Args:
        args, data: the run's.
        accelerator: says which process and device this is.
        first_step: the step that the run goes on with.
    """

    def __init__(self, args: RunArguments, data: TrainingData, accelerator: Accelerator, first_step: int = 0):
        self.args, self.data, self.device, self.first_step = args, data, accelerator.device, first_step
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.layout = torch.channels_last if args.channels_last else torch.contiguous_format
        self.unlabelled_from = args.step_class.unlabelled_from(args.settings)
        self.loaded_l, self.loaded_u = None, None
        # Unlabelled images that could not be read, each with why.
        self.skipped: set[str] = set()

    def start(self) -> None:
        """Begin to load."""
        self.loaded_l = self._loader("labelled", self.first_step)
        if self.args.step_class.uses_unlabelled:
            self.loaded_u = self._loader("unlabelled", self._unlabelled_steps)

    def close(self) -> None:
        """End the loading processes."""
        self.loaded_l, self.loaded_u = None, None

    def next(self, step: int, number: int) -> tuple[Batch, list[str]]:
        """The images of a pass on the device, and their ids; `number` is the pass's, as in seed_draws."""
        labelled = next(self.loaded_l)
        x_l, y_l, _ = self.deliver(labelled)
        seed, unlabelled, x_u, y_u, valid_u = ahead_seed(self.args.seed, number), None, None, None, None
        if self.loaded_u is not None and step >= self.unlabelled_from:
            unlabelled = next(self.loaded_u)
            x_u, y_u, valid_u = self.deliver(unlabelled)
        further = Further(labelled, unlabelled, ahead_seed(self.args.seed, number + self.world_size))
        ids = labelled["ids"] + (unlabelled["ids"] if unlabelled else [])
        return Batch(x_l, y_l, x_u, valid_u, y_u, seed, further), ids

    def deliver(self, loaded: dict) -> tuple[Tensor, Tensor | None, Tensor]:
        """A loaded batch on the device: images, labels if any, valid. uint8 travels; normalisation happens there."""
        for message in sorted({*loaded["skipped"]} - self.skipped):
            logger.warning("skipped: %s", message)
        self.skipped.update(loaded["skipped"])
        pixels, valid = (loaded[name].to(self.device, non_blocking=True) for name in ("pixel_values", "valid"))
        labels = loaded["labels"].to(self.device, non_blocking=True).long() if "labels" in loaded else None
        return self.lay_out(normalize(pixels, valid)), labels, valid

    def lay_out(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in the layout of the weights; they come with channels last from the decoder."""
        return images.contiguous(memory_format=self.layout)

    # What a method may ask for besides its batches, see `u2pl_hf.method.base.ImagePools`.

    @property
    def passes(self) -> int:
        """Forward passes per optimizer step."""
        return self.args.gradient_accumulation_steps

    @property
    def counts(self) -> Tensor:
        """Pixels of each class in each labelled image, int64 (labelled,C)."""
        return torch.from_numpy(self.data.labels.counts)

    @cached_property
    def labelled(self) -> RowPool:
        """Any labelled image, in sizes from a tenth to twice its own."""
        return RowPool(self._stream("labelled", WeakAugmentation(self.args.crop_size, DONOR_SCALES)), self.deliver)

    @cached_property
    def unlabelled(self) -> RowPool:
        """Any unlabelled image; of streamed ones those seen lately."""
        stream = self._stream("unlabelled", WeakAugmentation(self.args.crop_size))
        if not self.data.unlabelled_source.streamed:
            return RowPool(stream, self.deliver)
        start = self._unlabelled_steps * self.passes * stream.batch_size
        return Reservoir(stream, self.deliver, rank=self.rank, start=start)

    @property
    def _unlabelled_steps(self) -> int:
        """Steps with unlabelled images that have been done before: warm-up has none."""
        return max(0, self.first_step - self.unlabelled_from)

    def _stream(self, name: str, augmentation: WeakAugmentation) -> SampleStream:
        args, is_labelled = self.args, name == "labelled"
        return SampleStream(
            self.data.labelled_source if is_labelled else self.data.unlabelled_source,
            self.data.labelled if is_labelled else self.data.unlabelled,
            augmentation,
            seed=args.seed,
            name=name,
            with_labels=is_labelled or args.watch_pseudo_labels,
            is_required=is_labelled,
            batch_size=args.batch_size if is_labelled else args.unlabelled_batch_size,
            world_size=self.world_size,
        )

    def _loader(self, name: str, steps: int) -> Iterator[dict]:
        """Endless batches from where a stream stands after some steps."""
        stream = self._stream(name, WeakAugmentation(self.args.crop_size))
        options = {"num_workers": self.args.num_workers, "pin_memory": self.device.type == "cuda"}
        return iter(endless_loader(stream, rank=self.rank, start_batch=steps * self.passes, **options))


def ahead_seed(seed: int, number: int) -> int:
    """The seed of what is drawn ahead for a pass, as another pass may do; see `seed_draws` for the arguments."""
    return int(np.random.SeedSequence([seed, number, 1]).generate_state(1, np.uint64)[0] >> 1)


def seed_draws(seed: int, number: int) -> None:
    """Make every random draw of a forward pass a function of (seed, number): resuming then needs no generator state.

    Args:
        seed: the run's.
        number: of the pass, counted over steps, accumulated passes and processes.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]))
