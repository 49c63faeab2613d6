"""Writing a run as one adapter, or as a full model, to a new folder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoProcessor, PreTrainedModel

from ..compat import loaded_from, refuse_quantised, unwrapped
from ..errors import InvalidInputError
from ..io import StrPath, as_path, staged_folder
from ..ledger import (
    ForgettingLedger,
    TaskEntry,
    doubts,
    empty_selection_reason,
    metric_of,
    not_forgotten,
    warn_not_forgotten,
)
from ..reports import render_card
from .card_metadata import is_on_hub, model_module
from .client.calls import checked_repo_id, writing_api
from .client.commit import commit_folder, open_repository, was_always_new
from .composite import CompositeReport, check_max_rank, write_composite
from .fetch import resolve_run_folder
from .install import check_free
from .load import base_source, load_base_model, model_source, with_tasks_of
from .withhold import coarse_audit


def export_forgotten(
    repo_or_folder: StrPath,
    out: StrPath,
    *,
    tasks: int | Sequence[str] | None = None,
    max_rank: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> CompositeReport:
    """Writes some tasks of a run as one plain LoRA adapter, which stock PEFT and transformers load.

    A single task is copied byte for byte; several tasks become their sum, as in the root of a published repository. A
    warning names the tasks that did not forget.

    Args:
        repo_or_folder (`str` or `os.PathLike`):
            As in [`load_forgotten`].
        out (`str` or `os.PathLike`):
            The folder to make. A folder that holds files is refused.
        tasks (`int` or list of `str`, *optional*):
            As in [`load_forgotten`]; by default all tasks in effect.
        max_rank (`int`, *optional*):
            The largest rank in a layer of the adapter. A larger one is recompressed. By default the adapter is exact.
        revision (`str`, *optional*):
            As in [`load_forgotten`].
        token (`str`, *optional*):
            As in [`load_forgotten`].

    Returns:
        [`CompositeReport`]: The rank of the adapter, and the error of the recompression.

    Raises:
        LedgerError: If files or tasks are not what the ledger says. After an error `out` is unchanged.
        ValueError: If `out` holds files, there is nothing to export, `max_rank` is not a whole number from 1 up, or
            the repository is out of reach.
        OSError: If a file could not be written.
    """
    out = as_path(out, "out")
    check_free(out)
    check_max_rank(max_rank)
    folder = resolve_run_folder(repo_or_folder, tasks=tasks, revision=revision, token=token)
    ledger = ForgettingLedger.load(folder)
    if not ledger.select(tasks):
        fix = f"Nothing is exported: {empty_selection_reason(ledger.tasks, tasks)}"
        raise InvalidInputError("tasks", tasks, f"at least one task in effect of the run in '{folder}'", fix)
    warn_not_forgotten(ledger, tasks)
    with staged_folder(out) as staged:
        return write_composite(ledger, staged, tasks=tasks, max_rank=max_rank)


def merge_forgotten(
    base_model: PreTrainedModel | StrPath,
    repo_or_folder: StrPath,
    out: StrPath,
    *,
    tasks: int | Sequence[str] | None = None,
    processing_class: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    push_to: str | None = None,
    private: bool = True,
) -> Path:
    """Writes a full model that has forgotten: the base model with the tasks merged, its processor and a card.

    From a base model with an adapter, the adapter can be taken off. From this model, shared alone, it cannot: it has
    no weights of the base model in the layers that the tasks change. What attacks still get back from it depends on
    the recipe, see [`audit_run`]. It is stored as safetensors, sharded as by transformers,
    loads with `AutoModelFor...`, and is bit-equal to the model of the live run. A warning and the card name the tasks
    that did not forget.

    Args:
        base_model (`PreTrainedModel`, `str` or `os.PathLike`):
            The base model, which is not changed; or a folder or Hub id to load it from, at the revision that the
            ledger names.
        repo_or_folder (`str` or `os.PathLike`):
            As in [`load_forgotten`].
        out (`str` or `os.PathLike`):
            The folder to make. A folder that holds files is refused.
        tasks (`int` or list of `str`, *optional*):
            As in [`load_forgotten`]; by default all tasks in effect.
        processing_class (*optional*):
            The image processor (or tokenizer, ...) to save with the model. By default the one of the base model; if
            it has none, a warning says so.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository with the run.
        token (`str`, *optional*):
            By default the one of `hf auth login`.
        push_to (`str`, *optional*):
            A new repository in which the model is published as well. It cannot be the repository of the run: together
            with the adapters, or with earlier models in its history, the model gives the knowledge back.
        private (`bool`, *optional*, defaults to `True`):
            As in [`push_to_hub`], for `push_to`.

    Returns:
        `pathlib.Path`: `out`.

    Raises:
        LedgerError: If files, base weights or tasks are not what the ledger says. After an error `out` is unchanged,
            and nothing is published.
        ValueError: If the base model is quantised, `out` holds files, there is nothing to merge, the class of the base
            model is unknown, or `push_to` is malformed, out of reach or not new.
        OSError: If the base model cannot be loaded or a file cannot be written.
    """
    out = as_path(out, "out")
    check_free(out)
    base_model = unwrapped(base_model)
    refuse_quantised(base_model)
    source = loaded_from(base_model)[0] or "" if isinstance(base_model, PreTrainedModel) else model_source(base_model)
    api = None if push_to is None else writing_api(token)
    repo = None if push_to is None else checked_repo_id(push_to)
    folder = resolve_run_folder(repo_or_folder, tasks=tasks, revision=revision, token=token)
    ledger = ForgettingLedger.load(folder)
    entries = ledger.select(tasks)
    if not entries:
        fix = f"Nothing is merged: {empty_selection_reason(ledger.tasks, tasks)}"
        raise InvalidInputError("tasks", tasks, f"at least one task in effect of the run in '{folder}'", fix)
    if not any(entry.groups.get("active", True) for entry in entries):
        expected = f"a task of the run in '{folder}' that changes the model"
        fix = "Nothing is merged, because the result would be the base model: choose other tasks."
        raise InvalidInputError("tasks", tasks, expected, fix)
    names = [entry.name for entry in entries]
    warn_not_forgotten(ledger, tasks)
    if isinstance(base_model, PreTrainedModel):
        model = copy.deepcopy(base_model)
    else:
        model = load_base_model(ledger, source, token=token)
    merged: Any = with_tasks_of(model, ledger, names, merge=True)
    with staged_folder(out) as staged:
        merged.save_pretrained(staged)
        processor = processing_class or _processor(ledger, source, token)
        if processor is not None:
            processor.save_pretrained(staged)
        _card(ledger, type(merged).__name__, names, repo, out).save(staged / "README.md")
        if api is not None and repo is not None:
            head = open_repository(api, repo, private=private)
            if not was_always_new(api, head) and not head.holds(staged):
                raise InvalidInputError(
                    "push_to",
                    head.repo_id,
                    "a new repository",
                    f"It has {len(head.files)} files. What it holds, or held once, could give the base model back: "
                    "choose another name.",
                )
            commit_folder(api, head, staged, f"Model after {len(names)} forgetting request(s)")
    return out


def _processor(ledger: ForgettingLedger, source: str, token: str | bool | None) -> Any:
    try:
        return AutoProcessor.from_pretrained(**base_source(ledger, source, token=token))
    except (OSError, ValueError, KeyError, ImportError) as error:  # what it raises if there is none
        warnings.warn(
            f"no processor was found with the base model {source!r}, and none is saved with the merged model "
            f"({error}). Pass processing_class.",
            stacklevel=3,
        )
        return None


def _is_scored(entry: TaskEntry) -> bool:
    """Whether the ledger has a score of the classes to forget after the task."""
    return entry.scores.get("after", {}).get(metric_of(entry).key("forget")) is not None


def _card(ledger: ForgettingLedger, model_class: str, names: Sequence[str], repo: str | None, out: Path) -> ModelCard:
    base = ledger.base_model.get("name_or_path")
    on_hub = bool(ledger.base_model.get("revision")) and is_on_hub(ledger.base_model)
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        library_name="transformers",
        tags=["gs-lora", "unlearning", "continual-forgetting"],
    )
    return render_card(
        "merged_model",
        data,
        title=(repo or out.name).rpartition("/")[2],
        base=base,
        count=len(names),
        measure=metric_of(*ledger.tasks),
        audit=coarse_audit(ledger.audit) if ledger.audit and ledger.audit["tasks"] == list(names) else None,
        measured=all(_is_scored(entry) for entry in ledger.select(names)),
        remarks=[line for find in (not_forgotten, doubts) for line in find(ledger, tasks=names, withheld=True)],
        model_class=model_class,
        model_module=model_module(model_class),
        repo=repo or out.name,
    )
