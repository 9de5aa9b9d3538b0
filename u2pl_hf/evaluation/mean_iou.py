"""Mean intersection over union from a confusion matrix that stays on the device.

Two ways to use it. In this package, `MeanIoU(num_labels)` with `update` and `compute`. With Hugging Face evaluate,
`evaluate.load("u2pl_hf/evaluation/mean_iou.py")`, which needs no network. So this file imports nothing of the package
(evaluate copies it elsewhere), and names one module per import line (evaluate's parser reads no more). Importing
evaluate takes seconds, so its class stands here only for those who have imported evaluate already, as `load` needs.
"""

import inspect
import sys

import torch
from torch import Tensor

IGNORE_INDEX = 255
BYTE = 256  # how many values an 8-bit mask can take


class MeanIoU:
    """Accumulates a confusion matrix over batches and processes.

    Args:
        num_labels: number of classes C, at least 1.
        ignore_index: ground-truth pixels with this id never count, whatever the prediction says there.
        device: where the matrix starts; it follows the tensors given to `update`.
    """

    def __init__(self, num_labels: int, ignore_index: int = IGNORE_INDEX, device: torch.device | str = "cpu"):
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}: pass at least 1")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        # The matrix, then one bin for ignored pixels and one for ids that are no class.
        self._counts = torch.zeros(num_labels**2 + 2, dtype=torch.int64, device=device)

    @property
    def confusion(self) -> Tensor:
        """Pixel counts (C,C), int64, on the device: rows are the ground truth, columns the prediction."""
        return self._counts[:-2].view(self.num_labels, self.num_labels)

    def update(self, prediction, label) -> None:
        """Add one image or batch.

        Args:
            prediction: class ids in [0, C), integer tensor or array of any shape.
            label: ground truth of the same shape, ids in [0, C) or `ignore_index`.

        Raises:
            ValueError: shapes differ, values are not integers, or an id is no class. On an accelerator the last one
                comes from `compute`: reading the count here would make the device wait.
        """
        prediction, label = _as_ids(prediction), _as_ids(label)
        if prediction.shape != label.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
        prediction, label = prediction.flatten(), label.flatten().to(prediction.device)
        pair = label * self.num_labels + prediction
        known = (prediction >= 0) & (prediction < self.num_labels) & (label >= 0) & (label < self.num_labels)
        pair = torch.where(known, pair, self.num_labels**2 + 1)
        pair = torch.where(label == self.ignore_index, self.num_labels**2, pair)
        self._counts = self._counts.to(pair.device) + torch.bincount(pair, minlength=len(self._counts))
        if pair.device.type == "cpu":
            self._refuse_unknown_ids()

    def all_reduce(self) -> None:
        """Sum the counts over all processes, where torch.distributed runs; call it once, before `compute`."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._counts)

    def compute(self) -> dict:
        """The scores so far, all as fractions in [0, 1]; see `scores`.

        Raises:
            ValueError: an id given to `update` was no class.
        """
        self._refuse_unknown_ids()
        return scores(self.confusion)

    def _refuse_unknown_ids(self) -> None:
        if unknown := int(self._counts[-1]):
            raise ValueError(
                f"{unknown} pixels have a predicted or true id outside 0..{self.num_labels - 1}"
                f" (and not {self.ignore_index} in the ground truth): num_labels is {self.num_labels}"
            )


def scores(confusion: Tensor) -> dict:
    """Scores of a confusion matrix (C,C) of counts, rows = ground truth.

    Returns:
        `mean_iou` over the classes that occur in the prediction or the ground truth; `per_class_iou`, C entries, None
        for a class that occurs in neither; these classes' ids as `absent_classes`; `accuracy` over all pixels;
        `mean_accuracy` over the classes of the ground truth; `per_class_accuracy`, C entries, the share of a class's
        pixels that were found, None where the ground truth has none. A mean over nothing is None, as JSON can hold it.
    """
    confusion = confusion.cpu().double()
    hit, truth, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    union = truth + predicted - hit
    iou = [_ratio(h, u) for h, u in zip(hit.tolist(), union.tolist(), strict=True)]
    recall = [_ratio(h, t) for h, t in zip(hit.tolist(), truth.tolist(), strict=True)]
    return {
        "mean_iou": _mean(iou),
        "per_class_iou": iou,
        "accuracy": _ratio(hit.sum().item(), truth.sum().item()),
        "mean_accuracy": _mean(recall),
        "per_class_accuracy": recall,
        "absent_classes": [c for c, value in enumerate(iou) if value is None],
    }


def _as_ids(values) -> Tensor:
    ids = torch.as_tensor(values)
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"class ids must be integers, not {ids.dtype}: take the argmax of the logits first")
    return ids.detach().long()


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


if "evaluate" in sys.modules:
    import datasets
    import evaluate

    class MeanIoUModule(evaluate.Metric):
        """Mean intersection over union of semantic segmentation masks; stores counts, not masks.

        Args:
            predictions: class ids, integers in [0, 255], a list of masks (H,W) or a batch (B,H,W).
            references: ground truth of the same shapes.
            num_labels: number of classes C (to `compute`, or to `evaluate.load`).
            ignore_index: ground truth with this id never counts (255).
        Returns:
            mean_iou, per_class_iou, accuracy, mean_accuracy, per_class_accuracy as fractions or None, and
            absent_classes.
        """

        # The base class would write every mask to disk and read them all back; this one keeps a table of how often each
        # pair of 8-bit ids met, so `num_labels` and `ignore_index` may be given as late as `compute`.

        def __init__(self, *args, num_labels: int | None = None, ignore_index: int = IGNORE_INDEX, **kwargs):
            # The base class takes any other name as well, and does nothing with it.
            if unknown := kwargs.keys() - inspect.signature(evaluate.Metric).parameters:
                raise TypeError(f"{', '.join(sorted(unknown))}: no option of this metric (num_labels, ignore_index)")
            super().__init__(*args, **kwargs)
            if self.num_process > 1:
                raise ValueError("num_process: counts are not shared through files; use MeanIoU and its all_reduce")
            self.num_labels = num_labels
            self.ignore_index = ignore_index
            self._pairs = MeanIoU(BYTE, ignore_index=-1)

        def _info(self):
            mask = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
            features = datasets.Features({"predictions": mask, "references": mask})
            about, inputs = inspect.cleandoc(MeanIoUModule.__doc__).split("\n\n", 1)
            return evaluate.MetricInfo(description=about, inputs_description=inputs, citation="", features=features)

        # The base class copies the next three methods without their closures: no super() inside; docstrings must stay.
        def add(self, *, prediction=None, reference=None, predictions=None, references=None):
            """Add one mask (H,W) and its ground truth; `evaluate.combine` passes them by the plural names."""
            self._pairs.update(
                predictions if prediction is None else prediction, references if reference is None else reference
            )

        def add_batch(self, *, predictions=None, references=None):
            """Add masks (B,H,W), or a list of masks of different sizes, and their ground truth."""
            for prediction, reference in zip(predictions, references, strict=True):
                self._pairs.update(prediction, reference)

        def compute(self, *, predictions=None, references=None, num_labels=None, ignore_index=None):
            """Scores of everything added since the last call, and of the masks given here."""
            if predictions is not None:
                self.add_batch(predictions=predictions, references=references)
            num_labels = num_labels or self.num_labels
            if num_labels is None:
                raise ValueError("pass num_labels to compute or to evaluate.load")
            table = self._pairs.confusion.clone()
            self._pairs = MeanIoU(BYTE, ignore_index=-1)
            ignored = self.ignore_index if ignore_index is None else ignore_index
            if 0 <= ignored < BYTE:
                table[ignored] = 0
            if int(table[:num_labels, :num_labels].sum()) != int(table.sum()):
                raise ValueError(
                    f"some predicted or true ids are outside 0..{num_labels - 1}: num_labels is {num_labels}"
                )
            return scores(table[:num_labels, :num_labels])
