"""Segment photographs with a trained model.

    python training_scripts/predict.py runs/demo_u2pl photo.jpg "holiday/*.png" --output_dir predictions

For each image of any size: `<name>_mask.png`, 8-bit class ids with the classes' colours as their palette, and
`<name>_overlay.png`, the image with these colours over it. Large images are predicted by sliding windows, in
bounded memory. Files that this program did not write, and those of another model, are not replaced. The last line of
stdout, where that is no terminal, is one JSON object with the files written, and how each was predicted.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

import u2pl_hf  # noqa: F401 - registers the model classes
from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.evaluation.inference import class_names, describe_protocol, predict_images
from u2pl_hf.evaluation.loading import load_model, model_digest, pick_device
from u2pl_hf.evaluation.options import add_segment_arguments, segment_options
from u2pl_hf.evaluation.outputs import check_replaceable, check_writable, is_of, save_png
from u2pl_hf.evaluation.photographs import Photograph, find_photographs, read_headers, same_size_batches
from u2pl_hf.evaluation.pictures import default_palette, overlay, with_legend
from u2pl_hf.system.compute import compile_model, computing
from u2pl_hf.system.precision import check_compiler, check_number_type


def parse_arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("model", help="folder that training exported, or a Hub id")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or globs")
    parser.add_argument("--output_dir", required=True, type=Path, help="where to write; made if it is missing")
    parser.add_argument("--recursive", action="store_true", help="also take what lies in sub-folders of folders")
    parser.add_argument(
        "--skip_existing", action="store_true", help="leave out images whose results, of these options, are there"
    )
    parser.add_argument("--save_confidence", action="store_true", help="write <name>_confidence.png: 255 = sure")
    parser.add_argument("--model_revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument(
        "--opacity", type=number(float, at_most=1), default=0.5, help="of the colours in the overlay (0.5)"
    )
    parser.add_argument(
        "--contour",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="white lines between the classes of the overlay (yes)",
    )
    parser.add_argument("--legend", action="store_true", help="the classes' names below the overlay, which grows by it")
    parser.add_argument(
        "--batch_size",
        type=number(int, at_least=1),
        default=1,
        help="neighbouring images of equal size share a pass (1)",
    )
    add_segment_arguments(parser, auto=True)
    return parser.parse_args()


@exits_on_input_error
def main() -> None:
    """Predict every image."""
    args = parse_arguments()
    protocol = protocol_of(args)
    device = pick_device(args.device)
    check_number_type(args.precision, device, "--precision")
    if args.compile:
        check_compiler(device, "install it or leave out --compile")
    photographs = find_photographs(args.images, recursive=args.recursive, output_dir=args.output_dir)
    check_outputs(photographs, args)
    model = load_model(args.model, device=args.device, revision=args.model_revision)
    origin = {"model": args.model, "digest": model_digest(model), "options": protocol | {"precision": args.precision}}
    files = {photograph: outputs(photograph, args).values() for photograph in photographs}
    check_replaceable(itertools.chain(*files.values()), "--output_dir", origin["digest"])
    todo = [p for p in photographs if not (args.skip_existing and all(is_of(file, origin) for file in files[p]))]
    todo, written = read_headers(todo), []
    if todo:
        # The last of the checks, since it makes the folder.
        check_writable(args.output_dir, "--output_dir")
        if args.compile:
            compile_model(model)
        try:
            with computing(args.precision, device):
                predict(model, todo, args, device, origin, written)
        except InputError as error:
            kept = f"{len(written)} of {len(todo)} are done; without this file, --skip_existing goes on from there"
            raise InputError(f"{error}; {kept}") from error
    skipped = len(photographs) - len(todo)
    facts = {"model": args.model, "protocol": protocol, "precision": args.precision, "skipped": skipped}
    told = f"{len(written)} images predicted, {skipped} were there already: masks and overlays are in {args.output_dir}"
    print_result(facts | {"files": written}, told, as_json=args.json)


def protocol_of(args: argparse.Namespace) -> dict:
    """The checked options that decide the result; with --mode auto those of sliding, and from which size on."""
    options = segment_options(args)
    if args.mode != "auto":
        return describe_protocol(**options)
    return describe_protocol(**options | {"mode": "slide"}) | {
        "mode": "auto",
        "max_whole_pixels": args.max_whole_pixels,
    }


def outputs(photograph: Photograph, args: argparse.Namespace) -> dict[str, Path]:
    """The files to write for an image."""
    kinds = ["overlay", *(["confidence"] if args.save_confidence else []), "mask"]
    return {kind: args.output_dir / f"{photograph.name}_{kind}.png" for kind in kinds}


def check_outputs(photographs: list[Photograph], args: argparse.Namespace) -> None:
    """Refuse to write over an image that is to be read, or over another image's results."""
    inputs = {photograph.path.resolve() for photograph in photographs}
    for photograph in photographs:
        for path in outputs(photograph, args).values():
            if path.resolve() in inputs:
                raise InputError(f"{path} is one of the images and would be overwritten: pass another --output_dir")


def predict(
    model, photographs: list[Photograph], args: argparse.Namespace, device: torch.device, origin: dict, written: list
) -> None:
    """Predict and write; puts the facts of each image that is done into `written`."""
    total = sum(photograph.pixels for photograph in photographs)
    with tqdm(total=total, desc="predict", unit="px", unit_scale=True) as bar:
        for batch in same_size_batches(photographs, args.batch_size):
            bar.set_postfix_str(f"{len(written)}/{len(photographs)} images")
            predict_batch(model, batch, args, device, bar, origin, written)


def predict_batch(
    model, batch: list[tuple[Photograph, np.ndarray]], args, device, bar, origin: dict, written: list
) -> None:
    """Predict and write images of one size; a function of its own, so that its arrays are gone before the next."""
    mode = args.mode
    if mode == "auto":
        mode = "whole" if batch[0][0].pixels <= args.max_whole_pixels else "slide"
    ids, confidence = predict_images(
        model,
        [pixels for _, pixels in batch],
        device,
        with_confidence=args.save_confidence,
        progress=bar.update,
        **segment_options(args) | {"mode": mode},
    )
    palette = model.config.palette or default_palette(model.config.num_labels)
    for place, (photograph, pixels) in enumerate(batch):
        drawn = overlay(pixels, ids[place], palette, args.opacity, contour=args.contour)
        if args.legend:
            drawn = with_legend(drawn, ids[place], palette, class_names(model))
        pictures = {"mask": ids[place], "overlay": drawn}
        if confidence is not None:
            pictures["confidence"] = confidence[place]
        files = outputs(photograph, args)
        for kind, path in files.items():
            save_png(path, pictures[kind], origin, palette if kind == "mask" else None)
        paths = {kind: str(path) for kind, path in files.items()}
        written.append({"image": str(photograph.path), **paths, "mode": mode})


if __name__ == "__main__":
    main()
