"""Segment photographs with a trained model.

    python training_scripts/predict.py runs/demo_u2pl photo.jpg "holiday/*.png" --output_dir predictions

For each image of any size: `<name>_mask.png`, 8-bit class ids with the classes' colours as their palette, and
`<name>_overlay.png`, the image with these colours over it. Large images are predicted by sliding windows, in
bounded memory. With --export, the regions are also written for an annotation tool, below `export_FORMAT` in the output
folder. Files that this program did not write, and those of another model, are not replaced. The last line of stdout,
where that is no terminal, is one JSON object with the files written, and how each was predicted.
"""

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.commands.options import (
    add_annotation_style,
    add_model,
    add_rejection,
    add_segmentation,
    annotation_style,
    compiled,
    model_to_use,
    of_probabilities,
    segmentation_options,
)
from u2pl_hf.data.annotations.writing import WRITERS, check_export
from u2pl_hf.errors import InputError, exits_on_input_error, refuse
from u2pl_hf.evaluation.annotation_export import export_predictions
from u2pl_hf.evaluation.folding import folded
from u2pl_hf.evaluation.inference import (
    as_bytes,
    class_colours,
    class_names,
    describe_protocol,
    predict_all,
    same_size_batches,
)
from u2pl_hf.evaluation.loading import model_digest
from u2pl_hf.evaluation.outputs import check_replaceable, check_writable, is_of, save_png
from u2pl_hf.evaluation.photographs import Photograph, find_photographs, read_ahead, read_headers
from u2pl_hf.system.precision import computing


def parse_arguments(argv: list[str] | None) -> Namespace:
    """The command line, checked."""
    parser = ScriptParser(description=__doc__)
    add_model(parser)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or globs")
    add("--output_dir", required=True, type=Path, help="where to write; made if it is missing")
    add("--recursive", action="store_true", help="also take what lies in sub-folders of folders")
    add("--skip_existing", action="store_true", help="leave out images whose results, of these options, are there")
    add("--save_confidence", action="store_true", help="write <name>_confidence.png: 255 = sure")
    add_rejection(parser, "pixels whose class is less probable become 255, which the overlay leaves bare")
    add("--opacity", type=number(float, at_most=1), default=0.5, help="of the colours in the overlay (0.5)")
    told = "white lines between the classes of the overlay (yes)"
    add("--contour", action=BooleanOptionalAction, default=True, help=told)
    add("--legend", action="store_true", help="the classes' names below the overlay, which grows by it")
    add("--export", choices=tuple(WRITERS), help="write the regions for an annotation tool as well")
    add_annotation_style(parser)
    told = "regions of a lower mean confidence are marked as uncertain in what --export writes (0.5)"
    add("--uncertain_below", type=number(float, at_most=1), help=told)
    add_segmentation(parser, auto=True)
    args = parser.parse_args(argv)
    args.save_confidence |= args.export is not None
    parser.require_with(args, "export", "shapes", "tolerance", "uncertain_below")
    if args.export:
        args.style = annotation_style(args, args.export)
    options, auto = segmentation_options(args), {"mode": "auto", "max_whole_pixels": args.max_whole_pixels}
    if args.mode == "auto":
        args.protocol = describe_protocol(**options | {"mode": "slide"}) | auto
    else:
        args.protocol = describe_protocol(**options)
    return args


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Predict every image."""
    args = parse_arguments(argv)
    photographs = find_photographs(args.images, recursive=args.recursive, output_dir=args.output_dir)
    # The mask is the last: where it is, all is.
    kinds = ["overlay", *["confidence"] * args.save_confidence, "mask"]
    files = {p: {kind: args.output_dir / f"{p.name}_{kind}.png" for kind in kinds} for p in photographs}
    paths, inputs = [path for made in files.values() for path in made.values()], {p.path.resolve() for p in photographs}
    told = "is one of the images and would be overwritten: pass another --output_dir"
    refuse((path.resolve() in inputs, f"{path} {told}") for path in paths)
    exported = args.output_dir / f"export_{args.export}"
    if args.export:
        check_export(exported, args.export, "--output_dir")
    model = model_to_use(args)
    how = args.protocol | {"precision": args.precision} | of_probabilities(args, model)
    origin = {"model": args.model, "digest": model_digest(model), "options": how}
    check_replaceable(paths, "--output_dir", origin["digest"])
    done = [p for p in photographs if args.skip_existing and all(is_of(file, origin) for file in files[p].values())]
    todo, written = read_headers([p for p in photographs if p not in done]), []
    if todo:
        # The last of the checks, since it makes the folder.
        check_writable(args.output_dir, "--output_dir")
        model = compiled(args, folded(model))
        try:
            with computing(args.precision, model.device):
                written.extend(predict_files(model, todo, files, args, origin))
        except InputError as error:
            kept = f"{len(written)} of {len(todo)} are done; without this file, --skip_existing goes on from there"
            raise InputError(f"{error}; {kept}") from error
    result = {"model": args.model, "protocol": args.protocol, "precision": args.precision, "skipped": len(done)}
    if args.export:
        about = (class_names(model), class_colours(model))
        floor = 0.5 if args.uncertain_below is None else args.uncertain_below
        result["export"] = export_predictions(exported, args.export, files, about, args.style, floor)
    told = f"{len(written)} images predicted, {len(done)} were there already"
    told += f": masks and overlays are in {args.output_dir}"
    if args.reject_below is not None and written:
        pixels = {str(photograph.path): photograph.pixels for photograph in todo}
        kept = sum(file["kept"] * pixels[file["image"]] for file in written) / sum(pixels.values())
        result |= {"reject_below": args.reject_below, "kept": kept}
        told += f"; {kept:.2%} of their pixels are kept, the others, below {args.reject_below:g}, are 255"
    print_result(result | {"files": written}, told, as_json=args.json)


def predict_files(
    model, photographs: list[Photograph], files: dict[Photograph, dict], args: Namespace, origin: dict
) -> Iterator[dict]:
    """Predict and write, one batch of images of one size after the other; gives the facts of each image."""
    total, number = sum(photograph.pixels for photograph in photographs), args.batch_size
    with tqdm(total=total, desc="predict", unit="px", unit_scale=True) as bar:
        options = segmentation_options(args) | {"max_whole_pixels": args.max_whole_pixels, "progress": bar.update}
        options |= {"with_entropy": args.save_confidence, "reject_below": args.reject_below}
        for batch in same_size_batches(read_ahead(photographs, number), number):
            found = predict_all(model, [pixels for _, pixels in batch], **options)
            for (photograph, _), prediction in zip(batch, found, strict=True):
                made = files[photograph]
                drawn = prediction.overlay(args.opacity, contour=args.contour, legend=args.legend)
                save_png(made["overlay"], drawn, origin)
                if args.save_confidence:
                    save_png(made["confidence"], as_bytes(prediction.confidence), origin)
                save_png(made["mask"], prediction.labels, origin, prediction.palette)
                paths = {kind: str(path) for kind, path in made.items()}
                kept = {} if args.reject_below is None else {"kept": prediction.kept}
                yield {"image": str(photograph.path), **paths, "mode": prediction.mode, **kept}
            # Before the next are read: each may be as large as the memory allows.
            del batch, found, prediction, drawn
