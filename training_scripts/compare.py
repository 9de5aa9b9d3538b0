"""Put finished runs side by side: mean IoU best and last, IoU per class, seconds.

    python training_scripts/compare.py runs/demo_suponly_seed0 runs/demo_u2pl_seed0

The table goes to stderr; the last line on stdout, where that is no terminal, is the same as JSON.
"""

import argparse
import json
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import InputError, exits_on_input_error


def read_results(folder: Path) -> dict:
    """results.json of a finished run."""
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no finished run (no results.json); train it first")
    results = json.loads(path.read_text())
    if results["last"] is None:
        raise InputError(f"{folder} is the best model of a run; pass the run's own folder")
    return results


def table(runs: dict[str, dict]) -> str:
    """One column per run; IoU in percent, '-' for a class that neither prediction nor ground truth has."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    rows = [["", *runs]]
    rows.append(["method", *(r["method"] for r in runs.values())])
    rows.append(["labelled / unlabelled", *(f"{r['num_labelled']} / {r['num_unlabelled']}" for r in runs.values())])
    rows.append(["seed", *(str(r["seed"]) for r in runs.values())])
    rows.append(["steps", *(str(r["max_steps"]) for r in runs.values())])
    rows.append(["seconds", *(f"{r['seconds']:.0f}" for r in runs.values())])
    rows.append(
        ["mIoU best (step)", *(f"{percent(r['best']['mean_iou'])} ({r['best']['step']})" for r in runs.values())]
    )
    rows.append(["mIoU last", *(percent(r["last"]["mean_iou"]) for r in runs.values())])
    classes = dict.fromkeys(name for r in runs.values() for name in r["class_names"])
    for name in classes:
        rows.append([f"  {name}", *(percent(r["last"]["per_class_iou"].get(name)) for r in runs.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first, *(cell.strip().rjust(len(cell)) for cell in others)]))
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of finished runs")
    return parser.parse_args()


@exits_on_input_error
def main() -> None:
    """Print the table and the pictures' paths."""
    args = parse_arguments()
    folders = args.runs
    runs = {folder.name: read_results(folder) for folder in folders}
    told = [f"\n{table(runs)}\n"]
    for folder, results in zip(folders, runs.values(), strict=False):
        if results["pictures"]:
            told.append(f"pictures: {folder / results['pictures']}")
    summary = {name: {k: r[k] for k in ("method", "seed", "seconds", "best", "last")} for name, r in runs.items()}
    print_result(summary, "\n".join(told), as_json=args.json)


if __name__ == "__main__":
    main()
