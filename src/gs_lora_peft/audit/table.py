"""An audit of a face model as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..tables import aligned, percent
from .faces import FaceAudit

_ACCURACIES = ("Acc_f before", "Acc_f", "Acc_r before", "Acc_r", "Acc_m", "Acc_o", "H")
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
    """Two tables in plain text, all rates in percent; people appear by their number alone.

    The first has a row for each task, by the cosine and, where there is one, with the margin: accuracy on the people
    it forgot (Acc_f), on those kept (Acc_r), on those kept without any of their training data (Acc_m) and on those
    that earlier tasks forgot (Acc_o), and H.

    The second compares images in pairs: can the model tell whether two images show one person? 1:1 accuracy at the
    best threshold by 10-fold, the share of pairs of one person that are accepted (TAR) where a hundredth or a
    thousandth of the others is (FAR), and the equal error rate (EER). Its rows compare everybody forgotten by any
    task among themselves; the same people against all, where a pair of two is a forgotten person and any other one,
    forgotten or kept, so that one person is enough; and everybody kept among themselves. What could not be measured is
    a dash, and a line below the table says why.

    Args:
        audit ([`FaceAudit`]): from [`audit_faces`].
    """
    scores = audit.scores()
    accuracies = [("task", "people", "measured", *_ACCURACIES)]
    for task, people in zip(scores["tasks"], audit.forgotten, strict=True):
        for kind, title in (("cosine", "by the cosine"), ("margin", "with the margin")):
            if task[kind] is not None:
                accuracies.append((task["task"], str(len(people)), title, *_accuracy_cells(task[kind])))
    pairs = [("people compared", "model", *_VERIFICATION, "pairs of one", "of two")]
    reasons = []
    for role, who in _COMPARED.items():
        for state, title in (("base", "before"), ("after", "after all tasks")):
            found = scores["verification"][state][role]
            cells = [percent(found[name]) for name in _VERIFICATION.values()]
            pairs.append((who, title, *cells, str(found["n_same"]), str(found["n_different"])))
        # Both models saw the same images, so that the last row speaks for the one before.
        if reason := _why_not_measured(found):
            reasons.append(f"{who}: {reason}")
    return "\n\n".join("\n".join(part) for part in (aligned(accuracies), aligned(pairs), reasons) if part)


def _why_not_measured(found: Mapping[str, Any]) -> str | None:
    if not found["n_same"] and not found["n_different"]:
        return "not measured, no two images to compare"
    if not found["n_same"]:
        return "not measured, no two images of one person"
    if not found["n_different"]:
        return "not measured, images of one person only, no pairs of two"
    if found["accuracy"] is None:
        return "no 1:1 accuracy, which takes ten pairs of either kind"
    return None


def _accuracy_cells(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    before, after = scores["before"], scores["after"]
    values = (
        before["acc_forget"], after["acc_forget"], before["acc_retain"], after["acc_retain"], after["acc_missing"],
        after["acc_old"], after["h_mean"],
    )  # fmt: skip
    return [percent(value) for value in values]
