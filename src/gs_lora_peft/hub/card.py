"""The card of a published run: values and tables; the sentences are in its template."""

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
    score_columns,
    size,
    task_states,
)
from ..reports import Cell, Table, percent, render_card, shortened_names
from . import card as sections
from .card_metadata import (
    METRICS,
    evaluation_results,
    is_on_hub,
    model_module,
    pipeline_tag_of,
    revoked_since,
    scored_last,
)
from .withhold import without_counts

if TYPE_CHECKING:
    from .composite import CompositeReport


def requests(entries: Sequence[TaskEntry], *, withheld: bool) -> Table:
    """What was asked and when."""
    rows = []
    for entry in entries:
        is_withheld = withheld or entry.classes is None
        shown = _day if is_withheld else _moment
        status = "in effect"
        if entry.status == "revoked":
            status = f"revoked {shown((entry.revocation or {}).get('revoked_at'))}"
        classes = _withheld(entry) if is_withheld else ", ".join(_names(entry))
        rows.append([entry.name, classes, shown(entry.request.get("requested_at")), shown(entry.finished_at), status])
    return Table(["Task", "To forget", "Asked", "Done", "Status"], rows)


def _withheld(entry: TaskEntry) -> str:
    digest = entry.request.get("digest")
    return f"withheld ({digest[:24]}…)" if isinstance(digest, str) else "withheld"


def _names(entry: TaskEntry) -> list[str]:
    return entry.class_names or [f"class {class_id}" for class_id in entry.classes or ()]


def _day(text: Any) -> str:
    return text[:10] if isinstance(text, str) else "–"


def _moment(text: Any) -> str:
    return text[:16].replace("T", " ") + " UTC" if isinstance(text, str) else "–"


def scores(entries: Sequence[TaskEntry]) -> Table:
    """Scores of each task before and after; a star marks those that no model has any more."""
    titles, values = score_columns(entries, [pair for pair in SCORES if pair[1] != "missing"])
    stars = ["*" if entry.status == "revoked" or revoked_since(entry, entries) else "" for entry in entries]
    rows = [
        [entry.name + star, *row, active_groups(entry)]
        for entry, star, row in zip(entries, stars, values, strict=True)
    ]
    return Table(["Task", *titles, "active groups"], rows)


def verdict(entries: Sequence[TaskEntry]) -> dict[str, Any] | None:
    """Which tasks are forgotten, and the worst of their scores and targets; `None` where that is not known."""
    states = [state for state in task_states(entries) if state.forgotten]
    worst = max((state.score for state in states if state.score is not None), default=None)
    if worst is None:
        return None
    target = max((state.entry.target for state in states if state.entry.target is not None), default=None)
    names = task_ranges([state.entry.name for state in states])
    return {"tasks": names, "count": len(states), "worst": worst, "target": target}


def groups(entries: Sequence[TaskEntry], *, withheld: bool) -> Table:
    """Which groups each task changes, and how it was trained."""
    names = list(dict.fromkeys(name for entry in entries for name in (*_active(entry), *entry.groups.get("zero", []))))
    prefix, labels = shortened_names(names, longest=10**6)
    label_of = dict(zip(names, labels, strict=True))
    counts = {} if withheld else {"Steps": "steps", "Samples to forget": "forget", "Samples to keep": "retain"}
    rows = []
    for entry in entries:
        which = ", ".join(label_of[name] for name in _active(entry)) or "none: the adapter changes nothing"
        rows.append([entry.name, which, *(size(entry, name) for name in counts.values())])
    return Table(["Task", f"Active groups (of {prefix})" if prefix else "Active groups", *counts], rows)


def _active(entry: TaskEntry) -> list[str]:
    return entry.groups.get("active", [])


def revocations(entries: Sequence[TaskEntry]) -> Table:
    """What revoking tasks did, for those where it was measured."""
    names = [metric_of(*entries).key(of) for of in ("revoked", "still_forgotten", "retain")]
    rows = []
    for entry in entries:
        before, after = ((entry.revocation or {}).get(f"scores_{when}") or {} for when in ("before", "after"))
        if before or after:
            rows.append([entry.name, *(f"{percent(before.get(name))} → {percent(after.get(name))}" for name in names)])
    return Table(["Revoked", "Its classes", "Classes still forgotten", "Kept classes"], rows)


def measured_on(entries: Sequence[TaskEntry]) -> list[tuple[Any, str]]:
    """The data that scores were measured on, each with its tasks."""
    scored = [entry for entry in entries if entry.scores.get("after")]
    return [(data, task_ranges(names)) for data, names in _by_value(scored, lambda entry: entry.scores.get("data"))]


def settings(entries: Sequence[TaskEntry]) -> Table:
    """Adapter, training and data settings; where tasks differ, each value with its tasks."""
    return _values(["Setting", "Value"], entries, lambda entry: dict(_flat(entry.settings)))


def versions(entries: Sequence[TaskEntry]) -> Table:
    """Versions of the libraries; where tasks differ, each with its tasks."""
    return _values(["Library", "Version"], entries, lambda entry: entry.versions)


def task_ranges(names: Sequence[str]) -> str:
    """Names of tasks in rising order, with neighbours joined: `"task_001 to task_004, task_007"`."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _number(name) == _number(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _number(name: str) -> int:
    return int(name.removeprefix("task_"))


def _values(header: list[str], entries: Sequence[TaskEntry], of: Callable[[TaskEntry], Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for key in dict.fromkeys(key for entry in entries for key in of(entry)):
        values = _by_value(entries, lambda entry, key=key: of(entry).get(key))  # type: ignore[misc]
        texts = [_plain(value) + (f" ({task_ranges(names)})" if len(values) > 1 else "") for value, names in values]
        rows.append([key, "; ".join(texts)])
    return Table(header, rows)


def _by_value(entries: Sequence[TaskEntry], of: Callable[[TaskEntry], Any]) -> list[tuple[Any, list[str]]]:
    """The values that tasks have, in order of appearance, each with the names of its tasks."""
    found: list[tuple[Any, list[str]]] = []
    for entry in entries:
        value = of(entry)
        names = next((names for other, names in found if other == value), None)
        if names is None:
            found.append((value, names := []))
        names.append(entry.name)
    return found


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


TAGS = ["gs-lora", "unlearning", "continual-forgetting", "lora"]


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
    """
    Write the card of a run: what was asked, how well it worked, how to load it, and what it does not promise.

    Everything comes from the ledger; what is not known is left out, or said to be unknown. The same arguments give the
    same text.

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
            Names no class, no number of samples and no exact time or share, whatever the ledger holds. Tasks whose
            classes the ledger withholds are never named.
        dataset (`str`, *optional*):
            Hub id of the data set. The ledger does not record it.
        license (`str`, *optional*):
            Licence of the base model as the Hub calls it, e.g. `"apache-2.0"`. The adapter is derived from the base
            model; without it the card names none.

    Returns:
        `huggingface_hub.ModelCard`: The card; `card.save("README.md")` writes it.
    """
    if withheld:
        ledger = ForgettingLedger(ledger.folder, ledger.base_model, None, without_counts(ledger.tasks))
    base, entries, active = ledger.base_model, ledger.tasks, ledger.active_tasks
    title = repo_id.rsplit("/", 1)[-1] if repo_id else "forgetting-adapter"
    model_class, on_hub, measure = base.get("model_class") or "", is_on_hub(base), metric_of(*entries)
    pipeline_tag = pipeline_tag_of(model_class)
    results = evaluation_results(entries, task_type=pipeline_tag or "other", dataset=dataset)
    data = ModelCardData(
        base_model=base["name_or_path"] if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        datasets=[dataset] if dataset else None,
        eval_results=results or None,
        library_name="peft",
        license=license,
        metrics=[METRICS[measure][0]] if results else None,
        model_name=title if results else None,
        pipeline_tag=pipeline_tag,
        tags=TAGS,
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
        withheld=withheld or any(entry.classes is None for entry in entries),
        revoked=_class_names(revoked),
        idle=_class_names([e for e in active if not e.groups.get("active") and e.groups.get("total")]),
        composite=composite,
        # How well they worked
        measure=measure,
        is_scored=any(entry.scores.get("after") for entry in entries),
        all_forgotten=all_forgotten(entries),
        not_forgotten=not_forgotten(ledger, withheld=withheld),
        doubts=doubts(ledger, withheld=withheld),
        verdict=sections.verdict(entries),
        last=scored_last(entries),
        outdated=_class_names([entry for entry in active if revoked_since(entry, entries)]),
        measured_on=sections.measured_on(entries),
        evaluation_splits=EVALUATION_SPLITS,
        unscored=_class_names([entry for entry in entries if not entry.scores.get("after")]),
        # Tables and pictures
        requests=sections.requests(entries, withheld=withheld),
        scores=sections.scores(entries),
        groups=sections.groups(entries, withheld=withheld),
        revocations=sections.revocations(entries),
        settings=sections.settings(entries),
        versions=sections.versions(entries),
        pictures=[PurePosixPath(path) for path in figures],
    )


def _class_names(entries: Sequence) -> str:
    return sections.task_ranges([entry.name for entry in entries])
