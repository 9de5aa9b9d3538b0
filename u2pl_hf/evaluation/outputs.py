"""Predictions as files: complete or not there, each knows its model, and nobody else's files are replaced."""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.evaluation.pictures import colour_table
from u2pl_hf.files import write_atomically
from u2pl_hf.pixels import DAMAGED

# The entry of a PNG file's text that says which model it comes from.
ORIGIN = "u2pl_hf"


def save_png(
    path: Path, picture: np.ndarray | Image.Image, origin: dict, palette: Sequence[Sequence[int]] | None = None
) -> None:
    """Write a picture; what stands at `path` is always a whole one.

    Args:
        picture: uint8 (H,W) or (H,W,3), or a PIL image.
        origin: what `read_origin` gives back: `model`, its name, `digest`, its `model_digest`, and `options`.
        palette: of a mask (H,W): viewers show its ids in these colours, arrays of it are the ids.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    text = PngInfo()
    if palette is not None:
        image.putpalette(colour_table(palette).tobytes())
    text.add_text(ORIGIN, json.dumps(origin))
    with refusing(OSError, f"{path} cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: image.save(partial, format="PNG", pnginfo=text))


def read_origin(path: Path) -> dict | None:
    """The `origin` of a picture that `save_png` wrote at this path; None for any other file, a link, or a folder."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return None if path.is_symlink() else json.loads(image.info[ORIGIN])
    except (KeyError, Image.DecompressionBombError, *DAMAGED):
        return None


def is_of(path: Path, origin: dict) -> bool:
    """Whether a file is a picture of this model, whatever its name, made with these options."""
    return (read_origin(path) or {}) | {"model": origin["model"]} == origin


def check_replaceable(paths: Iterable[Path], option: str, digest: str | None = None) -> None:
    """Refuse to replace a file that `save_png` did not write, or, where `digest` is given, another model's picture.

    Raises:
        InputError: names the file.
    """
    for path in filter(os.path.lexists, paths):
        origin = read_origin(path)
        told = f"{path} is there and was not written by this program: pass another {option}"
        require(origin is not None, told)
        if digest not in (None, origin["digest"]):
            raise InputError(f"{path} is of another model, {origin['model']}: pass another {option}")


def check_pictures(folder: Path, ids: Sequence[str], option: str, *, overwrite: bool) -> None:
    """Refuse a folder whose pictures are not to be replaced, and ids that cannot name files below it.

    Raises:
        InputError: names a picture, or the id.
    """
    found = next((path.name for path in folder.rglob("*.png")), None)
    told = f"{option} {folder} already holds {found}: pass another folder, or --overwrite"
    require(not found or overwrite, told)
    check_names(ids, folder)
    check_replaceable((folder / f"{sample_id}.png" for sample_id in ids), "folder")


def check_names(ids: Sequence[str], folder: Path) -> None:
    """Refuse ids that cannot name files below a folder.

    Raises:
        InputError: names the id.
    """
    for sample_id in ids:
        is_name = not re.search(r"(^|/)\.{0,2}(/|$)|[\\\0]", sample_id)
        require(is_name, f"id {sample_id!r}: cannot name a file below {folder}; rename it in the data set")


def check_file(path: Path, option: str) -> None:
    """Make the folder of a file to be written, and refuse what cannot be written.

    Raises:
        InputError: as `check_writable`, or a folder stands there.
    """
    require(not path.is_dir(), f"{option} {path} is a folder: pass the name of a file")
    check_writable(path.parent, f"{option} in")


def check_writable(folder: str | os.PathLike, option: str) -> None:
    """Make a folder, and refuse it where nothing can be written.

    Raises:
        InputError: names the option and the system's reason.
    """
    with refusing(OSError, f"{option} {folder} cannot be written to", "; pass another folder"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Rights alone do not tell: the disk may be mounted to be read only.
        tempfile.TemporaryFile(dir=folder).close()
