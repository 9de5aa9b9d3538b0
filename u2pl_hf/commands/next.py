"""Say which unlabelled images to label next, and write masks to correct.

    python training_scripts/label_next.py runs/photos --unlabelled more_photos --number 20 --output_dir to_label

Each image and its mirror image are predicted. Those score high of which the model is unsure (entropy of U2PL's
unreliable pixels), where the two predictions differ, and which show rare classes. Of the best, images are taken that
are unlike each other, and with --dataset unlike those that are labelled. Written are next.txt with their ids in the
order of choice, next.json with the scores of all images, overlays, and in to_correct/ the chosen images with masks to
correct, for `u2pl prepare folder`. The folder appears when all is there; the last line of stdout, where that is no
terminal, is one JSON object.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.commands.evaluate import check_classes
from u2pl_hf.commands.options import add_device, add_model, model_to_use
from u2pl_hf.data.source.checks import check_labelled
from u2pl_hf.data.source.rows import stored_bytes
from u2pl_hf.data.source.splits import resolve_split
from u2pl_hf.data.sources import Source, load_source, subset_names
from u2pl_hf.errors import InputError, exits_on_input_error, refusing, require
from u2pl_hf.evaluation.folding import folded
from u2pl_hf.evaluation.inference import (
    MAX_WHOLE_PIXELS,
    class_names,
    evaluating,
    same_size_batches,
)
from u2pl_hf.evaluation.loading import model_digest
from u2pl_hf.evaluation.outputs import check_pictures, check_writable
from u2pl_hf.evaluation.segmentation import segment_rows
from u2pl_hf.evaluation.to_correct import write_to_correct
from u2pl_hf.files import write_atomically, write_json, write_text
from u2pl_hf.measure.side_by_side import aligned
from u2pl_hf.method import acquisition
from u2pl_hf.method.pseudo_labels import pixel_entropy
from u2pl_hf.system.precision import PRECISIONS, computing

logger = logging.getLogger(__name__)
STRATEGIES = ("score", "entropy", "random")
# Unlike images are looked for among so many times those that are asked for, the best ones.
POOL = 5
# The usual subset to evaluate on.
EVALUATION = "validation"
# What next.json repeats of the command line.
ASKED = ("model", "unlabelled", "unlabelled_subset", "dataset", "split", "strategy", "alpha", "seed", "precision")


class Looked(NamedTuple):
    """What one look at images finds: rows of a source, and on the CPU of each image what follows, in their order.

    Attributes:
        rows: of the images that can be read.
        entropy, unreliable, divergence: float64 (N,): mean entropy, that of unreliable pixels, mean `view_divergence`.
        pixels: int64 (N,C), pixels predicted of each class.
        features: float32 (N,D), the backbone's last features, mean over the image and its mirror image, of length 1.
        faults: a line for each of the others.
    """

    rows: list[int]
    entropy: Tensor
    unreliable: Tensor
    divergence: Tensor
    pixels: Tensor
    features: Tensor
    faults: list[str]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = ScriptParser(description=__doc__)
    add_model(parser)
    add, positive = parser.add_argument, number(int, at_least=1)
    add("--unlabelled", required=True, help="images to choose from: a folder of them, a prepared data set, or a Hub id")
    add("--unlabelled_subset", default="train", help="of such a data set (train)")
    add("--number", type=positive, default=20, help="how many to choose (20)")
    add("--output_dir", type=Path, required=True, help="where to write; must be empty or missing")
    add("--dataset", help="what is labelled so far: left out, unlike images are chosen, its classes say what is rare")
    add("--split", default="all", help="which images of --dataset are labelled, as in training (all)")
    add("--train_subset", default="train", help="of --dataset (train)")
    add("--eval_subset", default=EVALUATION, help="of --dataset, left out likewise where it is there (validation)")
    for role in ("id", "image", "label"):
        add(f"--{role}_column", default=role, help=f"of data sets ({role})")
    told = "score: as above; entropy: the highest over all pixels; random: for comparison (score)"
    add("--strategy", choices=STRATEGIES, default="score", help=told)
    add("--alpha", type=number(float, at_most=1), default=0.2, help="share of an image's unreliable pixels (0.2)")
    told = "masks to correct have 255 on unreliable pixels, or all that is predicted (reliable)"
    add("--masks", choices=("reliable", "all"), default="reliable", help=told)
    add("--seed", type=number(int), default=0, help="of --strategy random, and of a --split that is drawn (0)")
    add("--batch_size", type=positive, default=1, help="neighbouring images of equal size share a pass (1)")
    told = f"images with more pixels are predicted by sliding windows ({MAX_WHOLE_PIXELS}, that is 2048x1024)"
    add("--max_whole_pixels", type=number(int, at_most=2**40), default=MAX_WHOLE_PIXELS, help=told)
    add("--window", type=positive, default=769, help="side of the sliding window (769)")
    add_device(parser)
    add("--precision", choices=tuple(PRECISIONS), default="no", help="autocast to a shorter type (no)")
    # Of what `model_to_use` asks.
    parser.set_defaults(compile=False)
    args = parser.parse_args(argv)
    parser.require_with(args, "dataset", "split", "train_subset", "eval_subset", "label_column")
    return args


def load(args: argparse.Namespace, dataset: str, subset: str, label: str | None, option: str) -> Source:
    """One subset of a data set, with the columns that were asked for."""
    columns = {"id_column": args.id_column, "image_column": args.image_column, "label_column": label}
    return load_source(dataset, subset, **columns, subset_option=option)


def load_labelled(args: argparse.Namespace, names: list[str]) -> tuple[Source, list[int], Tensor, Source | None]:
    """The source and rows of the labelled images, their pixels (N,C) of each class, and the evaluation images, if any.

    Raises:
        InputError: as training would.
    """
    train = load(args, args.dataset, args.train_subset, args.label_column, "--train_subset")
    check_classes(names, train.class_names, args.dataset)
    split = {"has_label": train.rows.has_label(), "class_presence": train.class_presence, "dataset_dir": args.dataset}
    rows, _ = resolve_split(args.split, train.ids, args.seed, **split)
    labels = check_labelled(train, rows, len(names), what="labelled")
    evaluation = None
    # Whoever compares by folds has no such subset; one that is named has to be there.
    if args.eval_subset != EVALUATION or EVALUATION in subset_names(args.dataset):
        evaluation = load(args, args.dataset, args.eval_subset, args.label_column, "--eval_subset")
    return train, rows, torch.from_numpy(labels.counts), evaluation


def without_labelled(source: Source, known: Sequence[tuple[Source, Sequence[int]]]) -> list[int]:
    """Rows of a source that are none of the known images, byte for byte; a warning tells of those of the same id."""
    digests = {_digest(other, row) for other, rows in known for row in rows}
    sizes = np.concatenate([other.rows.sizes[list(rows)] for other, rows in known])
    # Bytes of another length are other bytes.
    may_be = np.isin(source.rows.sizes, sizes)
    left = [row for row in range(len(source.ids)) if not may_be[row] or _digest(source, row) not in digests]
    ids = {other.ids[row] for other, rows in known for row in rows}
    if namesakes := sorted(ids.intersection(source.ids[row] for row in left)):
        told = (
            "%d images have the id of a labelled image and other bytes, such as %s: they stay; rename them before both"
        )
        logger.warning(f"{told} are prepared together", len(namesakes), namesakes[0])
    return left


def _digest(source: Source, row: int) -> bytes:
    return hashlib.sha256(stored_bytes(source.rows.cell(row, "image"))).digest()


@contextlib.contextmanager
def pooled_features(model) -> Iterator[list[Tensor]]:
    """Passes of the model within leave behind their backbone's last features, mean over the pixels: (b,D) each."""
    found: list[Tensor] = []
    pool = lambda backbone, images, stages: found.append(stages[-1].float().mean((-2, -1)))  # noqa: E731
    hook = model.backbone.register_forward_hook(pool)
    try:
        yield found
    finally:
        hook.remove()


def look(model, images: Sequence[np.ndarray], args: argparse.Namespace) -> list[tuple]:
    """Of each image (H,W,3) uint8, all of one size: the fields of `Looked` but its first and last."""
    height, width = images[0].shape[:2]
    mode = "whole" if height * width <= args.max_whole_pixels else "slide"
    if mode == "slide" and len(images) > 1:
        # Windows of several images would share passes, and their features not be told apart.
        return [found for image in images for found in look(model, [image], args)]
    device = next(model.parameters()).device
    upright = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device)
    entropy, divergence = torch.empty((2, len(images), height, width), device=device)
    ids = torch.empty(entropy.shape, dtype=torch.long, device=device)
    with evaluating(model), pooled_features(model) as features:
        views = (segment_rows(model, view, mode=mode, window=args.window) for view in (upright, upright.flip(-1)))
        for (image, first, scores), (_, _, mirrored) in zip(*views, strict=True):
            rows = slice(first, first + scores.shape[1])
            entropy[image, rows] = pixel_entropy(scores[None])[0]
            divergence[image, rows] = acquisition.view_divergence(scores[None], mirrored.flip(-1)[None])[0]
            ids[image, rows] = scores.argmax(dim=0)
    pooled = F.normalize(torch.cat(features).unflatten(0, (-1, len(images))).mean(0)).cpu()
    unreliable = [acquisition.unreliable_entropy(each, args.alpha).item() for each in entropy]
    pixels = [torch.bincount(each.flatten(), minlength=model.config.num_labels).cpu() for each in ids]
    means = [maps.mean((-2, -1)).tolist() for maps in (entropy, divergence)]
    return list(zip(means[0], unreliable, means[1], pixels, pooled, strict=True))


def readable(source: Source, rows: Sequence[int], faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """(row, pixels) of the images that can be read; a line in `faults` for each of the others."""
    for row in rows:
        try:
            yield row, source.read_image(row)
        except InputError as error:
            logger.warning("skipped: %s", error)
            faults.append(str(error))


def look_at_all(
    model, source: Source, rows: Sequence[int], args: argparse.Namespace, most: int | None = None, what: str = "look"
) -> Looked:
    """One pass over images, in their order, of which nothing but numbers is kept; it ends after `most`."""
    kept, found, faults = [], [], []
    with tqdm(total=len(rows) if most is None else min(most, len(rows)), desc=what, unit="image", leave=False) as bar:
        images = itertools.islice(readable(source, rows, faults), most)
        for batch in same_size_batches(images, args.batch_size):
            kept += [row for row, _ in batch]
            found += look(model, [image for _, image in batch], args)
            bar.update(len(batch))
    require(found, f"none of the {len(rows)} images can be read: {''.join(faults[:1])}")
    *numbers, pixels, features = zip(*found, strict=True)
    numbers = (torch.tensor(each, dtype=torch.float64) for each in numbers)
    return Looked(kept, *numbers, torch.stack(pixels), torch.stack(features), faults)


def choose(found: Looked, score: Tensor, covered: Tensor, args: argparse.Namespace) -> list[int]:
    """Places of the chosen images, in order; of equal images the first."""
    if args.strategy == "random":
        # They were drawn before they were looked at.
        return list(range(min(args.number, len(found.rows))))
    ranked = (found.entropy if args.strategy == "entropy" else score).argsort(descending=True, stable=True)
    if args.strategy == "entropy":
        return ranked[: args.number].tolist()
    best = ranked[: POOL * args.number]
    return best[acquisition.k_centre_greedy(found.features[best], args.number, covered)].tolist()


def facts_of(source: Source, found: Looked, score: Tensor, rarity: Tensor, chosen: list[int]) -> list[dict]:
    """Of each image its id, its place in the choice from 1 on or null, and its score with the parts of it."""
    place = {row: order for order, row in enumerate(chosen, 1)}
    parts = {"score": score, "unreliable_entropy": found.unreliable, "divergence": found.divergence}
    parts |= {"rarity": rarity, "entropy": found.entropy}
    columns = {"id": [source.ids[row] for row in found.rows], "chosen": [place.get(i) for i in range(len(found.rows))]}
    columns |= {name: values.tolist() for name, values in parts.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def unreliable(entropy: np.ndarray, alpha: float) -> np.ndarray:
    """`unreliable_pixels` of an array."""
    return acquisition.unreliable_pixels(torch.from_numpy(entropy), alpha).numpy()


def check_output(folder: Path, ids: Sequence[str]) -> None:
    """Refuse a folder that holds anything, such as masks that someone has corrected, and ids that name no files."""
    told = f"--output_dir {folder} is not an empty folder, and corrected masks may be in it: pass another"
    require(not folder.exists() or (folder.is_dir() and not any(folder.iterdir())), told)
    check_pictures(folder, ids, "--output_dir", overwrite=True)
    # The last of the checks, since it makes the folder.
    check_writable(folder, "--output_dir")


def write_all(args: argparse.Namespace, model, digest: str, source: Source, rows: list[int], facts: dict) -> None:
    """The folder, complete or not at all: what `write_to_correct` writes of the chosen rows, next.txt, next.json.

    Raises:
        InputError: it cannot be written.
    """
    options = {name: getattr(args, name) for name in ("max_whole_pixels", "window")}
    told = {name: getattr(args, name) for name in ("alpha", "masks", "precision")}
    origin = {"model": args.model, "digest": digest, "options": told | options}
    ignored = functools.partial(unreliable, alpha=args.alpha) if args.masks == "reliable" else None

    def write(folder: Path) -> None:
        write_to_correct(folder, model, source, rows, origin=origin, ignored=ignored, **options)
        write_text(folder / "next.txt", "".join(f"{source.ids[row]}\n" for row in rows))
        write_json(folder / "next.json", facts)

    with refusing(OSError, f"--output_dir {args.output_dir} cannot be written to", "; pass another folder"):
        write_atomically(args.output_dir.absolute(), write)


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Load, look at all, choose, write."""
    args = parse_arguments(argv)
    model = model_to_use(args)
    digest = model_digest(model)
    source = load(args, args.unlabelled, args.unlabelled_subset, None, "--unlabelled_subset")
    labelled = load_labelled(args, class_names(model)) if args.dataset else None
    rows, most = list(range(len(source.ids))), None
    if labelled:
        train, labelled_rows, counts, evaluation = labelled
        known = [(train, labelled_rows)]
        known += [(evaluation, [*range(len(evaluation.ids))])] if evaluation else []
        rows = without_labelled(source, known)
        require(rows, f"all {len(source.ids)} images of --unlabelled {args.unlabelled} are labelled: pass others")
    check_output(args.output_dir, [str(source.ids[row]) for row in rows])
    facts = {name: getattr(args, name) for name in ASKED} | {"left_out": len(source.ids) - len(rows)}
    if args.strategy == "random":
        rows, most = np.random.default_rng(args.seed).permutation(rows).tolist(), args.number
    model = folded(model)
    with computing(args.precision, next(model.parameters()).device):
        found = look_at_all(model, source, rows, args, most)
        covered = found.features[:0]
        if labelled and args.strategy == "score":
            covered = look_at_all(model, train, labelled_rows, args, what="labelled").features
        weights = acquisition.class_weights(counts if labelled else found.pixels)
        rarity = acquisition.image_rarity(found.pixels, weights)
        score = acquisition.acquisition_score(found.unreliable, found.divergence, rarity)
        chosen = choose(found, score, covered, args)
        if len(chosen) < args.number:
            told = "%d images are there to choose from, fewer than --number %d: all are taken"
            logger.warning(told, len(chosen), args.number)
        images = facts_of(source, found, score, rarity, chosen)
        facts |= {
            "skipped": found.faults,
            "class_weights": dict(zip(class_names(model), weights.tolist(), strict=True)),
        }
        write_all(args, model, digest, source, [found.rows[place] for place in chosen], facts | {"images": images})
    report(args, facts, [images[place] for place in chosen])


def report(args: argparse.Namespace, facts: dict, chosen: list[dict]) -> None:
    """The chosen images and their scores as a table, and as the last line of stdout."""
    columns = ("score", "unreliable_entropy", "divergence", "rarity")
    lines = [("", "image", *(name.replace("_", " ") for name in columns))]
    for image in chosen:
        lines.append((f"{image['chosen']}", str(image["id"]), *(f"{image[name]:.3f}" for name in columns)))
    told = f"{args.output_dir / 'next.txt'}: their ids; {args.output_dir / 'to_correct'}: images, and masks to correct"
    result = facts | {"output_dir": str(args.output_dir), "chosen": [image["id"] for image in chosen]}
    print_result(result, f"{aligned(lines)}\n\n{told}", as_json=args.json)
