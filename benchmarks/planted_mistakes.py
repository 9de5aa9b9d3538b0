"""How many planted mistakes `u2pl check-labels` finds, and how many of the masks that it names first hold one.

    python benchmarks/planted_mistakes.py CAMVID --output_dir planted -- --max_steps 1600 --crop_size 161

CAMVID is a prepared data set. A tenth of its training masks get a mistake, a third of these each: an object that is
given to another class, a mask that is shifted by 8 to 16 pixels, an object that is given to what surrounds it. SupOnly
is trained on three folds of these masks, each on two thirds of the images, and the check ranks all of them. What comes
after -- goes to each run; the first word may be a recipe (own_data_suponly). Stopped in any way, the same command goes
on. OUTPUT_DIR/planted.json has precision among the first 10, 20 and as many as were planted, and recall by kind.
"""

import argparse
import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image

from u2pl_hf.command_line import ScriptParser, number, print_result, split_at_dashes
from u2pl_hf.commands import check_labels
from u2pl_hf.constants import IGNORE
from u2pl_hf.data.source.rows import FEATURES
from u2pl_hf.data.sources import Source, load_source
from u2pl_hf.errors import exits_on_input_error
from u2pl_hf.files import read_json, write_atomically, write_json, write_text
from u2pl_hf.measure.queue import option_words, run_all

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
        for place, (*box, pixels) in enumerate(stats.tolist()[1:], 1):
            if SMALLEST <= pixels / mask.size <= LARGEST:
                found.append((class_id, places == place, tuple(box)))
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
        others = [c for c in classes if c != class_id]
        given = int(rng.choice(others)) if kind == "class" and others else surrounding(mask, part)
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


def scores(planted: list[Planted], ranked: list[dict], checked: int) -> dict:
    """Precision among the first of a ranking, and how much of each kind is among the first as many as were planted.

    Args:
        ranked: {"id", "kind"} of images, the most suspect first.
        checked: how many images could have been among them.
    """
    kinds, order = {p.id: p.kind for p in planted}, [image["id"] for image in ranked]
    first = set(order[: len(planted)])
    precision = {str(n): sum(name in kinds for name in order[:n]) / n for n in sorted({10, 20, len(planted)})}
    named = {image["id"]: image["kind"] for image in ranked}
    each = {kind: [p.id for p in planted if p.kind == kind] for kind in KINDS}
    recall = {kind: sum(name in first for name in ids) / max(1, len(ids)) for kind, ids in each.items()}
    told = {kind: sum(named.get(name) == kind for name in ids) / max(1, len(ids)) for kind, ids in each.items()}
    chance = len(planted) / checked
    return {"planted": len(planted), "checked": checked, "suspect": len(order), "precision": precision,
            "precision_by_chance": chance, "recall": recall, "kind_told": told}  # fmt: skip


def write_subset(source: Source, masks: Sequence[np.ndarray], path: Path) -> None:
    """One parquet file with the images of a source as they are stored, and these masks."""
    columns: dict[str, list] = {"id": source.ids, "image": [], "label": []}
    for row, mask in enumerate(masks):
        cell, png = source.rows.cell(row, "image"), io.BytesIO()
        Image.fromarray(mask).save(png, format="png")
        columns["image"].append({"bytes": cell["bytes"] or Path(cell["path"]).read_bytes(), "path": f"{row}"})
        columns["label"].append({"bytes": png.getvalue(), "path": f"{row}.png"})
    table = datasets.Dataset.from_dict(columns, features=FEATURES).data.table
    pyarrow.parquet.write_table(table, path, row_group_size=100)


def write_data(dataset: str, folder: Path, share: float, seed: int) -> None:
    """A copy of a data set with mistakes in its training masks, and mistakes.json, which tells them.

    Raises:
        InputError: no such data set, or images without masks.
    """
    sources = {subset: load_source(dataset, subset) for subset in ("train", "validation")}

    def write(partial: Path) -> None:
        (partial / "data").mkdir(parents=True)
        for subset, source in sources.items():
            masks = [source.read_label(row) for row in range(len(source.ids))]
            if subset == "train":
                masks, planted = plant_all(masks, source.ids, share, seed)
                write_json(partial / "mistakes.json", {"planted": [asdict(mistake) for mistake in planted]})
            write_subset(source, masks, partial / "data" / f"{subset}-00000-of-00001.parquet")
        if (names := Path(dataset, "class_names.txt")).is_file():
            shutil.copy(names, partial / "class_names.txt")

    write_atomically(folder, write)


def write_folds(ids: Sequence[str], folder: Path, seed: int) -> dict[str, Path]:
    """Name of a fold -> the list of the two thirds of the images that it is trained on."""
    order, lists = np.random.default_rng(seed).permutation(len(ids)), {}
    folder.mkdir(exist_ok=True)
    for fold in range(FOLDS):
        held = set(order[fold::FOLDS].tolist())
        lists[f"fold{fold + 1}"] = folder / f"fold{fold + 1}.txt"
        write_text(folder / f"fold{fold + 1}.txt", "".join(f"{i}\n" for row, i in enumerate(ids) if row not in held))
    return lists


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a prepared data set with masks of all its training images")
    add("--output_dir", type=Path, default=Path("runs/planted_mistakes"), metavar="DIR", help="for data, runs, result")
    add("--share", type=number(float, above=0, at_most=1), default=0.1, help="of the masks with a mistake (0.1)")
    add("--seed", type=number(int), default=0, help="of mistakes and folds (0)")
    add("--jobs", type=number(int, at_least=1), default=1, metavar="N", help="runs at a time (1)")
    words, options = split_at_dashes(argv)
    return parser.parse_args(words, argparse.Namespace(options=options))


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Plant, train, check, count."""
    args = parse_arguments(argv)
    out = args.output_dir.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "data").is_dir():
        write_data(args.dataset, out / "data", args.share, args.seed)
    lists = write_folds(load_source(str(out / "data")).ids, out / "lists", args.seed)
    is_recipe = bool(args.options) and not args.options[0].startswith("--")
    recipe, options = (args.options[0], args.options[1:]) if is_recipe else ("own_data_suponly", args.options)
    runs = {}
    for name, split in lists.items():
        last = {"dataset": out / "data", "split": split, "output_dir": out / name}
        runs[name] = [recipe, *options, *option_words(last)]
    to_do = {name: words for name, words in runs.items() if not (out / name / "results.json").is_file()}
    if to_do:
        run_all(["-m", "u2pl_hf", "train"], to_do, out / "logs", args.jobs)
    asked = ["--dataset", str(out / "data"), "--output_dir", str(out / "check"), "--runs"]
    facts = check_labels.check(check_labels.parse_arguments([*asked, *(str(out / name) for name in runs)]))
    mistakes = read_json(out / "data" / "mistakes.json")["planted"]
    result = scores([Planted(**mistake) for mistake in mistakes], facts["images"], facts["checked"])
    result |= {"dataset": args.dataset, "share": args.share, "seed": args.seed, "options": args.options}
    write_json(out / "planted.json", result)
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
