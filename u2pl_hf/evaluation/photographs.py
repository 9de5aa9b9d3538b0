"""Photographs on a disk: finding them, naming what is made of them, reading them ahead of the computation."""

import glob
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from u2pl_hf.constants import IMAGE_SUFFIXES
from u2pl_hf.errors import InputError
from u2pl_hf.pixels import DAMAGED, UnclearPixelsError, check_mode, upright_rgb

WILDCARDS = "*?["

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
    pixels: int = 0


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
    found: dict[Path, str] = {}
    for pattern in patterns:
        root, matches = _matches(pattern, recursive, output_dir)
        if not matches:
            hint = "" if recursive or not root.is_dir() else "; --recursive looks into sub-folders"
            raise InputError(
                f"{pattern}: no image there; pass image files, a folder of them, or a glob in quotes{hint}"
            )
        for path in matches:
            found.setdefault(path, path.relative_to(root).with_suffix("").as_posix())
    by_name: dict[str, Path] = {}
    for path, name in found.items():
        if by_name.setdefault(name, path) != path:
            raise InputError(f"{by_name[name]} and {path} would share output names: predict them separately")
    return [Photograph(path, name) for path, name in found.items()]


def _matches(pattern: str, recursive: bool, output_dir: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files."""
    path = Path(pattern)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        results = output_dir.resolve()
        if results == path.resolve():
            raise InputError(f"--output_dir {output_dir} is also a folder of images: pass another")
        files = (file for file in path.glob("**/*" if recursive else "*") if file.suffix.lower() in IMAGE_SUFFIXES)
        # Hidden files are what cameras and file managers leave behind.
        shown = (file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))
        return path, sorted(f for f in shown if f.is_file() and results not in f.resolve().parents)
    parts = path.parts
    fixed = next((number for number, part in enumerate(parts) if any(w in part for w in WILDCARDS)), len(parts))
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    return Path(*parts[:fixed]), [match for match in matches if match.is_file()]


def read_headers(photographs: Sequence[Photograph]) -> list[Photograph]:
    """The same with their sizes; refuses what is no image before any time goes into prediction.

    Raises:
        InputError: names the file.
    """
    known = []
    for photograph in photographs:
        try:
            with warnings.catch_warnings():
                # A warning at 89 million pixels; from 179 million on it is an error.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(photograph.path) as image:
                    check_mode(image)
                    width, height = image.size
        except UnclearPixelsError as error:
            raise InputError(f"{photograph.path}: {error}") from error
        except (*DAMAGED, Image.DecompressionBombError) as error:
            raise InputError(f"{photograph.path}: not an image that can be read ({_line(error)})") from error
        known.append(Photograph(photograph.path, photograph.name, width * height))
    return known


def read_photograph(path: Path) -> np.ndarray:
    """RGB (H,W,3) uint8 of a file, as `upright_rgb` reads it.

    Raises:
        InputError: the file is damaged, or its pixels could only be guessed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                # Writable, as torch wants it.
                return np.array(upright_rgb(image))
    except UnclearPixelsError as error:
        raise InputError(f"{path}: {error}") from error
    except DAMAGED as error:
        raise InputError(f"{path}: damaged image ({_line(error)})") from error


def same_size_batches(
    photographs: Sequence[Photograph], batch_size: int
) -> Iterator[list[tuple[Photograph, np.ndarray]]]:
    """Up to batch_size neighbours of one size, decoded; a thread decodes the next ones while these are computed.

    Raises:
        InputError: an image is damaged; those before it have been given by then.
    """
    batch: list[tuple[Photograph, np.ndarray]] = []
    try:
        for photograph, pixels in _read_ahead(photographs, batch_size):
            if batch and batch[-1][1].shape != pixels.shape:
                yield batch
                batch = []
            batch.append((photograph, pixels))
            if len(batch) == batch_size:
                yield batch
                batch = []
    except InputError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _read_ahead(photographs: Sequence[Photograph], ahead: int) -> Iterator[tuple[Photograph, np.ndarray]]:
    waiting = deque(photographs)
    with ThreadPoolExecutor(1) as pool:
        pending: deque = deque()
        while waiting or pending:
            while waiting and (not pending or (len(pending) <= ahead and waiting[0].pixels <= MAX_AHEAD_PIXELS)):
                photograph = waiting.popleft()
                pending.append((photograph, pool.submit(read_photograph, photograph.path)))
            photograph, reading = pending.popleft()
            yield photograph, reading.result()


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
