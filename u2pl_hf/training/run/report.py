"""Facts of a run: what it begins with and ends in, results.json for the card, and the samples of the picture grid."""

import platform
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from u2pl_hf.data.source.sources import Source
from u2pl_hf.evaluation.inference import describe_protocol
from u2pl_hf.evaluation.loading import library_versions
from u2pl_hf.hub.dataset_license import dataset_license
from u2pl_hf.method.pseudo_labels import (
    IGNORE,
    default_low_rank,
    masked_quantile,
    pixel_entropy,
    resize_logits,
    split_at,
)
from u2pl_hf.method.step import MethodSettings
from u2pl_hf.pixels import normalize
from u2pl_hf.training.recipe.arguments import RunArguments


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


def describe_start(trainer, first: int) -> str:
    """Two lines about a run that begins at step `first`: what it computes on and with, and what comes when."""
    args, data = trainer.args, trainer.data
    place = hardware(trainer.accelerator.device, trainer.accelerator.num_processes)
    semi = args.method != "suponly"
    unlabelled = f", {len(data.unlabelled):,} unlabelled" if semi else ""
    warm_up = f", {args.warmup_steps:,} of them warm-up" if semi and args.warmup_steps else ""
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
    evaluate = ["evaluate.py", args.output_dir, "--dataset", args.dataset, "--subset", args.eval_subset]
    evaluate += [w for o in options if (v := getattr(args, o)) != getattr(usual, o) for w in (f"--{o}", v)]
    evaluate += ["--streaming"] if args.streaming else []
    evaluate += ["--mode", "slide", "--window", str(args.eval_window)] if args.eval_mode == "slide" else []
    predict = ["predict.py", args.output_dir, "PHOTO.jpg", "--output_dir", "predictions"]
    scripts = Path(sys.argv[0]).parent
    return [f"  python {shlex.join([str(scripts / name), *words])}" for name, *words in (evaluate, predict)]


def segment_options(args: RunArguments) -> dict:
    """How training evaluates, as the keyword arguments of `inference.segment`."""
    return {"mode": args.eval_mode} | ({"window": args.eval_window} if args.eval_mode == "slide" else {})


def gather_results(trainer, last: dict | None) -> dict:
    """Everything results.json and the card say; every number comes from the run.

    last: the last evaluation; None for the best model, whose own is `trainer.best`.
    """
    args, data, processes = trainer.args, trainer.data, trainer.accelerator.num_processes
    return {
        "method": args.method,
        "variant": args.variant if args.method != "suponly" else None,
        "settings": _changed_settings(trainer.method.settings),
        "dataset": args.dataset,
        "dataset_on_hub": args.dataset != "demo" and not Path(args.dataset).exists(),
        "dataset_revision": args.dataset_revision,
        "dataset_license": dataset_license(args.dataset, args.dataset_revision),
        "subset": args.eval_subset,
        "split": args.split,
        "num_labelled": len(data.labelled),
        "num_unlabelled": len(data.unlabelled),
        "left_out_unlabelled": data.left_out,
        "num_evaluation": len(data.evaluation.ids),
        "seed": args.seed,
        "max_steps": args.max_steps,
        "epochs": args.epochs or None,
        "warmup_steps": args.warmup_steps if args.method != "suponly" else None,
        "crop_size": args.crop_size,
        "batch_size_labelled": trainer.images_per_step[0],
        "batch_size_unlabelled": trainer.images_per_step[1] or None,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "learning_rate": trainer.learning_rate,
        **_backbone(trainer.student.config),
        "parameters": sum(p.numel() for p in trainer.student.parameters()),
        "initialised_with": trainer.initialised_with,
        "seconds": round(trainer.seconds, 1),
        "seconds_of": {what: round(seconds, 2) for what, seconds in trainer.seconds_of.items()},
        "hardware": hardware(trainer.accelerator.device, processes),
        "versions": library_versions(),
        "protocol": describe_protocol(**segment_options(args)),
        "class_names": data.class_names,
        "command": shlex.join(["accelerate", "launch", "training_scripts/train_u2pl.py", *sys.argv[1:]]),
        "skipped_unlabelled": len(trainer.batches.skipped),
        "last": last,
        "best": trainer.best,
        "pictures": f"pictures/step-{(last or trainer.best)['step']:06d}.png" if args.picture_samples else None,
        "curves": "curves.png",
        "output_dir": args.output_dir,
        "data": data.fingerprint,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _changed_settings(settings: MethodSettings) -> dict | None:
    """The method's settings that are not the default, besides those that are told by themselves."""
    usual = MethodSettings(settings.num_labels, low_rank=default_low_rank(settings.num_labels))
    told = {"num_labels", "variant", "warmup_steps", "rare_classes"}
    changed = {name: value for name, value in asdict(settings).items() if value != getattr(usual, name)}
    # Lists, as they come back from the file.
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
    return {name: value for name, value in lists.items() if name not in told} or None


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
def picture_samples(model: nn.Module, source: Source, number: int, alpha: float) -> list[dict]:
    """Images spread over the evaluation set with prediction, pseudo-label and entropy, one dict per row of the grid.

    The border between reliable and unreliable is drawn at alpha_0 of each image, since alpha is 0 at the end of a run.
    """
    device = next(model.parameters()).device
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
    gamma = masked_quantile(entropy, 1.0 - alpha, valid)
    prediction = logits.argmax(dim=1)
    _, unreliable = split_at(entropy, valid, gamma)
    return {
        "image": image,
        "ground_truth": source.read_label(index),
        "prediction": prediction[0].cpu().numpy(),
        "pseudo_label": prediction.masked_fill(unreliable, IGNORE)[0].cpu().numpy(),
        "entropy": entropy[0].cpu().numpy(),
        "gamma": float(gamma),
    }
