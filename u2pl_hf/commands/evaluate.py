"""Evaluate a trained model: mIoU, IoU and accuracy per class on the images of a data set.

    python training_scripts/evaluate.py runs/demo_u2pl --dataset demo --subset validation

A table goes to stderr; the last line of stdout, where that is no terminal, is one JSON object, IoU as fractions. The
papers' protocols are the default (VOC: whole images) and `--mode slide --window 769` (Cityscapes). Several processes,
started by torchrun or accelerate, share the images and give the same numbers.
"""

import argparse
import json
import logging
import os
import time
from pathlib import Path

import numpy as np

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.commands.options import (
    add_model,
    add_rejection,
    add_segmentation,
    compiled,
    model_to_use,
    of_probabilities,
    segmentation_options,
)
from u2pl_hf.data.sources import Source, load_source
from u2pl_hf.errors import exits_on_input_error, require
from u2pl_hf.evaluation.inference import class_colours, class_names, count_pixels, describe_protocol, named_scores
from u2pl_hf.evaluation.loading import dataset_commit, library_versions, model_commit, model_digest
from u2pl_hf.evaluation.mean_iou import MeanIoU
from u2pl_hf.evaluation.outputs import check_file, check_pictures, check_writable, save_png
from u2pl_hf.evaluation.pictures import overlay
from u2pl_hf.files import write_text
from u2pl_hf.measure.side_by_side import aligned, percent
from u2pl_hf.system.precision import computing
from u2pl_hf.system.processes import joined_processes, together
from u2pl_hf.training.run.report import hardware

logger = logging.getLogger("u2pl_hf.evaluate")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = ScriptParser(description=__doc__)
    add_model(parser)
    add_data(parser)
    add = parser.add_argument
    add_segmentation(parser)
    add_rejection(parser, "also score without the pixels whose class is less probable, which pictures show as 255")
    add("--save_predictions", type=Path, metavar="DIR", help="write predictions, 8-bit ids with a palette")
    add("--save_overlays", type=Path, metavar="DIR", help="write prediction and ground truth, side by side")
    add("--overwrite", action="store_true", help="replace the pictures of evaluate.py in these folders")
    add("--output_file", type=Path, metavar="JSON", help="write the result, with the confusion matrix, as well")
    args = parser.parse_args(argv)
    args.protocol = describe_protocol(**segmentation_options(args))
    return args


def add_data(parser: argparse.ArgumentParser) -> None:
    """Which images, for `model_and_data`."""
    add = parser.add_argument
    add("--dataset", required=True, help="'demo', a local folder or a Hub id, as for training")
    add("--subset", default="validation", help="which part of the data set (validation)")
    add("--dataset_revision", help="branch, tag or commit of a data set on the Hub")
    for column, what in (("id", "image ids"), ("image", "images"), ("label", "label masks")):
        add(f"--{column}_column", default=column, help=f"column of the {what} ({column})")
    add("--streaming", action="store_true", help="read parquet files where they lie, Hub or disk")


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Evaluate and report."""
    started = time.perf_counter()
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--device", nargs="?")
    if early.parse_known_args(argv)[0].device == "cpu":
        # Processes meet before the options are checked, so that a wrong one is told once; this says where.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    with joined_processes() as processes:
        args = together(processes, lambda: parse_arguments(argv))
        model, source = together(processes, lambda: prepare(args))
        rows = range(len(source.ids))[processes.process_index :: processes.num_processes]
        metric, kept = together(processes, lambda: count(args, model, source, rows, processes.is_main_process))
        metric.all_reduce()
        if kept is not None:
            kept.all_reduce()
        if processes.is_main_process:
            if not metric.confusion.any():
                logger.warning("all %d images are 255 (ignored) throughout: there is nothing to score", len(source.ids))
            asked = ("model", "dataset", "subset", "protocol", "precision", "compile")
            result = named_scores(metric, class_names(model)) | {name: getattr(args, name) for name in asked}
            result |= {
                "temperature": model.config.temperature,
                "model_revision": model_commit(args.model, args.model_revision) or args.model_revision,
                "dataset_revision": dataset_commit(args.dataset, args.dataset_revision) or args.dataset_revision,
                "num_images": len(source.ids),
                "versions": library_versions(),
                "hardware": hardware(model.device, processes.num_processes),
                "seconds": round(time.perf_counter() - started, 1),
            }
            if kept is not None:
                share = int(kept.confusion.sum()) / max(1, int(metric.confusion.sum()))
                scores = named_scores(kept, class_names(model))
                result["kept"] = {"reject_below": args.reject_below, "share": share} | scores
            report(result, metric.confusion.tolist(), args)


def prepare(args: argparse.Namespace):
    """Model and data; everything that can be refused is refused here."""
    model, source = model_and_data(args)
    folders = {"--save_predictions": args.save_predictions, "--save_overlays": args.save_overlays}
    folders = {option: folder for option, folder in folders.items() if folder}
    for option, folder in folders.items():
        check_pictures(folder, source.ids, option, overwrite=args.overwrite)
    # The last of the checks, since it makes the folders.
    for option, folder in folders.items():
        check_writable(folder, option)
    if args.output_file:
        check_file(args.output_file, "--output_file")
    return model, source


def model_and_data(args: argparse.Namespace):
    """Model and images that fit each other, as `add_model`, `add_segmentation` and `add_data` ask for them.

    Raises:
        InputError: one cannot be used, or they have different numbers of classes.
    """
    model = compiled(args, model_to_use(args))
    columns = {name: getattr(args, name) for name in ("id_column", "image_column", "label_column")}
    source = load_source(args.dataset, args.subset, **columns, revision=args.dataset_revision, streaming=args.streaming)
    check_classes(class_names(model), source.class_names, args.dataset)
    return model, source


def check_classes(ours: list[str], theirs: list[str] | None, dataset: str) -> None:
    """Refuse a data set with another number of classes; warn if they have other names.

    Raises:
        InputError: the numbers differ.
    """
    if theirs is None or ours == theirs:
        return
    told = f"the model has {len(ours)} classes and data set {dataset} has {len(theirs)}"
    require(len(ours) == len(theirs), f"{told}: evaluate on the data set it was trained for")
    first = next((place, *pair) for place, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1)
    logger.warning("class names differ: class %d is %s in the model and %s in the data set", *first)


def count(
    args: argparse.Namespace, model, source: Source, rows: range, progress: bool
) -> tuple[MeanIoU, MeanIoU | None]:
    """The confusion matrix of some rows, and that of what --reject_below keeps.

    Writes pictures that were asked for, an id with slashes into sub-folders.
    """
    palette = model.config.palette or source.palette or class_colours(model)
    how = args.protocol | of_probabilities(args, model)
    origin = {"model": args.model, "digest": model_digest(model), "options": how}

    def save(sample_id: str, image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> None:
        if args.save_predictions:
            save_png(args.save_predictions / f"{sample_id}.png", prediction, origin, palette)
        if args.save_overlays:
            pair = [overlay(image, ids, palette, contour=True) for ids in (prediction, label)]
            save_png(args.save_overlays / f"{sample_id}.png", np.hstack(pair), origin)

    options = segmentation_options(args) | {"batch_size": args.batch_size, "on_sample": save, "progress": progress}
    options["reject_below"] = args.reject_below
    with computing(args.precision, model.device):
        return count_pixels(model, source, rows, device=model.device, **options)


def report(result: dict, confusion: list[list[int]], args: argparse.Namespace) -> None:
    """JSON, with the confusion matrix, to the file; then the table, and JSON as the last line of stdout."""
    accuracy = result["per_class_accuracy"]
    scores = [(name, iou, accuracy[name]) for name, iou in result["per_class_iou"].items()]
    scores += [("mean", result["mean_iou"], result["mean_accuracy"]), ("all pixels", None, result["accuracy"])]
    rows = [["", "IoU", "accuracy"], *([name, *(percent([value]) for value in values)] for name, *values in scores)]
    told, absent = aligned(rows), ", ".join(result["absent_classes"])
    told += f"\nneither in the images nor predicted: {absent}" if absent else ""
    if kept := result.get("kept"):
        told += (
            f"\nat least {kept['reject_below']:g} probable are {percent([kept['share']])} % of the labelled pixels: "
        )
        told += f"mean IoU {percent([kept['mean_iou']])}, of all {percent([result['mean_iou']])}"
        gone = [name for name in kept["absent_classes"] if name not in result["absent_classes"]]
        told += f"; nothing of {', '.join(gone)} is kept, which is left out of its mean" if gone else ""
    if args.output_file:
        # A line for each field: the matrix would fill pages.
        content = (result | {"confusion": confusion}).items()
        fields = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content)
        write_text(args.output_file, f"{{\n{fields}\n}}\n")
    print_result(result, told, as_json=args.json)
