"""What a method is: settings, capabilities and one training step; `METHODS` knows every one by its name.

`_l` and `_u` mark labelled and unlabelled; x (B,3,H,W) normalised images, y_l (B_l,H,W) labels with 255 = ignore,
valid_u bool (B_u,H,W) without padding.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor, nn

from u2pl_hf.errors import InputError
from u2pl_hf.fields import setting
from u2pl_hf.method import losses
from u2pl_hf.method.pseudo_labels import resize_logits


@dataclass(frozen=True)
class MethodSettings:
    """What every method can be told: how labelled images are learned from. A method's own settings derive from it."""

    supervised_loss: str = setting("ce", "cross-entropy or online hard example mining", choices=("ce", "ohem"))
    ohem_threshold: float = setting(0.7, "OHEM keeps pixels whose label's probability is at most this", at_most=1)
    ohem_min_kept: int = setting(100_000, "OHEM keeps at least this many pixels of a batch")
    auxiliary_weight: float = setting(0.4, "weight of the auxiliary head's loss", at_least=0)

    def settled(self) -> "MethodSettings":
        """With the values that follow from others, where nothing was told."""
        return self


@dataclass(frozen=True)
class Further:
    """For methods with pools, see `ImagePool`: what the loaders gave, and the seed of the process's next pass."""

    loaded_l: dict
    loaded_u: dict | None
    next_seed: int


@dataclass(frozen=True)
class Batch:
    """One process's images of one pass; the unlabelled half is None where the method does not use it.

    y_u are labels of the unlabelled images where someone wants to watch the pseudo-labels; nothing is learnt from them.
    `seed` is the pass's own, for what is to be drawn from a generator.
    """

    x_l: Tensor
    y_l: Tensor
    x_u: Tensor | None = None
    valid_u: Tensor | None = None
    y_u: Tensor | None = None
    seed: int = 0
    further: Further | None = None


@dataclass
class StepOutput:
    """`total` is what backward runs on; `named` and `stats` are detached and stay on the device.

    Stats are scalars, or one number per class, of a logged step alone. Counts, int64 (C,), add up over all passes since
    the logged step before, and are logged as shares.
    """

    total: Tensor
    named: dict[str, Tensor]
    stats: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)


class ImagePool(Protocol):
    """Images by row.

    size: rows of the pool, over all processes.
    """

    size: int

    def reachable(self) -> tuple[int, int]:
        """The rows, from the first up to but without the last, that this process may ask for now."""

    def add(self, loaded: dict) -> Tensor:
        """Take note of the images of a batch, as its loader gave them; their rows, int64 (B,)."""

    def request(self, rows: Tensor, seeds: Tensor) -> Future:
        """Begin to read rows (K,), augmented with seeds (K,), beside the computation; -1 stands for an empty image."""

    def receive(self, requested: Future) -> tuple[Tensor, Tensor | None, Tensor]:
        """What was requested: images (K,3,H,W), labels (K,H,W) where the pool has any, and valid bool (K,H,W)."""


class ImagePools(Protocol):
    """Further images of a run for methods that ask for some; nothing is read before that.

    counts: pixels of each class in each labelled image, int64 (labelled,C).
    passes: forward passes per optimizer step.
    """

    labelled: ImagePool
    unlabelled: ImagePool
    counts: Tensor
    passes: int


class Step(nn.Module):
    """One training step of a method: batches and progress in, named losses out.

    What it needs next time is a buffer or a module: then it is in checkpoints, and a resumed run ends in the same bits.

    Attributes:
        name: of --method.
        title: in tables and cards.
        about: a card's paragraph on the method, with its source.
        uses_unlabelled, uses_representation: what a run has to provide. Without representation the network has no such
            head.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str] = ""
    uses_unlabelled: ClassVar[bool] = True
    uses_representation: ClassVar[bool] = False
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, settings: MethodSettings, student: nn.Module, pools: ImagePools | None = None):
        super().__init__()
        self.settings = settings.settled()

    @classmethod
    def check(cls, settings: MethodSettings, *, num_labels: int | None = None, total_steps: int | None = None) -> None:
        """Refuse settings that do not go together, or not with this number of classes or steps (None: not known yet).

        Raises:
            InputError: one line that names the option.
        """

    @classmethod
    def unlabelled_from(cls, settings: MethodSettings) -> int:
        """The first step that takes unlabelled images."""
        return 0

    @classmethod
    def latest_start(cls, settings: MethodSettings, total_steps: int) -> int:
        """The step that learning from unlabelled images begins with, at the latest where a run finds that out."""
        return cls.unlabelled_from(settings)

    @classmethod
    def labels_alone(cls, settings: MethodSettings, total_steps: int) -> bool:
        """Whether some pass of the student has labelled images alone, of which BatchNorm needs two."""
        return not cls.uses_unlabelled or cls.latest_start(settings, total_steps) > 0

    @classmethod
    def student_images(cls, labelled: int, unlabelled: int) -> int:
        """Images whose features a pass keeps for the student's gradient, of so many labelled and unlabelled ones."""
        return labelled + (unlabelled if cls.uses_unlabelled else 0)

    @classmethod
    def described(cls, settings: MethodSettings) -> str:
        """The card's paragraph on the method."""
        return cls.about

    @classmethod
    def mixes_batch(cls, settings: MethodSettings) -> bool:
        """Whether a pass mixes its unlabelled images with each other, for which it needs two."""
        return False

    @classmethod
    def state_bytes(cls, settings: MethodSettings, weights: int, num_labels: int, channels: int) -> dict[str, int]:
        """What the method keeps on the device, by part, for plans: `weights` are the network's bytes."""
        return {}

    def forward(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """Losses of one step; `step` counts from 0."""
        raise NotImplementedError

    def begin(self, student: nn.Module, step: int) -> None:
        """Called before each step with the unwrapped student."""

    def finish(self, student: nn.Module, step: int) -> None:
        """Called after the optimizer's step with the unwrapped student."""

    def model_to_evaluate(self, student: nn.Module, step: int) -> nn.Module:
        """The model to validate and export after `step` finished steps."""
        return student

    def learns_unlabelled(self, step: int) -> bool:
        """Whether a step, this one or one before, learns from unlabelled images."""
        return step >= self.unlabelled_from(self.settings)

    def found(self) -> dict[str, int | float | None]:
        """What a run finds out about itself, for results and cards; None where it does not know yet.

        Runs that differ in these alone have one setting.
        """
        return {}

    def learn_labels(self, student: nn.Module, batch: Batch) -> tuple:
        """The supervised loss alone, and the student's output that it comes from."""
        output = student(batch.x_l)
        loss = self.supervised_loss(output, batch.y_l) + self.attached(output)
        return StepOutput(loss, {"loss": loss.detach(), "loss_supervised": loss.detach()}), output

    @staticmethod
    def attached(output) -> Tensor | float:
        """0 for a representation that no loss uses.

        Every parameter must be part of every step's graph, or distributed training waits for its gradient.
        """
        return 0.0 if output.representation is None else 0.0 * output.representation.float().mean()

    def supervised_loss(self, output, y_l: Tensor) -> Tensor:
        """L_s of the first len(y_l) images, with the auxiliary head's part where there is one (equation 2)."""
        loss = self._label_loss(output.logits[: len(y_l)], y_l)
        if output.aux_logits is not None:
            loss = loss + self.settings.auxiliary_weight * self._label_loss(output.aux_logits[: len(y_l)], y_l)
        return loss

    def _label_loss(self, logits: Tensor, y_l: Tensor) -> Tensor:
        logits = resize_logits(logits, y_l.shape[-2:])
        if self.settings.supervised_loss == "ohem":
            return losses.ohem_cross_entropy(logits, y_l, self.settings.ohem_threshold, self.settings.ohem_min_kept)
        return losses.cross_entropy(logits, y_l)


METHODS: dict[str, type[Step]] = {}


def register(step: type[Step]) -> type[Step]:
    """Class decorator: make a method known to --method by its name.

    Raises:
        InputError: another class has this name.
    """
    there = METHODS.get(step.name, step)
    # A cell of a notebook that runs again, and a file that is read again, mean the same method.
    if (there.__module__, there.__qualname__) != (step.__module__, step.__qualname__):
        raise InputError(f"two methods are called {step.name}: give {step.__qualname__} another name")
    METHODS[step.name] = step
    return step


def require_in_time(settings: MethodSettings, what: str, total_steps: int, otherwise: str = "") -> None:
    """That a part of the schedule, told in epochs or in steps, begins before the end; in epochs, not with step 0.

    Args:
        what: begins the names of two settings, such as `warmup` those of `warmup_steps` and `warmup_epochs`.

    Raises:
        InputError: it does not.
    """
    steps, epochs = getattr(settings, f"{what}_steps"), getattr(settings, f"{what}_epochs")
    if not epochs and steps >= total_steps:
        raise InputError(f"--{what}_steps {steps} must be below max_steps {total_steps}{otherwise}")
    if epochs and not 1 <= steps < total_steps:
        raise InputError(
            f"--{what}_epochs {epochs:g} are {steps} steps of {total_steps}: pass another number, or "
            f"--{what}_steps{otherwise}"
        )
