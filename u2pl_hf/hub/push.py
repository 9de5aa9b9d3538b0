"""Pushing a folder to the Hub."""

import logging
import os
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from u2pl_hf.errors import InputError

log = logging.getLogger(__name__)

REPO_TYPES = ("model", "dataset", "space")
# Seconds before the second, third and fourth try.
BACK_OFF = (1, 5, 20)
# What huggingface_hub raises where the network or the server fails: HTTPError is the base of both; a failed upload
# of a large file comes as RuntimeError.
PUSH_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)


def check_can_push(repo_id: str, repo_type: str = "model") -> None:
    """Find out before long work whether a push has a name to go to and a token to go with.

    Raises:
        InputError: the name has not the form USER/NAME, there is no token, or the Hub does not accept it.
    """
    if repo_type not in REPO_TYPES:
        raise InputError(f"repository type '{repo_type}' is not one of {', '.join(REPO_TYPES)}")
    try:
        validate_repo_id(repo_id)
        user, name = repo_id.split("/")
    except ValueError as error:
        raise InputError(f"'{repo_id}' is not the name of a repository on the Hub; pass USER/NAME") from error
    try:
        account = _persistent(HfApi().whoami)
    except LocalTokenNotFoundError as error:
        raise InputError(f"no token to push {name} to {user}: run `hf auth login`, or set HF_TOKEN") from error
    except PUSH_ERRORS as error:
        raise InputError(f"cannot log in to push to {repo_id}: {_reason(error)}") from error
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"the token can only read, so {repo_id} cannot be pushed: make one that can write")


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    commit_message: str | None = None,
    revision: str | None = None,
    allow_patterns: list[str] | None = None,
    ignore_patterns: list[str] | None = None,
) -> str:
    """Upload the files of a folder, creating repository and branch `revision` where missing.

    `private` is for a new repository. Failures of network and server are tried again a few times.

    Returns:
        The web address of the commit.

    Raises:
        InputError: no such folder, or the push failed for good: what to do about it.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; pass the folder to push")
    target = {"repo_id": repo_id, "repo_type": repo_type}

    def upload() -> str:
        api = HfApi()
        sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(**target, **sdk, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(**target, branch=revision, exist_ok=True)
        options = {"revision": revision, "commit_message": commit_message, "allow_patterns": allow_patterns}
        # upload_folder adds to the list that it is given.
        ignored = list(ignore_patterns or [])
        return api.upload_folder(**target, folder_path=folder, ignore_patterns=ignored, **options).commit_url

    try:
        return _persistent(upload)
    except PUSH_ERRORS as error:
        flags = {"--repo-type": [repo_type], "--revision": [revision] if revision else [],
                 "--include": allow_patterns or [], "--exclude": ignore_patterns or []}  # fmt: skip
        words = ["hf", "upload", repo_id, str(folder), ".", *(["--private"] if private else [])]
        words += [word for flag, values in flags.items() for value in values for word in (flag, value)]
        raise InputError(
            f"cannot push to {repo_id}: {_reason(error)}; {folder} is kept, to push it later run `{shlex.join(words)}`"
        ) from error


def _persistent(call: Callable):
    """The result of a call, made again after a pause while it fails for a reason that may pass."""
    pauses = iter(BACK_OFF)
    while True:
        try:
            return call()
        except PUSH_ERRORS as error:
            pause = next(pauses, None)
            if pause is None or not _may_pass(error):
                raise
            log.warning("%s; trying again in %s s", _reason(error), pause)
        time.sleep(pause)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    if isinstance(error, RuntimeError):
        return error.__cause__ is None or _may_pass(error.__cause__)
    if isinstance(error, OfflineModeIsEnabled) or _is_about_token(error):
        return False
    return isinstance(error, HTTPError | ConnectionError | TimeoutError)


def _is_about_token(error: BaseException) -> bool:
    """Whether the token cannot be sent at all; such errors quote it."""
    return isinstance(error, UnicodeEncodeError) or "Bearer" in str(error)


def _reason(error: BaseException) -> str:
    """One line, without any token."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if _is_about_token(error):
        return "the token is not one word of plain letters"
    text = re.sub(r"For more information check: \S+", "", str(error))
    return " ".join(text.split())[:300] or type(error).__name__
