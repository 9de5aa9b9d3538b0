"""Evaluation and inference: scores, whole-image and sliding-window prediction, pictures."""

from u2pl_hf.evaluation.mean_iou import MeanIoU

__all__ = ["MeanIoU"]
