"""Stored bytes -> arrays: images of every mode as upright RGB, masks as the class ids they hold."""

import io

import numpy as np
from PIL import Image, ImageOps

from u2pl_hf.errors import require, telling
from u2pl_hf.pixels import DAMAGED, upright_rgb

ORIENTATION = 0x0112  # of EXIF
# Formats that change the values they store.
INEXACT = ("JPEG", "MPO")


def decode_image(cell: dict, name: str) -> np.ndarray:
    """An image as uint8 (H,W,3) RGB, turned upright as its EXIF orientation says.

    Args:
        cell: {"bytes": encoded image or None, "path": file to read where there are no bytes}.
        name: the row's id, for messages.

    Raises:
        InputError: the bytes are not an image, are damaged, or hold what `upright_rgb` refuses.
    """
    image = open_stored(cell, f"image of {name}")
    with telling(f"image {name} cannot be read", *DAMAGED):
        return upright_rgb(image)


def decode_label(cell: dict, name: str) -> np.ndarray:
    """A mask as uint8 (H,W) class ids, 255 = ignore, turned as its own EXIF orientation says. Palettes keep their ids.

    Raises:
        InputError: the bytes are not an image, or the mask is JPEG, has several channels or values above 255.
    """
    label = open_stored(cell, f"label of {name}")
    require(label.format not in INEXACT, f"label of {name} is JPEG, whose values are not exact: store masks as PNG")
    with telling(f"label of {name} cannot be read", *DAMAGED):
        # A palette mask as an array is its ids; convert("L") would make grey levels of them.
        ids = np.asarray(ImageOps.exif_transpose(label))
    is_plain = ids.ndim == 2 and ids.dtype.kind in "uib" and ids.min(initial=0) >= 0 and ids.max(initial=0) <= 255
    remedy = "prepare_dataset.py folder makes ids of colours"
    require(is_plain, f"label of {name} is {label.mode}, not an 8-bit mask of class ids; {remedy}")
    return ids.astype(np.uint8)


def open_stored(cell: dict, what: str) -> Image.Image:
    """An image of which nothing but the header has been read.

    Raises:
        InputError: it has none; names `what`.
    """
    with telling(f"{what} is not a readable image", *DAMAGED, Image.DecompressionBombError, TypeError, AttributeError):
        return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])
