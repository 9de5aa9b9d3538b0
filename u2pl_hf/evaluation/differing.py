"""The images that models judge most differently."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from torch import nn

from u2pl_hf.data.sources import Source
from u2pl_hf.evaluation.folding import folded
from u2pl_hf.evaluation.inference import predict_all
from u2pl_hf.evaluation.pictures import contact_sheet, overlay

# Images that are drawn, those they are chosen from, and how strong their colours are.
SHOWN, LOOKED_AT, OPACITY = 4, 32, 0.7


def draw_differing(
    models: Mapping[str, nn.Module], source: Source, class_names: Sequence[str], how: dict
) -> Image.Image:
    """A row per image, with the ones first whose pixels most models judge otherwise than the first model.

    Args:
        models: by their titles.
        source: images with masks, of which some are looked at.
        how: of `predict_all`.
    """
    palette = next(iter(models.values())).config.palette
    networks, looked_at = [folded(model) for model in models.values()], []
    for row in np.unique(np.linspace(0, len(source.ids) - 1, LOOKED_AT).round().astype(int)).tolist():
        image = source.read_image(row)
        predictions = [predict_all(network, [image], with_entropy=False, **how)[0].labels for network in networks]
        looked_at.append((sum(np.mean(p != predictions[0]) for p in predictions), row, predictions))
    cells = []
    for _, row, predictions in sorted(looked_at, key=lambda each: -each[0])[:SHOWN]:
        masks = {"mask": source.read_label(row)} | dict(zip(models, predictions, strict=True))
        image = source.read_image(row)
        cells += [(source.ids[row], image), *((name, overlay(image, m, palette, OPACITY)) for name, m in masks.items())]
    return contact_sheet(cells, palette, class_names, columns=2 + len(models))
