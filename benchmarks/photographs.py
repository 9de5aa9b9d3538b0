"""Sets of small photographs that two CPU cores can train on, cut from VOC 2012 and CamVid.

    python benchmarks/photographs.py animals VOCdevkit/VOC2012 photographs/animals
    python benchmarks/photographs.py camvid CAMVID photographs/camvid
    u2pl prepare folder --root photographs/animals --output_dir data/animals

`animals` takes images of VOC that show cats, cows, dogs, horses, persons or sheep on 1 % of their pixels at least, and
are ignored on 30 % at most; all else is background; the long side is 200. `camvid` takes CamVid as a data set with
columns id, image and label, at 240x180, and writes lists of labelled images of one sequence, evenly spread: 4.txt and
10.txt of 0001TP, at dusk, and day.txt, 4 of 0006R0; mixed.txt has 2 of each; what it is evaluated on is of 0016E5. Both
write images/{train,val}, masks/{train,val} and classes.txt.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from u2pl_hf.errors import exits_on_input_error, require

ANIMALS = {0: "background", 8: "cat", 10: "cow", 12: "dog", 13: "horse", 15: "person", 17: "sheep"}
LONG_SIDE = 200
CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
CAMVID_SIZE = (240, 180)
LISTS = {"4": {"0001TP": 4}, "10": {"0001TP": 10}, "day": {"0006R0": 4}, "mixed": {"0001TP": 2, "0006R0": 2}}
Pair = tuple[str, str, Image.Image, Image.Image]


def animals(voc: Path) -> Iterator[Pair]:
    """Part, name, image and mask of each image that shows enough."""
    table = np.full(256, 255, np.uint8)
    table[list(ANIMALS)] = range(len(ANIMALS))
    validation = set((voc / "ImageSets/Segmentation/val.txt").read_text().split())
    for path in sorted((voc / "SegmentationClassAug").glob("*.png")):
        ids = table[np.asarray(Image.open(path))]
        counts = np.bincount(ids.ravel(), minlength=256)
        if counts[1 : len(ANIMALS)].sum() < 0.01 * ids.size or counts[255] > 0.3 * ids.size:
            continue
        image = Image.open(voc / f"JPEGImages/{path.stem}.jpg").convert("RGB")
        size = tuple(max(1, round(side * LONG_SIDE / max(image.size))) for side in image.size)
        small = image.resize(size, Image.Resampling.LANCZOS)
        part = "val" if path.stem in validation else "train"
        yield part, path.stem, small, Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)


def camvid(folder: Path) -> Iterator[Pair]:
    """Part, name, image and mask of each image."""
    for subset, part in (("train", "train"), ("validation", "val")):
        for row in datasets.load_dataset(str(folder), split=subset):
            image = row["image"].resize(CAMVID_SIZE, Image.Resampling.BOX)
            yield part, row["id"], image, row["label"].resize(CAMVID_SIZE, Image.Resampling.NEAREST)


def write(pairs: Iterator[Pair], names: list[str], out: Path, suffix: str) -> list[str]:
    """Write a folder that `u2pl prepare folder` reads; returns the names of the training images."""
    trained = []
    for part, name, image, mask in pairs:
        trained += [name] if part == "train" else []
        for kind, picture, path in (("images", image, f"{name}.{suffix}"), ("masks", mask, f"{name}.png")):
            folder = out / kind / part
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / path, **({"quality": 95} if path.endswith("jpg") else {}))
    (out / "classes.txt").write_text("\n".join(names) + "\n")
    return sorted(trained)


@exits_on_input_error
def main() -> None:
    """Read one set and write it small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("animals", "camvid"))
    parser.add_argument("source", type=Path, help="VOCdevkit/VOC2012, or a folder of CamVid that load_dataset reads")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    needed = ["SegmentationClassAug", "ImageSets/Segmentation/val.txt"] if args.which == "animals" else [""]
    missing = next((args.source / name for name in needed if not (args.source / name).exists()), None)
    require(missing is None, f"there is no {missing}: pass the folder of {args.which}'s data")
    if args.which == "animals":
        write(animals(args.source), list(ANIMALS.values()), args.out, "jpg")
        return
    trained = write(camvid(args.source), CAMVID, args.out, "png")
    for which, numbers in LISTS.items():
        chosen = []
        for sequence, number in numbers.items():
            names = [name for name in trained if name.startswith(sequence)]
            chosen += [names[(2 * i + 1) * len(names) // (2 * number)] for i in range(number)]
        (args.out / f"{which}.txt").write_text("".join(f"train/{name}\n" for name in chosen))


if __name__ == "__main__":
    main()
