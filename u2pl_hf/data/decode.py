"""Stored bytes -> arrays: images of every mode as upright RGB, masks as the class ids they hold."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from u2pl_hf.errors import InputError

# What damaged files make PIL raise while it decodes.
DAMAGED = (OSError, SyntaxError, ValueError)


def decode_image(cell: dict, name: str) -> np.ndarray:
    """An image as uint8 (H,W,3) RGB, turned upright as its EXIF orientation says.

    Args:
        cell: {"bytes": encoded image or None, "path": file to read where there are no bytes}.
        name: the row's id, for messages.

    Raises:
        InputError: the bytes are not an image, or are damaged.
    """
    image = _open(cell, f"image of {name}")
    try:
        return upright_rgb(image)
    except DAMAGED as error:
        raise InputError(f"image {name} cannot be read: {error}") from error


def decode_label(cell: dict, name: str) -> np.ndarray:
    """A mask as uint8 (H,W) class ids, 255 = ignore. Palette masks keep their ids.

    Raises:
        InputError: the bytes are not an image, or the mask has several channels or values above 255.
    """
    label = _open(cell, f"label of {name}")
    try:
        # A palette mask as an array is its ids; convert("L") would make grey levels of them.
        ids = np.asarray(label)
    except DAMAGED as error:
        raise InputError(f"label of {name} cannot be read: {error}") from error
    if ids.ndim != 2 or ids.dtype.kind not in "uib" or ids.min(initial=0) < 0 or ids.max(initial=0) > 255:
        raise InputError(f"label of {name} is {label.mode}, not an 8-bit mask of class ids")
    return ids.astype(np.uint8)


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Decode to uint8 (H,W,3) RGB, turned upright as the EXIF orientation says; damaged files raise PIL's errors."""
    return np.asarray(ImageOps.exif_transpose(_to_rgb(image)))


def image_size(cell: dict, name: str) -> tuple[int, int]:
    """(height, width) of an image as stored, from its header."""
    width, height = _open(cell, f"image of {name}").size
    return height, width


def _open(cell: dict, what: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, TypeError, AttributeError) as error:
        raise InputError(f"{what} is not a readable image") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else _keep_exif(image, image.convert("RGB"))


def _keep_exif(before: Image.Image, after: Image.Image) -> Image.Image:
    after.info.setdefault("exif", before.info.get("exif", b""))
    return after
