"""Weights by others: where they lie, and what is in them, read without running anything that is in them."""

import contextlib
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from u2pl_hf.errors import InputError, refusing
from u2pl_hf.evaluation.loading import check_download

# Of a folder or repository, the first that is there.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Published checkpoints hold their best mIoU as a number of numpy's: what rebuilds one is let through. It has one name
# in numpy 1 and another in numpy 2.
_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    *((_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
]


def find_weights(where: str, name: str, revision: str | None) -> Path:
    """The file of weights that a name stands for: itself, that of a folder, or that of a Hub repository, fetched.

    Args:
        where: the option and its value, for messages.

    Raises:
        InputError: there is none, or it cannot be fetched.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        file = next((path / file for file in WEIGHT_FILES if (path / file).is_file()), None)
    else:
        file = _download(where, name, revision)
    if file is None:
        raise InputError(f"{where}: no {' or '.join(WEIGHT_FILES)} in it; pass a file")
    check_download(where, file)
    return file


def _download(where: str, repo_id: str, revision: str | None) -> Path | None:
    try:
        for file in WEIGHT_FILES:
            with contextlib.suppress(RemoteEntryNotFoundError):
                return Path(hf_hub_download(repo_id, file, revision=revision))
    except (HTTPError, OSError, ValueError) as error:
        status = f", status {error.response.status_code}" if isinstance(error, HfHubHTTPError) else ""
        told = {
            RepositoryNotFoundError: "no such folder or repository on the Hub; for a private one run `hf auth login`",
            RevisionNotFoundError: f"no revision {revision}; pass a branch, tag or commit of it",
        }
        # Not the error's own text, which may quote the token.
        other = f"cannot be fetched from the Hub ({type(error).__name__}{status}): mend the connection, or pass a file"
        raise InputError(f"{where}: {told.get(type(error), f'{other}, or none to start from fresh ones')}") from error
    return None


def read_weights_file(path: Path):
    """What a file holds, tensors on the CPU and mapped into memory where the format allows it.

    Args:
        path: .safetensors, else a file of torch.save (.pth, .pt, .bin ...).

    Raises:
        InputError: there is no such file, it is damaged, or it holds other things than tensors, numbers and text.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    damaged = f"{path} is damaged, cut short, or no safetensors file"
    with refusing(OSError, f"{path} cannot be read"), refusing(SafetensorError, damaged):
        return load_file(path) if path.suffix == ".safetensors" else _read_torch_file(path)


def is_state_dict(content) -> bool:
    """Whether it is a dict from names to tensors, and not empty."""
    items = content.items() if isinstance(content, dict) else ()
    return bool(items) and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in items)


def _read_torch_file(path: Path):
    # Files of torch before 1.6 are no zip archives, and cannot be mapped.
    is_zip = zipfile.is_zipfile(path)
    try:
        # torch itself does not look at the checksums.
        if is_zip and (record := zipfile.ZipFile(path).testzip()):
            raise InputError(f"{path} is damaged: {record} in it is not as it was written")
        with torch.serialization.safe_globals(NUMPY_NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (InputError, OSError):
        raise
    except Exception as error:  # torch, pickle and zipfile raise their own types, and KeyError and the like
        # The function or class that a pickle asks for and weights_only refuses.
        wanted = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", str(error))
        told = "is damaged, cut short, or was not written by torch.save"
        if wanted:
            told = f"holds {wanted[1]}, and loading that would run code; save its state dict alone where you trust it"
        raise InputError(f"{path} {told}") from error
