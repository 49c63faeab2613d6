"""People before and after they were forgotten: accuracy with and without the margin, and verification."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..adapters import check_adapters, merge_adapters, model_identity, read_adapters
from ..data import NamedRows, check_names, label_names
from ..errors import InvalidInputError
from ..hub import check_bare, resolve_run_folder
from ..ledger import ForgettingLedger, InvalidLedgerError
from ..metrics import continual_forgetting_scores, verification_by_role
from ..models import FaceTransformerForRecognition
from ..reports import Cell, Table


@dataclass(frozen=True)
class FacePredictions:
    """
    What a face model says about labelled images.

    Attributes:
        labels (`np.ndarray`):
            Ids of the people on the images, int64, shape `(n,)`.
        embeddings (`np.ndarray`):
            Float32, shape `(n, hidden_size)`, not normalised.
        similarities (`np.ndarray`):
            Cosine between each embedding and the direction of its own person, shape `(n,)`.
        predictions (`np.ndarray`):
            Ids that the model predicts by the cosine, int64, shape `(n,)`.
        margin_predictions (`np.ndarray`):
            The same with the margin, as the papers measure accuracy.
    """

    labels: np.ndarray
    embeddings: np.ndarray
    similarities: np.ndarray
    predictions: np.ndarray
    margin_predictions: np.ndarray


@torch.no_grad()
def face_predictions(
    model: FaceTransformerForRecognition, dataset: Any, *, data_collator: Callable, batch_size: int = 64
) -> FacePredictions:
    """Asks a face model about every image of a data set, in eval mode and on the model's device.

    Args:
        model ([`FaceTransformerForRecognition`]):
            The bare model; it is left in eval mode.
        dataset (map-style dataset):
            Labelled rows.
        data_collator (`Callable`):
            Makes `pixel_values` and `labels` of a list of rows, e.g. [`default_collator`].
        batch_size (`int`, *optional*, defaults to 64):
            Number of images in a batch.

    Returns:
        [`FacePredictions`]

    Raises:
        ValueError: If the model is not a face model, or there are no rows.
    """
    if not isinstance(model, FaceTransformerForRecognition):
        expected = "a FaceTransformerForRecognition, without adapters"
        raise InvalidInputError("model", type(model).__name__, expected, "Pass the bare face model.")
    if len(dataset) == 0:
        raise InvalidInputError("dataset", "no rows", "at least one labelled image", "Pass a split that has some.")
    model.eval()
    directions = F.normalize(model.classifier.weight.float())
    parts: list[tuple[torch.Tensor, ...]] = []
    for batch in DataLoader(NamedRows(dataset), batch_size=batch_size, collate_fn=data_collator):
        labels = batch["labels"].to(model.device)
        outputs = model(pixel_values=batch["pixel_values"].to(model.device))
        similarities = F.cosine_similarity(outputs.embeddings.float(), directions[labels])
        with_margin = model.classifier.margin_logits(outputs.logits, labels, model.config.evaluation_margin)
        predictions = outputs.logits.argmax(-1), with_margin.argmax(-1)
        parts.append((labels, outputs.embeddings.float(), similarities, *predictions))
    return FacePredictions(*(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class FaceAudit:
    """
    A run on a face model, looked at after each of its tasks in effect; made by [`audit_faces`].

    Attributes:
        tasks (`list[str]`):
            Names of the tasks in effect.
        forgotten (`list[list[int]]`):
            Ids of the people that each of them forgot.
        missing (`list[list[int]]`):
            Ids of the people that each of them kept without any of their training data.
        answers (`list[FacePredictions]`):
            Those of the base model, then of the model after each task.
        has_margin (`bool`):
            Whether the head has a margin, so that accuracy can be measured with it.
    """

    tasks: list[str]
    forgotten: list[list[int]]
    missing: list[list[int]]
    answers: list[FacePredictions]
    has_margin: bool

    @property
    def everybody_forgotten(self) -> list[int]:
        """Ids of all people that were forgotten, in the order in which they were."""
        return [person for people in self.forgotten for person in people]

    def scores(self) -> dict[str, Any]:
        """Everything in numbers, as JSON can hold it; rates as fractions from 0 to 1.

        Returns:
            `dict`: `tasks`, one entry each with `task`, and `cosine` and `margin` (`None` without a margin) with the.
            scores `before` and `after` as [`continual_forgetting_scores`] gives them; and `verification` of the `base`
            model and of the model `after` all tasks, each as [`verification_by_role`] gives it for `retain`, `forget`
            and `forget_against_all`, where `forget` is everybody forgotten by any task.
        """
        return {
            "tasks": [
                {
                    "task": name,
                    "cosine": self._accuracies(number, "predictions"),
                    "margin": self._accuracies(number, "margin_predictions") if self.has_margin else None,
                }
                for number, name in enumerate(self.tasks)
            ],
            "verification": {
                "base": self._verification(self.answers[0]),
                "after": self._verification(self.answers[-1]),
            },
        }

    def _accuracies(self, number: int, kind: str) -> dict[str, Any]:
        roles: dict[str, Any] = {
            "forget_classes": self.forgotten[number],
            "missing_classes": self.missing[number],
            "old_classes": [person for people in self.forgotten[:number] for person in people],
        }
        before, after = self.answers[number], self.answers[number + 1]
        first = continual_forgetting_scores(getattr(before, kind), before.labels, **roles)
        second = continual_forgetting_scores(
            getattr(after, kind), after.labels, accuracy_forget_before=first["acc_forget"], **roles
        )
        return {"before": first, "after": second}

    def _verification(self, answers: FacePredictions) -> dict[str, Any]:
        found = verification_by_role(answers.embeddings, answers.labels, forget_classes=self.everybody_forgotten)
        return {role: found[role] for role in ("retain", "forget", "forget_against_all")}


def audit_faces(
    base_model: FaceTransformerForRecognition,
    run: str | os.PathLike,
    dataset: Any,
    *,
    data_collator: Callable,
    label_column: str = "label",
    batch_size: int = 64,
    revision: str | None = None,
    token: str | bool | None = None,
) -> FaceAudit:
    """
    Looks at a run on a face model after each of its tasks in effect, no matter who carried it out and when.

    The model is rebuilt from the run's adapters, which are checked first.

    Args:
        base_model ([`FaceTransformerForRecognition`]):
            The model the run was begun with; it is not changed.
        run (`str` or `os.PathLike`):
            As in [`load_forgotten`]: a folder, or a repository on the Hub.
        dataset (map-style dataset):
            Labelled images that were not trained on, of everybody.
        data_collator (`Callable`):
            As in [`face_predictions`].
        batch_size (`int`, *optional*, defaults to 64):
            As in [`face_predictions`].
        label_column (`str`, *optional*, defaults to `"label"`):
            Where the data have names of people, which must be those that the model has for the same ids.
        revision (`str`, *optional*):
            As in [`load_forgotten`].
        token (`str`, *optional*):
            As in [`load_forgotten`].

    Returns:
        [`FaceAudit`]

    Raises:
        LedgerError: As [`load_forgotten`]; also if no task is in effect, or the ledger withholds who was forgotten.
        ValueError: If the model is not a face model, there are no rows, or the data number people otherwise than the
            model.

    Example:
        ```py
        >>> audit = audit_faces(base_model, "runs/faces", dataset["test"], data_collator=default_collator(processor))
        >>> print(format_face_audit(audit))
        ```
    """
    check_bare(base_model)
    if label_column in (getattr(dataset, "features", None) or {}):
        check_names(label_names(dataset, label_column), base_model, repr(label_column))
    folder = resolve_run_folder(run, tasks=None, revision=revision, token=token)
    ledger = ForgettingLedger.load(folder)
    entries = ledger.active_tasks
    if not entries or any(entry.classes is None for entry in entries):
        found = "none in effect" if not entries else "withheld people"
        expected = "at least one task in effect, with the people that it forgot"
        raise InvalidLedgerError(f"tasks of the ledger in '{folder}'", found, expected, "Use the original folder.")
    adapters = read_adapters(ledger, None)
    ledger.check_base(model_identity(base_model))
    check_adapters(base_model, adapters)
    model = copy.deepcopy(base_model)
    answers = [face_predictions(model, dataset, data_collator=data_collator, batch_size=batch_size)]
    for adapter in adapters:
        merge_adapters(model, [adapter])
        answers.append(face_predictions(model, dataset, data_collator=data_collator, batch_size=batch_size))
    return FaceAudit(
        tasks=[entry.name for entry in entries],
        forgotten=[list(entry.classes or []) for entry in entries],
        missing=[list(entry.missing_classes or []) for entry in entries],
        answers=answers,
        has_margin=base_model.config.evaluation_margin > 0,
    )


_ACCURACIES = {
    "Acc_f before": ("before", "acc_forget"),
    "Acc_f": ("after", "acc_forget"),
    "Acc_r before": ("before", "acc_retain"),
    "Acc_r": ("after", "acc_retain"),
    "Acc_m": ("after", "acc_missing"),
    "Acc_o": ("after", "acc_old"),
    "H": ("after", "h_mean"),
}


_VERIFICATION = {
    "1:1 accuracy": "accuracy",
    "TAR@FAR=1e-2": "tar_at_far_0.01",
    "TAR@FAR=1e-3": "tar_at_far_0.001",
    "EER": "eer",
}


_COMPARED = {
    "forget": "forgotten among themselves",
    "forget_against_all": "forgotten against all",
    "retain": "kept among themselves",
}


def format_face_audit(audit: FaceAudit) -> str:
    """Return two tables as plain text. Rates are in percent; people appear only by number.

    The first table has a row for each task, by the cosine and, where there is one, with the margin. Its columns are
    the accuracy on the people whom the task forgot (Acc_f), on those kept (Acc_r), on those kept without training data
    (Acc_m), on those whom earlier tasks forgot (Acc_o), and H.

    The second table compares images in pairs: can the model tell whether two images show one person? Its columns are
    the 1:1 accuracy at the best threshold (10-fold); the share of pairs of one person that are accepted (TAR), at the
    threshold that accepts a hundredth or a thousandth of the other pairs (FAR); and the equal error rate (EER). Its
    rows compare all people forgotten by any task among themselves; the same people against all others, forgotten or
    kept, so that one forgotten person is enough; and all people kept among themselves. A dash stands for what cannot
    be measured, and a line below the table gives the reason.

    Args:
        audit ([`FaceAudit`]):
            From [`audit_faces`].
    """
    scores = audit.scores()
    return f"{_accuracies(audit, scores).to_text()}\n\n{_verification(scores['verification']).to_text()}"


def _accuracies(audit: FaceAudit, scores: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for task, people in zip(scores["tasks"], audit.forgotten, strict=True):
        for kind, title in (("cosine", "by the cosine"), ("margin", "with the margin")):
            if (found := task[kind]) is not None:
                values = (found[when][name] for when, name in _ACCURACIES.values())
                rows.append([task["task"], len(people), title, *values])
    return Table(["task", "people", "measured", *_ACCURACIES], rows)


def _verification(scores: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    reasons = []
    for role, who in _COMPARED.items():
        for state, title in (("base", "before"), ("after", "after all tasks")):
            found = scores[state][role]
            rates = (found[name] for name in _VERIFICATION.values())
            rows.append([who, title, *rates, found["n_same"], found["n_different"]])
        # Both models saw the same images, so the last row speaks for the one before.
        if reason := _why_not_measured(found):
            reasons.append(f"{who}: {reason}")
    return Table(["people compared", "model", *_VERIFICATION, "pairs of one", "of two"], rows, notes=reasons)


def _why_not_measured(scores: Mapping[str, Any]) -> str | None:
    if not scores["n_same"] and not scores["n_different"]:
        return "not measured, no two images to compare"
    if not scores["n_same"]:
        return "not measured, no two images of one person"
    if not scores["n_different"]:
        return "not measured, images of one person only, no pairs of two"
    if scores["accuracy"] is None:
        return "no 1:1 accuracy, which takes ten pairs of either kind"
    return None
