"""Lists of images: ids, one per line, or lines of other works that name an image file first."""

import codecs
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from u2pl_hf.constants import IMAGE_SUFFIXES
from u2pl_hf.errors import require

log = logging.getLogger(__name__)

SUFFIX = f"(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES, reverse=True)))})"
# Names with blanks or commas in them end where their suffix does.
FILE_FIRST = re.compile(rf'"?(.+?{SUFFIX})"?(?:[\s,;]|$)', re.IGNORECASE)
ENDING = re.compile(rf"(?:_leftImg8bit)?{SUFFIX}?$", re.IGNORECASE)
# Of one column or of several.
HEADER = re.compile(r"(?:image|img|file)?_?(?:id|name|path|file)?s?|[a-z_]+(?:[\s,;]+[a-z_]+)+", re.IGNORECASE)
SUBSETS = {"train": "train", "training": "train", "test": "test", "testing": "test",
           "val": "validation", "valid": "validation", "validation": "validation"}  # fmt: skip


def subset_of(folder: str) -> str:
    """The subset that a folder's name stands for, such as Train or val2017; "" for others."""
    return SUBSETS.get(re.sub(r"[-_]?\d{4}$", "", folder.casefold()), "")


def read_ids(path: Path, what: str = "") -> list[str]:
    """Lines of a list file, see `parse_ids`."""
    return parse_ids(path.read_bytes(), what or f"split {path}")


def parse_ids(content: bytes, what: str) -> list[str]:
    """Lines of a list in UTF-8, or in UTF-16 with its mark; blank ones and surrounding white space are left out.

    Raises:
        InputError: no text, or no line in it; `what` names the list.
    """
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if is_wide else "utf-8-sig", errors="replace")
    require({*text}.isdisjoint("\0\ufffd"), f"{what} is not a text file in UTF-8; pass one with one id per line")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    require(lines, f"{what} lists no image: at least one image is needed")
    return lines


def match_ids(lines: Sequence[str], ids: Iterable[str], what: str) -> tuple[list[str], list[str]]:
    """The ids that lines name, in their order, and the lines that name none. A header is left out.

    A line is an id, or its first field (up to a blank, tab, comma or semicolon) is a file: then its path without its
    suffix is looked for, then the ids that end in its name, of which the one that shares most folders with it is meant.

    Raises:
        InputError: a line fits several ids, or an image is there twice.
    """
    found: dict[str, str | None] = {line: line for line in set(lines).intersection(ids)}
    by_name: dict[str, list[str]] = defaultdict(list)
    if len(found) < len(set(lines)):
        for name in ids:
            by_name[_path(name)[-1]].append(name)
    folders = {*SUBSETS.values()}.union(*(_folders(_path(name)) for names in by_name.values() for name in names))
    found |= {line: _by_file(line, by_name, folders, what) for line in lines if line not in found}
    if len(lines) > 1 and found[lines[0]] is None and HEADER.fullmatch(lines[0].replace('"', "")):
        lines = lines[1:]
    counts = Counter(found[line] or line for line in lines)
    twice = [name for name, count in counts.items() if count > 1]
    require(not twice, f"{what} lists {len(twice)} images more than once, such as '{''.join(twice[:1])}'")
    if files := [line for line in lines if found[line] not in (line, None)]:
        log.info("%s: %d lines name files, such as '%s' for '%s'", what, len(files), files[0], found[files[0]])
    return [name for line in lines if (name := found[line])], [line for line in lines if not found[line]]


def require_match(found: Sequence[str], absent: Sequence[str], ids: Iterable[str], what: str, kind: str = "") -> None:
    """Refuse a list without a single image of the data."""
    example = f"a line of it is '{''.join(absent[:1])}', an id of the data '{min(ids, default='')}'"
    remedy = "list ids, or files whose names are those of the ids"
    require(found, f"{what}: the data has none of its {len(absent)} {kind}images; {example}: {remedy}")


def _by_file(line: str, by_name: dict[str, list[str]], folders: set[str], what: str) -> str | None:
    separator = r"[\t,;]" if re.search(r"[\t,;]", line) else r"\s"
    file = FILE_FIRST.match(line)
    path = _path(file[1] if file else re.split(separator, line)[0].strip('" '))
    # Of another folder of the data, or of another subset, it is another image: val/0 is not train/0.
    telling, scores = _folders(path) & folders, {}
    for name in by_name.get(path[-1], []):
        other = _path(name)
        if len(other) == 1 or not telling or telling & _folders(other):
            scores[name] = (path == other, len({*path} & {*other}), {*other} <= {*path})
    best = [name for name, score in scores.items() if score == max(scores.values())]
    require(len(best) < 2, f"{what}: '{line}' may be {' or '.join(best[:2])}; list ids as they are")
    return best[0] if best else None


def _path(name: str) -> tuple[str, ...]:
    """Folders and name, without suffix; on any system, however it writes letters with accents."""
    plain = ENDING.sub("", unicodedata.normalize("NFC", name).replace("\\", "/"))
    return tuple(part for part in plain.split("/") if part not in ("", ".")) or ("",)


def _folders(path: tuple[str, ...]) -> set[str]:
    """Of a path, in small letters; names of subsets in one spelling, without a year."""
    return {subset_of(part) or part.casefold() for part in path[:-1]}
