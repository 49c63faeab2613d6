"""Continual forgetting of object categories as a metric of the `evaluate` library."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import datasets
import evaluate
import numpy as np

from .detection import Boxes, detection_scores, predicted_boxes, reference_boxes
from .settings import checked_settings, settings_to_compute

_DESCRIPTION = """
How well a detector forgot some categories and kept the others: COCO AP, AP50 and AR of the categories to forget, to
retain, forgotten before and kept without data, the drop of the first, and H, the harmonic mean of AP kept and drop.
"""

_INPUTS = """
Args:
    predictions: for each image `boxes` (x0, y0, x1, y1), `scores` and `labels`.
    references: for each image `boxes` (x0, y0, x1, y1), `labels` and, where there are crowds, `iscrowd`.
"""

_CITATION = """
@article{zhao2026practical,
  title={Practical Continual Forgetting for Pre-trained Vision Models},
  author={Zhao, Hongbo and Zhu, Fei and Ni, Bolin and Zhu, Feng and Meng, Gaofeng and Zhang, Zhaoxiang},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year={2026}
}
"""


class ContinualDetection(evaluate.Metric):
    """Scores the predictions of a detector that forgets categories task after task.

    A class of its own, not a script to download: it works offline. Several processes can share one computation
    (`num_process`, `process_id`, `experiment_id` and a `cache_dir` all of them see); every process has to add a batch,
    if need be an empty one, and process 0 gets the scores. An image that two processes add counts twice.

    Args:
        config_name (`str`, *optional*): See `evaluate.Metric`.
        forget_classes (`Iterable[int]`, *optional*): Ids of the categories the task forgets. Needed here or in
            `compute`.
        old_classes (`Iterable[int]`, *optional*, defaults to none): Ids of the categories that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none): Ids of categories kept without replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to every category named nowhere else):
            Ids of the categories kept.
        ap_forget_before (`float`, *optional*):
            AP_f of the model before the task, in [0, 1]. Without it there is neither `drop` nor `h_mean`.
        kwargs (*optional*):
            Passed on to `evaluate.Metric`: `keep_in_memory`, `cache_dir`, `num_process`, `process_id`, …

    Raises:
        ValueError: A category has two roles or is not an id, or the AP is not a fraction.

    Example:

    ```python
    >>> metric = ContinualDetection(forget_classes=[0])
    >>> for batch in loader:
    ...     outputs = model(batch["pixel_values"])
    ...     found = processor.post_process_object_detection(outputs, threshold=0.0)
    ...     metric.add_batch(predictions=found, references=references_from_labels(batch["labels"]))
    >>> metric.compute()["ap_retain"]
    0.431
    ```
    """

    def __init__(
        self,
        config_name: str | None = None,
        *,
        forget_classes: Iterable[int] | None = None,
        old_classes: Iterable[int] = (),
        missing_classes: Iterable[int] = (),
        retain_classes: Iterable[int] | None = None,
        ap_forget_before: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._settings = checked_settings(
            "ap_forget_before",
            forget_classes=forget_classes,
            old_classes=old_classes,
            missing_classes=missing_classes,
            retain_classes=retain_classes,
            ap_forget_before=ap_forget_before,
        )
        super().__init__(config_name=config_name, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds the prediction and the reference for one image.

        Raises:
            ValueError: One of them holds no boxes, see [`detection_scores`].
        """
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds the predictions and the references for a batch of images.

        Raises:
            ValueError: They are not of the same images or hold no boxes, see [`detection_scores`].
        """
        found, truth = predicted_boxes(predictions), reference_boxes(references)
        if found.num_images != truth.num_images:
            raise ValueError(
                f"there are {found.num_images} predictions and {truth.num_images} references; expected one of each "
                "for every image of the batch. Pass an empty prediction where nothing was found."
            )
        super().add_batch(predictions=_rows(found, "scores"), references=_rows(truth, "iscrowd"), **kwargs)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        forget_classes: Iterable[int] | None = None,
        old_classes: Iterable[int] | None = None,
        missing_classes: Iterable[int] | None = None,
        retain_classes: Iterable[int] | None = None,
        ap_forget_before: float | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Scores everything added so far and starts anew. What is not given is taken from the constructor.

        Returns:
            `dict[str, Any]`: `ap_retain` (AP_r), `ap_forget` (AP_f), `ap_old` (AP_o), `ap_missing` (AP_m), the same of
            `ap50` and `ar`, `drop` (Drop), `h_mean` (H), `n_retain`, … and `per_class`, explained at
            [`detection_scores`]. `None` in every process but the first.

        Raises:
            ValueError: No `forget_classes` here or in the constructor; predictions, references, categories or the
                AP cannot be used. What was added before stays.
        """
        # Before the parent closes its files: an error past that point would leave their locks behind.
        settings = settings_to_compute(
            self._settings,
            "ap_forget_before",
            "categories",
            forget_classes=forget_classes,
            old_classes=old_classes,
            missing_classes=missing_classes,
            retain_classes=retain_classes,
            ap_forget_before=ap_forget_before,
        )
        return super().compute(predictions=predictions, references=references, **settings, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64"), length=4))
        labels = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {
                        "boxes": boxes,
                        "labels": labels,
                        "scores": datasets.List(datasets.Value("float64")),
                    },
                    "references": {"boxes": boxes, "labels": labels, "iscrowd": datasets.List(datasets.Value("bool"))},
                }
            ),
            reference_urls=["https://arxiv.org/abs/2403.11530", "https://arxiv.org/abs/2501.09705"],
        )

    def _compute(self, *, predictions: Any, references: Any, **settings: Any) -> dict[str, Any]:
        return detection_scores(predictions, references, **settings)


def _rows(boxes: Boxes, extra: str) -> list[dict[str, Any]]:
    """The same boxes image by image, as plain lists."""
    edges = np.searchsorted(boxes.images, np.arange(boxes.num_images + 1))
    pieces = [slice(start, end) for start, end in pairwise(edges)]
    return [
        {
            "boxes": boxes.corners[piece].tolist(),
            "labels": boxes.labels[piece].tolist(),
            extra: boxes.values[piece].tolist(),
        }
        for piece in pieces
    ]
