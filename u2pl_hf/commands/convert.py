"""Make a model folder of a checkpoint that the published code of U2PL or UniMatch V2 wrote.

    python training_scripts/convert_checkpoint.py ckpt_best.pth models/u2pl_voc --dataset voc

FILE is a .pth with teacher_state or model_state (U2PL), model_ema or model (UniMatch V2), or a bare state dict; with or
without the prefix of DDP; or a .safetensors of the same tensors. It is read without running anything in it. The folder
is like those that training exports: `from_pretrained`, evaluate.py, predict.py and `train_u2pl.py --initial_model` take
it. The last line of stdout, where that is no terminal, is one JSON object; epoch and best_miou are what the file says.
"""

from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import exits_on_input_error
from u2pl_hf.model.configuration_u2pl import OUTPUT_STRIDES
from u2pl_hf.training.weights.published_checkpoints import DATASETS, NETWORKS, convert_checkpoint


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Read, convert, write."""
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="published checkpoint, .pth or .safetensors")
    add("output_dir", type=Path, metavar="OUTPUT_DIR", help="folder to write; must not exist or be empty")
    told = "network to take (default: auto, the teacher where there is one)"
    add("--weights", choices=("auto", *NETWORKS), default="auto", help=told)
    add("--dataset", choices=(*DATASETS, "none"), help="whose class names and colours (default: by their number)")
    add("--class_names", type=Path, metavar="FILE", help="class list: one NAME or NAME,R,G,B per line, or JSON")
    add("--output_stride", type=int, choices=OUTPUT_STRIDES, default=8, help="default: 8, as published")
    told = "default: 12 24 36, as published; the weights do not tell"
    add("--aspp_dilations", type=int, nargs=3, default=[12, 24, 36], metavar="N", help=told)
    add("--overwrite", action="store_true", help="replace an exported model in OUTPUT_DIR")
    args = vars(parser.parse_args(argv))
    as_json = args.pop("json")
    result = convert_checkpoint(args.pop("file"), args.pop("output_dir"), **args)
    print_result(result, as_json=as_json)
