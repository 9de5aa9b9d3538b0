"""How sure a model is beside how often it is right: temperature scaling, its measure, and the reliability diagram.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv 1706.04599). Shapes: n pixels, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from u2pl_hf.constants import IGNORE
from u2pl_hf.errors import require
from u2pl_hf.evaluation.curves import COLOURS, DPI, HEIGHT, WIDTH, plain
from u2pl_hf.evaluation.inference import evaluating, labelled_samples
from u2pl_hf.evaluation.segmentation import PIECE, segment_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
# Outside of these a temperature says that there was nothing to measure: no error at all, or no relation to the labels.
LOWEST, HIGHEST = 0.05, 20.0
# Halvings of the interval between their logarithms: T to 1e-5 of itself. It is stored with four digits.
HALVINGS, DIGITS = 20, 4
SEED = 0


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """The temperature T that minimises the mean negative log-likelihood of softmax(logits / T).

    It is convex in 1 / T, so the sign of its derivative, sum of w (E_p[z] - z_label), tells on which side T lies.

    Args:
        logits: (n,C), computed with in float64.
        labels: (n,) class ids.
        weights: (n,), of each pixel; by default all count alike.

    Returns:
        T, with four digits behind the point.

    Raises:
        InputError: none between LOWEST and HIGHEST fits.
    """
    logits = logits.double()
    weights = torch.ones(len(logits), dtype=torch.float64) if weights is None else weights.double()
    of_label = logits.gather(1, labels[:, None]).squeeze(1)

    def is_above(temperature: float) -> bool:
        """Whether T is larger."""
        expected = (logits / temperature).softmax(dim=1).mul_(logits).sum(dim=1)
        return bool(weights @ (expected - of_label) > 0)

    found = f"no temperature from {LOWEST} to {HIGHEST:g} fits"
    require(is_above(LOWEST), f"{found}: hardly a pixel that it is fitted on is wrong; pass --dataset with more images")
    told = f"{found}: the model's scores say nothing about these labels; pass the data set that it was trained for"
    require(not is_above(HIGHEST), told)
    low, high = np.log([LOWEST, HIGHEST])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_above(np.exp(middle)) else (low, middle)
    return round(float(np.exp(low)), DIGITS)


class Reliability:
    """Pixels by the probability of their predicted class, in BINS bins of equal width: how many, how sure, how right.

    Attributes:
        pixels: of each bin, (BINS,) float64, as the next two.
        confidence: the sum of their probabilities.
        hits: how many are right.
        loss: the sum of all pixels' negative log-likelihood.
    """

    def __init__(self):
        self.pixels, self.confidence, self.hits = torch.zeros(3, BINS, dtype=torch.float64)
        self.loss = 0.0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add pixels: logits (n,C) and class ids (n,), on any device."""
        log_probability = logits.log_softmax(dim=1)
        best, predicted = log_probability.max(dim=1)
        confidence = best.cpu().double().exp()
        # Bin m of M holds what lies in ((m - 1) / M, m / M], as in the paper.
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        self.pixels += bins.bincount(minlength=BINS)
        self.confidence += bins.bincount(confidence, BINS)
        self.hits += bins.bincount((predicted == labels).cpu().double(), BINS)
        self.loss -= log_probability.gather(1, labels[:, None]).cpu().double().sum().item()

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood in nats."""
        return self.loss / self.pixels.sum().item()

    @property
    def ece(self) -> float:
        """Expected calibration error (equation 3): mean over pixels of their bin's |accuracy - confidence|."""
        return ((self.hits - self.confidence).abs().sum() / self.pixels.sum()).item()


def halves(number: int) -> tuple[list[int], list[int]]:
    """Rows to fit on and rows to measure on, drawn with a fixed seed; an odd one is measured on."""
    rows = np.random.default_rng(SEED).permutation(number)
    return sorted(rows[: number // 2].tolist()), sorted(rows[number // 2 :].tolist())


def sample_logits(model, source, rows: Sequence[int], pixels: int, **segment_options) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of some labelled pixels, as many of each image, for `fit_temperature`.

    Args:
        model: U2PLForSemanticSegmentation on its device; train/eval modes are restored afterwards.
        source: has ids, read_image and read_label, as for `inference.count_pixels`.
        rows: images of the source.
        pixels: at most so many are held: C x pixels floats.
        **segment_options: of `segment`, of a single view.

    Returns:
        Logits (n,C) float32, labels (n,) int64 and weights (n,) float64, on the CPU. A weight is the number of the
        image's labelled pixels that one of the sample stands for.
    """
    each, found = max(1, pixels // len(rows)), []
    for row, (_, image, label) in zip(rows, _shown(source, rows, model, "fit"), strict=True):
        places = np.flatnonzero(label != IGNORE)
        chosen = np.random.default_rng((SEED, row)).choice(places, min(each, len(places)), replace=False)
        thinned = np.full_like(label, IGNORE)
        thinned.flat[chosen] = label.flat[chosen]
        for logits, labels in labelled_logits(model, image, thinned, **segment_options):
            weights = torch.full((len(labels),), len(places) / max(1, len(chosen)), dtype=torch.float64)
            found.append((logits.float().cpu(), labels.cpu(), weights))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def measure(model, source, rows: Sequence[int], temperatures: Sequence[float], **segment_options) -> list[Reliability]:
    """How reliable all labelled pixels of images are at each of some temperatures; arguments as `sample_logits`."""
    found = [Reliability() for _ in temperatures]
    for _, image, label in _shown(source, rows, model, "measure"):
        for logits, labels in labelled_logits(model, image, label, **segment_options):
            for temperature, reliability in zip(temperatures, found, strict=True):
                reliability.update(logits / temperature, labels)
    return found


def labelled_logits(model, image: np.ndarray, label: np.ndarray, **segment_options) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (n,C) and class ids (n,) int64 of the pixels that are not 255, on the device, in pieces of rows.

    Args:
        image: RGB (H,W,3) uint8.
        label: (H,W) uint8.
    """
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(model.device)
    label = torch.from_numpy(label).to(model.device).long()
    with evaluating(model):
        for _, first, scores in segment_rows(model, pixels, **segment_options):
            for top in range(0, scores.shape[1], PIECE):
                piece = scores[:, top : top + PIECE]
                labels = label[first + top : first + top + piece.shape[1]]
                yield piece.movedim(0, -1)[labels != IGNORE], labels[labels != IGNORE]


def draw_reliability(found: Mapping[float, Reliability]) -> "Figure":
    """How often the pixels of each bin are right, beside how many there are, for each temperature."""
    # Here, as in curves.py.
    from matplotlib.figure import Figure

    figure = Figure((2 * WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")
    accuracy, share = figure.subplots(1, 2)
    accuracy.plot((0, 1), (0, 1), color="#888888", linestyle="--", label="as sure as right")
    for (temperature, of), colour in zip(found.items(), COLOURS, strict=False):
        there, name = of.pixels > 0, f"temperature {temperature:g}"
        sure, right = (sums[there] / of.pixels[there] for sums in (of.confidence, of.hits))
        label = f"{name}, ECE {100 * of.ece:.2f} %"
        accuracy.plot(sure.numpy(), right.numpy(), color=colour, marker="o", markersize=4, label=label)
        edges = np.linspace(0, 1, BINS + 1)
        share.stairs((100 * of.pixels / of.pixels.sum()).numpy(), edges, color=colour, label=name)
    for axes, title in ((accuracy, "share of right pixels"), (share, "share of all pixels, per cent")):
        plain(axes, title)
        axes.set_xlim(0, 1)
        axes.set_xlabel("probability of the predicted class", loc="right")
        axes.legend(loc="upper left", frameon=False, fontsize="small")
    return figure


def _shown(source, rows: Sequence[int], model, what: str) -> Iterable[tuple[str, np.ndarray, np.ndarray]]:
    """(id, image, label) of rows, with a progress bar."""
    samples = labelled_samples(source, rows, model.config.num_labels)
    return tqdm(samples, total=len(rows), desc=what, unit="image")
