"""A run that was killed, stopped, starved or poisoned: what it leaves and says, and that it ends in the same bits."""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.distributed import Script, environment, free_port
from tests.training.test_trainer import make_trainer
from u2pl_hf.data.sources import Source
from u2pl_hf.errors import InputError, Stopped, TrainingError
from u2pl_hf.training.run import endings
from u2pl_hf.training.run.checkpoint import damage

ROOT = Path(__file__).parents[2]
# More kills show more; a few are enough to notice a mistake.
KILLS = int(os.environ.get("U2PL_KILLS", "2"))
STEPS = 40
SMALL = {
    "split": "1/4", "base_width": 8, "head_channels": 8, "representation_channels": 8, "crop_size": 65,
    "batch_size": 2, "unlabelled_batch_size": 2, "num_workers": 0, "cpu_threads": 1, "max_steps": STEPS,
    "warmup_steps": 10, "eval_steps": 25, "eval_batch_size": 1, "save_steps": 4, "logging_steps": 1,
    "picture_samples": 0, "queue_length": 500, "background_queue_length": 500,
}  # fmt: skip


class Run:
    """`train_u2pl.py` on one or two processes of their own."""

    def __init__(self, data: Path, output: Path, processes: int, **changes):
        options = SMALL | {"dataset": data, "output_dir": output} | changes
        recipe = ROOT / "training_scripts" / "recipes" / "demo_u2pl.yaml"
        self.arguments = [recipe, *(part for name, value in options.items() for part in (f"--{name}", value))]
        self.output, self.processes, self.starts = output, processes, 0

    def start(self) -> list[Script]:
        port, started, script = free_port(), [], ROOT / "training_scripts" / "train_u2pl.py"
        self.starts += 1
        for rank in range(self.processes):
            env = environment(rank, port) if self.processes > 1 else {"ACCELERATE_USE_CPU": "true"}
            log = self.output.with_name(f"{self.output.name}_{self.starts}_{rank}.log")
            started.append(Script(script, self.arguments, log, **env))
        return started

    def finish(self, *, anew: bool = False) -> str:
        """Run to the end, `anew` in a Python of its own; returns the digest of the finished model."""
        if anew:
            words = [sys.executable, ROOT / "training_scripts" / "train_u2pl.py", *self.arguments]
            env = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            subprocess.run(list(map(str, words)), env=env, cwd=ROOT, check=True, capture_output=True, timeout=300)
        else:
            codes, told = zip(*(process.end() for process in self.start()), strict=True)
            assert not any(codes), "\n".join(told)
        return hashlib.sha256((self.output / "model.safetensors").read_bytes()).hexdigest()

    def steps(self) -> list[int]:
        metrics = self.output / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        return [line["step"] for line in map(json.loads, (x for x in lines if x.endswith("\n"))) if "loss" in line]

    def is_writing_a_checkpoint(self) -> bool:
        return any((self.output / "checkpoints").glob(".step-*"))


def wait_until(condition, processes, pause: float = 0.02, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            raise AssertionError("too late or ended early:\n" + "\n".join(process.end()[1] for process in processes))
        time.sleep(pause)


@pytest.mark.parametrize(("processes", "kills"), [(1, KILLS), (2, KILLS - 1)])
def test_killed_at_any_moment_ends_in_the_same_weights(tiny_data, tmp_path, processes, kills):
    """SIGKILL while training and while a checkpoint is written, in turn."""
    whole, killed = (Run(tiny_data, tmp_path / name, processes) for name in ("whole", "killed"))
    # Where it can be, it is of another Python, whose sets are in another order.
    expected, draw, done = whole.finish(anew=processes == 1), random.Random(processes), 0
    for number in range(kills):
        # A kill that is to meet a checkpoint while it is written has three of them to come.
        latest = max(done, STEPS - 3 * SMALL["save_steps"]) if number % 2 else STEPS
        goal = draw.randint(done, min(latest, done + 2 * (STEPS - done) // (kills - number + 1)))
        running = killed.start()
        wait_until(lambda goal=goal: max(killed.steps(), default=0) >= goal, running)
        if number % 2:
            wait_until(killed.is_writing_a_checkpoint, running, pause=0.0005)
        for process in running:
            process.kill()
            process.end()
        done = max(killed.steps(), default=0)
    assert killed.finish() == expected
    assert killed.steps() == list(range(1, STEPS + 1))
    results = [json.loads((run.output / "results.json").read_text()) for run in (whole, killed)]
    assert results[0]["best"] == results[1]["best"] and results[0]["last"] == results[1]["last"]


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGUSR1, 2)])
def test_signal_stops_all_at_one_step_with_a_checkpoint(tiny_data, tmp_path, number, processes):
    """Ctrl-C in a terminal and a scheduler's signal reach the data loading processes as well."""
    run = Run(tiny_data, tmp_path / "run", processes, num_workers=2 - processes)
    running = run.start()
    wait_until(lambda: len(run.steps()) >= 13, running)
    # Of two processes only the last gets it: the other is told by it.
    os.killpg(running[-1].pid, number)
    told = ""
    for process in running:
        code, last = process.end(60)
        assert code == 128 + number, last
        told += last
    assert told.count(f"stopped by {number.name} after step {max(run.steps())}; the same command goes on") == 1
    newest = sorted((run.output / "checkpoints").iterdir())[-1]
    assert damage(newest) is None and newest.name == f"step-{max(run.steps()):06d}"
    assert processes > 1 or last.strip().splitlines()[-1].startswith(f"stopped by {number.name}"), last


def test_process_that_dies_takes_the_others_along(tiny_data, tmp_path):
    """Without a launcher that would end them, as under srun."""
    run = Run(tiny_data, tmp_path / "run", 2)
    survivor, victim = run.start()
    wait_until(lambda: len(run.steps()) >= 13, [survivor, victim])
    victim.kill()
    code, told = survivor.end(60)
    assert code == 1 and victim.end()[0] == -signal.SIGKILL
    last = told.strip().splitlines()[-1]
    assert last.startswith("error: another process of this run has ended") and "checkpoint step-0000" in last


def test_signal_during_evaluation_stops_at_once_and_loses_nothing(tiny_data, tmp_path, monkeypatch):
    options = {"max_steps": 4, "eval_steps": 2, "logging_steps": 1}
    whole = make_trainer(tiny_data, tmp_path / "whole", **options)
    expected = whole.train()
    stopped = make_trainer(tiny_data, tmp_path / "run", **options)
    read = Source.read_label

    def read_and_signal(source, index):
        if source is stopped.run.data.evaluation and index == 3:
            signal.raise_signal(signal.SIGTERM)
        return read(source, index)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM after step 2"):
        patch.setattr(Source, "read_label", read_and_signal)
        stopped.train()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not (tmp_path / "run" / "best").exists()

    results = make_trainer(tiny_data, tmp_path / "run", **options).train()
    assert results["last"] == expected["last"] and results["best"] == expected["best"]
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], "loss" in x) for x in lines] == [
        (1, True),
        (2, True),
        (2, False),
        (3, True),
        (4, True),
        (4, False),
    ]


@pytest.mark.parametrize(("seconds", "expected"), [(3.0, Stopped), (0.0, KeyboardInterrupt)])
def test_launchers_repeat_a_signal_but_a_later_one_is_meant(tiny_data, tmp_path, monkeypatch, seconds, expected):
    monkeypatch.setattr(endings, "REPEAT_SECONDS", seconds)
    trainer = make_trainer(tiny_data, tmp_path / "run")
    finish = trainer.run.method.finish

    def finish_and_signal(*arguments):
        finish(*arguments)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer.run.method.finish = finish_and_signal
    with pytest.raises(expected):
        trainer.train()


def test_resumed_under_another_recipe_is_refused(tiny_data, tmp_path):
    make_trainer(tiny_data, tmp_path / "run", save_steps=2).train()
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    with pytest.raises(InputError, match=r"step-000002 belongs to another run: temperature is 0.5 there and 0.4 here"):
        make_trainer(tiny_data, tmp_path / "other", resume=str(checkpoint), temperature=0.4)
    assert not (tmp_path / "other").exists()


def test_recipe_of_an_older_version_lacks_newer_fields(tiny_data, tmp_path):
    make_trainer(tiny_data, tmp_path / "run").train()
    recipe = tmp_path / "run" / "recipe.yaml"
    fields = yaml.safe_load(recipe.read_text())
    del fields["backbone_stages"]
    recipe.write_text(yaml.safe_dump(fields))
    make_trainer(tiny_data, tmp_path / "run")
    del fields["temperature"]
    recipe.write_text(yaml.safe_dump(fields))
    with pytest.raises(InputError, match=r"temperature is 0.5 there and 0.4 here"):
        make_trainer(tiny_data, tmp_path / "run", temperature=0.4)


def test_loss_that_is_not_finite_stops_with_step_losses_and_images(tiny_data, tmp_path):
    """A learning rate out of all reason does what a poisoned image or an overflow would."""
    trainer = make_trainer(tiny_data, tmp_path / "run", learning_rate=1e9, max_steps=8, logging_steps=4, warmup_steps=0)
    with pytest.raises(TrainingError, match=r"not finite at step (\d).*not_finite_0.json.*--learning_rate") as caught:
        trainer.train()
    told = json.loads((tmp_path / "run" / "not_finite_0.json").read_text())
    assert f"at step {told['step']} " in str(caught.value) and told["step"] > 1
    assert told["losses"]["loss"] in ("nan", "inf") and len(told["ids"]) == 4
    assert set(told["ids"]) <= set(trainer.run.data.labelled_source.ids)
    # A poisoned state is not kept.
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_full_disk_stops_and_keeps_the_last_checkpoint(tiny_data, tmp_path):
    """The system's own limit on the size of files stands in for a small disk."""
    trainer = make_trainer(tiny_data, tmp_path / "run", max_steps=6, save_steps=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    finish = trainer.run.method.finish

    def finish_and_fill(student, step):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        finish(student, step)

    trainer.run.method.finish = finish_and_fill
    try:
        with pytest.raises(TrainingError, match=r"no space left for .*run.*checkpoint step-000002 is complete"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    assert make_trainer(tiny_data, tmp_path / "run", max_steps=6, save_steps=2).train()["last"]["step"] == 6


def test_out_of_memory_names_what_to_change(tiny_data, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", max_steps=4, save_steps=2)

    def hungry(student, step):
        if step == 2:
            torch.empty(2**50)

    trainer.run.method.finish = hungry
    with pytest.raises(TrainingError, match=r"out of memory.*--batch_size.*--crop_size.*step-000002 is complete"):
        trainer.train()


def test_finished_run_is_left_alone(tiny_data, tmp_path):
    results = make_trainer(tiny_data, tmp_path / "run", save_steps=2).train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert make_trainer(tiny_data, tmp_path / "run", save_steps=2).train() == results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


FAILS = """
import sys
from tests.training.test_trainer import make_trainer
if __name__ == "__main__":
    trainer = make_trainer(sys.argv[1], sys.argv[2], num_workers=2, warmup_steps=0)
    trainer._update = lambda step: 1 / 0
    trainer.train()
"""


def test_an_unforeseen_error_does_not_wait_for_the_loading_processes(tiny_data, tmp_path):
    """They ignore the signal that Python ends them with; the error's traceback keeps their loaders alive."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", FAILS, str(tiny_data), str(tmp_path / "run")]
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr


def test_a_folder_that_was_removed_meanwhile_gets_its_checkpoint(tiny_data, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", max_steps=4)
    trainer._save_checkpoint(2, False, {})
    assert damage(tmp_path / "run" / "checkpoints" / "step-000002") is None
