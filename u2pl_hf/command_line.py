"""What all scripts share: numbers with bounds, wrong options told in one line, a result for people and for programs."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from u2pl_hf.errors import InputError, require

# Of numbers whose bounds say no more.
LARGEST = 1_000_000_000
# Line breaks and their like, and bytes of a name that are no UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Of a name in a path, and of a path, in bytes: longer ones are an error of the system at whatever looks for them.
LONGEST_NAME, LONGEST_PATH = 255, 4095


def broken_rule(
    value: float, *, at_least: int = 0, at_most: float = LARGEST, above: int | None = None, below: int | None = None
) -> str | None:
    """The rule that a number breaks, in words; None if it keeps all. `above` and `below` exclude the bound itself."""
    low = value >= at_least if above is None else value > above
    if low and (value <= at_most if below is None else value < below):
        return None
    if at_most == 1 or below is not None:
        start = f"[{at_least}" if above is None else f"({above}"
        return f"must lie in {start}, {at_most}]" if below is None else f"must lie in {start}, {below})"
    if at_most < value < math.inf:
        return f"must be at most {at_most:,}"
    if isinstance(value, float):
        return f"must be a number from {at_least} on" if above is None else "must be a positive number"
    return "must not be negative" if at_least == 0 else f"must be at least {at_least}"


def number(kind: type, **bounds) -> Callable[[str], float]:
    """The `type` of an option of argparse: an int or a float within the bounds of `broken_rule`."""

    def read(text: str) -> float:
        value = kind(text)
        if rule := broken_rule(value, **bounds):
            raise argparse.ArgumentTypeError(f"is {text}: it {rule}")
        return value

    read.__name__ = kind.__name__  # argparse: "invalid int value"
    return read


def text_rule(text: str) -> str | None:
    """Why no file, class or repository can be called so, in words; None if one can."""
    if CONTROL.search(text):
        return "has a line break or another character that is no text: pass it without"
    return "is too long for a name or a path: pass a shorter one" if is_too_long(text) else None


def is_too_long(path: str) -> bool:
    """Whether the system would refuse to look for it."""
    path = os.fsencode(path)
    return len(path) > LONGEST_PATH or max(map(len, path.split(b"/"))) > LONGEST_NAME


class ScriptParser(argparse.ArgumentParser):
    """Tells a wrong option in one line, as an InputError: several processes can agree on that. Has --json."""

    def __init__(self, **options):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)
        # Sub-commands have it as well, and must not take back what stands before them.
        self.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                          help="print the result as JSON on a terminal as well")  # fmt: skip

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As ever; refuses paths that are too long for the system."""
        found = super().parse_args(args, namespace)
        found.json = "json" in found
        for name, value in vars(found).items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str | Path) and is_too_long(str(item)):
                    self.error(f"{name} {item} is too long for a path")
        return found

    def require_with(self, args: argparse.Namespace, needed: str, *names: str) -> None:
        """Refuse options that say nothing without another one, where they are not what they are by default.

        Raises:
            InputError: names both.
        """
        unused = next((name for name in names if getattr(args, name) != self.get_default(name)), None)
        told = f"--{unused} says nothing without --{needed}: pass that as well, or leave it out"
        require(getattr(args, needed) or unused is None, told)

    def error(self, message: str) -> None:
        """Raise instead of printing the usage and exiting."""
        # A number out of bounds: "argument --size: is 0: it must ...".
        raise InputError(f"{message.replace(': is ', ' is ', 1)}; --help lists the options")


def split_at_dashes(argv: list[str] | None) -> tuple[list[str], list[str]]:
    """The words of a command line before and after "--", which argparse itself takes only at some places."""
    words = sys.argv[1:] if argv is None else argv
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def print_result(result: dict, told: str | None = None, *, as_json: bool = False, file: TextIO | None = None) -> None:
    """End a script: for people on stderr, and as a line of JSON on stdout, on a terminal only with --json.

    Args:
        told: in words; None: the result's fields, where the JSON is not shown.
        file: stdout, where it is not sys.stdout.
    """
    file = file or sys.stdout
    # What stands in for stdout, as in a notebook, may not say what it is.
    as_json = as_json or not getattr(file, "isatty", bool)()
    if told or not as_json:
        print(told or readable(result), file=sys.stderr)
    if as_json:
        print(json.dumps(result), file=file, flush=True)


def readable(facts: dict) -> str:
    """Facts as lines for people."""
    width = max(map(len, facts))
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {_words(value)}" for name, value in facts.items())


def _words(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
