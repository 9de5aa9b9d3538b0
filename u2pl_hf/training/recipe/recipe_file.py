"""Recipes: YAML files of fields, with values as the fields take them."""

import difflib
import reprlib
import typing
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import yaml

from u2pl_hf.command_line import text_rule
from u2pl_hf.errors import InputError
from u2pl_hf.resources import find_resource

MOST_BYTES = 100_000
EXAMPLE = "pass a YAML file such as training_scripts/recipes/demo_u2pl.yaml"
# Of a value in a message: the values of YAML can be lists of lists of the same list, without an end.
_brief = reprlib.Repr()
_brief.maxlevel = 1


class _Loader(yaml.SafeLoader):
    """Gives scalars as they are written, but for null: their fields know best what 010, no or 2026-01-01 stand for."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse a key that is there twice, of which YAML would keep the last; nothing is merged."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ValueError(f"'{key.value}' is there twice")
            seen.add(key.value)


_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_recipe(path: str | Path) -> dict:
    """Names and values of a recipe, as they are written.

    Raises:
        InputError: missing or malformed file.
    """
    content = _read(Path(path))
    if not isinstance(content, dict):
        raise InputError(f"recipe {path} must hold 'field: value' lines")
    return content


def typed_fields(path: str | Path, content: dict, kinds: Iterable[type], others: Iterable[str] = ()) -> dict:
    """A recipe's values as the fields of dataclasses take them.

    Args:
        path: of the recipe, for messages.
        others: known names that no field of these dataclasses has; they are left out.

    Raises:
        InputError: unknown field (with the nearest known name), value of the wrong type.
    """
    # Not the fields' own types: the argument parser has changed them.
    hints = {name: hint for kind in kinds for name, hint in typing.get_type_hints(kind).items()}
    choices = {f.name: f.metadata.get("choices") for kind in kinds for f in fields(kind)}
    typed = {}
    for name, value in content.items():
        if name in others:
            continue
        if name not in choices:
            raise InputError(f"recipe {path} has an unknown field {_brief.repr(name)}{nearest(str(name), choices)}")
        try:
            typed[name] = _typed(value, hints[name], choices[name])
        except (TypeError, ValueError, KeyError):
            takes = _takes(hints[name], choices[name])
            raise InputError(f"recipe {path}: field '{name}' must be {takes}, not {_brief.repr(value)}") from None
    return typed


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of an unknown field."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else "; --help lists all fields"


def _read(path: Path):
    if rule := text_rule(str(path)):
        raise InputError(f"recipe {path} {rule}")
    path = find_resource(path, "recipes")
    if not path.is_file():
        raise InputError(f"recipe {path} {'is no file' if path.exists() else 'does not exist'}; {EXAMPLE}")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"recipe {path} is too large for one; {EXAMPLE}")
        # As bytes: YAML tells UTF-8 and UTF-16 apart.
        return yaml.load(path.read_bytes(), _Loader) or {}
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read ({error.strerror}); {EXAMPLE}") from error
    except InputError:
        raise
    # What is wrong with a tag's value, or too deep, YAML tells by errors of many kinds.
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error


def _typed(value, hint, choices: tuple | None):
    """YAML's value as the field's type.

    Raises:
        TypeError, ValueError, KeyError: it is none.
    """
    accepted = typing.get_args(hint) or (hint,)
    if value is None and type(None) in accepted:
        return None
    if not isinstance(value, list if typing.get_origin(hint) is list else str):
        raise TypeError
    if isinstance(value, list):
        return [_typed(item, accepted[0], choices) for item in value]
    typed = READERS.get(accepted[0], accepted[0])(value)
    if choices and typed not in choices:
        raise ValueError
    return typed


def _whole(text: str) -> int:
    """1.0e+3 is a whole number as well."""
    try:
        return int(text)
    except ValueError:
        if not float(text).is_integer():
            raise
        return int(float(text))


READERS = {int: _whole, bool: lambda text: yaml.SafeLoader.bool_values[text.lower()]}


def _takes(hint, choices: tuple | None) -> str:
    """What a field takes, in words."""
    if choices:
        return f"one of {', '.join(choices)}"
    kind = (typing.get_args(hint) or (hint,))[0].__name__
    return f"a list of {kind}" if typing.get_origin(hint) is list else kind
