"""What a detector's class head reads and answers for every query, and the average precision of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers.loss.loss_for_object_detection import box_iou

from ...compat import bare
from ...metrics import detection_scores, unpack_boxes
from ...objectives import DetectionCriterion, DetectionScoring, HeadRecorder, corners_of
from ..samples import Samples
from ..subjects import Subject

_BATCH = 16


@dataclass(frozen=True)
class DetectorStates:
    """The queries of a frozen detector on some images.

    Args:
        states (`torch.Tensor`):
            Input of the last Linear of the class head: the last decoder states (in YOLOS the last hidden layer of the
            head), float32, shape `(images, queries, width)`, on the CPU.
        logits (`torch.Tensor`):
            The head's answers, float32, shape `(images, queries, categories)`, with a softmax head one column more.
        boxes (`torch.Tensor`):
            (cx, cy, w, h) relative to the image, float32, shape `(images, queries, 4)`.
        labels (list of `dict`):
            Annotations of each image, as [`DetectionCollator`] returns them.
        criterion ([`DetectionCriterion`]):
            The detector's matching and its class loss.
        proposals (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Class logits and boxes of the encoder's proposals, of the same shapes, where the detector chooses its
            queries by them (RT-DETR, D-FINE).
    """

    states: Tensor
    logits: Tensor
    boxes: Tensor
    labels: list[dict[str, Tensor]]
    criterion: DetectionCriterion
    proposals: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, subject: Subject, samples: Samples) -> DetectorStates:
        """The queries of a detector on all samples; computed once."""
        return subject.computed(samples, _detector_states)

    @property
    def scoring(self) -> DetectionScoring:
        """How answers become detections: one for each query."""
        return DetectionScoring(self.criterion.is_softmax, self.criterion.max_detections)

    def best_overlaps(self, categories: Sequence[int]) -> np.ndarray:
        """The largest overlap (IoU) of each annotated object of some categories with any box, shape `(objects,)`."""
        best = []
        for boxes, label in zip(self.boxes, self.labels, strict=True):
            objects = label["boxes"][torch.isin(label["class_labels"], torch.tensor(categories))]
            overlaps, _ = box_iou(corners_of(objects), corners_of(boxes))
            best.append(overlaps.amax(1))
        return torch.cat(best).numpy()

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """What each annotated object is taken for, by the most confident box on it (IoU 0.5).

        Returns:
            `tuple[np.ndarray, np.ndarray]`: The annotated categories and the answered ones, int64, shape `(objects,)`;
            -1 where no box covers the object.
        """
        is_softmax = self.criterion.is_softmax
        chances = self.logits.softmax(-1)[..., :-1] if is_softmax else self.logits.sigmoid()
        confidences, categories = chances.max(-1)
        labels, given = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
        for boxes, confidence, category, label in zip(self.boxes, confidences, categories, self.labels, strict=True):
            overlaps, _ = box_iou(corners_of(label["boxes"]), corners_of(boxes))
            best, query = torch.where(overlaps >= 0.5, confidence, -1.0).max(1)
            labels.append(label["class_labels"])
            given.append(torch.where(best < 0, -1, category[query]))
        return torch.cat(labels).numpy(), torch.cat(given).numpy()


@torch.no_grad()
def _detector_states(model: nn.Module, samples: Samples) -> DetectorStates:
    recorder, device = HeadRecorder(bare(model)), next(model.parameters()).device
    found: list[tuple[Tensor, ...]] = []
    labels: list[dict[str, Tensor]] = []
    for batch in samples.batches(size=_BATCH, device=device):
        labels += batch.pop("labels")
        with recorder.recording() as seen:
            outputs = model(**batch)
        parts = [seen["embeddings"], outputs.logits, outputs.pred_boxes]
        if outputs.get("enc_topk_logits") is not None:
            parts += [outputs.enc_topk_logits, outputs.enc_topk_bboxes]
        found.append(tuple(part.float().cpu() for part in parts))
    states, logits, boxes, *proposals = (torch.cat(parts) for parts in zip(*found, strict=True))
    criterion = DetectionCriterion(bare(model))
    return DetectorStates(
        states, logits, boxes, labels, criterion, (proposals[0], proposals[1]) if proposals else None
    )


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's average precision of some categories, in points.

    Args:
        ap (`float`):
            AP@[.5:.95].
        ap50 (`float`):
            AP at an overlap of 0.5.
        low (`float`):
            Lower end of the 95 % interval of `ap`, by bootstrap over the images.
        high (`float`):
            Its upper end.
    """

    ap: float
    ap50: float
    low: float
    high: float


def average_precision(
    states: DetectorStates, logits: Tensor, categories: Sequence[int], resamples: int
) -> AveragePrecision:
    """Scores answers to the queries of a detector.

    Args:
        states ([`DetectorStates`]):
            The queries, their boxes and the annotations.
        logits (`torch.Tensor`):
            The answers, of the shape of `states.logits`.
        categories (`Sequence[int]`):
            The categories to score.
        resamples (`int`):
            Bootstrap samples of the images, each of which costs an evaluation; with 0 the interval is the value.
    """
    packed = states.scoring.gathered((logits, states.boxes), states.labels)
    wanted = torch.tensor(categories)
    found, truth = (
        [
            {name: values[torch.isin(row["labels"], wanted)] for name, values in row.items()}
            for row in unpack_boxes(part)
        ]
        for part in packed
    )

    def score(images: Sequence[int]) -> tuple[float, float]:
        scores = detection_scores([found[i] for i in images], [truth[i] for i in images], forget_classes=categories)
        return 100 * (scores["ap_forget"] or 0.0), 100 * (scores["ap50_forget"] or 0.0)

    ap, ap50 = score(range(len(truth)))
    rng = np.random.default_rng(0)
    drawn = [score(rng.integers(len(truth), size=len(truth)).tolist())[0] for _ in range(resamples)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if drawn else (ap, ap)
    return AveragePrecision(ap, ap50, float(low), float(high))
