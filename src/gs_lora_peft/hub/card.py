"""The card of a published run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from ..metrics.measures import ACCURACY, MetricName
from ..sequence import ForgettingLedger
from ..sequence.outcome import all_forgotten
from ..sequence.remarks import doubts, not_forgotten
from ..sequence.table import measure_of_tasks
from . import sections, snippets
from .coarse import without_counts
from .markdown import escape, task_ranges
from .metadata import is_on_hub
from .results import METRICS, evaluation_results

if TYPE_CHECKING:
    from .composite import CompositeReport

_TEMPLATE = Path(__file__).parent / "templates" / "card.md.jinja"
TAGS = ["gs-lora", "unlearning", "continual-forgetting", "lora"]
_PICTURES = {
    "accuracies.png": "{measure} on kept, forgotten and earlier forgotten classes before and after each task",
    "group_norms.png": "Norm of the LoRA matrices of every group in every task; exact zeros are marked",
    "training_curves.png": "Losses, {known} and number of active groups in the course of each training",
}


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
    Write the card of a run: what was asked, how well it was done, how to load it, and what it does not promise.

    Everything comes from the ledger; what is not known is left out, or said to be unknown. The same arguments give the
    same text.

    Args:
        ledger ([`ForgettingLedger`]): the run, as it will be published.
        repo_id (`str`, *optional*): `"organisation/name"`, for the title and the code. With `None` the code loads from
            the current folder, `"."`.
        composite ([`CompositeReport`], *optional*): how the adapter in the root was made from the tasks.
        figures (`Sequence[str]`, *optional*): pictures to show, as paths in the repository; see [`draw_figures`].
        withheld (`bool`, *optional*, defaults to `False`): names no class, no number of samples and no exact time or
            share, whatever the ledger holds. Tasks whose classes the ledger withholds are not named in any case.
        dataset (`str`, *optional*): Hub id of the data set. The ledger does not record it.
        license (`str`, *optional*): licence of the base model as the Hub calls it, e.g. `"apache-2.0"`. The adapter
            is derived from the base model; without it the card names none.

    Returns:
        `huggingface_hub.ModelCard`: with `card.save("README.md")`.
    """
    if withheld:
        ledger = ForgettingLedger(ledger.folder, ledger.base_model, None, without_counts(ledger.tasks))
    base, entries, active = ledger.base_model, ledger.tasks, ledger.active_tasks
    repo = repo_id or "."
    pipeline_tag, on_hub = _pipeline_tag(base.get("model_class")), is_on_hub(base)
    measure = measure_of_tasks(entries)
    results = evaluation_results(entries, task_type=pipeline_tag or "other", dataset=dataset)
    data = ModelCardData(
        base_model=base["name_or_path"] if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        datasets=[dataset] if dataset else None,
        eval_results=results or None,
        library_name="peft",
        license=license,
        metrics=[METRICS[measure][0]] if results else None,
        model_name=_title(repo_id) if results else None,
        pipeline_tag=pipeline_tag,
        tags=TAGS,
    )
    text: dict[str, Any] = {
        "title": escape(_title(repo_id)),
        "base": base,
        "base_name": escape(base.get("name_or_path") or "not named in the ledger"),
        "base_class": escape(base.get("model_class") or "unknown class"),
        "base_revision": escape((base.get("revision") or "")[:12]),
        "on_hub": on_hub,
        "count": len(active),
        "task_count": len(entries),
        "revoked": task_ranges([entry.name for entry in entries if entry.status == "revoked"]),
        "idle": task_ranges([e.name for e in active if not e.groups.get("active") and e.groups.get("total")]),
        "withheld": withheld or any(entry.classes is None for entry in entries),
        "data_name": escape(dataset) if dataset else None,
        "all_forgotten": all_forgotten(entries),
        "not_forgotten": not_forgotten(ledger, withheld=withheld, quote=escape),
        "verdict": sections.verdict(entries),
        "doubts": doubts(ledger, withheld=withheld, quote=escape),
        "requests": sections.requests(entries, withheld=withheld) if entries else "",
        "scores": sections.scores(entries),
        "is_scored": any(entry.scores.get("after") for entry in entries),
        "measure": measure,
        "measure_texts": sections.MEASURE_TEXTS[measure],
        "base_score": sections.base_score(entries),
        "present_state": sections.present_state(entries),
        "outdated": sections.outdated(entries),
        "revocations": sections.revocations(entries),
        "groups": sections.groups(entries, withheld=withheld),
        "measured_on": sections.measured_on(entries),
        "settings": sections.settings(entries),
        "versions": sections.versions(entries),
        "composite": composite,
        "pictures": [(_picture_title(path, measure), path) for path in figures],
        "stock_peft": snippets.stock_peft(base, repo),
        "stock_transformers": snippets.stock_transformers(base, repo),
        # A pipeline loads model and adapter in one go, so that nobody can untie the heads in between.
        "stock_pipeline": (
            snippets.stock_pipeline(pipeline_tag, repo)
            if pipeline_tag and on_hub and not base.get("tied_heads")
            else None
        ),
        "this_package": snippets.this_package(base, repo, first=len(active) > 1),
        "example_task": active[-1].name if len(active) > 1 else None,
    }
    return ModelCard.from_template(data, template_path=str(_TEMPLATE), **text)


def _title(repo_id: str | None) -> str:
    return repo_id.rsplit("/", 1)[-1] if repo_id else "forgetting-adapter"


def _picture_title(path: str, measure: MetricName) -> str:
    known = "accuracies" if measure == ACCURACY else "confidences"
    title = _PICTURES.get(path.rsplit("/", 1)[-1], "")
    return title.format(measure=measure.title.capitalize(), known=known)


def _pipeline_tag(model_class: str | None) -> str | None:
    """What the Hub calls the task of a class of transformers; `None` where that is not known."""
    from transformers.modelcard import TASK_MAPPING

    mappings: Mapping[str, Any] = TASK_MAPPING
    for tag, mapping in mappings.items():
        if any(model_class in ((names,) if isinstance(names, str) else names) for names in mapping.values()):
            return tag
    return None
