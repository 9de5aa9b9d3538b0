"""The split lists published with U2PL: fetched from their repository, pinned by sha256, kept in the cache."""

import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from u2pl_hf.errors import InputError
from u2pl_hf.files import write_atomically

log = logging.getLogger(__name__)

REPOSITORY = "Haochen-Wang409/U2PL"
COMMIT = "ab3d2be313d4d6b2885e7a0213d4fce82a803b79"
HOST = "https://raw.githubusercontent.com"
TIMEOUT = 30
# Seconds before the second and the third try.
BACK_OFF = (1, 3)

# What a user writes, and the folder of the list files: names of PINS, without the file.
SPLITS = {
    **{f"voc_classic/{n}": f"pascal/{n}" for n in (92, 183, 366, 732, 1464)},
    **{f"voc_blender/{n}": f"pascal/{n}" for n in (662, 1323, 2646, 5291)},
    **{f"cityscapes/{n}": f"cityscapes/{n}" for n in (186, 372, 744, 1488)},
    "cityscapes_ael/372": "cityscapes_ael/372",
}
VAL_LISTS = {"voc_val": "pascal/val.txt", "cityscapes_val": "cityscapes/val.txt"}


def _read_pins() -> dict[str, str]:
    lines = Path(__file__).with_name("published_splits.sha256").read_text(encoding="ascii").splitlines()
    return {path: digest for digest, path in (line.split() for line in lines)}


PINS = _read_pins()


def fetch_list(path: str, *, splits_dir: str | os.PathLike | None = None) -> Path:
    """File of one published list, taken from `splits_dir`, the cache or the network, and always checked by sha256.

    The cache is `splits` below `$U2PL_CACHE` or `~/.cache/u2pl_hf`. `U2PL_SPLITS_URL` names a mirror that takes the
    place of https://raw.githubusercontent.com. Several processes may call this at the same time.

    Args:
        path: "pascal/92/labeled.txt", "cityscapes/val.txt", ..., or "voc_val", "cityscapes_val". "cityscapes_ael/372"
            is the folder "cityscapes/372" of the published branch with_AEL.
        splits_dir: the published folder tree, with or without its leading data/splits; lists that it lacks are
            looked for in the cache and the network.

    Raises:
        InputError: unknown list, another content than the published one, or no way to get it.
    """
    path = VAL_LISTS.get(path, path)
    if path not in PINS:
        raise InputError(f"no published list '{path}'; there are {', '.join(VAL_LISTS)} and {', '.join(PINS)}")
    if splits_dir is not None and (own := _in_folder(Path(splits_dir), path)):
        return own
    cached = _cached(path)
    if not cached.is_file():
        _download(path, cached)
    elif fault := _fault(cached.read_bytes(), path):
        log.warning("%s is not the published list (%s); fetching it again", cached, fault)
        _download(path, cached)
    return cached


def published_ids(path: str, *, splits_dir: str | os.PathLike | None = None) -> list[str]:
    """Ids of one published list, in its order; `path` as in `fetch_list`."""
    lines = fetch_list(path, splits_dir=splits_dir).read_text(encoding="utf-8").split()
    return [plain_id(line) for line in lines]


def plain_id(line: str) -> str:
    """The id in a line of a list: Cityscapes lists name image files, VOC lists name ids."""
    match = re.fullmatch(r"leftImg8bit/\w+/\w+/(\w+)_leftImg8bit\.png", line)
    return match[1] if match else line


def _remote(path: str) -> str:
    """Revision and path in the published repository."""
    if path.startswith("cityscapes_ael/"):
        return f"with_AEL/data/splits/{path.replace('_ael', '')}"
    return f"{COMMIT}/data/splits/{path}"


def _cached(path: str) -> Path:
    root = Path(os.environ.get("U2PL_CACHE") or "~/.cache/u2pl_hf").expanduser()
    revision, _, rest = _remote(path).partition("/data/splits/")
    return root / "splits" / revision / rest


def _in_folder(folder: Path, path: str) -> Path | None:
    if not folder.is_dir():
        raise InputError(f"--splits_dir {folder} is not a folder; pass one that holds {path}")
    for candidate in (folder / path, folder / "data" / "splits" / path):
        if candidate.is_file():
            if fault := _fault(candidate.read_bytes(), path):
                raise InputError(f"{candidate} is not the published list ({fault}); replace it, or leave --splits_dir")
            return candidate
    return None


def _fault(content: bytes, path: str) -> str:
    """What is wrong with a list's content; empty where it is the published one."""
    digest = hashlib.sha256(content).hexdigest()
    return "" if digest == PINS[path] else f"sha256 {digest[:12]}..., expected {PINS[path][:12]}..."


def _download(path: str, target: Path) -> None:
    host = (os.environ.get("U2PL_SPLITS_URL") or HOST).rstrip("/")
    url = f"{host}/{REPOSITORY}/{_remote(path)}"
    try:
        content = _get(url)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(
            f"cannot fetch {url} ({error}); pass --splits_dir DIR with a folder that holds {path}, or a list file"
        ) from error
    if fault := _fault(content, path):
        unset = "" if host == HOST else "unset U2PL_SPLITS_URL, or "
        raise InputError(
            f"{url} is not the published list ({fault}) and was not kept; "
            f"{unset}pass --splits_dir DIR with the published lists"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda path: path.write_bytes(content))
    except OSError as error:
        raise InputError(f"cannot write {target} ({error}); set U2PL_CACHE to a folder that you can write") from error
    log.info("fetched %s", url)


def _get(url: str) -> bytes:
    """The content at a URL, after up to three tries."""
    pauses = iter(BACK_OFF)
    while True:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                return response.read()
        except (OSError, http.client.HTTPException) as error:
            pause = next(pauses, None)
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if final or pause is None:
                raise
        time.sleep(pause)
