"""Try a trained model in the browser.

    python training_scripts/app.py runs/demo_u2pl --dataset demo

The page shows overlay, classes and reliability of a photograph. Its address is told on stderr, and as one JSON object
on stdout where that is no terminal; the page is there until Ctrl-C. It needs `pip install 'u2pl_hf[app]'`.
"""

import argparse
import socket
import tempfile
import threading
from pathlib import Path

import u2pl_hf  # noqa: F401 - registers the model classes
from u2pl_hf.app.examples import find_examples, write_examples
from u2pl_hf.app.explain import LONGEST_SIDE
from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.errors import InputError, exits_on_input_error


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("model", help="folder that training exported, or a Hub id")
    parser.add_argument("--model_revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--examples", nargs="+", default=[], metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--dataset", help="take examples from a data set: demo, a folder, or a Hub id")
    parser.add_argument("--subset", default="validation", help="of the data set (default: validation)")
    parser.add_argument("--num_examples", type=number(int, at_least=1, at_most=1000), default=6,
                        help="taken from the data set (default: 6)")  # fmt: skip
    parser.add_argument(
        "--longest_side",
        type=number(int, at_least=1),
        default=LONGEST_SIDE,
        help=f"shrink larger images to it (default: {LONGEST_SIDE})",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="0: a free one (default: 7860)")
    parser.add_argument("--share", action="store_true", help="also give it a public address, through Gradio's servers")
    return parser.parse_args()


@exits_on_input_error
def main() -> None:
    """Serve the page until Ctrl-C."""
    args = parse_arguments()
    port = find_port(args.host, args.port)
    # Here, so that an installation without Gradio is told in one line.
    from u2pl_hf.app.page import launch_page, open_model

    with tempfile.TemporaryDirectory() as folder:
        examples = find_examples(args.examples)
        if args.dataset:
            examples += write_examples(args.dataset, args.subset, args.num_examples, Path(folder))
        blocks = open_model(
            args.model,
            revision=args.model_revision,
            device=args.device,
            examples=examples,
            longest_side=args.longest_side,
        )
        url = launch_page(blocks, server_name=args.host, server_port=port, share=args.share)
        told = f"{args.model} is at {url} until Ctrl-C"
        print_result({"model": args.model, "url": url}, told, as_json=args.json)
        threading.Event().wait()


def find_port(host: str, port: int) -> int:
    """The port itself where it is free; a free one for 0.

    Raises:
        InputError: it is in use, or nothing can listen there.
    """
    try:
        with socket.socket() as probe:
            # As the server itself: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({error}); pass another port, or 0 for a free one"
        ) from error


if __name__ == "__main__":
    main()
