"""Predictions that lie on the disk -> a folder that an annotation tool reads, for people to correct."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from u2pl_hf.data.annotations import LabelledImage, Style
from u2pl_hf.data.annotations.writing import parts_of, write_annotations
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.evaluation.photographs import Photograph


def export_predictions(
    folder: Path,
    kind: str,
    files: Mapping[Photograph, Mapping[str, Path]],
    classes: tuple[list[str], list[list[int]]],
    style: Style,
    below: float,
) -> dict:
    """Write what masks and confidences say, image by image; see `write_annotations`.

    Args:
        files: of each photograph `mask` and `confidence`, as predict.py writes them.
        classes: names and colours.
        below: a region is uncertain if its mean confidence is.
    """
    names, palette = classes

    def images(_: Path) -> Iterator[LabelledImage]:
        for photograph, made in tqdm(files.items(), "export", unit="image"):
            labels, confidence = _pixels(made["mask"]), _pixels(made["confidence"]) / 255
            parts = list(parts_of(labels, names, confidence, below))
            name = photograph.name + photograph.path.suffix
            yield LabelledImage(name, labels.shape, parts, photograph.path.absolute())

    return write_annotations(folder, kind, ClassList(tuple(names), tuple(map(tuple, palette))), images, style)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
