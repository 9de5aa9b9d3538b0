"""Make a Space on the Hub, or a folder of one, where anyone can try a model.

    python training_scripts/push_space.py user/model --repo_id user/try-model
    python training_scripts/push_space.py user/model --output_dir my_space

A model that is a folder is copied into the Space. Only images given as --examples go along; whether they may be
published is for you to know. The last line of stdout, where that is no terminal, is one JSON object with the
folder and the commit's address.
"""

import tempfile
from pathlib import Path

from u2pl_hf.app.photos import find_examples
from u2pl_hf.app.space import write_space
from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.commands.options import add_model, add_page
from u2pl_hf.errors import exits_on_input_error, refusing, require
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.outputs import check_writable
from u2pl_hf.files import write_atomically
from u2pl_hf.hub.push import check_can_push, push_folder


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Write the folder, then push it."""
    parser = ScriptParser(description=__doc__)
    add_model(parser)
    parser.add_argument("--repo_id", metavar="USER/NAME", help="push it there")
    parser.add_argument("--private", action="store_true", help="a new Space that only you see")
    told = "new folder to keep the files in; without --repo_id nothing is pushed"
    parser.add_argument("--output_dir", type=Path, help=told)
    add_page(parser)
    args = parser.parse_args(argv)
    parser.require_with(args, "repo_id", "private")
    goal = args.repo_id or args.output_dir
    require(goal, "pass --repo_id USER/NAME to push the Space, or --output_dir to keep its folder, or both")
    is_new = not args.output_dir or not args.output_dir.exists()
    require(is_new, f"--output_dir {args.output_dir} is already there: pass a new folder")
    if args.repo_id:
        check_can_push(args.repo_id, "space")
    examples = find_examples(args.examples)
    # A Space that cannot start would say so only in its log.
    load_model(args.model, device="cpu", revision=args.model_revision)
    if args.output_dir:
        check_writable(args.output_dir.parent, "--output_dir in")
    with tempfile.TemporaryDirectory(prefix="u2pl_space_") as temporary:
        folder = args.output_dir or Path(temporary, "space")
        settings = args.model, args.model_revision, args.title, args.longest_side, examples
        with refusing(OSError, f"{folder} cannot be written"):
            write_atomically(folder, lambda path: write_space(path, *settings))
        result = {"model": args.model} | ({"folder": str(folder)} if args.output_dir else {})
        if args.repo_id:
            result["url"] = push_folder(folder, args.repo_id, repo_type="space", private=args.private)
    print_result(result, as_json=args.json)
