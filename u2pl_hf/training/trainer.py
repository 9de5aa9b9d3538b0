"""The training loop: streams -> step -> optimizer -> teacher, evaluation, checkpoints, and what a run leaves behind."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from u2pl_hf.evaluation.inference import evaluate_model
from u2pl_hf.evaluation.pictures import picture_grid
from u2pl_hf.method.build import build_step
from u2pl_hf.method.schedules import poly_factor
from u2pl_hf.method.step import MethodSettings
from u2pl_hf.system.precision import memory_format, prepare_device, tune_networks, without_tuning
from u2pl_hf.system.processes import (
    average_running_statistics,
    cpu_cores,
    describe_step,
    join_processes,
    learning_rate_scale,
    start_accelerator,
    synchronize_batchnorm,
    together,
)
from u2pl_hf.training.batches import Batches
from u2pl_hf.training.build import build_model, build_optimizer, seed_draws
from u2pl_hf.training.inputs import TrainingData, load_training_data
from u2pl_hf.training.plan import Counts, describe_plan
from u2pl_hf.training.pools import method_settings
from u2pl_hf.training.recipe.arguments import BACKBONES, RunArguments
from u2pl_hf.training.recipe.epochs import epochs_to_steps, steps_per_epoch
from u2pl_hf.training.run.checkpoint import first_step, load_checkpoint, save_checkpoint
from u2pl_hf.training.run.export import export_best, export_finished
from u2pl_hf.training.run.failures import failures_in_one_line
from u2pl_hf.training.run.finite import FiniteLosses
from u2pl_hf.training.run.folder import RunFolder
from u2pl_hf.training.run.report import describe_start, gather_results, picture_samples, score, segment_options
from u2pl_hf.training.run.stopping import Stopped, StopRequest
from u2pl_hf.training.run.trackers import ExperimentTrackers, choose_trackers
from u2pl_hf.training.run.tracking import Tracker, mean_values
from u2pl_hf.training.run.upload import check_push
from u2pl_hf.training.weights.initialize import find_starting_point

logger = logging.getLogger(__name__)


class Trainer:
    """One run of one recipe.

    Args:
        args: checked arguments.

    Raises:
        InputError: data set, split, labels, output folder or trackers cannot be used.
    """

    def __init__(self, args: RunArguments):
        self.args = args
        processes = join_processes()
        together(processes, lambda: prepare_device(args, processes.device))
        trackers = together(processes, lambda: choose_trackers(args))
        self.accelerator = start_accelerator(
            # Such as the mask token of DINOv2, and what comes after the last chosen stage.
            unused_parameters=args.backbone not in BACKBONES,
            mixed_precision=args.mixed_precision,
            log_with=trackers,
            project_dir=args.output_dir,
        )
        # Those that a plan is made for need not be here.
        self.processes = (args.plan and args.plan_processes) or self.accelerator.num_processes
        self.folder = RunFolder(args)
        together(self.accelerator, lambda: check_push(args, self.accelerator.is_main_process))
        together(self.accelerator, self.folder.check)
        if self.accelerator.device.type == "cpu":
            # Launchers set one thread per process, which would leave cores idle.
            torch.set_num_threads(args.cpu_threads or max(1, cpu_cores() // self.accelerator.num_processes))
        self.data, settings, scale = together(self.accelerator, self._load_data)
        self.learning_rate = args.learning_rate * scale
        torch.manual_seed(args.seed)
        student = build_model(args, self.data.class_names, self.data.palette)
        where = self.folder, self.data.fingerprint, self.accelerator.num_processes
        self.checkpoint, self.initialised_with = together(
            self.accelerator, lambda: find_starting_point(student, args, *where)
        )
        student = synchronize_batchnorm(self.accelerator, student)
        self.student = student.to(self.accelerator.device, memory_format=memory_format(args))
        self.batches = Batches(args, self.data, self.accelerator)
        pools = self.batches.pools(first_step(self.checkpoint))
        self.method = build_step(args.method, settings, self.student, pools).to(self.accelerator.device)
        self.optimizer = build_optimizer(args, self.student)
        self.wrapped_student, self.optimizer = self.accelerator.prepare(self.student, self.optimizer)
        tune_networks(args, self.student, self.method)
        self.finite = FiniteLosses(self.accelerator, self.folder.path / "not_finite.json")
        self.best: dict | None = None
        self.started = time.perf_counter()
        # What a run spends besides training, in seconds.
        self.seconds_of = {"evaluation": 0.0, "checkpoints": 0.0, "pictures": 0.0, "logging": 0.0}

    def _load_data(self) -> tuple[TrainingData, MethodSettings, float]:
        """Data, settings that depend on its classes, and the factor of the learning rate: all that can be refused."""
        args, data = self.args, load_training_data(self.args)
        self.folder.check_labelled_ids(data.labelled_ids)
        lists = len(data.labelled), len(data.unlabelled)
        epochs_to_steps(args, steps_per_epoch(args, *lists, self.images_per_step))
        scale = learning_rate_scale(self.images_per_step[0], args.reference_batch_size, args.scale_lr)
        if args.method == "u2pl" and args.unlabelled_batch_size == 1 and args.strong_augmentation != "cutout":
            logger.warning(
                "%s finds no other image in a pass of one, so nothing is mixed: pass --unlabelled_batch_size 2 or more",
                args.strong_augmentation,
            )
        return data, method_settings(args, data), scale

    @property
    def seconds(self) -> float:
        """Time spent on this run, evaluations and earlier parts of a resumed run included."""
        return time.perf_counter() - self.started

    @property
    def images_per_step(self) -> tuple[int, int]:
        """Labelled and unlabelled images of one optimizer step, over all processes."""
        args, passes = self.args, self.args.gradient_accumulation_steps * self.processes
        return args.batch_size * passes, (args.unlabelled_batch_size * passes if args.method != "suponly" else 0)

    def _images(self, step: int) -> int:
        """Images that a step sees, over all processes: in warm-up no unlabelled ones."""
        labelled, unlabelled = self.images_per_step
        return labelled + (unlabelled if step >= self.args.warmup_steps else 0)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds_of[what] += time.perf_counter() - start

    def train(self) -> dict:
        """Run to the last step and return the results (also in results.json). A finished run returns at once.

        Raises:
            InputError: the checkpoint to resume from does not belong to this run.
            TrainingError: out of memory or disk, a loss that is not finite, a process lost.
            Stopped: a signal came; the state is in a checkpoint.
            SystemExit: any of these, on other processes than the main one, which tells of it.
        """
        results = self.folder.finished_results()
        if results is not None:
            logger.info("%s is finished already", self.folder.path)
            return results
        try:
            with failures_in_one_line(self.folder.path):
                return self._train()
        finally:
            self.batches.close()
            self.folder.unlock()

    def _train(self) -> dict:
        self.started = time.perf_counter()
        first, evaluation_is_due = self._resume()
        together(self.accelerator, lambda: self._start_folder(first))
        logger.info(describe_start(self, first))
        # The first thing to look at where a result differs from another's.
        logger.info(describe_step(self.args, self.accelerator.num_processes, self.learning_rate))
        # Before the trackers, whose threads must not be there when loading processes are forked.
        self.batches.start(first)
        tracker, last = together(self.accelerator, lambda: self._tracker(first)), None
        with tracker, StopRequest(self.accelerator) as stop:
            if evaluation_is_due:
                last = self._evaluate(first, tracker, stop)
            for step in range(first, self.args.max_steps):
                self.method.begin(self.student, step)
                learning_rate = self._set_learning_rate(step)
                values = self._gradients(step)
                self._update(step)
                with self._timed("logging"):
                    tracker.step(step + 1, values, learning_rate, self._images(step))
                last = self._save_and_evaluate(step + 1, tracker, stop)
        return self._finish(last)

    def _gradients(self, step: int) -> dict[str, Tensor | float]:
        """Forward and backward passes of one step; returns what they tell, as means over the passes."""
        args, passes, outputs = self.args, self.args.gradient_accumulation_steps, []
        for part in range(passes):
            number = (step * passes + part) * self.accelerator.num_processes + self.accelerator.process_index
            seed_draws(args.seed, number)
            batch, ids = self.batches.next(step, number)
            # Gradients travel with the last pass only.
            last = part == passes - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped_student):
                with self.accelerator.autocast():
                    output = self.method(self.wrapped_student, batch, step, args.max_steps)
                self.accelerator.backward(output.total / passes)
            self.finite.note(step + 1, output.named, ids)
            outputs.append(output)
        if (step + 1) % args.logging_steps == 0:
            self.finite.check()
        return mean_values(outputs)

    def _update(self, step: int) -> None:
        """Optimizer, teacher, and statistics that all processes share."""
        if self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.student.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.finish(self.student, step)
        average_running_statistics(self.accelerator, (self.student, *self.method.children()))

    def plan(self) -> dict:
        """What `train` would do, as numbers."""
        data = self.data
        counts = Counts(len(data.labelled), len(data.unlabelled), len(data.evaluation.ids), len(data.class_names))
        plan = describe_plan(self.args, counts, self.processes, self.images_per_step, self.learning_rate)
        return plan | {"initialised_with": self.initialised_with}

    def _start_folder(self, first: int) -> None:
        if self.accelerator.is_main_process:
            with failures_in_one_line(self.folder.path):
                self.folder.start(self.data.labelled_ids)
                self.folder.trim_metrics(first)

    def _resume(self) -> tuple[int, bool]:
        """Load the checkpoint to go on from, if any.

        Returns:
            The first step to do, and whether the evaluation before it is still to be done.
        """
        if self.checkpoint is None:
            return 0, False
        state = load_checkpoint(self.checkpoint, self.student, self.method, self.optimizer)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.batches.skipped.messages.update(state["skipped"])
        self.started -= state["seconds"]
        self.seconds_of |= state["seconds_of"]
        logger.info("resuming from %s", self.checkpoint)
        return state["step"], state["evaluation_is_due"]

    def _tracker(self, first: int) -> Tracker:
        return Tracker(
            self.folder.metrics_path,
            self.accelerator,
            ExperimentTrackers(self.accelerator, self.args, first),
            self.data.class_names,
            total=self.args.max_steps,
            initial=first,
            every=self.args.logging_steps,
        )

    def _set_learning_rate(self, step: int) -> float:
        """Poly schedule; returns the base learning rate of this step."""
        rate = self.learning_rate * poly_factor(step / self.args.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def _save_and_evaluate(self, step: int, tracker: Tracker, stop: StopRequest) -> dict | None:
        """Write a checkpoint and evaluate where they are due; returns the evaluation.

        The checkpoint comes first: an evaluation may be long, and one that breaks off is then done again, not the
        steps before it.
        """
        args, number = self.args, stop.agreed()
        evaluate = step == args.max_steps or bool(args.eval_steps and step % args.eval_steps == 0)
        if evaluate or number or (args.save_steps and step % args.save_steps == 0):
            self.finite.check()
            with self._timed("checkpoints"):
                together(self.accelerator, lambda: self._save_checkpoint(step, evaluate))
        if number and not self.accelerator.is_main_process:
            sys.exit(128 + number)
        if number:
            raise Stopped(number, step)
        return self._evaluate(step, tracker, stop) if evaluate else None

    def _evaluate(self, step: int, tracker: Tracker, stop: StopRequest) -> dict:
        """Score the model of this step, export it if it is the best so far, draw pictures."""
        model = self.method.evaluated(self.student, step)
        with stop.immediate(step):
            with self._timed("evaluation"), without_tuning(self.args), self.accelerator.autocast():
                scores = evaluate_model(
                    model,
                    self.data.evaluation,
                    range(len(self.data.evaluation.ids)),
                    device=self.accelerator.device,
                    batch_size=self.args.eval_batch_size,
                    rank=self.accelerator.process_index,
                    world_size=self.accelerator.num_processes,
                    **segment_options(self.args),
                )
            result = {"step": step} | scores
            tracker.evaluation(step, result)
            is_best = self.best is None or score(result) > score(self.best)
            self.best = result if is_best else self.best
            if self.accelerator.is_main_process:
                self._show(model, step, tracker, result if is_best else None)
        return result

    def _show(self, model: nn.Module, step: int, tracker: Tracker, best: dict | None) -> None:
        """Draw what the model sees, and export it if it is the best so far."""
        if self.args.picture_samples:
            with self._timed("pictures"), without_tuning(self.args):
                samples = picture_samples(
                    model, self.data.evaluation, self.args.picture_samples, self.args.unreliable_share
                )
                picture = picture_grid(samples, model.config.palette, self.data.class_names)
                self.folder.save_picture(picture, step)
                tracker.picture(step, picture)
        if best is not None:
            export_best(self.folder, model, gather_results(self, None))

    def _save_checkpoint(self, step: int, evaluation_is_due: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "step": step,
            "evaluation_is_due": evaluation_is_due,
            "recipe": self.args.recipe(),
            "data": self.data.fingerprint,
            "processes": self.accelerator.num_processes,
            "scaler": scaler.state_dict() if scaler else None,
            "best": self.best,
            "initialised_with": self.initialised_with,
            "skipped": sorted(self.batches.skipped.messages),
            "seconds": self.seconds,
            "seconds_of": self.seconds_of,
        }
        with failures_in_one_line(self.folder.path):
            save_checkpoint(
                self.folder.checkpoint_path(step),
                self.student,
                self.method,
                self.optimizer,
                state,
                keep=self.args.keep_checkpoints,
            )

    def _finish(self, last: dict) -> dict:
        results = gather_results(self, last)
        if self.accelerator.is_main_process:
            export_finished(self.folder, self.method.evaluated(self.student, self.args.max_steps), results)
        self.accelerator.wait_for_everyone()
        return results
