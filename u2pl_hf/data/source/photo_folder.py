"""A plain folder of photographs, without masks and tables.

Its files are listed here: `datasets` would take test_1.jpg, or a folder val, for another subset and leave them out.
"""

import logging
import os
from collections import Counter
from pathlib import Path

import datasets

from u2pl_hf.constants import IMAGE_SUFFIXES
from u2pl_hf.errors import telling

logger = logging.getLogger(__name__)
# What makes a folder one that `datasets` is to read: tables, or descriptions of the images.
TABLES = {".parquet", ".arrow", ".tar", ".zip"}
DESCRIPTIONS = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}


def photographs(folder: Path) -> list[Path] | None:
    """The image files in a folder and below, sorted; None where there are none, or tables that say more of them.

    Hidden files, and folders whose names start with a dot or two underscores, hold no photographs. Links are followed,
    a folder is visited once.
    """
    found, others, visited = [], Counter(), set()
    for root, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        folders[:] = [] if place in visited else sorted(n for n in folders if not n.startswith((".", "__")))
        if place in visited:
            continue
        visited.add(place)
        if any(name in DESCRIPTIONS or Path(name).suffix.lower() in TABLES for name in names):
            return None
        for path in (Path(root, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)
            else:
                others[path.suffix.lower() or "without suffix"] += 1
    if found:
        told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        logger.info("%s: %d photographs%s", folder, len(found), f"; other files are left out: {told}" if told else "")
    return sorted(found, key=str) or None


def photograph_table(folder: Path, files: list[Path]) -> tuple[datasets.Dataset, list[str]]:
    """The files as rows of `image`, undecoded, and their ids: the place below the folder, without suffix.

    Files that differ in nothing but the suffix (a.jpg, a.png) keep it.

    Raises:
        InputError: a file's name is no text.
    """
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    times = Counter(stems)
    ids = [stem if times[stem] == 1 else stem + path.suffix for stem, path in zip(stems, files, strict=True)]
    cells = [{"bytes": None, "path": str(path.absolute())} for path in files]
    with telling(f"data set {folder}: rename a file whose name is not UTF-8", UnicodeEncodeError):
        features = datasets.Features({"image": datasets.Image(decode=False)})
        return datasets.Dataset.from_dict({"image": cells}, features=features), ids
