"""The curves of a run as one picture: mean IoU on the left, losses on the right."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Required, TypedDict

import numpy as np

from u2pl_hf.files import read_json_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 560, 300, 100  # of a panel, in pixels
GRID = "#e2e2e2"
LEGEND_COLUMNS = 4
# Told apart by people who see no difference between red and green (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# A running mean over this share of the logged steps is what a loss's line shows.
SMOOTHING = 1 / 40
Points = Sequence[tuple[float, float]]  # step, value


class Metrics(TypedDict, total=False):
    """A line of metrics.jsonl: a step's losses and what else was measured, or an evaluation."""

    step: Required[int]
    eval_mean_iou: float | None


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last one that was not finished is left out.

    Raises:
        InputError: another line is damaged.
    """
    return [content for _, content in metrics_lines(path)]


def metrics_lines(path: Path) -> list[tuple[str, dict]]:
    """As `read_metrics`, each with its text."""
    return read_json_lines(path, Metrics, strict=False, unfinished=True)


def save_curves(metrics_path: Path, path: Path) -> None:
    """Draw a metrics.jsonl into a PNG."""
    draw_curves(read_metrics(metrics_path)).savefig(path, format="png")


def draw_curves(metrics: Sequence[dict]) -> "Figure":
    """Two panels: mean IoU in per cent at each evaluation, and the losses as running means.

    Args:
        metrics: lines of metrics.jsonl, each with `step`, and `eval_mean_iou` (a fraction or None) or losses.
    """
    last_step = max([line["step"] for line in metrics if line["step"] > 0], default=1)
    scores = [(step, 100 * value) for step, value in _points(metrics, "eval_mean_iou")]
    logged = [line for line in metrics if "eval_mean_iou" not in line]
    names = dict.fromkeys(name for line in logged for name in line if name.startswith("loss_"))
    losses = {name.removeprefix("loss_"): _running_mean(_points(logged, name)) for name in names}
    panels = {"mean IoU of the evaluation set, per cent": {"mean IoU": scores}, "losses": losses}
    figure = draw_panels(panels, last_step)
    figure.axes[0].lines[0].set_marker("o")
    # A loss starts from 0; a mean IoU shows more if it does not.
    figure.axes[1].set_ylim(bottom=0)
    return figure


def draw_panels(panels: Mapping[str, Mapping[str, Points]], last_step: int) -> "Figure":
    """Panels beside each other, each with a title and lines over the steps 0 to `last_step`.

    Args:
        panels: title -> name of a line -> its points.
    """
    # Here, since it takes a while and most commands draw nothing; without pyplot, whose state is the process's.
    from matplotlib.figure import Figure

    figure = Figure((WIDTH * len(panels) / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw_lines(axes, title, lines)
        axes.set_xlim(0, last_step * 1.02)
        axes.set_xlabel("step", loc="right")
        axes.xaxis.set_major_formatter("{x:,.10g}")
        if len(lines) > 1:
            # Beside the title, so that it hides no curve.
            columns = min(len(lines), LEGEND_COLUMNS)
            axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=columns, frameon=False, fontsize="small")
    return figure


def draw_doublings(title: str, lines: Mapping[str, Points], x_label: str, *, dashed: str) -> "Figure":
    """A panel of lines, and of points where they are alone, over numbers of which each doubling is equally wide.

    Args:
        lines: name of a line -> its points.
        dashed: the name of a line that was not measured.
    """
    from matplotlib.figure import Figure

    figure = Figure((WIDTH * 1.5 / DPI, HEIGHT * 1.2 / DPI), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _draw_lines(axes, title, lines)
    axes.lines[0].set_marker("o")
    for line in axes.lines:
        if line.get_label() == dashed:
            line.set(linestyle="--", color=COLOURS[0])
    numbers = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [f"{x:,.0f}" for x in numbers])
    axes.minorticks_off()
    axes.set_xlabel(x_label, loc="right")
    figure.legend(loc="outside right", frameon=False, fontsize="small")
    return figure


def _draw_lines(axes: "Axes", title: str, lines: Mapping[str, Points]) -> None:
    # Dashed where the colours begin again.
    styles = [{"color": colour, "linestyle": style} for style in ("-", "--") for colour in COLOURS]
    for name, points, style in zip(lines, lines.values(), itertools.cycle(styles), strict=False):
        axes.plot(*np.reshape(points, (-1, 2)).T, label=name, marker="o" if len(points) == 1 else None, **style)
    plain(axes, title)


def plain(axes: "Axes", title: str) -> None:
    """A title on the left, lines across, and no frame."""
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis="y", color=GRID)
    axes.spines[["top", "left", "right"]].set_visible(False)


def _points(lines: Sequence[dict], name: str) -> list[tuple[float, float]]:
    """Step and value of each line that has a number there; what is larger was no loss, and no axis could show it."""
    found = [(line["step"], line.get(name)) for line in lines]
    return [(step, y) for step, y in found if isinstance(y, int | float) and math.isfinite(y) and abs(y) < 1e15]


def _running_mean(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    window = max(1, round(len(points) * SMOOTHING))
    ends = enumerate(points, 1)
    return [(step, fmean(y for _, y in points[max(0, end - window) : end])) for end, (step, _) in ends]
