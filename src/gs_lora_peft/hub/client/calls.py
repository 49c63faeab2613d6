"""Calls to the Hub: retried while it is busy or out of reach; where a model or a data set lies."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library the client is built on; connection errors and statuses alike
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ...errors import InvalidInputError, short
from ...io import as_path

_BUSY = (408, 429, 500, 502, 503, 504)


_PAUSES = (1.0, 2.0, 4.0, 8.0)


# The client itself is patient with some calls; together with what is done here that must end at some time.
_PATIENCE = 60.0


Result = TypeVar("Result")


logger = logging.getLogger(__name__)


class HubRefusalError(InvalidInputError):
    """The Hub refuses a call for good.

    Attributes:
        name:
            As in [`InvalidInputError`]; the value is the id of the repository.
        value:
            As in [`InvalidInputError`]; the value is the id of the repository.
        expected:
            As in [`InvalidInputError`]; the value is the id of the repository.
        fix:
            As in [`InvalidInputError`]; the value is the id of the repository.
        status (`int` or `None`):
            The HTTP status of the answer.
    """

    def __init__(self, name: str, value: Any, expected: str, fix: str = "", status: int | None = None):
        super().__init__(name, value, expected, fix)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.value, self.expected, self.fix, self.status)


class HubUnreachableError(ConnectionError):
    """The Hub is out of reach, or busy for too long. The call can be repeated.

    Attributes:
        repo_id (`str`):
            The repository.
        status (`int` or `None`):
            The HTTP status of the last answer; `None` if there was none.
    """

    def __init__(self, message: str, repo_id: str, status: int | None = None):
        super().__init__(message)
        self.repo_id = repo_id
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.repo_id, self.status)


def call_hub(action: Callable[[], Result], repo_id: str) -> Result:
    """Calls the Hub, and repeats the call after 1, 2, 4 and 8 s if the Hub is busy (HTTP 408, 429, 5xx) or away.

    `huggingface_hub` repeats uploads of files, but not the creation of a repository, a question for its state, a
    commit, or a download that breaks off. The last attempt begins a minute after the first one at the latest.

    Args:
        action (`Callable`):
            The call. It may run several times.
        repo_id (`str`):
            The repository, for errors.

    Returns:
        What `action` returns.

    Raises:
        HubRefusalError: If the repository or the revision does not exist, or the token does not allow the call.
        InvalidInputError: If `HF_ENDPOINT` is not the address of a Hub.
        HubUnreachableError: If the Hub is still busy or away at the end. The call can be repeated.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses for another reason.
    """
    _check_endpoint()
    start = time.monotonic()
    pauses = iter(_PAUSES)
    while True:
        try:
            return action()
        except RuntimeError as error:  # the client gave up an upload
            if isinstance(error.__cause__, HTTPError):
                raise_refusal(error.__cause__, repo_id)
            raise _gave_up(error, repo_id) from error
        except LocalEntryNotFoundError as error:  # some versions of the client raise it for a busy Hub
            if status_of(error.__cause__) not in _BUSY:
                raise
            _wait_after(error.__cause__, start, pauses, repo_id)
        except HTTPError as error:
            raise_refusal(error, repo_id)
            if status_of(error) not in (None, *_BUSY):
                raise
            _wait_after(error, start, pauses, repo_id)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status an error came with; `None` if there was no answer at all."""
    return getattr(getattr(error, "response", None), "status_code", None)


def checked_repo_id(repo_id: Any) -> str:
    """The name of a repository, `"name"` or `"organisation/name"`; InvalidInputError for anything else."""
    try:
        if not isinstance(repo_id, str):
            raise HFValidationError(f"it is a {type(repo_id).__name__}")
        validate_repo_id(repo_id)
    except HFValidationError as error:
        fix = f"{short(repo_id)} cannot be a repository on the Hub ({error}): correct it."
        raise InvalidInputError("repo_id", repo_id, "'name' or 'organisation/name'", fix) from None
    return repo_id


def as_folder_or_repo(value: Any, name: str, what: str) -> Path | str:
    """The folder, or the id of a repository on the Hub, that an argument names. A folder that exists wins.

    Nothing is asked of the network. What can only be a path is one: an `os.PathLike`, and text that begins with `.`,
    `/` or `~`, ends with `/`, or has a backslash, a drive or more than one `/` in it.

    Args:
        value (`str` or `os.PathLike`):
            What was given.
        name (`str`):
            Name of the argument or option, for the error.
        what (`str`):
            What is looked for, as in "the folder of a run".

    Returns:
        `pathlib.Path` of what is there, or `str`, an id that may or may not exist.

    Raises:
        InvalidInputError: If it can only be a path, and nothing is there; or it is neither a path nor an id.
    """
    path = as_path(value, name)
    if os.path.lexists(path):
        return path
    if isinstance(value, str) and not value.startswith((".", "~")):
        try:
            validate_repo_id(value)
        except HFValidationError:
            pass
        else:
            return value
    expected = f"{what}, or a repository on the Hub as 'organisation/name'"
    raise InvalidInputError(name, value, expected, f"There is no such folder: '{path}'. Check the path.")


def looks_local(repo_id: str) -> bool:
    """Whether an id may well have been meant as a path: it has no `/`, or its first part is a folder here."""
    first, _, rest = repo_id.partition("/")
    return not rest or os.path.isdir(first)


def writing_api(token: str | bool | None) -> HfApi:
    """A client that has a token; InvalidInputError if there is none, because every write needs one."""
    token = get_token() if token is None or token is True else token
    if not token:
        fix = "Log in with `hf auth login`, set HF_TOKEN, or pass `token`."
        raise InvalidInputError("token", token, "a token for the Hub, which publishing needs", fix)
    return HfApi(token=token, library_name="gs-lora-peft", library_version=version("gs-lora-peft"))


def is_away(
    repo_id: str,
    filename: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
) -> bool:
    """Whether there is no way to the Hub at all, found out in one request for a file.

    The client itself tries for half a minute to reach a Hub that is away. For a path that was mistyped, and on a
    train, that is too long; what is in the cache is used at once with `local_files_only`.
    """
    return has_no_way(first_answer(repo_id, filename, repo_type=repo_type, revision=revision, token=token))


def first_answer(
    repo_id: str,
    filename: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
) -> Exception | None:
    """Asks the Hub once for a file: `None` if it is there, else the error that the client raises."""
    _check_endpoint()
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, filename, repo_type=repo_type, revision=revision), token=token)
    except (HTTPError, OSError) as error:
        return error
    return None


def has_no_way(error: Exception | None) -> bool:
    """Whether an error says that the Hub cannot be reached at all."""
    # By name: which HTTP library the client is built on has changed before.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint(("ConnectError", "ConnectTimeout", "OfflineModeIsEnabled"))


def raise_refusal(error: Exception, repo_id: str) -> None:
    """Raises HubRefusalError for what the Hub refuses for good; does nothing about any other error."""
    status = status_of(error)
    if refusal := _refusal(error, status):
        expected, fix = refusal
        fix = f"{fix} The Hub says: HTTP {status}, {_last_line(error)}"
        raise HubRefusalError("repo_id", repo_id, expected, fix, status) from error


def _wait_after(error: BaseException | None, start: float, pauses: Iterator[float], repo_id: str) -> None:
    pause = max(next(pauses, math.inf), _asked_for(error))
    if time.monotonic() + pause > start + _PATIENCE:
        raise _gave_up(error, repo_id) from error
    logger.warning("The Hub did not answer as hoped (%s); trying again in %g s.", status_of(error) or error, pause)
    time.sleep(pause)


def _asked_for(error: BaseException | None) -> float:
    """The seconds a busy server asks to be left alone."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return float(asked) if asked.isascii() and asked.isdigit() else 0.0


def _check_endpoint() -> None:
    if not constants.ENDPOINT.startswith(("http://", "https://")):
        expected = "the address of a Hub, as 'https://huggingface.co'"
        raise InvalidInputError("HF_ENDPOINT", constants.ENDPOINT, expected, "Correct or unset it.")


def _gave_up(error: BaseException | None, repo_id: str) -> HubUnreachableError:
    message = (
        f"the Hub could not be reached for {repo_id!r}, or was busy for too long ({_last_line(error)}). Repeat the "
        "call later: nothing is left half done, and files that arrived are not sent again."
    )
    return HubUnreachableError(message, repo_id, status_of(error))


def _refusal(error: Exception, status: int | None) -> tuple[str, str] | None:
    """What the Hub expects instead, and the fix; `None` if it may accept the same call later."""
    if isinstance(error, RevisionNotFoundError):
        return "a repository that has the revision", "It has no such revision: check the name."
    if isinstance(error, RepositoryNotFoundError):
        fix = "It does not exist on the Hub, or is private: check the spelling, log in, or pass `token`."
        return "a repository that you can read", fix
    if status == 401:
        fix = "The Hub does not know the token: log in again with `hf auth login`."
        return "a repository that you can reach", fix
    if status == 403:
        fix = "Use a token that has the right to, ask the owner for access, or choose a repository of your own."
        return "a repository that this token can read and change", fix
    return None


def _last_line(error: BaseException | None) -> str:
    said = getattr(error, "server_message", None) or str(error)  # the latter ends with general advice
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@dataclass(frozen=True)
class Source:
    """Where something is to be loaded from.

    Attributes:
        place (`str`):
            A path, or the id of a repository.
        is_local (`bool`):
            Whether it is a path.
        is_away (`bool`):
            Whether the Hub cannot be reached, so that only the cache can help.
    """

    place: str
    is_local: bool
    is_away: bool = False


def find_source(
    value: Any,
    name: str,
    what: str,
    *,
    filename: str,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
    in_cache: Callable[[str], bool] | None = None,
) -> Source:
    """Finds a folder or a repository before a library is asked that waits half a minute for what is not there.

    Args:
        value (`str` or `os.PathLike`):
            What was given.
        name (`str`):
            Name of the argument or option, for the error.
        what (`str`):
            What is looked for, as in "the folder of a model".
        filename (`str`):
            A file of the repository to ask for. The repository may lack it.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.
        revision (`str`, *optional*):
            Branch, tag or commit; by default the main branch.
        token (`str`, *optional*):
            By default the one of `hf auth login`.
        in_cache (`Callable`, *optional*):
            Whether the cache holds this repository; by default whether it holds `filename`.

    Returns:
        [`Source`]: A path that exists, a repository that exists, or one that is in the cache while the Hub is away.
            If.
        the Hub is busy, this decides nothing: the library that loads repeats its calls.

    Raises:
        InvalidInputError: If there is neither a folder nor a repository of that name.
        HubRefusalError: If the repository has no such revision, or may not be read.
        HubUnreachableError: If there is no folder, the Hub cannot be reached, and the cache does not hold the
            repository.
    """
    place = as_folder_or_repo(value, name, what)
    if isinstance(place, Path):
        return Source(os.fspath(place), is_local=True)
    error = first_answer(place, filename, repo_type=repo_type, revision=revision, token=token)
    if error is None or isinstance(error, EntryNotFoundError):
        return Source(place, is_local=False)
    if has_no_way(error):
        if not (in_cache or _file_in_cache(filename, repo_type, revision))(place):
            message = (
                f"`{name}` is {place!r}: there is no such folder, the cache holds no such repository, and the Hub "
                "cannot be reached. Check the path, or go online and repeat the call."
            )
            raise HubUnreachableError(message, place) from error
        return Source(place, is_local=False, is_away=True)
    try:
        raise_refusal(error, place)
    except HubRefusalError as refusal:
        expected = f"{what}, or a repository on the Hub as 'organisation/name'"
        fix = f"There is no such folder. As for the repository: {refusal.fix}"
        raise HubRefusalError(name, place, expected, fix, refusal.status) from error
    return Source(place, is_local=False)


def _file_in_cache(filename: str, repo_type: str, revision: str | None) -> Callable[[str], bool]:
    def found(repo_id: str) -> bool:
        # Where the file is known to be absent, the answer is an object that stands for that.
        path = try_to_load_from_cache(repo_id, filename, repo_type=repo_type, revision=revision)
        return isinstance(path, str)

    return found
