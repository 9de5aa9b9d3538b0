"""The batches of one process: loaded, put on the device, and with the seeds of what is drawn for them ahead."""

from accelerate import Accelerator
from torch import Tensor

from u2pl_hf.method.step import Batch
from u2pl_hf.pixels import normalize
from u2pl_hf.system.precision import lay_out
from u2pl_hf.training.build import ahead_seed
from u2pl_hf.training.inputs import SkippedImages, TrainingData, training_loaders
from u2pl_hf.training.pools import TrainingPools
from u2pl_hf.training.recipe.arguments import RunArguments


class Batches:
    """What the passes of one process see of a run's data.

    Args:
        args, data: the run's.
        accelerator: says which process and device this is.
    """

    def __init__(self, args: RunArguments, data: TrainingData, accelerator: Accelerator):
        self.args, self.data, self.device = args, data, accelerator.device
        self.place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        self.skipped = SkippedImages()
        self.loaded_l, self.loaded_u = None, None

    def pools(self, step: int) -> TrainingPools:
        """Further images for methods that ask for some, for a run that goes on at a step."""
        return TrainingPools(self.args, self.data, self.deliver, **self.place, start_step=step)

    def start(self, step: int) -> None:
        """Begin to load what comes from a step on."""
        pinned = self.device.type == "cuda"
        loaders = training_loaders(self.args, self.data, **self.place, start_step=step, pin_memory=pinned)
        self.loaded_l, self.loaded_u = (iter(loader) if loader is not None else None for loader in loaders)

    def close(self) -> None:
        """End the loading processes."""
        self.loaded_l, self.loaded_u = None, None

    def next(self, step: int, number: int) -> tuple[Batch, list[str]]:
        """The images of a pass on the device, and their ids; `number` is the pass's, as in seed_draws."""
        numbers = {"seed": number, "next_seed": number + self.place["world_size"]}
        seeds = {name: ahead_seed(self.args.seed, n) for name, n in numbers.items()}
        labelled = next(self.loaded_l)
        x_l, y_l, _ = self.deliver(labelled)
        if self.loaded_u is None or step < self.args.warmup_steps:
            return Batch(x_l, y_l, loaded_l=labelled, **seeds), labelled["ids"]
        unlabelled = next(self.loaded_u)
        x_u, y_u, valid_u = self.deliver(unlabelled)
        batch = Batch(x_l, y_l, x_u, valid_u, y_u, loaded_l=labelled, loaded_u=unlabelled, **seeds)
        return batch, labelled["ids"] + unlabelled["ids"]

    def deliver(self, loaded: dict) -> tuple[Tensor, Tensor | None, Tensor]:
        """A loaded batch on the device: images, labels if any, valid. uint8 travels; normalisation happens there."""
        self.skipped.note(loaded["skipped"])
        pixels, valid = (loaded[name].to(self.device, non_blocking=True) for name in ("pixel_values", "valid"))
        labels = loaded["labels"].to(self.device, non_blocking=True).long() if "labels" in loaded else None
        return lay_out(normalize(pixels, valid), self.args), labels, valid
