"""What labels bring SupOnly, and what methods bring beside that: a curve over shares of the labels."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from u2pl_hf.measure.comparison import BASE, HALF, Found
from u2pl_hf.measure.side_by_side import deviation, mean_iou, percent
from u2pl_hf.measure.verdict import POINT, Difference, difference, points

OTHER_HALF = "the other half of the labels"
# The name of a line of the picture.
FURTHER = "were labels doubled again"


@dataclass(frozen=True)
class Share:
    """SupOnly with a share of the labels.

    Attributes:
        title: what the page calls it.
        share: of the labels.
        number: labelled images of a run, the mean over its runs.
        scores: mean IoU at the last step of each fold or seed, as fractions; None where it has not been run.
    """

    title: str
    share: Fraction
    number: float
    scores: list[float | None]

    @property
    def mean(self) -> float:
        """Mean IoU over the runs that are there."""
        return statistics.fmean(self.known)

    @property
    def known(self) -> list[float]:
        """The scores that are there."""
        return [score for score in self.scores if score is not None]


@dataclass(frozen=True)
class Gain:
    """What a method brings beside labels.

    Attributes:
        id, title: the method's.
        mean: mean IoU over SupOnly's, as a fraction.
        of_room: that over what the other half of the labels brings; None where that is less than a point, or unknown.
    """

    id: str
    title: str
    mean: float
    of_room: float | None


@dataclass(frozen=True)
class LabelCurve:
    """What labels and methods bring.

    Attributes:
        shares: the smallest first; all labels are the last.
        room: SupOnly with all labels over SupOnly with half of them, pairs of the same fold or seed; None for none.
        gains: of each method that has been run.
    """

    shares: list[Share]
    room: Difference | None
    gains: list[Gain]

    @property
    def tells(self) -> bool:
        """Whether there is room enough to measure by."""
        return self.room is not None and self.room.mean >= POINT


def label_curve(found: Sequence[Found]) -> LabelCurve | None:
    """Of what has been run; None without SupOnly with all labels, or with fewer."""
    of_suponly = [f for f in found if f.done and (f.arm.id == BASE or f.arm.share < 1)]
    if len(of_suponly) < 2 or of_suponly[0].arm.id != BASE:
        return None
    shares = [_share(f) for f in sorted(of_suponly, key=lambda f: f.arm.share)]
    half = next((_share(f).scores for f in of_suponly if f.arm.id == HALF), None)
    room = difference(shares[-1].scores, half) if half else None
    known = room.mean if room and room.mean >= POINT else None
    methods = [f for f in found if f.verdict]
    gains = [Gain(f.arm.id, f.arm.title, f.gain.mean, known and f.gain.mean / known) for f in methods]
    return LabelCurve(shares, room, gains)


def _share(found: Found) -> Share:
    number = statistics.fmean(run["num_labelled"] for run in found.done)
    return Share(found.arm.title, found.arm.share, number, mean_iou([run or {} for run in found.runs], "last"))


def label_rows(curve: LabelCurve) -> list[list[str]]:
    """A head, and a row per share: labelled images and mean IoU in per cent."""
    told = [[s.title, f"{s.number:.0f}", percent(s.scores), deviation(s.scores)] for s in curve.shares]
    return [["", "labelled images", "mean IoU", "±"], *told]


def label_lines(curve: LabelCurve) -> list[str]:
    """What the last doubling of the labels brought, and what each method brings beside it."""
    room = curve.room
    if room is None:
        lines = [f"What {OTHER_HALF} brings is not known: SupOnly with half of them was not run."]
    else:
        spread = "" if room.deviation is None else f" ± {100 * room.deviation:.1f}"
        too_little = "" if curve.tells else ", less than one: too little to measure methods by"
        lines = [f"{OTHER_HALF.capitalize()} brings SupOnly {points(room.mean)}{spread} points{too_little}."]
    for gain in curve.gains:
        # A loss is no part of what labels bring.
        is_part = gain.of_room is not None and gain.mean > 0
        part = f", {100 * gain.of_room:.0f} % of what {OTHER_HALF} brings" if is_part else ""
        lines.append(f"{gain.title}: {points(gain.mean)} points{part}.")
    return lines


def label_facts(curve: LabelCurve | None) -> dict | None:
    """The numbers, for JSON."""
    if curve is None:
        return None
    shares = []
    for s in curve.shares:
        spread = statistics.stdev(s.known) if len(s.known) > 1 else None
        of_runs = {"mean": s.mean, "deviation": spread, "each": s.scores}
        shares.append({"share": float(s.share), "labelled": s.number} | of_runs)
    room = curve.room and {"mean": curve.room.mean, "deviation": curve.room.deviation, "each": curve.room.each}
    methods = {g.id: {"gain": g.mean, "of_last_doubling": g.of_room} for g in curve.gains}
    return {"suponly": shares, "last_doubling": room, "methods": methods}


def curve_lines(curve: LabelCurve) -> dict[str, list[tuple[float, float]]]:
    """Points (labelled images, mean IoU in per cent) of a picture: SupOnly's curve, and each method at all labels.

    Where there is room, two more: where SupOnly would be if another doubling brought as much as the last one.
    """
    last = curve.shares[-1]
    number, mean = last.number, 100 * last.mean
    lines = {last.title: [(s.number, 100 * s.mean) for s in curve.shares]}
    lines |= {gain.title: [(number, mean + 100 * gain.mean)] for gain in curve.gains}
    further = [(number, mean), (2 * number, mean + 100 * curve.room.mean)] if curve.tells else None
    return lines | ({FURTHER: further} if further else {})
