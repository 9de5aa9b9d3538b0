"""Stored bytes -> arrays: images of every mode as upright RGB, masks as the class ids they hold."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.pixels import DAMAGED, upright_rgb

ORIENTATION = 0x0112  # of EXIF


def decode_image(cell: dict, name: str, at_least: int | None = None) -> np.ndarray:
    """An image as uint8 (H,W,3) RGB, turned upright as its EXIF orientation says.

    Args:
        cell: {"bytes": encoded image or None, "path": file to read where there are no bytes}.
        name: the row's id, for messages.
        at_least: of a larger JPEG, let the decoder shrink to sides from this on, which takes a fraction of the time.

    Raises:
        InputError: the bytes are not an image, are damaged, or hold what `upright_rgb` refuses.
    """
    image = open_stored(cell, f"image of {name}")
    with refusing(DAMAGED, f"image {name} cannot be read"):
        if at_least:
            image.draft(None, (at_least, at_least))
        return upright_rgb(image)


def decode_label(cell: dict, name: str) -> np.ndarray:
    """A mask as uint8 (H,W) class ids, 255 = ignore, turned as its own EXIF orientation says. Palettes keep their ids.

    Raises:
        InputError: the bytes are not an image, or the mask is JPEG, has several channels or values above 255.
    """
    label = open_mask(cell, f"label of {name}")
    with refusing(DAMAGED, f"label of {name} cannot be read"):
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
    with refusing(Exception, f"{what} is not a readable image"):  # damaged headers raise errors of many kinds
        file = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]
        try:
            return Image.open(file)
        except UnidentifiedImageError as error:  # whose message holds a memory address, another one in each run
            rule = "a TIFF must have 1, 3 or 4 bands of 8 bits, such as RGB"
            raise InputError(f"{what} is not a readable image; {rule}") from error


def open_mask(cell: dict, what: str) -> Image.Image:
    """As `open_stored`; refuses formats that change the values they store."""
    mask = open_stored(cell, what)
    is_exact = mask.format not in ("JPEG", "MPO")
    require(is_exact, f"{what} is JPEG, whose values are not exact: store masks as PNG, from what drew them")
    return mask
