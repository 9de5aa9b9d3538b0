"""Export a trained model to ONNX and check it against PyTorch with ONNX Runtime.

    python training_scripts/export_onnx.py runs/demo_u2pl runs/demo_u2pl/model.onnx

The file takes `pixel_values`, float32 (B,3,H,W), normalised, and gives `logits` (B,C,H,W), or with `--output ids` class
ids (B,H,W) as uint8, for any batch and any size from 33 pixels on. Class names, palette, mean and standard deviation
are in its metadata. Needs the extra `onnx`. The last line of stdout, where that is no terminal, is one
JSON object.
"""

from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.commands.options import add_model
from u2pl_hf.errors import exits_on_input_error, require
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.onnx_export import OUTPUTS, export_onnx
from u2pl_hf.evaluation.outputs import check_file


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Export and compare."""
    parser = ScriptParser(description=__doc__)
    add_model(parser)
    parser.add_argument("file", type=Path, help="file to write, such as model.onnx")
    parser.add_argument("--output", choices=OUTPUTS, default="logits", help="what it computes (default: logits)")
    args = parser.parse_args(argv)
    require(args.file.suffix == ".onnx", f"{args.file}: pass a file name that ends in .onnx")
    check_file(args.file, "file")
    model = load_model(args.model, device="cpu", revision=args.model_revision)
    found = export_onnx(model, args.file, args.output)
    facts = {"model": args.model, "file": str(args.file), "bytes": args.file.stat().st_size} | found
    print_result(facts, as_json=args.json)
