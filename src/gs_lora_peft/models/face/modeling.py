"""The Face Transformer: heads, and the model on top of transformers' ViT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTModel, ViTPatchEmbeddings, ViTPreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration import FaceTransformerConfig


class RecognitionHead:
    """Base class of the heads: logits, logits with the margin, and a loss for each sample."""

    def margin_logits(self, logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
        """Applies the margin to the logit of each sample's own class. By default there is no margin.

        Args:
            logits (`torch.Tensor`):
                Shape `(B, C)`, from `forward`.
            labels (`torch.Tensor`):
                int64, shape `(B,)`.
            margin (`float`, *optional*):
                Margin m; by default that of the head.

        Returns:
            `torch.Tensor`: Shape `(B, C)`.
        """
        return logits

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy of each sample, shape `(B,)`, in nats."""
        return F.cross_entropy(logits.float(), labels, reduction="none")


class SoftmaxHead(RecognitionHead, nn.Linear):
    """W·e + b, the head of a common classifier."""


class CosineHead(RecognitionHead, nn.Module):
    """s · cos θ_j: the cosine between an embedding and the direction of each class, times a factor.

    It is computed in float32 whatever the dtype of the model: in bfloat16, neighbouring cosines near 1 differ by
    0.004.

    Args:
        width (`int`):
            Width of the embedding.
        num_classes (`int`):
            Number of classes C.
        scale (`float`):
            Factor s.
        margin (`float`, *optional*, defaults to 0.0):
            Margin m.
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
    """s · cos(θ + m) for the own class (ArcFace, https://arxiv.org/abs/1801.07698).

    Beyond θ + m = π, where the cosine would rise again, it is s · (cos θ − m · sin m), which keeps falling.
    """

    def margin_logits(self, logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
        margin = self.margin if margin is None else margin
        cosine = logits.gather(1, labels[:, None]) / self.scale
        # The slope of the square root is infinite at 0, and rounding can make the square of a cosine larger than 1.
        sine = (1 - cosine.square()).clamp(min=1e-7).sqrt()
        turned = cosine * math.cos(margin) - sine * math.sin(margin)
        straight = cosine - margin * math.sin(margin)
        own = torch.where(cosine > math.cos(math.pi - margin), turned, straight)
        return logits.scatter(1, labels[:, None], self.scale * own)


class SFaceHead(CosineHead):
    """Pulls a sample to its own class and pushes it off the others (SFace, https://arxiv.org/abs/2205.12010).

    Both forces fade once the angle is good enough. The loss of a sample is
    −s · w(θ_y) · cos θ_y + s · Σ_{j≠y} v(θ_j) · cos θ_j with w(θ) = σ(k(θ − a)) and v(θ) = σ(−k(θ − b)), which have no
    gradient. There is no margin.

    Args:
        width (`int`):
            Width of the embedding.
        num_classes (`int`):
            Number of classes C.
        scale (`float`):
            Factor s.
        slope (`float`):
            Slope k, in 1/radian.
        intra_angle (`float`):
            Angle a, in radians.
        inter_angle (`float`):
            Angle b, in radians.
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
    """Returns the head of a configuration, with weights that are not initialised."""
    width, classes = config.hidden_size, cast(int, config.num_labels)
    if config.head_type == "softmax":
        return SoftmaxHead(width, classes)
    if config.head_type == "sface":
        angles = config.sface_slope, config.sface_intra_angle, config.sface_inter_angle
        return SFaceHead(width, classes, config.scale, *angles)
    kind = CosFaceHead if config.head_type == "cosface" else ArcFaceHead
    return kind(width, classes, config.scale, config.margin)


# Modules that stay on one device each.
_NO_SPLIT = ["OverlappingEmbeddings", "ViTEmbeddings", "ViTLayer"]


@dataclass
class FaceRecognitionOutput(ImageClassifierOutput):
    """Output of [`FaceTransformerForRecognition`]: an `ImageClassifierOutput` with embeddings.

    Args:
        embeddings (`torch.Tensor`, *optional*):
            Embeddings to compare two images, shape `(B, hidden_size)`, not normalised.
    """

    embeddings: torch.FloatTensor | None = None


class OverlappingPatchEmbeddings(ViTPatchEmbeddings):
    """Patches that may overlap and may extend over the edge of the image."""

    def __init__(self, config: FaceTransformerConfig):
        super().__init__(config)
        self.projection = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_stride,
            padding=config.patch_padding,
        )
        self.num_patches = (config.image_size // config.patch_stride) ** 2


class OverlappingEmbeddings(ViTEmbeddings):
    """The class token, the patches and their positions."""

    def __init__(self, config: FaceTransformerConfig):
        super().__init__(config)
        self.patch_embeddings = OverlappingPatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(
            torch.empty(1, self.patch_embeddings.num_patches + 1, config.hidden_size)
        )
        # ViT divides height and width by it to count the patches of a larger image.
        self.patch_size = config.patch_stride


class ClassToken(nn.Module):
    """Pools a sequence into its first token."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[:, 0]


class FaceTransformerModel(ViTModel):
    """The backbone of the Face Transformer (https://arxiv.org/abs/2103.14803), a `ViTModel`.

    It differs in three points. Attention is scaled by 1/√width instead of 1/√(width of a head). There is dropout
    inside the feed-forward. `pooler_output` is the class token after the final LayerNorm: the embedding.

    Args:
        config ([`FaceTransformerConfig`]):
            The configuration.
    """

    config: FaceTransformerConfig
    config_class = FaceTransformerConfig
    _no_split_modules = _NO_SPLIT

    def __init__(self, config: FaceTransformerConfig):
        super().__init__(config, add_pooling_layer=False)
        self.pooler = ClassToken()  # type: ignore[assignment]
        for layer in cast(Any, self.layers):
            if not (hasattr(layer.attention, "scaling") and hasattr(layer.mlp, "activation_fn")):
                raise RuntimeError("transformers' ViT layers are built differently; use an earlier transformers.")
            # Every attention kernel reads this value. Scaling the query weights instead would change the weights of a
            # converted checkpoint, and the effect of LoRA factors.
            layer.attention.scaling = config.hidden_size**-0.5
            # Dropout has no weights, so that the names of weights stay those of ViT.
            dropout = nn.Dropout(config.intermediate_dropout_prob)
            layer.mlp.activation_fn = nn.Sequential(layer.mlp.activation_fn, dropout)
        if config.patch_stride != config.patch_size:
            self.embeddings = OverlappingEmbeddings(config)
            self.post_init()


class FaceTransformerForRecognition(ViTPreTrainedModel):
    """A [`FaceTransformerModel`] with a head that compares embeddings with one direction per person.

    Without labels, `logits` are the scaled cosines (plain logits with a softmax head). With labels, the margin applies
    in training, and in evaluation with `config.margin_at_eval`. It applies to the returned `logits` too, so that loss
    and accuracy agree. A training loop that computes the loss from logits itself calls
    [`~FaceTransformerForRecognition.margin_logits`].

    Args:
        config ([`FaceTransformerConfig`]):
            The configuration. `num_labels` or `id2label` lists the people.

    Example:
        ```py
        >>> model = AutoModelForImageClassification.from_pretrained(convert_face_checkpoint("face.pth", "face"))
        >>> outputs = model(pixel_values=pixels)   # (B, 3, 112, 112)
        >>> outputs.logits.argmax(-1), outputs.embeddings   # ids of people; embeddings to compare images
        ```
    """

    config: FaceTransformerConfig
    config_class = FaceTransformerConfig
    base_model_prefix = "vit"
    _no_split_modules = _NO_SPLIT

    def __init__(self, config: FaceTransformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = FaceTransformerModel(config)
        self.classifier = build_head(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CosineHead):
            init.xavier_uniform_(module.weight)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> FaceRecognitionOutput:
        """Computes logits, embeddings and, with labels, the loss.

        Args:
            pixel_values (`torch.Tensor`):
                Shape `(B, 3, image_size, image_size)`.
            labels (`torch.Tensor`, *optional*):
                Ids of people, int64, shape `(B,)`, for `loss` and the margin.
            interpolate_pos_encoding (`bool`, *optional*):
                As for `ViTModel`, for images of other sizes.
            num_items_in_batch (`int`, *optional*):
                Divisor of the sum of losses, for a batch that is accumulated over several calls. By default the number
                of images.
            kwargs (*optional*):
                As for `ViTModel`, e.g. `output_hidden_states`.

        Returns:
            [`FaceRecognitionOutput`]
        """
        outputs = self.vit(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            logits = self.margin_logits(logits, labels)
            losses = self.classifier.losses(logits, labels)
            loss = losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch
        return FaceRecognitionOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            embeddings=outputs.pooler_output,
        )

    def margin_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Applies the margin in training, and with `config.margin_at_eval` in evaluation.

        Args:
            logits (`torch.Tensor`):
                Logits that the model returned without labels, shape `(B, C)`.
            labels (`torch.Tensor`):
                Ids of people, int64, shape `(B,)`.

        Returns:
            `torch.Tensor`: The logits, shape `(B, C)`. The margin lowers the logit of each sample's own class.
        """
        if self.training:
            return self.classifier.margin_logits(logits, labels)
        if self.config.margin_at_eval:
            return self.classifier.margin_logits(logits, labels, self.config.evaluation_margin)
        return logits
