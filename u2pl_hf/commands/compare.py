"""Find out whether unlabelled images pay on data of one's own, or put finished runs side by side.

    python training_scripts/compare.py --dataset data/photos --unlabelled_dataset more_photos --output_dir runs/compare
    python training_scripts/compare.py runs/demo_suponly_seed0 runs/demo_u2pl_seed0

With --dataset: SupOnly and other methods are trained with the same steps from one recipe, on folds of the labelled
images, or with several seeds where the data have a validation set; then OUTPUT_DIR/compare.html tells what came of it,
by a rule that it states, and compare.json the same as numbers. Stopped in any way, the same command goes on. Options of
training for every run come at the end, after --, such as -- --max_steps 2000. The table goes to stderr; the last line
on stdout, where that is no terminal, is one JSON object.
"""

import argparse
import functools
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from u2pl_hf.command_line import ScriptParser, number, print_result, split_at_dashes
from u2pl_hf.data.sources import load_source
from u2pl_hf.errors import InputError, TrainingError, exits_on_input_error, refuse, require
from u2pl_hf.evaluation.curves import draw_panels, read_metrics
from u2pl_hf.evaluation.folding import folded
from u2pl_hf.evaluation.inference import predict_all
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.outputs import check_writable
from u2pl_hf.evaluation.pictures import contact_sheet, overlay
from u2pl_hf.files import write_atomically, write_text
from u2pl_hf.hub.results import finished_results
from u2pl_hf.markdown import one_line
from u2pl_hf.measure import comparison_page
from u2pl_hf.measure.comparison import BASE, HALF, TWICE, Arm, Found, arms_of, best_of, case_name, headline, weigh
from u2pl_hf.measure.queue import option_words, run_all
from u2pl_hf.measure.side_by_side import aligned, class_rows, rows_of
from u2pl_hf.training.inputs import load_training_data
from u2pl_hf.training.recipe.command import parse_arguments as parse_run
from u2pl_hf.training.run.run_folder import RunFolder
from u2pl_hf.training.weights.backbones import backbone_config

COLUMNS = ("method", "num_labelled", "num_unlabelled", "seed", "max_steps", "seconds", "last", "best", "best at step")
METHODS = ("suponly", "u2pl:robust", "fixmatch")
RECIPES = {True: "own_data_dinov2_suponly", False: "own_data_cpu_suponly"}
# Evaluations of a run, which make its curve; images on the page.
EVALUATIONS, SHOWN = 5, 4


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = ScriptParser(description=__doc__)
    add, several = parser.add_argument, number(int, at_least=2, at_most=100)
    add("runs", nargs="*", type=Path, help="output folders of finished runs, to put side by side")
    add("--dataset", help="folder that u2pl prepare made, Hub id, or demo: train the methods on it and compare them")
    add("--unlabelled_dataset", nargs="+", default=[], metavar="DIR", help="further images, used as unlabelled")
    add("--split", default="all", help="which images are labelled, as for training (default: all that have a label)")
    told = "what all runs share (default: own_data_dinov2_suponly on a GPU, own_data_cpu_suponly without)"
    add("--recipe", help=told)
    add("--methods", nargs="+", default=list(METHODS), metavar="M", help=f"NAME or NAME:VARIANT ({' '.join(METHODS)})")
    add("--folds", type=several, metavar="N", help="parts of the labelled images (3, where there is no validation set)")
    add(
        "--seeds", nargs="+", type=number(int), metavar="S", help="of the runs (0 1 2, where there is a validation set)"
    )
    add("--quick", action="store_true", help="without SupOnly with twice the steps, and with half of the labels")
    add("--then_train", action="store_true", help="at the end, train the winner on all labels: OUTPUT_DIR/final")
    add("--list", action="store_true", help="start nothing: write the page of what is finished")
    add("--output_dir", type=Path, default=Path("runs/compare"), metavar="DIR", help="default: runs/compare")
    add("--jobs", type=number(int, at_least=1), default=1, metavar="N", help="runs at a time (default: 1)")
    words, told = split_at_dashes(argv)
    args = parser.parse_args(words)
    args.told = told
    refuse([
        (args.runs and args.dataset, "pass finished runs, or --dataset to train some, not both"),
        (not args.runs and not args.dataset, "pass folders of finished runs, or --dataset with images of your own"),
        (args.runs and told, f"-- {' '.join(told[:1])} is for runs that are trained: it needs --dataset"),
        (args.folds and args.seeds, "--folds and --seeds both say what is repeated: pass one of them"),
        (bool(told) and not told[0].startswith("--"), f"-- {' '.join(told[:1])} is none of u2pl train's options"),
    ])  # fmt: skip
    return args


def side_by_side(args: argparse.Namespace) -> None:
    """The table of finished runs, a column for each, and the pictures' paths."""
    folders = list({folder.resolve(): folder for folder in args.runs}.values())
    names = [folder.resolve().name for folder in folders]
    # By their paths where two folders have one name.
    named = {str(f) if names.count(f.resolve().name) > 1 else f.resolve().name: f for f in folders}
    runs = {name: finished_results(folder) for name, folder in named.items()}
    groups = [(name, [results]) for name, results in runs.items()]
    classes = [[f"  {one_line(name)}", *ious] for name, *ious in class_rows(groups, 2)]
    told = [f"\n{aligned([*zip(*rows_of(groups, COLUMNS), strict=True), *classes])}\n"]
    told += [f"pictures: {named[name] / run['pictures']}" for name, run in runs.items() if run.get("pictures")]
    summary = {name: {k: r.get(k) for k in ("method", "seed", "seconds", "best", "last")} for name, r in runs.items()}
    print_result(summary, "\n".join(told), as_json=args.json)


class Comparison:
    """What is to be run, and what was found.

    Args:
        args: the command line.

    Raises:
        InputError: data, recipe, methods or options cannot be used; nothing has been started.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, args.output_dir
        has_validation = _has_validation(args)
        folds = args.folds or (3 if not args.seeds and not has_validation else 0)
        self.cases = [{"fold": f"{k}/{folds}", "seed": 0} for k in range(1, folds + 1)]
        self.cases = self.cases or [{"seed": seed} for seed in dict.fromkeys(args.seeds or (0, 1, 2))]
        require(
            has_validation or folds, f"--seeds needs a validation set, which {args.dataset} has not: pass --folds N"
        )
        self.evaluated_alone = {} if has_validation else {"fold": "all"}
        self.recipe = args.recipe or RECIPES[torch.cuda.is_available()]
        self.words = self._shared_words()
        self.arms = arms_of(args.methods, self.words, controls=not args.quick)
        self.commands = {
            case_name(arm, case): self.command(arm, case, case_name(arm, case))
            for case in self.cases
            for arm in self.arms
        }
        self._check()

    def _shared_words(self) -> list[str]:
        args = self.args
        data = {"dataset": args.dataset, "split": args.split}
        data |= {"unlabelled_dataset": args.unlabelled_dataset} if args.unlabelled_dataset else {}
        words = [self.recipe, *option_words(data | {"trackers": "none", "picture_samples": 0})]
        if args.jobs > 1:
            words += option_words({"cpu_threads": max(1, (os.cpu_count() or 1) // args.jobs)})
        steps = parse_run([*words, *args.told, "--method", BASE], "").max_steps
        return [*words, *option_words({"eval_steps": max(1, steps // EVALUATIONS)}), *args.told]

    def command(self, arm: Arm, case: Mapping, name: str) -> list[str]:
        """What training is called with for one run."""
        return [*self.words, *option_words({**arm.options, **case, "output_dir": self.folder / name})]

    def _check(self) -> None:
        """All that a run would refuse before it starts, of each arm's first case."""
        for name, words in self.commands.items():
            try:
                RunFolder(parse_run(words, "")).check()
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        first = [parse_run(self.commands[case_name(arm, self.cases[0])], "") for arm in self.arms]
        backbone_config(first[0])
        load_training_data(next((args for args in first if args.step_class.uses_unlabelled), first[0]))

    def results(self, name: str) -> dict | None:
        """results.json of a finished run."""
        return RunFolder(parse_run(self.commands[name], "")).finished_results()

    def weighed(self) -> list[Found]:
        """Each arm beside SupOnly, as far as it has been run."""
        found = {arm.id: [self.results(case_name(arm, case)) for case in self.cases] for arm in self.arms}
        return weigh(self.arms, found)

    def missing(self) -> list[str]:
        """Names of the runs that are not finished."""
        return [name for name in self.commands if self.results(name) is None]


def _has_validation(args: argparse.Namespace) -> bool:
    """Whether the data have a subset to evaluate on; train is opened first, so that a wrong name is told as such."""
    load_source(args.dataset, "train")
    try:
        load_source(args.dataset, "validation")
    except InputError:
        return False
    return True


def draw_curves(comparison: Comparison, found: Sequence[Found], path: Path) -> None:
    """Mean IoU over the steps, each arm's mean over its cases at the steps that all of them have."""
    lines = {}
    for f in (f for f in found if f.done):
        names = [case_name(f.arm, case) for case, run in zip(comparison.cases, f.runs, strict=True) if run]
        curves = [_curve(comparison.folder / name / "metrics.jsonl") for name in names]
        steps = sorted(set.intersection(*map(set, curves)))
        lines[f.arm.title] = [(step, 100 * sum(curve[step] for curve in curves) / len(curves)) for step in steps]
    last = max((step for line in lines.values() for step, _ in line), default=1)
    figure = draw_panels({"mean IoU, per cent": lines}, last)
    figure.set_size_inches(9, 4)
    write_atomically(path, functools.partial(figure.savefig, format="png"))


def _curve(path: Path) -> dict[int, float]:
    return {line["step"]: line["eval_mean_iou"] for line in read_metrics(path) if line.get("eval_mean_iou") is not None}


def draw_pictures(comparison: Comparison, found: Sequence[Found], path: Path) -> None:
    """Images that the first case's runs have not seen: image, mask, and what each method predicts."""
    shown = [f for f in found if f.runs[0] is not None and f.arm.id not in (TWICE, HALF)]
    first, names = comparison.cases[0], [case_name(f.arm, comparison.cases[0]) for f in shown]
    data = load_training_data(parse_run(comparison.command(comparison.arms[0], first, names[0]), ""))
    source = data.evaluation
    rows = sorted({round(k * (len(source.ids) - 1) / max(SHOWN - 1, 1)) for k in range(SHOWN)})
    images, models = (
        [source.read_image(row) for row in rows],
        [folded(load_model(str(comparison.folder / n))) for n in names],
    )
    palette, cells = models[0].config.palette, []
    for row, image in zip(rows, images, strict=True):
        cells += [(source.ids[row], image), ("mask", overlay(image, source.read_label(row), palette, 0.7))]
        for f, model in zip(shown, models, strict=True):
            (prediction,) = predict_all(model, [image], with_entropy=False)
            cells.append((f.arm.title, overlay(image, prediction.labels, palette, 0.7)))
    sheet = contact_sheet(cells, palette, data.class_names, columns=2 + len(shown))
    write_atomically(path, functools.partial(sheet.save, format="PNG"))


def next_steps(comparison: Comparison, found: Sequence[Found]) -> list[dict[str, str]]:
    """What to do with it, with the commands."""
    args, chosen = comparison.args, best_of(found)
    arm = next(a for a in comparison.arms if a.id == (chosen or BASE))
    train = ["train", *comparison.command(arm, {"seed": 0} | comparison.evaluated_alone, "final")]
    steps = [{"words": f"train {arm.title} on all labels", "command": shlex.join(["u2pl", *train])}]
    kinds = {f.verdict.kind for f in found if f.verdict}
    if chosen is None and "too early" in kinds:
        longer = 2 * parse_run([*comparison.words, "--method", BASE], "").max_steps
        again = ["compare", "--dataset", args.dataset, "--output_dir", f"{args.output_dir}_{longer}"]
        steps.insert(0, {"words": f"compare with more steps: the same command with -- --max_steps {longer}",
                         "command": shlex.join(["u2pl", *again, "--", "--max_steps", str(longer)])})  # fmt: skip
    return steps


def write_page(comparison: Comparison) -> dict:
    """Curves, pictures, compare.json and compare.html of what is finished; gives the summary."""
    found, missing, folder = comparison.weighed(), comparison.missing(), comparison.folder
    curves = pictures = None
    if found[0].done:
        curves = "curves.png"
        draw_curves(comparison, found, folder / curves)
    if found[0].runs[0]:
        pictures = "pictures.png"
        draw_pictures(comparison, found, folder / pictures)
    facts = summary(comparison, found, missing)
    page = comparison_page.render(
        f"Do unlabelled images pay on {Path(comparison.args.dataset).name}?",
        found,
        about=about(comparison),
        missing=missing,
        further=next_steps(comparison, found),
        circumstances=circumstances(comparison, found),
        curves=curves,
        pictures=pictures,
    )
    write_text(folder / "compare.json", json.dumps(facts, indent=1) + "\n")
    write_text(folder / "compare.html", page)
    return facts


def about(comparison: Comparison) -> str:
    """What the numbers are means of."""
    number = len(comparison.cases)
    over = f"{number} folds of the labelled images, each scored by a model that has not seen it"
    if "fold" not in comparison.cases[0]:
        over = f"seeds {' '.join(str(case['seed']) for case in comparison.cases)}, scored on the validation set"
    return (
        f"Means over {over}; ± is the standard deviation. The same steps and images for all, unless the name says else."
    )


def circumstances(comparison: Comparison, found: Sequence[Found]) -> str:
    """Recipe and options, and on what it was computed."""
    places = {run["hardware"]["name"] for f in found for run in f.done}
    return (
        f"Recipe and options: {shlex.join(comparison.words)}. Measured on {', '.join(sorted(places)) or 'nothing yet'}."
    )


def summary(comparison: Comparison, found: Sequence[Found], missing: Sequence[str]) -> dict:
    """The numbers, as JSON."""
    arms = {}
    for f in found:
        gain = f.gain and {"mean": f.gain.mean, "deviation": f.gain.deviation, "each": f.gain.each}
        scores = {which: [run and run[which]["mean_iou"] for run in f.runs] for which in ("last", "best")}
        hurt = {"verdict": f.verdict.kind, "words": f.verdict.words, "hurt": f.verdict.hurt} if f.verdict else {}
        arms[f.arm.id] = {"title": f.arm.title, **scores, "gain": gain, **hurt}
    told = {"dataset": comparison.args.dataset, "headline": headline(found), "winner": best_of(found), "arms": arms}
    told |= {"cases": comparison.cases, "missing": list(missing)}
    return told | {"page": str(comparison.folder / "compare.html")}


def words(comparison: Comparison, facts: dict) -> str:
    """For the terminal."""
    found = comparison.weighed()
    lines = [aligned(comparison_page.score_rows(found)), *comparison_page.verdict_lines(found), facts["page"]]
    return "\n\n".join(["", *lines])


def train_methods(args: argparse.Namespace) -> None:
    """Queue what is not there yet, then write the page."""
    comparison, problem = Comparison(args), None
    check_writable(args.output_dir, "--output_dir")
    missing = comparison.missing()
    if missing and not args.list:
        try:
            run_all(
                ["-m", "u2pl_hf", "train"],
                {n: comparison.commands[n] for n in missing},
                args.output_dir / "logs",
                args.jobs,
            )
        except TrainingError as error:
            # What was measured is shown all the same.
            problem = error
    facts = write_page(comparison)
    if args.then_train and not facts["missing"] and not args.list:
        arm = next(a for a in comparison.arms if a.id == (facts["winner"] or BASE))
        print(f"training {arm.title} on all labels: {args.output_dir / 'final'}", file=sys.stderr)
        final = comparison.command(arm, {"seed": 0} | comparison.evaluated_alone, "final")
        run_all(["-m", "u2pl_hf", "train"], {"final": final}, args.output_dir / "logs")
        facts["final"] = str(args.output_dir / "final")
    print_result(facts, words(comparison, facts), as_json=args.json)
    if problem:
        raise problem


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Train and compare, or compare what is there."""
    args = parse_arguments(argv)
    side_by_side(args) if args.runs else train_methods(args)
