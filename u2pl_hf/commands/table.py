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

from u2pl_hf.command_line import ScriptParser, number, print_result, split_at_dashes
from u2pl_hf.errors import InputError, TrainingError, exits_on_input_error, refusing, require
from u2pl_hf.measure.collection import add_run, evaluations, write_collection
from u2pl_hf.measure.queue import option_words, run_all
from u2pl_hf.measure.tables import Table, TableRow, project_tables, read_table, render_table
from u2pl_hf.resources import find_resource, resource_folder
from u2pl_hf.training.recipe.command import parse_arguments as parse_run
from u2pl_hf.training.run.run_folder import RunFolder


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("table", type=Path, help="YAML file; see training_scripts/tables")
    add("--dataset", help="data set in place of the recipes' own")
    add("--output_dir", type=Path, default=Path("runs/tables"), metavar="DIR", help="default: runs/tables")
    add("--jobs", type=number(int, at_least=1), default=1, metavar="N", help="runs at a time (default: 1)")
    add("--only", nargs="+", default=[], metavar="ID", help="rows to run (default: all)")
    add("--list", action="store_true", help="start nothing: show what is finished and say what is left")
    add("--model_cards", type=Path, metavar="DIR", help="collection to add finished runs to")
    words, options = split_at_dashes(argv)
    return parser.parse_args(words, argparse.Namespace(options=options))


def run_arguments(args: argparse.Namespace, name: str, row: TableRow, seed: int) -> list[str]:
    """What train_u2pl.py is called with for one run.

    Raises:
        InputError: the row needs a data set, and none is given.
    """
    options = row.options | ({"dataset": args.dataset} if args.dataset else {})
    text = json.dumps(options, default=str)
    is_told = "{dataset}" not in text or options.get("dataset")
    require(is_told, f"table {args.table} is about a data set: pass --dataset")
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
            folder = RunFolder(parse_run(words, ""))
            folder.check()
            results = folder.finished_results()
        except InputError as error:
            raise InputError(f"table {table.name}, row {table.runs()[name][0].id}: {error}") from error
        if results is not None:
            found[name] = results | evaluations(folder.path)
    return found


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, then show the table."""
    args = parse_arguments(argv)
    table = read_table(find_resource(args.table, "tables"))
    ids = [row.id for row in table.rows]
    unknown = next((name for name in args.only if name not in ids), None)
    require(unknown is None, f"--only {unknown} is no row of {args.table}, whose rows are {' '.join(ids)}")
    # It would become one more value of a row's last option.
    stray = next((word for word in args.options[:1] if not word.startswith("--")), None)
    require(stray is None, f"-- {stray} is no option: pass some of train_u2pl.py's, such as -- --max_steps 500")
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
        with refusing(OSError, f"--model_cards {args.model_cards} cannot be written to"):
            for name in found:
                add_run(args.output_dir / name, args.model_cards, tables)
            write_collection(args.model_cards, tables)
    if problem:
        raise problem
    left = [name for name in chosen if name not in found]
    print_result({"table": table.name, "finished": list(found), "to_do": left}, as_json=args.json)
