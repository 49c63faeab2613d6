"""Where a model or a data set is: a folder here, the Hub, or its cache. At most one request finds out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from .hub_calls import (
    HubRefusalError,
    HubUnreachableError,
    as_folder_or_repo,
    first_answer,
    has_no_way,
    raise_refusal,
)


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
        [`Source`]: A path that exists, a repository that exists, or one that is in the cache while the Hub is away. If
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
