"""Checkpoints of the published code: which network of a file to take, its classes, and the export of it."""

import contextlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from u2pl_hf.constants import default_palette
from u2pl_hf.data.prepare.layouts import cityscapes, coco, voc
from u2pl_hf.data.source.class_list import ClassList, read_class_list
from u2pl_hf.errors import refuse, refusing
from u2pl_hf.files import sha256_of
from u2pl_hf.model.configuration_u2pl import U2PLConfig
from u2pl_hf.model.convert import load_published
from u2pl_hf.training.run.model_folder import EXPORTED, export_model
from u2pl_hf.training.run.run_folder import refuse_file
from u2pl_hf.training.weights.weights_file import is_state_dict, read_weights_file

logger = logging.getLogger(__name__)

# Entries of U2PL's checkpoints, and of UniMatch V2's.
NETWORKS = {"teacher": ("teacher_state", "model_ema"), "student": ("model_state", "model")}
DATASETS = {"voc": voc.CLASSES, "cityscapes": cityscapes.CLASSES, "coco": ClassList(("background", *coco.NAMES))}


def convert_checkpoint(
    path: Path,
    output_dir: Path,
    *,
    weights: str = "auto",
    dataset: str | None = None,
    class_names: Path | None = None,
    output_stride: int = 8,
    aspp_dilations: Sequence[int] = (12, 24, 36),
    overwrite: bool = False,
) -> dict:
    """Write a published checkpoint as a folder like those that training exports.

    Args:
        path: .pth, or .safetensors of the same tensors.
        weights: teacher, student, or auto: the teacher where there is one.
        dataset: voc, cityscapes, or none for class_0, class_1 ...; None: by the number of classes.
        class_names: a class list, instead.
        output_stride, aspp_dilations: of the network; its weights do not tell.
        overwrite: replace an earlier export.

    Returns:
        The facts of the conversion, ready for JSON.

    Raises:
        InputError: the file cannot be used, or the folder cannot be written.
    """
    path, output_dir = Path(path), Path(output_dir).resolve()
    _check_export(path, output_dir, overwrite)
    three = len(aspp_dilations) == 3 and min(aspp_dilations) >= 1
    refuse([
        (dataset and class_names, "--dataset and --class_names both name the classes: pass one of them"),
        (not three, "--aspp_dilations must be three positive numbers, such as 12 24 36"),
    ])  # fmt: skip
    classes, whose = (read_class_list(class_names), Path(class_names).name) if class_names else (None, None)
    option = f"--class_names {class_names}" if class_names else f"--dataset {dataset}"
    state_dict, said = read_published(path, weights)
    fields = {"output_stride": output_stride, "aspp_dilations": list(aspp_dilations)}
    with refusing(ValueError, f"{path} cannot be converted"):
        model = load_published(state_dict, **fields)
    given = output_stride != 8 or list(aspp_dilations) != [12, 24, 36]
    meant = f"--output_stride and --aspp_dilations are of DeepLabv3+, but {path.name} holds DPT: leave them out"
    refuse([(given and model.config.head != "deeplabv3plus", meant)])
    if classes is None:
        classes, whose = known_classes(model.config.num_labels, dataset)
    _name_classes(model.config, classes, option)
    facts = {"file": path.name, "sha256": sha256_of(path)} | said | {"class_names_of": whose}
    network = {"backbone": model.config.backbone, "parameters": model.num_parameters()}
    if model.config.head != "deeplabv3plus":
        # It has neither stride nor ASPP.
        network["architecture"], fields = {"head": model.config.head}, {}
    card = {"model_name": f"u2pl-{model.config.backbone}", "class_names": list(classes.names)}
    with refusing((OSError, SafetensorError), f"cannot write {output_dir}"):
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        export_model(output_dir, model, card | network | {"converted_from": facts | fields})
    return {"output_dir": str(output_dir), "num_labels": len(classes.names)} | network | facts


def _check_export(path: Path, output_dir: Path, overwrite: bool) -> None:
    """Refuse to write where something is, or, with `overwrite`, where something else than an export is."""
    refuse_file(str(output_dir), output_dir)
    names = sorted(entry.name for entry in output_dir.iterdir()) if output_dir.exists() else []
    others = [name for name in names if name not in EXPORTED]
    another = "pass another folder"
    refuse([
        (names and not overwrite, f"{output_dir} is not empty: {another}, or --overwrite to replace an earlier export"),
        (others, f"{output_dir} holds more than an exported model, such as {''.join(others[:1])}: {another}"),
        (path.resolve().parent == output_dir, f"{path} would be overwritten: {another}"),
    ])  # fmt: skip


def read_published(path: Path, weights: str = "auto") -> tuple[dict[str, Tensor], dict]:
    """Read a published file and choose the network.

    Args:
        weights: teacher, student or auto.

    Returns:
        Its state dict, and what the file says of it: `weights`, teacher, student, or unnamed where the file is a bare
        state dict; `epoch` and `best_miou`, None where it does not have them. The published code writes epochs from 1
        or from 0, and some of its files hold the best mIoU of the epochs before this one.

    Raises:
        InputError: the file cannot be read, holds no network, or not the one asked for.
    """
    content = read_weights_file(path)
    refuse([(not isinstance(content, dict), f"{path} holds a {type(content).__name__}, not a checkpoint")])
    # Files without nesting have `teacher_state.` and `model_state.` in front of their names.
    keys = [key for entries in NETWORKS.values() for key in entries]
    for key in keys:
        inside = {str(n).removeprefix(f"{key}."): v for n, v in content.items() if str(n).startswith(f"{key}.")}
        content = content | ({key: inside} if inside else {})
    networks = {
        name: content[key] for name, entries in NETWORKS.items() for key in entries if content.get(key) is not None
    }
    if not networks and is_state_dict(content):
        networks = {"unnamed": content}
    entries = ", ".join(map(str, list(content)[:5])) or "nothing"
    refuse([
        (not networks, f"{path} is no published checkpoint: no {' or '.join(keys)}, but {entries}"),
        *((not is_state_dict(n), f"{path}: its {name} is no state dict of tensors") for name, n in networks.items()),
    ])  # fmt: skip
    classes = {name: _count_classes(network) for name, network in networks.items()}
    told = ", ".join(f"a {name} with {number}" for name, number in classes.items())
    asked, there = weights != "auto", " and ".join(networks)
    differ = len(set(classes.values())) > 1 and not asked
    refuse([
        (asked and weights not in networks, f"{path} holds no {weights}, but {there}: pass --weights auto"),
        (differ, f"{path} holds two networks with different classes, {told}: choose one with --weights"),
    ])  # fmt: skip
    chosen = weights if asked else next(iter(networks))
    best = content.get("best_miou", content.get("previous_best_ema" if chosen == "teacher" else "previous_best"))
    numbers = {"epoch": _number(content.get("epoch"), int), "best_miou": _number(best, float)}
    return networks[chosen], {"weights": chosen} | numbers


def _count_classes(network: dict[str, Tensor]) -> int | None:
    ends = ("decoder.classifier.8.weight", "head.scratch.output_conv.2.weight")
    last = [tensor for name, tensor in network.items() if name.endswith(ends) and tensor.ndim]
    return len(last[0]) if last else None


def _number(value, kind: type):
    """An int or float, whatever kind of number the file has; None if it is none."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
        if math.isfinite(number := kind(value)):
            return number
    return None


def known_classes(num_labels: int, dataset: str | None) -> tuple[ClassList, str | None]:
    """Classes for a network without a list of its own, and whose they are, in words.

    Args:
        dataset: voc, cityscapes or none; None: the one with that many classes, which the log then tells.
    """
    if dataset in DATASETS:
        return DATASETS[dataset], dataset
    guess = next((name for name, known in DATASETS.items() if len(known.names) == num_labels), None)
    if dataset is None and guess is not None:
        logger.warning(
            "%d classes: taken for those of --dataset %s; pass --class_names FILE if they are others", num_labels, guess
        )
        return DATASETS[guess], f"{guess}, by their number"
    logger.warning("%d classes without names: called class_0, class_1 ...; --class_names FILE names them", num_labels)
    return ClassList(tuple(f"class_{i}" for i in range(num_labels))), None


def _name_classes(config: U2PLConfig, classes: ClassList, option: str) -> None:
    number = len(classes.names)
    refuse([(number != config.num_labels, f"{option} has {number} classes, the checkpoint {config.num_labels}")])
    config.id2label = dict(enumerate(classes.names))
    config.label2id = {name: i for i, name in enumerate(classes.names)}
    has_rgb = classes.colours is not None and len(classes.colours[0]) == 3
    config.palette = [list(colour) for colour in classes.colours] if has_rgb else default_palette(number)
