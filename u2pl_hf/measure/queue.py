"""Runs one after the other, or a few beside each other: finished ones are passed over, an interruption reaches all."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from u2pl_hf.errors import InputError, TrainingError
from u2pl_hf.training.recipe.command import parse_arguments
from u2pl_hf.training.run.endings import SIGNALS
from u2pl_hf.training.run.folder import RunFolder

logger = logging.getLogger(__name__)


def option_words(options: Mapping) -> list[str]:
    """{"seed": 3, "fixed_defects": [1, 2]} as a command line: --seed 3 --fixed_defects 1 2."""
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return words


def is_finished(arguments: Sequence[str]) -> bool:
    """Whether a run with these arguments of train_u2pl.py is complete.

    Raises:
        InputError: wrong arguments, or a folder that holds something else.
    """
    folder = RunFolder(parse_arguments(list(arguments), ""))
    folder.check()
    return folder.finished_results() is not None


def run_all(command: Sequence[str], runs: Mapping[str, Sequence[str]], logs: Path, jobs: int = 1) -> None:
    """Start `command` with the arguments of each run, `jobs` at a time; what a run says goes to logs/NAME.log.

    Signals are passed on to the runs, which write their checkpoints; the same call then goes on from there. No run is
    left behind, however this ends.

    Raises:
        InputError: fewer than one job, or logs cannot be written.
        TrainingError: runs failed; the others were done nevertheless.
        SystemExit: a signal came.
    """
    if jobs < 1:
        raise InputError(f"--jobs {jobs} must be at least 1")
    waiting, going, failed, caught = list(runs), {}, [], []

    def note(number: int, frame) -> None:
        caught.append(number)
        for process, _ in going.values():
            process.send_signal(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        logs.mkdir(parents=True, exist_ok=True)
        while going or (waiting and not caught):
            while waiting and len(going) < jobs and not caught:
                name = waiting.pop(0)
                going[name] = (_start([*command, *runs[name]], logs / f"{name}.log"), time.monotonic())
                if caught:  # It came while the run was not yet in the list.
                    going[name][0].send_signal(caught[0])
                logger.info("%s: begun, %s", name, logs / f"{name}.log")
            for name in [name for name, (process, _) in going.items() if process.poll() is not None]:
                process, since = going.pop(name)
                how = "failed" if process.returncode else "done"
                how = "stopped" if process.returncode and caught else how
                logger.info("%s: %s after %.1f minutes", name, how, (time.monotonic() - since) / 60)
                failed += [name] if how == "failed" else []
            time.sleep(0.2)
    except OSError as error:
        if error.filename is None:  # No file: the system starts no process.
            raise
        raise InputError(f"{error.filename} cannot be written to ({error.strerror}); pass another folder") from error
    finally:
        for process, _ in going.values():
            process.terminate()
        for process, _ in going.values():
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        logger.info("stopped by %s; the same command goes on", signal.Signals(caught[0]).name)
        sys.exit(128 + caught[0])
    if failed:
        raise TrainingError(f"{', '.join(failed)} failed; see {logs / (failed[0] + '.log')}; the same command goes on")


def _start(command: Sequence[str], log: Path) -> subprocess.Popen:
    with open(log, "a") as file:
        # In a group of its own: a Ctrl-C at the terminal is passed on once, by us.
        return subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=file, start_new_session=True, env=os.environ.copy()
        )
