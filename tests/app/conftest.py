"""A tiny model, and the scripts: in this process, or as a server in one of its own."""

import os

import pytest

from tests.app_server import serving, tiny_model
from tests.in_process import ROOT, run_here
from u2pl_hf import U2PLImageProcessor


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net"
    tiny_model().save_pretrained(path)
    U2PLImageProcessor().save_pretrained(path)
    return path


@pytest.fixture
def here():
    """Runs a script in this process; returns (exit code, stdout, stderr)."""

    def run(script: str, *arguments):
        done = run_here(script, *arguments)
        return done.returncode, done.stdout, done.stderr

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


@pytest.fixture(scope="module")
def server(model_dir, tiny_data, tmp_path_factory):
    """(address, log file) of app.py with the tiny model."""
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [ROOT / "training_scripts" / "app.py", model_dir, "--dataset", tiny_data, "--num_examples", 2]
    with serving(log, [*command, "--port", 0, "--device", "cpu"], env=environment) as url:
        yield url, log
