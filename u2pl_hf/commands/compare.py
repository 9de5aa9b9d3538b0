"""Find out whether unlabelled images pay on data of one's own, or put finished runs side by side.

    python training_scripts/compare.py --dataset data/photos --unlabelled_dataset more_photos --output_dir runs/compare
    python training_scripts/compare.py runs/demo_suponly_seed0 runs/demo_robust_seed0 --picture differ.png

With --dataset: SupOnly and other methods are trained with the same steps from one recipe, on folds of the labelled
images, or with several seeds where the data have a validation set; then OUTPUT_DIR/compare.html tells what came of it,
by a rule that it states, and compare.json the same as numbers. Stopped in any way, the same command goes on. Options of
training for every run come at the end, after --, such as -- --max_steps 2000. The table goes to stderr; the last line
on stdout, where that is no terminal, is one JSON object.
"""

import argparse
import functools
import sys
from fractions import Fraction
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, number, print_result, split_at_dashes
from u2pl_hf.data.sources import subset_names
from u2pl_hf.errors import TrainingError, exits_on_input_error, refuse, require
from u2pl_hf.evaluation.differing import draw_differing
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.outputs import check_file, check_writable
from u2pl_hf.files import write_atomically
from u2pl_hf.hub.results import finished_results
from u2pl_hf.markdown import one_line
from u2pl_hf.measure.comparison import BASE
from u2pl_hf.measure.comparison_page import score_rows, verdict_lines, write_page
from u2pl_hf.measure.comparison_runs import RECIPES, Comparison, first_arguments
from u2pl_hf.measure.label_curve import label_curve, label_lines, label_rows
from u2pl_hf.measure.queue import run_all
from u2pl_hf.measure.side_by_side import aligned, class_rows, rows_of
from u2pl_hf.training.inputs import load_training_data
from u2pl_hf.training.recipe.command import parse_arguments as parse_run

COLUMNS = ("method", "num_labelled", "num_unlabelled", "seed", "max_steps", "seconds", "last", "best", "best at step")
METHODS = ("suponly", "u2pl:robust", "u2pl_ael", "fixmatch")
# What is repeated where nothing is told.
FOLDS, SEEDS = 3, (0, 1, 2)
# Options of training that a comparison decides -> its own.
OWN = {"dataset": "--dataset", "split": "--split", "unlabelled_dataset": "--unlabelled_dataset", "seed": "--seeds",
       "fold": "--folds", "method": "--methods", "variant": "--methods NAME:VARIANT", "output_dir": "--output_dir",
       "plan": "--list", "labelled_share": "--label_shares"}  # fmt: skip


def fraction(text: str) -> Fraction:
    """0.3 or 3/10, exactly."""
    try:
        return Fraction(text)
    except ZeroDivisionError as error:
        raise ValueError(f"{text} divides by zero") from error


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = ScriptParser(description=__doc__)
    add, several = parser.add_argument, number(int, at_least=2, at_most=100)
    add("runs", nargs="*", type=Path, help="output folders of finished runs, to put side by side")
    add("--picture", type=Path, metavar="FILE", help="draw the evaluation images that RUNS judge most differently")
    add("--dataset", help="folder that u2pl prepare made, Hub id, or demo: train the methods on it and compare them")
    add("--unlabelled_dataset", nargs="+", default=[], metavar="DIR", help="further images, used as unlabelled")
    add("--split", default="all", help="which images are labelled, as for training (default: all that have a label)")
    told = f"what all runs share (default: {RECIPES[True]} on a GPU, {RECIPES[False]} without)"
    add("--recipe", help=told)
    add("--methods", nargs="+", default=list(METHODS), metavar="M", help=f"NAME or NAME:VARIANT ({' '.join(METHODS)})")
    add("--folds", type=several, metavar="N", help="parts of the labelled images (3, where there is no validation set)")
    add(
        "--seeds", nargs="+", type=number(int), metavar="S", help="of the runs (0 1 2, where there is a validation set)"
    )
    share, told = number(fraction, above=0, below=1), "of the labels, for SupOnly as well (default: 1/4 1/2)"
    add("--label_shares", nargs="+", type=share, metavar="S", help=f"{told}; 1/2 says whether there is room")
    told = "without the controls: SupOnly with twice the steps, with shares of the labels, with copy-paste"
    add("--quick", action="store_true", help=told)
    add("--then_train", action="store_true", help="at the end, train the winner on all labels: OUTPUT_DIR/final")
    add("--list", action="store_true", help="start nothing: write the page of what is finished")
    add("--output_dir", type=Path, default=Path("runs/compare"), metavar="DIR", help="default: runs/compare")
    add("--jobs", type=number(int, at_least=1), default=1, metavar="N", help="runs at a time (default: 1)")
    words, told = split_at_dashes(argv)
    args = parser.parse_args(words)
    own = next(
        (name for word in told if (name := word.removeprefix("--").partition("=")[0]) in OWN and name != word), None
    )
    changed = (name for name, value in vars(args).items() if value != parser.get_default(name))
    trained = next((name for name in changed if name not in ("runs", "picture", "dataset", "json")), None)
    refuse([
        (args.runs and args.dataset, "pass finished runs, or --dataset to train some, not both"),
        (not args.runs and not args.dataset, "pass folders of finished runs, or --dataset with images of your own"),
        (args.runs and told, f"-- {' '.join(told[:1])} is for runs that are trained: it needs --dataset"),
        (args.runs and trained, f"--{trained} is for runs that are trained: it needs --dataset"),
        (args.picture and not args.runs, "--picture is of finished runs; the page has one of those that are trained"),
        (args.picture and args.picture.suffix != ".png", f"--picture {args.picture} must end in .png"),
        (args.folds and args.seeds, "--folds and --seeds both say what is repeated: pass one of them"),
        (args.quick and args.label_shares, "--quick leaves SupOnly with --label_shares out: pass one of them"),
        (own, f"-- --{own} is decided here: pass compare's own {OWN.get(own)}"),
        (bool(told) and not told[0].startswith("--"), f"-- {' '.join(told[:1])} is none of u2pl train's options"),
    ])  # fmt: skip
    args.told = told
    return args


def side_by_side(args: argparse.Namespace) -> None:
    """The table of finished runs, a column for each, and the pictures' paths."""
    folders = list({folder.resolve(): folder for folder in args.runs}.values())
    names = [folder.resolve().name for folder in folders]
    # By their paths where two folders have one name.
    named = {str(f) if names.count(f.resolve().name) > 1 else f.resolve().name: f for f in folders}
    runs = {name: finished_results(folder) for name, folder in named.items()}
    if args.picture:
        draw_runs(named, runs, args.picture)
    groups = [(name, [results]) for name, results in runs.items()]
    classes = [[f"  {one_line(name)}", *ious] for name, *ious in class_rows(groups, 2)]
    told = [f"\n{aligned([*zip(*rows_of(groups, COLUMNS), strict=True), *classes])}\n"]
    told += [f"pictures: {named[name] / run['pictures']}" for name, run in runs.items() if run.get("pictures")]
    summary = {name: {k: r.get(k) for k in ("method", "seed", "seconds", "best", "last")} for name, r in runs.items()}
    print_result(summary, "\n".join(told), as_json=args.json)


def draw_runs(folders: dict[str, Path], results: dict[str, dict], path: Path) -> None:
    """What the runs make of the evaluation images of the first one that they judge most differently.

    Raises:
        InputError: a run has other classes, or the data of the first one are not there.
    """
    name, *others = folders
    for other in others:
        same = results[other]["class_names"] == results[name]["class_names"]
        require(same, f"--picture: {folders[other]} has other classes than {folders[name]}; leave one of them out")
    check_file(path, "--picture")
    arguments = parse_run([str(folders[name] / "recipe.yaml")], "")
    data, models = load_training_data(arguments), {name: load_model(str(run)) for name, run in folders.items()}
    sheet = draw_differing(models, data.evaluation, data.class_names, arguments.evaluation)
    write_atomically(path, functools.partial(sheet.save, format="PNG"))


def comparison_of(args: argparse.Namespace) -> Comparison:
    """What is to be run.

    Raises:
        InputError: something of it cannot be used; nothing has been started.
    """
    data = {"dataset": args.dataset, "split": args.split}
    data |= {"unlabelled_dataset": args.unlabelled_dataset} if args.unlabelled_dataset else {}
    run = first_arguments(args.recipe, data, args.told)
    has_validation = run.eval_subset in subset_names(run.dataset, run.dataset_revision, streaming=run.streaming)
    folds = args.folds or (FOLDS if not args.seeds and not has_validation else 0)
    told = f"--seeds needs a subset {run.eval_subset}, which {args.dataset} has not: pass --folds N"
    require(has_validation or folds, told)
    cases = [{"fold": f"{k}/{folds}", "seed": 0} for k in range(1, folds + 1)]
    cases = cases or [{"seed": seed} for seed in dict.fromkeys(args.seeds or SEEDS)]
    how = {"recipe": args.recipe, "told": args.told, "jobs": args.jobs}
    how |= {"controls": not args.quick, "shares": args.label_shares}
    return Comparison(args.output_dir, data, args.methods, cases, has_validation=has_validation, **how)


def words(comparison: Comparison, facts: dict) -> str:
    """For the terminal."""
    found = comparison.weighed()
    labels = label_curve(found)
    told = [aligned(label_rows(labels)), "\n".join(label_lines(labels))] if labels else []
    parts = [aligned(score_rows(found)), "\n".join(verdict_lines(found)), *told, facts["headline"], facts["page"]]
    return "\n\n".join(["", *parts])


def train_methods(args: argparse.Namespace) -> None:
    """Queue what is not there yet, then write the page."""
    comparison, problem, program = comparison_of(args), None, ["-m", "u2pl_hf", "train"]
    check_writable(args.output_dir, "--output_dir")
    missing, logs = comparison.missing(), args.output_dir / "logs"
    if missing and not args.list:
        try:
            run_all(program, {name: comparison.commands[name] for name in missing}, logs, args.jobs)
        except TrainingError as error:
            # What was measured is shown all the same.
            problem = error
    facts = {"dataset": args.dataset} | write_page(comparison, f"Do unlabelled images pay on {args.dataset}?")
    if args.then_train and not facts["missing"] and not args.list:
        arm = next(arm for arm in comparison.arms if arm.id == (facts["winner"] or BASE))
        final = args.output_dir / "final"
        print(f"training {arm.title} on all labels: {final}", file=sys.stderr)
        facts["final"] = str(final)
        try:
            run_all(program, {"final": comparison.command(arm, comparison.alone, final)}, logs)
        except TrainingError as error:
            problem = error
    print_result(facts, words(comparison, facts), as_json=args.json)
    if problem:
        raise problem


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Train and compare, or compare what is there."""
    args = parse_arguments(argv)
    side_by_side(args) if args.runs else train_methods(args)
