"""What people look at after a label check: a picture of each suspect mask, and one page of HTML with all of them."""

from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from PIL import Image

from u2pl_hf.evaluation.label_check import CLASS, EXTENT, MISSING, SHIFT, Finding
from u2pl_hf.evaluation.pictures import BORDER_COLOUR, GAP, overlay

PANELS = ("image", "mask", "prediction", "suspect regions")
PANEL_WIDTH = 480
MEANING = {
    CLASS: "a labelled object may be of another class",
    MISSING: "an object may not have been labelled",
    EXTENT: "an object may be drawn too small or too large",
    SHIFT: "the whole mask may be shifted",
}
SHOWN_REGIONS = 5
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Label check</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 72rem; margin: 1rem auto; padding: 0 1rem; }}
h2 {{ font-size: 1.05rem; margin: 1.6rem 0 .2rem; overflow-wrap: anywhere; }}
img {{ max-width: 100%; }} ul {{ margin: .2rem 0 .4rem; }}
</style></head><body><h1>Label check</h1><p>{head}</p><p>Panels: {panels}.</p>
{images}
</body></html>
"""


def draw_check(
    image: np.ndarray, labels: np.ndarray, prediction: np.ndarray, suspect: np.ndarray, finding: Finding, palette
) -> Image.Image:
    """Image, mask, prediction, and the image with the suspect regions outlined, side by side.

    Args:
        image: RGB (H,W,3) uint8; labels, prediction: ids (H,W) uint8.
        suspect: the confident class of suspect pixels, 255 elsewhere, (H,W) uint8; outlined are those in the regions
            of the finding.
        palette: C rows of [r, g, b].
    """
    height, width = labels.shape
    size = min(PANEL_WIDTH, 2 * width), max(1, round(min(PANEL_WIDTH, 2 * width) * height / width))
    within = np.zeros(labels.shape, np.uint8)
    for _, region in finding.regions:
        x, y, wide, tall = region.box
        place = slice(y, y + tall), slice(x, x + wide)
        within[place] |= (suspect[place] == region.predicted) & (labels[place] == region.labelled)
    masks = [overlay(image, ids, palette, contour=True) for ids in (labels, prediction)]
    panels = [cv2.resize(panel, size, interpolation=cv2.INTER_AREA) for panel in (image, *masks, image)]
    within = cv2.resize(within, size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(within, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    panels[-1] = cv2.drawContours(panels[-1], contours, -1, BORDER_COLOUR, 2)
    gap = np.full((size[1], GAP, 3), 255, np.uint8)
    return Image.fromarray(np.hstack([part for panel in panels for part in (panel, gap)][:-1]))


def region_words(region: dict) -> str:
    """A region of check.json in words."""
    x, y, width, height = region["box"]
    where = f"{region['pixels']:,} pixels in {width}x{height} at {x},{y}"
    return f"{region['kind']}: {region['labelled']} is predicted as {region['predicted']}, {where}"


def finding_words(facts: dict) -> str:
    """What is told first of an image of check.json."""
    if shift := facts["shift"]:
        moved = f"fits better moved by {shift['right']:+d} to the right and {shift['down']:+d} down"
        return f"shift: {moved} ({shift['before']:.0%} to {shift['agreement']:.0%})"
    return region_words(facts["regions"][0])


def check_page(head: str, images: Sequence[dict]) -> str:
    """The page.

    Args:
        head: what was checked, one line.
        images: of check.json, those with a picture.
    """
    parts = []
    for rank, facts in enumerate(images, 1):
        lines = [finding_words(facts)] if facts["shift"] else []
        lines += map(region_words, facts["regions"][:SHOWN_REGIONS])
        told = "".join(f"<li>{escape(line)}</li>" for line in lines)
        title = f"<h2>{rank}. {escape(facts['id'])}: {MEANING[facts['kind']]}</h2>"
        parts.append(f'{title}<ul>{told}</ul><img loading="lazy" alt="" src="{escape(facts["picture"])}">')
    return PAGE.format(head=escape(head), panels=", ".join(PANELS), images="\n".join(parts))
