"""Auditing a run, or any two models: every attack on every model, one after another, in parts that can be resumed."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed

from ..adapters import merge_changes, weights_fingerprint
from ..data import (
    check_names,
    check_pictures,
    default_collator,
    evaluation_split,
    read_classes,
    train_validation_split,
)
from ..errors import InvalidInputError
from ..io import StrPath, as_path, write_json_atomic
from ..ledger import TaskEntry
from ..roles import ClassRoles
from ..runs import are_same_rows, library_versions, processor_identity
from .base import Attack, AuditContext, Measurement
from .opening import open_run
from .registry import get_attacks
from .report import AuditReport
from .results import SCHEMA, AttackResult, AuditedModel
from .retraining.references import check_references, check_weights, known
from .samples import Samples
from .subjects import Models, Subject, reference_subjects

logger = logging.getLogger(__name__)

PARTS_FOLDER = "parts"
_IDENTIFYING_ROWS = 8


def audit_run(
    base_model: PreTrainedModel,
    run: str | os.PathLike,
    data: Dataset | DatasetDict | dict[str, Dataset],
    *,
    reference: Models = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> AuditReport:
    """Attacks a run: how much of what it forgot can be got back, beside models that never learned it?

    Accuracy 0 on the forgotten classes only says that the head does not answer. Each attack tries to get the classes
    back from the model with all tasks in effect merged, in the same way and with the same draws as from the original
    and from the references. What a reference gives as well is not knowledge of the forgotten data; the largest excess
    over it is the recovery gap.

    Args:
        base_model (`transformers.PreTrainedModel`):
            The bare model that the run began with. It is not changed.
        run (`str` or `os.PathLike`):
            The folder of a run, or a repository on the Hub.
        data (`datasets.Dataset`, `datasets.DatasetDict` or `dict`):
            Labelled samples of all classes, the forgotten ones too: `train` for the attacker and `test` (or another
            name of [`evaluation_split`]) to judge on. A single data set is split into halves, and so must be one that
            both names hold.
        reference (`transformers.PreTrainedModel` or a list of them, *optional*):
            Models with the same head that were trained without the forgotten classes, see [`retrained_models`]. By
            default the same architecture with random weights, which is a low bar: a retrained model also knows
            features that help with classes it has never seen.
        revision (`str`, *optional*):
            As in [`load_forgotten`].
        token (`str`, *optional*):
            As in [`load_forgotten`].
        options (*optional*):
            Other arguments of [`Auditor`].

    Returns:
        [`AuditReport`]: All figures; `report.save(folder)` writes them as JSON and as a page.

    Raises:
        LedgerError: As [`load_forgotten`]; also if no task is in effect, or the ledger withholds the classes.
        InvalidInputError: As in [`audit_models`].

    Example:
        ```py
        >>> report = audit_run(base_model, "runs/clinic", dataset, reference=retrained_model)
        >>> print(report.verdict)
        >>> report.save("report")
        ```
    """
    opened = open_run(base_model, run, revision=revision, token=token)
    forgotten = merge_changes(copy.deepcopy(base_model), opened.changes)
    report = audit_models(
        base_model,
        forgotten,
        data,
        opened.forgotten,
        reference=reference,
        tasks=[entry.name for entry in opened.entries],
        **options,
    )
    if remark := _other_processor(opened.entries[-1], options.get("processing_class")):
        report.facts["remarks"] = [remark]
    return report


def _other_processor(entry: TaskEntry, processing_class: Any) -> str | None:
    """A remark if a task was trained on data that was prepared in another way, as far as both are known."""
    recorded = ((entry.settings or {}).get("data") or {}).get("processor")
    given = processor_identity(processing_class)
    if given is None or recorded in (None, given):
        return None
    return (
        f"{entry.name} was trained with another processor ({recorded}) than this audit reads data with ({given}): "
        "all models may answer worse than they can."
    )


def audit_models(
    original: PreTrainedModel,
    forgotten: nn.Module,
    data: Dataset | DatasetDict | dict[str, Dataset],
    forget_classes: Sequence[int],
    *,
    tasks: Sequence[str] = (),
    **options: Any,
) -> AuditReport:
    """Attacks a model that forgot classes by any method, beside the original and models that never learned them.

    Args:
        original (`transformers.PreTrainedModel`):
            The bare model before anything was forgotten. Not changed.
        forgotten (`torch.nn.Module`):
            The bare model afterwards. Not changed.
        data (`datasets.Dataset`, `datasets.DatasetDict` or `dict`):
            As in [`audit_run`].
        forget_classes (`Sequence[int]`):
            Ids of the forgotten classes.
        tasks (`Sequence[str]`, *optional*):
            Names of the tasks, for the report.
        options (*optional*):
            Other arguments of [`Auditor`].

    Returns:
        [`AuditReport`]: All figures.

    Raises:
        InvalidInputError: As [`Auditor`].
    """
    return Auditor(original, data, forget_classes, **options).audit(
        Subject("forgotten", "forgotten", forgotten), tasks
    )


class Auditor:
    """Attacks several models that forgot the same classes.

    What the attacks compute of the original and of the references is kept from one model to the next.

    Args:
        original (`transformers.PreTrainedModel`):
            As in [`audit_models`].
        data (`datasets.Dataset`, `datasets.DatasetDict` or `dict`):
            As in [`audit_run`].
        forget_classes (`Sequence[int]`):
            Ids of the forgotten classes.
        reference (`transformers.PreTrainedModel` or a list of them, *optional*):
            As in [`audit_run`].
        attacks (`Sequence[str | Attack]`, *optional*):
            Names in `ATTACKS`, or attacks with a budget of their own; by default all that fit.
        quick (`bool`, *optional*, defaults to `False`):
            Whether attacks get their small budget.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels, or of annotated boxes.
        processing_class (*optional*):
            As in [`GSLoraTrainer`].
        data_collator (`Callable`, *optional*):
            As in [`GSLoraTrainer`].
        max_samples (`int`, *optional*, defaults to 20000):
            Largest number of samples of the attacker, and of the judge, as many of each class as possible.
        seed (`int`, *optional*, defaults to 0):
            Seed of all draws.
        folder (`str` or `os.PathLike`, *optional*):
            Where finished parts are kept: the same call continues an audit that was stopped.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress.

    Attributes:
        context ([`AuditContext`]):
            What all attacks share, with the samples of the attacker and of the judge.

    Raises:
        InvalidInputError: Before any attack, if the data lack a forgotten class, are the same for both, or name
            classes otherwise than the model; if a reference has another head, the weights of another model, or
            knowledge of a forgotten class; or if the name of an attack is unknown.
    """

    def __init__(
        self,
        original: PreTrainedModel,
        data: Dataset | DatasetDict | dict[str, Dataset],
        forget_classes: Sequence[int],
        *,
        reference: Models = None,
        attacks: Sequence[str | Attack] | None = None,
        quick: bool = False,
        label_column: str = "label",
        processing_class: Any = None,
        data_collator: Callable | None = None,
        max_samples: int = 20_000,
        seed: int = 0,
        folder: StrPath | None = None,
        disable_tqdm: bool = False,
    ):
        self.attacks, self.disable_tqdm = get_attacks(attacks, quick=quick), disable_tqdm
        self.folder = None if folder is None else as_path(folder, "folder")
        train, test = _attacker_and_judge(data, label_column, seed)
        check_names(read_classes(train, label_column)[1], original, repr(label_column))
        for name, part in {"the attacker's data": train, "the data to judge on": test}.items():
            check_pictures(part, name)
        collator = data_collator or default_collator(processing_class, label_column, train)
        attacker, judge = (
            Samples(part, collator, label_column).limited(max_samples, AuditContext.generator(seed, "samples"))
            for part in (train, test)
        )
        roles = _roles(train, test, label_column, forget_classes)
        own, others = Subject("original", "original", original), reference_subjects(original, reference, seed)
        self.context = AuditContext(roles, attacker, judge, own, others, seed, has_members=isinstance(data, dict))
        self.facts = {
            "quick": quick,
            "seed": seed,
            "classes": {"forgotten": len(roles.forget), "kept": len(roles.retain)},
            "samples": {"attacker": len(attacker), "judge": len(judge)},
            "every_attack": attacks is None,
        }

    def audit(self, forgotten: Subject, tasks: Sequence[str] = ()) -> AuditReport:
        """Attacks one model.

        Args:
            forgotten ([`Subject`]):
                The model, of the kind `"forgotten"`. Not changed.
            tasks (`Sequence[str]`, *optional*):
                As in [`audit_models`].

        Raises:
            InvalidInputError: As [`Auditor`].
        """
        context, chosen = self.context, self.attacks
        runner = _Runner(context, [context.original, forgotten, *context.references], self.folder)
        check_references(context.original, context.references, context.judge, context.roles)
        answers = known([context.original, *context.references], context.judge, context.roles)
        for warning in AuditReport(runner.models, [], facts={"answers": answers}).warnings() if chosen else ():
            logger.warning(warning)
        fitting = [attack for attack in chosen if attack.fits(context)]
        if chosen and not any(attack.judged != "shown" for attack in fitting):
            names = [attack.name for attack in chosen]
            expected = "one that fits this model and data, and is judged"
            raise InvalidInputError("attacks", names, expected, "Leave it out.")
        facts = {
            **self.facts,
            "answers": answers,
            "not_applicable": [attack.title for attack in chosen if attack not in fitting],
            "versions": library_versions(),
        }
        return AuditReport(runner.models, runner.run(fitting, self.disable_tqdm), list(tasks), facts)


@dataclass
class _Runner:
    """Runs attacks on models, and keeps what is finished."""

    context: AuditContext
    subjects: list[Subject]
    folder: Path | None

    def __post_init__(self) -> None:
        self.models = [AuditedModel(s.name, s.kind, s.fingerprint()) for s in self.subjects]
        original, forgotten, *references = self.subjects
        check_weights(original, forgotten, references, [model.fingerprint for model in self.models])

    def run(self, attacks: Sequence[Attack], disable_tqdm: bool) -> list[AttackResult]:
        results = []
        steps = [(attack, subject) for attack in attacks for subject in self.subjects]
        with tqdm(total=len(steps), disable=disable_tqdm, desc="audit") as bar:
            for attack in attacks:
                found: dict[str, list[Measurement]] = {}
                seconds = 0.0
                for subject in self.subjects:
                    bar.set_postfix_str(f"{attack.title} on {subject.name}")
                    found[subject.name], spent = self._part(attack, subject)
                    seconds += spent
                    bar.update()
                results.append(
                    AttackResult(
                        attack.name,
                        attack.title,
                        attack.knowledge,
                        attack.judged,
                        attack.unit,
                        attack.settings(),
                        found,
                        round(seconds, 2),
                    )
                )
        return results

    def _part(self, attack: Attack, subject: Subject) -> tuple[list[Measurement], float]:
        path = (
            None
            if self.folder is None
            else self.folder / PARTS_FOLDER / f"{attack.name}-{self._digest(attack, subject)}.json"
        )
        if path is not None and path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            return [Measurement.from_dict(found) for found in stored["measurements"]], stored["seconds"]
        start = time.perf_counter()
        # Dropout and new layers of an attack draw from the global generator.
        set_seed(int(self.context.rng(attack.name).integers(2**31)))
        found = attack.run(subject, self.context)
        spent = time.perf_counter() - start
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path, {"measurements": [item.to_dict() for item in found], "seconds": spent})
        return found, spent

    @cached_property
    def _data(self) -> list[list[Any]]:
        return [_identity(samples) for samples in (self.context.attacker, self.context.judge)]

    def _digest(self, attack: Attack, subject: Subject) -> str:
        """Identifies a part by everything that its figures depend on."""
        context = self.context
        content = {
            "schema": SCHEMA,
            "attack": [attack.name, type(attack).__qualname__],
            "settings": attack.settings(),
            "subject": next(model.fingerprint for model in self.models if model.name == subject.name),
            # What attacks see besides the subject. Audits of other forgotten models share these parts.
            "models": [(model.kind, model.fingerprint) for model in self.models if model.kind != "forgotten"],
            "data": self._data,
            "roles": context.roles.as_keywords(),
            "seed": context.seed,
            "versions": library_versions(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _identity(samples: Samples) -> list[Any]:
    """Tells data sets apart, and ways to prepare the same one: by the tensors of the first rows."""
    set_seed(0)  # random augmentation then gives the same tensors in every call
    batch = samples.batch(range(min(len(samples), _IDENTIFYING_ROWS)))
    tensors = {name: value.float() for name, value in batch.items() if isinstance(value, Tensor)}
    rows = hashlib.sha256(samples.labels.tobytes() + samples.rows.tobytes()).hexdigest()
    return [getattr(samples.dataset, "_fingerprint", None), rows, weights_fingerprint(tensors)]


def _attacker_and_judge(data: Any, label_column: str, seed: int) -> tuple[Dataset, Dataset]:
    """The attacker's and the judge's samples: `train` and `test`, or halves of a single data set."""
    if not isinstance(data, dict):
        if not isinstance(data, Dataset):
            raise InvalidInputError("data", type(data).__name__, "a datasets.Dataset or a DatasetDict")
        return train_validation_split(data, label_column, 0.5, seed)
    name = evaluation_split(data)
    if "train" not in data or name is None:
        fix = "Rename them, or give a single Dataset, which is split into halves."
        raise InvalidInputError("data", list(data), "the splits 'train' and 'test'", fix)
    if are_same_rows(data["train"], data[name]):
        found = f"'train' and {name!r} with the same rows"
        expected = "samples to judge on that the attacker does not have: with them every attack succeeds"
        fix = "Give other samples, or a single Dataset, which is split into halves."
        raise InvalidInputError("data", found, expected, fix)
    return data["train"], data[name]


def _roles(train: Dataset, test: Dataset, label_column: str, forget_classes: Sequence[int]) -> ClassRoles:
    present = [set(read_classes(part, label_column)[0].tolist()) for part in (train, test)]
    for name, classes in zip(("the attacker's data", "the data to judge on"), present, strict=True):
        if absent := sorted(set(forget_classes) - classes):
            expected = "samples of every forgotten class, to try to get it back"
            raise InvalidInputError(f"classes of {name}", f"none of {len(absent)} forgotten classes", expected)
    kept = (present[0] & present[1]) - set(forget_classes)
    if not len(forget_classes) or not kept:
        expected = "at least one class that was forgotten, and samples of one that was kept"
        raise InvalidInputError("forget_classes", f"{len(forget_classes)} of {len(kept)} more classes", expected)
    return ClassRoles(forget=forget_classes, retain=kept)
