"""Signs that a run goes wrong, found in the numbers that it logs; each is told in one line, once per run or class.

Everything follows from the lines of metrics.jsonl and the run's options: a run that goes on knows from its own lines
what it has told. A sign asks for numbers and options by their names, never for a method: who logs such a number is
watched.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean

from u2pl_hf.errors import few

logger = logging.getLogger(__name__)

# Share of the steps that a number has to show something for, and how many logged lines at least. In a short run of the
# demo, shares of classes scattered by a tenth of themselves over that long; those of single lines by a fifth to a half.
WINDOW, LINES = 0.1, 3
# Nothing of that kind is told before this share of the steps. Networks call everything background at first: in measured
# runs of FixMatch no pixel was confident for up to 9 % of them, and they came to no harm by it.
START = 0.25
# A class is lost below this part of its share among labelled pixels. That one is known from few images: in five splits
# of 24 or 25 the share in all images was 0.5 to 3 times as large. In 19 runs on VOC's animals, by the share among what
# the teacher predicted for the evaluation images midway, 34 of 43 classes below it ended under the IoU of a run of the
# same seed on labelled images alone; of the 71 other classes, 8 did.
LOST = 0.25
# Further from 0 or 1 than this, a share is one that moves: a thousandth of a crop is less than a small object.
STUCK = 1e-3
# How many others a line names.
NAMED = 8
# Rounding of float32 and what is near it. The teachers of 21 measured runs lay at 8e-4 or more from their students, at
# the end, where the learning rate is all but 0, as well.
SAME = 1e-6
# Mean IoU that the second of two falling evaluations lies under the best so far. In the measured runs that ended above
# their baseline single ones fell by up to 1.8 points; of the six that fell twice to a point under it, five ended below.
MARGIN = 0.01
# Names of shares -> options that keep them at 0 where they are large, and at 1 where they are small.
SHARES = {
    "confident_share": ("confidence_threshold", "confidence_threshold"),
    "reliable_share": ("protect_unlearnt", "unreliable_share"),
}


@dataclass(frozen=True)
class Sign:
    """One thing that goes wrong.

    Attributes:
        step: at which it was found.
        kind: a word for programs.
        line: for people: what, and which option helps.
        classes: that it is about.
    """

    step: int
    kind: str
    line: str
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Watched:
    """What a run is, as far as signs ask.

    Attributes:
        options: of the run and of its method, by name.
        labelled: each class's part of the labelled pixels, in the order of the classes.
    """

    options: Mapping[str, object]
    labelled: Mapping[str, float]

    @property
    def window(self) -> float:
        """In steps."""
        return WINDOW * self.options["max_steps"]


def find_signs(history: Sequence[dict], options: Mapping[str, object], labelled: Mapping[str, float]) -> list[Sign]:
    """The signs of a run, each kind once, or once of each class, at the first step that shows it.

    Args:
        history: lines of metrics.jsonl.
        options: the run's and its method's, by name; `max_steps` at least.
        labelled: each class's part of the labelled pixels.
    """
    found: list[Sign] = []
    for end in range(1, len(history) + 1):
        found += new_signs(history[:end], Watched(options, labelled), found)
    return found


def new_signs(history: Sequence[dict], run: Watched, found: Sequence[Sign]) -> list[Sign]:
    """What the last line of a history shows, with those before it, and was not found before."""
    kinds, classes = {sign.kind for sign in found}, {name for sign in found for name in sign.classes}
    step, is_evaluation = history[-1]["step"], "eval_mean_iou" in history[-1]
    looks: tuple[Callable, ...] = (same_teacher, falling_score) if is_evaluation else ()
    lines, signs = history, []
    if not is_evaluation and step >= START * run.options["max_steps"]:
        lines = recent_lines(history, step - run.window)
        signs = [Sign(step, *sign) for sign in lost_classes(lines, run, classes)]
        looks = (stuck_shares, no_contrast)
    return signs + [Sign(step, *sign) for look in looks for sign in look(lines, run) if sign[0] not in kinds]


def recent_lines(history: Sequence[dict], since: float) -> list[dict]:
    """The lines of steps after `since`, LINES of them at least; [] where a history does not reach that far back."""
    recent = []
    for line in reversed(history):
        if line["step"] <= since and len(recent) >= LINES:
            return recent[::-1]
        if "eval_mean_iou" not in line:
            recent.append(line)
    return []


def values_of(lines: Sequence[dict], name: str) -> list:
    """A number of each line; [] unless all have it."""
    values = [line.get(name) for line in lines]
    return [] if None in values else values


def lower(run: Watched, name: str, otherwise: str) -> str:
    """The advice to lower an option, where there is one that is not 0."""
    now = run.options.get(name)
    return f"lower --{name} (now {now:g})" if now else otherwise


def lost_classes(lines: Sequence[dict], run: Watched, told: Collection[str]) -> Iterator[tuple[str, str, list]]:
    """Classes that pseudo-labels have hardly any more of, or never had, but for those that were told of."""
    shares = values_of(lines, "pseudo_share_per_class")
    if not shares:
        return
    means = dict(zip(run.labelled, map(fmean, zip(*shares, strict=True)), strict=True))
    lost = [name for name, part in run.labelled.items() if means[name] < LOST * part and name not in told]
    if not lost:
        return
    # The one of which most is missing stands for all.
    name = max(lost, key=lambda name: run.labelled[name] - means[name])
    others = [other for other in lost if other != name]
    more = f" (and {few(others, NAMED)})" if others else ""
    longer = {"steps": "warm up longer (--warmup_steps)", "auto": "warm up longer (--warmup_limit)"}
    helps = longer.get(run.options.get("warmup"), "start from better weights, or lower --learning_rate")
    shares = f"{means[name]:.1%} of the pseudo-labels and {run.labelled[name]:.1%} of the labelled pixels"
    yield "class_lost", f"{name}{more} has {shares}: {helps}, or label a few more images of it", lost


def stuck_shares(lines: Sequence[dict], run: Watched) -> Iterator[tuple[str, str]]:
    """No pixel, or every pixel, is learnt from."""
    for name, (too_large, too_small) in SHARES.items():
        values, word = values_of(lines, name), name.removesuffix("_share")
        small = run.options.get(too_small)
        # A share that was asked for tells nothing.
        asked = any(line.get("alpha", 1.0) < STUCK for line in lines)
        if values and max(values) < STUCK:
            helps = lower(run, too_large, "lower --learning_rate")
            yield f"no_{word}", f"no pixel has been {word} for {len(values)} logged steps: {helps}"
        elif values and min(values) > 1 - STUCK and not asked:
            helps = "lower --learning_rate" if small is None else f"raise --{too_small} (now {small:g})"
            yield f"all_{word}", f"every pixel has been {word} for {len(values)} logged steps: {helps}"


def no_contrast(lines: Sequence[dict], run: Watched) -> Iterator[tuple[str, str]]:
    """A contrastive loss of 0, and why."""
    losses = values_of(lines, "loss_contrastive")
    if not losses or any(losses):
        return
    anchors, fill = values_of(lines, "anchors_per_class"), values_of(lines, "queue_fill")
    told = f"the contrastive loss has been 0 for {len(losses)} logged steps"
    if anchors and not any(map(any, anchors)):
        helps = lower(run, "anchor_threshold", "choose more of them")
        yield "no_anchors", f"{told}, no pixel is an anchor: {helps}, or warm up longer"
    elif fill and not any(fill):
        yield "empty_queues", f"{told}, no pixel has become a negative: raise --unreliable_share or --batch_size"
    else:
        yield "no_negatives", f"{told}, no class has both anchors and negatives: raise --batch_size"


def same_teacher(history: Sequence[dict], run: Watched) -> Iterator[tuple[str, str]]:
    """A teacher that is the student itself; in the first steps after warm-up it is to be."""
    distance = history[-1].get("teacher_distance")
    first = next((line["step"] for line in history if "loss_unsupervised" in line), history[-1]["step"])
    if distance is not None and distance < SAME and history[-1]["step"] - first >= run.window:
        now = run.options.get("ema_decay")
        slower = "let it average over more steps" if now is None else f"raise --ema_decay (now {now:g})"
        told = f"the teacher equals the student (relative distance {distance:.0e})"
        yield "same_teacher", f"{told}: {slower}, or --learning_rate where no loss moves"


def falling_score(history: Sequence[dict], run: Watched) -> Iterator[tuple[str, str]]:
    """Evaluations that fall while the unsupervised loss does: the model agrees with itself on what is wrong."""
    scores = [(line["step"], line["eval_mean_iou"]) for line in history if line.get("eval_mean_iou") is not None]
    if len(scores) < 3:
        return
    (start, before), (middle, between), (end, last) = scores[-3:]
    step, best = max(scores, key=lambda pair: pair[1])
    if not (last < between < before and best - last > MARGIN):
        return
    losses = [(line["step"], loss) for line in history if (loss := line.get("loss_unsupervised")) is not None]
    earlier, later = ([y for x, y in losses if a < x <= b] for a, b in ((start, middle), (middle, end)))
    if earlier and later and fmean(later) < fmean(earlier):
        told = f"mean IoU has fallen twice, from {best:.1%} at step {step} to {last:.1%}, and the unsupervised loss too"
        keep = "" if run.options.get("keep_best") == "teacher" else "keep that model with --keep_best teacher, or "
        yield "falling_score", f"{told}: {keep}{lower(run, 'unsupervised_weight', 'lower --max_steps')}"


class Health:
    """The signs of a run that goes on.

    Args:
        history: the lines of earlier starts; their signs were told.
        options, labelled: see `find_signs`.

    Attributes:
        signs: those so far.
    """

    def __init__(self, history: list[dict], options: Mapping[str, object], labelled: Mapping[str, float]):
        self.history, self.run = history, Watched(options, labelled)
        self.signs = find_signs(history, options, labelled)

    def note(self, line: dict) -> None:
        """Take a new line of metrics.jsonl, and tell what it is the first to show."""
        self.history.append(line)
        for sign in new_signs(self.history, self.run, self.signs):
            self.signs.append(sign)
            logger.warning("step %d: %s", sign.step, sign.line)

    def told(self) -> list[dict]:
        """For results.json."""
        return [asdict(sign) for sign in self.signs]
