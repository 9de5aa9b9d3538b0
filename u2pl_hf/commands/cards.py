"""Render the tables and cards in model_cards/ again, from the records beside them.

    python training_scripts/render_cards.py
    python training_scripts/render_cards.py runs/demo_suponly_seed0 runs/demo_robust_seed0

With runs, their facts are taken first into the records of the table that they belong to. A run of no table gets a card
in a folder of its own, with its curves; so does any run with --pictures, with the images of its last evaluation: pass
it only where these may be shown. No number is typed by hand. The last line on stdout, where that is no terminal, is one
JSON object with the cards, and the cards and tables that have changed.
"""

from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import exits_on_input_error, refusing, require
from u2pl_hf.measure.collection import add_run, write_collection
from u2pl_hf.measure.tables import project_tables


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Add, render, print what changed."""
    parser, collection = ScriptParser(description=__doc__), Path("model_cards")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="output folders of finished runs to add")
    parser.add_argument("--model_cards", type=Path, default=collection, metavar="DIR", help="default: model_cards/")
    parser.add_argument("--pictures", action="store_true", help="show the runs in cards with their pictures")
    args = parser.parse_args(argv)
    there = args.runs or args.model_cards.is_dir()
    require(there, f"--model_cards {args.model_cards} does not exist; pass the folder with the cards")
    runs, tables = {}, project_tables()
    for run in args.runs:
        first = runs.setdefault(run.resolve().name, run)
        told = f"{first} and {run} have one name, and so would their cards: rename one of them"
        require(first.resolve() == run.resolve(), told)
    with refusing(OSError, f"--model_cards {args.model_cards} cannot be written to"):
        for run in runs.values():
            add_run(run, args.model_cards, tables, pictures=args.pictures)
        written = write_collection(args.model_cards, tables)
    changed = sorted(path.parent.name if path.name == "README.md" else path.name for path in written)
    cards = sorted(path.parent.name for path in args.model_cards.glob("*/README.md"))
    told = f"{len(cards)} cards, changed: {', '.join(changed) or 'none'}"
    print_result({"cards": cards, "changed": changed}, told, as_json=args.json)
