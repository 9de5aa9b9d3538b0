"""Facts of a run: what it begins with and ends in, results.json for the card, and the samples of the picture grid."""

import platform
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from u2pl_hf.data.source.sources import Source
from u2pl_hf.evaluation.inference import describe_protocol
from u2pl_hf.evaluation.loading import library_versions
from u2pl_hf.hub.dataset_license import dataset_license
from u2pl_hf.method import MethodSettings
from u2pl_hf.method.pseudo_labels import (
    IGNORE,
    masked_quantile,
    pixel_entropy,
    resize_logits,
    split_by_entropy,
)
from u2pl_hf.pixels import normalize
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.run.tracking import Clock

if TYPE_CHECKING:
    from u2pl_hf.training.build import Run

SCRIPT = "train_u2pl.py"
# Of pixels that pictures show as unreliable, where the method has no such share.
UNRELIABLE_SHARE = 0.2


def hardware(device: torch.device, processes: int) -> dict:
    """Where the run took place."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), "processes": processes}


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def describe_start(run: "Run", first: int) -> str:
    """Two lines about a run that begins at step `first`: what it computes on and with, and what comes when."""
    args, data, unlabelled_from = run.args, run.data, run.batches.unlabelled_from
    place = hardware(run.accelerator.device, run.accelerator.num_processes)
    unlabelled = f", {len(data.unlabelled):,} unlabelled" if run.size.unlabelled else ""
    warm_up = f", {unlabelled_from:,} of them warm-up" if unlabelled_from else ""
    return (
        f"{args.method} on {place['device']} ({place['name']}), processes: {place['processes']}; images: "
        f"{len(data.labelled):,} labelled{unlabelled}, {len(data.evaluation.ids):,} to evaluate on; classes: "
        f"{len(data.class_names)}\n"
        f"from step {first:,} to {args.max_steps:,}{warm_up}; evaluated "
        f"{f'every {args.eval_steps:,} and ' if args.eval_steps else ''}at the end; folder {args.output_dir}"
    )


def summary(args: RunArguments, results: dict) -> str:
    """What a finished run says to people: scores in per cent, its time, its folder, and what can be done with it."""
    last, best = results["last"], results["best"]
    rows = {"mean": (last["mean_iou"], best["mean_iou"])}
    rows |= {name: (iou, best["per_class_iou"].get(name)) for name, iou in last["per_class_iou"].items()}
    width = max(20, *map(len, rows))
    lines = [f"{'IoU in per cent':<{width}}  last    best (step {best['step']:,})"]
    for name, values in rows.items():
        told = ("-" if value is None else f"{100 * value:.2f}" for value in values)
        lines.append(f"{name:<{width}}  {next(told):<6}  {next(told)}")
    minutes = f"{results['seconds'] / 60:,.1f} minutes"
    return "\n".join(
        [*lines, f"{args.output_dir}: {args.max_steps:,} steps in {minutes}; next:", *_next_commands(args)]
    )


def _next_commands(args: RunArguments) -> list[str]:
    options = ("dataset_revision", "id_column", "image_column", "label_column")
    usual = RunArguments()
    evaluate = ["evaluate", args.output_dir, "--dataset", args.dataset, "--subset", args.eval_subset]
    evaluate += [w for o in options if (v := getattr(args, o)) != getattr(usual, o) for w in (f"--{o}", v)]
    evaluate += ["--streaming"] if args.streaming else []
    evaluate += ["--mode", "slide", "--window", str(args.eval_window)] if args.eval_mode == "slide" else []
    predict = ["predict", args.output_dir, "PHOTO.jpg", "--output_dir", "predictions"]
    return [f"  {shlex.join([*_started_like_this(name), *words])}" for name, *words in (evaluate, predict)]


def _started_like_this(command: str) -> list[str]:
    """How another command is started where this one was `python training_scripts/train_u2pl.py`, or `u2pl train`."""
    script = Path(sys.argv[0])
    return ["python", str(script.with_name(f"{command}.py"))] if script.name == SCRIPT else ["u2pl", command]


def gather_results(run: "Run", clock: Clock, best: dict, last: dict | None) -> dict:
    """Everything results.json and the card say; every number comes from the run.

    best, last: evaluations; of the best model, which is exported before the end, there is no last.
    """
    args, data, settings = run.args, run.data, run.args.settings
    return {
        "method": args.method,
        "method_title": args.step_class.title,
        "method_about": args.step_class.about,
        "variant": getattr(settings, "variant", None),
        "settings": _changed_settings(settings),
        "dataset": args.dataset,
        "dataset_on_hub": args.dataset != "demo" and not Path(args.dataset).exists(),
        "dataset_revision": args.dataset_revision,
        "dataset_license": dataset_license(args.dataset, args.dataset_revision),
        "subset": args.eval_subset,
        "split": args.split,
        "num_labelled": len(data.labelled),
        "num_unlabelled": len(data.unlabelled) if run.size.unlabelled else 0,
        "left_out_unlabelled": data.left_out,
        "num_evaluation": len(data.evaluation.ids),
        "seed": args.seed,
        "max_steps": args.max_steps,
        "epochs": args.epochs or None,
        "warmup_steps": getattr(settings, "warmup_steps", None),
        "crop_size": args.crop_size,
        "batch_size_labelled": run.size.labelled,
        "batch_size_unlabelled": run.size.unlabelled or None,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "optimizer": args.optimizer,
        "learning_rate": run.learning_rate,
        **_backbone(run.student.config),
        "parameters": sum(p.numel() for p in run.student.parameters()),
        "initialised_with": run.initialised_with,
        "seconds": round(clock.seconds, 1),
        "seconds_of": {what: round(seconds, 2) for what, seconds in clock.seconds_of.items()},
        "hardware": hardware(run.accelerator.device, run.accelerator.num_processes),
        "versions": library_versions(),
        "protocol": describe_protocol(**args.evaluation),
        "class_names": data.class_names,
        "command": _command(),
        "skipped_unlabelled": len(run.batches.skipped),
        "last": last,
        "best": best,
        "pictures": f"pictures/step-{(last or best)['step']:06d}.png" if args.picture_samples else None,
        "curves": "curves.png",
        "output_dir": args.output_dir,
        "data": data.fingerprint,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _command() -> str | None:
    """What started this run; None where that was Python, as in a notebook."""
    started = {SCRIPT: ["accelerate", "launch", f"training_scripts/{SCRIPT}"], "u2pl train": ["u2pl", "train"]}
    words = started.get(Path(sys.argv[0]).name)
    return shlex.join([*words, *sys.argv[1:]]) if words else None


def _changed_settings(settings: MethodSettings) -> dict | None:
    """The method's settings that are not the default, besides those that are told by themselves."""
    told, usual = {"variant", "warmup_steps", "warmup_epochs"}, type(settings)()
    changed = {name: value for name, value in asdict(settings).items() if value != getattr(usual, name)}
    return {name: value for name, value in changed.items() if name not in told} or None


def _backbone(config: PreTrainedConfig) -> dict:
    """Its name, and what the name leaves open."""
    own = config.backbone_config
    if own is None:
        names = ("stem", "base_width", "output_stride")
        return {"backbone": config.backbone, "architecture": {name: getattr(config, name) for name in names}}
    if own.model_type == "timm_backbone":
        chosen = {"output_stride": own.output_stride} if own.output_stride else None
        return {"backbone": f"timm/{own.backbone}", "architecture": chosen}
    return {"backbone": config.backbone, "architecture": None}


def score(evaluation: dict) -> float:
    """What "best" compares; an evaluation set without any labelled pixel has no mean IoU."""
    return -1.0 if evaluation["mean_iou"] is None else evaluation["mean_iou"]


@torch.no_grad()
def picture_samples(model: nn.Module, source: Source, number: int, settings: MethodSettings) -> list[dict]:
    """Images spread over the evaluation set with prediction, pseudo-label and entropy, one dict per row of the grid.

    The border between reliable and unreliable is drawn at alpha_0 of each image, since alpha is 0 at the end of a run.
    """
    device, alpha = next(model.parameters()).device, getattr(settings, "unreliable_share", UNRELIABLE_SHARE)
    was_training = model.training
    model.eval()
    places = np.unique(np.linspace(0, len(source.ids) - 1, min(number, len(source.ids))).round().astype(int))
    samples = [_picture_sample(model, source, int(index), alpha, device) for index in places]
    model.train(was_training)
    return samples


def _picture_sample(model: nn.Module, source: Source, index: int, alpha: float, device: torch.device) -> dict:
    image = source.read_image(index)
    pixels = normalize(torch.tensor(image).permute(2, 0, 1)[None].to(device), None)
    logits = resize_logits(model(pixels, output_representation=False, output_auxiliary=False).logits, pixels.shape[-2:])
    entropy = pixel_entropy(logits)
    valid = torch.ones_like(entropy, dtype=torch.bool)
    prediction = logits.argmax(dim=1)
    _, unreliable = split_by_entropy(entropy, valid, alpha)
    return {
        "image": image,
        "ground_truth": source.read_label(index),
        "prediction": prediction[0].cpu().numpy(),
        "pseudo_label": prediction.masked_fill(unreliable, IGNORE)[0].cpu().numpy(),
        "entropy": entropy[0].cpu().numpy(),
        "gamma": float(masked_quantile(entropy, 1.0 - alpha, valid)),
    }
