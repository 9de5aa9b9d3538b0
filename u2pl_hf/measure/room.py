"""What a table can tell: how much more labels would bring, which share of that each method brings, and from when on.

Rows are (name, facts of its runs). A row's base is SupOnly with the same labels and steps; the ceiling is SupOnly with
all labels.
"""

import statistics
from collections.abc import Mapping, Sequence

from u2pl_hf.measure.side_by_side import Groups, mean_iou
from u2pl_hf.measure.verdict import difference, points

# Below it, differences between seeds hide what methods bring.
LEAST_ROOM = 0.08
CANNOT_TELL = "cannot tell"
HEAD = ["", "labelled", "over SupOnly", "each seed", "share of the room", "ahead from"]


def is_suponly(runs: Sequence[dict]) -> bool:
    """Whether a row is of plain SupOnly; with copy-paste it is weighed as methods are."""
    return runs[0].get("method") == "suponly" and not (runs[0].get("settings") or {}).get("copy_paste_probability")


def base_of(groups: Groups, runs: Sequence[dict]) -> Sequence[dict] | None:
    """SupOnly's runs with the same labels and steps as a method's."""
    alike = (base for _, base in _bases(groups) if _alike(base, runs))
    return None if is_suponly(runs) else next(alike, None)


def room_lines(groups: Groups) -> list[str]:
    """A sentence for each number of labels: SupOnly there, with all labels, and the room between them."""
    told = [_told(runs, _ceiling(groups, runs)) for _, runs in _bases(groups)] if room_rows(groups)[1:] else []
    return list(dict.fromkeys(told))


def _told(base: Sequence[dict], ceiling: Sequence[dict] | None) -> str:
    labelled = base[0]["num_labelled"]
    if ceiling is None:
        return "SupOnly with all labels was not measured: what labels can bring is not known."
    room, most = _room(base, ceiling), ceiling[0]["num_labelled"]
    low, high = (f"{100 * _mean(runs):.1f}" for runs in (base, ceiling))
    told = (
        f"SupOnly ends at {low} with {labelled:,} labels and at {high} with {most:,}: room for {100 * room:.1f} points"
    )
    if room >= LEAST_ROOM:
        return f"{told}."
    return f"{told}, under {100 * LEAST_ROOM:.0f}, so this {CANNOT_TELL} what a method that saves labels is worth."


def room_rows(groups: Groups) -> list[list[str]]:
    """`HEAD`, and a row for each method that stands beside a SupOnly of the same labels and steps."""
    rows = [HEAD]
    for name, runs in groups:
        base = base_of(groups, runs)
        gain = base and difference(*_paired(runs, base))
        if gain:
            each = " ".join(map(points, gain.each))
            rows.append([name, str(runs[0]["num_labelled"]), points(gain.mean), each])
            rows[-1] += [_share(gain.mean, base, _ceiling(groups, base)), ahead_from(runs, base)]
    return rows


def ahead_from(runs: Sequence[dict], base: Sequence[dict]) -> str:
    """`crossing` in words: "never" where a method ends below SupOnly, "-" where there is no curve."""
    at = crossing(runs, base)
    if at is None:
        return "never" if mean_curve(runs).keys() & mean_curve(_of_seeds(runs, base)).keys() else "-"
    return f"{at:,} images"


def crossing(runs: Sequence[dict], base: Sequence[dict]) -> int | None:
    """From how many labelled images on a method's mean curve stays above SupOnly's, at the evaluations of both.

    SupOnly's is that of the same seeds.
    """
    own, other = mean_curve(runs), mean_curve(_of_seeds(runs, base))
    seen = sorted(own.keys() & other.keys())
    below = max((at for at in seen if own[at] <= other[at]), default=-1)
    return next((at for at in seen if at > below), None)


def mean_curve(runs: Sequence[dict]) -> dict[int, float]:
    """Labelled images seen -> mean IoU, the mean over those runs that have a curve, where all of them have a point."""
    curves = [_curve(run) for run in runs if run.get("curve")]
    seen = sorted(set.intersection(*map(set, curves))) if curves else []
    return {at: statistics.fmean(curve[at] for curve in curves) for at in seen}


def _curve(run: Mapping) -> dict[int, float]:
    processes = (run.get("hardware") or {}).get("processes") or 1
    images = (run.get("batch_size_labelled") or 1) * processes * (run.get("gradient_accumulation_steps") or 1)
    return {step * images: value for step, value in run["curve"]}


def _share(gain: float, base: Sequence[dict], ceiling: Sequence[dict] | None) -> str:
    if ceiling is None:
        return "-"
    room = _room(base, ceiling)
    return CANNOT_TELL if room < LEAST_ROOM else f"{100 * gain / room:.0f} %"


def _bases(groups: Groups) -> list[tuple[str, Sequence[dict]]]:
    return [(name, runs) for name, runs in groups if is_suponly(runs) and runs[0].get("split") != "all"]


def _ceiling(groups: Groups, base: Sequence[dict]) -> Sequence[dict] | None:
    found = (runs for _, runs in groups if is_suponly(runs) and runs[0].get("split") == "all")
    return next((runs for runs in found if runs[0].get("max_steps") == base[0].get("max_steps")), None)


def _alike(a: Sequence[dict], b: Sequence[dict]) -> bool:
    return all(a[0].get(fact) == b[0].get(fact) for fact in ("num_labelled", "max_steps"))


def _of_seeds(runs: Sequence[dict], base: Sequence[dict]) -> list[dict]:
    seeds = {run.get("seed") for run in runs}
    return [run for run in base if run.get("seed") in seeds]


def _paired(runs: Sequence[dict], base: Sequence[dict]) -> tuple[list[float | None], list[float | None]]:
    """Mean IoU of both for the seeds of `runs`."""
    of_seed = {run.get("seed"): run for run in base}
    return mean_iou(runs, "last"), mean_iou([of_seed.get(run.get("seed"), {}) for run in runs], "last")


def _room(base: Sequence[dict], ceiling: Sequence[dict]) -> float:
    return _mean(ceiling) - _mean(base)


def _mean(runs: Sequence[dict]) -> float:
    return statistics.fmean(score for score in mean_iou(runs, "last") if score is not None)
