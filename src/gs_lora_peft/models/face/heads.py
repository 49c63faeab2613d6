"""Heads that tell people apart by the angle between an embedding and one direction for each of them."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration import FaceTransformerConfig


class RecognitionHead:
    """What every head has: logits, logits with the margin, and a loss for each sample."""

    def margin_logits(self, logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
        """Logits of which that of each sample's own class is made harder by the margin; here there is none.

        Args:
            logits (`torch.Tensor`): shape `(B, C)`, from `forward`.
            labels (`torch.Tensor`): int64, shape `(B,)`.
            margin (`float`, *optional*, defaults to the head's own): m.

        Returns:
            `torch.Tensor`: shape `(B, C)`.
        """
        return logits

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropies of shape `(B,)`, in nats."""
        return F.cross_entropy(logits.float(), labels, reduction="none")


class SoftmaxHead(RecognitionHead, nn.Linear):
    """W·e + b, the head of an ordinary classifier."""


class CosineHead(RecognitionHead, nn.Module):
    """
    s · cos θ_j: the cosine between an embedding and the direction of every class, scaled.

    Computed in float32 whatever the dtype of the model: in bfloat16 cosines near 1 are 0.004 apart.

    Args:
        width (`int`): width of the embedding.
        num_classes (`int`): C.
        scale (`float`): s.
        margin (`float`, *optional*, defaults to 0.0): m.
    """

    def __init__(self, width: int, num_classes: int, scale: float, margin: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        self.scale = scale
        self.margin = margin

    def forward(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
        return self.scale * cosines

    def extra_repr(self) -> str:
        classes, width = self.weight.shape
        return f"{width}, {classes}, scale={self.scale}, margin={self.margin}"


class CosFaceHead(CosineHead):
    """s · (cos θ − m) for the own class (CosFace, https://arxiv.org/abs/1801.09414)."""

    def margin_logits(self, logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
        margin = self.margin if margin is None else margin
        own = logits.gather(1, labels[:, None])
        return logits.scatter(1, labels[:, None], own - self.scale * margin)


class ArcFaceHead(CosineHead):
    """
    s · cos(θ + m) for the own class (ArcFace, https://arxiv.org/abs/1801.07698).

    Where θ + m would pass π and the cosine rise again, cos θ − m · sin m goes on falling.
    """

    def margin_logits(self, logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
        margin = self.margin if margin is None else margin
        cosine = logits.gather(1, labels[:, None]) / self.scale
        # The slope of the square root has no bound at 0, and rounding can take the square of a cosine past 1.
        sine = (1 - cosine.square()).clamp(min=1e-7).sqrt()
        turned = cosine * math.cos(margin) - sine * math.sin(margin)
        straight = cosine - margin * math.sin(margin)
        own = torch.where(cosine > math.cos(math.pi - margin), turned, straight)
        return logits.scatter(1, labels[:, None], self.scale * own)


class SFaceHead(CosineHead):
    """
    Pulls a sample towards its own class and pushes it off the others, each only as far as it still needs to be
    (SFace, https://arxiv.org/abs/2205.12010).

    The loss of a sample is −s · w(θ_y) · cos θ_y + s · Σ_{j≠y} v(θ_j) · cos θ_j with w(θ) = σ(k(θ − a)) and
    v(θ) = σ(−k(θ − b)), which carry no gradient. There is no margin.

    Args:
        slope (`float`): k, in 1/radian.
        intra_angle (`float`): a, in radians.
        inter_angle (`float`): b, in radians.
    """

    def __init__(
        self, width: int, num_classes: int, scale: float, slope: float, intra_angle: float, inter_angle: float
    ):
        super().__init__(width, num_classes, scale)
        self.slope = slope
        self.intra_angle = intra_angle
        self.inter_angle = inter_angle

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        own = F.one_hot(labels, logits.shape[1]).bool()
        angles = (logits.detach() / self.scale).clamp(-1, 1).acos()
        pull = -torch.sigmoid(self.slope * (angles - self.intra_angle))
        push = torch.sigmoid(self.slope * (self.inter_angle - angles))
        return (torch.where(own, pull, push) * logits).sum(1)


def build_head(config: FaceTransformerConfig) -> SoftmaxHead | CosineHead:
    """The head that a configuration asks for, with weights still to be initialised."""
    width, classes = config.hidden_size, cast(int, config.num_labels)
    if config.head_type == "softmax":
        return SoftmaxHead(width, classes)
    if config.head_type == "sface":
        angles = config.sface_slope, config.sface_intra_angle, config.sface_inter_angle
        return SFaceHead(width, classes, config.scale, *angles)
    kind = CosFaceHead if config.head_type == "cosface" else ArcFaceHead
    return kind(width, classes, config.scale, config.margin)
