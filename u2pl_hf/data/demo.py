"""A small rendered data set to try the method on, without any download.

An object's class is its outline together with its texture. Each class leans to a hue, but so loosely that colour alone
often errs; size and angle say nothing, and plain or noisy shapes of the same outlines are background. A few labelled
images therefore teach the classes badly, while many unlabelled ones show how outlines, textures and colours vary.
"""

import colorsys
import functools
import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import datasets
import numpy as np
import pyarrow.parquet

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.source.rows import FEATURES
from u2pl_hf.errors import refusing
from u2pl_hf.files import CACHE_HINT, cache_folder, write_atomically, write_text

SHAPES = ("disc", "square", "triangle")
# Neighbours in this order share either the outline or the texture, so that no class can be told by one alone.
OBJECTS = tuple(zip(SHAPES * 2, ("striped", "dotted") * 3, strict=True))
CLASS_NAMES = ("background", *(f"{texture} {shape}" for shape, texture in OBJECTS))
# Of each class, in a drawn object.
FREQUENCIES = (0.26, 0.21, 0.18, 0.14, 0.12, 0.09)
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DemoSpec:
    """How many images, which, and of what side in pixels. Another spec gives another folder in the cache.

    What the images show is said where it is drawn, lengths in pixels and pairs as ends of a range to draw from: who
    changes that, or FORMAT_VERSION, changes what all results on the demo mean.
    """

    train: int = 400
    validation: int = 100
    seed: int = 0
    size: int = 128


def demo_folder(cache_dir: str | os.PathLike | None = None, spec: DemoSpec | None = None) -> Path:
    """Folder of the demo data set that `datasets.load_dataset` reads, rendered on the first call.

    It holds splits train and validation with columns id, image and label (8-bit, void 255), and `class_names.txt`.
    `cache_dir` defaults to `cache_folder`. Several processes may call this at the same time.

    Raises:
        InputError: it cannot be written there.
    """
    spec = spec or DemoSpec()
    digest = hashlib.sha256(repr(asdict(spec)).encode()).hexdigest()[:8]
    folder = (Path(cache_dir) if cache_dir else cache_folder()) / f"demo-{FORMAT_VERSION}-{digest}"
    # Written last: where it is, all is.
    names = folder / "class_names.txt"
    if names.is_file():
        return folder
    with refusing(OSError, f"cannot write {folder}", CACHE_HINT):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for subset, count in (("train", spec.train), ("validation", spec.validation)):
            # Written by arrow itself: Dataset.to_parquet would show a progress bar.
            table = _table(spec, subset, count).data.table
            path = folder / "data" / f"{subset}-00000-of-00001.parquet"
            write_atomically(path, functools.partial(pyarrow.parquet.write_table, table, row_group_size=100))
        write_text(names, "\n".join(CLASS_NAMES) + "\n")
    return folder


def _table(spec: DemoSpec, subset: str, count: int) -> datasets.Dataset:
    columns = {"id": [f"{subset}_{index:04d}" for index in range(count)], "image": [], "label": []}
    for index, image_id in enumerate(columns["id"]):
        image, label = render(spec, subset, index)
        for role, pixels in (("image", image[..., ::-1]), ("label", label)):
            png = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
            columns[role].append({"bytes": png, "path": f"{image_id}.png"})
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def render(spec: DemoSpec, subset: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image number `index` of a subset: uint8 (size, size, 3) RGB and its label, uint8 (size, size) of 0..6 and 255."""
    rng = np.random.default_rng([spec.seed, ("train", "validation").index(subset), index])
    image = _cloud(rng, spec)
    label = np.zeros((spec.size, spec.size), np.uint8)
    for _ in range(rng.integers(0, 3, endpoint=True)):
        start, end = rng.integers(0, spec.size, (2, 2))
        colour, width = _colour(rng).tolist(), int(rng.integers(1, 4))
        cv2.line(image, start.tolist(), end.tolist(), colour, width, cv2.LINE_AA)
    objects = rng.integers(2, 5, endpoint=True)
    distractors = rng.integers(1, 3, endpoint=True)
    for is_object in rng.permutation([True] * objects + [False] * distractors):
        (_draw_object if is_object else _draw_distractor)(rng, spec, image, label)
    return _photograph(rng, spec, image), label


def _draw_object(rng: np.random.Generator, spec: DemoSpec, image: np.ndarray, label: np.ndarray) -> None:
    kind = rng.choice(len(OBJECTS), p=np.array(FREQUENCIES) / sum(FREQUENCIES))
    shape, texture = OBJECTS[kind]
    mask = _outline(rng, spec, shape)
    image[mask] = _texture(rng, spec, texture, kind / len(OBJECTS))[mask]
    label[_grown(mask)] = IGNORE
    label[mask] = kind + 1


def _draw_distractor(rng: np.random.Generator, spec: DemoSpec, image: np.ndarray, label: np.ndarray) -> None:
    """A plain or noisy shape that is background, and hides what lies below it."""
    mask = _outline(rng, spec, SHAPES[rng.integers(len(SHAPES))])
    filling = np.broadcast_to(_colour(rng), image.shape)
    if rng.random() < 0.5:
        grain = rng.normal(0, rng.uniform(20, 50), image.shape)
        filling = filling + cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.6, 1.2)) * 1.5
    image[mask] = filling[mask]
    label[_grown(mask) & (label != 0)] = IGNORE
    label[mask] = 0


def _outline(rng: np.random.Generator, spec: DemoSpec, shape: str) -> np.ndarray:
    """Bool (size, size): a turned and slightly elongated shape; all shapes have about the same area at one radius."""
    radius = np.exp(rng.uniform(*np.log((12.0, 36.0))))
    stretch = np.sqrt(rng.uniform(1.0, 1.25))
    corners = {"disc": 48, "square": 4, "triangle": 3}[shape]
    around = 2 * np.pi * np.arange(corners) / corners + np.pi / corners
    # A polygon inscribed in the circle would be smaller than the disc, and size would tell the class.
    area_ratio = corners / (2 * np.pi) * np.sin(2 * np.pi / corners)
    points = np.stack([np.cos(around) * stretch, np.sin(around) / stretch], 1) * radius / np.sqrt(area_ratio)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = points @ turn.T + rng.uniform(0.08, 0.92, 2) * spec.size
    mask = np.zeros((spec.size, spec.size), np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and one pixel around it."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def _texture(rng: np.random.Generator, spec: DemoSpec, texture: str, hue: float) -> np.ndarray:
    """Float (size, size, 3): a bright colour in stripes or dots on a darker one, at a random angle and phase."""
    period, angle = rng.uniform(6.0, 11.0), rng.uniform(0, np.pi)
    ys, xs = np.mgrid[: spec.size, : spec.size]
    along = xs * np.cos(angle) + ys * np.sin(angle) + rng.uniform(0, period)
    across = ys * np.cos(angle) - xs * np.sin(angle) + rng.uniform(0, period)
    wave = np.sin(2 * np.pi * along / period)
    if texture == "dotted":
        # About a quarter of the area is dots.
        wave = wave + np.sin(2 * np.pi * across / period) - 0.75
    hue = (hue + rng.normal(0, 0.08)) % 1.0  # in turns of the colour circle
    bright = 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.3, 0.9), rng.uniform(0.7, 1.0)))
    dark = np.clip(bright - 90.0, 0, 255) * rng.uniform(0.3, 1.0, 3)
    return np.where((wave > 0)[..., None], bright, dark)


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(20, 235, 3)


def _cloud(rng: np.random.Generator, spec: DemoSpec) -> np.ndarray:
    """Float (size, size, 3): low-frequency colour noise on two scales."""
    image = np.broadcast_to(_colour(rng), (spec.size, spec.size, 3)).copy()
    for cells in sorted(rng.integers(3, 12, endpoint=True, size=2)):
        grid = rng.normal(0, rng.uniform(10.0, 40.0), (cells, cells, 3))
        image += cv2.resize(grid, (spec.size, spec.size), interpolation=cv2.INTER_CUBIC)
    return image


def _photograph(rng: np.random.Generator, spec: DemoSpec, image: np.ndarray) -> np.ndarray:
    """Uneven light, contrast, blur and sensor noise, the same for the whole image: float in, uint8 out."""
    corners = rng.uniform(0.75, 1.15, (2, 2))
    image = np.clip(image, 0, 255) * cv2.resize(corners, (spec.size, spec.size))[..., None]
    image = (image - 128) * rng.uniform(0.7, 1.1) + 128
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
    image = image + rng.normal(0, rng.uniform(2.0, 10.0), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
