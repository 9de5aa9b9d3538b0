"""How to predict, as command-line options: the same for evaluate.py and predict.py."""

import argparse

from u2pl_hf.command_line import number
from u2pl_hf.system.compute import PRECISIONS

NAMES = ("mode", "window", "stride", "scales", "flip", "window_batch")
# 2048 x 1024. With a ResNet-50 at output stride 8 such an image takes 2.2 GB, see docs/inference.md.
MAX_WHOLE_PIXELS = 2**21


def add_segment_arguments(parser: argparse.ArgumentParser, *, auto: bool = False) -> None:
    """Add the options of `inference.segment`, and how to compute; `auto` adds the mode that looks at the size."""
    modes, default = (("auto", "whole", "slide"), "auto") if auto else (("whole", "slide"), "whole")
    parser.add_argument("--mode", choices=modes, default=default, help=f"whole image or sliding window ({default})")
    if auto:
        parser.add_argument(
            "--max_whole_pixels",
            type=number(int, at_most=2**40),
            default=MAX_WHOLE_PIXELS,
            help=f"--mode auto slides over images with more pixels ({MAX_WHOLE_PIXELS}, that is 2048x1024)",
        )
    parser.add_argument("--window", type=number(int, at_least=1), default=769, help="side of the sliding window (769)")
    parser.add_argument("--stride", type=number(int, at_least=1), help="step of the window (two thirds of the window)")
    parser.add_argument(
        "--scales",
        type=number(float, above=0, at_most=16),
        nargs="+",
        default=[1.0],
        help="average over these scales (1)",
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument(
        "--window_batch",
        type=number(int, at_least=1),
        help="windows per forward pass (1 on the CPU, 4 elsewhere)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (auto)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="no", help="autocast to a shorter type (no)")
    parser.add_argument("--compile", action="store_true", help="torch.compile: minutes once, faster afterwards")


def segment_options(args: argparse.Namespace) -> dict:
    """The keyword arguments for `inference.segment` among the parsed arguments."""
    return {name: getattr(args, name) for name in NAMES}
