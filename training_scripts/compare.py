"""Put finished runs side by side: mean IoU best and last, IoU per class, seconds.

    python training_scripts/compare.py runs/demo_suponly_seed0 runs/demo_u2pl_seed0

The table goes to stderr; the last line on stdout, where that is no terminal, is the same as JSON.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import exits_on_input_error
from u2pl_hf.hub.exported import TableResults, finished_results
from u2pl_hf.markdown import one_line


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Runs by the names of their folders, or by their paths where two have one name."""
    folders = list({folder.resolve(): folder for folder in folders}.values())
    names = [folder.resolve().name for folder in folders]
    return {str(f) if names.count(f.resolve().name) > 1 else f.resolve().name: f for f in folders}


def table(runs: dict[str, dict]) -> str:
    """One column per run; IoU in percent, '-' for a class that neither prediction nor ground truth has."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    told = {
        "": lambda name, r: name,
        "method": lambda name, r: r.get("method") or "-",
        "labelled / unlabelled": lambda name, r: f"{r['num_labelled']} / {r.get('num_unlabelled', '-')}",
        "seed": lambda name, r: str(r["seed"]),
        "steps": lambda name, r: str(r["max_steps"]),
        "seconds": lambda name, r: f"{r['seconds']:.0f}",
        "mIoU best (step)": lambda name, r: f"{percent(r['best']['mean_iou'])} ({r['best'].get('step', '-')})",
        "mIoU last": lambda name, r: percent(r["last"]["mean_iou"]),
    }
    rows = [[title, *(tell(name, r) for name, r in runs.items())] for title, tell in told.items()]
    classes = dict.fromkeys(name for r in runs.values() for name in r["class_names"])
    for name in classes:
        cells = (percent(r["last"]["per_class_iou"].get(name)) for r in runs.values())
        rows.append([f"  {one_line(name)}", *cells])
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
    folders = named(args.runs)
    runs = {name: finished_results(folder, TableResults) for name, folder in folders.items()}
    told = [f"\n{table(runs)}\n"]
    told += [f"pictures: {folders[name] / run['pictures']}" for name, run in runs.items() if run.get("pictures")]
    summary = {name: {k: r.get(k) for k in ("method", "seed", "seconds", "best", "last")} for name, r in runs.items()}
    print_result(summary, "\n".join(told), as_json=args.json)


if __name__ == "__main__":
    main()
