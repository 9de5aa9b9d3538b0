"""Split lists published with U2PL and UniMatch V2: fetched from there, pinned by sha256, kept in the cache."""

import hashlib
import http.client
import itertools
import logging
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from u2pl_hf.errors import refusing, require
from u2pl_hf.files import CACHE_HINT, cache_folder, sha256_of, write_atomically

log = logging.getLogger(__name__)

U2PL, COMMIT = "Haochen-Wang409/U2PL", "ab3d2be313d4d6b2885e7a0213d4fce82a803b79"
UNIMATCH_V2, UNIMATCH_V2_COMMIT = "LiheYoung/UniMatch-V2", "f6afb4dfca2d9dcbcee2307e97717954ca75c0ba"
# First folder of a pinned path -> the repository, revision, folder of all lists there, and folder in it.
ORIGINS = {
    "pascal": (U2PL, COMMIT, "data/splits", "pascal"),
    "cityscapes": (U2PL, COMMIT, "data/splits", "cityscapes"),
    "cityscapes_ael": (U2PL, "with_AEL", "data/splits", "cityscapes"),
    "ade20k": (UNIMATCH_V2, UNIMATCH_V2_COMMIT, "splits", "ade20k"),
    "coco": (UNIMATCH_V2, UNIMATCH_V2_COMMIT, "splits", "coco"),
    "cityscapes_unimatch": (UNIMATCH_V2, UNIMATCH_V2_COMMIT, "splits", "cityscapes"),
    "pascal_unimatch": (UNIMATCH_V2, UNIMATCH_V2_COMMIT, "splits", "pascal"),
}
HOST = "https://raw.githubusercontent.com"
TIMEOUT = 30
# Seconds before the second and the third try.
BACK_OFF = (1, 3)

# What a user writes, and the folder of the list files: names of PINS, without the file. Of UniMatch V2 the labelled
# images are enough: its other lists hold the rest.
SPLITS = {
    **{f"voc_classic/{n}": f"pascal/{n}" for n in (92, 183, 366, 732, 1464)},
    **{f"voc_blender/{n}": f"pascal/{n}" for n in (662, 1323, 2646, 5291)},
    **{f"cityscapes/{n}": f"cityscapes/{n}" for n in (186, 372, 744, 1488)},
    **{f"voc_unimatch/{n}": f"pascal_unimatch/{n}" for n in (92, 183, 366, 732, 1464)},
    **{f"cityscapes_unimatch/1_{n}": f"cityscapes_unimatch/1_{n}" for n in (30, 16, 8, 4, 2)},
    **{f"ade20k/1_{n}": f"ade20k/1_{n}" for n in (64, 32, 16, 8, 4, 2)},
    **{f"coco/1_{n}": f"coco/1_{n}" for n in (512, 256, 128, 64, 32)},
    "cityscapes_ael/372": "cityscapes_ael/372",
}
SUMS = Path(__file__).with_name("published_splits.sha256").read_text(encoding="ascii").splitlines()
PINS = {path: digest for digest, path in map(str.split, SUMS)}


def fetch_list(path: str, *, splits_dir: str | os.PathLike | None = None) -> Path:
    """File of one published list, taken from `splits_dir`, the cache or the network, and always checked by sha256.

    The cache is `splits` in `cache_folder`. `U2PL_SPLITS_URL` names a mirror that takes the place of
    https://raw.githubusercontent.com. Several processes may call this at the same time.

    Args:
        path: one of PINS, such as "pascal/92/labeled.txt"; its first folder is one of ORIGINS.
        splits_dir: a published folder tree, with or without its leading data/splits or splits; lists that it lacks are
            looked for in the cache and the network.

    Raises:
        InputError: another content than the published one, or no way to get it.
    """
    family, _, inside = path.partition("/")
    repository, revision, root, folder = ORIGINS[family]
    name = f"{folder}/{inside}"
    if splits_dir is not None:
        require(Path(splits_dir).is_dir(), f"--splits_dir {splits_dir} is no folder; pass one that holds {path}")
        places = (Path(splits_dir, *parts) for parts in itertools.product(("", root), (path, name)))
        for own in filter(Path.is_file, places):
            if not (fault := _fault(own.read_bytes(), path)):
                return own
            # Another work's list has that name.
            told = f"{own} is not the published list ({fault}); replace it, or leave --splits_dir"
            require(sha256_of(own) in PINS.values(), told)
    cached = cache_folder() / "splits" / revision / name
    if cached.is_file():
        if not (fault := _fault(cached.read_bytes(), path)):
            return cached
        log.warning("%s is not the published list (%s); fetching it again", cached, fault)
    _download(path, f"{repository}/{revision}/{root}/{name}", cached)
    return cached


def _fault(content: bytes, path: str) -> str:
    """What is wrong with a list's content; empty where it is the published one."""
    digest = hashlib.sha256(content).hexdigest()
    return "" if digest == PINS[path] else f"sha256 {digest[:12]}..., expected {PINS[path][:12]}..."


def _download(path: str, remote: str, target: Path) -> None:
    host = (os.environ.get("U2PL_SPLITS_URL") or HOST).rstrip("/")
    url = f"{host}/{remote}"
    unset = "" if host == HOST else "unset U2PL_SPLITS_URL, or "
    hint = f"; {unset}pass --splits_dir DIR with a folder that holds {path}, or a list file"
    with refusing((OSError, http.client.HTTPException, ValueError), f"cannot fetch {url}", hint):
        content = _get(url)
    fault = _fault(content, path)
    require(not fault, f"{url} is not the published list ({fault}) and was not kept{hint}")
    with refusing(OSError, f"cannot write {target}", CACHE_HINT):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda temporary: temporary.write_bytes(content))
    log.info("fetched %s", url)


def _get(url: str) -> bytes:
    """The content at a URL, after up to three tries."""
    for pause in (*BACK_OFF, None):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                return response.read()
        except (OSError, http.client.HTTPException) as error:
            is_final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if is_final or pause is None:
                raise
        time.sleep(pause)
