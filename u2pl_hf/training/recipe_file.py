"""Recipes: YAML files of fields, with values as the fields take them."""

import difflib
import typing
from dataclasses import fields
from pathlib import Path

import yaml

from u2pl_hf.errors import InputError


def read_recipe(path: Path, kind: type) -> dict:
    """The fields of a dataclass `kind` that a recipe names.

    Raises:
        InputError: missing or malformed file, unknown field (with the nearest known name), value of the wrong type.
    """
    if not path.is_file():
        raise InputError(
            f"recipe {path} does not exist; pass a YAML file such as training_scripts/recipes/demo_u2pl.yaml"
        )
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"recipe {path} must hold 'field: value' lines")
    known = {f.name: f.metadata.get("choices") for f in fields(kind)}
    # Not the fields' own types: the argument parser has changed them.
    hints = typing.get_type_hints(kind)
    for name, value in content.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "; --help lists all fields"
            raise InputError(f"recipe {path} has an unknown field '{name}'{hint}")
        try:
            content[name] = _typed(value, hints[name], known[name])
        except ValueError as error:
            raise InputError(f"recipe {path}: field '{name}' must be {error}, not {value!r}") from None
    return content


def _typed(value, hint, choices: tuple | None):
    """YAML's value as the field's type; 1e-3, which YAML takes for text, becomes a number.

    Raises:
        ValueError: with what the field takes.
    """
    accepted = typing.get_args(hint) or (hint,)
    kind = accepted[0]
    if value is None and type(None) in accepted:
        return None
    if typing.get_origin(hint) is list:
        if not (isinstance(value, list) and all(isinstance(item, kind) for item in value)):
            raise ValueError(f"a list of {kind.__name__}")
        return value
    try:
        typed = value if isinstance(value, bool) else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(kind.__name__) from None
    lossy = isinstance(value, list | dict | type(None)) or (kind is int and float(value) != typed)
    if lossy or isinstance(value, bool) != (kind is bool):
        raise ValueError(kind.__name__)
    if choices and typed not in choices:
        raise ValueError(f"one of {', '.join(map(str, choices))}")
    return typed
