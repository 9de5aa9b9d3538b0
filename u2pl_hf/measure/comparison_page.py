"""The page of a comparison: verdict, tables, curves, pictures and what to do next."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from u2pl_hf.measure.comparison import Found, headline
from u2pl_hf.measure.side_by_side import deviation, mean_iou, percent
from u2pl_hf.measure.verdict import RULE, Difference, points

TEMPLATE = Path(__file__).with_name("comparison.html")


def score_rows(found: Sequence[Found]) -> list[list[str]]:
    """A head, and a row per arm: last and best mean IoU, differences to SupOnly, minutes and memory."""
    head = ["", "last", "±", "best", "over SupOnly", "±", "each", "minutes", "memory, MB"]
    return [head, *(_score_row(f) for f in found if f.done)]


def _score_row(found: Found) -> list[str]:
    last, runs = mean_iou(found.done, "last"), found.done
    gain, memory = found.gain, [run["peak_memory_mb"] for run in runs if run.get("peak_memory_mb")]
    return [
        found.arm.title,
        percent(last),
        deviation(last),
        percent(mean_iou(runs, "best")),
        points(gain.mean) if gain else "",
        f"{100 * gain.deviation:.1f}" if gain and gain.deviation is not None else "",
        " ".join(map(points, gain.each)) if gain else "",
        f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f}",
        f"{max(memory):,}" if memory else "",
    ]


def class_rows(found: Sequence[Found]) -> list[list[str]]:
    """A head, and a row per class: SupOnly's mean IoU in per cent, and each arm's difference to it in points."""
    base, *others = found
    names = base.done[0]["class_names"] if base.done else []
    head = ["class", base.arm.title, *(f.arm.title for f in others if f.done)]

    def own(name: str) -> str:
        return percent([(run["last"].get("per_class_iou") or {}).get(name) for run in base.done], 1)

    return [
        head,
        *([name, own(name), *(_class_cell(f.classes.get(name), f) for f in others if f.done)] for name in names),
    ]


def _class_cell(d: Difference | None, found: Found) -> str:
    if d is None:
        return "-"
    spread = "" if d.deviation is None else f" ± {100 * d.deviation:.1f}"
    return f"{points(d.mean)}{spread}"


def verdict_lines(found: Sequence[Found]) -> list[str]:
    """A sentence per method, with the classes that it hurts."""
    lines = []
    for f in found:
        if f.verdict:
            hurt = f"; hurts these classes: {', '.join(f.verdict.hurt)}" if f.verdict.hurt else ""
            lines.append(f"{f.arm.title}: {f.verdict.kind}, {f.verdict.words}{hurt}")
    return lines


def render(
    title: str,
    found: Sequence[Found],
    *,
    about: str,
    missing: Sequence[str],
    further: Sequence[Mapping[str, str]],
    circumstances: str,
    curves: str | None,
    pictures: str | None,
) -> str:
    """HTML; all text is escaped.

    Args:
        title: of the page.
        found: SupOnly first.
        about: what the numbers are means of.
        missing: names of runs that are not there.
        further: what to do next: `words`, and a `command` where there is one.
        circumstances: recipe, hardware, versions.
        curves, pictures: files beside the page.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        headline=headline(found),
        verdicts=verdict_lines(found),
        missing=", ".join(missing),
        scores=score_rows(found),
        classes=class_rows(found),
        about=about,
        curves=curves,
        pictures=pictures,
        next=further,
        rule=RULE,
        circumstances=circumstances,
    )
