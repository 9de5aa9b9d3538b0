"""Weights that a run starts from instead of fresh ones: an ImageNet backbone, or a trained model.

Each process reads them for itself; when the model is prepared, DDP gives all processes the first one's.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import extract_commit_hash

from u2pl_hf.errors import InputError, refuse, refusing
from u2pl_hf.evaluation.loading import HUB_ID, first_not_finite, load_model
from u2pl_hf.files import sha256_of
from u2pl_hf.model.convert import mismatch, resnet_architecture
from u2pl_hf.training.recipe.arguments import FRESH, RunArguments
from u2pl_hf.training.run.checkpoint import read_state
from u2pl_hf.training.run.run_folder import RunFolder
from u2pl_hf.training.weights.backbones import load_backbone, weights_of_backbone
from u2pl_hf.training.weights.weights_file import WEIGHT_FILES, find_weights, is_state_dict, read_weights_file

logger = logging.getLogger(__name__)

# What must be equal for weights of one model to mean the same in another. Strides and dilations may differ: they are in
# no weight.
ARCHITECTURE = ("backbone", "stem", "base_width", "head", "head_channels")
# What may be no Hub id.
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
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
    option = "backbone_weights" if args.initial_model is None else "initial_model"
    name, revision = getattr(args, option), getattr(args, f"{option}_revision")
    if name not in (None, FRESH):
        _check_place(f"--{option} {name}", name, revision)
    if args.initial_model is not None:
        fresh = _fill_model(student, name, revision)
        return _origin("model", name, revision) | ({"fresh": " and ".join(fresh)} if fresh else {})
    name, revision = weights_of_backbone(args)
    if name in (None, FRESH):
        return None
    if student.config.backbone_config is None:
        _fill_resnet(student, name, revision)
    else:
        load_backbone(student, args)
    logger.info("backbone from %s", name)
    return _origin("backbone", name, revision)


def _check_place(where: str, name: str, revision: str | None) -> None:
    """Refuse what is neither on this disk nor could be on the Hub."""
    path = Path(name)
    on_hub = HUB_ID.fullmatch(name) and "/" in name and path.suffix not in SUFFIXES
    on_disk = f"{where} is on this disk, where revision {revision} has no meaning: pass none"
    refuse([
        (not path.exists() and not on_hub, f"{where}: no such file or folder; a Hub id has the form OWNER/NAME"),
        (path.exists() and revision is not None, on_disk),
    ])  # fmt: skip


def _fill_resnet(student: PreTrainedModel, name: str, revision: str | None) -> None:
    where = f"--backbone_weights {name}"
    path = find_weights(where, name, revision)
    content = read_weights_file(path)
    if not is_state_dict(content):
        raise InputError(f"{where}: {path.name} is no state dict; save the network's state dict alone and pass that")
    # The classifier of ImageNet's classes.
    weights = {key: tensor for key, tensor in content.items() if not key.startswith("fc.")}
    with refusing(ValueError, f"{where} cannot be used"):
        found = resnet_architecture(weights)
    _require_equal(found, student.config, where)
    wrong, broken = mismatch(weights, student.backbone.state_dict()), first_not_finite(weights)
    hint = "; the deep stem is that of timm/resnet101s.gluon_in1k" if student.config.stem == "deep" else ""
    refuse([
        (broken, f"{where}: {broken} is not finite; pass other weights"),
        (wrong, f"{where} is a ResNet of another kind: {wrong}{hint}"),
    ])  # fmt: skip
    student.backbone.load_state_dict(weights, strict=False)


def _fill_model(student: PreTrainedModel, name: str, revision: str | None) -> list[str]:
    """Returns the heads that keep fresh weights, in words."""
    where, model = f"--initial_model {name}", load_model(name, device="cpu", revision=revision)
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
    return fresh


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
    absent, fresh = needed.keys() - fitting.keys(), []
    for head in HEADS:
        own = {name for name in needed if name.startswith(f"{head}.")}
        if own & absent:
            fresh.append(head if own <= absent else f"last layer of {head}")
        absent -= own
    if absent:
        raise InputError(f"--initial_model does not fit this network: there is nothing for {min(absent)}")
    return fresh


def _origin(part: str, name: str, revision: str | None) -> dict:
    """What weights were. A folder's path means nothing elsewhere: its name does, with the file's digest."""
    path = Path(name)
    if path.exists():
        told, files = {part: path.resolve().name}, [path, *(path / file for file in WEIGHT_FILES)]
    else:
        # transformers does not tell the commit; the path in the cache does.
        known = (try_to_load_from_cache(name, f, revision=revision) for f in (*WEIGHT_FILES, "config.json"))
        files = [Path(file) for file in known if isinstance(file, str)]
        told = {part: name, "commit": extract_commit_hash(str(files[0]), None)} if files else {part: name}
    file = next((file for file in files if file.is_file() and file.suffix != ".json"), None)
    return told | ({"sha256": sha256_of(file)} if file else {})
