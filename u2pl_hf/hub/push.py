"""Pushing a folder to the Hub."""

import logging
import re
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects, validate_repo_id

from u2pl_hf.errors import InputError, refusing, require

log = logging.getLogger(__name__)

# Of what git allows, as much as needs no quotes anywhere. 40 digits are a commit, and one pushes to a branch.
BRANCH = re.compile(r"(?!refs/|[0-9a-f]{40}$|.*\.\.|.*\.lock$|.*\.$)\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
# Seconds before the second, third and fourth try.
BACK_OFF = (1, 5, 20)
# What huggingface_hub raises where the network or the server fails: HTTPError is the base of both; a failed upload
# of a large file comes as RuntimeError.
PUSH_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)


def check_can_push(repo_id: str, repo_type: str = "model", *, revision: str | None = None) -> None:
    """Find out before long work whether a push has a name to go to and a token to go with.

    Raises:
        InputError: the name has not the form USER/NAME, the branch cannot be one, there is no token, or the Hub does
            not accept it.
    """
    check_names(repo_id, revision)
    account = _persistent(HfApi().whoami, f"cannot log in to push to {repo_id}")
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    require(role != "read", f"the token can only read, so {repo_id} cannot be pushed: make one that can write")
    if repo_id.split("/")[0] not in {account.get("name"), *(group.get("name") for group in account.get("orgs", []))}:
        # A warning, since tokens may be limited in what they tell.
        log.warning("the token belongs to %s, who may not be allowed to push to %s", account.get("name"), repo_id)


def check_names(repo_id: str, revision: str | None = None) -> None:
    """Refuse a repository or a branch that cannot have this name.

    Raises:
        InputError: what to pass instead.
    """
    told = f"{repo_id!r} is not the name of a repository on the Hub; pass USER/NAME"
    # The pattern of huggingface_hub lets a line break at the end pass.
    require(repo_id.count("/") == 1 and not re.search(r"\s", repo_id), told)
    with refusing(ValueError, told):
        validate_repo_id(repo_id)
    told = f"{revision!r} cannot be the name of a branch, and one does not push to a commit"
    like = "pass letters, digits, '-', '_', '.' and '/', such as voc_732-seed0"
    require(revision is None or BRANCH.fullmatch(revision), f"{told}: {like}")


def push_folder(
    folder: Path, repo_id: str, *, repo_type: str = "model", private: bool = False, revision: str | None = None
) -> str:
    """Upload all files of a folder as `push_files` does.

    Returns:
        The web address of the commit.

    Raises:
        InputError: no such folder, or the push failed for good: what to do about it.
    """
    require(folder.is_dir(), f"{folder} is not a folder; pass the folder to push")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {name: files[name] for name in filter_repo_objects(files, ignore_patterns=DEFAULT_IGNORE_PATTERNS)}
    words = ["hf", "upload", repo_id, str(folder), ".", "--repo-type", repo_type]
    words += ["--private"] * private + (["--revision", revision] if revision else [])
    options = {"repo_type": repo_type, "private": private, "revision": revision}
    options["later"] = f"{folder} is kept, to push it later run `{shlex.join(words)}`"
    return push_files(files, repo_id, commit_message=f"Files of {folder.resolve().name}", **options)


def push_files(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    commit_message: str,
    revision: str | None = None,
    nothing_else: bool = False,
    later: str,
) -> str:
    """Upload files in one commit, creating repository and branch `revision` where missing.

    What is there already is not sent again, and where nothing changes there is no commit. Failures of network and
    server are tried again a few times.

    Args:
        files: path in the repository -> file on this disk, or content.
        private: of a new repository; one that is there must be so.
        nothing_else: remove all other files of the branch.
        later: for the error message, how to push later.

    Returns:
        The web address of the commit.

    Raises:
        InputError: the push failed for good, or would make public what was to be private.
    """
    api, target = HfApi(), {"repo_id": repo_id, "repo_type": repo_type}
    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}

    def upload() -> CommitInfo:
        api.create_repo(**target, **sdk, private=private, exist_ok=True)
        if private and not api.repo_info(**target).private:
            # The Hub leaves a repository that is there as it is.
            raise InputError(f"{repo_id} is there already and public; make it private in its settings, or push without")
        if revision is not None:
            api.create_branch(**target, branch=revision, exist_ok=True)
        operations: list = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        if nothing_else:
            there = api.list_repo_files(**target, revision=revision)
            operations += [CommitOperationDelete(name) for name in there if name not in (*files, ".gitattributes")]
        return api.create_commit(**target, operations=operations, commit_message=commit_message, revision=revision)

    return _persistent(upload, f"cannot push to {repo_id}", f"; {later}").commit_url


def _persistent(call: Callable, failing: str, later: str = ""):
    """The result of a call, made again after a pause while it fails for a reason that may pass.

    Raises:
        InputError: it failed for good: what could not be done, why, and what to do later.
    """
    for pause in (*BACK_OFF, None):
        try:
            return call()
        except InputError:
            raise
        except PUSH_ERRORS as error:
            if pause is None or not _may_pass(_cause(error)):
                raise InputError(f"{failing}: {_reason(error)}{later}") from error
            log.warning("%s; trying again in %s s", _reason(error), pause)
        time.sleep(pause)


def _cause(error: BaseException) -> BaseException:
    # A failed upload of a large file is wrapped.
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    is_of_network = isinstance(error, HTTPError | ConnectionError | TimeoutError | RuntimeError)
    return is_of_network and not isinstance(error, OfflineModeIsEnabled) and not _is_about_token(error)


def _is_about_token(error: BaseException) -> bool:
    """Whether the token cannot be sent at all; such errors quote it."""
    return isinstance(error, UnicodeEncodeError) or "Bearer" in str(error)


def _reason(error: BaseException) -> str:
    """One line, without any token."""
    error = _cause(error)
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token; run `hf auth login`, or set HF_TOKEN"
    if _is_about_token(error):
        return "the token is not one word of plain letters"
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
        return "the Hub does not accept the token (401); make one that can write, then `hf auth login` or HF_TOKEN"
    text = re.sub(r"For more information check: \S+", "", str(error))
    # Addresses to upload to carry a signature.
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
    return " ".join(text.split())[:300] or type(error).__name__
