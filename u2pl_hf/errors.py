"""Errors that a user can mend, told in one line."""

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable

from transformers.utils import logging as transformers_logging


class InputError(ValueError):
    """Something the user passed cannot be used.

    The message is one line: it names the file, option or id, and says what to pass instead.
    """


def exits_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """Make a script's `main` end with one line and exit code 2 on an InputError.

    Ctrl-C ends with 130. `U2PL_TRACEBACK=1` shows where an InputError was raised.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        for library in ("httpx", "httpx2", "datasets", "transformers", "accelerate"):
            logging.getLogger(library).setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()
        try:
            main(*args, **kwargs)
        except InputError as error:
            if os.environ.get("U2PL_TRACEBACK"):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
