"""Facts of a run: what it begins with and ends in, results.json for the card, and the samples of the picture grid."""

import platform
import re
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from u2pl_hf.data.sources import Source
from u2pl_hf.evaluation.inference import describe_protocol, predict_all
from u2pl_hf.evaluation.loading import library_versions
from u2pl_hf.hub.dataset_license import dataset_license
from u2pl_hf.method import MethodSettings
from u2pl_hf.method.pseudo_labels import IGNORE, masked_quantile, split_by_entropy
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.run.tracking import Clock

if TYPE_CHECKING:
    from u2pl_hf.training.build import Run

SCRIPT = "train_u2pl.py"
# Of pixels that pictures show as unreliable, where the method has no such share.
UNRELIABLE_SHARE = 0.2
# Mean IoU by which the best evaluation must beat the last one to be kept instead (--keep_best). The best of several is
# picked on the images that it is measured on, so that a smaller lead may be luck.
KEEP_MARGIN = 0.01
# What results.json calls as the arguments do; not all methods have all of them.
ARGUMENTS = ("method", "variant", "dataset", "dataset_revision", "split", "seed", "max_steps", "warmup_steps",
             "crop_size", "gradient_accumulation_steps", "optimizer", "frozen", "output_dir")  # fmt: skip


def hardware(device: torch.device, processes: int) -> dict:
    """Where the run took place."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), "processes": processes}


def peak_memory(device: torch.device) -> int | None:
    """The most that this process has held at once, in MB: of the GPU, or, on a CPU, in all; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 1_000_000
    if find_spec("resource") is None:
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1_000_000 if sys.platform == "darwin" else most * 1024 // 1_000_000


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.*\S)", info.read_text()) if info.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


def describe_start(run: "Run", first: int) -> str:
    """Two lines about a run that begins at step `first`: what it computes on and with, and what comes when."""
    args, data = run.args, run.data
    warm_up = args.step_class.latest_start(args.settings, args.max_steps)
    at_most = "at most " if warm_up > run.batches.unlabelled_from else ""
    place = hardware(run.accelerator.device, run.accelerator.num_processes)
    unlabelled = f", {len(data.unlabelled):,} unlabelled" if run.size.unlabelled else ""
    _, seen = run.size.seen_in(args.max_steps, run.batches.unlabelled_from)
    if 0 < seen < len(data.unlabelled):
        unlabelled += f" (the steps see {seen:,} of them)"
    return (
        f"{args.method} on {place['device']} ({place['name']}), processes: {place['processes']}; images: "
        f"{len(data.labelled):,} labelled{unlabelled}, {len(data.evaluation.ids):,} to evaluate on; classes: "
        f"{len(data.class_names)}\nfrom step {first:,} to {args.max_steps:,}"
        f"{f', {at_most}{warm_up:,} of them warm-up' if warm_up else ''}; evaluated "
        f"{f'every {args.eval_steps:,} and ' if args.eval_steps else ''}at the end; folder {args.output_dir}"
    )


def summary(args: RunArguments, results: dict) -> str:
    """What a finished run says to people: scores in per cent, its time, its folder, and what can be done with it."""
    last, best = results["last"], results["best"]
    rows = [("mean", last["mean_iou"], best["mean_iou"])]
    rows += [(name, iou, best["per_class_iou"].get(name)) for name, iou in last["per_class_iou"].items()]
    kept, width = results.get("model_step"), max(20, *(len(name) for name, *_ in rows))
    lines = [f"{'IoU in per cent':<{width}}  last    best (step {best['step']:,})"]
    for name, *values in rows:
        told = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        lines.append(f"{name:<{width}}  {told[0]:<6}  {told[1]}")
    lines.append(f"{args.output_dir}: {args.max_steps:,} steps in {results['seconds'] / 60:,.1f} minutes; next:")
    if kept not in (None, last["step"]):
        lines.insert(-1, f"the model is that of step {kept:,} (--keep_best {args.keep_best})")
    return "\n".join([*lines, *_next_commands(args)])


def _next_commands(args: RunArguments) -> list[str]:
    options = ("dataset_revision", "id_column", "image_column", "label_column")
    usual = RunArguments()
    predict = ["predict", args.output_dir, "PHOTO.jpg", "--output_dir", "predictions"]
    if args.fold:  # No subset holds its images.
        return _lines(predict)
    evaluate = ["evaluate", args.output_dir, "--dataset", args.dataset, "--subset", args.eval_subset]
    evaluate += [w for o in options if (v := getattr(args, o)) != getattr(usual, o) for w in (f"--{o}", v)]
    evaluate += ["--streaming"] if args.streaming else []
    evaluate += ["--mode", "slide", "--window", str(args.eval_window)] if args.eval_mode == "slide" else []
    return _lines(evaluate, predict)


def _lines(*commands: list[str]) -> list[str]:
    return [f"  {shlex.join([*_started_like_this(name), *words])}" for name, *words in commands]


def _started_like_this(command: str) -> list[str]:
    """How another command is started where this one was `python training_scripts/train_u2pl.py`, or `u2pl train`."""
    script = Path(sys.argv[0])
    return ["python", str(script.with_name(f"{command}.py"))] if script.name == SCRIPT else ["u2pl", command]


def gather_results(
    run: "Run", clock: Clock, best: dict, last: dict | None, model_step: int, health: list[dict]
) -> dict:
    """Everything results.json and the card say; every number comes from the run.

    Args:
        best, last: evaluations; of the best model, which is exported before the end, there is no last.
        model_step: of the model that these results lie beside.
        health: what the run was told of.
    """
    args, data, found = run.args, run.data, run.method.found()
    return {name: getattr(args, name, None) for name in ARGUMENTS} | {
        "method_title": args.step_class.title,
        "method_about": args.step_class.described(args.settings),
        "settings": _changed_settings(args.settings),
        "dataset_on_hub": args.dataset != "demo" and not Path(args.dataset).exists(),
        "dataset_license": dataset_license(args.dataset, args.dataset_revision),
        "subset": args.evaluated_on,
        "num_labelled": len(data.labelled),
        "num_unlabelled": len(data.unlabelled) if run.size.unlabelled else 0,
        "left_out_unlabelled": data.left_out,
        "skipped_unlabelled": len(run.batches.skipped),
        "num_evaluation": len(data.evaluation.ids),
        "epochs": args.epochs or None,
        "batch_size_labelled": run.size.labelled,
        "batch_size_unlabelled": run.size.unlabelled or None,
        "learning_rate": run.learning_rate,
        **_backbone(run.student.config),
        "parameters": run.student.num_parameters(),
        "initialised_with": run.initialised_with,
        "seconds": round(clock.seconds, 1),
        "seconds_of": {what: round(seconds, 2) for what, seconds in clock.seconds_of.items()},
        "peak_memory_mb": peak_memory(run.accelerator.device),
        "hardware": hardware(run.accelerator.device, run.accelerator.num_processes),
        "versions": library_versions(),
        "protocol": describe_protocol(**args.evaluation),
        "class_names": data.class_names,
        "command": _command(),
        "last": last,
        "best": best,
        "model_step": model_step,
        "health": health,
        "pictures": f"pictures/step-{model_step:06d}.png" if args.picture_samples else None,
        "curves": "curves.png",
        "data": data.fingerprint,
        "date": datetime.now(timezone.utc).date().isoformat(),
        **(found | {"found": [*found]} if found else {}),
    }


def _command() -> str | None:
    """What started this run; None where that was Python, as in a notebook."""
    started = {SCRIPT: ["accelerate", "launch", f"training_scripts/{SCRIPT}"], "u2pl train": ["u2pl", "train"]}
    words = started.get(Path(sys.argv[0]).name)
    return shlex.join([*words, *sys.argv[1:]]) if words else None


def _changed_settings(settings: MethodSettings) -> dict | None:
    """The method's settings that are not the default, besides those that are told by themselves."""
    told, usual = {"variant", "warmup_steps", "warmup_epochs"}, asdict(type(settings)().settled())
    settled = asdict(settings.settled())
    return {name: v for name, v in settled.items() if name not in told and v != usual[name]} or None


def _backbone(config: PreTrainedConfig) -> dict:
    """Its name, and what the name leaves open."""
    own, name, chosen = config.backbone_config, config.backbone, None
    if own is None:
        chosen = {field: getattr(config, field) for field in ("stem", "base_width", "output_stride")}
    elif own.model_type == "timm_backbone":
        name, chosen = f"timm/{own.backbone}", {"output_stride": own.output_stride} if own.output_stride else None
    if config.head != "deeplabv3plus":
        chosen = {"head": config.head} | (chosen or {})
    return {"backbone": name, "architecture": chosen}


def score(evaluation: dict) -> float:
    """What "best" compares; an evaluation set without any labelled pixel has no mean IoU."""
    return -1.0 if evaluation["mean_iou"] is None else evaluation["mean_iou"]


def kept_step(keep_best: str, best: dict, last: dict) -> int:
    """The step whose model a finished run leaves: of two evaluations the best one where it is so much better."""
    is_better = score(best) - score(last) >= KEEP_MARGIN
    return best["step"] if keep_best != "none" and is_better else last["step"]


def picture_samples(model: nn.Module, source: Source, number: int, settings: MethodSettings) -> list[dict]:
    """Images spread over the evaluation set with prediction, pseudo-label and entropy, one dict per row of the grid.

    The border between reliable and unreliable is drawn at alpha_0 of each image, since alpha is 0 at the end of a run.
    """
    alpha, last = getattr(settings, "unreliable_share", UNRELIABLE_SHARE), len(source.ids) - 1
    places = np.unique(np.linspace(0, last, min(number, last + 1)).round().astype(int))
    return [_picture_sample(model, source, int(index), alpha) for index in places]


def _picture_sample(model: nn.Module, source: Source, index: int, alpha: float) -> dict:
    (found,) = predict_all(model, [source.read_image(index)], mode="whole")
    entropy = torch.from_numpy(found.entropy)
    valid = torch.ones_like(entropy, dtype=torch.bool)
    _, unreliable = split_by_entropy(entropy, valid, alpha)
    return {
        "image": found.image,
        "ground_truth": source.read_label(index),
        "prediction": found.labels,
        "pseudo_label": np.where(unreliable, IGNORE, found.labels),
        "entropy": found.entropy,
        "gamma": float(masked_quantile(entropy, 1.0 - alpha, valid)),
    }
