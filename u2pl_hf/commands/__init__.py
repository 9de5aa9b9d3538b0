"""The program `u2pl`: each command is a module here, which its script in training_scripts/ calls as well."""

import difflib
import importlib
import sys

from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.version import __version__

# Commands in the order of a user's work; the modules have their names.
COMMANDS = {
    "prepare": "make a data set of archives, of folders of images and masks, or of what annotation tools export",
    "export-labels": "write a data set's masks for an annotation tool, to correct them there",
    "inspect": "look at a data set before training: counts, faults, images that are there twice",
    "plan": "say which recipe fits this machine and these images",
    "compare": "find out whether unlabelled images pay on your data; put finished runs side by side",
    "train": "train U2PL or another method from a recipe",
    "evaluate": "score a model on a data set: mIoU, IoU and accuracy per class",
    "calibrate": "make a model as sure as it is right, and say how sure that is",
    "predict": "segment photographs",
    "next": "say which unlabelled images to label next, and write masks to correct",
    "check-labels": "find labels that are likely wrong, by runs that were not trained on them",
    "app": "try a model in the browser",
    "push": "push a model to the Hub",
    "space": "make a Space on the Hub where anyone can try a model",
    "export": "write a model as an ONNX file",
    "convert": "make a model of a checkpoint of the published code",
    "table": "measure a table of runs",
    "cards": "render the cards and tables of a collection of runs",
}


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Run one command: its name, then its own arguments; without any, list them.

    Raises:
        SystemExit: as the command ends.
    """
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<{max(map(len, COMMANDS))}}  {about}" for command, about in COMMANDS.items()]
        print("usage: u2pl COMMAND ...; u2pl COMMAND --help lists its options", "", *lines, sep="\n")
    elif name == "--version":
        print(__version__)
    elif name in COMMANDS:
        # Parsers name their program after it.
        sys.argv = [f"u2pl {name}", *words]
        importlib.import_module(f"u2pl_hf.commands.{name.replace('-', '_')}").main(words)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"pass one of {', '.join(COMMANDS)}"
        raise InputError(f"u2pl has no command {name}; {hint}")
