"""What a method is: settings, capabilities and one training step; `METHODS` knows every one by its name."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from u2pl_hf.errors import InputError, require
from u2pl_hf.fields import setting
from u2pl_hf.method import losses
from u2pl_hf.method.batch import Batch, ImagePools
from u2pl_hf.method.copy_paste import CopyPaste
from u2pl_hf.method.equalization import MOMENTUM, ConfidenceBank
from u2pl_hf.method.pseudo_labels import resize_logits


@dataclass(frozen=True)
class MethodSettings:
    """What every method can be told: how labelled images are learned from. A method's own settings derive from it."""

    supervised_loss: str = setting("ce", "cross-entropy or online hard example mining", choices=("ce", "ohem"))
    ohem_threshold: float = setting(0.7, "OHEM keeps pixels whose label's probability is at most this", at_most=1)
    ohem_min_kept: int = setting(100_000, "OHEM keeps at least this many pixels of a batch")
    auxiliary_weight: float = setting(0.4, "weight of the auxiliary head's loss", at_least=0)
    copy_paste_probability: float = setting(
        0.0, "probability that a labelled image gets rare classes of another one pasted in (AEL's)", at_most=1
    )
    copy_paste_classes: int = setting(3, "rare classes that a pass pastes", at_least=1, at_most=255)
    frequent_classes: list[str] = setting(
        [],
        "names or numbers of the classes that copy-paste leaves alone, or none; default: those with more than "
        "1/classes of the labelled pixels",
    )

    def settled(self) -> "MethodSettings":
        """With the values that follow from others, where nothing was told."""
        return self


@dataclass
class StepOutput:
    """`total` is what backward runs on; `named` losses are detached here, and stay on the device as `stats` do.

    Stats are scalars, or one number per class, of a logged step alone. Counts, int64 (C,), add up over all passes since
    the logged step before, and are logged as shares.
    """

    total: Tensor
    named: dict[str, Tensor]
    stats: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.named = {name: value.detach() for name, value in self.named.items()}


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
    # Whether it has a confidence bank that copy-paste goes by; else copy-paste brings one.
    brings_bank: ClassVar[bool] = False
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, settings: MethodSettings, student: nn.Module, pools: ImagePools | None = None):
        super().__init__()
        self.settings = settings.settled()
        self.copy_paste: CopyPaste | None = None
        self.pasting_bank: ConfidenceBank | None = None
        if self.settings.copy_paste_probability and not self.brings_bank:
            self.pasting_bank = ConfidenceBank(student.config.num_labels, MOMENTUM, at_once=True, passes=pools.passes)
            self.copy_paste = CopyPaste(self.settings, student, pools, self.pasting_bank)

    @classmethod
    def check(cls, settings: MethodSettings, *, num_labels: int | None = None, total_steps: int | None = None) -> None:
        """Refuse settings that do not go together, or not with this number of classes or steps (None: not known yet).

        Raises:
            InputError: one line that names the option.
        """
        unused = settings.frequent_classes and not settings.settled().copy_paste_probability
        require(not unused, "--frequent_classes is about copy-paste: pass --copy_paste_probability too, such as 0.5")

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
        """The card's paragraph on the method, with a word on copy-paste where it is told."""
        pastes = settings.settled().copy_paste_probability and not cls.brings_bank
        return cls.about + (" Rare classes of other labelled images are pasted into labelled ones." if pastes else "")

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

    def learn(self, student: nn.Module, batch: Batch, step: int, total_steps: int) -> StepOutput:
        """What a run calls: `forward`, of labelled images with rare classes pasted in where that is asked for."""
        if self.copy_paste is None:
            return self(student, batch, step, total_steps)
        batch, stats = self.copy_paste.paste(batch)
        output = self(student, batch, step, total_steps)
        self.copy_paste.prepare(batch)
        output.stats |= stats
        return output

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
        return StepOutput(loss, {"loss": loss, "loss_supervised": loss}), output

    @staticmethod
    def attached(output) -> Tensor | float:
        """0 for a representation that no loss uses.

        Every parameter must be part of every step's graph, or distributed training waits for its gradient.
        """
        return 0.0 if output.representation is None else 0.0 * output.representation.float().mean()

    def supervised_loss(self, output, y_l: Tensor) -> Tensor:
        """L_s of the first len(y_l) images, with the auxiliary head's part where there is one (equation 2)."""
        if self.pasting_bank is not None:
            self.pasting_bank.learn(output.logits, y_l)
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
