"""A tiny model, and the scripts: in this process, or as a server in one of its own."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.evaluation.inference import build_image_processor

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["wall", "tree", "car <b>", "sky"]


def tiny_model(names=NAMES):
    torch.manual_seed(0)
    config = U2PLConfig(
        backbone="resnet18",
        base_width=8,
        head_channels=8,
        representation_channels=8,
        id2label=dict(enumerate(names)),
        label2id={name: c for c, name in enumerate(names)},
    )
    return U2PLForSemanticSegmentation(config).eval()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net"
    tiny_model().save_pretrained(path)
    build_image_processor().save_pretrained(path)
    return path


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs a script in this process; returns (exit code, stdout, stderr)."""

    def run(script: str, *arguments):
        path = ROOT / "training_scripts" / script
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(here):
    """Runs a script that must fail; returns its one error line."""

    def run(script: str, *arguments) -> str:
        code, out, err = here(script, *arguments)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, out, len(lines)) == (2, "", 1), err
        return lines[0]

    return run


@contextlib.contextmanager
def serving(log: Path, command: list, **options):
    """The address that a command's one JSON line names, while it runs; its stderr goes to `log`."""
    with log.open("w") as errors, subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True, **options
    ) as process:  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            yield json.loads(line)["url"]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def server(model_dir, tiny_data, tmp_path_factory):
    """(address, log file) of app.py with the tiny model."""
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [ROOT / "training_scripts" / "app.py", model_dir, "--dataset", tiny_data, "--num_examples", 2]
    with serving(log, [*command, "--port", 0, "--device", "cpu"], env=environment) as url:
        yield url, log


def predictions(log: Path, at_least: int = 0) -> int:
    """How often the network ran; waits for the log to say so."""
    for _ in range(50):
        count = log.read_text().count("predicted ")
        if count >= at_least:
            break
        time.sleep(0.1)
    return count
