"""Measure a table: queue its runs, pass over the finished ones, render the table from what they wrote.

    python training_scripts/run_table.py training_scripts/tables/demo.yaml --jobs 2

A table is a YAML file of rows, each a recipe with options and seeds; training_scripts/tables has the project's. What
runs say goes to OUTPUT_DIR/logs. Stopped in any way, the same command goes on. With --model_cards the finished runs are
taken into the collection, where table and cards are rendered from their JSON. The table goes to stderr, one JSON line
to stdout.
"""

import argparse
import json
import sys
from pathlib import Path

from u2pl_hf.errors import exits_on_input_error
from u2pl_hf.hub.card_collection import add_run, write_collection
from u2pl_hf.hub.exported import read_results
from u2pl_hf.hub.tables import Row, read_table, render_table
from u2pl_hf.training.run_queue import is_finished, option_words, run_all

SCRIPTS = Path(__file__).resolve().parent
TABLES = SCRIPTS / "tables"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="YAML file; see training_scripts/tables")
    parser.add_argument("--dataset", help="data set in place of the recipes' own")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/tables"), metavar="DIR", help="default: runs/tables"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs beside each other (default: 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="rows to run (default: all)")
    parser.add_argument("--list", action="store_true", help="say what there is to do, and do nothing")
    parser.add_argument("--model_cards", type=Path, metavar="DIR", help="collection to add finished runs to")
    return parser.parse_args()


def run_arguments(args: argparse.Namespace, name: str, row: Row, seed: int) -> list[str]:
    """What train_u2pl.py is called with for one run."""
    options = row.options | ({"dataset": args.dataset} if args.dataset else {})
    place = str(options.get("dataset", ""))
    filled = {key: value.format(dataset=place) if isinstance(value, str) else value for key, value in options.items()}
    filled |= {"seed": seed, "output_dir": args.output_dir / name}
    return [str(SCRIPTS / "recipes" / row.recipe), *option_words(filled)]


@exits_on_input_error
def main() -> None:
    """Run what is not there yet, then show the table."""
    args = parse_arguments()
    table = read_table(args.table)
    chosen = {name: run for name, run in table.runs().items() if not args.only or run[0].id in args.only}
    arguments = {name: run_arguments(args, name, *run) for name, run in chosen.items()}
    to_do = {name: words for name, words in arguments.items() if not is_finished(words)}
    try:
        if not args.list and to_do:
            run_all([str(SCRIPTS / "train_u2pl.py")], to_do, args.output_dir / "logs", args.jobs)
    finally:
        found = {name: facts for name in table.runs() if (facts := read_results(args.output_dir / name)) is not None}
        print(f"\n{render_table(table, found)}", file=sys.stderr)
    if args.model_cards:
        first = min(seed for _, seed in table.runs().values())
        for name in found:
            # One seed's are enough for a repository.
            shown = ("curves", "pictures")[: 1 + table.pictures] if table.runs()[name][1] == first else ()
            add_run(args.output_dir / name, args.model_cards, shown)
        write_collection(args.model_cards, [read_table(path) for path in sorted(TABLES.glob("*.yaml"))])
    print(
        json.dumps({"table": table.name, "finished": list(found), "to_do": [n for n in table.runs() if n not in found]})
    )


if __name__ == "__main__":
    main()
