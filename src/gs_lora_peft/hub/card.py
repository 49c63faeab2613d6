"""The card of a published run: its values and tables. The sentences are in the template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from ..data import EVALUATION_SPLITS
from ..ledger import (
    SCORES,
    ForgettingLedger,
    TaskEntry,
    active_groups,
    all_forgotten,
    base_score,
    doubts,
    metric_of,
    not_forgotten,
    outdated_audit,
    score_columns,
    size,
    task_states,
)
from ..reports import Cell, Table, percent, render_card, shortened_names
from .card_metadata import (
    METRICS,
    evaluation_results,
    is_on_hub,
    model_module,
    pipeline_tag_of,
    revoked_since,
    scored_last,
)
from .withhold import coarse_audit, without_counts

if TYPE_CHECKING:
    from .composite import CompositeReport

TAGS = ["gs-lora", "unlearning", "continual-forgetting"]


def build_card(
    ledger: ForgettingLedger,
    *,
    repo_id: str | None,
    composite: CompositeReport | None = None,
    figures: Sequence[str] = (),
    withheld: bool = False,
    dataset: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Writes the card of a run: what was asked, how well it worked, how to load it, and what it does not promise.

    All values come from the ledger; unknown ones are omitted, or reported as unknown. The same arguments give the same
    text.

    Args:
        ledger ([`ForgettingLedger`]):
            The run, as it will be published.
        repo_id (`str`, *optional*):
            `"organisation/name"`, for the title and the code. With `None` the code loads from the current folder,
            `"."`.
        composite ([`CompositeReport`], *optional*):
            How the adapter in the root was made from the tasks.
        figures (`Sequence[str]`, *optional*, defaults to `()`):
            Pictures to show, as paths in the repository; see [`draw_figures`].
        withheld (`bool`, *optional*, defaults to `False`):
            Whether to show no class, no number of samples and no exact time or score. Classes that the ledger
            withholds are never shown.
        dataset (`str`, *optional*):
            Hub id of the data set. The ledger does not record it.
        license (`str`, *optional*):
            License of the base model as the Hub calls it, e.g. `"apache-2.0"`. The adapter is derived from the base
            model; by default the card names no license.

    Returns:
        `huggingface_hub.ModelCard`: The card; `card.save("README.md")` writes it.
    """
    if withheld:
        coarse = without_counts(ledger.tasks)
        ledger = ForgettingLedger(ledger.folder, ledger.base_model, None, coarse, audit=coarse_audit(ledger.audit))
    base, entries, active = ledger.base_model, ledger.tasks, ledger.active_tasks
    title = repo_id.rsplit("/", 1)[-1] if repo_id else "forgetting-adapter"
    model_class, on_hub, measure = base.get("model_class") or "", is_on_hub(base), metric_of(*entries)
    pipeline_tag = pipeline_tag_of(model_class)
    results = evaluation_results(entries, task_type=pipeline_tag or "other", dataset=dataset)
    # Tasks that left weights cannot be part of a root adapter. Without tasks in effect, there may be none either.
    left = [entry for entry in active or entries if entry.leaves_weights]
    data = ModelCardData(
        base_model=base["name_or_path"] if on_hub else None,
        base_model_relation=("finetune" if left else "adapter") if on_hub else None,
        datasets=[dataset] if dataset else None,
        eval_results=results or None,
        library_name=None if left else "peft",
        license=license,
        metrics=[METRICS[measure][0]] if results else None,
        model_name=title if results else None,
        pipeline_tag=pipeline_tag,
        tags=TAGS if left else [*TAGS, "lora"],
    )
    revoked = [entry for entry in entries if entry.status == "revoked"]
    return render_card(
        "run",
        data,
        title=title,
        repo=repo_id or ".",
        license=license,
        dataset=dataset,
        pipeline_tag=pipeline_tag,
        # The base model
        base=base,
        on_hub=on_hub,
        model_class=model_class,
        model_module=model_module(model_class),
        base_score=base_score(entries),
        # Which tasks there are
        task_count=len(entries),
        count=len(active),
        newest=active[-1].name if active else None,
        active=[entry.name for entry in active],
        weights=_task_names(left),
        only_weights=len(left) == len(active) > 0,
        weights_only=all(entry.leaves_weights for entry in entries) and bool(entries),
        weights_trained=_task_names([entry for entry in entries if entry.leaves_weights]),
        methods=_with_tasks(entries, _method),
        withheld=withheld or any(entry.classes is None for entry in entries),
        revoked=_task_names(revoked),
        idle=_task_names([e for e in active if not e.groups.get("active") and e.groups.get("total")]),
        composite=composite,
        # How well they worked
        measure=measure,
        is_scored=any(_is_scored(entry) for entry in entries),
        all_forgotten=all_forgotten(entries),
        not_forgotten=not_forgotten(ledger, withheld=withheld),
        doubts=doubts(ledger, withheld=withheld),
        verdict=_verdict(entries),
        last=scored_last(entries),
        audit=ledger.audit,
        audit_outdated=outdated_audit(ledger.audit, entries) if ledger.audit else None,
        audit_digits=0 if withheld else 1,
        outdated=_task_names([entry for entry in active if revoked_since(entry, entries)]),
        measured_on=_with_tasks([entry for entry in entries if _is_scored(entry)], _evaluation_data),
        evaluation_splits=EVALUATION_SPLITS,
        unscored=_task_names([entry for entry in entries if not _is_scored(entry)]),
        # Tables and pictures
        requests=_requests_table(entries, withheld=withheld),
        scores=_scores_table(entries),
        groups=_groups_table(entries, withheld=withheld),
        revocations=_revocations_table(entries),
        settings=_values_table(["Setting", "Value"], entries, lambda entry: dict(_flat(entry.settings))),
        versions=_values_table(["Library", "Version"], entries, lambda entry: entry.versions),
        pictures=[PurePosixPath(path) for path in figures],
    )


def task_ranges(names: Sequence[str]) -> str:
    """Returns names of tasks, in rising order, with neighbours joined: `"task_001 to task_004, task_007"`."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _number(name) == _number(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _number(name: str) -> int:
    return int(name.removeprefix("task_"))


def _task_names(entries: Sequence[TaskEntry]) -> str:
    return task_ranges([entry.name for entry in entries])


# Values


def _method(entry: TaskEntry) -> str:
    """Returns the name of the method that carried out a task. The ledger records none for GS-LoRA."""
    method = entry.settings.get("method")
    return str(method.get("name")) if isinstance(method, Mapping) else "gs_lora"


def _is_scored(entry: TaskEntry) -> bool:
    return bool(entry.scores.get("after"))


def _evaluation_data(entry: TaskEntry) -> Any:
    return entry.scores.get("data")


def _verdict(entries: Sequence[TaskEntry]) -> dict[str, Any] | None:
    """Returns which tasks are forgotten, and the worst of their scores and targets; `None` if that is unknown."""
    states = [state for state in task_states(entries) if state.forgotten]
    worst = max((state.score for state in states if state.score is not None), default=None)
    if worst is None:
        return None
    target = max((state.entry.target for state in states if state.entry.target is not None), default=None)
    names = _task_names([state.entry for state in states])
    return {"tasks": names, "count": len(states), "worst": worst, "target": target}


def _with_tasks(entries: Sequence[TaskEntry], value_of: Callable[[TaskEntry], Any]) -> list[tuple[Any, str]]:
    """Returns the distinct values of tasks in order of appearance, each with the names of its tasks."""
    found: list[tuple[Any, list[TaskEntry]]] = []
    for entry in entries:
        value = value_of(entry)
        tasks = next((tasks for other, tasks in found if other == value), None)
        if tasks is None:
            found.append((value, tasks := []))
        tasks.append(entry)
    return [(value, _task_names(tasks)) for value, tasks in found]


# Tables


def _requests_table(entries: Sequence[TaskEntry], *, withheld: bool) -> Table:
    rows = []
    for entry in entries:
        is_withheld = withheld or entry.classes is None
        shown = _day if is_withheld else _minute
        status = "in effect"
        if entry.status == "revoked":
            status = f"revoked {shown((entry.revocation or {}).get('revoked_at'))}"
        classes = _digest(entry) if is_withheld else ", ".join(_class_names(entry))
        rows.append([entry.name, classes, shown(entry.request.get("requested_at")), shown(entry.finished_at), status])
    return Table(["Task", "To forget", "Asked", "Done", "Status"], rows)


def _digest(entry: TaskEntry) -> str:
    digest = entry.request.get("digest")
    return f"withheld ({digest[:24]}…)" if isinstance(digest, str) else "withheld"


def _class_names(entry: TaskEntry) -> list[str]:
    return entry.class_names or [f"class {class_id}" for class_id in entry.classes or ()]


def _day(text: Any) -> str:
    return text[:10] if isinstance(text, str) else "–"


def _minute(text: Any) -> str:
    return text[:16].replace("T", " ") + " UTC" if isinstance(text, str) else "–"


def _scores_table(entries: Sequence[TaskEntry]) -> Table:
    """Scores before and after each task. A star marks scores that no current model has."""
    titles, values = score_columns(entries, [pair for pair in SCORES if pair[1] != "missing"])
    stars = ["*" if entry.status == "revoked" or revoked_since(entry, entries) else "" for entry in entries]
    rows = [
        [entry.name + star, *row, active_groups(entry)]
        for entry, star, row in zip(entries, stars, values, strict=True)
    ]
    return Table(["Task", *titles, "active groups"], rows)


def _groups_table(entries: Sequence[TaskEntry], *, withheld: bool) -> Table:
    """The groups that each task changes, and the size of its training."""
    of_adapters = [entry for entry in entries if not entry.leaves_weights]
    names = list(
        dict.fromkeys(name for entry in of_adapters for name in (*_active(entry), *entry.groups.get("zero", [])))
    )
    prefix, labels = shortened_names(names, longest=10**6)
    label_of = dict(zip(names, labels, strict=True))
    counts = {} if withheld else {"Steps": "steps", "Samples to forget": "forget", "Samples to keep": "retain"}
    rows = []
    for entry in entries:
        if entry.leaves_weights:  # there may be hundreds
            which = f"{len(_active(entry))} of {entry.groups.get('total')} tensors"
        else:
            which = ", ".join(label_of[name] for name in _active(entry)) or "none: the adapter changes nothing"
        rows.append([entry.name, which, *(size(entry, name) for name in counts.values())])
    return Table(["Task", f"Active groups (of {prefix})" if prefix else "Active groups", *counts], rows)


def _active(entry: TaskEntry) -> list[str]:
    return entry.groups.get("active", [])


def _revocations_table(entries: Sequence[TaskEntry]) -> Table:
    """The measured effect of revoking tasks."""
    names = [metric_of(*entries).key(of) for of in ("revoked", "still_forgotten", "retain")]
    rows = []
    for entry in entries:
        before, after = ((entry.revocation or {}).get(f"scores_{when}") or {} for when in ("before", "after"))
        if before or after:
            rows.append([entry.name, *(f"{percent(before.get(name))} → {percent(after.get(name))}" for name in names)])
    return Table(["Revoked", "Its classes", "Classes still forgotten", "Kept classes"], rows)


def _values_table(
    header: list[str], entries: Sequence[TaskEntry], values_of: Callable[[TaskEntry], Mapping[str, Any]]
) -> Table:
    """A row for each key. Where tasks differ, each value has its tasks."""
    rows: list[list[Cell]] = []
    for key in dict.fromkeys(key for entry in entries for key in values_of(entry)):
        values = _with_tasks(entries, lambda entry, key=key: values_of(entry).get(key))  # type: ignore[misc]
        texts = [_plain(value) + (f" ({tasks})" if len(values) > 1 else "") for value, tasks in values]
        rows.append([key, "; ".join(texts)])
    return Table(header, rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    if value is None or value == {}:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
