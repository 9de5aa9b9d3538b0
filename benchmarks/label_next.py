"""Whether labels of the images that `u2pl next` chooses are worth more than labels of random ones.

    python benchmarks/label_next.py CAMVID --labelled CAMVID/splits/23/labeled.txt --output_dir runs/label_next

All images of the data set have labels, which are taken for missing. For each seed a model is trained with the labels of
the list; it chooses as many more images again, by each strategy; with both together a model is trained in the same way
from the start. What is finished is passed over, so the same command goes on. A table of mean IoU in per cent goes to
stderr, and results.json to the folder. Options of training for all runs come at the end, after --.
"""

import argparse
import statistics
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, number, print_result, split_at_dashes
from u2pl_hf.data.source.id_lists import read_ids
from u2pl_hf.errors import exits_on_input_error, require
from u2pl_hf.files import write_json, write_text
from u2pl_hf.measure.queue import option_words, run_all
from u2pl_hf.measure.side_by_side import aligned
from u2pl_hf.resources import find_resource
from u2pl_hf.training.recipe.command import parse_arguments as parse_run
from u2pl_hf.training.run.run_folder import RunFolder

START, TRAIN, NEXT = "start", ["-m", "u2pl_hf", "train"], ["-m", "u2pl_hf", "next"]


def parse_arguments() -> argparse.Namespace:
    """The command line; what follows -- is for training."""
    parser = ScriptParser(description=__doc__)
    add, positive = parser.add_argument, number(int, at_least=1)
    add("dataset", help="a data set with labels of all its training images")
    add("--labelled", type=Path, required=True, metavar="FILE", help="ids of the images that are labelled at the start")
    add("--number", type=positive, help="how many to label then (as many as there are)")
    add("--recipe", type=Path, default=Path("voc_imagenet_suponly"), help="default: voc_imagenet_suponly")
    add("--strategies", nargs="+", default=["score", "random"], help="of u2pl next (score random)")
    add("--seeds", type=positive, default=3, help="how many (3)")
    add("--jobs", type=positive, default=1, help="runs at a time (1)")
    add("--output_dir", type=Path, default=Path("runs/label_next"), help="default: runs/label_next")
    words, options = split_at_dashes(None)
    return parser.parse_args(words, argparse.Namespace(options=options))


def train_all(args: argparse.Namespace, lists: dict[str, tuple[Path, int]]) -> dict[str, float]:
    """Train with each list of labelled images and its seed, by name, what is not trained yet; the last mean IoU.

    Raises:
        InputError: a folder holds another run, or a run is refused.
        TrainingError: runs failed.
    """
    words = {}
    for name, (split, seed) in lists.items():
        own = {"dataset": args.dataset, "split": split, "seed": seed, "output_dir": args.output_dir / name}
        words[name] = [str(find_resource(args.recipe, "recipes")), *args.options, *option_words(own)]
    folders = {name: RunFolder(parse_run(own, "")) for name, own in words.items()}
    for folder in folders.values():
        folder.check()
    to_do = {name: words[name] for name, folder in folders.items() if folder.finished_results() is None}
    if to_do:
        run_all(TRAIN, to_do, args.output_dir / "logs", args.jobs)
    return {name: folder.finished_results()["last"]["mean_iou"] for name, folder in folders.items()}


def choose_all(args: argparse.Namespace, how_many: int) -> dict[str, tuple[Path, int]]:
    """Let each seed's first model choose by each strategy; lists of all that is labelled then, with their seeds."""
    known, lists, to_do = read_ids(args.labelled), {}, {}
    names = {f"{way}_seed{seed}": (way, seed) for way in args.strategies for seed in range(args.seeds)}
    for name, (way, seed) in names.items():
        own = {"unlabelled": args.dataset, "dataset": args.dataset, "split": args.labelled, "number": how_many}
        own |= {"strategy": way, "seed": seed, "output_dir": args.output_dir / f"next_{name}"}
        if not (own["output_dir"] / "next.txt").is_file():
            to_do[f"next_{name}"] = [str(args.output_dir / f"{START}_seed{seed}"), *option_words(own)]
    if to_do:
        run_all(NEXT, to_do, args.output_dir / "logs", args.jobs)
    for name, (_, seed) in names.items():
        lists[name] = (args.output_dir / f"{name}.txt", seed)
        chosen = read_ids(args.output_dir / f"next_{name}" / "next.txt")
        write_text(lists[name][0], "".join(f"{line}\n" for line in [*known, *chosen]))
    return lists


def table(scores: dict[str, list[float]], labels: dict[str, int]) -> str:
    """A row for each way of labelling: mean IoU of each seed in per cent, mean and standard deviation."""
    seeds = [f"seed {seed}" for seed in range(max(map(len, scores.values())))]
    rows = [("", "labels", *seeds, "mean", "+-")]
    for name, own in scores.items():
        own = [100 * score for score in own]
        spread = f"{statistics.stdev(own):.2f}" if len(own) > 1 else "-"
        rows.append((name, str(labels[name]), *(f"{s:.2f}" for s in own), f"{statistics.mean(own):.2f}", spread))
    return aligned(rows)


@exits_on_input_error
def main() -> None:
    """Train, choose, train, tell."""
    args = parse_arguments()
    require(args.labelled.is_file(), f"--labelled {args.labelled} is no file: pass a list of ids, one per line")
    known = len(read_ids(args.labelled))
    how_many = args.number or known
    starts = {f"{START}_seed{seed}": (args.labelled, seed) for seed in range(args.seeds)}
    found = train_all(args, starts)
    found |= train_all(args, choose_all(args, how_many))
    ways = [START, *args.strategies]
    scores = {way: [found[f"{way}_seed{seed}"] for seed in range(args.seeds)] for way in ways}
    labels = {way: known + (way != START) * how_many for way in ways}
    result = {"dataset": args.dataset, "labels": labels, "options": args.options, "mean_iou": scores}
    write_json(args.output_dir / "results.json", result)
    print_result(result, table(scores, labels), as_json=args.json)


if __name__ == "__main__":
    main()
