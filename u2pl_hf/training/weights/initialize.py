"""Weights that a run starts from instead of fresh ones: an ImageNet backbone, or a trained model.

Each process reads them for itself; when the model is prepared, DDP gives all processes the first one's.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import extract_commit_hash

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.loading import check_download, first_not_finite, load_model, model_commit
from u2pl_hf.files import sha256_of
from u2pl_hf.model.convert import misfit, resnet_architecture
from u2pl_hf.training.recipe.arguments import FRESH, RunArguments
from u2pl_hf.training.run.checkpoint import read_state
from u2pl_hf.training.run.folder import RunFolder
from u2pl_hf.training.weights.backbones import load_backbone
from u2pl_hf.training.weights.weights_file import check_there, is_state_dict, read_weights_file

logger = logging.getLogger(__name__)

# Of a folder or repository, the first that is there.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# What must be equal for weights of one model to mean the same in another. Strides and dilations may differ: they are in
# no weight.
ARCHITECTURE = ("backbone", "stem", "base_width", "head_channels")
HEADS = ("classifier", "representation_head", "auxiliary_head")


def find_starting_point(
    student: PreTrainedModel, args: RunArguments, folder: RunFolder, data: dict, processes: int
) -> tuple[Path | None, dict | None]:
    """Where a run begins: at a checkpoint, or with the weights that it starts from, which are then put into `student`.

    Only a run that begins reads those weights: one that goes on does not need them any more.

    Args:
        data, processes: what a checkpoint must agree with, see `RunFolder.checkpoint_to_resume`.

    Returns:
        The checkpoint, if any, and what the run was or is initialised with.

    Raises:
        InputError: the checkpoint or the weights cannot be used.
    """
    if (results := folder.finished_results()) is not None:
        folder.check_data(folder.results_path, results.get("data") or {}, data)
        return None, None
    checkpoint = folder.checkpoint_to_resume(data, processes)
    if checkpoint is None:
        return None, initialize(student, args)
    return checkpoint, read_state(checkpoint).get("initialised_with")


def initialize(student: PreTrainedModel, args: RunArguments) -> dict | None:
    """Put the weights that the arguments name into a fresh model, in place.

    Returns:
        What they are, for results.json and the card: name, the Hub's commit, the file's sha256; None for fresh ones.

    Raises:
        InputError: they cannot be found or read, or are of another architecture.
    """
    if args.backbone_weights == FRESH:
        return None
    if student.config.backbone_config is not None and args.initial_model is None:
        load_backbone(student, args)
        return _described_other(args)
    if args.backbone_weights is not None:
        return _fill_backbone(student, args.backbone_weights, args.backbone_weights_revision)
    if args.initial_model is not None:
        return _fill_model(student, args.initial_model, args.initial_model_revision)
    return None


def _fill_backbone(student: PreTrainedModel, name: str, revision: str | None) -> dict:
    where = f"--backbone_weights {name}"
    path, commit = locate(where, name, revision)
    if path.is_dir():
        folder = path
        path = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
        if path is None:
            raise InputError(f"{where}: no {' or '.join(WEIGHT_FILES)} in it; pass the file")
    content = read_weights_file(path)
    if not is_state_dict(content):
        raise InputError(f"{where}: {path.name} is no state dict; save the network's state dict alone and pass that")
    # The classifier of ImageNet's classes.
    weights = {key: tensor for key, tensor in content.items() if not key.startswith("fc.")}
    if broken := first_not_finite(weights):
        raise InputError(f"{where}: {broken} is not finite; pass other weights")
    try:
        found = resnet_architecture(weights)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    _require_equal(found, student.config, where)
    if wrong := misfit(weights, student.backbone.state_dict()):
        hint = "; the deep stem is that of timm/resnet101s.gluon_in1k" if student.config.stem == "deep" else ""
        raise InputError(f"{where} is a ResNet of another kind: {wrong}{hint}")
    student.backbone.load_state_dict(weights, strict=False)
    logger.info("backbone from %s", name)
    return _described("backbone", name, path, commit)


def _fill_model(student: PreTrainedModel, name: str, revision: str | None) -> dict:
    where = f"--initial_model {name}"
    path, commit = locate(where, name, revision)
    model = load_model(name, device="cpu", revision=commit)
    ours, theirs = student.config, model.config
    fields = {field: getattr(theirs, field) for field in ARCHITECTURE}
    if ours.representation_channels and theirs.representation_channels:
        fields["representation_channels"] = theirs.representation_channels
    _require_equal(fields, ours, where)
    needed = student.state_dict()
    fitting = {k: v for k, v in model.state_dict().items() if k in needed and v.shape == needed[k].shape}
    fresh = _fresh_heads(needed, fitting)
    student.load_state_dict(fitting, strict=False)
    logger.info("weights from %s; fresh: %s", name, ", ".join(fresh) or "nothing")
    if list(ours.aspp_dilations) != list(theirs.aspp_dilations):
        logger.warning("%s learned with --aspp_dilations %s", where, " ".join(map(str, theirs.aspp_dilations)))
    if ours.num_labels == theirs.num_labels and ours.id2label != theirs.id2label:
        logger.warning("%s has as many classes of other names; its classifier is kept as it is", where)
    told = _described("model", name, path / WEIGHT_FILES[0] if path.is_dir() else path, commit)
    return told | ({"fresh": " and ".join(fresh)} if fresh else {})


def _require_equal(fields: Mapping[str, object], config, where: str) -> None:
    """Refuse weights of another architecture, naming what differs."""
    differ = {field: theirs for field, theirs in fields.items() if theirs != getattr(config, field)}
    if differ:
        theirs = ", ".join(f"{field} {value}" for field, value in differ.items())
        ours = ", ".join(str(getattr(config, field)) for field in differ)
        options = " ".join(f"--{field} {value}" for field, value in differ.items())
        raise InputError(f"{where} has {theirs}, this run {ours}: pass {options}")


def _fresh_heads(needed: Mapping[str, Tensor], fitting: Mapping[str, Tensor]) -> list[str]:
    """The heads that keep fresh weights, in words.

    Raises:
        InputError: something else than a head would.
    """
    absent = {name for name in needed if name not in fitting}
    fresh = []
    for head in HEADS:
        own = {name for name in needed if name.startswith(f"{head}.")}
        if own & absent:
            fresh.append(head if own <= absent else f"last layer of {head}")
        absent -= own
    if absent:
        raise InputError(f"--initial_model does not fit this network: there is nothing for {min(absent)}")
    return fresh


def _described(part: str, name: str, path: Path, commit: str | None) -> dict:
    """A folder's path means nothing elsewhere: its name does, with the file's digest."""
    told = {part: name if commit else Path(name).resolve().name, "commit": commit}
    told["sha256"] = sha256_of(path) if path.is_file() else None
    return {key: value for key, value in told.items() if value is not None}


def _described_other(args: RunArguments) -> dict:
    """What a backbone of transformers or timm starts from."""
    name = args.backbone_weights or args.backbone
    path = Path(name)
    if path.exists():
        return _described("backbone", name, path / WEIGHT_FILES[0] if path.is_dir() else path, None)
    revision = args.backbone_revision if args.backbone_weights is None else args.backbone_weights_revision
    return {"backbone": name, "commit": model_commit(name, revision)}


def locate(where: str, name: str, revision: str | None = None) -> tuple[Path, str | None]:
    """A file or folder on this disk; else the weights of a Hub repository, fetched, and their commit.

    Args:
        where: the option and its value, for messages.

    Raises:
        InputError: there is none, or it cannot be fetched.
    """
    path = Path(name)
    if path.exists():
        if revision is not None:
            raise InputError(f"{where} is on this disk, where revision {revision} has no meaning: pass none")
        return path, None
    check_there(where, name)
    file = _download(where, name, revision)
    return file, extract_commit_hash(str(file), None)


def _download(where: str, repo_id: str, revision: str | None) -> Path:
    try:
        for file in WEIGHT_FILES:
            try:
                path = Path(hf_hub_download(repo_id, file, revision=revision))
            except RemoteEntryNotFoundError:
                continue
            check_download(where, path)
            return path
    except InputError:
        raise
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{where}: no such folder, and no such repository on the Hub; for a private one run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{where}: no revision {revision}; pass a branch, tag or commit of it") from error
    except (HTTPError, OSError, ValueError) as error:
        # Not the error's own text, which may quote the token.
        status = f", status {error.response.status_code}" if isinstance(error, HfHubHTTPError) else ""
        fresh = f"; --backbone_weights {FRESH} starts from fresh ones" if where.startswith("--backbone_weights") else ""
        raise InputError(
            f"{where} cannot be fetched from the Hub ({type(error).__name__}{status}): mend the connection, or pass a "
            f"file or folder on this disk{fresh}"
        ) from error
    raise InputError(f"{where}: no {' or '.join(WEIGHT_FILES)} in it")
