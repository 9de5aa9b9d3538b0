"""Whether a method pays, by a rule that is written down here: differences of runs that share their images or seed.

Scores are fractions; the n-th score of each list is of the n-th fold, or seed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Quantiles of Student's t that 90 % lie below, for 1, 2, 3 ... degrees of freedom; further ones take the last.
T90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383)
# What counts as a difference of mean IoU, and of the IoU of a class.
POINT, CLASS_POINTS = 0.01, 0.02
RULE = (
    "A method helps where its paired differences to SupOnly have a mean of at least one point of mean IoU and are "
    "above zero with 90 % confidence (Student's t, one-sided), and where it ends above SupOnly with twice the steps as "
    "well, and, if it pastes rare classes into labelled images, above SupOnly that does the same. Else it is too early "
    "where twice the steps bring SupOnly a point or more; there is no room where the other half of the labels brings "
    "it less than a point; and else no gain is shown, or a loss where that is as sure as a gain has to be. A class is "
    "hurt where it loses at least two points of IoU with that confidence. The last evaluation counts; the best is "
    "shown."
)


@dataclass(frozen=True)
class Difference:
    """Paired differences a - b.

    Attributes:
        each: one per fold or seed.
        mean: of them.
        deviation: their standard deviation; None for a single one.
        lower, upper: where their mean lies, each with 90 % confidence; infinite for a single one.
    """

    each: list[float]
    mean: float
    deviation: float | None
    lower: float
    upper: float


def difference(a: Sequence[float | None], b: Sequence[float | None]) -> Difference | None:
    """Of scores that share fold or seed; None where no pair is complete."""
    each = [x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not each:
        return None
    mean, number = statistics.fmean(each), len(each)
    if number == 1:
        return Difference(each, mean, None, -math.inf, math.inf)
    deviation = statistics.stdev(each)
    reach = T90[min(number - 1, len(T90)) - 1] * deviation / math.sqrt(number)
    return Difference(each, mean, deviation, mean - reach, mean + reach)


@dataclass(frozen=True)
class Verdict:
    """What is said of a method, in a word and a sentence, and the classes that it hurts.

    The word is one of helps, too early, no room, no gain shown and hurts.
    """

    kind: str
    words: str
    hurt: list[str]


def judge(
    method: Sequence[float | None],
    suponly: Sequence[float | None],
    *,
    twice: Sequence[float | None] | None = None,
    half: Sequence[float | None] | None = None,
    pasted: Sequence[float | None] | None = None,
    classes: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]] | None = None,
) -> Verdict | None:
    """Judge one method by `RULE`.

    Args:
        method, suponly: mean IoU of each run.
        twice, half: of SupOnly with twice the steps, and with half of the labels; None where that was not measured.
        pasted: of SupOnly with the copy-paste that the method has too; None where it has none.
        classes: name -> IoU of each run, of the method and of SupOnly.

    Returns:
        None where no pair of runs is there.
    """
    gain = difference(method, suponly)
    if gain is None:
        return None
    rise = difference(twice, suponly) if twice else None
    rivals = {"twice the steps": twice, "copy-paste": pasted}
    beyond = {name: difference(method, rival) for name, rival in rivals.items() if rival}
    beyond = {name: rival.mean for name, rival in beyond.items() if rival}
    room = difference(suponly, half) if half else None
    told = f"{points(gain.mean)} points over SupOnly"
    if gain.mean >= POINT and gain.lower > 0 and all(mean > 0 for mean in beyond.values()):
        over = " and ".join(f"{points(mean)} over SupOnly with {name}" for name, mean in beyond.items())
        kind, words = "helps", f"{told}, and {over}" if over else told
    elif rise and rise.mean >= POINT:
        longer = f"SupOnly still rises, by {points(rise.mean)} with twice the steps: train longer, then compare again"
        kind, words = "too early", f"{told}; {longer}"
    elif room and room.mean < POINT:
        less = f"with half of the labels SupOnly has {points(-room.mean)}"
        kind, words = "no room", f"{told}; {less}, so more labels, or stand-ins for them, can bring little"
    elif gain.mean <= -POINT and gain.upper < 0:
        kind, words = "hurts", told
    else:
        why = "which these runs cannot tell from nothing"
        if gain.deviation is None:
            why = "of a single pair of runs, which tells little"
        elif gain.lower > 0 or gain.upper < 0:
            behind = " and ".join(name for name, mean in beyond.items() if mean <= 0)
            why = "less than a point" if abs(gain.mean) < POINT else f"not above SupOnly with {behind}"
        kind, words = "no gain shown", f"{told}, {why}"
    pairs = {name: difference(*scores) for name, scores in (classes or {}).items()}
    hurt = [name for name, d in pairs.items() if d and d.mean <= -CLASS_POINTS and d.upper < 0]
    return Verdict(kind, words, hurt)


def winner(verdicts: Mapping[str, Verdict], gains: Mapping[str, float]) -> str | None:
    """The method to take: of those that help, the one that gains most; None where none does."""
    helping = [name for name, verdict in verdicts.items() if verdict.kind == "helps"]
    return max(helping, key=gains.__getitem__, default=None)


def points(fraction: float) -> str:
    """A difference of fractions in points, with its sign: 0.0123 as +1.2."""
    return f"{100 * fraction:+.1f}"
