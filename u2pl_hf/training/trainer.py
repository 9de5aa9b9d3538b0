"""The training loop: streams -> step -> optimizer -> teacher, evaluation, checkpoints, and what a run leaves behind."""

import contextlib
import logging
import sys

from torch import Tensor, nn

from u2pl_hf.evaluation.inference import evaluate_model
from u2pl_hf.evaluation.pictures import picture_grid
from u2pl_hf.method.schedules import poly_factor
from u2pl_hf.method.teacher import relative_distance
from u2pl_hf.system.precision import without_tuning
from u2pl_hf.system.processes import average_running_statistics, together
from u2pl_hf.training.batches import seed_draws
from u2pl_hf.training.build import Run
from u2pl_hf.training.recipe.schedule import describe_step
from u2pl_hf.training.run.checkpoint import load_checkpoint, save_checkpoint
from u2pl_hf.training.run.endings import FiniteLosses, Stopped, StopRequest, failures_in_one_line
from u2pl_hf.training.run.model_folder import best_model, export_best, export_finished
from u2pl_hf.training.run.report import describe_start, gather_results, kept_step, picture_samples, score
from u2pl_hf.training.run.tracking import Clock, Progress, mean_values, sums_of_counts

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a run that `build_run` has built.

    Attributes:
        best: the best evaluation so far.
        clock: what the run's time went into.
    """

    def __init__(self, run: Run):
        self.run, self.args, self.accelerator = run, run.args, run.accelerator
        self.finite = FiniteLosses(run.accelerator, run.folder / "not_finite.json")
        self.best: dict | None = None
        self.clock = Clock()

    def train(self) -> dict:
        """Run to the last step and return the results (also in results.json). A finished run returns at once.

        Raises:
            InputError: the checkpoint to resume from does not belong to this run.
            TrainingError: out of memory or disk, a loss that is not finite, a process lost.
            Stopped: a signal came; the state is in a checkpoint.
            SystemExit: any of these, on other processes than the main one, which tells of it.
        """
        self.run.results = self.run.output.finished_results()
        if self.run.results is not None:
            logger.info("%s is finished already", self.run.folder)
            return self.run.results
        try:
            with failures_in_one_line(self.run.folder):
                self.run.results = self._train()
        finally:
            self.run.batches.close()
            self.run.output.unlock()
        return self.run.results

    def _train(self) -> dict:
        run, self.clock = self.run, Clock()
        first, evaluation_is_due, counted = self._resume()
        together(self.accelerator, lambda: self._start_folder(first))
        logger.info(describe_start(run, first))
        # The first thing to look at where a result differs from another's.
        logger.info(describe_step(self.args, self.accelerator.num_processes, run.learning_rate))
        # Before the trackers, whose threads must not be there when loading processes are forked.
        run.batches.start()
        progress, last = together(self.accelerator, lambda: Progress(run, first, counted)), None
        with progress, StopRequest(self.accelerator) as stop:
            if evaluation_is_due:
                last = self._evaluate(first, progress, stop)
            for step in range(first, self.args.max_steps):
                run.method.begin(run.student, step)
                learning_rate = self._set_learning_rate(step)
                values, counts = self._gradients(step)
                self._update(step)
                with self.clock.timed("logging"):
                    progress.step(step + 1, values, learning_rate, self._images(step), counts)
                last = self._save_and_evaluate(step + 1, progress, stop)
        return self._finish(last, progress)

    def _set_learning_rate(self, step: int) -> float:
        """Poly schedule; returns the base learning rate of this step."""
        rate = self.run.learning_rate * poly_factor(step / self.args.max_steps)
        for group in self.run.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def _gradients(self, step: int) -> tuple[dict[str, Tensor | float], dict[str, Tensor]]:
        """Forward and backward passes of one step; returns what they tell, as means over the passes, and counts."""
        run, passes, outputs = self.run, self.args.gradient_accumulation_steps, []
        for part in range(passes):
            number = (step * passes + part) * self.accelerator.num_processes + self.accelerator.process_index
            seed_draws(self.args.seed, number)
            batch, ids = run.batches.next(step, number)
            # Gradients travel with the last pass only.
            last = part == passes - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(run.wrapped):
                with self.accelerator.autocast():
                    output = run.method.learn(run.wrapped, batch, step, self.args.max_steps)
                self.accelerator.backward(output.total / passes)
            self.finite.note(step + 1, output.named, ids)
            outputs.append(output)
        if (step + 1) % self.args.logging_steps == 0:
            self.finite.check()
        return mean_values(outputs), sums_of_counts(outputs)

    def _update(self, step: int) -> None:
        """Optimizer, teacher, and statistics that all processes share."""
        run = self.run
        if self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(run.student.parameters(), self.args.max_grad_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.method.finish(run.student, step)
        average_running_statistics(self.accelerator, (run.student, *run.method.children()))

    def _images(self, step: int) -> int:
        """Images that a step which is done has learnt from, over all processes."""
        size = self.run.size
        return size.labelled + (size.unlabelled if self.run.method.learns_unlabelled(step) else 0)

    def _start_folder(self, first: int) -> None:
        if self.accelerator.is_main_process:
            with failures_in_one_line(self.run.folder):
                self.run.output.start(self.run.data.labelled_ids)
                self.run.output.trim_metrics(first)

    def _resume(self) -> tuple[int, bool, dict[str, list[int]]]:
        """Load the checkpoint to go on from, if any.

        Returns:
            The first step to do, whether the evaluation before it is still to be done, and what was counted since the
            last logged step.
        """
        run = self.run
        if run.checkpoint is None:
            return 0, False, {}
        state = load_checkpoint(run.checkpoint, run.student, run.method, run.optimizer)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        run.batches.skipped.update(state["skipped"])
        self.clock.go_on(state["seconds"], state["seconds_of"])
        logger.info("resuming from %s", run.checkpoint)
        return state["step"], state["evaluation_is_due"], state.get("counted", {})

    def _save_and_evaluate(self, step: int, progress: Progress, stop: StopRequest) -> dict | None:
        """Write a checkpoint and evaluate where they are due; returns the evaluation.

        The checkpoint comes first: an evaluation may be long, and one that breaks off is then done again, not the
        steps before it.
        """
        args, number = self.args, stop.agreed()
        evaluate = step == args.max_steps or bool(args.eval_steps and step % args.eval_steps == 0)
        if evaluate or number or (args.save_steps and step % args.save_steps == 0):
            self.finite.check()
            with self.clock.timed("checkpoints"):
                counted = progress.counted()
                together(self.accelerator, lambda: self._save_checkpoint(step, evaluate, counted))
        if number and not self.accelerator.is_main_process:
            sys.exit(128 + number)
        if number:
            raise Stopped(number, step)
        return self._evaluate(step, progress, stop) if evaluate else None

    def _save_checkpoint(self, step: int, evaluation_is_due: bool, counted: dict[str, list[int]]) -> None:
        if not self.accelerator.is_main_process:
            return
        run, scaler = self.run, self.accelerator.scaler
        state = {
            "step": step,
            "evaluation_is_due": evaluation_is_due,
            "recipe": self.args.recipe(),
            "data": run.data.fingerprint,
            "processes": self.accelerator.num_processes,
            "scaler": scaler.state_dict() if scaler else None,
            "best": self.best,
            "initialised_with": run.initialised_with,
            "skipped": sorted(run.batches.skipped),
            "seconds": self.clock.seconds,
            "seconds_of": self.clock.seconds_of,
            "counted": counted,
        }
        path, keep = run.output.checkpoint_path(step), self.args.keep_checkpoints
        with failures_in_one_line(run.folder):
            save_checkpoint(path, run.student, run.method, run.optimizer, state, keep=keep)

    def _evaluate(self, step: int, progress: Progress, stop: StopRequest) -> dict:
        """Score the model of this step, export it if it is the best so far, draw pictures."""
        run, evaluation = self.run, self.run.data.evaluation
        model = run.method.model_to_evaluate(run.student, step)
        with stop.immediate(step):
            with self.clock.timed("evaluation"), without_tuning(), self.accelerator.autocast():
                scores = evaluate_model(
                    model,
                    evaluation,
                    range(len(evaluation.ids)),
                    device=self.accelerator.device,
                    batch_size=self.args.eval_batch_size,
                    rank=self.accelerator.process_index,
                    world_size=self.accelerator.num_processes,
                    **self.args.evaluation,
                )
            result = {"step": step} | scores
            averaged = None if model is run.student else relative_distance(model, run.student)
            progress.evaluation(step, result, averaged)
            is_best = self.best is None or score(result) > score(self.best)
            self.best = result if is_best else self.best
            if self.accelerator.is_main_process:
                self._show(model, step, progress, is_best)
        return result

    def _show(self, model: nn.Module, step: int, progress: Progress, is_best: bool) -> None:
        """Draw what the model sees, and export it if it is the best so far."""
        run, number = self.run, self.args.picture_samples
        if number:
            with self.clock.timed("pictures"), without_tuning():
                samples = picture_samples(model, run.data.evaluation, number, self.args.settings)
                picture = picture_grid(samples, model.config.palette, run.data.class_names)
                run.output.save_picture(picture, step)
                progress.picture(step, picture)
        if is_best:
            results = gather_results(run, self.clock, self.best, None, step, progress.health.told())
            export_best(run.output, model, results)

    def _finish(self, last: dict, progress: Progress) -> dict:
        run, step = self.run, kept_step(self.args.keep_best, self.best, last)
        model = run.method.model_to_evaluate(run.student, self.args.max_steps)
        if step != last["step"]:
            model, step = best_model(run.output, step) or (model, last["step"])
        results = gather_results(run, self.clock, self.best, last, step, progress.health.told())
        if self.accelerator.is_main_process:
            export_finished(run.output, model, results)
        self.accelerator.wait_for_everyone()
        return results
