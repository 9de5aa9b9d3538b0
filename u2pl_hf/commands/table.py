"""Measure a table: queue its runs, pass over the finished ones, render the table from what they wrote.

    python training_scripts/run_table.py training_scripts/tables/demo.yaml --jobs 2

A table is a YAML file of rows, each a recipe with options and seeds; training_scripts/tables has the project's. What
runs say goes to OUTPUT_DIR/logs. Stopped in any way, the same command goes on. With --model_cards the finished runs are
taken into the records there, and the table is rendered from them. The table goes to stderr, one JSON line to stdout
where that is no terminal. Options of train_u2pl.py for every run come at the end, after --, such as
-- --backbone_weights FILE.
"""

import argparse
import json
import sys
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.errors import InputError, TrainingError, exits_on_input_error
from u2pl_hf.measure.collection import add_run, write_collection
from u2pl_hf.measure.queue import option_words, results_of, run_all
from u2pl_hf.measure.tables import Table, TableRow, project_tables, read_table, render_table
from u2pl_hf.resources import find_resource, resource_folder


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("table", type=Path, help="YAML file; see training_scripts/tables")
    parser.add_argument("--dataset", help="data set in place of the recipes' own")
    folder = Path("runs/tables")
    parser.add_argument("--output_dir", type=Path, default=folder, metavar="DIR", help="default: runs/tables")
    at_least_one = number(int, at_least=1)
    parser.add_argument("--jobs", type=at_least_one, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="rows to run (default: all)")
    parser.add_argument("--list", action="store_true", help="start nothing: show what is finished and say what is left")
    parser.add_argument("--model_cards", type=Path, metavar="DIR", help="collection to add finished runs to")
    # argparse itself takes what follows -- only where no option stands between it and the table.
    words = sys.argv[1:] if argv is None else argv
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end], argparse.Namespace(options=words[end + 1 :]))


def run_arguments(args: argparse.Namespace, name: str, row: TableRow, seed: int) -> list[str]:
    """What train_u2pl.py is called with for one run.

    Raises:
        InputError: the row needs a data set, and none is given.
    """
    options = row.options | ({"dataset": args.dataset} if args.dataset else {})
    text = json.dumps(options, default=str)
    if "{dataset}" in text and not options.get("dataset"):
        raise InputError(f"table {args.table} is about a data set: pass --dataset")
    options = json.loads(text.replace("{dataset}", json.dumps(str(options.get("dataset")))[1:-1]))
    last = option_words({"seed": seed, "output_dir": args.output_dir / name})
    return [str(resource_folder("recipes") / row.recipe), *option_words(options), *args.options, *last]


def finished_runs(table: Table, arguments: dict[str, list[str]]) -> dict[str, dict]:
    """Name -> results of the runs that are complete, with the very settings of the table.

    Raises:
        InputError: wrong arguments, or a folder that holds something else; names table and row.
    """
    found = {}
    for name, words in arguments.items():
        try:
            found[name] = results_of(words)
        except InputError as error:
            raise InputError(f"table {table.name}, row {table.runs()[name][0].id}: {error}") from error
    return {name: results for name, results in found.items() if results is not None}


def check_options(args: argparse.Namespace, table: Table) -> None:
    """Refuse rows that are not there, and what would become one more value of a row's last option.

    Raises:
        InputError: what to pass instead.
    """
    ids = [row.id for row in table.rows]
    if unknown := [name for name in args.only if name not in ids]:
        raise InputError(f"--only {unknown[0]} is no row of {args.table}, whose rows are {' '.join(ids)}")
    if args.options and not args.options[0].startswith("--"):
        raise InputError(f"-- {args.options[0]} is no option: pass some of train_u2pl.py's, such as -- --max_steps 500")


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, then show the table."""
    args = parse_arguments(argv)
    table = read_table(find_resource(args.table, "tables"))
    check_options(args, table)
    arguments = {name: run_arguments(args, name, *run) for name, run in table.runs().items()}
    chosen = [name for name, (row, _) in table.runs().items() if not args.only or row.id in args.only]
    found, problem = finished_runs(table, arguments), None
    to_do = {name: arguments[name] for name in chosen if name not in found}
    if to_do and not args.list:
        try:
            run_all(["-m", "u2pl_hf", "train"], to_do, args.output_dir / "logs", args.jobs)
        except TrainingError as error:
            # What was measured is shown, and kept, all the same.
            problem = error
        found = finished_runs(table, arguments)
    print(f"\n{render_table(table, found)}", file=sys.stderr)
    if args.model_cards and found:
        tables = [table, *(other for other in project_tables() if other.name != table.name)]
        try:
            for name in found:
                add_run(args.output_dir / name, args.model_cards, tables)
            write_collection(args.model_cards, tables)
        except OSError as error:
            raise InputError(f"--model_cards {args.model_cards} cannot be written to ({error.strerror})") from error
    if problem:
        raise problem
    left = [name for name in chosen if name not in found]
    print_result({"table": table.name, "finished": list(found), "to_do": left}, as_json=args.json)
