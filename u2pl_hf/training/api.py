"""A run from Python, as from a notebook."""

from pathlib import Path

from u2pl_hf.method import Step, register
from u2pl_hf.system.processes import join_processes, together
from u2pl_hf.training.build import Run, build_run
from u2pl_hf.training.recipe.command import recipe_arguments
from u2pl_hf.training.run.endings import failures_in_one_line
from u2pl_hf.training.trainer import Trainer


def train(recipe: str | Path | None = None, *, method: str | type[Step] | None = None, **fields) -> Run:
    """Train a recipe and return the finished run: `.model`, `.results`, `.folder`. Call it again to go on.

    Args:
        recipe: a YAML file, or the name of one that comes with the package; None: all defaults.
        method: a method's name, or a Step of your own.
        fields: any field of the run or of its method, in place of the recipe's, such as `output_dir="runs/first"`.

    Raises:
        InputError: something that was passed cannot be used; one line says what to pass.
        TrainingError: the run broke off; what it has done is in its folder.
    """
    if isinstance(method, type):
        method = register(method).name
    fields |= {} if method is None else {"method": method}
    args = together(join_processes(), lambda: recipe_arguments(recipe, fields))
    with failures_in_one_line(Path(args.output_dir)):
        run = build_run(args)
    Trainer(run).train()
    return run
