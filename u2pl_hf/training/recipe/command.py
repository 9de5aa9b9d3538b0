"""From a command line to checked arguments: the options of a run and of its method, and the recipe they change."""

import argparse
import dataclasses
import logging
import typing
from pathlib import Path

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from u2pl_hf.errors import InputError
from u2pl_hf.method import METHODS, Step
from u2pl_hf.training.recipe.arguments import (
    RunArguments,
    find_method,
    load_method_module,
    other_settings,
    run_arguments,
    steps_of_epochs,
)
from u2pl_hf.training.recipe.recipe_file import read_recipe, typed_fields

logger = logging.getLogger(__name__)


class _Parser(HfArgumentParser):
    """Options of dataclasses, whose bounds RunArguments knows; tells a wrong option in one line."""

    def __init__(self, *kinds: type, **options):
        super().__init__(kinds, allow_abbrev=False, conflict_handler="resolve", **options)
        self.add_argument("recipe", help="a recipe's name, or a YAML file with fields of this list")

    def add_argument(self, *names, **options) -> argparse.Action:
        for own in ("bounds", "counts", "displaces", "decides"):
            options.pop(own, None)
        if options.get("type") is string_to_bool:
            # So that the name alone is enough where the default is neither true nor false, too.
            options = {"nargs": "?", "const": True} | options
        return super().add_argument(*names, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message} (--help lists all options)")

    def told(self, argv: list[str], *, strict: bool) -> dict:
        """The values that stand there, without defaults."""
        names = argparse.Namespace(**{action.dest: None for action in self._actions})
        found = self.parse_args(argv, names) if strict else self.parse_known_args(argv, names)[0]
        return {name: value for name, value in vars(found).items() if value is not None}


def parse_arguments(argv: list[str], description: str) -> RunArguments:
    """RECIPE [--field value ...] -> checked arguments.

    Raises:
        InputError: missing or malformed recipe, unknown field (with the nearest known name), value of the wrong type.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--method", "--method_module"):
        first.add_argument(name)
    first.add_argument("-h", "--help", action="store_true")
    chosen, _ = first.parse_known_args(argv)
    if chosen.method_module:
        load_method_module(chosen.method_module)
    if chosen.help:
        settings = find_method(chosen.method or RunArguments.method).Settings
        _Parser(RunArguments, settings, description=description).parse_args(["--help"])
    # To find the recipe, wherever it stands, all options must be known.
    told = _parser().told(argv, strict=False)
    if "recipe" not in told:
        _parser().error("the following arguments are required: recipe")
    recipe = read_recipe(told["recipe"])
    method = _method(recipe, vars(chosen))
    told = _parser(method).told(argv, strict=True)
    if useless := sorted(other_settings(method) & told.keys()):
        logger.warning("--%s has no meaning for --method %s", ", --".join(useless), method.name)
    return _merged(told.pop("recipe"), recipe, method, told)


def recipe_arguments(recipe: str | Path | None, told: dict) -> RunArguments:
    """Checked arguments of a recipe with other values for some fields, for callers from Python.

    Raises:
        InputError: as parse_arguments.
    """
    content = {} if recipe is None else read_recipe(recipe)
    method = _method(content, told)
    # As a recipe's are read: a number may be text, a path a Path, and a wrong type is told in one line.
    written = {name: _written(value) for name, value in told.items()}
    told = typed_fields("in Python", written, (RunArguments, method.Settings), other_settings(method))
    return _merged(recipe, content, method, told)


def _written(value):
    """A value as recipes have it."""
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    return value if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _method(recipe: dict, told: dict) -> type[Step]:
    """The method of a recipe, unless another is told; its module is loaded first."""
    module = told.get("method_module") or recipe.get("method_module")
    if module:
        load_method_module(str(module))
    return find_method(str(told.get("method") or recipe.get("method", RunArguments.method)))


def _merged(path: str | Path | None, recipe: dict, method: type[Step], told: dict) -> RunArguments:
    recipe = typed_fields(path, recipe, (RunArguments, method.Settings), other_settings(method))
    displaced = {rival for name in told for rival in _displaced(method).get(name, ())}
    for field in dataclasses.fields(method.Settings):
        for value, rivals in field.metadata["displaces"].items():
            displaced.update(rivals if told.get(field.name) == value else ())
    return run_arguments(**{name: value for name, value in recipe.items() if name not in displaced} | told)


def _parser(chosen: type[Step] | None = None) -> _Parser:
    """With the options of all methods; where two have one of the same name, that of `chosen`."""
    kinds = dict.fromkeys(method.Settings for method in METHODS.values())
    if chosen:
        # Of options of one name the last counts.
        kinds.pop(chosen.Settings)
        kinds[chosen.Settings] = None
    return _Parser(RunArguments, *kinds, add_help=False)


def _displaced(method: type[Step]) -> dict[str, tuple[str, ...]]:
    """What the command line says takes these fields of a recipe back to their defaults: both cannot hold."""
    counted = steps_of_epochs(RunArguments, method.Settings).items()
    return {steps: (epochs,) for epochs, steps in counted} | {
        "initial_model": ("backbone_weights", "backbone_weights_revision"),
        "backbone_weights": ("initial_model", "initial_model_revision"),
    }
