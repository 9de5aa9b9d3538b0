"""What the page says of the model itself: from its configuration, and from its card where there is one."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from u2pl_hf.evaluation.pictures import default_palette

# Missing file, no network, YAML or metadata that cannot be read.
NO_CARD = (HfHubHTTPError, OSError, ValueError, yaml.YAMLError)


def model_title(name: str) -> str:
    """A Hub id as it is, a folder as its last two parts: as short, and the whole path is nobody else's business."""
    path = Path(name)
    return "/".join(path.resolve().parts[-2:]) if path.is_dir() else name


def class_names(config) -> list[str]:
    """The C names of a U2PLConfig's classes, in order."""
    return [config.id2label[c] for c in range(config.num_labels)]


def class_colours(config) -> list[list[int]]:
    """C rows of [r, g, b]: the model's own, or PASCAL VOC's."""
    return config.palette or default_palette(config.num_labels)


def describe_model(model) -> str:
    """Backbone, parameters and classes in a few words."""
    config = model.config
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    classes = f"{config.num_labels} class{'es' if config.num_labels > 1 else ''}"
    return f"{config.backbone} backbone, {parameters:.1f} million parameters, {classes}"


def card_scores(name: str, revision: str | None = None) -> list[str]:
    """One phrase for each mean IoU that the model's card reports; none without a card.

    A run's card also tells of its best evaluation, whose model lies elsewhere: the score of the weights here is first.

    Args:
        name: exported folder or Hub id.
        revision: branch, tag or commit on the Hub.
    """
    try:
        folder = Path(name)
        path = folder / "README.md" if folder.is_dir() else hf_hub_download(name, "README.md", revision=revision)
        results = ModelCard.load(path, ignore_metadata_errors=True).data.eval_results or []
    except NO_CARD:
        return []
    results.sort(key=lambda result: (result.metric_name or "").startswith("mIoU (best"))
    return [
        f"{100 * result.metric_value:.1f} % {result.metric_name or 'mIoU'} on {_where(result)}"
        for result in results
        # Cards are written by hand as well.
        if result.metric_type == "mean_iou" and isinstance(result.metric_value, int | float)
    ]


def _where(result) -> str:
    return ", ".join(part for part in (result.dataset_name, result.dataset_split) if part)
