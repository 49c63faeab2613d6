"""Recognition of people before and after they were forgotten: accuracy with and without the margin, verification."""

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

from ..adapters import merge_changes
from ..data import NamedRows, check_names, label_names
from ..errors import InvalidInputError
from ..metrics import continual_forgetting_scores, verification_by_role
from ..models import FaceTransformerForRecognition
from ..reports import Cell, Table
from .opening import open_run

Collator = Callable[[list[Any]], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class FacePredictions:
    """The outputs of a face model for labelled images.

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
            Ids that the model predicts with the margin, as the papers measure accuracy, shape `(n,)`.
    """

    labels: np.ndarray
    embeddings: np.ndarray
    similarities: np.ndarray
    predictions: np.ndarray
    margin_predictions: np.ndarray


@torch.no_grad()
def face_predictions(
    model: FaceTransformerForRecognition,
    dataset: Any,
    *,
    data_collator: Collator,
    batch_size: int = 64,
) -> FacePredictions:
    """Runs a face model on every image of a data set, in eval mode and on the model's device.

    Args:
        model ([`FaceTransformerForRecognition`]):
            The model without adapters. It stays in eval mode.
        dataset (map-style dataset):
            Labelled rows.
        data_collator (`Callable`):
            Makes `pixel_values` and `labels` of a list of rows, e.g. [`default_collator`].
        batch_size (`int`, *optional*, defaults to 64):
            Number of images in a batch.

    Returns:
        [`FacePredictions`]: The outputs, in the order of the rows.

    Raises:
        InvalidInputError: If the model is not a face model, or there are no rows.
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
    """The predictions of a run on a face model after each of its tasks in effect; made by [`audit_faces`].

    Attributes:
        tasks (`list[str]`):
            Names of the tasks in effect.
        forgotten (`list[list[int]]`):
            Ids of the people that each task forgot.
        missing (`list[list[int]]`):
            Ids of the people that each task kept without training data of them.
        predictions (`list[FacePredictions]`):
            Predictions of the base model, then of the model after each task.
        has_margin (`bool`):
            Whether the head has a margin, so that accuracy can be measured with it.
    """

    tasks: list[str]
    forgotten: list[list[int]]
    missing: list[list[int]]
    predictions: list[FacePredictions]
    has_margin: bool

    @property
    def everybody_forgotten(self) -> list[int]:
        """Ids of all forgotten people, in the order of the tasks."""
        return [person for people in self.forgotten for person in people]

    def scores(self) -> dict[str, Any]:
        """Returns all scores as JSON types, with rates as fractions from 0 to 1.

        Returns:
            `dict`: `tasks` has an entry for each task: `task` is its name; `cosine` and `margin` (`None` without a
            margin) hold the scores `before` and `after`, see [`continual_forgetting_scores`]. `verification` has the
            scores of the `base` model and of the model `after` all tasks, see [`verification_by_role`]; `forget` in
            it means all people that any task forgot.
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
                "base": self._verification(self.predictions[0]),
                "after": self._verification(self.predictions[-1]),
            },
        }

    def _accuracies(self, number: int, kind: str) -> dict[str, Any]:
        roles: dict[str, Any] = {
            "forget_classes": self.forgotten[number],
            "missing_classes": self.missing[number],
            "old_classes": [person for people in self.forgotten[:number] for person in people],
        }
        before, after = self.predictions[number], self.predictions[number + 1]
        first = continual_forgetting_scores(getattr(before, kind), before.labels, **roles)
        second = continual_forgetting_scores(
            getattr(after, kind), after.labels, accuracy_forget_before=first["acc_forget"], **roles
        )
        return {"before": first, "after": second}

    def _verification(self, found: FacePredictions) -> dict[str, Any]:
        scores = verification_by_role(found.embeddings, found.labels, forget_classes=self.everybody_forgotten)
        return {role: scores[role] for role in ("retain", "forget", "forget_against_all")}


def audit_faces(
    base_model: FaceTransformerForRecognition,
    run: str | os.PathLike,
    dataset: Any,
    *,
    data_collator: Collator,
    label_column: str = "label",
    batch_size: int = 64,
    revision: str | None = None,
    token: str | bool | None = None,
) -> FaceAudit:
    """Runs a face model on labelled images after each task in effect of a run.

    The model is rebuilt from the run's adapters, which are checked first.

    Args:
        base_model ([`FaceTransformerForRecognition`]):
            The model before any task. It is not changed.
        run (`str` or `os.PathLike`):
            As in [`load_forgotten`]: a folder, or a repository on the Hub.
        dataset (map-style dataset):
            Labelled images of all people that were not trained on.
        data_collator (`Callable`):
            As in [`face_predictions`].
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels. If it has names, they must be those of the model for the same ids.
        batch_size (`int`, *optional*, defaults to 64):
            As in [`face_predictions`].
        revision (`str`, *optional*):
            As in [`load_forgotten`].
        token (`str`, *optional*):
            As in [`load_forgotten`].

    Returns:
        [`FaceAudit`]: The predictions after each task.

    Raises:
        LedgerError: As [`load_forgotten`]; also if no task is in effect, or the ledger withholds who was forgotten.
        InvalidInputError: If the model is not a face model, there are no rows, or the data and the model have other
            ids for the same people.

    Example:
        ```py
        >>> audit = audit_faces(base_model, "runs/faces", dataset["test"], data_collator=default_collator(processor))
        >>> print(format_face_audit(audit))
        ```
    """
    if label_column in (getattr(dataset, "features", None) or {}):
        check_names(label_names(dataset, label_column), base_model, repr(label_column))
    opened = open_run(base_model, run, revision=revision, token=token)
    model = copy.deepcopy(base_model)
    predictions = [face_predictions(model, dataset, data_collator=data_collator, batch_size=batch_size)]
    for change in opened.changes:
        merge_changes(model, [change])
        predictions.append(face_predictions(model, dataset, data_collator=data_collator, batch_size=batch_size))
    return FaceAudit(
        tasks=[entry.name for entry in opened.entries],
        forgotten=[list(entry.classes or []) for entry in opened.entries],
        missing=[list(entry.missing_classes or []) for entry in opened.entries],
        predictions=predictions,
        has_margin=base_model.config.evaluation_margin > 0,
    )


# Tables


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
    """Returns two tables as plain text. Rates are in percent; people appear only by number.

    The first table has a row for each task, by the cosine and, where there is one, with the margin. Its columns are
    the accuracy on the people whom the task forgot (Acc_f), on those kept (Acc_r), on those kept without training data
    (Acc_m), on those whom earlier tasks forgot (Acc_o), and H.

    The second table measures whether the model can verify that two images show the same person. Its columns are the
    1:1 accuracy at the best threshold (10-fold); the share of pairs of one person that are accepted (TAR), at the
    threshold that accepts a hundredth or a thousandth of the other pairs (FAR); and the equal error rate (EER). Its
    rows compare all forgotten people among themselves; all forgotten people with everyone, which needs only one
    forgotten person; and all kept people among themselves. A dash marks a value that cannot be measured; a line below
    the table gives the reason.

    Args:
        audit ([`FaceAudit`]):
            From [`audit_faces`].

    Returns:
        `str`: The tables.
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
        # Both models saw the same images, so the reason holds for both rows.
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
