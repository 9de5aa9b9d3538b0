"""Files: written whole or not at all, and read back with one line that says what is wrong with one.

What a file holds is described by a type, mostly a TypedDict beside the code that reads it: `read_json(path, Results)`.
"""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from u2pl_hf.errors import InputError, refusing, require

logger = logging.getLogger(__name__)

# What a writer that was killed leaves behind has names of this form.
TEMPORARY = ".*.partial"
MAX_DEPTH = 50
HINT = "restore it, or remove it"
# What yaml raises for broken dates, numbers and tags, besides its own errors.
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "an object",
         list: "a list", types.NoneType: "null"}  # fmt: skip
# Where nothing can be written there.
CACHE_HINT = "; set U2PL_CACHE to a folder that you can write"


def cache_folder() -> Path:
    """Where this package keeps what it fetched or made: `$U2PL_CACHE`, or `~/.cache/u2pl_hf`."""
    return Path(os.environ.get("U2PL_CACHE") or "~/.cache/u2pl_hf").expanduser()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a path beside `path`, then rename: what stands at `path` is always complete and on the disk.

    A file is replaced at once; of a folder, the old one lies beside it as .NAME.old for a moment. The umask says who
    may read them, whatever wrote them.

    Raises:
        IsADirectoryError: a file was written, and a folder stands there.
    """
    # The process id keeps two writers apart: one that was just killed may not be quite dead yet.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    remove(temporary)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says; safetensors writes files that nobody else may read
        remove(temporary)
        write(temporary)
        for part in [*temporary.rglob("*"), temporary]:
            if part.is_file() and not part.is_symlink():
                part.chmod(mode)
            sync(part)
        if path.is_dir() and not temporary.is_dir():
            # What lies in a folder is never given up for a file.
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    except BaseException:
        remove(temporary)
        raise
    if path.is_dir():
        # A folder cannot be renamed over a filled one.
        aside = path.with_name(f".{path.name}.old")
        remove(aside)
        path.rename(aside)
        temporary.rename(path)
        remove(aside)
    else:
        temporary.replace(path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Names of files may hold what is no valid text: that is written as escapes."""
    write_atomically(path, lambda p: p.write_bytes(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt":  # Windows opens no folders and syncs no read-only handles
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_in(folder: Path, name: str | Path) -> Path | None:
    """The file `name` of a folder that comes from anywhere, links followed; None where there is none.

    Raises:
        InputError: it lies outside of the folder.
    """
    try:
        path = (folder / name).resolve()
        if not path.is_file():
            return None
    except (OSError, ValueError, RuntimeError):  # no name that a file can have, or links in a circle
        return None
    stays = path.is_relative_to(folder.resolve())
    require(stays, f"{folder / name} leads out of {folder}: put the file itself there, or leave it out")
    return path


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below it. Links are followed; a folder is visited once, so circles end."""
    visited = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        folders[:] = [] if place in visited else sorted(folders)
        yield from (Path(root, name) for name in names if place not in visited)
        visited.add(place)


def read_text(path: Path, hint: str = HINT) -> str:
    """A text file.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    with refusing((OSError, ValueError), f"{path} cannot be read as text in UTF-8", f"; {hint}"):
        return path.read_text(encoding="utf-8-sig")


def read_json(path: Path, kind=dict, hint: str = HINT, *, strict: bool = True):
    """What a JSON file holds.

    Args:
        kind: what it must be, see `misfit`.
        hint: what to do about a file that is not.
        strict: see `parse_json`.

    Raises:
        InputError: it cannot be read, is no JSON or of another kind; names the field.
    """
    text = read_text(path, hint)
    try:
        return parse_json(text, kind, strict=strict)
    except ValueError as error:
        raise InputError(f"{path} {error}; {hint}") from error


def read_json_lines(path: Path, kind=dict, *, strict: bool = True, unfinished: bool = False) -> list[tuple[str, dict]]:
    """The lines of a JSON Lines file, each with its text.

    Args:
        kind, strict: of each line, see `parse_json`.
        unfinished: the writer may have been killed: a last line that was cut or is damaged is left out.

    Raises:
        InputError: another line is damaged.
    """
    texts = read_text(path).split("\n")
    # Behind the last line break is nothing, or a line that was not finished.
    texts, lines = texts[:-1] if unfinished or not texts[-1] else texts, []
    for number, text in enumerate(texts, 1):
        try:
            lines.append((text, parse_json(text, kind, strict=strict)))
        except ValueError as error:
            if not unfinished or number < len(texts):
                raise InputError(f"{path}, line {number} {error}; restore the file, or remove the line") from error
            logger.warning("%s: its last line is damaged and is left out", path)
    return lines


def parse_json(text: str, kind=dict, *, strict: bool = True):
    """JSON of a kind, see `misfit`.

    Args:
        strict: refuse what Python writes and no other file can hold: NaN, infinity, halves of characters.

    Raises:
        ValueError: it is not; one line that follows a name.
    """
    hooks = {"parse_float": _finite, "parse_constant": _finite} if strict else {}
    try:
        content = json.loads(text, parse_int=_int, object_pairs_hook=_distinct, **hooks)
        if _depth(content) > MAX_DEPTH:  # what would end the recursions of others
            raise ValueError(f"more than {MAX_DEPTH} levels deep")
        if strict:
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({str(error)[:120]})") from error
    if wrong := misfit(content, kind):
        raise ValueError(f"is not what it should be: {wrong}")
    return content


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _int(text: str) -> int:
    # Seeds of torch have 64 bits.
    if len(text) > 20 or abs(int(text)) >= 2**64:
        raise ValueError(f"{text[:20]} is too large a number")
    return int(text)


def _distinct(pairs: list[tuple[str, object]]) -> dict:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name!r} stands there twice")
    return dict(pairs)


def _depth(content) -> int:
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return 1 + max(map(_depth, parts), default=0)


def read_yaml(path: Path, hint: str = HINT):
    """What a YAML file holds.

    Raises:
        InputError: it cannot be read, or is no YAML.
    """
    text = read_text(path, hint)
    with refusing(YAML_ERRORS, f"{path} is damaged", f"; {hint}"):
        return yaml.safe_load(text)


def misfit(value, kind, name: str = "") -> str | None:
    """Which part of a value is of another kind, in words; None if it fits.

    Args:
        kind: bool, int, float, str, dict, list[X], dict[str, X], X | Y | None, a TypedDict or a dataclass, of which
            fields that it does not name may be there.
        name: of the value.
    """
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        wrong = [misfit(value, part, name) for part in parts]
        return None if None in wrong else wrong[0]
    fields = typing.get_type_hints(kind) if isinstance(kind, type) and getattr(kind, "__annotations__", None) else {}
    plain = dict if fields else typing.get_origin(kind) or kind
    # True is an int for Python, and 1 a whole number where any may stand.
    is_of_type = isinstance(value, int | float if plain is float else plain)
    if not is_of_type or isinstance(value, bool) != (plain is bool):
        return f"{name or 'it'} is {repr(value)[:60]}, and must be {WORDS[plain]}"
    if missing := [field for field in getattr(kind, "__required_keys__", fields) if field not in value]:
        return f"{'.'.join(filter(None, (name, min(missing))))} is missing"
    within = [(field, value[field], part) for field, part in fields.items() if field in value]
    if parts:
        items = value.items() if plain is dict else enumerate(value)
        within = [(key, item, parts[-1]) for key, item in items]
    each = (misfit(item, part, f"{name}.{key}" if name else str(key)) for key, item, part in within)
    return next(filter(None, each), None)
