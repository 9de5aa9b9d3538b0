"""Render the cards and tables in model_cards/ again, from the results.json beside them.

    python training_scripts/render_cards.py
    python training_scripts/render_cards.py runs/demo_suponly_seed0 runs/demo_u2pl_seed0

With runs, their facts and curves are taken into the collection first, and with --pictures the images of their last
evaluation; pass it only where these may be shown. No number in a card is typed by hand. The last line on stdout,
where that is no terminal, is one JSON object with the cards and those that have changed.
"""

import argparse
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.measure.card_collection import add_run, write_collection
from u2pl_hf.measure.tables import read_table

TABLES = Path(__file__).resolve().parent / "tables"
COLLECTION = Path(__file__).resolve().parents[1] / "model_cards"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="output folders of finished runs to add")
    parser.add_argument("--model_cards", type=Path, default=COLLECTION, metavar="DIR", help="default: model_cards/")
    parser.add_argument("--pictures", action="store_true", help="take the pictures of the runs as well")
    return parser.parse_args()


@exits_on_input_error
def main() -> None:
    """Add, render, print what changed."""
    args = parse_arguments()
    if not args.runs and not args.model_cards.is_dir():
        raise InputError(f"--model_cards {args.model_cards} does not exist; pass the folder with the cards")
    names = {run.resolve(): run.resolve().name for run in args.runs}
    if twice := [run for run, name in names.items() if list(names.values()).count(name) > 1]:
        raise InputError(f"{twice[0]} and {twice[1]} have one name, and so would their cards: rename one of them")
    for run in args.runs:
        add_run(run, args.model_cards, ("curves", "pictures")[: 1 + args.pictures])
    tables = [read_table(path) for path in sorted(TABLES.glob("*.yaml"))]
    changed = {_name(path) for path in write_collection(args.model_cards, tables)}
    cards = sorted(path.parent.name for path in args.model_cards.glob("*/results.json"))
    told = f"{len(cards)} cards, changed: {', '.join(sorted(changed)) or 'none'}"
    print_result({"cards": cards, "changed": sorted(changed)}, told, as_json=args.json)


def _name(path: Path) -> str:
    """Of a card its folder, of a table its file."""
    return path.parent.name if path.name == "README.md" else path.name


if __name__ == "__main__":
    main()
