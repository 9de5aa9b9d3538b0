"""Errors that a user can mend, told in one line."""

import contextlib
import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

from transformers.utils import logging as transformers_logging

# Longer messages lose their middle, such as a value of thousands of letters.
LONGEST_MESSAGE = 600


class OneLineError(Exception):
    """An error whose message is one line, whatever the names in it: what no one sees is shown as escapes."""

    def __init__(self, message: object):
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message))
        half = LONGEST_MESSAGE // 2 - 3
        super().__init__(text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}")


class InputError(OneLineError, ValueError):
    """Something the user passed cannot be used.

    The message is one line: it names the file, option or id, and says what to pass instead.
    """

    exit_code = 2


def refuse(rules: Iterable[tuple[object, str]]) -> None:
    """Go through a table of what is wrong and what is then said.

    Raises:
        InputError: with the first message whose condition holds.
    """
    for wrong, message in rules:
        if wrong:
            raise InputError(message)


class TrainingError(OneLineError, RuntimeError):
    """The run cannot go on: no memory, no disk, losses that are not finite, another process gone.

    The message is one line: what happened, what was kept, and what to change.
    """

    exit_code = 1


class Stopped(BaseException):
    """A run ended early because of a signal; everything up to `step` is in a checkpoint.

    Like KeyboardInterrupt it can arrive anywhere, and must pass everything that handles errors.

    Attributes:
        number: the signal.
        step: steps that the checkpoint holds.
    """

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}; the same command goes on from there")
        self.number, self.step = number, step


def require(condition: object, message: str) -> None:
    """Refuse what a user passed unless a condition holds.

    Raises:
        InputError: with the message.
    """
    if not condition:
        raise InputError(message)


def few(names: Sequence[object], most: int) -> str:
    """The first `most` of them, and how many more there are: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(str, names[:most]))}{more}"


@contextlib.contextmanager
def refusing(kinds: type[Exception] | tuple[type[Exception], ...], what: str, hint: str = "") -> Iterator[None]:
    """Errors of these kinds become one line: what is wrong, their reason in brackets, what to do about it.

    Raises:
        InputError: that line.
    """
    try:
        yield
    except OneLineError:
        raise
    except kinds as error:
        told = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise InputError(f"{what} ({told[:300]}){hint}") from error


def exits_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """Make a script's `main` end with one line: exit code 2 on an InputError, 1 on a TrainingError.

    A run that a signal stopped ends with 128 + the signal's number, Ctrl-C elsewhere with 130. `U2PL_TRACEBACK=1` shows
    where an error was raised.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        for library in ("httpx", "httpx2", "datasets", "transformers", "accelerate", "matplotlib"):
            logging.getLogger(library).setLevel(logging.ERROR)
        # It has a handler of its own: with ours as well, each line would come twice.
        logging.getLogger("huggingface_hub").propagate = False
        transformers_logging.disable_progress_bar()
        try:
            main(*args, **kwargs)
        except (InputError, TrainingError) as error:
            if os.environ.get("U2PL_TRACEBACK"):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
