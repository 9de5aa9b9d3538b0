"""The page under test: a tiny model for it, and servers in processes of their own."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation

ROOT = Path(__file__).resolve().parents[1]
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


def predictions(log: Path, at_least: int = 0) -> int:
    """How often the network ran; waits for the log to say so."""
    for _ in range(50):
        count = log.read_text().count("predicted ")
        if count >= at_least:
            break
        time.sleep(0.1)
    return count
