"""The Face Transformer on top of the ViT of transformers, with its heads."""

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
    """What every head has: logits, logits with the margin, and a loss for each sample."""

    def margin_logits(self, logits: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
        """Logits of which that of each sample's own class is made harder by the margin; here there is none.

        Args:
            logits (`torch.Tensor`):
                Shape `(B, C)`, from `forward`.
            labels (`torch.Tensor`):
                int64, shape `(B,)`.
            margin (`float`, *optional*, defaults to the head's own):
                M.

        Returns:
            `torch.Tensor`: Shape `(B, C)`.
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
        width (`int`):
            Width of the embedding.
        num_classes (`int`):
            C.
        scale (`float`):
            S.
        margin (`float`, *optional*, defaults to 0.0):
            M.
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
        slope (`float`):
            K, in 1/radian.
        intra_angle (`float`):
            A, in radians.
        inter_angle (`float`):
            B, in radians.
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


# Modules that are not spread over several devices.
_WHOLE = ["OverlappingEmbeddings", "ViTEmbeddings", "ViTLayer"]


@dataclass
class FaceRecognitionOutput(ImageClassifierOutput):
    """
    What [`FaceTransformerForRecognition`] returns: an `ImageClassifierOutput` and the embeddings.

    Args:
        embeddings (`torch.Tensor`):
            Shape `(B, hidden_size)`: what two images are compared by, not normalised.
    """

    embeddings: torch.FloatTensor | None = None


class OverlappingPatchEmbeddings(ViTPatchEmbeddings):
    """Patches that may overlap, and may reach over the edge of the image."""

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
        # What ViT divides height and width by, to know how many patches a larger image has.
        self.patch_size = config.patch_stride


class ClassToken(nn.Module):
    """Pools a sequence into its first token."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[:, 0]


class FaceTransformerModel(ViTModel):
    """
    The backbone: a `ViTModel` as the Face Transformer has it (https://arxiv.org/abs/2103.14803). Attention is scaled
    by 1/√width instead of 1/√(width of a head), there is dropout within the feed-forward, and `pooler_output` is the
    class token behind the final LayerNorm: the embedding.

    Args:
        config ([`FaceTransformerConfig`]):
            The configuration.
    """

    config: FaceTransformerConfig
    config_class = FaceTransformerConfig
    _no_split_modules = _WHOLE

    def __init__(self, config: FaceTransformerConfig):
        super().__init__(config, add_pooling_layer=False)
        self.pooler = ClassToken()  # type: ignore[assignment]
        for layer in cast(Any, self.layers):
            if not (hasattr(layer.attention, "scaling") and hasattr(layer.mlp, "activation_fn")):
                raise RuntimeError("transformers' ViT layers are built differently; use an earlier transformers.")
            # Every attention kernel takes it from here. Folded into the query weights instead, it would change what
            # the weights of a converted checkpoint, and LoRA factors beside them, are worth.
            layer.attention.scaling = config.hidden_size**-0.5
            # Dropout has no weights, so that their names stay those of ViT.
            dropout = nn.Dropout(config.intermediate_dropout_prob)
            layer.mlp.activation_fn = nn.Sequential(layer.mlp.activation_fn, dropout)
        if config.patch_stride != config.patch_size:
            self.embeddings = OverlappingEmbeddings(config)
            self.post_init()


class FaceTransformerForRecognition(ViTPreTrainedModel):
    """
    Recognises people: a [`FaceTransformerModel`] and a head that compares embeddings with one direction per person.

    Without labels, `logits` are the scaled cosines (the plain logits with a softmax head). With labels, the margin
    applies in training, and in evaluation with `config.margin_at_eval`; then `logits` have it too, so that loss and
    accuracy are measured on the same. A training loop that computes the loss itself, from logits, calls
    [`~FaceTransformerForRecognition.margin_logits`].

    Args:
        config ([`FaceTransformerConfig`]):
            The configuration; `num_labels` or `id2label` say who is known.

    Example:
        ```py
        >>> model = AutoModelForImageClassification.from_pretrained(convert_face_checkpoint("face.pth", "face"))
        >>> outputs = model(pixel_values=pixels)   # (B, 3, 112, 112)
        >>> outputs.logits.argmax(-1), outputs.embeddings   # who it is; what to compare two images by
        ```
    """

    config: FaceTransformerConfig
    config_class = FaceTransformerConfig
    base_model_prefix = "vit"
    _no_split_modules = _WHOLE

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
        """
        Args:
            pixel_values (`torch.Tensor`):
                Shape `(B, 3, image_size, image_size)`.
            labels (`torch.Tensor`, *optional*):
                Ids of people, int64, shape `(B,)`, for `loss` and the margin.
            interpolate_pos_encoding (`bool`, *optional*):
                As for `ViTModel`, for images of other sizes.
            num_items_in_batch (`int`, *optional*):
                What the sum of the losses is divided by, where a batch is accumulated over several calls; by default
                the number of images.
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
        """
        Applies the margin where it belongs: in training, and with `config.margin_at_eval` in evaluation.

        Args:
            logits (`torch.Tensor`):
                Shape `(B, C)`, what the model returned without labels.
            labels (`torch.Tensor`):
                Ids of people, int64, shape `(B,)`.

        Returns:
            `torch.Tensor`: Shape `(B, C)`: the logits, that of each sample's own class made harder by the margin.
        """
        if self.training:
            return self.classifier.margin_logits(logits, labels)
        if self.config.margin_at_eval:
            return self.classifier.margin_logits(logits, labels, self.config.evaluation_margin)
        return logits
