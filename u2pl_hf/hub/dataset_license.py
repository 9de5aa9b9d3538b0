"""The licence that a data set's card names."""

import functools
import logging
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError

logger = logging.getLogger(__name__)


@functools.cache
def dataset_license(dataset: str, revision: str | None = None) -> str | None:
    """Identifier such as "cc-by-4.0", from the card in a local folder or on the Hub; None where none is known.

    A card that cannot be read is no reason to lose a run: a warning tells of it.
    """
    try:
        path = _card(dataset, revision)
        data = DatasetCard.load(path, ignore_metadata_errors=True).data if path else {}
    except EntryNotFoundError:
        return None
    except (HTTPError, OSError, ValueError, yaml.YAMLError) as error:
        logger.warning("the licence of %s is not known: its card cannot be read (%s)", dataset, type(error).__name__)
        return None
    found = data.get("license")
    names = [name for name in (found if isinstance(found, list) else [found]) if isinstance(name, str)]
    own = data.get("license_name")
    return (own if isinstance(own, str) else None) if names == ["other"] else ", ".join(names) or None


def _card(dataset: str, revision: str | None) -> Path | None:
    folder = Path(dataset)
    if folder.is_dir():
        card = folder / "README.md"
        return card if card.is_file() else None
    if "/" in dataset:
        return Path(hf_hub_download(dataset, "README.md", repo_type="dataset", revision=revision))
    return None
