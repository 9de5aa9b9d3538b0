"""Runs one after the other, or a few beside each other: finished ones are passed over, an interruption reaches all."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from u2pl_hf.errors import InputError, TrainingError
from u2pl_hf.training.run.endings import SIGNALS

logger = logging.getLogger(__name__)


def option_words(options: Mapping) -> list[str]:
    """{"seed": 3, "fixed_defects": [1, 2]} as a command line: --seed 3 --fixed_defects 1 2."""
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return words


def run_all(command: Sequence[str], runs: Mapping[str, Sequence[str]], logs: Path, jobs: int = 1) -> None:
    """Start `command` with the arguments of each run, `jobs` at a time; what a run says goes to logs/NAME.log.

    Signals are passed on to the runs, which write their checkpoints; the same call then goes on from there. No run is
    left behind, however this ends.

    Raises:
        InputError: logs cannot be written.
        TrainingError: runs failed; the others were done nevertheless.
        SystemExit: a signal came.
    """
    caught: list[int] = []
    ended: list[str] = []
    begun = time.monotonic()

    def fails(name: str) -> bool:
        if caught:
            return False
        log, since, passed_on = logs / f"{name}.log", time.monotonic(), 0
        try:
            with open(log, "a") as file:
                # In a group of its own: a Ctrl-C at the terminal is passed on once, by us.
                words = [sys.executable, *command, *runs[name]]
                process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        except BaseException:
            caught.append(signal.SIGTERM)  # The others must not go on.
            raise
        logger.info("%s: begun, %s", name, log)
        while process.poll() is None:
            for number in caught[passed_on:]:
                process.send_signal(number)
                passed_on += 1
            time.sleep(0.2)
        how = "done" if process.returncode == 0 else "stopped" if caught else "failed"
        ended.append(name)
        now = time.monotonic()
        left = (now - begun) / 60 / len(ended) * (len(runs) - len(ended))
        told = "%s: %s after %.1f minutes; %d of %d ended, about %.0f minutes left"
        logger.info(told, name, how, (now - since) / 60, len(ended), len(runs), left)
        return how == "failed"

    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in SIGNALS}
    try:
        logs.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(jobs) as pool:
            failed = [name for name, failing in zip(runs, pool.map(fails, runs), strict=True) if failing]
    except OSError as error:
        raise InputError(f"no run can be started ({error}); pass another --output_dir, or fewer --jobs") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        logger.info("stopped by %s; the same command goes on", signal.Signals(caught[0]).name)
        sys.exit(128 + caught[0])
    if failed:
        raise TrainingError(f"{', '.join(failed)} failed; see {logs / (failed[0] + '.log')}; the same command goes on")
