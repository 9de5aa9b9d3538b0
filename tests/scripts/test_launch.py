"""Every file of training_scripts/launch: run for real where any machine can, read by accelerate where it cannot.

The runs of test_train.py start with cpu.yaml.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests.in_process import ROOT, run_here
from tests.training.test_interrupted import SMALL

LAUNCH = ROOT / "training_scripts" / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
TRAIN = str(ROOT / "training_scripts" / "train_u2pl.py")
# What Slurm would do with two tasks on one machine: start both with their numbers, kill the rest when one ends badly
# (--kill-on-bad-exit), and end with the highest code. The ids are the trainings' own because the script says exec.
SRUN = """#!/bin/bash
[[ $1 == --kill-on-bad-exit=1 ]] || exit 99
shift
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" &
    started+=($!)
done
echo "${started[@]}" > "$NOTES/tasks"
worst=0
for rank in 0 1; do
    wait -n
    code=$?
    ((code == 0)) || kill -KILL "${started[@]}" 2>/dev/null
    ((code > worst)) && worst=$code
done
exit $worst
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$NOTES/scontrol"
[[ $1 == show ]] && echo 127.0.0.1
exit 0
"""


def arguments(data: Path, output: Path, **changes) -> list[str]:
    """Recipe and options of a small run."""
    options = SMALL | {"max_steps": 3, "warmup_steps": 1, "dataset": data, "output_dir": output} | changes
    recipe = ROOT / "training_scripts" / "recipes" / "demo_u2pl.yaml"
    return [str(recipe), *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_file(path):
    config = load_config_from_file(str(path))
    several = config.num_processes > 1
    assert config.distributed_type == ("MULTI_GPU" if several else "NO")
    assert config.use_cpu == (path.stem == "cpu")
    # Number type and compilation are fields of the recipe.
    assert config.mixed_precision is None and config.dynamo_config == {}
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and any(f"--config_file training_scripts/launch/{path.name}" in x for x in lines)


def test_two_processes_on_the_cpu(tiny_data, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "cpu_processes.yaml")]
    command += [TRAIN, *arguments(tiny_data, tmp_path / "run")]
    env = environment(ACCELERATE_USE_CPU="true")
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["hardware"]["processes"] == 2 and result["hardware"]["device"] == "cpu"
    assert result["batch_size_unlabelled"] == 2 * SMALL["unlabelled_batch_size"]
    # Both processes evaluated the model that was exported, and the main one wrote.
    evaluated = json.loads(run_here("evaluate.py", tmp_path / "run", "--dataset", tiny_data).stdout)
    assert evaluated["mean_iou"] == pytest.approx(result["last"]["mean_iou"], abs=1e-9)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    # What both would say alike is said once, and libraries say nothing.
    assert done.stderr.count("images per step") == done.stderr.count("reading 24 labels") == 1
    assert "Warning" not in done.stderr


class Job:
    """slurm.sh with a Slurm of two shell scripts."""

    def __init__(self, folder: Path, options: list[str]):
        self.notes, self.options, programs = folder / "notes", options, folder / "bin"
        self.notes.mkdir()
        programs.mkdir()
        for name, content in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (programs / name).write_text(content)
            (programs / name).chmod(0o755)
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = environment(
            PATH=os.pathsep.join(path), NOTES=str(self.notes), ACCELERATE_USE_CPU="true",
            SLURM_JOB_ID=str(os.getpid()), SLURM_JOB_NODELIST="node[1-2]",
        )  # fmt: skip

    def submit(self) -> subprocess.Popen:
        command = ["bash", str(LAUNCH / "slurm.sh"), *self.options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment, cwd=ROOT, **pipes)

    def tasks(self) -> list[int]:
        return [int(task) for task in (self.notes / "tasks").read_text().split()]

    def told_to_scontrol(self) -> list[str]:
        return (self.notes / "scontrol").read_text().splitlines()


def test_slurm_job_stops_on_notice_is_queued_again_and_goes_on(tiny_data, tmp_path):
    output = tmp_path / "run"
    job = Job(tmp_path, arguments(tiny_data, output, max_steps=10, eval_steps=0, save_steps=0))
    number, metrics = job.environment["SLURM_JOB_ID"], output / "metrics.jsonl"
    first = job.submit()
    end = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert first.poll() is None and time.monotonic() < end, first.communicate()
        time.sleep(0.01)
    for task in job.tasks():
        os.kill(task, signal.SIGUSR1)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGUSR1, errors
    assert errors.count("stopped by SIGUSR1") == 1 and "Traceback" not in errors
    assert job.told_to_scontrol() == ["show hostnames node[1-2]", f"requeue {number}"]
    steps = len(metrics.read_text().splitlines())
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{steps:06d}"] and steps < 10

    second = job.submit()
    results, errors = second.communicate(timeout=120)
    assert second.returncode == 0 and f"resuming from {output}/checkpoints/step-{steps:06d}" in errors, errors
    assert json.loads(results.splitlines()[-1])["hardware"]["processes"] == 2
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [*range(1, 11), 10]
    assert job.told_to_scontrol()[2:] == ["show hostnames node[1-2]"]
