"""The card of a published run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from ..data.evaluation import EVALUATION_SPLITS
from ..reports import render_card
from ..sequence import ForgettingLedger
from ..sequence.outcome import all_forgotten
from ..sequence.remarks import doubts, not_forgotten
from ..sequence.table import base_score, measure_of_tasks
from . import sections
from .coarse import without_counts
from .metadata import is_on_hub, model_module, pipeline_tag_of
from .results import METRICS, evaluation_results, revoked_since, scored_last

if TYPE_CHECKING:
    from .composite import CompositeReport

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
    model_class, on_hub, measure = base.get("model_class") or "", is_on_hub(base), measure_of_tasks(entries)
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
        revoked=_names(revoked),
        idle=_names([e for e in active if not e.groups.get("active") and e.groups.get("total")]),
        composite=composite,
        # How well they worked
        measure=measure,
        is_scored=any(entry.scores.get("after") for entry in entries),
        all_forgotten=all_forgotten(entries),
        not_forgotten=not_forgotten(ledger, withheld=withheld),
        doubts=doubts(ledger, withheld=withheld),
        verdict=sections.verdict(entries),
        last=scored_last(entries),
        outdated=_names([entry for entry in active if revoked_since(entry, entries)]),
        measured_on=sections.measured_on(entries),
        evaluation_splits=EVALUATION_SPLITS,
        unscored=_names([entry for entry in entries if not entry.scores.get("after")]),
        # Tables and pictures
        requests=sections.requests(entries, withheld=withheld),
        scores=sections.scores(entries),
        groups=sections.groups(entries, withheld=withheld),
        revocations=sections.revocations(entries),
        settings=sections.settings(entries),
        versions=sections.versions(entries),
        pictures=[PurePosixPath(path) for path in figures],
    )


def _names(entries: Sequence) -> str:
    return sections.task_ranges([entry.name for entry in entries])
