"""Class lists: names, and how masks paint each class."""

import csv
import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from u2pl_hf.constants import IGNORE
from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.files import read_text

logger = logging.getLogger(__name__)
IGNORED_NAMES = ("ignore", "void")
HEADERS = (["name", "r", "g", "b"], ["name", "red", "green", "blue"], ["name", "value"])
# Of one column.
HEADS = ("name", "names", "class", "classes", "class_name", "label", "labels")
# NAME VALUE and VALUE NAME with something else than a comma between.
UNCLEAR = re.compile(r"[^,]*[^\s,][\s;:=|]+\d+|\d+[\s;:=|]+[^\s,\d][^,]*|[^,]*;[^,]*")
FORMS = "a line is NAME, NAME,R,G,B or NAME,VALUE with numbers from 0 to 255"
# Other programs' tables: NAME R G B, and R G B NAME, with blanks between.
BLANKS = re.compile(r"(?P<name>.*\S)\s+(?P<after>\d+\s+\d+\s+\d+)|(?P<before>\d+\s+\d+\s+\d+)\s+(?P<rest>\S.*)")


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set; a class's place is its id.

    Attributes:
        names: one per class.
        colours: how masks paint each class, (r, g, b) or (grey value,), all of one kind; None: masks hold ids.
        ignore_colours: more colours of the same kind, for pixels to ignore.
        other_colours: (colour, class id) for classes that masks paint in more colours than one.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, ...], ...] | None = None
    ignore_colours: tuple[tuple[int, ...], ...] = ()
    other_colours: tuple[tuple[tuple[int, ...], int], ...] = ()

    @property
    def painted(self) -> list[tuple[tuple[int, ...], int]]:
        """(colour, class id or 255) of all that is named."""
        own = [(colour, class_id) for class_id, colour in enumerate(self.colours or ())]
        return own + [*self.other_colours] + [(colour, IGNORE) for colour in self.ignore_colours]

    @property
    def palette(self) -> list[list[int]] | None:
        """[r, g, b] per class, where there are such colours. Grey values only say how masks were painted."""
        return [list(colour) for colour in self.colours] if self.colours and len(self.colours[0]) == 3 else None


class _Entry(NamedTuple):
    where: str
    name: str
    colour: tuple[int, ...] | None

    @property
    def is_ignored(self) -> bool:
        return self.name.lower() in IGNORED_NAMES


def read_class_list(path: Path) -> ClassList:
    """Read a class list.

    Text: one class per line, `name`, `name,R,G,B` (or with blanks, `name R G B` and `R G B name`) or `name,VALUE`; a
    header line, `#` comments and blank lines may be there. JSON: a list of names, or an object from names to
    [r, g, b], a grey value or null. A class that masks paint in several colours has several lines, or a list of them
    in JSON, such as [[1], [255]]. One named ignore or void stands for pixels to ignore; without colours, a name's place
    is its value in the masks. A name in quotes, as in CSV, is taken as it stands. Blanks around a name do not count.

    Raises:
        InputError: names the file and the line.
    """
    text = read_text(Path(path), "pass a class list")
    _check_forms(text, path)
    return parse_class_list(text, str(path))


def _check_forms(text: str, path: Path) -> None:
    """Refuse what a user may have meant otherwise than as names; what this package wrote itself is not asked."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if hidden := [line for line in lines if re.match(r"#\w", line)]:
        told = "class list %s: %d lines are taken for comments, such as %s; quote a name that begins with #"
        logger.warning(told, path, len(hidden), hidden[0])
    lines = [line for line in lines if not line.startswith(("#", '"', "[", "{"))]
    head = lines[0] if lines else ""
    require(head.lower() not in HEADS, f"class list {path}: '{head}' reads like a header; leave it out, or quote it")
    unclear = [line for line in lines if UNCLEAR.fullmatch(line) and not BLANKS.fullmatch(line)]
    # zone 1, zone 2 ... are names: values would not come with one name again and again.
    if len(unclear) < len(lines) or len({re.sub(r"\d+", "", line) for line in unclear}) < len(lines):
        unclear = [line for line in unclear if ";" in line]
    if unclear:
        ways = f'NAME,VALUE or NAME,R,G,B, or "{unclear[0]}" if it is the name'
        raise InputError(f"class list {path}: '{unclear[0]}' may be a name, or a name and numbers: write {ways}")


def parse_class_list(text: str, path: str) -> ClassList:
    """The classes in a text, see `read_class_list`; `path` is where it comes from.

    Raises:
        InputError: names the file and the line.
    """
    is_json = path.lower().endswith(".json") or text.lstrip().startswith(("[", "{"))
    entries = list((_json_entries if is_json else _text_entries)(f"class list {path}", text))
    _check(entries, is_text=not is_json)
    names = list(dict.fromkeys(entry.name for entry in entries if not entry.is_ignored))
    fits = 1 <= len(names) <= IGNORE
    require(fits, f"class list {path} names {len(names)} classes: pass 1 to {IGNORE}, one per line")
    if any(entry.is_ignored for entry in entries) and not any(entry.colour for entry in entries):
        # Names alone are numbered by their place; only where one is ignored do the places and the ids differ.
        entries = [entry._replace(colour=(place,)) for place, entry in enumerate(entries)]
    first: dict[str, tuple[int, ...] | None] = {}
    others = []
    for entry in entries:
        if not entry.is_ignored and first.setdefault(entry.name, entry.colour) != entry.colour:
            others.append((entry.colour, names.index(entry.name)))
    ignored = tuple(entry.colour for entry in entries if entry.is_ignored and entry.colour)
    return ClassList(tuple(names), tuple(first.values()) if first[names[0]] else None, ignored, tuple(others))


def write_class_list(path: Path, classes: ClassList) -> None:
    """Write names, and colours for display where there are any.

    Every name that a class list can have is read back as it is: what would be read otherwise is quoted.
    """
    lines = io.StringIO()
    for name, colour in zip(classes.names, classes.palette or [[]] * len(classes.names), strict=True):
        is_read_otherwise = (
            name[0] in "#[{" or name.lower() in HEADS or UNCLEAR.fullmatch(name) or BLANKS.fullmatch(name)
        )
        quoting = csv.QUOTE_NONNUMERIC if is_read_otherwise else csv.QUOTE_MINIMAL
        csv.writer(lines, lineterminator="\n", quoting=quoting).writerow([name, *colour])
    Path(path).write_text(lines.getvalue(), encoding="utf-8", newline="\n")


def _text_entries(source: str, text: str) -> Iterable[_Entry]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    lines = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
    for place, (number, line) in enumerate(lines):
        with refusing(csv.Error, f"{source}, line {number} cannot be read", f"; {FORMS}"):
            fields = [field.strip() for field in next(csv.reader([line], skipinitialspace=True))]
        if place == 0 and [field.lower() for field in fields] in HEADERS:
            continue
        if len(fields) == 1 and not line.lstrip().startswith('"') and (found := BLANKS.fullmatch(fields[0])):
            fields = [found["name"] or found["rest"], *(found["after"] or found["before"]).split()]
        where = f"{source}, line {number}"
        fits = len(fields) in (1, 2, 4) and all(re.fullmatch(r"\d{1,9}", field) for field in fields[1:])
        require(fits, f"{where}: '{line.strip()}' cannot be read; {FORMS}")
        yield _Entry(where, fields[0], tuple(map(int, fields[1:])) or None)


def _json_entries(source: str, text: str) -> Iterable[_Entry]:
    with refusing((ValueError, RecursionError), f"{source} is not valid JSON"):
        # Pairs, as an object would silently keep the last of two equal names.
        content = json.loads(text, object_pairs_hook=list)
    for number, item in enumerate(content if isinstance(content, list) else [None], 1):
        where, (name, colour) = f"{source}, entry {number}", item if isinstance(item, tuple) else (item, None)
        several = colour if isinstance(colour, list) and colour and isinstance(colour[0], list) else [colour]
        for values in ([value] if isinstance(value, int) else value or [] for value in several):
            fits = isinstance(name, str) and isinstance(values, list) and len(values) in (0, 1, 3)
            fits = fits and all(type(value) is int for value in values)
            require(fits, f"{where}: pass a list of names, or an object of names with [r, g, b], a value or null")
            yield _Entry(where, name.strip(), tuple(values) or None)


def _check(entries: list[_Entry], is_text: bool) -> None:
    """Names can be written and are classes once; all have colours of one kind, or none has; no colour means two."""
    kind = next((len(entry.colour or ()) for entry in entries if not entry.is_ignored), 0)
    seen: dict[str, str] = {}
    painted: dict[tuple[int, ...], str] = {}
    for entry in entries:
        where, name, colour = entry
        # What no line of text can hold; U+FEFF is what editors put before one.
        kinds = {unicodedata.category(c) for c in name.replace("\t", "")}
        is_control = "\ufeff" in name or not kinds.isdisjoint(("Cc", "Cs", "Zl", "Zp"))
        may_come_again = entry.is_ignored or (colour and (is_text or seen.get(name) == where))
        is_alike = len(colour or ()) == kind or (entry.is_ignored and colour is None)
        meant = "ignore" if entry.is_ignored else name
        other = painted.setdefault(colour, meant) if colour else meant
        require(name, f"{where}: the name is empty; {FORMS}")
        require(not is_control, f"{where}: the name {name!a} holds a line break or control character")
        require(max(colour or (0,)) <= 255, f"{where}: {name} has a number outside 0..255")
        require(name not in seen or may_come_again, f"{where}: the class {name} is there twice")
        require(is_alike, f"{where}: {name} is not painted as the first class is; {FORMS}, all alike")
        require(other == meant, f"{where}: {name} has the colour of {other}")
        seen[name] = where
