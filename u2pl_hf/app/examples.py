"""Images to choose from on the page."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from u2pl_hf.app.explain import read_photo
from u2pl_hf.constants import IMAGE_SUFFIXES
from u2pl_hf.data.source.sources import load_source
from u2pl_hf.errors import InputError


def find_examples(paths: Sequence[str]) -> list[Path]:
    """Image files, and the image files of folders, each read once to see that it can be.

    Raises:
        InputError: a path without an image, or an image that cannot be read.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise InputError(f"--examples {path}: no image there; pass image files, or a folder of them")
        found.update(dict.fromkeys(files))
    for file in found:
        read_photo(file)
    return list(found)


def write_examples(dataset: str, subset: str, count: int, folder: Path) -> list[Path]:
    """The first `count` images of a data set's subset as PNG files in `folder`.

    Raises:
        InputError: no such data set or subset, or a damaged image.
    """
    source = load_source(dataset, subset, label_column=None)
    files = []
    for index in range(min(count, len(source.ids))):
        # Ids may hold slashes; the number alone is a name everywhere.
        files.append(folder / f"{subset}_{index}.png")
        Image.fromarray(source.read_image(index)).save(files[-1])
    return files
