"""How many training samples one core prepares: VOC-sized images, random scale, flip and a 513 crop, with labels.

    python benchmarks/input_pipeline.py                               rendered 500x375 images
    python benchmarks/input_pipeline.py --dataset DIR --subset train  a data set of your own

All ways run interleaved in one process with one thread, so that they meet the same machine; the best of the rounds
counts. A table goes to stderr, one JSON line to stdout.
"""

import argparse
import io
import json
import platform
import sys
import time

import cv2
import datasets
import numpy as np
from PIL import Image

from u2pl_hf.constants import IMAGE_MEAN
from u2pl_hf.data.demo import DemoSpec, render
from u2pl_hf.data.source.rows import ArrowRows
from u2pl_hf.data.sources import Source, load_source
from u2pl_hf.data.stream.streams import SampleStream, endless_loader
from u2pl_hf.data.transforms import WeakAugmentation

FILL = [round(255 * m) for m in IMAGE_MEAN]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="data set to read instead of rendered images")
    parser.add_argument("--subset", default="train", help="its subset (default: train)")
    parser.add_argument("--images", type=int, default=64, help="images in turn (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over the images (default: 5)")
    parser.add_argument("--crop_size", type=int, default=513, help="side of the crop (default: 513)")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    cv2.setNumThreads(1)
    source = rendered(args.images) if args.dataset is None else load_source(args.dataset, args.subset)
    count = min(args.images, len(source.ids))
    seconds = measure(ways(source, count, args.crop_size), count, args.rounds)
    base = seconds["straightforward"]
    print(f"{'way':<34} {'ms/sample':>10} {'samples/s':>10} {'ratio':>6}", file=sys.stderr)
    for name, value in seconds.items():
        print(f"{name:<34} {1e3 * value:>10.2f} {1 / value:>10.0f} {base / value:>6.2f}", file=sys.stderr)
    result = {name: round(1 / value, 1) for name, value in seconds.items()}
    print(json.dumps({"samples_per_second": result, "images": count, "machine": platform.processor()}))


def ways(source: Source, count: int, size: int) -> dict:
    """Name -> function of (row, round) that prepares a sample."""
    augmentation = WeakAugmentation(size)
    stream, blind = (
        SampleStream(
            source, list(range(count)), augmentation, seed=0, name=name, with_labels=with_labels, cache_bytes=0
        )
        for name, with_labels in (("labelled", True), ("unlabelled", False))
    )
    decoded = [(source.read_image(i), source.read_label(i)) for i in range(count)]
    batches = iter(endless_loader(stream))
    return {
        "straightforward": lambda i, n: straightforward(source.read_image(i), source.read_label(i), size, n),
        "SampleStream": lambda i, n: stream[n * count + i, None],
        "SampleStream, batched": lambda i, n: next(batches),
        "SampleStream, unlabelled": lambda i, n: blind[n * count + i, None],
        "of it: decode image": lambda i, n: source.read_image(i),
        "of it: decode label": lambda i, n: source.read_label(i),
        "of it: augmentation": lambda i, n: augmentation(*decoded[i], n * count + i),
        "geometry: resize, then crop": lambda i, n: resize_then_crop(*decoded[i], size, n),
        "geometry: warp what the crop shows": lambda i, n: warp(*decoded[i], size, n),
    }


def measure(functions: dict, count: int, rounds: int) -> dict[str, float]:
    """Seconds per sample of each way, best of the rounds."""
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for row in range(count):
                function(row, turn)
            best[name] = min(best[name], (time.perf_counter() - start) / count)
    return best


def draw(rng: np.random.Generator) -> float:
    """A scale of the published distribution."""
    return rng.uniform(0.5, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, 2.0)


def straightforward(image: np.ndarray, label: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode, resize all of it, flip, pad, crop: what a first version does, with PIL and numpy."""
    rng = np.random.default_rng(seed)
    scale = draw(rng)
    width, height = round(image.shape[1] * scale), round(image.shape[0] * scale)
    image = np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR))
    label = np.asarray(Image.fromarray(label).resize((width, height), Image.NEAREST))
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    down, right = max(0, size - height), max(0, size - width)
    sides = ((down // 2, down - down // 2), (right // 2, right - right // 2))
    image = np.pad(image, (*sides, (0, 0)), constant_values=124)
    label = np.pad(label, sides, constant_values=255)
    y, x = rng.integers(0, image.shape[0] - size + 1), rng.integers(0, image.shape[1] - size + 1)
    image, label = image[y : y + size, x : x + size], label[y : y + size, x : x + size]
    return np.ascontiguousarray(image.transpose(2, 0, 1)), np.ascontiguousarray(label)


def resize_then_crop(image: np.ndarray, label: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's resize of the whole image, then the crop: the geometry alone, without a library around it."""
    scale, x, y = geometry(image.shape, size, seed)
    width, height = round(image.shape[1] * scale), round(image.shape[0] * scale)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    sides = (max(0, -y), max(0, y + size - height), max(0, -x), max(0, x + size - width))
    window = np.s_[max(0, y) : y + size, max(0, x) : x + size]
    image = cv2.copyMakeBorder(image[window], *sides, cv2.BORDER_CONSTANT, value=FILL)
    return image, cv2.copyMakeBorder(label[window], *sides, cv2.BORDER_CONSTANT, value=255)


def warp(image: np.ndarray, label: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same crop computed directly: only the pixels that it shows are interpolated."""
    scale, x, y = geometry(image.shape, size, seed)
    sx, sy = (round(n * scale) / n for n in (image.shape[1], image.shape[0]))
    # Output pixel centre -> input pixel centre.
    matrix = np.array([[1 / sx, 0, (x + 0.5) / sx - 0.5], [0, 1 / sy, (y + 0.5) / sy - 0.5]])
    flags = cv2.WARP_INVERSE_MAP
    out = cv2.warpAffine(image, matrix, (size, size), flags=flags | cv2.INTER_LINEAR, borderValue=FILL)
    return out, cv2.warpAffine(label, matrix, (size, size), flags=flags | cv2.INTER_NEAREST, borderValue=255)


def geometry(shape: tuple, size: int, seed: int) -> tuple[float, int, int]:
    """Scale, and the crop's corner in the resized image; negative where padding is needed."""
    rng = np.random.default_rng(seed)
    scale = draw(rng)
    corner = []
    for side in (shape[1], shape[0]):
        room = round(side * scale) - size
        corner.append(int(rng.integers(0, room + 1)) if room >= 0 else -(-room // 2))
    return scale, *corner


def rendered(count: int) -> Source:
    """JPEGs of 500x375 and their masks, rendered as the demo's are, with about VOC's bytes per image."""
    spec = DemoSpec(size=500)
    cells: dict[str, list] = {"image": [], "label": []}
    for number in range(count):
        image, label = render(spec, "train", number)
        for name, array, kind, options in (("image", image, "JPEG", {"quality": 92}), ("label", label, "PNG", {})):
            buffer = io.BytesIO()
            Image.fromarray(array[:375]).save(buffer, kind, **options)
            cells[name].append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({name: datasets.Image(decode=False) for name in cells})
    table = datasets.Dataset.from_dict(cells, features=features)
    return Source(ArrowRows(table, {"image": "image", "label": "label"}), [str(i) for i in range(count)])


if __name__ == "__main__":
    main()
