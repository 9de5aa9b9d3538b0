"""Find a trained model, and say what runs it."""

import hashlib
import importlib.metadata
import json
import platform
import re
from pathlib import Path

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.utils.hub import extract_commit_hash

from u2pl_hf.errors import InputError

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MAX_CLASSES = 255
PACKAGES = ("u2pl_hf", "torch", "transformers", "datasets", "huggingface_hub", "numpy")


def load_model(name: str, *, device: str = "auto", revision: str | None = None):
    """A U2PLForSemanticSegmentation in eval mode, from an exported folder or the Hub.

    Args:
        name: folder with config.json and model.safetensors, or a Hub id.
        device: "auto", or what torch.device reads.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: no such model, another kind of model, or weights that do not fill it.
    """
    chosen = pick_device(device)
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise InputError(f"model {name}: no config.json in it; pass a folder that training exported, or a Hub id")
    if not path.exists() and not HUB_ID.fullmatch(name):
        raise InputError(f"model {name}: no such folder")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {name}: no such folder or Hub model, or no usable config.json ({_line(error)})"
        ) from error
    if config.model_type != "u2pl":
        raise InputError(f"model {name}: its type is {config.model_type!r}, not 'u2pl'; pass a U2PL model")
    try:
        model, report = AutoModelForSemanticSegmentation.from_pretrained(
            name, revision=revision, output_loading_info=True
        )
    except Exception as error:  # safetensors, torch and pickle raise their own types for a damaged file
        raise InputError(f"model {name}: its weights cannot be read ({_line(error)})") from error
    if report["missing_keys"]:
        # Without this, a file with other names would evaluate random weights.
        first = min(report["missing_keys"])
        raise InputError(f"model {name}: {len(report['missing_keys'])} weights are not in its file, such as {first}")
    if config.num_labels > MAX_CLASSES:
        raise InputError(
            f"model {name}: it has {config.num_labels} classes, and masks are 8-bit: at most {MAX_CLASSES}"
        )
    # As in training: the same kernels, so the same numbers to the last bit.
    return model.to(chosen, memory_format=torch.channels_last).eval()


def pick_device(name: str = "auto") -> torch.device:
    """`torch.device(name)`; "auto" is the accelerator where there is one, else the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name}: not available here; pass auto or cpu ({_line(error)})") from error
    return device


def model_digest(model) -> str:
    """What two models share that have the same weights and class names, wherever they lie."""
    digest = hashlib.sha256(json.dumps(model.config.id2label).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def model_commit(name: str, revision: str | None = None) -> str | None:
    """The commit of a model that was loaded from the Hub; None for a folder."""
    if Path(name).exists():
        return None
    # transformers 5 does not tell it any more; the path in the cache does.
    return extract_commit_hash(str(try_to_load_from_cache(name, "config.json", revision=revision)), None)


def dataset_commit(name: str, revision: str | None = None) -> str | None:
    """The commit of a data set on the Hub; None for a local one, or where the Hub cannot be asked."""
    if name == "demo" or Path(name).exists():
        return None
    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except Exception:  # no connection, offline mode, no permission: the data came from the cache
        return None


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that decide a result."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # this package itself, run from its source folder
            continue
    return versions


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
