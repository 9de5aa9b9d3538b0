"""Scripts in the tests' own process: starting Python and importing torch for each would take six seconds."""

import contextlib
import io
import logging
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parents[1]


def run_here(script: str, *arguments, **environment: str) -> subprocess.CompletedProcess:
    """A script of training_scripts/, as if it were started: its exit code, stdout, and stderr with what it logs."""
    path = ROOT / "training_scripts" / script
    out, err, code = io.StringIO(), io.StringIO(), 0
    logged = logging.StreamHandler(err)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for name, value in ({"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)} | environment).items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        logging.root.addHandler(logged)
        level = logging.root.level
        # As a script sets it, where no handler of pytest's is in its way.
        logging.root.setLevel(logging.INFO)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            logging.root.setLevel(level)
            logging.root.removeHandler(logged)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())
