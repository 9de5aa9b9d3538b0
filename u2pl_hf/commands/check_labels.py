"""Find labels that are likely wrong: each mask against the predictions of runs that were not trained on it.

    python training_scripts/check_labels.py --dataset data/photos --runs runs/fold1 runs/fold2 --output_dir check

The runs are finished ones, each trained on a part of the labelled images (train --fold 1/2 and 2/2). Every image is
predicted by those that did not learn it, and their probabilities are averaged. Pixels that are confidently of another
class than their label, in the manner of confident learning, make regions; a mask that fits better when it is moved is
told as well. Written are check.json with all that is suspect, check.txt with the ids in the order in which to look at
them, check.html and pictures/ of the first ones. The folder appears when all is there; the last line of stdout, where
that is no terminal, is one JSON object.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.commands.options import add_device
from u2pl_hf.constants import IGNORE
from u2pl_hf.data.sources import Source, load_source
from u2pl_hf.errors import exits_on_input_error, refuse, refusing, require
from u2pl_hf.evaluation import label_check
from u2pl_hf.evaluation.check_pages import check_page, draw_check, finding_words
from u2pl_hf.evaluation.folding import folded
from u2pl_hf.evaluation.inference import class_colours, class_names, labelled_samples
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.outputs import check_writable
from u2pl_hf.evaluation.segmentation import segment
from u2pl_hf.files import read_text, read_yaml, write_atomically, write_json, write_text
from u2pl_hf.hub.results import finished_results
from u2pl_hf.markdown import one_line
from u2pl_hf.training.run.run_folder import refuse_file

logger = logging.getLogger(__name__)
FILES = {"check.json", "check.txt", "check.html", "pictures"}
# Fields of a recipe that say what the images are; runs that differ in one have others.
DATA = {"dataset_revision": None, "train_subset": "train", "id_column": "id", "image_column": "image",
        "label_column": "label"}  # fmt: skip
TOLD = 20


class CheckRun(NamedTuple):
    """A finished run: its model, the ids it was trained on with labels, and how `segment` is to predict."""

    model: torch.nn.Module
    learnt: set[str]
    options: dict


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--dataset", required=True, help="what the runs were trained on, as for training")
    add("--runs", required=True, nargs="+", type=Path, metavar="RUN", help="output folders of finished runs")
    add("--output_dir", required=True, type=Path, help="where to write; an earlier check there is replaced")
    told = "width in pixels of the band along borders of labels that is left out (a hundredth of the shorter side)"
    add("--border", type=number(int, at_most=1000), help=told)
    told = "smallest region, as a share of the image (0.001)"
    add("--min_share", type=number(float, at_most=1), default=0.001, help=told)
    told = "how far a mask may be shifted, as a share of the shorter side (0.1)"
    add("--max_shift", type=number(float, at_most=0.5), default=0.1, help=told)
    add("--pictures", type=number(int), default=TOLD, metavar="N", help=f"of the first N images ({TOLD})")
    add_device(parser)
    return parser.parse_args(argv)


def load_runs(args: argparse.Namespace) -> tuple[list[CheckRun], dict]:
    """The runs, and the fields of their recipes that say what the images are.

    Raises:
        InputError: a run is not finished, of another data set or of other classes.
    """
    runs, data, first = [], {}, None
    for folder in args.runs:
        finished_results(folder)
        recipe = read_yaml(folder / "recipe.yaml")
        require(isinstance(recipe, dict), f"{folder / 'recipe.yaml'} is no recipe of a run; restore it")
        dataset, fields = str(recipe.get("dataset")), DATA | {key: recipe.get(key, DATA[key]) for key in DATA}
        is_same = dataset == args.dataset or Path(dataset).resolve() == Path(args.dataset).resolve()
        model = load_model(str(folder), device=args.device)
        names = class_names(model)
        data, first = data or fields, first or names
        other = next((key for key in DATA if fields[key] != data[key]), None)
        refuse([
            (not is_same, f"--runs {folder} was trained on data set {dataset}, not on {args.dataset}: pass its runs"),
            (other, f"--runs {folder} has another {other} than {args.runs[0]}: leave one of them out"),
            (names != first, f"--runs {folder} has other classes than {args.runs[0]}: leave one of them out"),
        ])  # fmt: skip
        options = {"mode": recipe.get("eval_mode", "whole")}
        options |= {"window": recipe["eval_window"]} if options["mode"] == "slide" else {}
        learnt = set(read_text(folder / "labeled.txt").split("\n")) - {""}
        runs.append(CheckRun(folded(model), learnt, options))
    return runs, data


def rows_to_check(args: argparse.Namespace, source: Source, runs: Sequence[CheckRun]) -> tuple[list[int], int]:
    """Labelled rows that a run was not trained on, and how many others there are, which one line tells of.

    Raises:
        InputError: there are none, or the data set is another one than the runs'.
    """
    labelled = np.flatnonzero(source.rows.has_label()).tolist()
    rows = [row for row in labelled if any(source.ids[row] not in run.learnt for run in runs)]
    strange = next((f for f, run in zip(args.runs, runs, strict=True) if run.learnt.isdisjoint(source.ids)), None)
    left_out, remedy = len(labelled) - len(rows), "train others with --fold 1/3, 2/3 and 3/3, and pass them all"
    told = f"{left_out} of {len(labelled)} labelled images are left out: all --runs were trained on them; {remedy}"
    refuse([
        (strange, f"--runs {strange} was trained on none of the images of {args.dataset}: pass its own data set"),
        (not rows, f"nothing to check: {told}"),
    ])  # fmt: skip
    if left_out:
        logger.warning(told)
    return rows, left_out


def out_of_fold(runs: Sequence[CheckRun], name: str, image: np.ndarray) -> np.ndarray:
    """Mean class probabilities (C,H,W) float32 of an image (H,W,3) uint8 by the runs that were not trained on it."""
    able = [run for run in runs if name not in run.learnt]
    pixels = torch.from_numpy(np.stack([image])).permute(0, 3, 1, 2).to(next(able[0].model.parameters()).device)
    total = sum(segment(run.model, pixels, **run.options)[0].softmax(dim=0) for run in able)
    return (total / len(able)).cpu().numpy()


class Look(NamedTuple):
    """What a look at an image needs: called with rows, it gives id, image, mask and probabilities of each.

    Attributes:
        runs, source: see `CheckRun` and `Source`.
        bar: counts the images.
        border: width of the band along borders; None: by the image's size.
    """

    runs: list[CheckRun]
    source: Source
    bar: tqdm
    border: int | None

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        return class_names(self.runs[0].model)

    def __call__(self, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Id, image (H,W,3) uint8, mask (H,W) and probabilities (C,H,W) of each row; counts it when it is done with."""
        for name, image, labels in labelled_samples(self.source, rows, len(self.names)):
            yield name, image, labels, out_of_fold(self.runs, name, image)
            self.bar.update()

    def border_of(self, labels: np.ndarray) -> int:
        """The band's width in this mask."""
        return label_check.band_width(labels.shape) if self.border is None else self.border


class Found(NamedTuple):
    """Thresholds (C,), the confident joint (C,C) of pixels off the borders of labels, and the finding of each row."""

    thresholds: np.ndarray
    joint: np.ndarray
    findings: dict[int, label_check.Finding]


def find(look: Look, rows: Sequence[int], min_share: float, max_shift: float) -> Found:
    """Two passes over the images, for the thresholds and for what they find; no image is kept."""
    own = label_check.SelfConfidence(len(look.names))
    for _, _, labels, scores in look(rows):
        own.update(scores, labels)
    thresholds, joint, seen = own.thresholds(), np.zeros((len(look.names),) * 2, np.int64), []
    for _, _, labels, scores in look(rows):
        confident = label_check.confident_classes(scores, thresholds)
        border = look.border_of(labels)
        inside = np.where(label_check.border_band(labels, border), np.uint8(IGNORE), labels)
        joint += label_check.confident_joint(inside, confident, len(joint))
        regions = label_check.suspect_regions(scores, labels, confident, border=border, min_share=min_share)
        shift = label_check.best_shift(scores, labels, round(max_shift * min(labels.shape)))
        seen.append((regions, shift, labels.size))
    judged = [label_check.finding(regions, shift, joint, size) for regions, shift, size in seen]
    return Found(thresholds, joint, dict(zip(rows, judged, strict=True)))


def draw(look: Look, rows: Sequence[int], found: Found, folder: Path) -> list[str]:
    """Write a picture of each row; returns their paths below the folder."""
    palette, paths = look.source.palette or class_colours(look.runs[0].model), []
    (folder / "pictures").mkdir(parents=True)
    for row, (_, image, labels, scores) in zip(rows, look(rows), strict=True):
        confident = label_check.confident_classes(scores, found.thresholds)
        suspect = label_check.suspect_pixels(labels, confident, look.border_of(labels))
        maps = scores.argmax(axis=0).astype(np.uint8), np.where(suspect, confident, np.uint8(IGNORE))
        paths.append(f"pictures/{len(paths) + 1:03d}.png")
        draw_check(image, labels, *maps, found.findings[row], palette).save(folder / paths[-1])
    return paths


def write(look: Look, ranked: Sequence[int], shown: int, found: Found, facts: dict, folder: Path) -> dict:
    """Write the folder; returns what check.json says: the facts, and the ranked rows as images."""
    images = [{"id": look.source.ids[row], "picture": None} | found.findings[row].facts(look.names) for row in ranked]
    for image, path in zip(images, draw(look, ranked[:shown], found, folder), strict=False):
        image["picture"] = path
    write_json(folder / "check.json", facts | {"images": images})
    write_text(folder / "check.txt", "".join(f"{image['id']}\n" for image in images))
    head = f"{facts['dataset']}: something is suspect in {len(ranked)} of {facts['checked']} masks; below are the first"
    write_text(folder / "check.html", check_page(f"{head} {min(shown, len(ranked))}", images[:shown]))
    return facts | {"images": images}


def check(args: argparse.Namespace) -> dict:
    """Check and write; returns what check.json says.

    Raises:
        InputError: runs or data that do not fit, or a folder that cannot be written to.
    """
    folder = args.output_dir
    refuse_file("--output_dir", folder)
    foreign = [
        path.name for path in folder.glob("*") if path.name not in FILES or not (folder / "check.json").is_file()
    ]
    require(not foreign, f"--output_dir {folder} holds {''.join(foreign[:1])}, which no check wrote: pass another")
    runs, data = load_runs(args)
    columns = {key: data[key] for key in ("id_column", "image_column", "label_column")}
    source = load_source(args.dataset, data["train_subset"], **columns, revision=data["dataset_revision"])
    names = class_names(runs[0].model)
    theirs = len(source.class_names or names)
    told = f"--runs {args.runs[0]} has {len(names)} classes and data set {args.dataset} has {theirs}: pass its own runs"
    require(theirs == len(names), told)
    rows, left_out = rows_to_check(args, source, runs)
    # The last of the checks, since it makes the folder.
    check_writable(folder, "--output_dir")
    with tqdm(total=2 * len(rows), desc="check", unit="image", leave=False) as bar:
        look = Look(runs, source, bar, args.border)
        found = find(look, rows, args.min_share, args.max_shift)
        ranked = sorted((r for r in rows if found.findings[r].kind), key=lambda r: -found.findings[r].score)
        bar.total += min(args.pictures, len(ranked))
        thresholds = [t if np.isfinite(t) else None for t in found.thresholds.tolist()]
        facts = {"dataset": args.dataset, "subset": data["train_subset"], "runs": list(map(str, args.runs)),
                 "checked": len(rows), "left_out": left_out, "suspect": len(ranked),
                 "thresholds": dict(zip(names, thresholds, strict=True)),
                 "joint": dict(zip(names, found.joint.tolist(), strict=True))}  # fmt: skip
        written = []
        with refusing(OSError, f"--output_dir {folder} cannot be written to", "; pass another folder"):
            write_atomically(
                folder.absolute(), lambda p: written.append(write(look, ranked, args.pictures, found, facts, p))
            )
    return written[0]


def words(facts: dict, folder: Path) -> str:
    """A line for each of the first images, and where the rest is."""
    lines = [
        f"{place:>3}  {image['score']:.3f}  {one_line(image['id'])}  {finding_words(image)}"
        for place, image in enumerate(facts["images"][:TOLD], 1)
    ]
    told = f"{facts['suspect']} of {facts['checked']} masks have something suspect"
    return "\n".join([*lines, f"{told}; look at {folder / 'check.html'}, all are in {folder / 'check.json'}"])


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Check, write, tell."""
    args = parse_arguments(argv)
    facts = check(args)
    result = {key: value for key, value in facts.items() if key not in ("images", "joint")}
    first = [image["id"] for image in facts["images"][:TOLD]]
    result |= {"first": first, "output_dir": str(args.output_dir)}
    print_result(result, words(facts, args.output_dir), as_json=args.json)
