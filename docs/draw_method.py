"""Draw the pictures of docs/method.md from a checkpoint of the demo.

    python training_scripts/train_u2pl.py training_scripts/recipes/demo_u2pl.yaml \\
        --output_dir runs/method --keep_checkpoints 5
    python docs/draw_method.py runs/method --step 1000 --output_dir docs/method

Everything shown is what the step computes at that point of the run: the checkpoint's networks see the very images that
training would see next, and the functions are those of u2pl_hf/method; only CutMix, which training draws half of the
time, is always there. The last line of stdout is one JSON object with the numbers that docs/method.md speaks of.
"""

import argparse
import io
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.evaluation.curves import draw_panels, read_metrics
from u2pl_hf.evaluation.pictures import FONT_SIZE, INK, PAPER, colour_mask, entropy_map, overlay
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.mixing import cutmix
from u2pl_hf.method.schedules import unreliable_share
from u2pl_hf.method.teacher import batch_statistics
from u2pl_hf.pixels import normalize
from u2pl_hf.training.build import build_run
from u2pl_hf.training.recipe.command import recipe_arguments
from u2pl_hf.training.run.checkpoint import load_checkpoint

# Background light, objects in colours that are told apart without red and green (Okabe and Ito).
PALETTE = [(236, 240, 245), (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0)]
GREY = (105, 105, 105)
ANCHOR, NEGATIVE = (0, 114, 178), (213, 94, 0)
CELL, GAP, TITLE = 150, 8, 22


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the demo, method u2pl, with its checkpoints")
    parser.add_argument("--step", type=int, default=1000, help="of the checkpoint to draw (default: 1000)")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "method", help="where the PNGs go")
    return parser.parse_args()


class Moment:
    """What one step computes from a checkpoint; tensors as in `U2PL.forward`, names as in the paper."""

    def __init__(self, run: Path, step: int):
        checkpoint = run / "checkpoints" / f"step-{step:06d}"
        if not checkpoint.is_dir():
            raise InputError(
                f"{checkpoint} is not there: train with a larger --keep_checkpoints, or pass another --step"
            )
        recipe = {"num_workers": 0, "resume": str(checkpoint), "trackers": ["none"]}
        built = build_run(recipe_arguments(run / "recipe.yaml", recipe))
        self.args, self.names, self.settings = built.args, built.data.class_names, built.args.settings
        load_checkpoint(checkpoint, built.student, built.method, built.optimizer)
        built.batches.start()
        labelled, unlabelled = next(built.batches.loaded_l), next(built.batches.loaded_u)
        self.x_l, self.x_u = (batch["pixel_values"] for batch in (labelled, unlabelled))
        self.y_l = labelled["labels"].long()
        self.alpha = unreliable_share(step / self.args.max_steps, self.settings.unreliable_share)
        method = built.method
        with torch.no_grad():
            self._label(method.teacher, unlabelled["valid"])
            self._split(method.teacher, labelled["valid"])
            self._select()

    def _label(self, teacher, valid_u) -> None:
        logits = teacher(normalize(self.x_u, valid_u)).logits
        y_u = pl.resize_logits(logits, self.x_u.shape[-2:]).argmax(dim=1)
        self.y_u = y_u.masked_fill(~valid_u, pl.IGNORE)
        torch.manual_seed(0)
        mixed, self.y_mixed = cutmix(self.x_u.float(), self.y_u, len(self.names))
        self.x_mixed = mixed.to(torch.uint8)
        self.valid_mixed = self.y_mixed != pl.IGNORE

    def _split(self, teacher, valid_l) -> None:
        images = torch.cat([normalize(self.x_l, valid_l), normalize(self.x_mixed, self.valid_mixed)])
        with batch_statistics(teacher):
            self.logits = teacher(images).logits
        self.entropy = pl.pixel_entropy(pl.resize_logits(self.logits[len(self.x_l) :], self.x_u.shape[-2:]))
        self.gamma = pl.masked_quantile(self.entropy, 1.0 - self.alpha, self.valid_mixed)
        self.reliable, self.unreliable = pl.split_at(self.entropy, self.valid_mixed, self.gamma)

    def _select(self) -> None:
        size, labelled = self.logits.shape[-2:], len(self.x_l)
        self.prob = self.logits.softmax(dim=1)
        confident = self.y_mixed.masked_fill(~self.reliable, pl.IGNORE)
        y_l, confident, unreliable = (pl.nearest_on_corners(m, size) for m in (self.y_l, confident, self.unreliable))
        self.anchors = pl.anchor_mask(torch.cat([y_l, confident]), self.prob, self.settings.anchor_threshold)
        ranks = self.settings.ranks(len(self.names))
        self.negatives = pl.negative_mask(y_l, self.prob[:labelled], unreliable, self.prob[labelled:], *ranks)
        self.unreliable_small = unreliable


def picture(pixels: torch.Tensor) -> np.ndarray:
    """uint8 (3,H,W) -> (H,W,3)."""
    return pixels.permute(1, 2, 0).numpy()


def classes(ids: torch.Tensor) -> np.ndarray:
    """Ids (H,W) in colours; ignored pixels are dark grey."""
    colours = colour_mask(ids.numpy().astype(np.uint8), PALETTE)
    colours[ids.numpy() == pl.IGNORE] = GREY
    return colours


def text(draw: ImageDraw.ImageDraw, place: tuple[int, int], content: str, **options) -> None:
    """Plain text in the pictures' font."""
    draw.text(place, content, fill=INK, font=ImageFont.load_default(FONT_SIZE), **options)


def grid(titles: list[str], rows: list[list[np.ndarray]], footer: int = 0) -> Image.Image:
    """Pictures in columns below their titles."""
    width, height = len(titles) * (CELL + GAP) + GAP, TITLE + len(rows) * (CELL + GAP) + footer
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        text(draw, (GAP + column * (CELL + GAP), 4), title)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            # Whole multiples keep the borders between classes where they are.
            place = GAP + column * (CELL + GAP), TITLE + row * (CELL + GAP)
            canvas.paste(Image.fromarray(cell).resize((CELL, CELL), Image.Resampling.NEAREST), place)
    return canvas


def legend(canvas: Image.Image, entries: list[tuple[str, tuple]], top: int) -> None:
    """Swatches with names, in one line."""
    draw, x = ImageDraw.Draw(canvas), GAP
    for name, colour in entries:
        draw.rectangle((x, top, x + 13, top + 13), fill=colour, outline=INK)
        text(draw, (x + 18, top - 1), name)
        x += 18 + int(ImageFont.load_default(FONT_SIZE).getlength(name)) + 16


def draw_split(moment: Moment, images: list[int]) -> Image.Image:
    """From an unlabelled image to the pixels that serve L_u and those that serve the queues."""
    titles = ["unlabelled image", "teacher's label", "after CutMix", "entropy, gamma", "reliable: to L_u", "unreliable"]
    rows = []
    for i in images:
        gamma, valid = float(moment.gamma), moment.valid_mixed[i].numpy()
        entropy = entropy_map(moment.entropy[i].numpy(), gamma, valid, num_labels=len(moment.names))
        sure = moment.y_mixed[i].masked_fill(~moment.reliable[i], pl.IGNORE)
        unsure = np.where(moment.unreliable[i].numpy()[..., None], INK, PALETTE[0]).astype(np.uint8)
        mixed = picture(moment.x_mixed[i])
        rows.append([picture(moment.x_u[i]), classes(moment.y_u[i]), mixed, entropy, classes(sure), unsure])
    canvas = grid(titles, rows, footer=GAP + 16)
    entries = [*zip(moment.names, PALETTE, strict=False), ("no label", GREY)]
    legend(canvas, entries, canvas.height - 16 - GAP // 2)
    return canvas


def instructive(moment: Moment, number: int) -> list[int]:
    """The mixed images with many different reliable labels and little padding."""
    shown = torch.tensor([len(y[sure].unique()) for y, sure in zip(moment.y_mixed, moment.reliable, strict=True)])
    return (shown * moment.valid_mixed.float().mean((1, 2)) ** 4).topk(number).indices.tolist()


def most_uncertain(moment: Moment) -> tuple[int, int, int]:
    """Image, row and column, at feature size, of the unreliable pixel most torn between two kinds of objects."""
    top = moment.prob[len(moment.x_l) :].topk(2, dim=1)
    of_objects = (top.indices > 0).all(dim=1)
    torn = (top.values[:, 1] / top.values[:, 0]).masked_fill(~(moment.unreliable_small & of_objects), -1.0)
    return tuple(int(x) for x in np.unravel_index(int(torn.argmax()), torn.shape))


def draw_ranks(moment: Moment, place: tuple[int, int, int]) -> Image.Image:
    """The sorted class probabilities of one unreliable pixel, and the ranks whose queues it goes into."""
    i, row, column = place
    side, low = 300, moment.settings.ranks(len(moment.names))[0]
    canvas = Image.new("RGB", (980, side + 36), PAPER)
    draw = ImageDraw.Draw(canvas)
    shown = Image.fromarray(picture(moment.x_mixed[i])).resize((side, side), Image.Resampling.NEAREST)
    canvas.paste(shown, (GAP, 28))
    # Corners of both grids lie on one another.
    h, w = moment.prob.shape[-2:]
    x, y = GAP + column / (w - 1) * (side - 1), 28 + row / (h - 1) * (side - 1)
    for radius, colour in ((9, PAPER), (7, INK)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=3)
    text(draw, (GAP, 6), "an unreliable pixel")
    text(draw, (360, 6), "its classes by probability p, on a logarithmic scale")
    prob, order = moment.prob[len(moment.x_l) + i, :, row, column].sort(descending=True)
    decades = 5
    for rank, (p, c) in enumerate(zip(prob.tolist(), order.tolist(), strict=True)):
        top = 34 + rank * 38 + (22 if rank >= low else 0)
        long = max(2, 300 * (1 + np.log10(max(p, 1e-9)) / decades))
        draw.rectangle((500, top, 500 + long, top + 24), fill=NEGATIVE if rank >= low else GREY)
        text(draw, (488, top + 12), f"{moment.names[c]}   {rank}", anchor="rm")
        text(draw, (508 + long, top + 12), f"{p:.2g}" if p < 0.1 else f"{p:.2f}", anchor="lm")
    border = 34 + low * 38 + 4
    draw.line((360, border, 960, border), fill=INK, width=2)
    text(draw, (960, border - 5), f"r_l = {low}", anchor="rd")
    text(draw, (960, 34 + 12), "may be its class:", anchor="rm")
    text(draw, (960, 34 + 30), "of no use as a negative", anchor="rm")
    text(draw, (960, border + 24), "rank in [r_l, r_h):", anchor="rm")
    text(draw, (960, border + 42), "negative of these classes", anchor="rm")
    return canvas


def draw_pixels(moment: Moment, class_id: int, labelled: int, unlabelled: int) -> Image.Image:
    """Anchors and negatives of one class on a labelled and an unlabelled image, over the image in grey."""
    cells = []
    for index, pixels in ((labelled, moment.x_l[labelled]), (len(moment.x_l) + unlabelled, moment.x_mixed[unlabelled])):
        size = pixels.shape[-2:]
        marks = torch.full(size, pl.IGNORE)
        for value, mask in enumerate((moment.anchors, moment.negatives)):
            marks[pl.nearest_on_corners(mask[index, class_id][None], size)[0]] = value
        grey = np.asarray(Image.fromarray(picture(pixels)).convert("L").convert("RGB"))
        pale = (255 - (255 - grey.astype(float)) * 0.45).astype(np.uint8)
        cells += [picture(pixels), overlay(pale, marks.numpy().astype(np.uint8), [ANCHOR, NEGATIVE], 0.75)]
    titles = ["labelled image", "its pixels", "unlabelled, mixed", "its pixels"]
    canvas = grid(titles, [cells], footer=GAP + 16)
    name = moment.names[class_id]
    entries = [(f"anchor of {name}", ANCHOR), (f"negative of {name}", NEGATIVE)]
    legend(canvas, entries, canvas.height - 16 - GAP // 2)
    return canvas


def draw_queues(run: Path, names: list[str], warmup: int) -> tuple[Image.Image, dict[str, int]]:
    """Share of each class's queue that is filled, over the steps; and the first logged step at which it is full."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "queue_fill_per_class" in line]
    fill = {name: [(line["step"], 100 * line["queue_fill_per_class"][c]) for line in lines]
            for c, name in enumerate(names)}  # fmt: skip
    full = {name: next((step for step, share in points if share >= 100), None) for name, points in fill.items()}
    # Class 0 has the longest queue; of the others the first one to be full shows them all.
    first = min(names[1:], key=lambda name: full[name] or math.inf)
    curves = {name: [(warmup, 0), *fill[name]] for name in (first, names[0])}
    figure, drawn = draw_panels({"queues, per cent filled": curves}, lines[-1]["step"]), io.BytesIO()
    figure.savefig(drawn, format="png")
    return Image.open(drawn).convert("RGB"), full


def save(canvas: Image.Image, path: Path) -> int:
    """Write a PNG; returns its size in bytes."""
    canvas.save(path, "PNG", optimize=True)
    return path.stat().st_size


@exits_on_input_error
def main() -> None:
    """Compute the moment, draw, print the numbers."""
    options = parse_arguments()
    logging.disable(logging.INFO)
    moment = Moment(options.run, options.step)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    place = most_uncertain(moment)
    labelled, unlabelled = moment.negatives.split([len(moment.x_l), len(moment.x_u)])
    # The class with most of both kinds of negatives, and the images that show most of its anchors and negatives.
    class_id = int((labelled.sum((0, 2, 3)).float() * unlabelled.sum((0, 2, 3))).argmax())
    both = (moment.anchors[:, class_id].sum((1, 2)) + 1) * (moment.negatives[:, class_id].sum((1, 2)) + 1)
    image_l, image_u = (int(part.argmax()) for part in both.split([len(moment.x_l), len(moment.x_u)]))
    queues, full = draw_queues(options.run, moment.names, moment.settings.warmup_steps)
    rows = instructive(moment, 2)
    pictures = {
        "split.png": draw_split(moment, rows),
        "ranks.png": draw_ranks(moment, place),
        "pixels.png": draw_pixels(moment, class_id, image_l, image_u),
        "queues.png": queues,
    }
    sizes = {name: save(canvas, options.output_dir / name) for name, canvas in pictures.items()}
    numbers = {
        "step": options.step,
        "alpha": round(moment.alpha, 4),
        "gamma": round(float(moment.gamma), 4),
        "reliable_share": round(float(moment.reliable.float().mean()), 4),
        "unreliable_share": round(float(moment.unreliable.float().mean()), 4),
        "anchors": {n: int(k) for n, k in zip(moment.names, moment.anchors.sum((0, 2, 3)), strict=True)},
        "negatives_labelled": {n: int(k) for n, k in zip(moment.names, labelled.sum((0, 2, 3)), strict=True)},
        "negatives_unlabelled": {n: int(k) for n, k in zip(moment.names, unlabelled.sum((0, 2, 3)), strict=True)},
        "class_of_pixels_png": moment.names[class_id],
        "queue_full_at": full,
        "bytes": sizes,
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
