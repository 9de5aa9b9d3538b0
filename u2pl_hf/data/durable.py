"""Files that are either complete on the disk or not there at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"


@contextmanager
def durable(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; it becomes `path` once the bytes are on the disk."""
    # The process id keeps two writers apart: one that was just killed may not be quite dead yet.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    yield temporary
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file durably. Names of files may hold what is no valid text: that is written as escapes."""
    with durable(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt":  # Windows opens no folders and syncs no read-only handles
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
