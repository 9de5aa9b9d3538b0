"""Export a trained model to ONNX and check it against PyTorch with ONNX Runtime.

    python training_scripts/export_onnx.py runs/demo_u2pl runs/demo_u2pl/model.onnx

The file takes `pixel_values`, float32 (B,3,H,W), normalised, and gives `logits` (B,C,H,W), or with `--output ids` class
ids (B,H,W) as uint8, for any batch and any size from 33 pixels on. Class names, palette, mean and standard deviation
are in its metadata. Needs the extra `onnx`. The last line of stdout, where that is no terminal, is one
JSON object.
"""

import argparse
from pathlib import Path

import u2pl_hf  # noqa: F401 - registers the model classes
from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.onnx_export import OUTPUTS, export_onnx
from u2pl_hf.evaluation.outputs import check_writable


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("model", help="folder that training exported, or a Hub id")
    parser.add_argument("file", help="file to write, such as model.onnx")
    parser.add_argument("--model_revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--output", choices=OUTPUTS, default="logits", help="what it computes (default: logits)")
    return parser.parse_args()


@exits_on_input_error
def main() -> None:
    """Export and compare."""
    args = parse_arguments()
    path = Path(args.file)
    if path.suffix != ".onnx":
        raise InputError(f"{path}: pass a file name that ends in .onnx")
    check_writable(path.parent, "the folder")
    model = load_model(args.model, device="cpu", revision=args.model_revision)
    found = export_onnx(model, path, args.output)
    print_result({"model": args.model, "file": str(path), "bytes": path.stat().st_size} | found, as_json=args.json)


if __name__ == "__main__":
    main()
