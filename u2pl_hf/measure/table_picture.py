"""The curves of a table over the labelled images that its rows have seen, and where methods pass SupOnly."""

import functools
from collections.abc import Sequence
from pathlib import Path

from u2pl_hf.evaluation.curves import COLOURS, DPI, plain
from u2pl_hf.files import write_atomically
from u2pl_hf.measure.room import base_of, crossing, is_suponly, mean_curve
from u2pl_hf.measure.side_by_side import Groups

WIDTH, HEIGHT = 860, 380  # pixels
DASHES = ("-", "--", ":")


def has_curves(groups: Groups) -> bool:
    """Whether there is anything to draw: a method's curve beside its SupOnly's."""
    bases = ((runs, base_of(groups, runs)) for _, runs in groups if not is_suponly(runs))
    return any(base and mean_curve(runs).keys() & mean_curve(base).keys() for runs, base in bases)


def save_table_curves(groups: Groups, path: Path) -> None:
    """Draw them into a PNG."""
    # Here, since it takes a while and most commands draw nothing; without pyplot, whose state is the process's.
    from matplotlib.figure import Figure

    figure = Figure((WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate((name, runs) for name, runs in groups if mean_curve(runs)):
        _draw(axes, number, name, runs, base_of(groups, runs))
    plain(axes, "mean IoU, per cent; a ring where a method passes SupOnly for good")
    axes.set_xlim(left=0)
    axes.set_xlabel("labelled images seen", loc="right")
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    write_atomically(path, functools.partial(figure.savefig, format="png"))


def _draw(axes, number: int, name: str, runs: Sequence[dict], base: Sequence[dict] | None) -> None:
    curve, plain = mean_curve(runs), is_suponly(runs)
    colour = "black" if plain else COLOURS[number % len(COLOURS)]
    dash = DASHES[number // len(COLOURS) % len(DASHES)] if not plain or number == 0 else "--"
    points = list(curve), [100 * value for value in curve.values()]
    label = f"{name} ({len(runs)} seed{'s' * (len(runs) > 1)})"
    axes.plot(*points, dash, color=colour, label=label, linewidth=2 if plain else 1.3)
    at = None if plain or base is None else crossing(runs, base)
    if at is not None:
        axes.plot([at], [100 * curve[at]], "o", color=colour, markerfacecolor="none", markersize=9)
