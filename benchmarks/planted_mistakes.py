"""How many planted mistakes `u2pl check-labels` finds, and how many of the masks that it names first hold one.

    python benchmarks/planted_mistakes.py CAMVID --output_dir planted -- --max_steps 1600 --crop_size 161

CAMVID is a prepared data set. A tenth of its training masks get a mistake, a third of these each: an object that is
given to another class, a mask that is shifted by 8 to 16 pixels, an object that is given to what surrounds it. SupOnly
is trained on three folds of these masks, each on two thirds of the images, and the check ranks all of them. What comes
after -- goes to each run; the first word may be a recipe (own_data_suponly). Stopped in any way, the same command goes
on. OUTPUT_DIR/planted.json has precision among the first 10, 20 and as many as were planted, and recall by kind.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import datasets
import numpy as np
from PIL import Image

from u2pl_hf.commands import check_labels
from u2pl_hf.constants import IGNORE
from u2pl_hf.data.source.rows import FEATURES
from u2pl_hf.data.sources import Source, load_source
from u2pl_hf.errors import exits_on_input_error, require
from u2pl_hf.files import read_json, write_atomically, write_json, write_text
from u2pl_hf.measure.queue import run_all

KINDS = ("class", "shift", "missing")
# Of an object, as shares of the image: smaller ones would be found by nobody, larger ones are no objects.
SMALLEST, LARGEST = 0.005, 0.15
SHIFT = (8, 16)
FOLDS = 3


@dataclass(frozen=True)
class Planted:
    """A mistake: its image, its kind, where it is (x, y, width, height), and which class became which."""

    id: str
    kind: str
    box: tuple[int, int, int, int]
    labelled: int | None = None
    was: int | None = None


def objects(mask: np.ndarray) -> list[tuple[int, np.ndarray, tuple[int, int, int, int]]]:
    """Connected parts of a mask of a middling size: class, pixels (H,W) bool, box."""
    found = []
    for class_id in np.unique(mask[mask != IGNORE]).tolist():
        _, places, stats, _ = cv2.connectedComponentsWithStats((mask == class_id).astype(np.uint8))
        for number, (*box, pixels) in enumerate(stats.tolist()[1:], 1):
            if SMALLEST <= pixels / mask.size <= LARGEST:
                found.append((class_id, places == number, tuple(box)))
    return found


def surrounding(mask: np.ndarray, part: np.ndarray) -> int | None:
    """The class of most pixels right around a part of a mask; None where these are ignored."""
    ring = cv2.dilate(part.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~part
    counts = np.bincount(mask[ring & (mask != IGNORE)], minlength=1)
    return int(counts.argmax()) if counts.any() else None


def shifted(mask: np.ndarray, right: int, down: int) -> np.ndarray:
    """The mask moved; where nothing comes to lie, its outermost rows and columns go on."""
    rows = np.clip(np.arange(mask.shape[0]) - down, 0, mask.shape[0] - 1)
    columns = np.clip(np.arange(mask.shape[1]) - right, 0, mask.shape[1] - 1)
    return mask[rows[:, None], columns]


def plant(
    mask: np.ndarray, kind: str, classes: list[int], rng: np.random.Generator, name: str = ""
) -> tuple[np.ndarray, Planted] | None:
    """A mask (H,W) uint8 with a mistake of a kind; None where it has no object for one."""
    if kind == "shift":
        length, angle = rng.uniform(*SHIFT), rng.uniform(0, 2 * np.pi)
        right, down = round(length * np.cos(angle)), round(length * np.sin(angle))
        return shifted(mask, right, down), Planted(name, kind, (0, 0, mask.shape[1], mask.shape[0]))
    parts = objects(mask)
    for place in rng.permutation(len(parts)):
        class_id, part, box = parts[place]
        if kind == "class":
            given = int(rng.choice([c for c in classes if c != class_id]))
        else:
            given = surrounding(mask, part)
        if given not in (None, class_id):
            return np.where(part, np.uint8(given), mask), Planted(name, kind, box, given, class_id)
    return None


def plant_all(
    masks: list[np.ndarray], ids: list[str], share: float, seed: int = 0
) -> tuple[list[np.ndarray], list[Planted]]:
    """A share of the masks, drawn at random, gets a mistake each, the kinds in turn."""
    rng, number = np.random.default_rng(seed), round(share * len(masks))
    classes = np.unique(np.concatenate([np.unique(mask) for mask in masks]))
    classes, masks, planted = classes[classes != IGNORE].tolist(), list(masks), []
    for place in rng.permutation(len(masks)).tolist():
        made = None
        if len(planted) < number:
            made = plant(masks[place], KINDS[len(planted) % len(KINDS)], classes, rng, ids[place])
        if made is not None:
            masks[place], mistake = made
            planted.append(mistake)
    return masks, planted


def scores(planted: list[Planted], ranked: list[dict]) -> dict:
    """Precision among the first of a ranking, and how much of each kind is among the first as many as were planted.

    Args:
        ranked: {"id", "kind"} of images, the most suspect first.
    """
    kinds, order = {p.id: p.kind for p in planted}, [image["id"] for image in ranked]
    first = set(order[: len(planted)])
    precision = {str(n): sum(name in kinds for name in order[:n]) / n for n in sorted({10, 20, len(planted)})}
    named = {image["id"]: image["kind"] for image in ranked}
    each = {kind: [p.id for p in planted if p.kind == kind] for kind in KINDS}
    recall = {kind: sum(name in first for name in ids) / max(1, len(ids)) for kind, ids in each.items()}
    told = {kind: sum(named.get(name) == kind for name in ids) / max(1, len(ids)) for kind, ids in each.items()}
    chance = len(planted) / max(1, len(order))
    return {"planted": len(planted), "ranked": len(order), "precision": precision, "recall": recall,
            "kind_told": told, "precision_by_chance": chance}  # fmt: skip
