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
    path = Path(dataset) / "README.md"
    try:
        if "/" in dataset and not path.parent.is_dir():
            path = Path(hf_hub_download(dataset, "README.md", repo_type="dataset", revision=revision))
        data = DatasetCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (EntryNotFoundError, FileNotFoundError, NotADirectoryError):
        return None
    except (HTTPError, OSError, ValueError, yaml.YAMLError) as error:
        logger.warning("the licence of %s is not known: its card cannot be read (%s)", dataset, type(error).__name__)
        return None
    found = data.get("license")
    found = data.get("license_name") if found in ("other", ["other"]) else found
    names = found if isinstance(found, list) else [found]
    return ", ".join(name for name in names if isinstance(name, str)) or None
