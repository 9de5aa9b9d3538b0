"""A table of two tiny runs: interrupted, continued, rendered; and the queue alone, with children that only wait."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from u2pl_hf.commands.table import main
from u2pl_hf.errors import InputError, TrainingError
from u2pl_hf.measure.queue import run_all

ROOT = Path(__file__).parents[2]
TABLE = """
title: Tiny
options: {{dataset: "{data}", split: 1/4, base_width: 8, head_channels: 8, representation_channels: 8, crop_size: 65,
  batch_size: 2, unlabelled_batch_size: 2, num_workers: 0, cpu_threads: 1, max_steps: {steps}, warmup_steps: 2,
  eval_steps: 0, eval_batch_size: 1, trackers: [none], aspp_dilations: [1, 2, 3]}}
rows:
  - {{id: suponly, name: SupOnly, recipe: demo_suponly.yaml}}
  - {{id: ael, name: U2PL + AEL, recipe: demo_u2pl.yaml, options: {{method: u2pl_ael, frequent_classes: ["0"]}}}}
"""


def here(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """The command in this process, its runs in others: exit code, stdout, stderr."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr()
    return code, told.out, told.err


def signal_when(ready, number: int) -> None:
    """Send a signal to this process once `ready()` is true."""

    def wait() -> None:
        while not ready():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_table_is_interrupted_and_goes_on(tiny_data, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    table, runs = tmp_path / "tiny.yaml", [tmp_path / "runs" / f"tiny_{row}_seed0" for row in ("suponly", "ael")]
    table.write_text(TABLE.format(data=tiny_data, steps=4000))
    options = [table, "--output_dir", tmp_path / "runs"]
    # Two beside each other, and a signal reaches both.
    signal_when(lambda: all(logged(run) > 1 for run in runs), signal.SIGTERM)
    code, out, errors = here(monkeypatch, capsys, *options, "--jobs", "2")
    assert code == 128 + signal.SIGTERM and not out and "the same command goes on" in caplog.text
    assert all(any((run / "checkpoints").iterdir()) and not (run / "results.json").exists() for run in runs)

    code, out, errors = here(monkeypatch, capsys, *options, "--list")
    assert code == 0 and json.loads(out)["to_do"] == ["tiny_suponly_seed0", "tiny_ael_seed0"]
    code, out, errors = here(monkeypatch, capsys, *options, "--list", "--only", "ael")
    assert code == 0 and json.loads(out)["to_do"] == ["tiny_ael_seed0"]
    # The rest with fewer steps would be another run, so the table says so before anything starts.
    table.write_text(TABLE.format(data=tiny_data, steps=5))
    code, out, errors = here(monkeypatch, capsys, *options, "--only", "ael")
    assert code == 2 and "table tiny, row suponly:" in errors and "max_steps is 4000 there and 5 here" in errors
    table.write_text(TABLE.format(data=tiny_data, steps=4000))
    there = logged(runs[0])
    signal_when(lambda: logged(runs[0]) > there, signal.SIGINT)
    assert here(monkeypatch, capsys, *options)[0] == 128 + signal.SIGINT
    assert "resuming from" in (tmp_path / "runs" / "logs" / "tiny_suponly_seed0.log").read_text()
    assert "resuming from" not in (tmp_path / "runs" / "logs" / "tiny_ael_seed0.log").read_text()


def test_finished_runs_are_passed_over_and_failed_ones_are_named(tiny_data, tmp_path, monkeypatch, capsys):
    table = tmp_path / "tiny.yaml"
    wrong = (
        '  - {id: wrong, name: W, recipe: demo_u2pl.yaml, options: {method: u2pl_ael, frequent_classes: ["no_class"]}}'
    )
    table.write_text(TABLE.format(data=tiny_data, steps=5) + wrong)
    options = [table, "--output_dir", tmp_path / "runs", "--model_cards", tmp_path / "cards"]
    last = ["--", "--max_steps", "4", "--seed", "7"]
    code, out, errors = here(monkeypatch, capsys, *options, "--jobs", "2", *last)
    assert code == 1 and not out and "error: tiny_wrong_seed0 failed; see" in errors.splitlines()[-1]
    assert "no_class is no class" in (tmp_path / "runs" / "logs" / "tiny_wrong_seed0.log").read_text()
    told = json.loads((tmp_path / "runs" / "tiny_suponly_seed0" / "results.json").read_text())
    # They win over the table's own, but not over what tells the runs apart.
    assert (told["max_steps"], told["seed"]) == (4, 0)
    # What did not fail is kept: a line for each run, and a table of one's own as the project's are.
    lines = (tmp_path / "cards" / "records" / "tiny.jsonl").read_text().splitlines()
    results = json.loads(lines[1])
    assert results["method"] == "u2pl_ael" and results["run"] == "tiny_ael_seed0" and len(lines) == 2
    assert sorted(path.name for path in (tmp_path / "cards").iterdir()) == ["records", "tiny.md", "tiny.png"]
    score = f"{100 * results['last']['mean_iou']:.2f}"
    assert f"| U2PL + AEL | 6 | 4 | 0 | {score} |" in errors
    assert f"| U2PL + AEL | 6 | 4 | 0 | {score} |" in (tmp_path / "cards" / "tiny.md").read_text()
    code, out, errors = here(monkeypatch, capsys, *options, "--only", "suponly", "ael", *last)
    assert code == 0 and json.loads(out) == {
        "table": "tiny", "finished": ["tiny_suponly_seed0", "tiny_ael_seed0"], "to_do": []
    }  # fmt: skip
    assert (tmp_path / "runs" / "logs" / "tiny_suponly_seed0.log").read_text().count("from step 0 to 4") == 1


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml}", ["--only", "b"], "--only b is no row of"),
        (
            "title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml}",
            ["--jobs", "0"],
            "--jobs is 0: it must be at least 1",
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
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, content, options, message):
    (tmp_path / "t.yaml").write_text(content)
    code, out, errors = here(monkeypatch, capsys, tmp_path / "t.yaml", "--output_dir", tmp_path / "runs", *options)
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
def test_a_damaged_run_is_named(tmp_path, monkeypatch, capsys, name, content, message):
    table, run = tmp_path / "t.yaml", tmp_path / "runs" / "t_a_seed0"
    table.write_text("title: A\nrows:\n  - {id: a, name: A, recipe: demo_suponly.yaml}")
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text((ROOT / "training_scripts" / "recipes" / "demo_suponly.yaml").read_text())
    (run / name).write_text(content)
    code, out, errors = here(monkeypatch, capsys, table, "--output_dir", tmp_path / "runs")
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
    started, start_process = [], subprocess.Popen

    def note(*arguments, **options) -> subprocess.Popen:
        started.append(start_process(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", note)
    with pytest.raises(InputError, match=r"no run can be started .*b\.log"):
        queue("ab", tmp_path / "logs", jobs=2, code="import time; time.sleep(60)")
    assert [process.poll() for process in started] == [-signal.SIGTERM]


def test_what_fails_is_named_after_the_rest_is_done(tmp_path):
    with pytest.raises(TrainingError, match=r"^b failed; see .*b\.log"):
        queue("abcd", tmp_path / "logs", jobs=2, code=f"open({str(tmp_path / 'NAME')!r}, 'w'); exit('NAME' == 'b')")
    assert all((tmp_path / name).exists() for name in "abcd")
