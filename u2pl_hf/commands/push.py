"""Push a trained model to the Hub, with its card, its curves and the facts of its run.

    python training_scripts/push_to_hub.py runs/demo_u2pl --repo_id user/demo-u2pl --revision seed0 --private

Any exported folder will do: that of a finished run, its best/, or one of convert_checkpoint.py. Log in first with
`hf auth login` or HF_TOKEN. The same command again sends only what is missing. The last line on stdout, where
that is no terminal, is one JSON object with the files and the addresses of the commits.
"""

from pathlib import Path

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import exits_on_input_error
from u2pl_hf.hub.push import check_can_push
from u2pl_hf.training.run.upload import RunPush


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Check, push, print the result."""
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("output_dir", type=Path, help="folder with the exported model")
    add("--repo_id", required=True, metavar="USER/NAME", help="made if it is not there")
    add("--revision", metavar="BRANCH", help="made if it is not there, such as voc_732-seed0; default: main")
    add("--private", action="store_true", help="make the new repository private")
    add("--best", action="store_true", help="the model of the best evaluation instead of the last one")
    add("--with_checkpoint", action="store_true", help="the newest complete checkpoint as well, to BRANCH-checkpoint")
    told = "finished runs, such as of other seeds, that the card shows beside this one"
    add("--other_runs", type=Path, nargs="+", default=[], metavar="DIR", help=told)
    add("--commit_message", help="default: one that names the folder")
    add("--dry_run", action="store_true", help="print what would be sent, and do not ask the Hub")
    args = vars(parser.parse_args(argv))
    as_json, dry_run = args.pop("json"), args.pop("dry_run")
    push = RunPush(args.pop("output_dir"), args.pop("repo_id"), others=args.pop("other_runs"), **args)
    result = push.plan()
    if not dry_run:
        check_can_push(push.repo_id)
        result = push.push()
    print_result(result, as_json=as_json)
