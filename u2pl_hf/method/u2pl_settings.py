"""What U2PL can be told: the paper's symbols, and options that make it hold from few labels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from u2pl_hf.fields import setting
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.base import MethodSettings
from u2pl_hf.method.mixing import STRONG_AUGMENTATIONS

# What the options of `--variant robust` are where they are not given: off, as in the paper, and then robust's own.
PAPER = {
    "strong_colour": False,
    "strong_probability": 0.5,
    "strong_per_image": False,
    "confidence_floor": None,
    "class_quantiles": False,
    "ema_from_start": False,
    "ema_decay": 0.99,
    "unsupervised_rampup": 0.0,
    "symmetric_cross_entropy": 0.0,
    "prototype_momentum": 0.0,
    "protect_unlearnt": 0.0,
    "distribution_alignment": 0.0,
    "partner": "next",
    "copy_paste_probability": 0.0,
}
ROBUST = {
    "strong_colour": True,
    "strong_probability": 1.0,
    "strong_per_image": True,
    "confidence_floor": 0.8,
    "ema_from_start": True,
    "copy_paste_probability": 0.5,
}
# Of these, what AEL has too, and what goes with the published code's variant.
AEL_HAS, OFFICIAL_HAS = {"ema_decay", "copy_paste_probability"}, {"ema_decay", "strong_probability"}


@dataclass(frozen=True)
class U2PLSettings(MethodSettings):
    """Symbols are the paper's."""

    variant: str = setting(
        "paper",
        "as in the paper, as in the published code, or with what makes it hold from few labels (docs/methods.md)",
        choices=("paper", "official", "robust"),
    )
    fixed_defects: list[int] = setting([], "of --variant official: differences to put right, 1 to 6 (docs/fidelity.md)")
    warmup: str = setting(
        "steps",
        "supervised steps before the teacher starts: warmup_steps, or auto, until its labels are stable",
        choices=("steps", "auto"),
        displaces={"auto": ("warmup_steps", "warmup_epochs")},
    )
    warmup_steps: int = setting(0, "how many, with --warmup steps")
    warmup_epochs: float = setting(0.0, "the same in epochs", counts="warmup_steps")
    warmup_limit: float = setting(0.5, "of --warmup auto: share of the steps that it takes at most", above=0, below=1)
    ema_decay: float | None = setting(None, "largest decay of the teacher's moving average; default 0.99", at_most=1)
    unreliable_share: float = setting(0.2, "alpha_0, share of pixels taken as unreliable at the start", at_most=1)
    unsupervised_weight: float = setting(1.0, "lambda_u")
    contrastive_weight: float = setting(0.1, "lambda_c; published code: 0.25 on VOC, 0.125 on Cityscapes")
    strong_augmentation: str = setting("cutmix", "mixing of unlabelled images", choices=tuple(STRONG_AUGMENTATIONS))
    strong_probability: float | None = setting(
        None, "probability of mixing, one draw per batch unless --strong_per_image; default 0.5, robust 1", at_most=1
    )
    anchor_threshold: float = setting(0.3, "delta_p, least probability of an anchor's class", at_most=1)
    low_rank: int | None = setting(None, "r_l; default min(3, classes // 2), at least 1")
    high_rank: int = setting(20, "r_h")
    temperature: float = setting(0.5, "tau of InfoNCE", above=0)
    num_anchors: int = setting(256, "anchors per class and step", at_least=1, at_most=100_000)
    num_negatives: int = setting(50, "negatives per anchor", at_least=1, at_most=100_000)
    queue_length: int = setting(30_000, "negatives kept per class", at_least=1, at_most=100_000_000)
    background_queue_length: int = setting(50_000, "negatives kept for class 0", at_least=1, at_most=100_000_000)
    new_keys_per_class: int = setting(
        256,
        "most negatives pushed per class, process and step; published code: all",
        at_least=1,
        at_most=100_000_000,
    )

    # Off unless told, or --variant robust.
    copy_paste_probability: float | None = setting(
        None,
        "probability that a labelled image gets rare classes of another one pasted in (AEL's); robust 0.5",
        at_most=1,
    )
    strong_per_image: bool | None = setting(None, "draw for each image whether it is mixed; robust: true")
    strong_colour: bool | None = setting(None, "colour jitter, grey and blur in the student's images; robust: true")
    partner: str | None = setting(
        None,
        "what CutMix takes pixels from: the next image of the batch (default), or one that shows a class that is "
        "badly known, as AEL chooses it",
        choices=("next", "class"),
    )
    confidence_floor: float | None = setting(
        None,
        "L_u counts reliable pixels of at least this confidence, and is divided by all pixels but padding; robust 0.8",
        at_most=1,
    )
    class_quantiles: bool | None = setting(None, "the reliable share of each pseudo-class, not of all pixels")
    protect_unlearnt: float | None = setting(
        None,
        "a class is unlearnt while the student gives its labelled pixels a mean probability below this; no pixel is "
        "reliable that may be of one",
        at_most=1,
    )
    distribution_alignment: float | None = setting(
        None,
        "how far pseudo-labels are made as frequent as labels, class by class: 1 wholly; only where unlabelled images "
        "show about the same mix of classes",
        at_most=1,
    )
    ema_from_start: bool | None = setting(
        None,
        "average parameters and buffers from step 0, in place of a copy when warm-up ends; as --warmup auto does",
    )
    unsupervised_rampup: float | None = setting(
        None, "share of the steps in which lambda_u rises after warm-up", at_most=1
    )
    symmetric_cross_entropy: float | None = setting(None, "weight of the reverse cross-entropy in L_u")
    prototype_momentum: float | None = setting(
        None, "largest momentum of positives that are averaged over steps; published code: 0.999", below=1
    )

    def __post_init__(self):
        object.__setattr__(self, "fixed_defects", sorted({*self.fixed_defects}))

    def ranks(self, num_labels: int) -> tuple[int, int]:
        """r_l and r_h for a number of classes."""
        low = pl.default_low_rank(num_labels) if self.low_rank is None else self.low_rank
        return low, self.high_rank

    def settled(self) -> "U2PLSettings":
        """With the variant's choice where nothing was told."""
        chosen = PAPER | (ROBUST if self.variant == "robust" else {})
        # What is watched is the average.
        chosen |= {"ema_from_start": True} if self.warmup == "auto" else {}
        return replace(self, **{name: v for name, v in chosen.items() if getattr(self, name) is None})

    def unpublished(self) -> Iterator[tuple[bool, str]]:
        """What `official` does not have, for `refuse`."""
        told = [name for name, off in PAPER.items() if getattr(self, name) not in (None, off)]
        told = [name for name in told if name not in OFFICIAL_HAS]
        told += ["warmup auto"] if self.warmup == "auto" else []
        for name in told:
            yield self.variant == "official", f"--{name} goes with --variant paper or robust, not official"
