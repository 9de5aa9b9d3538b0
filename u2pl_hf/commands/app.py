"""Try a trained model in the browser.

    python training_scripts/app.py runs/demo_u2pl --dataset demo

The page shows overlay, classes and reliability of a photograph. Its address is told on stderr, and as one JSON object
on stdout where that is no terminal; the page is there until Ctrl-C. It needs `pip install 'u2pl_hf[app]'`.
"""

import os
import socket
import tempfile
import threading
from pathlib import Path

from PIL import Image

from u2pl_hf.app.photos import card_scores, describe_model, find_examples, model_title
from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.commands.options import add_device, add_model, add_page
from u2pl_hf.data.sources import load_source
from u2pl_hf.errors import exits_on_input_error, refusing
from u2pl_hf.evaluation.folding import folded
from u2pl_hf.evaluation.loading import load_model


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    parser = ScriptParser(description=__doc__)
    add_model(parser)
    add_page(parser)
    add, some = parser.add_argument, number(int, at_least=1, at_most=1000)
    add("--dataset", help="take examples from a data set: demo, a folder, or a Hub id")
    add("--subset", default="validation", help="of the data set (default: validation)")
    add("--num_examples", type=some, default=6, help="taken from the data set (default: 6)")
    add_device(parser)
    # As a Space is told where to listen.
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    add("--host", default=host, help=f"address to listen on; 0.0.0.0: all (default: {host})")
    add("--port", type=int, default=port, help=f"0: a free one (default: {port})")
    add("--share", action="store_true", help="also give it a public address, through Gradio's servers")
    args = parser.parse_args(argv)
    parser.require_with(args, "dataset", "subset", "num_examples")
    port = find_port(args.host, args.port)
    # Here, so that an installation without Gradio is told in one line.
    from u2pl_hf.app.page import build_page, launch_page

    with tempfile.TemporaryDirectory() as folder:
        examples = find_examples(args.examples)
        if args.dataset:
            examples += write_examples(args.dataset, args.subset, args.num_examples, Path(folder))
        model = load_model(args.model, device=args.device, revision=args.model_revision)
        facts = [describe_model(model), *card_scores(args.model, args.model_revision)]
        blocks = build_page(folded(model), args.title or model_title(args.model), facts, examples, args.longest_side)
        url = launch_page(blocks, server_name=args.host, server_port=port, share=args.share)
        told = f"{args.model} is at {url} until Ctrl-C"
        print_result({"model": args.model, "url": url}, told, as_json=args.json)
        threading.Event().wait()


def write_examples(dataset: str, subset: str, count: int, folder: Path) -> list[Path]:
    """The first `count` images of a data set's subset as PNG files in `folder`.

    Raises:
        InputError: no such data set or subset, or a damaged image.
    """
    source = load_source(dataset, subset, label_column=None)
    # Ids may hold slashes; the number alone is a name everywhere.
    files = [folder / f"{subset}_{index}.png" for index in range(min(count, len(source.ids)))]
    for index, file in enumerate(files):
        Image.fromarray(source.read_image(index)).save(file)
    return files


def find_port(host: str, port: int) -> int:
    """The port itself where it is free; a free one for 0.

    Raises:
        InputError: it is in use, or nothing can listen there.
    """
    wrong, hint = f"--host {host} --port {port}: cannot listen there", "; pass another port, or 0 for a free one"
    with refusing((OSError, OverflowError), wrong, hint), socket.socket() as probe:
        # As the server itself: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return probe.getsockname()[1]
