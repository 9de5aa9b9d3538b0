"""The page of a comparison: verdict, tables, curves, pictures and what to do next."""

import functools
import json
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from u2pl_hf.evaluation.curves import draw_doublings, draw_panels, read_metrics
from u2pl_hf.evaluation.differing import draw_differing
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.files import write_atomically, write_text
from u2pl_hf.measure.comparison import BASE, Found, best_of, case_name, headline
from u2pl_hf.measure.comparison_runs import Comparison
from u2pl_hf.measure.label_curve import FURTHER, curve_lines, label_curve, label_facts, label_lines, label_rows
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


def warning_lines(found: Sequence[Found]) -> list[str]:
    """What runs told of their health, each kind once per method, with the number of runs that told it."""
    lines = []
    for f in found:
        runs = [run.get("health") or () for run in f.done]
        told = Counter(kind for signs in runs for kind in {sign["kind"] for sign in signs})
        first = {sign["kind"]: sign for signs in reversed(runs) for sign in reversed(signs)}
        for kind, sign in first.items():
            alike = (other for signs in runs for other in signs if other["kind"] == kind)
            classes = dict.fromkeys(name for other in alike for name in other.get("classes", ()))
            others = [name for name in classes if name not in sign.get("classes", ())]
            more = f"; later, or in other runs, {', '.join(others)}" if others else ""
            lines.append(f"{f.arm.title}, {told[kind]} of {len(f.done)} runs: {sign['line']}{more}")
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
    label_picture: str | None,
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
        curves, label_picture, pictures: files beside the page.
    """
    labels = label_curve(found)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        headline=headline(found),
        verdicts=verdict_lines(found),
        missing=", ".join(missing),
        warnings=warning_lines(found),
        scores=score_rows(found),
        classes=class_rows(found),
        about=about,
        labels=label_rows(labels) if labels else None,
        label_lines=label_lines(labels) if labels else (),
        label_picture=label_picture,
        curves=curves,
        pictures=pictures,
        next=further,
        rule=RULE,
        circumstances=circumstances,
    )


def draw_curves(comparison: Comparison, found: Sequence[Found], path: Path) -> None:
    """Mean IoU over the steps, each arm's mean over its cases at the steps that all of them have."""
    lines = {}
    for f in (f for f in found if f.done):
        names = [case_name(f.arm, case) for case, run in zip(comparison.cases, f.runs, strict=True) if run]
        curves = [_curve(comparison.folder / name / "metrics.jsonl") for name in names]
        steps = sorted(set.intersection(*map(set, curves)))
        lines[f.arm.title] = [(step, 100 * statistics.fmean(curve[step] for curve in curves)) for step in steps]
    last = max((step for line in lines.values() for step, _ in line), default=1)
    figure = draw_panels({"mean IoU, per cent": lines}, last)
    figure.set_size_inches(11, 4)
    write_atomically(path, functools.partial(figure.savefig, format="png"))


def _curve(path: Path) -> dict[int, float]:
    return {line["step"]: line["eval_mean_iou"] for line in read_metrics(path) if line.get("eval_mean_iou") is not None}


def draw_pictures(comparison: Comparison, found: Sequence[Found], path: Path) -> None:
    """Images that the first case's runs have not seen and judge most differently: image, mask, each prediction."""
    shown = [f for f in found if f.runs[0] is not None and not f.arm.is_control]
    names = {f.arm.title: case_name(f.arm, comparison.cases[0]) for f in shown}
    models = {title: load_model(str(comparison.folder / name)) for title, name in names.items()}
    data, how = comparison.first_data(), comparison.arguments(next(iter(names.values()))).evaluation
    sheet = draw_differing(models, data.evaluation, data.class_names, how)
    write_atomically(path, functools.partial(sheet.save, format="PNG"))


def next_steps(comparison: Comparison, found: Sequence[Found]) -> list[dict[str, str]]:
    """What to do with it, with the commands."""
    chosen, data, final = best_of(found), comparison.data, comparison.folder / "final"
    arm = next(a for a in comparison.arms if a.id == (chosen or BASE))
    steps = []
    if chosen is None and "too early" in {f.verdict.kind for f in found if f.verdict}:
        longer = 2 * comparison.arguments(case_name(comparison.arms[0], comparison.cases[0])).max_steps
        told = f"compare again with more steps: the same command with another --output_dir and -- --max_steps {longer}"
        steps.append((told, None))
    train = ["train", *comparison.command(arm, comparison.alone, final)]
    steps.append((f"train {arm.title} on all labels", train))
    if "fold" in comparison.cases[0]:
        runs = [comparison.folder / case_name(comparison.arms[0], case) for case in comparison.cases]
        check = ["check-labels", "--dataset", data["dataset"], "--runs", *runs, "--output_dir", "checked"]
        steps.append(("see whether masks are wrong, by models that have not seen them", check))
    more = [*data.get("unlabelled_dataset", ()), data["dataset"]][0]
    choose = ["next", final, "--unlabelled", more, "--dataset", data["dataset"], "--split", data["split"]]
    told = "then label the images that would teach it most, and compare again"
    steps.append((told, [*choose, "--number", "20", "--output_dir", "to_label"]))
    return [{"words": told, "command": shlex.join(["u2pl", *map(str, c)]) if c else ""} for told, c in steps]


def write_page(comparison: Comparison, title: str) -> dict:
    """Curves, pictures, compare.json and compare.html of what is finished; gives what compare.json says."""
    found, missing, folder = comparison.weighed(), comparison.missing(), comparison.folder
    curves, labels = "curves.png" if found[0].done else None, label_curve(found)
    label_picture = "labels.png" if labels else None
    pictures = "pictures.png" if found[0].runs[0] else None
    if curves:
        draw_curves(comparison, found, folder / curves)
    if labels:
        lines = curve_lines(labels)
        figure = draw_doublings("mean IoU, per cent", lines, "labelled images", dashed=FURTHER)
        write_atomically(folder / label_picture, functools.partial(figure.savefig, format="png"))
    if pictures:
        draw_pictures(comparison, found, folder / pictures)
    facts = facts_of(comparison, found, missing)
    page = render(
        title,
        found,
        about=about(comparison),
        missing=missing,
        further=next_steps(comparison, found),
        circumstances=circumstances(comparison, found),
        curves=curves,
        label_picture=label_picture,
        pictures=pictures,
    )
    write_text(folder / "compare.json", json.dumps(facts, indent=1) + "\n")
    write_text(folder / "compare.html", page)
    return facts


def about(comparison: Comparison) -> str:
    """What the numbers are means of."""
    over = f"{len(comparison.cases)} folds of the labelled images, each scored by a model that has not seen it"
    if "fold" not in comparison.cases[0]:
        over = f"seeds {' '.join(str(case['seed']) for case in comparison.cases)}, scored on the validation set"
    return (
        f"Means over {over}; ± is the standard deviation. Steps and images are the same for all, unless the name tells."
    )


def circumstances(comparison: Comparison, found: Sequence[Found]) -> str:
    """Recipe and options, and on what it was computed."""
    places = sorted({run["hardware"]["name"] for f in found for run in f.done})
    told = shlex.join([*comparison.words, *comparison.told])
    return f"Recipe and options: {told}. Measured on {', '.join(places) or 'nothing yet'}."


def facts_of(comparison: Comparison, found: Sequence[Found], missing: Sequence[str]) -> dict:
    """The numbers, as JSON."""
    arms = {}
    for f in found:
        gain = f.gain and {"mean": f.gain.mean, "deviation": f.gain.deviation, "each": f.gain.each}
        scores = {which: [run and run[which]["mean_iou"] for run in f.runs] for which in ("last", "best")}
        judged = {"verdict": f.verdict.kind, "words": f.verdict.words, "hurt": f.verdict.hurt} if f.verdict else {}
        arms[f.arm.id] = {"title": f.arm.title, **scores, "gain": gain, **judged}
    told = {"headline": headline(found), "winner": best_of(found), "arms": arms, "cases": comparison.cases}
    told |= {"labels": label_facts(label_curve(found))}
    return told | {"missing": list(missing), "page": str(comparison.folder / "compare.html")}
