"""Train SupOnly, U2PL or another method from a recipe.

    accelerate launch --quiet training_scripts/train_u2pl.py training_scripts/recipes/demo_u2pl.yaml --seed 1

Any field of the recipe can be given on the command line as well and wins there. Logs and scores go to stderr; the last
line on stdout, where that is no terminal, is the result as JSON. Run again with the same arguments to go on after an
interruption. --quiet keeps accelerate from putting its own traceback behind an error message.
"""

import contextlib
import sys
from pathlib import Path

from u2pl_hf.command_line import print_result, readable
from u2pl_hf.errors import TrainingError, exits_on_input_error
from u2pl_hf.system.processes import joined_processes, together
from u2pl_hf.training.build import build_run
from u2pl_hf.training.plan import plan_run, plan_without_data, published_counts
from u2pl_hf.training.recipe.command import parse_arguments
from u2pl_hf.training.run.endings import failures_in_one_line
from u2pl_hf.training.run.report import summary
from u2pl_hf.training.run.upload import push_finished
from u2pl_hf.training.trainer import Trainer


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Parse, train, print the result."""
    stdout = sys.stdout
    # Some trackers print; stdout is for the result.
    with joined_processes() as processes, contextlib.redirect_stdout(sys.stderr):
        args = together(processes, lambda: parse_arguments(sys.argv[1:] if argv is None else argv, __doc__))
        counts = published_counts(args) if args.plan else None
        if counts:
            result = plan_without_data(args, counts, args.plan_processes or processes.num_processes)
        else:
            with failures_in_one_line(Path(args.output_dir)):
                run = build_run(args)
            result = plan_run(run) if args.plan else Trainer(run).train()
    # The other processes have gone: an upload may take longer than they would wait.
    if processes.is_main_process:
        if args.push_to_hub and not args.plan:
            result |= push_finished(args)
        told = readable(result) if args.plan else summary(args, result)
        print_result(result, told, as_json=args.json, file=stdout)
        if result.get("hub_error"):
            raise TrainingError(f"the run is finished, but {result['hub_error']}")
