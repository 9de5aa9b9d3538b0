"""A table of two tiny runs: interrupted, continued, rendered; and the queue alone, with children that only wait."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.in_process import ROOT, run_here
from u2pl_hf.errors import InputError, TrainingError
from u2pl_hf.measure import queue as run_queue
from u2pl_hf.measure.queue import run_all

SCRIPT = ROOT / "training_scripts" / "run_table.py"
TABLE = """
title: Tiny
options: {{dataset: "{data}", split: 1/4, base_width: 8, head_channels: 8, representation_channels: 8, crop_size: 65,
  batch_size: 2, unlabelled_batch_size: 2, num_workers: 0, cpu_threads: 1, max_steps: {steps}, warmup_steps: 2,
  eval_steps: 0, eval_batch_size: 1, trackers: [none], aspp_dilations: [1, 2, 3]}}
rows:
  - {{id: suponly, name: SupOnly, recipe: demo_suponly.yaml}}
  - {{id: ael, name: U2PL + AEL, recipe: demo_u2pl.yaml, options: {{method: u2pl_ael, frequent_classes: ["0"]}}}}
"""


def start(*arguments) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=300)
    return process.returncode, out, errors


def here(*arguments) -> tuple[int, str, str]:
    """The script in this process: exit code, stdout, stderr."""
    done = run_here("run_table.py", *arguments)
    return done.returncode, done.stdout, done.stderr


def test_a_table_is_interrupted_goes_on_and_is_rendered(tiny_data, tmp_path):
    table = tmp_path / "tiny.yaml"
    table.write_text(TABLE.format(data=tiny_data, steps=4000))
    options = [table, "--output_dir", tmp_path / "runs", "--model_cards", tmp_path / "cards"]
    running, metrics = start(*options), tmp_path / "runs" / "tiny_suponly_seed0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 1):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    code, out, errors = finish(running)
    assert code == 128 + signal.SIGTERM and not out and "the same command goes on" in errors
    assert any((tmp_path / "runs" / "tiny_suponly_seed0" / "checkpoints").iterdir())
    assert not (tmp_path / "runs" / "tiny_ael_seed0").exists()

    code, out, errors = here(*options, "--list")
    assert code == 0 and json.loads(out)["to_do"] == ["tiny_suponly_seed0", "tiny_ael_seed0"]
    code, out, errors = here(*options, "--list", "--only", "ael")
    assert code == 0 and json.loads(out)["to_do"] == ["tiny_ael_seed0"]
    # The rest with fewer steps would be another run, so the table says so before anything starts.
    table.write_text(TABLE.format(data=tiny_data, steps=5))
    code, out, errors = here(*options, "--only", "ael")
    assert code == 2 and "table tiny, row suponly:" in errors and "max_steps is 4000 there and 5 here" in errors
    # Two beside each other, and a signal reaches both.
    table.write_text(TABLE.format(data=tiny_data, steps=4000))
    running, runs = start(*options, "--jobs", "2"), [tmp_path / "runs" / f"tiny_{m}_seed0" for m in ("suponly", "ael")]
    there = metrics.read_text().count("\n")
    while not ((runs[1] / "metrics.jsonl").exists() and (runs[1] / "metrics.jsonl").read_text().count("\n")
               and metrics.read_text().count("\n") > there):  # fmt: skip
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert finish(running)[0] == 128 + signal.SIGINT
    assert all(any((run / "checkpoints").iterdir()) and not (run / "results.json").exists() for run in runs)
    assert "resuming from" in (tmp_path / "runs" / "logs" / "tiny_suponly_seed0.log").read_text()


def test_finished_runs_are_passed_over_and_failed_ones_are_named(tiny_data, tmp_path):
    table = tmp_path / "tiny.yaml"
    table.write_text(TABLE.format(data=tiny_data, steps=5))
    options = [table, "--output_dir", tmp_path / "runs", "--model_cards", tmp_path / "cards"]
    code, out, errors = here(*options, "--only", "suponly", "--", "--max_steps", "4", "--seed", "7")
    assert code == 0 and json.loads(out)["finished"] == ["tiny_suponly_seed0"]
    told = json.loads((tmp_path / "runs" / "tiny_suponly_seed0" / "results.json").read_text())
    # They win over the table's own, but not over what tells the runs apart.
    assert (told["max_steps"], told["seed"]) == (4, 0)
    options += ["--jobs", "2", "--", "--max_steps", "4"]
    code, out, errors = here(*options)
    assert code == 0 and json.loads(out) == {
        "table": "tiny", "finished": ["tiny_suponly_seed0", "tiny_ael_seed0"], "to_do": []
    }  # fmt: skip
    assert "tiny_suponly_seed0: begun" not in errors and "tiny_ael_seed0: done" in errors
    results = json.loads((tmp_path / "cards" / "tiny_ael_seed0" / "results.json").read_text())
    score = f"{100 * results['last']['mean_iou']:.2f}"
    assert f"| U2PL + AEL | 6 | 4 | 0 | {score} |" in errors
    # A table of one's own is rendered as the project's are.
    assert f"| {score} |" in (tmp_path / "cards" / "tiny.md").read_text()
    assert results["method"] == "u2pl_ael" and (tmp_path / "cards" / "tiny_ael_seed0" / "README.md").exists()

    table.write_text(TABLE.format(data=tiny_data, steps=5).replace('["0"]', '["no_such_class"]'))
    code, out, errors = here(table, "--output_dir", tmp_path / "other", "--model_cards", tmp_path / "kept")
    # What did not fail is kept.
    assert "SupOnly" in (tmp_path / "kept" / "tiny.md").read_text()
    assert code == 1 and not out and "error: tiny_ael_seed0 failed; see" in errors.splitlines()[-1]
    assert "no_such_class is no class" in (tmp_path / "other" / "logs" / "tiny_ael_seed0.log").read_text()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml}", ["--only", "b"], "--only b is no row of"),
        (
            "title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml}",
            ["--jobs", "0"],
            "--jobs 0 must be at least 1",
        ),
        (
            "title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml, options: {trackers: [none]}}",
            ["--list", "--", "wandb"],
            "-- wandb is no option",
        ),
        (
            "title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml, options: {split: '{dataset}/x'}}",
            ["--list"],
            "pass --dataset",
        ),
        ("title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml, seeds: []}", [], "row a has no seeds"),
        (
            "title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml, options: {max_step: 7}}",
            ["--list"],
            "table t, row a: unrecognized arguments: --max_step 7",
        ),
        ("", [], "is not a title and rows"),
        ("- a", [], "is not a title and rows"),
    ],
)
def test_mistakes_are_one_line(tmp_path, content, options, message):
    (tmp_path / "t.yaml").write_text(content)
    code, out, errors = here(tmp_path / "t.yaml", "--output_dir", tmp_path / "runs", *options)
    assert code == 2 and not out and message in errors.splitlines()[-1] and "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", '{"last": ', "results.json is no JSON"),
        ("results.json", "{}", "results.json holds no results of a run"),
        ("recipe.yaml", "a: [", "recipe.yaml is damaged"),
    ],
)
def test_a_damaged_run_is_named(tmp_path, name, content, message):
    table, run = tmp_path / "t.yaml", tmp_path / "runs" / "t_a_seed0"
    table.write_text("title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml}")
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text((ROOT / "training_scripts" / "recipes" / "demo_suponly.yaml").read_text())
    (run / name).write_text(content)
    code, out, errors = here(table, "--output_dir", tmp_path / "runs")
    assert code == 2 and not out and message in errors.splitlines()[-1] and "Traceback" not in errors


def queue(names: str, logs: Path, jobs: int = 1, **child: str) -> None:
    """Runs of those names, of which each is the child's code with its name for NAME."""
    run_all(["-c"], {name: [child["code"].replace("NAME", name)] for name in names}, logs, jobs)


def signal_later(seconds: float, *numbers: int) -> None:
    def send() -> None:
        for number in numbers:
            time.sleep(seconds)
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def test_a_signal_between_two_runs_is_not_lost(tmp_path):
    """The first run sends it as its last act, so that it comes while nothing else is going."""
    code = f"import os, signal; open({str(tmp_path / 'NAME')!r}, 'w').close(); os.kill(os.getppid(), signal.SIGTERM)"
    with pytest.raises(SystemExit) as ended:
        queue("ab", tmp_path / "logs", code=code)
    assert ended.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_every_signal_reaches_all_that_are_going(tmp_path):
    """A run ends at once at its second Ctrl-C, so it must come to know of it."""
    code = (
        "import signal, sys, time\n"
        "seen = []\n"
        "def note(*_):\n"
        "    seen.append(1)\n"
        "    len(seen) > 1 and sys.exit(3)\n"
        "signal.signal(signal.SIGINT, note)\n"
        f"open({str(tmp_path / 'NAME')!r}, 'w').close()\n"
        "time.sleep(60), time.sleep(60)"
    )

    def when_both_are_there() -> None:
        while not all((tmp_path / name).exists() for name in "ab"):
            time.sleep(0.02)
        signal_later(0.2, signal.SIGINT, signal.SIGINT)

    threading.Thread(target=when_both_are_there, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(SystemExit):
        queue("abc", tmp_path / "logs", jobs=2, code=code)
    assert time.monotonic() - start < 50 and not (tmp_path / "c").exists()


def test_no_run_is_left_behind(tmp_path, monkeypatch):
    """The log of the second one cannot be written: the first must not train on."""
    (tmp_path / "logs" / "b.log").mkdir(parents=True)
    started, start_process = [], run_queue._start

    def note(*arguments) -> subprocess.Popen:
        started.append(start_process(*arguments))
        return started[-1]

    monkeypatch.setattr(run_queue, "_start", note)
    with pytest.raises(InputError, match=r"b\.log cannot be written to"):
        queue("ab", tmp_path / "logs", jobs=2, code="import time; time.sleep(60)")
    assert [process.poll() for process in started] == [-signal.SIGTERM]


def test_what_fails_is_named_after_the_rest_is_done(tmp_path):
    with pytest.raises(TrainingError, match=r"^b failed; see .*b\.log"):
        queue("abcd", tmp_path / "logs", jobs=2, code=f"open({str(tmp_path / 'NAME')!r}, 'w'); exit('NAME' == 'b')")
    assert all((tmp_path / name).exists() for name in "abcd")
