"""Average precision and recall of a detector by role of the category, from one run of the COCO evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..roles import ClassRoles
from .scores import fraction, h_mean

MAX_DETECTIONS = 100  # of one category in one image, the best ones: COCO's own limit
_ROLES = ("retain", "forget", "old", "missing")
_MEASURES = ("ap", "ap50", "ar")


@dataclass(frozen=True)
class Boxes:
    """The boxes of many images as columns.

    Attributes:
        images (`np.ndarray` of shape `(n,)`, int64):
            Number of the image.
        labels (`np.ndarray` of shape `(n,)`, int64):
            Category id.
        corners (`np.ndarray` of shape `(n, 4)`, float64):
            (x0, y0, x1, y1).
        values (`np.ndarray` of shape `(n,)`):
            Score of a prediction (float64), or `iscrowd` of a reference (bool).
        num_images (`int`):
            Number of images, with or without boxes.
    """

    images: np.ndarray
    labels: np.ndarray
    corners: np.ndarray
    values: np.ndarray
    num_images: int


def detection_scores(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    forget_classes: Iterable[int],
    old_classes: Iterable[int] = (),
    missing_classes: Iterable[int] = (),
    retain_classes: Iterable[int] | None = None,
    ap_forget_before: float | None = None,
) -> dict[str, Any]:
    """Scores a detector on data of a continual forgetting task.

    The COCO evaluation runs once over all categories. The average over the categories of a role is the same as from a
    run over these categories alone. At most 100 detections of a category count in an image.

    Args:
        predictions (`Sequence[Mapping]`):
            One for each image, as `post_process_object_detection` of the image processors returns them. Use
            `threshold=0.0`: AP counts detections with low scores too.

            - `boxes` of shape `(n, 4)`: (x0, y0, x1, y1).
            - `scores` of shape `(n,)`.
            - `labels` of shape `(n,)`: category ids. Detections of a category without a role and without references
              are ignored.
        references (`Sequence[Mapping]`):
            One for each image, in the same order:

            - `boxes` of shape `(m, 4)`: (x0, y0, x1, y1) in the units of the predictions: pixels, or shares of the
              image's width and height. The scores are the same.
            - `labels` of shape `(m,)`: category ids from 0 up.
            - `iscrowd` of shape `(m,)`, *optional*: marks regions of many objects. Detections in them are ignored.

            [`references_from_objects`] and [`references_from_labels`] return them.
        forget_classes (`Iterable[int]`):
            Categories to forget. May be empty, to score a model before any task.
        old_classes (`Iterable[int]`, *optional*, defaults to none):
            Categories that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none):
            Categories to retain without replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to all other categories of the references):
            Categories to retain.
        ap_forget_before (`float`, *optional*):
            AP_f of the model before the task, in [0, 1].

    Returns:
        `dict[str, Any]`: Fractions from 0 to 1. A score is `None` if its role has no object in the references.

        - `ap_retain` (AP_r), `ap_forget` (AP_f), `ap_old` (AP_o), `ap_missing` (AP_m): COCO's AP@[.5:.95], the mean
          over the categories of the role that have objects.
        - `ap50_retain`, …: AP at an overlap (IoU) of 0.5. `ar_retain`, …: COCO's average recall.
        - `drop` (Drop): AP_f before − AP_f after; `None` if either is unknown.
        - `h_mean` (H): the harmonic mean of AP_r and Drop, see [`h_mean`]; `None` if either is `None`.
        - `n_retain`, …: the numbers of objects, without crowds.
        - `per_class`: by category id a `dict` with `ap`, `ap50`, `ar` and `n`.

    Raises:
        InvalidInputError: If predictions and references differ in their number of images; if boxes, scores or labels
            are missing, have other shapes or are not finite; if the category of a reference is negative, or its box
            has no area; if a category has two roles; or if the AP is not a fraction.

    Example:
        ```py
        >>> found = {"boxes": [[0, 0, 8, 8], [9, 0, 14, 5]], "scores": [0.9, 0.8], "labels": [0, 1]}
        >>> truth = {"boxes": [[0, 0, 8, 8], [20, 0, 25, 5]], "labels": [0, 1]}
        >>> scores = detection_scores([found], [truth], forget_classes=[1], ap_forget_before=0.5)
        >>> round(scores["ap_retain"], 6), scores["ap_forget"], round(scores["h_mean"], 6)
        (1.0, 0.0, 0.666667)
        ```
    """
    found, truth = predicted_boxes(predictions), reference_boxes(references)
    check_same_images(found, truth)
    before = fraction(ap_forget_before, "ap_forget_before")
    objects: Counter[int] = Counter(truth.labels[~truth.values].tolist())
    given = ClassRoles.of(forget_classes, old_classes, missing_classes, retain_classes, present=objects)
    roles = given.as_dict()

    per_class = _per_class(found, truth, sorted(frozenset(objects).union(*roles.values())), objects)
    scores: dict[str, Any] = {
        f"{measure}_{role}": _mean(per_class[c][measure] for c in roles[role])
        for measure in _MEASURES
        for role in _ROLES
    }
    drop = None if before is None or scores["ap_forget"] is None else before - scores["ap_forget"]
    return {
        **scores,
        "drop": drop,
        "h_mean": h_mean(scores["ap_retain"], drop),
        **{f"n_{role}": sum(per_class[c]["n"] for c in roles[role]) for role in _ROLES},
        "per_class": per_class,
    }


def predicted_boxes(predictions: Sequence[Mapping[str, Any]]) -> Boxes:
    """Returns the predictions for many images as columns.

    Args:
        predictions (`Sequence[Mapping]`):
            As for [`detection_scores`].

    Raises:
        InvalidInputError: If they cannot be scored, see [`detection_scores`].
    """
    return _columns(predictions, "predictions", "scores", np.float64)


def reference_boxes(references: Sequence[Mapping[str, Any]]) -> Boxes:
    """Returns the references of many images as columns.

    Args:
        references (`Sequence[Mapping]`):
            As for [`detection_scores`].

    Raises:
        InvalidInputError: If they cannot be scored, see [`detection_scores`].
    """
    truth = _columns(references, "references", "iscrowd", np.bool_)
    bad = np.flatnonzero(truth.labels < 0)
    if bad.size:
        raise InvalidInputError(
            f"references[{truth.images[bad[0]]}]: labels",
            int(truth.labels[bad[0]]),
            "category ids from 0 up",
            "Leave objects without a category out.",
        )
    bad = np.flatnonzero(~(truth.corners[:, 2:] > truth.corners[:, :2]).all(axis=1))
    if bad.size:
        raise InvalidInputError(
            f"references[{truth.images[bad[0]]}]: boxes",
            truth.corners[bad[0]].tolist(),
            "corners (x0, y0, x1, y1) with x0 < x1 and y0 < y1",
            "Convert boxes of (x, y, w, h), and leave empty ones out.",
        )
    return truth


def check_same_images(found: Boxes, truth: Boxes) -> None:
    """Refuses predictions and references with different numbers of images."""
    if found.num_images != truth.num_images:
        raise InvalidInputError(
            "len(predictions)",
            found.num_images,
            f"{truth.num_images}, one for each image of the `references`",
            "Pass an empty prediction for an image without detections.",
        )


def as_array(values: Any, dtype: Any = None) -> np.ndarray:
    """Returns values as a NumPy array. Tensors may be on a GPU or in bfloat16, which NumPy does not have."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values, dtype=dtype)


def _columns(rows: Any, name: str, extra: str, dtype: Any) -> Boxes:
    if isinstance(rows, (Mapping, str)) or not isinstance(rows, Sequence):
        raise InvalidInputError(name, rows, "a list with a dict for each image")
    parts = [_row(row, f"{name}[{number}]", extra, dtype) for number, row in enumerate(rows)]
    sizes = [len(labels) for labels, _, _ in parts]
    empty = (np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, dtype))
    labels, corners, values = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return Boxes(np.repeat(np.arange(len(parts)), sizes), labels, corners, values, len(parts))


def _row(row: Any, name: str, extra: str, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    needed = ("boxes", "labels", "scores") if extra == "scores" else ("boxes", "labels")
    absent = [key for key in needed if not isinstance(row, Mapping) or row.get(key) is None]
    if absent:
        held = sorted(row) if isinstance(row, Mapping) else row
        raise InvalidInputError(name, held, f"a dict with {', '.join(needed)}", f"Add {', '.join(absent)}.")
    labels, corners = as_array(row["labels"]), as_array(row["boxes"], np.float64)
    if labels.size and labels.dtype.kind not in "iu":
        raise InvalidInputError(f"{name}: labels", labels.flat[0], "category ids, which are whole numbers")
    corners = corners.reshape(0, 4) if corners.size == 0 else corners
    values = np.zeros(len(labels), dtype) if row.get(extra) is None else as_array(row[extra], dtype)
    shapes = {"boxes": corners.shape, "labels": labels.shape, extra: values.shape}
    if labels.ndim != 1 or corners.shape != (len(labels), 4) or values.shape != labels.shape:
        raise InvalidInputError(
            f"{name}: shapes",
            shapes,
            "(n, 4) for boxes and (n,) for the others",
            "Masks are not scored: pass the boxes around them.",
        )
    for key, numbers in (("boxes", corners), (extra, values)):
        finite = np.isfinite(numbers)
        if not finite.all():
            bad = float(numbers[~finite][0])
            raise InvalidInputError(f"{name}: {key}", bad, "finite numbers", "Check the model for NaN before scoring.")
    return labels.astype(np.int64), corners, values


def _per_class(found: Boxes, truth: Boxes, classes: list[int], objects: Counter[int]) -> dict[int, dict[str, Any]]:
    """Returns AP, AP50, AR and the number of objects of each category."""
    evaluation = coco_evaluation(found, truth, classes)
    # Precision has the axes (overlap, recall, category, area, limit), recall (overlap, category, area, limit).
    precision, recall = evaluation.eval["precision"][:, :, :, 0, -1], evaluation.eval["recall"][:, :, 0, -1]
    return {
        category: {
            "ap": float(precision[:, :, k].mean()) if objects[category] else None,
            "ap50": float(precision[0, :, k].mean()) if objects[category] else None,
            "ar": float(recall[:, k].mean()) if objects[category] else None,
            "n": objects[category],
        }
        for k, category in enumerate(classes)
    }


def coco_evaluation(found: Boxes, truth: Boxes, classes: list[int]) -> Any:
    """Runs the COCO evaluation over some categories.

    Args:
        found ([`Boxes`]):
            Predictions.
        truth ([`Boxes`]):
            References, of the same images.
        classes (`list[int]`):
            Ids of the categories, ascending.

    Returns:
        `faster_coco_eval.COCOeval_faster`: `eval["precision"]` and `eval["recall"]` have the order of `classes`.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    images = [{"id": number} for number in range(truth.num_images)]
    categories = [{"id": category} for category in classes]
    known = np.isin(found.labels, classes)
    detected = {"images": images, "categories": categories, "annotations": _annotations(found, known, "score")}
    ground_truth = {
        "images": images,
        "categories": categories,
        "annotations": _annotations(truth, np.isin(truth.labels, classes), "iscrowd"),
    }
    evaluation = COCOeval_faster(COCO(ground_truth), COCO(detected), "bbox")
    evaluation.params.imgIds = list(range(truth.num_images))
    evaluation.params.catIds = classes
    evaluation.params.maxDets = [MAX_DETECTIONS]
    # The first range holds objects of all sizes. Scores by size are not needed, and each costs as much again.
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _annotations(boxes: Boxes, chosen: np.ndarray, extra: str) -> list[dict[str, Any]]:
    sizes = boxes.corners[:, 2:] - boxes.corners[:, :2]
    xywh = np.concatenate([boxes.corners[:, :2], sizes], axis=1)[chosen].tolist()
    columns = zip(
        boxes.images[chosen].tolist(), boxes.labels[chosen].tolist(), xywh, boxes.values[chosen].tolist(), strict=True
    )
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            extra: int(value) if extra == "iscrowd" else value,
        }
        for number, (image, label, box, value) in enumerate(columns, start=1)
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
