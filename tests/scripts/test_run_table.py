"""A table of two tiny runs: interrupted, continued, rendered."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
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


def test_a_table_is_interrupted_goes_on_and_is_rendered(tiny_data, tmp_path):
    table = tmp_path / "tiny.yaml"
    table.write_text(TABLE.format(data=tiny_data, steps=400))
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

    code, out, errors = finish(start(*options, "--list"))
    assert code == 0 and json.loads(out)["to_do"] == ["tiny_suponly_seed0", "tiny_ael_seed0"]
    # The rest with fewer steps would be another run, so the table says so before anything starts.
    table.write_text(TABLE.format(data=tiny_data, steps=5))
    code, out, errors = finish(start(*options))
    assert code == 2 and "max_steps is 400 there and 5 here" in errors.splitlines()[-1]


def test_finished_runs_are_passed_over_and_failed_ones_are_named(tiny_data, tmp_path):
    table = tmp_path / "tiny.yaml"
    table.write_text(TABLE.format(data=tiny_data, steps=5))
    options = [table, "--output_dir", tmp_path / "runs", "--model_cards", tmp_path / "cards"]
    code, out, errors = finish(start(*options, "--only", "suponly"))
    assert code == 0 and json.loads(out)["finished"] == ["tiny_suponly_seed0"]
    code, out, errors = finish(start(*options, "--jobs", "2"))
    assert code == 0 and json.loads(out) == {
        "table": "tiny", "finished": ["tiny_suponly_seed0", "tiny_ael_seed0"], "to_do": []
    }  # fmt: skip
    assert "tiny_suponly_seed0: begun" not in errors and "tiny_ael_seed0: done" in errors
    results = json.loads((tmp_path / "cards" / "tiny_ael_seed0" / "results.json").read_text())
    score = f"{100 * results['last']['mean_iou']:.2f}"
    assert f"| U2PL + AEL | 6 | 5 | 0 | {score} |" in errors
    assert results["method"] == "u2pl_ael" and (tmp_path / "cards" / "tiny_ael_seed0" / "README.md").exists()

    table.write_text(TABLE.format(data=tiny_data, steps=5).replace('["0"]', '["no_such_class"]'))
    code, out, errors = finish(start(table, "--output_dir", tmp_path / "other", "--only", "ael"))
    assert code == 1 and not out and "error: tiny_ael_seed0 failed; see" in errors.splitlines()[-1]
    assert "no_such_class is no class" in (tmp_path / "other" / "logs" / "tiny_ael_seed0.log").read_text()
