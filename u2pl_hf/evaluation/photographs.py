"""Photographs on a disk: finding them, naming what is made of them, reading them ahead of the computation."""

import contextlib
import glob
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from u2pl_hf.constants import IMAGE_SUFFIXES
from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.pixels import DAMAGED, UnclearPixelsError, check_mode, upright_rgb

# Larger ones are decoded when their turn comes: that takes memory, and little time beside their prediction.
MAX_AHEAD_PIXELS = 2**24


@dataclass(frozen=True)
class Photograph:
    """One image file.

    Attributes:
        path: where it is.
        name: what its results are called, a relative path without suffix: the place below the folder that was given.
        pixels: how many the header says.
    """

    path: Path
    name: str
    pixels: int = field(default=0, compare=False)


def find_photographs(patterns: Sequence[str], *, recursive: bool, output_dir: Path) -> list[Photograph]:
    """Files, the image files of folders, and what globs match, in the order given, each once.

    Args:
        patterns: files, folders and globs. Below a folder, and below the part of a glob without wildcards, sub-folders
            are kept in the name.
        recursive: also take what lies in sub-folders of folders.
        output_dir: where results go: what lies there is no photograph.

    Raises:
        InputError: one of the patterns names no image; two images would have one name.
    """
    by_name: dict[str, Path] = {}
    for path, root in find_images(patterns, recursive=recursive, output_dir=output_dir).items():
        name = path.relative_to(root).with_suffix("").as_posix()
        same = by_name.setdefault(name, path) == path
        require(same, f"{by_name[name]} and {path} would share output names: predict them separately")
    return [Photograph(path, name) for name, path in by_name.items()]


def find_images(
    patterns: Sequence[str], *, recursive: bool = False, output_dir: Path | None = None
) -> dict[Path, Path]:
    """Image files -> the folder that their names are relative to; arguments as for `find_photographs`.

    Raises:
        InputError: one of the patterns names no image.
    """
    found: dict[Path, Path] = {}
    results = output_dir.resolve() if output_dir else None
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            told = f"--output_dir {output_dir} is also a folder of images: pass another"
            require(path.resolve() != results, told)
            root, files = path, sorted(path.glob("**/*" if recursive else "*"))
            # Hidden files are what cameras and file managers leave behind.
            shown = (f for f in files if not any(part.startswith(".") for part in f.relative_to(path).parts))
            files = [f for f in shown if f.suffix.lower() in IMAGE_SUFFIXES and results not in f.resolve().parents]
        elif path.is_file():
            root, files = path.parent, [path]
        else:
            wild = next((place for place, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts))
            root, files = Path(*path.parts[:wild]), [Path(f) for f in sorted(glob.glob(pattern, recursive=True))]
        files = [file for file in files if file.is_file()]
        hint = "; --recursive looks into sub-folders" if path.is_dir() and not recursive and output_dir else ""
        told = f"no image there; pass image files, a folder of them, or a glob in quotes{hint}"
        require(files, f"{pattern}: {told}")
        found |= {file: root for file in files if file not in found}
    return found


def read_headers(photographs: Sequence[Photograph]) -> list[Photograph]:
    """The same with their sizes; refuses what is no image before any time goes into prediction.

    Raises:
        InputError: names the file.
    """
    known = []
    for photograph in photographs:
        with _opened(photograph.path) as image:
            check_mode(image)
            known.append(replace(photograph, pixels=image.width * image.height))
    return known


def read_photograph(path: str | Path, name: str | None = None, most_pixels: int | None = None) -> np.ndarray:
    """RGB (H,W,3) uint8 of a file, as `upright_rgb` reads it.

    Args:
        name: of the file, for messages; by default its path.
        most_pixels: refuse larger ones; by default Pillow's own limit holds.

    Raises:
        InputError: the file is damaged or too large, or its pixels could only be guessed.
    """
    with _opened(path, name) as image:
        if most_pixels and image.width * image.height > most_pixels:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are more than {most_pixels:,}")
        # Writable, as torch wants it.
        return np.array(upright_rgb(image))


@contextlib.contextmanager
def _opened(path: str | Path, name: str | None = None) -> Iterator[Image.Image]:
    """An image file; what is wrong with it, while it is open as well, is told in one line.

    Raises:
        InputError: names the file.
    """
    unreadable, hint = (*DAMAGED, Image.DecompressionBombError), "; pass a JPEG, PNG, WebP, BMP or TIFF file"
    with warnings.catch_warnings(), refusing(unreadable, f"{name or path}: not an image that can be read", hint):
        # A warning at 89 million pixels; from 179 million on it is an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                yield image
        except UnclearPixelsError as error:
            raise InputError(f"{name or path}: {error}") from error


def read_ahead(photographs: Sequence[Photograph], ahead: int) -> Iterator[tuple[Photograph, np.ndarray]]:
    """Each with its pixels; a thread decodes the next ones while these are computed.

    Raises:
        InputError: an image is damaged; those before it have been given by then.
    """
    pending: deque = deque()
    with ThreadPoolExecutor(1) as pool:
        for following in (*photographs, None):
            while pending and (not following or len(pending) > ahead or following.pixels > MAX_AHEAD_PIXELS):
                photograph, reading = pending.popleft()
                yield photograph, reading.result()
            if following:
                pending.append((following, pool.submit(read_photograph, following.path)))
