"""Put finished runs side by side: mean IoU best and last, IoU per class, seconds.

    python training_scripts/compare.py runs/demo_suponly_seed0 runs/demo_u2pl_seed0

The table goes to stderr; the last line on stdout, where that is no terminal, is the same as JSON.
"""

from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import exits_on_input_error
from u2pl_hf.hub.results import finished_results
from u2pl_hf.markdown import one_line
from u2pl_hf.measure.side_by_side import aligned, class_rows, rows_of

COLUMNS = ("method", "num_labelled", "num_unlabelled", "seed", "max_steps", "seconds", "last", "best", "best at step")


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Print the table, a column for each run, and the pictures' paths."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of finished runs")
    args = parser.parse_args(argv)
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
