"""Predictions as files: complete or not there, and never among those of another model."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from u2pl_hf.errors import InputError


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H,W) or (H,W,3); what stands at `path` is always a whole picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        Image.fromarray(pixels).save(partial, format="PNG")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
