"""Recipes and tables of the project, which are part of the package: in a checkout they lie in training_scripts/."""

import difflib
from pathlib import Path

from u2pl_hf.errors import InputError


def resource_folder(kind: str) -> Path:
    """Where the YAML files of a kind, "recipes" or "tables", are: beside this file where it is installed."""
    installed = Path(__file__).parent / kind
    return installed if installed.is_dir() else installed.parents[1] / "training_scripts" / kind


def find_resource(path: Path, kind: str) -> Path:
    """The file that a path, or the bare name of one of the project's own, stands for.

    Raises:
        InputError: it is a bare name, and there is neither a file nor one of the project's of this name.
    """
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    names = sorted(file.stem for file in resource_folder(kind).glob("*.yaml"))
    if path.name not in names:
        near = difflib.get_close_matches(path.name, names) or names
        raise InputError(f"{path} is neither a file nor one of the {kind}, such as {', '.join(near)}")
    return resource_folder(kind) / f"{path.name}.yaml"
