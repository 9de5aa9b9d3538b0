"""The curves of a run as one picture, drawn with Pillow alone: mean IoU on the left, losses on the right."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict

from PIL import Image, ImageDraw, ImageFont

from u2pl_hf.errors import InputError
from u2pl_hf.files import parse_json, read_text

logger = logging.getLogger(__name__)

WIDTH, HEIGHT = 560, 300
# Left, top, right and bottom of the axes inside a panel, in pixels.
MARGIN = (52, 34, 26, 40)
FONT_SIZE = 13
# Drawn larger and shrunk, since Pillow draws lines with hard edges.
SCALE = 3
INK, GRID, PAPER = (40, 40, 40), (226, 226, 226), (255, 255, 255)
# Told apart by people who see no difference between red and green (Okabe and Ito).
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
# A running mean over this share of the logged steps is what a loss's line shows.
SMOOTHING = 1 / 40


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend and its points (step, value)."""

    name: str
    points: list[tuple[float, float]]
    with_dots: bool = False


class Metrics(TypedDict, total=False):
    """A line of metrics.jsonl: a step's losses and what else was measured, or an evaluation."""

    step: Required[int]
    eval_mean_iou: float | None


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last one that was not finished is left out.

    Raises:
        InputError: another line is damaged.
    """
    return [content for _, content in metrics_lines(path)]


def metrics_lines(path: Path) -> list[tuple[str, dict]]:
    """As `read_metrics`, each with its text."""
    # Behind the last line break is nothing, or a line that was not finished.
    texts, lines = read_text(path).split("\n")[:-1], []
    for number, text in enumerate(texts, 1):
        try:
            lines.append((text, parse_json(text, Metrics, strict=False)))
        except ValueError as error:
            if number < len(texts):
                raise InputError(f"{path}, line {number} {error}; restore the file, or remove the line") from error
            logger.warning("%s: its last line is damaged and is left out", path)
    return lines


def draw_curves(metrics: list[dict]) -> Image.Image:
    """Two panels: mean IoU in per cent at each evaluation, and the losses as running means.

    Args:
        metrics: lines of metrics.jsonl, each with `step`, and `eval_mean_iou` (a fraction or None) or losses.
    """
    scores = [(line["step"], 100 * line["eval_mean_iou"]) for line in metrics if _is_number(line.get("eval_mean_iou"))]
    last_step = max([line["step"] for line in metrics if line["step"] > 0], default=1)
    panels = [
        draw_panel("mean IoU of the evaluation set, per cent", [Line("mean IoU", scores, True)], last_step),
        draw_panel("losses", _losses(metrics), last_step),
    ]
    picture = Image.new("RGB", (WIDTH * len(panels), HEIGHT), PAPER)
    for number, panel in enumerate(panels):
        picture.paste(panel, (number * WIDTH, 0))
    return picture


def save_curves(metrics_path: Path, path: Path) -> None:
    """Draw a metrics.jsonl into a PNG of few colours."""
    picture = draw_curves(read_metrics(metrics_path))
    picture.quantize(64, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


def _losses(metrics: list[dict]) -> list[Line]:
    logged = [line for line in metrics if "eval_mean_iou" not in line]
    names = dict.fromkeys(name for line in logged for name in line if name.startswith("loss_"))
    lines = []
    for name in names:
        points = [(line["step"], line[name]) for line in logged if _is_number(line.get(name))]
        lines.append(Line(name.removeprefix("loss_"), _running_mean(points)))
    return lines


def _is_number(value) -> bool:
    # What is larger was no loss, and no axis could show it.
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e15


def _running_mean(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    window = max(1, round(len(points) * SMOOTHING))
    means = []
    for end in range(1, len(points) + 1):
        part = points[max(0, end - window) : end]
        means.append((points[end - 1][0], sum(value for _, value in part) / len(part)))
    return means


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, about `about` of them, whose ends enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def draw_panel(title: str, lines: list[Line], last_step: int) -> Image.Image:
    """Axes with a title, a legend and at most six lines over the steps 0 to `last_step`."""
    values = [value for line in lines for _, value in line.points]
    x_ticks = nice_ticks(0, last_step)
    # A loss starts from 0; a mean IoU shows more if it does not.
    from_zero = not all(line.with_dots for line in lines)
    y_ticks = nice_ticks(0 if from_zero else min(values, default=0), max(values, default=1))
    left, top, right, bottom = MARGIN[0], MARGIN[1], WIDTH - MARGIN[2], HEIGHT - MARGIN[3]
    canvas = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        share_x = x / max(x_ticks[-1], 1e-12)
        share_y = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (left + share_x * (right - left)) * SCALE, (bottom - share_y * (bottom - top)) * SCALE

    _axes(draw, title, x_ticks, y_ticks, place)
    for line, colour in zip(lines, COLOURS, strict=False):
        points = [place(*point) for point in line.points]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2 * SCALE, joint="curve")
        if line.with_dots or len(points) == 1:
            for x, y in points:
                draw.ellipse((x - 4 * SCALE, y - 4 * SCALE, x + 4 * SCALE, y + 4 * SCALE), fill=colour)
    if len(lines) > 1:
        _legend(draw, lines)
    return canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _axes(draw: ImageDraw.ImageDraw, title: str, x_ticks: list[float], y_ticks: list[float], place) -> None:
    font = ImageFont.load_default(FONT_SIZE * SCALE)
    draw.text((MARGIN[0] * SCALE, 10 * SCALE), title, fill=INK, font=font)
    for y in y_ticks:
        start, end = place(0, y), place(x_ticks[-1], y)
        draw.line((start, end), fill=GRID, width=SCALE)
        draw.text((start[0] - 6 * SCALE, start[1]), f"{y:g}", fill=INK, font=font, anchor="rm")
    for x in x_ticks:
        spot = place(x, y_ticks[0])
        draw.line((spot, (spot[0], spot[1] + 4 * SCALE)), fill=INK, width=SCALE)
        draw.text((spot[0], spot[1] + 7 * SCALE), f"{x:,.10g}", fill=INK, font=font, anchor="mt")
    draw.line((place(0, y_ticks[0]), place(x_ticks[-1], y_ticks[0])), fill=INK, width=SCALE)
    draw.text(((WIDTH - MARGIN[2]) * SCALE, (HEIGHT - 4) * SCALE), "step", fill=INK, font=font, anchor="rb")


def _legend(draw: ImageDraw.ImageDraw, lines: list[Line]) -> None:
    """Beside the title, so that it hides no curve."""
    font, y = ImageFont.load_default(FONT_SIZE * SCALE), (10 + FONT_SIZE * 0.5) * SCALE
    x = (WIDTH - MARGIN[2]) * SCALE
    for line, colour in reversed(list(zip(lines, COLOURS, strict=False))):
        x -= font.getlength(line.name)
        draw.text((x, 10 * SCALE), line.name, fill=INK, font=font)
        draw.line((x - 22 * SCALE, y, x - 5 * SCALE, y), fill=colour, width=3 * SCALE)
        x -= 36 * SCALE
