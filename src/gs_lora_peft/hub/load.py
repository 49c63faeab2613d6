"""Loading a model that has forgotten, and the base model of a run, from a folder or from the Hub."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from .. import models
from ..adapters import (
    TaskAdapter,
    attach_adapters,
    check_changes,
    merge_changes,
    model_identity,
    read_changes,
    updates_beside,
)
from ..compat import refuse_quantised, refuse_unreadable, unwrapped
from ..errors import InvalidInputError
from ..io import StrPath
from ..ledger import ForgettingLedger, warn_not_forgotten
from .client.download import as_folder_or_repo, find_source
from .fetch import resolve_run_folder

_NAME, _WHAT = "base_model", "the folder of a model"


def load_forgotten(
    base_model: PreTrainedModel,
    repo_or_folder: str | os.PathLike,
    tasks: int | Sequence[str] | None = None,
    merge: bool = False,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> nn.Module:
    """Loads a model as it was after some of its forgetting tasks. Ledger, files and base weights are checked first.

    A warning names the tasks that did not forget, by the scores in the ledger.

    Args:
        base_model (`transformers.PreTrainedModel`):
            The model that the tasks were trained on. It is changed in place.
        repo_or_folder (`str` or `os.PathLike`):
            A folder with `forgetting.json`, or a repository that [`push_to_hub`] made (`"organisation/name"`). An
            existing folder takes precedence. Only the ledger and the files of the chosen tasks are downloaded.
        tasks (`int` or list of `str`, *optional*):
            The number of tasks in effect, from the first, or their names (`"task_001"`). By default all; with 0 the
            base model is returned. Revoked tasks are not loaded.
        merge (`bool`, *optional*, defaults to `False`):
            With `True` the tasks are merged into the weights in order, and the bare model is returned, bit-equal to
            the model of the live run. With `False` a `PeftModel` is returned, with one frozen adapter per task, all
            active; but if a task left new values of weights instead of an adapter, all tasks are merged.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository; by default its main branch. Not for a folder.
        token (`str`, *optional*):
            For private repositories; by default the one of `hf auth login`.

    Returns:
        `PeftModel`; or the base model with `merge=True`, without tasks, or if a task left weights. In eval mode.

    Raises:
        LedgerError: If the ledger is missing, edited or of a newer schema, if a file is missing or differs from its
            recorded hash, if the base weights are not those the ledger names, if a task does not exist, if what a task
            left does not fit the model, or if weights that it left hold the effect of an earlier task that is not
            among `tasks`. The model is unchanged then.
        ValueError: If the model holds adapters, is quantised (with weights of torchao in 8 bits only if tasks are
            merged, see docs/scale.md), the repository does not exist or may not be read, or
            `revision` is given for a folder.
        ConnectionError: If the Hub is out of reach and the cache does not hold everything; repeat the call.
    """
    base_model = unwrapped(base_model)
    check_bare(base_model, exact=merge)
    folder = resolve_run_folder(repo_or_folder, tasks=tasks, revision=revision, token=token)
    with _garbage_left():
        ledger = ForgettingLedger.load(folder)
        model = with_tasks_of(base_model, ledger, tasks, merge=merge)
    warn_not_forgotten(ledger, tasks)
    return model


def with_tasks_of(
    base_model: PreTrainedModel, ledger: ForgettingLedger, tasks: int | Sequence[str] | None, *, merge: bool
) -> nn.Module:
    """Returns the model with tasks of a ledger, as [`load_forgotten`] does, without a warning.

    Args:
        base_model (`transformers.PreTrainedModel`):
            The model, without adapters. It is changed in place.
        ledger ([`ForgettingLedger`]):
            The ledger, beside whose file are those of the tasks.
        tasks (`int` or `Sequence[str]`, *optional*):
            As in [`load_forgotten`].
        merge (`bool`):
            As in [`load_forgotten`].

    Raises:
        LedgerError: As in [`load_forgotten`].
    """
    changes = read_changes(ledger, tasks, each=False)
    ledger.check_base(model_identity(base_model))
    check_changes(base_model, changes)
    adapters = [change for change in changes if isinstance(change, TaskAdapter)]
    if merge or not adapters or len(adapters) < len(changes):
        if changes:
            refuse_quantised(base_model)
        return merge_changes(base_model, changes).eval()
    return attach_adapters(base_model.eval(), adapters)


@contextmanager
def _garbage_left() -> Iterator[None]:
    """Keeps Python from looking for garbage: among as many new objects that takes a third of the time of loading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def check_bare(model: nn.Module, *, exact: bool = True) -> None:
    """Checks that a model is without adapters, and that tasks can be put into it.

    Args:
        model (`torch.nn.Module`):
            The model.
        exact (`bool`, *optional*, defaults to `True`):
            Whether tasks are merged, which needs weights that are not quantised; else they stay beside the weights.

    Raises:
        InvalidInputError: If it holds adapters, or is quantised in a way that does not allow it.
    """
    if exact:
        refuse_quantised(model)
    else:
        refuse_unreadable(model)
    if hasattr(model, "peft_config"):
        fix = "It holds adapters: model.unload() removes them, model.merge_and_unload() keeps their effect."
        raise InvalidInputError("base_model", type(model).__name__, "a model without adapters", fix)
    if updates_beside(model):
        expected = "a model without the tasks of a run; a ContinualForgetter has put some beside its weights"
        raise InvalidInputError("base_model", type(model).__name__, expected, "Load and quantise the model again.")


def load_base_model(ledger: ForgettingLedger, source: StrPath, *, token: str | bool | None = None) -> PreTrainedModel:
    """Loads the base model of a run with the class that its ledger names.

    Args:
        ledger ([`ForgettingLedger`]):
            The run.
        source (`str` or `os.PathLike`):
            A folder, or a Hub id. It is loaded at the revision that the ledger names for this id.
        token (`str`, *optional*):
            By default the one of `hf auth login`.

    Returns:
        `transformers.PreTrainedModel`: The model. Its weights are not checked here.

    Raises:
        InvalidInputError: If transformers has no such class, or `source` is neither a folder nor a repository.
        OSError: If the model cannot be loaded.
        ConnectionError: If the Hub is away and the cache does not hold the model.
    """
    model_class = _model_class(ledger)
    return model_class.from_pretrained(**base_source(ledger, source, token=token))


def base_source(ledger: ForgettingLedger, source: StrPath, *, token: str | bool | None = None) -> dict[str, Any]:
    """Returns keyword arguments of `from_pretrained` for the base model, or for its processor.

    Raises:
        ValueError, ConnectionError: As [`find_source`].
    """
    revision = base_revision(ledger, model_source(source))
    found = find_source(source, _NAME, _WHAT, filename=CONFIG_NAME, revision=revision, token=token)
    return {
        "pretrained_model_name_or_path": found.place,
        "revision": revision,
        "token": token,
        "local_files_only": found.is_away,
    }


def model_source(source: StrPath) -> str:
    """Returns the path of an existing folder, or a Hub id that may or may not exist; makes no request.

    Raises:
        InvalidInputError: If the value can only be a path, and the path does not exist.
    """
    return os.fspath(as_folder_or_repo(source, _NAME, _WHAT))


def base_revision(ledger: ForgettingLedger, source: str) -> str:
    """Returns the commit that the ledger names if `source` is its Hub id, else `"main"`."""
    base = ledger.base_model
    is_known = base.get("name_or_path") == source and not os.path.isdir(source)
    return (base.get("revision") if is_known else None) or "main"


def _model_class(ledger: ForgettingLedger) -> type[PreTrainedModel]:
    name = ledger.base_model.get("model_class")
    found = getattr(transformers, name, None) or getattr(models, name, None) if name else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise InvalidInputError(
            f"model_class in the ledger in '{ledger.folder}'",
            name,
            "a model class of transformers or of this package",
            "Load the model yourself and pass it.",
        )
    return found
