"""Class lists: names, and how masks paint each class."""

import csv
import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from u2pl_hf.errors import InputError

logger = logging.getLogger(__name__)
IGNORED_NAMES = ("ignore", "void")
MAX_CLASSES = 255
HEADERS = (["name", "r", "g", "b"], ["name", "red", "green", "blue"], ["name", "value"])
# Of one column.
HEADS = ("name", "names", "class", "classes", "class_name", "label", "labels")
# NAME VALUE and VALUE NAME with something else than a comma between.
UNCLEAR = re.compile(r"[^,]*[^\s,][\s;:=|]+\d+|\d+[\s;:=|]+[^\s,\d][^,]*|[^,]*;[^,]*")
FORMS = "a line is NAME, NAME,R,G,B or NAME,VALUE with numbers from 0 to 255"
# Categories of characters that a line of text cannot hold.
CONTROL = ("Cc", "Cs", "Zl", "Zp")
# Other programs' tables: NAME R G B, and R G B NAME, with blanks between.
BLANKS = (r"(?P<name>.*\S)\s+(?P<colour>\d+\s+\d+\s+\d+)", r"(?P<colour>\d+\s+\d+\s+\d+)\s+(?P<name>\S.*)")


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


@dataclass(frozen=True)
class _Entry:
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
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"class list {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"class list {path} is not a text file in UTF-8: {error}") from error
    _check_forms(text, path)
    return parse_class_list(text, str(path))


def _check_forms(text: str, path: Path) -> None:
    """Refuse what a user may have meant otherwise than as names; what this package wrote itself is not asked.

    Raises:
        InputError: names the line, and how to say which is meant.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    hidden = [line for line in lines if re.match(r"#\w", line)]
    if hidden:
        logger.warning(
            "class list %s: %d lines are taken for comments, such as %s; quote a name that begins with #",
            path, len(hidden), hidden[0],
        )  # fmt: skip
    lines = [line for line in lines if not line.startswith(("#", '"', "[", "{"))]
    if lines and lines[0].lower() in HEADS:
        raise InputError(f"class list {path}: '{lines[0]}' reads like a header; leave it out, or quote it")
    unclear = [line for line in lines if UNCLEAR.fullmatch(line) and len(_split_at_blanks([line])) == 1]
    # zone 1, zone 2 ... are names: values would not come with one name again and again.
    bases = {re.sub(r"\d+", "", line) for line in unclear}
    if len(unclear) < len(lines) or len(bases) < len(lines):
        unclear = [line for line in unclear if ";" in line]
    if unclear:
        raise InputError(
            f"class list {path}: '{unclear[0]}' may be a name, or a name and numbers: write NAME,VALUE or NAME,R,G,B, "
            f'or "{unclear[0]}" if it is the name'
        )


def parse_class_list(text: str, path: str) -> ClassList:
    """The classes in a text, see `read_class_list`; `path` is where it comes from.

    Raises:
        InputError: names the file and the line.
    """
    is_json = path.lower().endswith(".json") or text.lstrip()[:1] in ("[", "{")
    entries = list(_json_entries(path, text) if is_json else _text_entries(path, text))
    return _checked(path, entries, is_text=not is_json)


def write_class_list(path: Path, classes: ClassList) -> None:
    """Write names, and colours for display where there are any. Grey values only say how masks were painted.

    Every name that a class list can have is read back as it is: what would be read otherwise is quoted.
    """
    has_rgb = classes.colours is not None and len(classes.colours[0]) == 3
    colours: Iterable[Sequence[int]] = classes.colours if has_rgb else [()] * len(classes.names)
    lines = io.StringIO()
    for name, colour in zip(classes.names, colours, strict=True):
        is_plain = name[0] not in "#[{" and name.lower() not in HEADS and not UNCLEAR.fullmatch(name)
        is_plain = is_plain and len(_split_at_blanks([name])) == 1
        quoting = csv.QUOTE_MINIMAL if is_plain else csv.QUOTE_NONNUMERIC
        csv.writer(lines, lineterminator="\n", quoting=quoting).writerow([name, *colour])
    Path(path).write_text(lines.getvalue(), encoding="utf-8", newline="\n")


def _text_entries(path: str, text: str) -> Iterable[_Entry]:
    is_first = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"class list {path}, line {number}"
        fields = [field.strip() for field in next(csv.reader([line], skipinitialspace=True))]
        if is_first and [field.lower() for field in fields] in HEADERS:
            is_first = False
            continue
        is_first = False
        fields = fields if line.lstrip().startswith('"') else _split_at_blanks(fields)
        if len(fields) not in (1, 2, 4) or not all(re.fullmatch(r"\d{1,9}", field) for field in fields[1:]):
            raise InputError(f"{where}: '{line.strip()}' cannot be read; {FORMS}")
        yield _Entry(where, fields[0], tuple(map(int, fields[1:])) or None)


def _split_at_blanks(fields: list[str]) -> list[str]:
    found = next(filter(None, (re.fullmatch(form, fields[0]) for form in BLANKS)), None) if len(fields) == 1 else None
    return [found["name"], *found["colour"].split()] if found else fields


def _json_entries(path: str, text: str) -> Iterable[_Entry]:
    where = f"class list {path}"
    try:
        # Pairs, as an object would silently keep the last of two equal names.
        content = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error
    for number, item in enumerate(content if isinstance(content, list) else [None], 1):
        place = f"{where}, entry {number}"
        name, colour = (item, None) if isinstance(item, str) else item if isinstance(item, tuple) else (None, None)
        several = colour if isinstance(colour, list) and colour and isinstance(colour[0], list) else [colour]
        for values in ([value] if isinstance(value, int) else value or [] for value in several):
            fits = isinstance(values, list) and len(values) in (0, 1, 3) and all(type(v) is int for v in values)
            if not isinstance(name, str) or not fits:
                raise InputError(
                    f"{place}: pass a list of names, or an object of names with [r, g, b], a value or null"
                )
            yield _Entry(place, name.strip(), tuple(values) or None)


def _checked(path: str, entries: list[_Entry], is_text: bool) -> ClassList:
    seen: dict[str, str] = {}
    for entry in entries:
        if not entry.name:
            raise InputError(f"{entry.where}: the name is empty; {FORMS}")
        # U+FEFF is what editors put before a text.
        if any(c == "\ufeff" or (c != "\t" and unicodedata.category(c) in CONTROL) for c in entry.name):
            raise InputError(f"{entry.where}: the name {entry.name!a} holds a line break or control character")
        if not all(0 <= value <= 255 for value in entry.colour or ()):
            raise InputError(f"{entry.where}: {entry.name} has a number outside 0..255")
        may_come_again = entry.colour and (is_text or seen.get(entry.name) == entry.where)
        if entry.name in seen and not entry.is_ignored and not may_come_again:
            raise InputError(f"{entry.where}: the class {entry.name} is there twice")
        seen[entry.name] = entry.where
    names = list(dict.fromkeys(entry.name for entry in entries if not entry.is_ignored))
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InputError(f"class list {path} names {len(names)} classes: pass 1 to {MAX_CLASSES}, one per line")
    entries = _with_places(entries)
    _check_colours(entries)
    first: dict[str, tuple[int, ...] | None] = {}
    others = []
    for entry in entries:
        if not entry.is_ignored and first.setdefault(entry.name, entry.colour) != entry.colour:
            others.append((entry.colour, names.index(entry.name)))
    ignored = tuple(entry.colour for entry in entries if entry.is_ignored and entry.colour)
    colours = None if first[names[0]] is None else tuple(first.values())
    return ClassList(tuple(names), colours, ignored, tuple(others))


def _with_places(entries: list[_Entry]) -> list[_Entry]:
    """Names alone are numbered by their place; only where one is ignored do the places and the ids differ."""
    if any(entry.colour for entry in entries) or not any(entry.is_ignored for entry in entries):
        return entries
    return [_Entry(entry.where, entry.name, (place,)) for place, entry in enumerate(entries)]


def _check_colours(entries: list[_Entry]) -> None:
    """All classes have colours of one kind, or none has; no colour stands for two classes."""
    kind = len(next(entry for entry in entries if not entry.is_ignored).colour or ())
    seen: dict[tuple[int, ...], str] = {}
    for entry in entries:
        if entry.is_ignored and entry.colour is None:
            continue
        if len(entry.colour or ()) != kind:
            raise InputError(f"{entry.where}: {entry.name} is not painted as the first class is; {FORMS}, all alike")
        name = "ignore" if entry.is_ignored else entry.name
        if entry.colour and seen.setdefault(entry.colour, name) != name:
            raise InputError(f"{entry.where}: {entry.name} has the colour of {seen[entry.colour]}")
