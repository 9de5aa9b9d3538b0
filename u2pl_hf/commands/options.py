"""Options that several commands share."""

import argparse
import logging

from u2pl_hf.app.photos import LONGEST_SIDE
from u2pl_hf.command_line import number
from u2pl_hf.data.annotations import Style
from u2pl_hf.errors import require
from u2pl_hf.evaluation.inference import MAX_WHOLE_PIXELS
from u2pl_hf.evaluation.loading import load_model, pick_device
from u2pl_hf.system.precision import PRECISIONS, check_compiler, check_number_type, compile_networks

logger = logging.getLogger(__name__)
SEGMENT = ("mode", "window", "stride", "scales", "flip", "window_batch")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, for `load_model`."""
    parser.add_argument("model", help="folder that training exported, or a Hub id")
    parser.add_argument("--model_revision", help="branch, tag or commit of a model on the Hub")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where it computes."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")


def add_page(parser: argparse.ArgumentParser) -> None:
    """What the page shows."""
    parser.add_argument("--examples", nargs="+", default=[], metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--title", help="of the page (default: the model's name)")
    side, told = number(int, at_least=1), f"shrink larger images to it (default: {LONGEST_SIDE})"
    parser.add_argument("--longest_side", type=side, default=LONGEST_SIDE, help=told)


def add_rejection(parser: argparse.ArgumentParser, what: str) -> None:
    """From which probability on a pixel is kept; `what` says what becomes of the others."""
    parser.add_argument("--reject_below", type=number(float, at_most=1), metavar="P", help=what)


def of_probabilities(args: argparse.Namespace, model) -> dict:
    """What else decides a picture: the model's temperature, and --reject_below; nothing where they decide nothing."""
    temperature, floor = model.config.temperature, args.reject_below
    if floor is not None and temperature == 1:
        logger.warning("--reject_below goes by the model's raw probabilities: u2pl calibrate would correct them first")
    told = {"temperature": None if temperature == 1 else temperature, "reject_below": floor}
    return {name: value for name, value in told.items() if value is not None}


def add_annotation_style(parser: argparse.ArgumentParser) -> None:
    """How regions are written for an annotation tool."""
    told = "masks keep every pixel, polygons can be edited (default: masks for coco, polygons for others)"
    parser.add_argument("--shapes", choices=("masks", "polygons"), help=told)
    told = "pixels that a simplified polygon may be away from the region's outline (0.5); 0 keeps every pixel"
    parser.add_argument("--tolerance", type=number(float, at_most=100), help=told)


def annotation_style(args: argparse.Namespace, kind: str) -> Style:
    """The style among the parsed arguments, for a format.

    Raises:
        InputError: a tolerance of masks.
    """
    shapes = args.shapes or ("masks" if kind == "coco" else "polygons")
    is_used = args.tolerance is None or shapes == "polygons"
    require(is_used, "--tolerance is about polygons: pass --shapes polygons, or leave it out")
    return Style(shapes) if args.tolerance is None else Style(shapes, args.tolerance)


def add_segmentation(parser: argparse.ArgumentParser, *, auto: bool = False, several: bool = True) -> None:
    """How to predict, and how to compute.

    Args:
        auto: add the mode that looks at the size.
        several: whether several views are averaged, and several images share a pass, where that is asked for.
    """
    modes, add = ["auto"] * auto + ["whole", "slide"], parser.add_argument
    positive, scale = number(int, at_least=1), number(float, above=0, at_most=16)
    add("--mode", choices=modes, default=modes[0], help=f"whole image or sliding window ({modes[0]})")
    if auto:
        told = f"--mode auto slides over images with more pixels ({MAX_WHOLE_PIXELS}, that is 2048x1024)"
        add("--max_whole_pixels", type=number(int, at_most=2**40), default=MAX_WHOLE_PIXELS, help=told)
    add("--window", type=positive, default=769, help="side of the sliding window (769)")
    add("--stride", type=positive, help="step of the window (two thirds of the window)")
    if several:
        add("--scales", type=scale, nargs="+", default=[1.0], help="average over these scales (1)")
        add("--flip", action="store_true", help="average with the mirror image")
        add("--batch_size", type=positive, default=1, help="neighbouring images of equal size share a pass (1)")
    else:
        parser.set_defaults(scales=[1.0], flip=False)
    add("--window_batch", type=positive, help="windows per forward pass (1 on the CPU, 4 elsewhere)")
    add_device(parser)
    add("--precision", choices=tuple(PRECISIONS), default="no", help="autocast to a shorter type (no)")
    add("--compile", action="store_true", help="torch.compile: minutes once, faster afterwards")


def segmentation_options(args: argparse.Namespace) -> dict:
    """The keyword arguments for `segment` among the parsed arguments."""
    return {name: getattr(args, name) for name in SEGMENT}


def model_to_use(args: argparse.Namespace):
    """The model that was asked for, on its device, not `compiled` yet.

    Raises:
        InputError: it cannot be loaded, or the device is not there or cannot do what else was asked for.
    """
    device = pick_device(args.device)
    check_number_type(args.precision, device, "--precision")
    if args.compile:
        check_compiler(device, "install it or leave out --compile")
    return load_model(args.model, device=args.device, revision=args.model_revision)


def compiled(args: argparse.Namespace, model):
    """The same model, which compiles itself when it is called first, where --compile says so."""
    if args.compile:
        compile_networks([model], dynamic=True)
    return model
