"""Pictures to judge a model by: colour masks, overlays, entropy with the reliable/unreliable border, a grid of samples.

Shapes: ids are class ids (H,W) uint8 with 255 = ignore; images are RGB (H,W,3) uint8; palettes are C rows of r, g, b.
"""

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from u2pl_hf.constants import IGNORE

IGNORE_COLOUR = (224, 224, 224)
BORDER_COLOUR = (230, 20, 40)
INK, PAPER = (20, 20, 20), (255, 255, 255)
# Dark blue (certain) over green to yellow (uncertain): lightness grows with entropy, so it reads in grey as well.
ENTROPY_COLOURS = np.array([(24, 20, 72), (34, 86, 140), (38, 146, 132), (130, 200, 82), (250, 226, 60)], float)
COLUMNS = ("image", "ground truth", "prediction", "pseudo-label", "entropy")
LINE_SHARE = 600  # pixels of the longest side for each pixel of a contour
GAP, TITLE_HEIGHT, FONT_SIZE = 6, 22, 13
SHEET_COLUMNS = 6


def colour_table(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Colours (256,3) uint8 of all 8-bit ids; 255, and any id without a colour, is light grey."""
    table = np.full((256, 3), IGNORE_COLOUR, np.uint8)
    table[: min(len(palette), IGNORE)] = np.asarray(palette[:IGNORE], np.uint8)
    return table


def colour_mask(ids: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Colours (H,W,3) uint8 of class ids (H,W), as in `colour_table`."""
    return colour_table(palette)[ids]


def overlay(
    image: np.ndarray, ids: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.5, *, contour: bool = False
) -> np.ndarray:
    """The image (H,W,3) with class colours laid over it.

    Black, the background's colour in most palettes, would only darken: pixels of a black class, and ignored ones, show
    the bare image.

    Args:
        opacity: in [0, 1].
        contour: also draw white lines between the classes, thicker in large images.
    """
    table = colour_table(palette)
    is_bare = ~table.any(axis=1)
    is_bare[IGNORE] = True
    mixed = cv2.addWeighted(image, 1 - opacity, table[ids], opacity, 0)
    mixed = np.where(is_bare[ids][..., None], image, mixed)
    if contour:
        for step in range(1, max(1, round(max(ids.shape) / LINE_SHARE)) + 1):
            mixed[:, :-step][ids[:, :-step] != ids[:, step:]] = PAPER
            mixed[:-step][ids[:-step] != ids[step:]] = PAPER
    return mixed


def with_legend(
    picture: np.ndarray, ids: np.ndarray, palette: Sequence[Sequence[int]], class_names: Sequence[str]
) -> np.ndarray:
    """The picture (H,W,3) with the colours and names of the classes that occur in `ids` below it, at least as wide."""
    entries = [(class_names[c], palette[c]) for c in np.unique(ids) if c != IGNORE]
    legend = _legend(entries, picture.shape[1], font_size=max(FONT_SIZE, picture.shape[1] // 36))
    return _below(picture, legend)


def entropy_map(
    entropy: np.ndarray, gamma: float | None, valid: np.ndarray | None = None, *, num_labels: int, border_width: int = 1
) -> np.ndarray:
    """Entropy (H,W) in nats as colours (H,W,3) uint8, with the border of the unreliable region drawn in red.

    Args:
        entropy: float (H,W) in [0, log C].
        gamma: threshold in nats; entropy >= gamma is unreliable. None or NaN draws no border.
        valid: bool (H,W); other pixels, padding, are grey. None means all.
        num_labels: C, which sets the end of the scale.
        border_width: of the red line in pixels, measured into the unreliable region.
    """
    level = np.clip(np.nan_to_num(entropy) / max(math.log(num_labels), 1e-12), 0, 1) * (len(ENTROPY_COLOURS) - 1)
    channels = [np.interp(level, range(len(ENTROPY_COLOURS)), channel) for channel in ENTROPY_COLOURS.T]
    colours = np.stack(channels, axis=-1).round().astype(np.uint8)
    valid = np.ones(entropy.shape, bool) if valid is None else valid
    inside = ((entropy >= (math.nan if gamma is None else gamma)) & valid).astype(np.uint8)
    # What erosion takes away has a neighbour outside; the image's edge is no border.
    kernel = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    colours[inside > cv2.erode(inside, kernel, iterations=border_width)] = BORDER_COLOUR
    colours[~valid] = IGNORE_COLOUR
    return colours


def picture_grid(
    samples: Sequence[dict], palette: Sequence[Sequence[int]], class_names: Sequence[str], cell_width: int = 240
) -> Image.Image:
    """One row per sample: image, ground truth, prediction, pseudo-label, entropy; the colours' names below.

    Args:
        samples: dicts with `image` (H,W,3) uint8, `prediction` (H,W) ids, and, or None where unknown, `ground_truth`
            (H,W) ids, `pseudo_label` (H,W) ids with 255 on unreliable pixels, `entropy` (H,W) in nats, `gamma` and
            `valid` (H,W) bool.
        palette: C rows of [r, g, b].
        class_names: C names for the legend.
        cell_width: width of one picture in pixels; its height keeps the sample's proportions.
    """
    width = len(COLUMNS) * (cell_width + GAP) + GAP
    titles = Image.new("RGB", (width, TITLE_HEIGHT), PAPER)
    for column, title in enumerate(COLUMNS):
        place = GAP + column * (cell_width + GAP), 3
        ImageDraw.Draw(titles).text(place, title, fill=INK, font=ImageFont.load_default(FONT_SIZE))
    rows = [_row(sample, palette, len(class_names), cell_width) for sample in samples]
    entries = [*zip(class_names, palette, strict=False), ("ignored or unreliable", IGNORE_COLOUR)]
    note = "entropy: dark = certain, yellow = log C; red line = border of the unreliable pixels (entropy >= gamma)"
    return Image.fromarray(_below(np.asarray(titles), *rows, _legend(entries, width, [note])))


def contact_sheet(
    pictures: Iterable[tuple[str, np.ndarray]],
    palette: Sequence[Sequence[int]],
    class_names: Sequence[str],
    side: int = 240,
    columns: int = SHEET_COLUMNS,
) -> Image.Image:
    """Named pictures (H,W,3) in rows, each shrunk into a square of `side`; the colours' names below."""
    cells = []
    for name, picture in pictures:
        height, width = (max(1, round(length * side / max(picture.shape[:2]))) for length in picture.shape[:2])
        cell = Image.new("RGB", (side + GAP, side + TITLE_HEIGHT), PAPER)
        cell.paste(_fit(picture, (width, height)), (GAP, TITLE_HEIGHT))
        ImageDraw.Draw(cell).text((GAP, 3), name[-side // 8 :], fill=INK, font=ImageFont.load_default(FONT_SIZE))
        cells.append(np.asarray(cell))
    rows = [np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    return Image.fromarray(_below(*rows, _legend([*zip(class_names, palette, strict=True)], rows[0].shape[1])))


def _row(sample: dict, palette: Sequence[Sequence[int]], num_labels: int, cell_width: int) -> np.ndarray:
    image, entropy = sample["image"], sample.get("entropy")
    masks = [sample.get(key) for key in ("ground_truth", "prediction", "pseudo_label")]
    pictures = [image, *(None if ids is None else colour_mask(ids, palette) for ids in masks)]
    if entropy is not None:
        entropy = entropy_map(entropy, sample.get("gamma"), sample.get("valid"), num_labels=num_labels)
    size = (cell_width, max(1, round(cell_width * image.shape[0] / image.shape[1])))
    cells = [_fit(picture, size) for picture in (*pictures, entropy)]
    return np.hstack([np.pad(cell, ((0, GAP), (GAP, 0), (0, 0)), constant_values=PAPER[0]) for cell in cells])


def _fit(picture: np.ndarray | None, size: tuple[int, int]) -> Image.Image:
    if picture is None:
        blank = Image.new("RGB", size, IGNORE_COLOUR)
        ImageDraw.Draw(blank).text((8, 8), "none", fill=INK, font=ImageFont.load_default(FONT_SIZE))
        return blank
    # Enlarging must not invent colours between classes; shrinking may, else thin borders vanish.
    method = Image.Resampling.NEAREST if picture.shape[1] <= size[0] else Image.Resampling.BOX
    return Image.fromarray(picture).resize(size, method)


def _below(*parts: np.ndarray) -> np.ndarray:
    """Pictures below each other, the narrow ones with white to their right."""
    width = max(part.shape[1] for part in parts)
    wide = [((0, 0), (0, width - part.shape[1]), (0, 0)) for part in parts]
    return np.vstack([np.pad(part, pad, constant_values=PAPER[0]) for part, pad in zip(parts, wide, strict=True)])


def _legend(
    entries: Sequence[tuple[str, Sequence[int]]], width: int, notes: Sequence[str] = (), font_size: int = FONT_SIZE
) -> np.ndarray:
    """Names with their colours, as many per line as fit into `width`; then the notes, a line each."""
    font, swatch, gap = ImageFont.load_default(font_size), font_size + 1, GAP * font_size // FONT_SIZE
    line_height = swatch + gap + 2
    column = swatch + 3 * gap + math.ceil(max((font.getlength(name) for name, _ in entries), default=0))
    width = max(width, gap + column)
    per_line = (width - gap) // column
    lines = math.ceil(len(entries) / per_line)
    canvas = Image.new("RGB", (width, 6 + line_height * (lines + len(notes))), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (name, colour) in enumerate(entries):
        x, y = gap + number % per_line * column, 4 + number // per_line * line_height
        draw.rectangle((x, y, x + swatch, y + swatch), fill=tuple(colour), outline=INK)
        draw.text((x + swatch + gap - 2, y), name, fill=INK, font=font)
    for line, note in enumerate(notes, lines):
        draw.text((gap, 4 + line * line_height), note, fill=INK, font=font)
    return np.asarray(canvas)
