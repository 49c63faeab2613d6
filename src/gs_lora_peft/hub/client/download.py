"""Finding models, data sets and runs in folders and on the Hub, and downloading files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ...errors import InvalidInputError
from ...io import as_path
from .calls import HubRefusalError, HubUnreachableError, call_hub, check_endpoint, raise_refusal

Downloaded = TypeVar("Downloaded")


@dataclass(frozen=True)
class Source:
    """Where a model or a data set is loaded from.

    Attributes:
        place (`str`):
            A path, or the id of a repository.
        is_local (`bool`):
            Whether `place` is a path.
        is_away (`bool`):
            Whether the Hub is out of reach, so that only the cache can provide the repository.
    """

    place: str
    is_local: bool
    is_away: bool = False


def as_folder_or_repo(value: Any, name: str, what: str) -> Path | str:
    """Returns the path, or the id of a repository, that an argument names. An existing path takes precedence.

    This makes no request. A value that can only be a path counts as one: an `os.PathLike`, and text that begins with
    `.`, `/` or `~`, ends with `/`, or contains a backslash, a drive or more than one `/`.

    Args:
        value (`str` or `os.PathLike`):
            The value of the argument.
        name (`str`):
            Name of the argument or option, for the error.
        what (`str`):
            What the argument names, e.g. `"the folder of a run"`, for the error.

    Returns:
        `pathlib.Path` if the path exists, else `str`: an id that may or may not exist on the Hub.

    Raises:
        InvalidInputError: If the value can only be a path and the path does not exist, or it is neither a path nor an
            id.
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
    """Finds a folder or a repository, in one request at most.

    Call it before a library that retries for half a minute if a repository does not exist. If the Hub is busy, this
    function assumes that the repository exists, because the loading library retries.

    Args:
        value (`str` or `os.PathLike`):
            The value of the argument.
        name (`str`):
            Name of the argument or option, for the error.
        what (`str`):
            What the argument names, e.g. `"the folder of a model"`, for the error.
        filename (`str`):
            A file of the repository to ask for. The repository may lack it.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.
        revision (`str`, *optional*):
            Branch, tag or commit; by default the main branch.
        token (`str`, *optional*):
            By default the one of `hf auth login`.
        in_cache (`Callable`, *optional*):
            Returns whether the cache holds a repository, given its id; by default whether it holds `filename`.

    Returns:
        [`Source`]: A path that exists, a repository that exists, or a repository in the cache while the Hub is away.

    Raises:
        InvalidInputError: If there is neither a folder nor a repository of that name.
        HubRefusalError: If the repository has no such revision, or may not be read.
        HubUnreachableError: If there is no folder, the Hub is out of reach, and the cache does not hold the
            repository.
    """
    place = as_folder_or_repo(value, name, what)
    if isinstance(place, Path):
        return Source(os.fspath(place), is_local=True)
    error = first_answer(place, filename, repo_type=repo_type, revision=revision, token=token)
    if error is None or isinstance(error, EntryNotFoundError):
        return Source(place, is_local=False)
    if _is_unreachable(error):
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
        fix = f"There is no such folder. The repository: {refusal.fix}"
        raise HubRefusalError(name, place, expected, fix, refusal.status) from error
    return Source(place, is_local=False)


def is_away(
    repo_id: str,
    filename: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
) -> bool:
    """Returns whether the Hub is out of reach, after one request for a file.

    The client tries for half a minute to reach a Hub that is away. With `local_files_only` it uses its cache at once.
    """
    return _is_unreachable(first_answer(repo_id, filename, repo_type=repo_type, revision=revision, token=token))


def first_answer(
    repo_id: str,
    filename: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
) -> Exception | None:
    """Asks the Hub once for a file; returns `None` if the file exists, else the error of the client."""
    check_endpoint()
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, filename, repo_type=repo_type, revision=revision), token=token)
    except (HTTPError, OSError) as error:
        return error
    return None


def download_file(
    repo_id: str,
    filename: str,
    *,
    max_bytes: int,
    revision: str | None = None,
    token: str | bool | None = None,
    error: type[InvalidInputError] = InvalidInputError,
) -> tuple[Path, bool]:
    """Downloads a file to the Hugging Face cache, or finds it there.

    Args:
        repo_id (`str`):
            The repository.
        filename (`str`):
            Path of the file in the repository.
        max_bytes (`int`):
            The largest size that is accepted.
        revision (`str`, *optional*):
            Branch, tag or commit; by default the main branch.
        token (`str`, *optional*):
            By default the one of `hf auth login`.
        error (`type[InvalidInputError]`, *optional*):
            What to raise if the file is too large.

    Returns:
        `tuple[Path, bool]`: The file in the snapshot of its commit, and whether this call downloaded it.

    Raises:
        error: If the file is larger than `max_bytes`; it is not downloaded.
        huggingface_hub.errors.RemoteEntryNotFoundError: If the repository has no such file.
        HubRefusalError, HubUnreachableError: As [`call_hub`].
        ConnectionError: If the Hub is away and the cache does not hold the file.
    """

    def download() -> tuple[Path, bool]:
        away = is_away(repo_id, filename, revision=revision, token=token)
        known = hf_hub_download(repo_id, filename, revision=revision, token=token, dry_run=True, local_files_only=away)
        if known.file_size is not None and known.file_size > max_bytes:
            name = f"the number of bytes of {filename} in the repository {repo_id!r}"
            fix = "It is not downloaded, because it cannot be genuine."
            raise error(name, known.file_size, f"{max_bytes} at most", fix)
        path = hf_hub_download(repo_id, filename, revision=revision, token=token, local_files_only=away)
        return Path(path), not known.is_cached

    return _downloaded(download, repo_id)


def download_snapshot(
    repo_id: str, patterns: Sequence[str], *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Downloads the files that match `patterns` to the Hugging Face cache; returns the folder of the snapshot.

    Raises:
        HubRefusalError, HubUnreachableError, ConnectionError: As [`download_file`].
    """
    return _downloaded(
        lambda: Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(patterns))),
        repo_id,
    )


def _downloaded(download: Callable[[], Downloaded], repo_id: str) -> Downloaded:
    try:
        return call_hub(download, repo_id)
    except RemoteEntryNotFoundError:
        raise
    except EntryNotFoundError as error:
        mistyped = "If you meant a path, check it. " if _may_be_path(repo_id) else ""
        raise ConnectionError(
            f"there is no such folder: {repo_id!r}; and the cache does not hold the whole repository of that name, "
            f"while the Hub is out of reach. {mistyped}Go online and repeat the call."
        ) from error


def _may_be_path(repo_id: str) -> bool:
    """Whether an id may be a mistyped path: it has no `/`, or its first part is a folder here."""
    first, _, rest = repo_id.partition("/")
    return not rest or os.path.isdir(first)


def _is_unreachable(error: Exception | None) -> bool:
    # By name, because the client has changed its HTTP library before.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint(("ConnectError", "ConnectTimeout", "OfflineModeIsEnabled"))


def _file_in_cache(filename: str, repo_type: str, revision: str | None) -> Callable[[str], bool]:
    def found(repo_id: str) -> bool:
        # For a file that is known to be absent, the cache returns a marker object.
        path = try_to_load_from_cache(repo_id, filename, repo_type=repo_type, revision=revision)
        return isinstance(path, str)

    return found
