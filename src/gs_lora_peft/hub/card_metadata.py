"""The head of a card: metadata, scores in the form that the Hub reads, and code that loads the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import InvalidInputError
from ..io import visible
from ..ledger import TaskEntry, metric_of, parse_utc
from ..metrics import ACCURACY, AVERAGE_PRECISION

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)


def check_card_data(*, dataset: str | None, license: str | None) -> None:
    """Check what the Hub would refuse in the head of a card, or would show as a dead link.

    Args:
        dataset (`str`, *optional*):
            Hub id of a data set.
        license (`str`, *optional*):
            A licence as the Hub calls it. Only the Hub can say whether it knows the name.

    Raises:
        ValueError: If one of them cannot be on the Hub; an [`InvalidInputError`] with its name and value.
    """
    if dataset is not None:
        try:
            validate_repo_id(dataset)
        except HFValidationError as error:
            expected = f"the id of a data set on the Hub, as 'organisation/name' ({error})"
            raise InvalidInputError("dataset", dataset, expected, "Correct it, or leave it out.") from None
    if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
        expected = "a name as the Hub has it, as 'apache-2.0' or 'other'"
        raise InvalidInputError("license", license, expected, "Correct it, or leave it out.")


def is_on_hub(base: Mapping[str, Any]) -> bool:
    """Whether the name of the base model is an id on the Hub; for a local folder the ledger has only the last part."""
    name = base.get("name_or_path") or ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name or bool(base.get("revision"))


def model_module(model_class: str) -> str | None:
    """Where a model class is imported from; `None` where it is neither in transformers nor in this package."""
    import transformers

    from .. import models

    return next((module.__name__ for module in (transformers, models) if hasattr(module, model_class)), None)


def pipeline_tag_of(model_class: str) -> str | None:
    """What the Hub calls the task of a class of transformers; `None` where that is not known."""
    from transformers.modelcard import TASK_MAPPING

    mappings: Mapping[str, Any] = TASK_MAPPING
    for tag, mapping in mappings.items():
        if any(model_class in ((names,) if isinstance(names, str) else names) for names in mapping.values()):
            return tag
    return None


# What the Hub calls a measure, and how it is written.
METRICS = {ACCURACY: ("accuracy", "Accuracy"), AVERAGE_PRECISION: ("mAP", "AP@[.5:.95]")}


_SPLITS = {"forget": "classes to forget", "retain": "kept classes", "old": "classes forgotten by earlier tasks"}


def evaluation_results(entries: Sequence[TaskEntry], *, task_type: str, dataset: str | None) -> list[EvalResult]:
    """Return one result for each task and each of forgotten, kept and earlier forgotten classes that has scores.

    Revoked tasks have none, and tasks that were scored while a since-revoked task was in effect have none either: no
    published model has these scores.

    Args:
        entries (`Sequence[TaskEntry]`):
            All tasks, the revoked ones too.
        task_type (`str`):
            The kind of task as the Hub calls it, e.g. `"image-classification"`.
        dataset (`str`, *optional*):
            Hub id of the data set.

    Returns:
        `list[huggingface_hub.EvalResult]`: The results, in the order of the tasks.
    """
    measure = metric_of(*entries)
    results = []
    for entry in entries:
        if entry.status == "revoked" or revoked_since(entry, entries):
            continue
        after, data = entry.scores.get("after", {}), entry.scores.get("data")
        for split, classes in _SPLITS.items():
            metrics = [(*METRICS[measure], after.get(measure.key(split)))]
            if split == "forget":
                kept, gone = measure.symbol_of("retain"), measure.symbol_of("forget")
                metrics.append(("h_mean", f"H (harmonic mean of {kept} and the drop of {gone})", after.get("h_mean")))
            results += [
                EvalResult(
                    task_type=task_type,
                    dataset_type=dataset or "unknown",
                    dataset_name=f"{dataset or 'Evaluation data'}, {entry.name}: {classes}",
                    dataset_config=f"{entry.name}_{split}",
                    dataset_split=visible(data) if isinstance(data, str) else None,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(value, 4),
                )
                for metric, name, value in metrics
                if value is not None
            ]
    return results


def revoked_since(entry: TaskEntry, entries: Sequence[TaskEntry]) -> list[str]:
    """The earlier tasks that were in effect when a task was scored, and have been revoked since."""
    earlier = [other for other in entries if other.number < entry.number and other.status == "revoked"]
    return [other.name for other in earlier if not _revoked_before(other, entry)]


def scored_last(entries: Sequence[TaskEntry]) -> TaskEntry | None:
    """The task that was done or revoked last, which made the model what it is; `None` without any task."""
    done = [entry for entry in entries if entry.status != "revoked"]
    revoked = [entry for entry in entries if entry.status == "revoked"]
    since = [entry for entry in revoked if not done or not _revoked_before(entry, done[-1])]
    return max(since, key=lambda entry: (_moment(entry), _order(entry)), default=None) or (done[-1] if done else None)


def _revoked_before(revoked: TaskEntry, entry: TaskEntry) -> bool:
    # A withheld ledger has the day alone, and says which task was the last one before.
    last = (revoked.revocation or {}).get("last_task")
    if isinstance(last, str) and last.removeprefix("task_").isdecimal():
        return int(last.removeprefix("task_")) < entry.number
    # A revocation takes the lock that training holds: it cannot fall between start and end.
    return _moment(revoked) < datetime.fromisoformat(entry.finished_at)


def _moment(revoked: TaskEntry) -> datetime:
    """When a task was revoked; the end of time where the ledger does not say, so that no score counts as current."""
    try:
        return datetime.fromisoformat(parse_utc((revoked.revocation or {}).get("revoked_at")))
    except ValueError:
        return datetime.fromisoformat("9999-12-31T00:00:00+00:00")


def _order(revoked: TaskEntry) -> int:
    """Which of the revocations it was, where a withheld ledger says so."""
    order = (revoked.revocation or {}).get("order")
    return order if isinstance(order, int) else 0
