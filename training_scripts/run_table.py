"""Measure a table: queue its runs, pass over the finished ones, render the table from what they wrote.

    python training_scripts/run_table.py training_scripts/tables/demo.yaml --jobs 2

A table is a YAML file of rows, each a recipe with options and seeds; training_scripts/tables has the project's. What
runs say goes to OUTPUT_DIR/logs. Stopped in any way, the same command goes on. With --model_cards the finished runs are
taken into the collection, where table and cards are rendered from their JSON. The table goes to stderr, one JSON line
to stdout where that is no terminal. Options of train_u2pl.py for every run come at the end, after --, such as
-- --backbone_weights FILE.
"""

import argparse
import sys
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import InputError, TrainingError, exits_on_input_error
from u2pl_hf.hub.exported import TableResults, finished_results
from u2pl_hf.measure.card_collection import add_run, write_collection
from u2pl_hf.measure.queue import is_finished, option_words, run_all
from u2pl_hf.measure.tables import Row, Table, read_table, render_table

SCRIPTS = Path(__file__).resolve().parent
TABLES = SCRIPTS / "tables"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("table", type=Path, help="YAML file; see training_scripts/tables")
    parser.add_argument("--dataset", help="data set in place of the recipes' own")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/tables"), metavar="DIR", help="default: runs/tables"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs beside each other (default: 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="rows to run (default: all)")
    parser.add_argument("--list", action="store_true", help="start nothing: show what is finished and say what is left")
    parser.add_argument("--model_cards", type=Path, metavar="DIR", help="collection to add finished runs to")
    # argparse itself takes what follows -- only where no option stands between it and the table.
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end], argparse.Namespace(options=words[end + 1 :]))


def run_arguments(args: argparse.Namespace, name: str, row: Row, seed: int) -> list[str]:
    """What train_u2pl.py is called with for one run.

    Raises:
        InputError: the row needs a data set, and none is given.
    """
    options = row.options | ({"dataset": args.dataset} if args.dataset else {})
    place = options.get("dataset")

    def filled(value):
        if isinstance(value, list):
            return [filled(item) for item in value]
        if not isinstance(value, str) or "{dataset}" not in value:
            return value
        if place is None:
            raise InputError(f"table {args.table} is about a data set: pass --dataset")
        return value.replace("{dataset}", str(place))

    options = {key: filled(value) for key, value in options.items()}
    last = option_words({"seed": seed, "output_dir": args.output_dir / name})
    return [str(SCRIPTS / "recipes" / row.recipe), *option_words(options), *args.options, *last]


def finished_runs(table: Table, arguments: dict[str, list[str]], folder: Path) -> dict[str, dict]:
    """Name -> results of the runs that are complete, with the very settings of the table.

    Raises:
        InputError: wrong arguments, or a folder that holds something else; names table and row.
    """
    found = {}
    for name, words in arguments.items():
        try:
            if is_finished(words):
                found[name] = finished_results(folder / name, TableResults)
        except InputError as error:
            raise InputError(f"table {table.name}, row {table.runs()[name][0].id}: {error}") from error
    return found


def add_cards(table: Table, found: dict[str, dict], args: argparse.Namespace) -> None:
    """Take finished runs into the collection, and render it again.

    Raises:
        InputError: it cannot be written.
    """
    paths = {path.stem: path for path in sorted(TABLES.glob("*.yaml"))} | {table.name: args.table}
    first = min(seed for _, seed in table.runs().values())
    try:
        for name in found:
            # One seed's are enough for a repository.
            shown = ("curves", "pictures")[: 1 + table.pictures] if table.runs()[name][1] == first else ()
            add_run(args.output_dir / name, args.model_cards, shown)
        write_collection(args.model_cards, [read_table(path) for path in paths.values()])
    except OSError as error:
        raise InputError(f"--model_cards {args.model_cards} cannot be written to ({error.strerror})") from error


@exits_on_input_error
def main() -> None:
    """Run what is not there yet, then show the table."""
    args = parse_arguments()
    table = read_table(args.table)
    ids = [row.id for row in table.rows]
    unknown = [name for name in args.only if name not in ids]
    if unknown:
        raise InputError(f"--only {unknown[0]} is no row of {args.table}, whose rows are {' '.join(ids)}")
    if args.options and not args.options[0].startswith("--"):
        # It would become one more value of the row's last option.
        raise InputError(f"-- {args.options[0]} is no option: pass some of train_u2pl.py's, such as -- --max_steps 500")
    arguments = {name: run_arguments(args, name, *run) for name, run in table.runs().items()}
    chosen = [name for name, (row, _) in table.runs().items() if not args.only or row.id in args.only]
    found, problem = finished_runs(table, arguments, args.output_dir), None
    to_do = {name: arguments[name] for name in chosen if name not in found}
    if to_do and not args.list:
        try:
            run_all([str(SCRIPTS / "train_u2pl.py")], to_do, args.output_dir / "logs", args.jobs)
        except TrainingError as error:
            # What was measured is shown, and kept, all the same.
            problem = error
        found = finished_runs(table, arguments, args.output_dir)
    print(f"\n{render_table(table, found)}", file=sys.stderr)
    if args.model_cards and found:
        add_cards(table, found, args)
    if problem:
        raise problem
    left = [name for name in chosen if name not in found]
    print_result({"table": table.name, "finished": list(found), "to_do": left}, as_json=args.json)


if __name__ == "__main__":
    main()
