"""Data sets of the Hub where the Hub cannot be asked: offline mode, no connection, a node of a cluster."""

import functools
import logging
import re
from collections import Counter
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from u2pl_hf.errors import require

logger = logging.getLogger(__name__)
# Seconds to connect, twice; the libraries ask for half a minute before they give up.
PATIENCE = 5.0
# What can be the id of a repository, as huggingface_hub has it.
REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,94}\w?", re.ASCII)
# Beside the data: what a run may have fetched alone.
NO_DATA = {".md", ".txt", ".gitattributes", ".gitignore"}


@functools.cache
def is_reachable() -> bool:
    """Whether the Hub answers, whatever it says."""
    for _ in range(1 if constants.is_offline_mode() else 2):
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            return True
        except Exception as error:  # of the HTTP library, which differs between versions
            logger.debug("%s: %s", constants.ENDPOINT, error)
    return False


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of the Hub's cache that has a data set's files; None where it has not all of them.

    Without a revision the one that was current last, else the newest: `datasets` does not note which it read.
    """
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="dataset"))
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    snapshots.sort(key=lambda path: path.name != commit)
    chosen = [path for path in snapshots if _is_whole(path) and (revision is None or path.name == commit)]
    return chosen[0] if chosen else None


def _is_whole(snapshot: Path) -> bool:
    """There are data, and of files numbered 00000-of-00004 all."""
    files = [path for path in snapshot.rglob("*") if path.is_file() and NO_DATA.isdisjoint((path.suffix, path.name))]
    parts = Counter(re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\..*)|.*", str(file)).groups() for file in files)
    return bool(files) and all(count == int(part[1]) for part, count in parts.items() if part[1])


def place_to_read(path: str, revision: str | None) -> str:
    """The data set as it was named, a local folder or a Hub id; where the Hub does not answer, the folder in its cache.

    Raises:
        InputError: there is no such folder, nothing in it, or the Hub is needed and does not answer.
    """
    local = Path(path)
    require(not local.is_dir() or any(local.iterdir()), f"data set {path}: the folder is empty")
    can_be = local.exists() or REPOSITORY.fullmatch(path)
    require(can_be, f"data set {path}: no such folder; an id of the Hub has the form OWNER/NAME")
    if local.exists() or is_reachable():
        return path
    snapshot = cached_snapshot(path, revision)
    if snapshot is not None:
        logger.warning("the Hub does not answer: data set %s is read from its cache, %s", path, snapshot)
        return str(snapshot)
    remedy = "pass a folder that prepare_dataset.py made, or fetch the data set into the Hub's cache before"
    # `datasets` has a cache of its own.
    can_be = constants.is_offline_mode()
    require(can_be, f"data set {path}: there is no such folder, and the Hub does not answer; {remedy}")
    return path


def class_list_folder(repo: str, revision: str | None) -> Path | None:
    """The folder of the cache that has class_names.txt of a data set on the Hub, fetched once; None without one."""
    try:
        return Path(hf_hub_download(repo, "class_names.txt", repo_type="dataset", revision=revision)).parent
    except EntryNotFoundError:
        return None
