"""Make a trained model as sure as it is right: one temperature that its scores are divided by.

    u2pl calibrate runs/photos --dataset data/photos

It is fitted on half of the images and measured on the other half: expected calibration error and negative
log-likelihood, before and after, and reliability.png in the model's folder. The temperature goes into the model's
config.json, and from there into all that makes probabilities: predict, --reject_below, the page, ONNX, from_pretrained.
The classes that are predicted stay the same. Where the likelihood of the other half is no better, the temperature is 1.
Again on the same images gives the same. The last line of stdout, where that is no terminal, is one JSON object.
"""

import argparse
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.commands.evaluate import add_data, model_and_data
from u2pl_hf.commands.options import add_segmentation, segmentation_options
from u2pl_hf.errors import exits_on_input_error, require
from u2pl_hf.evaluation import calibration
from u2pl_hf.evaluation.inference import describe_protocol
from u2pl_hf.evaluation.loading import HUB_ID
from u2pl_hf.evaluation.outputs import check_writable
from u2pl_hf.hub.results import Calibration, read_results
from u2pl_hf.measure.side_by_side import aligned, percent
from u2pl_hf.system.precision import computing
from u2pl_hf.training.run.model_folder import RELIABILITY, store_calibration

# Their logits are held: with 100 classes 40 MB, and three times as much in float64 while the temperature is sought.
PIXELS = 100_000


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("model", help="folder that training exported; its config.json is changed")
    add_data(parser)
    told = f"labelled pixels to fit on, as many of each image ({PIXELS:,})"
    parser.add_argument("--pixels", type=number(int, at_least=100), default=PIXELS, help=told)
    add_segmentation(parser, several=False)
    args = parser.parse_args(argv)
    args.model_revision, args.protocol = None, describe_protocol(**segmentation_options(args))
    told = f"model {args.model} is no folder, in which the temperature is stored; pass one that training exported"
    fetch = f", or fetch a model on the Hub first: hf download {args.model} --local-dir FOLDER"
    require(Path(args.model).is_dir(), told + (fetch if HUB_ID.fullmatch(args.model) else ""))
    return args


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Fit, measure, store, tell."""
    args = parse_arguments(argv)
    folder = Path(args.model)
    model, source = model_and_data(args)
    read_results(folder)
    check_writable(folder, "model")
    images = len(source.ids)
    require(images > 1, f"--subset {args.subset} has {images} image: pass one with several, half of them are fitted on")
    # Whatever was stored before, so that the same again gives the same.
    model.config.temperature = 1.0
    with computing(args.precision, model.device):
        facts, figure = calibrate(args, model, source)
    is_in_card = store_calibration(folder, facts, figure)
    changed = ["config.json", *["README.md"] * is_in_card, RELIABILITY]
    told = f"{words(facts)}; written in {folder}: {', '.join(changed)}"
    print_result({"model": args.model, **facts, "card": is_in_card}, told, as_json=args.json)


def calibrate(args: argparse.Namespace, model, source):
    """What is stored, and the picture.

    Raises:
        InputError: a half has no labelled pixel, or no temperature fits.
    """
    fit, held_out = calibration.halves(len(source.ids))
    options = segmentation_options(args)
    logits, labels, weights = calibration.sample_logits(model, source, fit, args.pixels, **options)
    labelled = f"--subset {args.subset}: one half of its images is 255 (ignored) throughout; pass one with labels"
    require(len(labels), labelled)
    temperature = calibration.fit_temperature(logits, labels, weights)
    before, after = calibration.measure(model, source, held_out, (1.0, temperature), **options)
    require(before.pixels.any(), labelled)
    facts = Calibration(
        # Of few images, or for a model that is calibrated already, what one half wants may be wrong for the other.
        temperature=temperature if after.nll < before.nll else 1.0,
        fitted_temperature=temperature,
        dataset=args.dataset,
        subset=args.subset,
        protocol=args.protocol,
        fitted_images=len(fit),
        fitted_pixels=len(labels),
        images=len(held_out),
        pixels=int(before.pixels.sum()),
        bins=calibration.BINS,
        ece_before=before.ece,
        ece=after.ece,
        nll_before=before.nll,
        nll=after.nll,
    )
    return facts, calibration.draw_reliability({1.0: before, temperature: after})


def words(facts: Calibration) -> str:
    """The table for people, and what was done."""
    fitted = facts["fitted_temperature"]
    rows = [
        ("temperature", "1", str(fitted)),
        ("expected calibration error, per cent", percent([facts["ece_before"]]), percent([facts["ece"]])),
        ("negative log-likelihood", f"{facts['nll_before']:.4f}", f"{facts['nll']:.4f}"),
    ]
    told = f"on {facts['images']:,} images with {facts['pixels']:,} labelled pixels; {fitted} was fitted on the other "
    told += f"{facts['fitted_images']:,}, {facts['fitted_pixels']:,} pixels"
    told += "" if facts["temperature"] == fitted else ", and is no better: the model's temperature is 1"
    return f"{aligned(rows)}\n{told}"
