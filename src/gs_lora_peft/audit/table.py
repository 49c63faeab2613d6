"""An audit of a face model as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..reports import Cell, Table
from .faces import FaceAudit

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
