"""Find a trained model, and say what runs it."""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.hub import extract_commit_hash

from u2pl_hf.constants import IGNORE
from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.files import misfit, sha256_of
from u2pl_hf.model.configuration_u2pl import U2PLConfig
from u2pl_hf.model.modeling_u2pl import U2PLForSemanticSegmentation
from u2pl_hf.version import __version__

SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PACKAGES = ("torch", "transformers", "datasets", "huggingface_hub", "numpy")


def load_model(name: str, *, device: str = "auto", revision: str | None = None):
    """A U2PLForSemanticSegmentation in eval mode, from an exported folder or the Hub. No code that lies there is run.

    Args:
        name: folder with config.json and model.safetensors, or a Hub id.
        device: "auto", or what torch.device reads.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: no such model, another kind of model, or weights that do not fill it, are no numbers or not those
            that the Hub announced.
    """
    chosen, path, where = pick_device(device), Path(name), f"model {name}"
    if path.exists():
        exported = (path / "config.json").is_file()
        require(exported, f"{where}: no config.json in it; pass a folder that training exported, or a Hub id")
    require(path.exists() or HUB_ID.fullmatch(name), f"{where}: no such folder")
    options = {"config": _load_config(name, revision), "revision": revision, "output_loading_info": True}
    # safetensors, torch and pickle raise their own types for a damaged file.
    with refusing(Exception, f"{where}: its weights cannot be read"):
        try:
            model, report = U2PLForSemanticSegmentation.from_pretrained(name, **options)
        finally:
            check_downloads(where, name, revision)
    # Without this, a file with other names would evaluate random weights.
    missing = report["missing_keys"]
    require(not missing, f"{where}: {len(missing)} weights are not in its file, such as {min(missing, default='')}")
    broken = first_not_finite(model.state_dict())
    require(not broken, f"{where}: {broken} in its weights is not finite; pass an earlier or a restored model")
    # As in training: the same kernels, so the same numbers to the last bit.
    return model.to(chosen, memory_format=torch.channels_last).eval()


def _load_config(name: str, revision: str | None) -> U2PLConfig:
    """The auto classes are not asked: they offer to run the code that a configuration names."""
    where = f"model {name}"
    # transformers and huggingface_hub raise their own types for wrong fields.
    with refusing(Exception, f"{where}: no such folder or Hub model, or no usable config.json"):
        content, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        kind = content.get("model_type")
        require(kind == U2PLConfig.model_type, f"{where}: its type is {kind!r}, not 'u2pl'; pass a U2PL model")
        # Before transformers makes a name for each of them.
        classes = max(content.get("num_labels") or 0, len(content.get("id2label") or ()))
        require(classes <= IGNORE, f"{where}: it has {classes} classes, and masks are 8-bit: at most {IGNORE}")
        config = U2PLConfig.from_dict(content)
        if wrong := misfit([config.id2label.get(c) for c in range(config.num_labels)], list[str]):
            raise ValueError(f"id2label.{wrong}")
        if config.palette is not None and len(config.palette) < config.num_labels:
            raise ValueError(f"palette has {len(config.palette)} colours for {config.num_labels} classes")
    return config


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity, if one does."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def check_downloads(where: str, name: str, revision: str | None = None) -> None:
    """Refuse weights of a Hub repository that are not what the Hub announced, and remove them from the cache.

    Args:
        where: for the message, what they were asked for.

    Raises:
        InputError: the sha256 is another one.
    """
    if Path(name).exists():
        return
    known = (try_to_load_from_cache(name, file, revision=revision) for file in ("config.json", "model.safetensors"))
    for folder in {Path(path).parent for path in known if isinstance(path, str)}:
        for path in folder.glob("*"):
            check_download(where, path)


def check_download(where: str, path: Path) -> None:
    """As `check_downloads`, of one file in the Hub's cache."""
    # A large file is a link to one that has the announced sha256 for a name.
    stored = path.resolve()
    if SHA256.fullmatch(stored.name) and stored.is_file() and sha256_of(stored) != stored.name:
        stored.unlink()
        path.unlink(missing_ok=True)
        told = f"{path.name} is not what the Hub announced, by its sha256"
        raise InputError(f"{where}: {told}; it was removed, so the same command fetches it again")


def pick_device(name: str = "auto") -> torch.device:
    """`torch.device(name)`; "auto" is the accelerator where there is one, else the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    with refusing((RuntimeError, AssertionError), f"device {name}: not available here; pass auto or cpu"):
        device = torch.device(name)
        torch.empty(0, device=device)
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
    libraries = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "u2pl_hf": __version__, **libraries}
