"""Adaptive copy-paste of AEL (Hu et al., NeurIPS 2021), for any method: rare classes of other labelled images."""

import dataclasses
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2pl_hf.errors import InputError
from u2pl_hf.method import equalization as eq
from u2pl_hf.method.batch import Batch, Chosen, ImagePools, ask
from u2pl_hf.method.pseudo_labels import IGNORE

if TYPE_CHECKING:
    from u2pl_hf.method.base import MethodSettings

logger = logging.getLogger(__name__)
# Of frequent_classes: all classes are rare.
NO_CLASS = "none"


class CopyPaste(nn.Module):
    """Chooses donors of labelled images from a confidence bank, and pastes their pixels of rare classes in.

    Like partners, donors are chosen by the pass before the one that needs them, and read while it computes; a pass that
    finds none chosen, such as the first one of a resumed run, chooses the same ones for itself.

    Args:
        settings: of a method, see `MethodSettings`.
        student: names the classes.
        pools: labelled images and their counts.
        bank: how well each class is known.

    Raises:
        InputError: no class is left to paste, or one that is told is none.
    """

    def __init__(self, settings: "MethodSettings", student: nn.Module, pools: ImagePools, bank: eq.ConfidenceBank):
        super().__init__()
        # Not a child: the bank is the method's, whose checkpoints have it once.
        self.settings, self.pool, self._bank = settings, pools.labelled, [bank]
        names = [student.config.id2label[c] for c in range(student.config.num_labels)]
        frequent = frequent_classes(settings.frequent_classes, names, pools.counts)
        rare = [c for c in range(len(names)) if c not in frequent]
        self.register_buffer("rare", torch.tensor(rare), persistent=False)
        self.register_buffer("presence", pools.counts > 0, persistent=False)
        self.donors: Chosen | None = None

    @torch.no_grad()
    def paste(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """The batch with rare classes of other labelled images pasted into its own, and their share for the log."""
        donors, self.donors = self.donors or self.choose(batch.seed, len(batch.x_l)), None
        x, labels, _ = self.pool.receive(donors.images)
        # An image is no donor to itself.
        itself = donors.rows == self.pool.add(batch.further.loaded_l).to(donors.rows.device, non_blocking=True)
        labels = labels.masked_fill(itself.view(-1, 1, 1), IGNORE)
        x_l, y_l, pasted = eq.paste_classes(batch.x_l, batch.y_l, x, labels, donors.classes)
        return dataclasses.replace(batch, x_l=x_l, y_l=y_l), {"pasted_share": pasted.float().mean()}

    def prepare(self, batch: Batch) -> None:
        """Choose for the pass that follows this batch."""
        self.donors = self.choose(batch.further.next_seed, len(batch.x_l))

    @torch.no_grad()
    def choose(self, seed: int, number: int) -> Chosen:
        """For each of `number` labelled images a labelled one that has one of the rare classes drawn; -1 for none."""
        confidence = self._bank[0].confidence
        generator = torch.Generator(confidence.device).manual_seed(seed)
        classes = min(self.settings.copy_paste_classes, len(self.rare))
        classes = eq.draw_rare_classes(confidence, self.rare, classes, generator)
        rows = eq.draw_rows(self.presence[:, classes].any(dim=1).expand(number, -1), generator)
        lottery = torch.rand(number, generator=generator, device=rows.device)
        rows = rows.masked_fill(lottery >= self.settings.copy_paste_probability, -1)
        return ask(self.pool, rows, classes, generator)


def frequent_classes(told: list[str], names: list[str], counts: Tensor) -> set[int]:
    """The classes that copy-paste leaves alone: those told, else those with more than 1/C of the labelled pixels.

    Args:
        told: names or numbers, or NO_CLASS alone.
        counts: pixels of each class in each labelled image, int64 (labelled,C).

    Raises:
        InputError: there is no such class, or none is left.
    """
    total = counts.sum(dim=0)
    numbers = {str(c): c for c in range(len(names))} | {name: c for c, name in enumerate(names)}
    chosen = [] if told == [NO_CLASS] else told
    unknown = [name for name in chosen if name not in numbers]
    if unknown:
        listed = ", ".join(names)
        raise InputError(f"--frequent_classes {unknown[0]} is no class; there are {listed}, or 0 to {len(names) - 1}")
    frequent = {numbers[name] for name in chosen}
    if not told:
        frequent = {c for c, pixels in enumerate(total.tolist()) if pixels * len(names) > total.sum()}
    if len(frequent) == len(names):
        raise InputError("--frequent_classes names every class; leave out those that copy-paste is to paste")
    logger.info("copy-paste draws from %s", ", ".join(name for c, name in enumerate(names) if c not in frequent))
    return frequent
