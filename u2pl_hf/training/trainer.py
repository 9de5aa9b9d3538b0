"""The training loop: streams -> step -> optimizer -> teacher, evaluation, checkpoints, and what a run leaves behind."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.data.transforms import normalize
from u2pl_hf.evaluation.inference import build_image_processor, evaluate_model
from u2pl_hf.evaluation.pictures import default_palette, picture_grid
from u2pl_hf.hub.model_card import render_card
from u2pl_hf.method.schedules import poly_factor
from u2pl_hf.method.step import Batch, build_step
from u2pl_hf.training.arguments import RunArguments
from u2pl_hf.training.checkpoint import RunFolder, load_checkpoint, write_atomically, write_json
from u2pl_hf.training.inputs import SkippedImages, load_training_data, training_loaders
from u2pl_hf.training.precision import (
    build_sgd,
    lay_out,
    memory_format,
    prepare_device,
    tune_networks,
    without_tuning,
)
from u2pl_hf.training.report import gather_results, picture_samples, segment_options
from u2pl_hf.training.tracking import Tracker

logger = logging.getLogger(__name__)


class Trainer:
    """One run of one recipe.

    Args:
        args: checked arguments.

    Raises:
        InputError: data set, split, labels or output folder cannot be used.
    """

    def __init__(self, args: RunArguments):
        self.args = args
        self.folder = RunFolder(args)
        self.folder.check()
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        prepare_device(args, self.accelerator.device)
        if self.accelerator.device.type == "cpu":
            # Launchers set one thread per process, which would leave cores idle.
            torch.set_num_threads(args.cpu_threads or max(1, cpu_cores() // self.accelerator.num_processes))
        self.data = load_training_data(args)
        self.folder.check_labelled_ids(self.data.labelled_ids)
        settings = args.method_settings(len(self.data.class_names))
        torch.manual_seed(args.seed)
        self.student = build_model(args, self.data.class_names, self.data.palette).to(
            self.accelerator.device, memory_format=memory_format(args)
        )
        self.method = build_step(args.method, settings, self.student).to(self.accelerator.device)
        self.optimizer = build_optimizer(args, self.student)
        self.wrapped_student, self.optimizer = self.accelerator.prepare(self.student, self.optimizer)
        tune_networks(args, self.student, self.method)
        self.best: dict | None = None
        self.skipped = SkippedImages()
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent on this run, evaluations and earlier parts of a resumed run included."""
        return time.perf_counter() - self.started

    def train(self) -> dict:
        """Run to the last step and return the results (also in results.json). A finished run returns at once."""
        results = self.folder.finished_results()
        if results is not None:
            logger.info("%s is finished already", self.folder.path)
            return results
        self.started = time.perf_counter()
        first = self._resume()
        if self.accelerator.is_main_process:
            self.folder.start(self.data.labelled_ids)
            self.folder.trim_metrics(first)
        self.accelerator.wait_for_everyone()
        tracker = self._tracker(first)
        batches_l, batches_u = self._loaders(first)
        for step in range(first, self.args.max_steps):
            seed_step(self.args.seed, self.accelerator.process_index, step)
            self.method.begin(self.student, step)
            learning_rate = self._set_learning_rate(step)
            batch = self._batch(batches_l, batches_u, step)
            with self.accelerator.autocast():
                output = self.method(self.wrapped_student, batch, step, self.args.max_steps)
            self.accelerator.backward(output.total)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.method.finish(self.student, step)
            tracker.step(step + 1, output.named | output.stats, learning_rate)
            last = self._evaluate_and_save(step + 1, tracker)
        tracker.close()
        return self._finish(last)

    def plan(self) -> dict:
        """What `train` would do, as numbers."""
        args, processes = self.args, self.accelerator.num_processes
        unlabelled = args.unlabelled_batch_size if self.method.uses_unlabelled else 0
        return {
            "labelled_images": len(self.data.labelled),
            "unlabelled_images": len(self.data.unlabelled),
            "evaluation_images": len(self.data.evaluation.ids),
            "classes": len(self.data.class_names),
            "steps": args.max_steps,
            "processes": processes,
            "global_batch": {"labelled": args.batch_size * processes, "unlabelled": unlabelled * processes},
            "labelled_epochs": args.max_steps * args.batch_size * processes / len(self.data.labelled),
            "unlabelled_epochs": (args.max_steps - args.warmup_steps)
            * unlabelled
            * processes
            / max(len(self.data.unlabelled), 1),
            "learning_rate": args.learning_rate,
            "head_learning_rate": args.learning_rate * args.head_lr_factor,
            "parameters": sum(p.numel() for p in self.student.parameters()),
        }

    def _resume(self) -> int:
        """Load the checkpoint to go on from, if any; returns the first step to do."""
        checkpoint = self.folder.checkpoint_to_resume()
        if checkpoint is None:
            return 0
        state = load_checkpoint(checkpoint, self.student, self.method, self.optimizer)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.started -= state["seconds"]
        logger.info("resuming from %s", checkpoint)
        return state["step"]

    def _tracker(self, first: int) -> Tracker:
        args = self.args
        per_process = args.batch_size + (args.unlabelled_batch_size if self.method.uses_unlabelled else 0)
        return Tracker(
            self.folder.metrics_path,
            total=args.max_steps,
            initial=first,
            images_per_step=per_process * self.accelerator.num_processes,
            every=args.logging_steps,
            main=self.accelerator.is_main_process,
        )

    def _loaders(self, first: int):
        loaders = training_loaders(
            self.args,
            self.data,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start_step=first,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return tuple(iter(loader) if loader is not None else None for loader in loaders)

    def _batch(self, batches_l, batches_u, step: int) -> Batch:
        x_l, y_l, _ = self._to_device(next(batches_l))
        if batches_u is None or step < self.args.warmup_steps:
            return Batch(x_l, y_l)
        unlabelled = next(batches_u)
        self.skipped.note(unlabelled["skipped"])
        x_u, y_u, valid_u = self._to_device(unlabelled)
        return Batch(x_l, y_l, x_u, valid_u, y_u)

    def _to_device(self, batch: dict) -> tuple[Tensor, Tensor | None, Tensor]:
        """uint8 travels; normalisation happens on the device."""
        device = self.accelerator.device
        pixels, valid = (batch[name].to(device, non_blocking=True) for name in ("pixel_values", "valid"))
        labels = batch["labels"].to(device, non_blocking=True).long() if "labels" in batch else None
        return lay_out(normalize(pixels, valid), self.args), labels, valid

    def _set_learning_rate(self, step: int) -> float:
        """Poly schedule; returns the base learning rate of this step."""
        rate = self.args.learning_rate * poly_factor(step / self.args.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def _evaluate_and_save(self, step: int, tracker: Tracker) -> dict | None:
        """Evaluate, export the best, write a checkpoint where they are due; returns the evaluation."""
        args, result = self.args, None
        evaluate = step == args.max_steps or bool(args.eval_steps and step % args.eval_steps == 0)
        save = step < args.max_steps and (evaluate or bool(args.save_steps and step % args.save_steps == 0))
        if evaluate or save:
            self._average_buffers()
        if evaluate:
            model = self.method.evaluated(self.student, step)
            result = {"step": step} | self._evaluate(model)
            tracker.evaluation(step, result)
            if self.best is None or _score(result) > _score(self.best):
                self.best = result
                self._export(
                    model, self.folder.path / "best", gather_results(self, result) | {"pictures": None, "last": None}
                )
            if args.picture_samples and self.accelerator.is_main_process:
                self._draw(model, step)
        if save:
            self._save_checkpoint(step)
        return result

    def _average_buffers(self) -> None:
        """Make BatchNorm statistics equal on all processes: each has seen other images since the last time.

        Otherwise every process would evaluate a model of its own, and none of them would be the exported one.
        """
        if self.accelerator.num_processes > 1:
            for model in (self.student, *self.method.children()):
                for name, buffer in model.named_buffers():
                    if name.endswith(("running_mean", "running_var")):
                        buffer.copy_(self.accelerator.reduce(buffer, reduction="mean"))

    def _evaluate(self, model: nn.Module) -> dict:
        with without_tuning(self.args), self.accelerator.autocast():
            return evaluate_model(
                model,
                self.data.evaluation,
                range(len(self.data.evaluation.ids)),
                device=self.accelerator.device,
                batch_size=self.args.eval_batch_size,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                **segment_options(self.args),
            )

    def _draw(self, model: nn.Module, step: int) -> None:
        with without_tuning(self.args):
            samples = picture_samples(
                model, self.data.evaluation, self.args.picture_samples, self.args.unreliable_share
            )
        path = self.folder.path / "pictures" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        picture_grid(samples, model.config.palette, self.data.class_names).save(path)

    def _save_checkpoint(self, step: int) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {"best": self.best, "seconds": self.seconds, "scaler": scaler.state_dict() if scaler else None}
            self.folder.save_checkpoint(step, self.student, self.method, self.optimizer, state)
        self.accelerator.wait_for_everyone()

    def _export(self, model: nn.Module, folder: Path, results: dict) -> None:
        """Write a model that from_pretrained loads, with image processor and card."""
        if not self.accelerator.is_main_process:
            return

        def write(path: Path) -> None:
            model.save_pretrained(path)
            build_image_processor().save_pretrained(path)
            (path / "README.md").write_text(render_card(results))

        write_atomically(folder, write)

    def _finish(self, last: dict) -> dict:
        """Export the last model into the run folder itself and write results.json, which marks the run as finished."""
        results = gather_results(self, last)
        if self.accelerator.is_main_process:
            model = self.method.evaluated(self.student, self.args.max_steps)
            self._export(model, self.folder.path / "last", results)
            for file in (self.folder.path / "last").iterdir():
                file.replace(self.folder.path / file.name)
            (self.folder.path / "last").rmdir()
            write_json(self.folder.results_path, results)
        self.accelerator.wait_for_everyone()
        return results


def _score(evaluation: dict) -> float:
    """What "best" compares; an evaluation set without any labelled pixel has no mean IoU."""
    return -1.0 if evaluation["mean_iou"] is None else evaluation["mean_iou"]


def build_model(
    args: RunArguments, class_names: list[str], palette: list[list[int]] | None = None
) -> U2PLForSemanticSegmentation:
    """The student with fresh weights; SupOnly has no representation head."""
    config = U2PLConfig(
        backbone=args.backbone,
        stem=args.stem,
        base_width=args.base_width,
        output_stride=args.output_stride,
        head_channels=args.head_channels,
        representation_channels=0 if args.method == "suponly" else args.representation_channels,
        aspp_dilations=args.aspp_dilations,
        dropout=args.dropout,
        auxiliary_head=args.auxiliary_head,
        id2label=dict(enumerate(class_names)),
        label2id={name: i for i, name in enumerate(class_names)},
        palette=palette or default_palette(len(class_names)),
    )
    return U2PLForSemanticSegmentation(config)


def build_optimizer(args: RunArguments, model: U2PLForSemanticSegmentation) -> torch.optim.SGD:
    """SGD with the heads' learning rate scaled by head_lr_factor."""
    groups = [
        {"params": list(model.backbone_parameters()), "factor": 1.0},
        {"params": list(model.head_parameters()), "factor": args.head_lr_factor},
    ]
    return build_sgd(groups, lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay)


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_step(seed: int, process: int, step: int) -> None:
    """Make every random draw of a step a function of (seed, process, step): resuming then needs no generator state."""
    torch.manual_seed(int(np.random.SeedSequence([seed, process, step]).generate_state(1, np.uint64)[0]))
