"""Facts of a run as they may be shown to others: folders of this machine by their names only."""

import re
import shlex
from pathlib import Path, PureWindowsPath

# /home/me/x, ~/x, ../x, C:\x: where somebody keeps things. data/x below the current folder tells nothing of them.
PRIVATE = re.compile(r"(/|~|\.\.[/\\]|[A-Za-z]:[/\\])")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def public_facts(facts: dict) -> dict:
    """A copy without the paths of this machine; the same again changes nothing.

    `dataset` becomes a Hub id or a name, and `dataset_on_hub` tells which; the list of a split keeps its folder's
    name.
    """
    public = {key: value if key == "class_names" else _public(value) for key, value in facts.items()}
    if isinstance(facts.get("dataset"), str):
        public["dataset_on_hub"] = facts.get("dataset_on_hub", is_hub_id(facts["dataset"]))
        public["dataset"] = facts["dataset"] if public["dataset_on_hub"] else _name(facts["dataset"])
    if isinstance(facts.get("split"), str) and PRIVATE.match(facts["split"]):
        public["split"] = "/".join(PureWindowsPath(facts["split"]).parts[-2:])
    if isinstance(facts.get("output_dir"), str):
        public["output_dir"] = _name(facts["output_dir"])
    if isinstance(facts.get("command"), str):
        try:
            public["command"] = shlex.join(_public_word(word) for word in shlex.split(facts["command"]))
        except ValueError:  # a quote that does not end: no command that ran
            public["command"] = None
    return public


def is_hub_id(name: str) -> bool:
    """Whether it reads like owner/name and no such folder lies here."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def _public(value):
    if isinstance(value, dict):
        return {key: _public(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_public(part) for part in value]
    return _name(value) if isinstance(value, str) and PRIVATE.match(value) else value


def _public_word(word: str) -> str:
    option, equals, value = word.partition("=")
    if option.startswith("-") and equals:
        return f"{option}={_public(value)}"
    return _public(word)


def _name(path: str) -> str:
    # Knows both kinds of slashes.
    return PureWindowsPath(path).name or path
