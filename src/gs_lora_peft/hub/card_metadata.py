"""The metadata of a card: data set, license, task and scores as the Hub reads them."""

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

# The name on the Hub of each measure, and its title.
METRICS = {ACCURACY: ("accuracy", "Accuracy"), AVERAGE_PRECISION: ("mAP", "AP@[.5:.95]")}

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
_SPLITS = {"forget": "classes to forget", "retain": "kept classes", "old": "classes forgotten by earlier tasks"}


def check_card_data(*, dataset: str | None, license: str | None) -> None:
    """Checks values that the Hub would refuse in the metadata of a card, or would show as a dead link.

    Args:
        dataset (`str`, *optional*):
            Hub id of a data set.
        license (`str`, *optional*):
            A license as the Hub calls it. Only its form is checked.

    Raises:
        InvalidInputError: If one of them cannot be a name on the Hub.
    """
    if dataset is not None:
        try:
            validate_repo_id(dataset)
        except HFValidationError as error:
            expected = f"the id of a data set on the Hub, as 'organisation/name' ({error})"
            raise InvalidInputError("dataset", dataset, expected, "Correct or omit it.") from None
    if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
        expected = "a license as the Hub calls it, such as 'apache-2.0' or 'other'"
        raise InvalidInputError("license", license, expected, "Correct or omit it.")


def is_on_hub(base: Mapping[str, Any]) -> bool:
    """Returns whether the name of the base model is an id on the Hub. Of a local path the ledger has the last part."""
    name = base.get("name_or_path") or ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name or bool(base.get("revision"))


def model_module(model_class: str) -> str | None:
    """Returns the module that has a model class: transformers, or one of this package; `None` if neither has it."""
    import transformers

    from .. import models

    return next((module.__name__ for module in (transformers, models) if hasattr(module, model_class)), None)


def pipeline_tag_of(model_class: str) -> str | None:
    """Returns the pipeline tag of a model class of transformers, or `None` if it is unknown."""
    from transformers.modelcard import TASK_MAPPING

    mappings: Mapping[str, Any] = TASK_MAPPING
    for tag, mapping in mappings.items():
        if any(model_class in ((names,) if isinstance(names, str) else names) for names in mapping.values()):
            return tag
    return None


def evaluation_results(entries: Sequence[TaskEntry], *, task_type: str, dataset: str | None) -> list[EvalResult]:
    """Returns one result for each task and each of forgotten, kept and earlier forgotten classes that has scores.

    Revoked tasks have no results. Neither do tasks that were scored while a since-revoked task was in effect, because
    no published model has these scores.

    Args:
        entries (`Sequence[TaskEntry]`):
            All tasks, including revoked ones.
        task_type (`str`):
            The kind of task on the Hub, e.g. `"image-classification"`.
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
    """Returns the earlier tasks that were in effect when a task was scored, and were revoked later."""
    earlier = [other for other in entries if other.number < entry.number and other.status == "revoked"]
    return [other.name for other in earlier if not _revoked_before(other, entry)]


def scored_last(entries: Sequence[TaskEntry]) -> TaskEntry | None:
    """Returns the task that was done or revoked last and thus changed the model last; `None` without tasks."""
    done = [entry for entry in entries if entry.status != "revoked"]
    revoked = [entry for entry in entries if entry.status == "revoked"]
    since = [entry for entry in revoked if not done or not _revoked_before(entry, done[-1])]
    return max(since, key=lambda entry: (revocation_time(entry), _order(entry)), default=None) or (
        done[-1] if done else None
    )


def _revoked_before(revoked: TaskEntry, entry: TaskEntry) -> bool:
    # A withheld ledger has only the day, and names the last task before the revocation.
    last = (revoked.revocation or {}).get("last_task")
    if isinstance(last, str) and last.removeprefix("task_").isdecimal():
        return int(last.removeprefix("task_")) < entry.number
    # A revocation takes the lock that training holds: it cannot fall between start and end.
    return revocation_time(revoked) < datetime.fromisoformat(entry.finished_at)


def revocation_time(revoked: TaskEntry) -> datetime:
    """Returns when a task was revoked; the end of time if unknown, so that no score counts as current."""
    try:
        return datetime.fromisoformat(parse_utc((revoked.revocation or {}).get("revoked_at")))
    except ValueError:
        return datetime.fromisoformat("9999-12-31T00:00:00+00:00")


def _order(revoked: TaskEntry) -> int:
    """Returns the position of a revocation among all, which a withheld ledger has; otherwise 0."""
    order = (revoked.revocation or {}).get("order")
    return order if isinstance(order, int) else 0
