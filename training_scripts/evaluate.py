"""Evaluate a trained model: mIoU, per-class IoU and accuracy on the images of a data set.

    python training_scripts/evaluate.py runs/demo_u2pl --dataset demo --subset validation

A table goes to stderr; the last line of stdout is one JSON object, IoU as fractions. The papers' protocols are the
default (VOC: whole images) and `--mode slide --window 769` (Cityscapes).
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from PIL import Image

import u2pl_hf  # noqa: F401 - registers the model classes
from u2pl_hf.data.sources import load_source
from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.evaluation.inference import describe_protocol, evaluate_model
from u2pl_hf.evaluation.loading import library_versions, load_model
from u2pl_hf.evaluation.options import add_segment_arguments, segment_options


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder that training exported, or a Hub id")
    parser.add_argument("--model_revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--dataset", required=True, help="'demo', a local folder or a Hub id, as for training")
    parser.add_argument("--subset", default="validation", help="which part of the data set (default: validation)")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub")
    parser.add_argument("--id_column", default="id", help="column of the image ids (default: id)")
    parser.add_argument("--image_column", default="image", help="column of the images (default: image)")
    parser.add_argument("--label_column", default="label", help="column of the label masks (default: label)")
    parser.add_argument("--streaming", action="store_true", help="read parquet files where they lie, Hub or disk")
    add_segment_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=1, help="neighbouring images of equal size share a pass")
    parser.add_argument("--save_predictions", metavar="DIR", help="write each prediction as 8-bit ids to DIR/<id>.png")
    parser.add_argument("--output_file", metavar="JSON", help="write the result to this file as well")
    return parser.parse_args()


@exits_on_input_error
def main() -> None:
    """Evaluate and report."""
    args = parse_arguments()
    options = segment_options(args)
    protocol = describe_protocol(**options)
    if args.batch_size < 1:
        raise InputError(f"--batch_size is {args.batch_size}: pass at least 1")
    rank, world_size = join_processes()
    model = load_model(args.model, device=args.device, revision=args.model_revision)
    source = load_source(
        args.dataset,
        args.subset,
        id_column=args.id_column,
        image_column=args.image_column,
        label_column=args.label_column,
        revision=args.dataset_revision,
        streaming=args.streaming,
    )
    if len(source.ids) == 0:
        raise InputError(f"data set {args.dataset}, subset {args.subset}: no images")
    result = evaluate_model(
        model,
        source,
        range(len(source.ids)),
        device=next(model.parameters()).device,
        batch_size=args.batch_size,
        on_sample=prediction_writer(args.save_predictions, source.ids) if args.save_predictions else None,
        progress=True,
        rank=rank,
        world_size=world_size,
        **options,
    )
    if rank == 0:
        result |= {
            "model": args.model,
            "model_revision": getattr(model.config, "_commit_hash", None),
            "dataset": args.dataset,
            "subset": args.subset,
            "num_images": len(source.ids),
            "protocol": protocol,
            "versions": library_versions(),
        }
        report(result, args.output_file)
    if world_size > 1:
        torch.distributed.destroy_process_group()


def join_processes() -> tuple[int, int]:
    """(rank, world size); under torchrun the processes meet, each scores its share of the images."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.distributed.init_process_group()
    return int(os.environ.get("RANK", 0)), world_size


def prediction_writer(folder: str, ids: list[str]):
    """A hook for `evaluate_model` that writes <folder>/<id>.png; an id with slashes makes sub-folders.

    Raises:
        InputError: an id would leave the folder; nothing has been computed by then.
    """
    root = Path(folder)
    for sample_id in ids:
        parts = sample_id.split("/")
        if not sample_id or any(part in ("", ".", "..") for part in parts) or "\\" in sample_id:
            raise InputError(f"id {sample_id!r}: cannot name a file below {folder}; rename it in the data set")

    def write(sample_id, image, label, prediction):
        path = root / f"{sample_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(prediction).save(path)

    return write


def report(result: dict, output_file: str | None) -> None:
    """The table on stderr, then JSON: to the file, and as the last line of stdout."""
    width = max(map(len, [*result["per_class_iou"], "mean accuracy"]))
    rows = [*result["per_class_iou"].items(), ("mIoU", result["mean_iou"])]
    rows += [("pixel accuracy", result["accuracy"]), ("mean accuracy", result["mean_accuracy"])]
    for name, value in rows:
        print(f"{name:<{width + 1}} {'absent' if value is None else f'{100 * value:6.2f}'}", file=sys.stderr)
    if output_file:
        path = Path(output_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
