"""Files of weights by others: .safetensors, or what torch.save wrote, read without running anything that is in them."""

import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.loading import HUB_ID

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
# Published checkpoints hold their best mIoU as a number of numpy's: what rebuilds one is let through. It has one name
# in numpy 1 and another in numpy 2.
_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    *((_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
]


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
    try:
        return load_file(path) if path.suffix == ".safetensors" else _read_torch_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged, cut short, or no safetensors file ({error})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def check_there(where: str, name: str) -> None:
    """Refuse what is neither on this disk nor could be on the Hub.

    Args:
        where: the option and its value, for the message.

    Raises:
        InputError: there is no such file.
    """
    path = Path(name)
    on_hub = HUB_ID.fullmatch(name) and "/" in name and path.suffix not in SUFFIXES
    if not path.exists() and not on_hub:
        raise InputError(f"{where}: no such file or folder; a Hub id has the form OWNER/NAME")


def is_state_dict(content) -> bool:
    """Whether it is a dict from names to tensors, and not empty."""
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())


def _read_torch_file(path: Path):
    # Files of torch before 1.6 are no zip archives, and cannot be mapped.
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip and (record := _damaged_record(path)):
            raise InputError(f"{path} is damaged: {record} in it is not as it was written")
        with torch.serialization.safe_globals(NUMPY_NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (InputError, OSError):
        raise
    except Exception as error:  # torch, pickle and zipfile raise their own types, and KeyError and the like
        if isinstance(error, UnpicklingError) and (name := _forbidden(str(error))):
            raise InputError(
                f"{path} holds {name}, and loading that would run code; where you trust the file, save "
                "its state dict alone and pass that"
            ) from error
        raise InputError(f"{path} is damaged, cut short, or was not written by torch.save") from error


def _damaged_record(path: Path) -> str | None:
    """torch itself does not look at the checksums."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _forbidden(message: str) -> str | None:
    """The function or class that a pickle asks for and weights_only refuses."""
    found = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", message)
    return found[1] if found else None
