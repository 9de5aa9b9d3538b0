"""Predictions as a start for labelling: images and masks that someone corrects and `u2pl prepare folder` reads back."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.source.class_list import ClassList, write_class_list
from u2pl_hf.data.source.decode import open_stored
from u2pl_hf.data.source.rows import stored_bytes
from u2pl_hf.data.sources import Source
from u2pl_hf.evaluation.inference import class_colours, class_names, predict_all
from u2pl_hf.evaluation.outputs import save_png
from u2pl_hf.evaluation.pictures import IGNORE_COLOUR

# Where a file's usual suffix is not its format's name.
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}


def write_to_correct(
    folder: Path,
    model,
    source: Source,
    rows: Sequence[int],
    *,
    origin: dict,
    ignored: Callable[[np.ndarray], np.ndarray] | None = None,
    **options,
) -> None:
    """Predict images and write them into a folder that is made here.

    overlays/ID.png shows each under its prediction. to_correct/ has images/ as they are stored, masks/ID.png, class ids
    with the classes' colours as their palette, and classes.txt.

    Args:
        folder: is not there yet.
        model: as for `predict_all`, which has the options too.
        origin: of the pictures, see `save_png`.
        ignored: of an entropy (H,W) float32, the pixels bool (H,W) that become 255 in the mask.
    """
    names, palette, pairs = class_names(model), class_colours(model), folder / "to_correct"
    for row in tqdm(rows, desc="write", unit="image", leave=False):
        name, cell = source.ids[row], source.rows.cell(row, "image")
        prediction = predict_all(model, [source.read_image(row)], **options)[0]
        labels = prediction.labels
        if ignored is not None:
            labels = np.where(ignored(prediction.entropy), np.uint8(IGNORE), labels)
        save_png(folder / "overlays" / f"{name}.png", prediction.overlay(legend=True), origin)
        save_png(pairs / "masks" / f"{name}.png", labels, origin, palette)
        kind = open_stored(cell, f"image of {name}").format
        image = pairs / "images" / f"{name}{SUFFIXES.get(kind, f'.{kind.lower()}')}"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(stored_bytes(cell))
    _write_classes(pairs / "classes.txt", names, palette)


def _write_classes(path: Path, names: list[str], palette: list[list[int]]) -> None:
    """With their colours, in which a painting program may save the masks, where these tell all of them apart."""
    colours = tuple(map(tuple, palette[: len(names)]))
    are_clear = len({*colours, IGNORE_COLOUR}) == len(names) + 1
    write_class_list(path, ClassList(tuple(names), colours if are_clear else None))
    if are_clear:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(f"ignore,{','.join(map(str, IGNORE_COLOUR))}\n")
