"""How to predict, as command-line options: the same for evaluate.py and predict.py."""

import argparse

NAMES = ("mode", "window", "stride", "scales", "flip", "window_batch")


def add_segment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `inference.segment`, and --device."""
    parser.add_argument("--mode", choices=("whole", "slide"), default="whole", help="whole image or sliding window")
    parser.add_argument("--window", type=int, default=769, help="side of the sliding window (default: 769)")
    parser.add_argument("--stride", type=int, help="step of the window (default: two thirds of the window)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over these scales (default: 1)")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--window_batch", type=int, default=4, help="windows per forward pass (default: 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")


def segment_options(args: argparse.Namespace) -> dict:
    """The keyword arguments for `inference.segment` among the parsed arguments."""
    return {name: getattr(args, name) for name in NAMES}
