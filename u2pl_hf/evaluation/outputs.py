"""Predictions as files: complete or not there, and never among those of another model."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from u2pl_hf.errors import InputError


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H,W) or (H,W,3); what stands at `path` is always a whole picture.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(partial, format="PNG")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def check_writable(folder: str | os.PathLike, option: str) -> None:
    """Make a folder, and refuse it where nothing can be written.

    Raises:
        InputError: names the option and the system's reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Rights alone do not tell: the disk may be mounted to be read only.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {folder} cannot be written to ({error.strerror or error}); pass another folder"
        ) from error


def check_ids(ids: Sequence[str], folder: str | os.PathLike) -> None:
    """Refuse ids that cannot name files below a folder; slashes make sub-folders.

    Raises:
        InputError: names the id.
    """
    for sample_id in ids:
        parts = sample_id.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in sample_id or "\0" in sample_id:
            raise InputError(f"id {sample_id!r}: cannot name a file below {folder}; rename it in the data set")


def check_free(folder: str | os.PathLike, option: str, *, overwrite: bool) -> None:
    """Refuse a folder that holds pictures, which may be another model's.

    Raises:
        InputError: names one of them, and what to pass.
    """
    found = next(Path(folder).rglob("*.png"), None)
    if found and not overwrite:
        raise InputError(f"{option} {folder} already holds {found.name}: pass another folder, or --overwrite")
