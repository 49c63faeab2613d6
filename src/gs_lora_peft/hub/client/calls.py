"""Calls to the Hub: retried while it is busy or out of reach, with errors that say what to do."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # of the HTTP library that the client uses; connection errors and statuses alike
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ...errors import InvalidInputError, short

_BUSY = (408, 429, 500, 502, 503, 504)
_PAUSES = (1.0, 2.0, 4.0, 8.0)
# The client repeats some calls itself, so the attempts here must end in time.
_PATIENCE = 60.0

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class HubRefusalError(InvalidInputError):
    """The Hub refuses a call, and would refuse it again.

    Attributes:
        name (`str`):
            As in [`InvalidInputError`].
        value (`str`):
            The id of the repository.
        expected (`str`):
            As in [`InvalidInputError`].
        fix (`str`):
            As in [`InvalidInputError`].
        status (`int` or `None`):
            HTTP status of the answer.
    """

    def __init__(self, name: str, value: Any, expected: str, fix: str = "", status: int | None = None):
        super().__init__(name, value, expected, fix)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.value, self.expected, self.fix, self.status)


class HubUnreachableError(ConnectionError):
    """The Hub is out of reach, or busy for too long. Repeat the call later.

    Attributes:
        repo_id (`str`):
            The repository.
        status (`int` or `None`):
            HTTP status of the last answer; `None` if there was no answer.
    """

    def __init__(self, message: str, repo_id: str, status: int | None = None):
        super().__init__(message)
        self.repo_id = repo_id
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.repo_id, self.status)


def call_hub(action: Callable[[], Result], repo_id: str) -> Result:
    """Calls the Hub, and repeats the call after 1, 2, 4 and 8 s while the Hub is busy (HTTP 408, 429, 5xx) or away.

    `huggingface_hub` repeats uploads of files. It does not repeat the creation of a repository, a question for its
    state, a commit or an interrupted download. The last attempt begins within a minute after the first one.

    Args:
        action (`Callable`):
            The call, without arguments. It may run several times.
        repo_id (`str`):
            Id of the repository, for errors.

    Returns:
        What `action` returns.

    Raises:
        HubRefusalError: If the repository or the revision does not exist, or the token does not allow the call.
        InvalidInputError: If `HF_ENDPOINT` is not the address of a Hub.
        HubUnreachableError: If the Hub is busy or away at the last attempt.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses for another reason.
    """
    check_endpoint()
    start = time.monotonic()
    pauses = iter(_PAUSES)
    while True:
        try:
            return action()
        except RuntimeError as error:  # the client gave up on an upload
            if isinstance(error.__cause__, HTTPError):
                raise_refusal(error.__cause__, repo_id)
            raise _unreachable(error, repo_id) from error
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
    """Returns the HTTP status of an error, or `None` if the Hub did not answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def checked_repo_id(repo_id: Any) -> str:
    """Returns the id of a repository as it is; raises InvalidInputError unless it is `"name"` or `"owner/name"`."""
    try:
        if not isinstance(repo_id, str):
            raise HFValidationError(f"it is a {type(repo_id).__name__}")
        validate_repo_id(repo_id)
    except HFValidationError as error:
        fix = f"{short(repo_id)} is not a valid id of a repository ({error}): correct it."
        raise InvalidInputError("repo_id", repo_id, "'name' or 'organisation/name'", fix) from None
    return repo_id


def writing_api(token: str | bool | None) -> HfApi:
    """Returns a client that can write to the Hub; raises InvalidInputError if no token is found."""
    token = get_token() if token is None or token is True else token
    if not token:
        fix = "Log in with `hf auth login`, set HF_TOKEN, or pass `token`."
        raise InvalidInputError("token", token, "a token for the Hub", fix)
    return HfApi(token=token, library_name="gs-lora-peft", library_version=version("gs-lora-peft"))


def raise_refusal(error: Exception, repo_id: str) -> None:
    """Raises HubRefusalError if the Hub would refuse the same call again; otherwise does nothing."""
    status = status_of(error)
    if refusal := _refusal(error, status):
        expected, fix = refusal
        fix = f"{fix} The Hub says: HTTP {status}, {_last_line(error)}"
        raise HubRefusalError("repo_id", repo_id, expected, fix, status) from error


def _wait_after(error: BaseException | None, start: float, pauses: Iterator[float], repo_id: str) -> None:
    pause = max(next(pauses, math.inf), _retry_after(error))
    if time.monotonic() + pause > start + _PATIENCE:
        raise _unreachable(error, repo_id) from error
    logger.warning("The Hub did not answer the request (%s); trying again in %g s.", status_of(error) or error, pause)
    time.sleep(pause)


def _retry_after(error: BaseException | None) -> float:
    """Returns the number of seconds that a busy server asks to wait; 0 if it names none."""
    seconds = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return float(seconds) if seconds.isascii() and seconds.isdigit() else 0.0


def check_endpoint() -> None:
    """Raises InvalidInputError if `HF_ENDPOINT` is not an address: every call to it would fail, after many retries."""
    if not constants.ENDPOINT.startswith(("http://", "https://")):
        expected = "the address of a Hub, as 'https://huggingface.co'"
        raise InvalidInputError("HF_ENDPOINT", constants.ENDPOINT, expected, "Correct or unset it.")


def _unreachable(error: BaseException | None, repo_id: str) -> HubUnreachableError:
    message = (
        f"the Hub could not be reached for {repo_id!r}, or was busy for too long ({_last_line(error)}). Repeat the "
        "call later: no change is half done, and complete files are not transferred again."
    )
    return HubUnreachableError(message, repo_id, status_of(error))


def _refusal(error: Exception, status: int | None) -> tuple[str, str] | None:
    """Returns what the Hub expects and the fix, or `None` if it may accept the same call later."""
    if isinstance(error, RevisionNotFoundError):
        return "a repository that has the revision", "The repository has no such revision: check its name."
    if isinstance(error, RepositoryNotFoundError):
        fix = "It does not exist or is private: check the spelling, log in with `hf auth login`, or pass `token`."
        return "a repository that you can read", fix
    if status == 401:
        fix = "The Hub does not know the token: log in again with `hf auth login`."
        return "a repository that you can reach", fix
    if status == 403:
        fix = "Use a token with this permission, ask the owner for access, or choose a repository of your own."
        return "a repository that this token can read and change", fix
    return None


def _last_line(error: BaseException | None) -> str:
    message = getattr(error, "server_message", None) or str(error)  # `str` ends with general advice
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
