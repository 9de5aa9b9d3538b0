"""Look at a data set before training: classes, sizes, light, bad files, and images that are there twice.

    python training_scripts/inspect_dataset.py data/photos --unlabelled_dataset more_photos --output_dir looks

Nothing is trained. The tables go to stderr; the last line on stdout, where that is no terminal, is the same as JSON.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

from tqdm.auto import tqdm

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.constants import default_palette
from u2pl_hf.data import overview
from u2pl_hf.data.duplicates import Looks, look_at, near_pairs
from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.evaluation.outputs import check_writable
from u2pl_hf.evaluation.pictures import contact_sheet, overlay
from u2pl_hf.files import write_atomically
from u2pl_hf.measure.side_by_side import aligned
from u2pl_hf.training.inputs import TrainingData, load_training_data
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.recipe.command import recipe_arguments

SUBSETS = ("labelled", "unlabelled", "validation")
# Pairs of subsets, worst first, and what to do about images that look alike.
ALIKE = {
    ("labelled", "validation"): "scores flatter: leave one of each out",
    ("unlabelled", "validation"): "scores flatter: take them out of the unlabelled ones",
    ("labelled", "labelled"): "each counts twice: leave one out, if they are the same",
}
# Of a run's options, those that say what the data are.
OPTIONS = ("dataset_revision", "train_subset", "eval_subset", "id_column", "image_column", "label_column", "split",
           "splits_dir", "seed", "unlabelled_dataset", "unlabelled_subset", "num_labels", "class_names")  # fmt: skip
# A method that takes unlabelled images, and the smallest crop; no other field counts where data are read.
ANY_RUN = {"method": "fixmatch", "crop_size": 33}
SHOWN, IN_SHEET = 20, 24


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What was asked for; options of training have its help, and None where they are not given."""
    parser, fields = ScriptParser(description=__doc__), {f.name: f for f in dataclasses.fields(RunArguments)}
    parser.add_argument("dataset", help="folder that u2pl prepare made, Hub id, or demo; see u2pl train")
    parser.add_argument("--output_dir", help="write inspect.png there: labelled images under their masks")
    for name in OPTIONS:
        is_list = fields[name].default is dataclasses.MISSING
        parser.add_argument(f"--{name}", nargs="+" if is_list else None, help=fields[name].metadata["help"])
    for name in ("drop_absent_ids", "streaming"):
        parser.add_argument(f"--{name}", action="store_true", default=None, help=fields[name].metadata["help"])
    return parser.parse_args(argv)


def load(args: argparse.Namespace, faults: dict[str, list[str]]) -> TrainingData:
    """The data as training reads them, but for bad images.

    Raises:
        InputError: as training would, in one line; bad images that were found before stand on stderr.
    """
    told = {name: value for name, value in vars(args).items() if value is not None}
    told = {"split": "all"} | {name: told[name] for name in told if name not in ("json", "output_dir")}
    try:
        return load_training_data(recipe_arguments(None, told | ANY_RUN), faults)
    except InputError:
        for line in fault_lines(faults):
            print(line, file=sys.stderr)
        raise


def look_at_all(data: TrainingData) -> dict[str, Looks]:
    """Read all images once, with a progress bar."""
    good = set(data.evaluation_labels.ids)
    scored = [row for row, name in enumerate(data.evaluation.ids) if name in good]
    train, further = (data.labelled_source, data.labelled), (data.unlabelled_source, data.unlabelled)
    places = (train, further, (data.evaluation, scored))
    with tqdm(total=sum(len(rows) for _, rows in places), desc="inspect", unit="image", leave=False) as bar:
        return {name: look_at(*place, bar.update) for name, place in zip(SUBSETS, places, strict=True)}


def alike(looks: dict[str, Looks]) -> tuple[dict[str, int], list[dict]]:
    """How many pairs of images look alike in each pair of subsets, and the nearest of them."""
    counts, pairs = {}, []
    for a, b in ALIKE:
        counts[f"{a}-{b}"], found = near_pairs(looks[a].hashes, None if a == b else looks[b].hashes, most=SHOWN)
        named = ((distance, looks[a].ids[i], looks[b].ids[j]) for distance, i, j in found)
        pairs += [{"subsets": [a, b], "images": [i, j], "distance": distance} for distance, i, j in named]
    return counts, pairs[:SHOWN]


def facts_of(data: TrainingData, looks: dict[str, Looks], faults: dict[str, list[str]]) -> dict:
    """All that is found, as print_result takes it."""
    names, warnings, subsets = data.class_names, [], {}
    counted = {"labelled": data.labels, "validation": data.evaluation_labels}
    rows = [{"name": name} for name in names]
    for subset, seen in looks.items():
        subsets[subset] = {"images": len(seen.ids), "ignored": None} | overview.size_facts(seen.sizes)
        if subset in counted:
            ids, counts = counted[subset].ids, counted[subset].counts
            ignored = overview.ignored_shares(counts, seen.sizes)
            subsets[subset]["ignored"] = float(1 - counts.sum() / seen.sizes.prod(1).sum())
            warnings += overview.mask_warnings(ids, counts, ignored, subset)
            for row, images, pixels, share in zip(rows, *overview.class_facts(counts), strict=True):
                found = {"images": int(images), "pixels": int(pixels), "share": float(share)}
                row |= {f"{subset}_{key}": value for key, value in found.items()}
    warnings = overview.class_warnings(names, data.labels.counts, data.evaluation_labels.counts) + warnings
    warnings += overview.size_warnings(looks["labelled"].sizes, looks["unlabelled"].sizes, RunArguments.crop_size)
    warnings += overview.light_warnings(looks["labelled"].brightness, looks["unlabelled"].brightness)
    number, pairs = alike(looks)
    for (a, b), remedy in ALIKE.items():
        if count := number[f"{a}-{b}"]:
            warnings.append(f"{count} pairs of {a} and {b} images look alike; {remedy}")
    told = {"subsets": subsets, "classes": rows, "left_out_unlabelled": data.left_out, "faults": faults}
    return told | {"alike": number, "alike_pairs": pairs, "warnings": warnings}


def fault_lines(faults: dict[str, list[str]]) -> list[str]:
    """What training would do about each bad image."""
    does = {"labelled": "does not start", "unlabelled": "skips it", "validation": "does not start"}
    return [f"{subset}, training {does[subset]}: {line}" for subset in faults for line in faults[subset]]


def words(facts: dict) -> str:
    """Tables and lines for people."""
    subsets = [("", "images", "ignored", "smallest", "median", "largest")]
    for name, (images, ignored, *sizes) in ((name, found.values()) for name, found in facts["subsets"].items()):
        sides = (f"{size[1]}x{size[0]}" if size else "-" for size in sizes)
        subsets.append((name, f"{images:,}", _share(ignored), *sides))
    classes = [("class", "labelled images", "pixels", "validation images", "pixels")]
    for row in facts["classes"]:
        cells = ((f"{row[f'{s}_images']:,}", _share(row[f"{s}_share"])) for s in ("labelled", "validation"))
        classes.append((row["name"], *(cell for pair in cells for cell in pair)))
    named = [(map(" ".join, zip(pair["subsets"], pair["images"], strict=True)), pair) for pair in facts["alike_pairs"]]
    pairs = [f"{' looks like '.join(both)} ({pair['distance']} of 64 signs differ)" for both, pair in named]
    parts = [aligned(subsets), aligned(classes), "\n".join(fault_lines(facts["faults"])), "\n".join(pairs)]
    parts.append("\n".join(f"warning: {line}" for line in facts["warnings"]) or "nothing to warn of")
    return "\n\n".join(filter(None, parts))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def write_sheet(data: TrainingData, path: Path) -> None:
    """Up to 24 labelled images under their masks, each class at least once where so many can show it."""
    source, palette = data.labelled_source, data.palette or default_palette(len(data.class_names))
    rows = [data.labelled[place] for place in overview.rows_with_every_class(data.labels.counts, IN_SHEET)]
    drawn = ((source.ids[row], overlay(source.read_image(row), source.read_label(row), palette)) for row in rows)
    write_atomically(path, functools.partial(contact_sheet(drawn, palette, data.class_names).save, format="PNG"))


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Load, look, tell."""
    args = arguments(argv)
    faults: dict[str, list[str]] = {name: [] for name in SUBSETS}
    if args.output_dir:
        check_writable(args.output_dir, "--output_dir")
    data = load(args, faults)
    looks = look_at_all(data)
    for name, seen in looks.items():
        faults[name] += seen.faults
    sheet = Path(args.output_dir, "inspect.png") if args.output_dir else None
    if sheet:
        write_sheet(data, sheet)
    facts = {"dataset": args.dataset, **facts_of(data, looks, faults), "sheet": sheet and str(sheet)}
    print_result(facts, words(facts), as_json=args.json)
