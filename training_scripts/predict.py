"""Segment photographs with a trained model.

    python training_scripts/predict.py runs/demo_u2pl photo.jpg "holiday/*.png" --output_dir predictions

For each image of any size: `<name>_mask.png`, 8-bit class ids, and `<name>_overlay.png`, the image with the classes'
colours over it. The last line of stdout is one JSON object with the files written.
"""

import argparse
import glob
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

import u2pl_hf  # noqa: F401 - registers the model classes
from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.evaluation.inference import describe_protocol, predict_image
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.options import add_segment_arguments, segment_options
from u2pl_hf.evaluation.pictures import default_palette, overlay

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder that training exported, or a Hub id")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or globs")
    parser.add_argument("--output_dir", required=True, help="where to write; made if it is missing")
    parser.add_argument("--model_revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours in the overlay (default: 0.5)")
    add_segment_arguments(parser)
    return parser.parse_args()


@exits_on_input_error
def main() -> None:
    """Predict every image."""
    args = parse_arguments()
    options = segment_options(args)
    protocol = describe_protocol(**options)
    if not 0 <= args.opacity <= 1:
        raise InputError(f"--opacity is {args.opacity}: pass a number from 0 to 1")
    paths = find_images(args.images)
    outputs = name_outputs(paths, Path(args.output_dir))
    for path in paths:
        check_header(path)
    model = load_model(args.model, device=args.device, revision=args.model_revision)
    palette = model.config.palette or default_palette(model.config.num_labels)
    device = next(model.parameters()).device
    written = []
    for path, (mask_path, overlay_path) in zip(tqdm(paths, desc="predict"), outputs, strict=True):
        image = read_image(path)
        ids = predict_image(model, image, device, **options)
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(mask_path)
        Image.fromarray(overlay(image, ids, palette, args.opacity)).save(overlay_path)
        written.append({"image": str(path), "mask": str(mask_path), "overlay": str(overlay_path)})
    print(json.dumps({"model": args.model, "protocol": protocol, "files": written}), flush=True)


def find_images(patterns: list[str]) -> list[Path]:
    """Files, the image files of folders, and what globs match, in the order given, each once.

    Raises:
        InputError: one of them names no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if Path(match).is_file()]
        if not matches:
            raise InputError(f"{pattern}: no image there; pass image files, a folder of them, or a glob in quotes")
        found.update(dict.fromkeys(matches))
    return list(found)


def name_outputs(paths: list[Path], output_dir: Path) -> list[tuple[Path, Path]]:
    """(mask, overlay) file of each image; images of one name in two folders are refused, as are inputs overwritten."""
    by_name: dict[str, Path] = {}
    for path in paths:
        if path.stem in by_name:
            raise InputError(f"{by_name[path.stem]} and {path} would share output names: predict them separately")
        by_name[path.stem] = path
    outputs = [(output_dir / f"{path.stem}_mask.png", output_dir / f"{path.stem}_overlay.png") for path in paths]
    inputs = {path.resolve() for path in paths}
    for output in (output for pair in outputs for output in pair):
        if output.resolve() in inputs:
            raise InputError(f"{output} is one of the images and would be overwritten: pass another --output_dir")
    return outputs


def check_header(path: Path) -> None:
    """Refuse what is no image before any time goes into prediction."""
    try:
        with Image.open(path):
            pass
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not an image that can be read ({str(error).splitlines()[0]})") from error


def read_image(path: Path) -> np.ndarray:
    """RGB (H,W,3) uint8, turned the way its EXIF orientation says."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: damaged image ({str(error).splitlines()[0]})") from error


if __name__ == "__main__":
    main()
