"""What a data set looks like before training: classes and sizes in numbers, and what to mend.

Counts are int (images,C), pixels of each class as in `Labelled`; sizes are int (images,2), height and width.
"""

from collections.abc import Sequence

import numpy as np

from u2pl_hf.errors import few

# Shares: of a class among the labelled pixels, too few to learn or nearly all; of ignored pixels in a mask.
RARE, DOMINANT, MOSTLY = 0.001, 0.99, 0.5
# How often longer the sides of unlabelled photographs may be than those of labelled ones, or shorter.
SIDE_RATIO = 2
# In how many pairs of a labelled and an unlabelled image the same one may be the brighter: of fewer labelled images
# than FEW, chance makes it more too often. Of CamVid's 4 labels at dusk it is 0.88, and robust had -3.1, -8.0 and 1.7
# points over SupOnly; of 4 by day 0.73, the labelled one brighter, and it had 10.8, 6.5 and 6.6.
OTHER_LIGHT, FEW = 0.85, 4
# Of DINOv2, in pixels: a crop is a multiple.
PATCHES = 14
NAMED = 8


def size_facts(sizes: np.ndarray) -> dict:
    """The sizes (height, width) of the smallest, the median and the largest image, by area; None without images."""
    order = np.argsort(sizes.prod(1), kind="stable")
    places = {"smallest": 0, "median": (len(order) - 1) // 2, "largest": -1}
    return {name: sizes[order[place]].tolist() if len(order) else None for name, place in places.items()}


def ignored_shares(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The share of each image's pixels that are of no class, float (images,)."""
    return 1 - counts.sum(1) / sizes.prod(1)


def class_facts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class, (C,): the images that show it, its pixels, and their share of the pixels that are not ignored."""
    pixels = counts.sum(0)
    return (counts > 0).sum(0), pixels, pixels / max(pixels.sum(), 1)


def class_warnings(names: Sequence[str], labelled: np.ndarray, validation: np.ndarray) -> list[str]:
    """What is wrong with the classes, given the counts of labelled and of validation images."""
    images, _, share = class_facts(labelled)
    scored = validation.any(0)
    rules = {
        "are in validation, but in no labelled image, and cannot be learned: label some": scored & (images == 0),
        "are in labelled images, but in no validation image, and get no IoU: move some there": ~scored & (images > 0),
        "are in no image: leave them out of the class list, or label some": ~scored & (images == 0),
        "are in a single labelled image: label more": images == 1,
        f"have less than {RARE:.1%} of the labelled pixels: label more": (images > 0) & (share < RARE),
        f"have more than {DOMINANT:.0%} of the labelled pixels: label images that show others": share > DOMINANT,
    }
    return _lines("classes", names, rules)


def mask_warnings(ids: Sequence[str], counts: np.ndarray, ignored: np.ndarray, subset: str) -> list[str]:
    """What is odd about masks, given their counts and `ignored_shares`."""
    classes = (counts > 0).sum(1)
    rules = {
        "are ignored (255) altogether and teach nothing: label them, or leave them out": classes == 0,
        f"are ignored (255) in more than {MOSTLY:.0%} of their pixels: see whether that is meant": ignored > MOSTLY,
        "hold a single class: see whether there is nothing else": classes == 1,
    }
    return _lines(f"{subset} masks", ids, rules)


def size_warnings(labelled: np.ndarray, unlabelled: np.ndarray, crop: int) -> list[str]:
    """What is odd about sizes, where crops are squares of side `crop` unless told otherwise."""
    warnings, is_small = [], 2 * labelled.max(1) < crop
    if is_small.any():
        told = f"{is_small.sum()} of {len(labelled)} labelled images have no side of half a crop ({crop} pixels)"
        fits = max(PATCHES * 3, int(np.median(labelled.max(1))) // PATCHES * PATCHES)
        warnings.append(f"{told}, so crops would be mostly padding: pass training --crop_size {fits}")
    if len(unlabelled):
        sides = [np.median(np.sqrt(sizes.prod(1))) for sizes in (labelled, unlabelled)]
        ratio = sides[1] / sides[0]
        if max(ratio, 1 / ratio) > SIDE_RATIO:
            told = f"labelled images have sides of {sides[0]:.0f} pixels, unlabelled ones of {sides[1]:.0f} (median)"
            warnings.append(f"{told}, so crops show things at other scales: shrink the larger ones")
    return warnings


def brighter_share(labelled: np.ndarray, unlabelled: np.ndarray) -> float:
    """The share of all pairs in which the unlabelled image is the brighter one; equal ones count half."""
    order = np.sort(labelled)
    below = np.searchsorted(order, unlabelled, "left") + np.searchsorted(order, unlabelled, "right")
    return float(below.mean() / 2 / len(order))


def light_warnings(labelled: np.ndarray, unlabelled: np.ndarray) -> list[str]:
    """Whether labelled and unlabelled images are of another light, given the brightness of each, 0 to 255."""
    if len(labelled) < FEW or not len(unlabelled):
        return []
    brighter = brighter_share(labelled, unlabelled)
    share, which = max((brighter, "brighter"), (1 - brighter, "darker"))
    if share <= OTHER_LIGHT:
        return []
    told = f"unlabelled images are {which} than labelled ones in {share:.0%} of the pairs"
    medians = f"median {np.median(unlabelled):.0f} and {np.median(labelled):.0f} of 255"
    return [f"{told} ({medians}), so pseudo-labels may be wrong there: label some of them, and watch IoU per class"]


def rows_with_every_class(counts: np.ndarray, most: int) -> list[int]:
    """Up to `most` rows, sorted, that show each class where so many can: the most of the rarest first; then others."""
    chosen: list[int] = []
    for class_id in np.argsort((counts > 0).sum(0), kind="stable"):
        if counts[:, class_id].any() and not counts[chosen, class_id].any() and len(chosen) < most:
            chosen.append(int(counts[:, class_id].argmax()))
    others = np.setdiff1d(np.arange(len(counts)), chosen)
    spread = np.linspace(0, len(others) - 1, min(most - len(chosen), len(others))).astype(int)
    return sorted([*chosen, *others[spread].tolist()])


def _lines(kind: str, names: Sequence[str], rules: dict[str, np.ndarray]) -> list[str]:
    """A line for each rule that holds for some, bool (names,); it names a few."""
    lines = []
    for rule, which in rules.items():
        found = [names[place] for place in np.flatnonzero(which)]
        lines += [f"{len(found)} of {len(names)} {kind} {rule} ({few(found, NAMED)})"] if found else []
    return lines
