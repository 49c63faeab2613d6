"""The Face Transformer on top of transformers' ViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTModel, ViTPatchEmbeddings, ViTPreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration import FaceTransformerConfig
from .heads import CosineHead, build_head

# Modules that are not spread over several devices.
_WHOLE = ["OverlappingEmbeddings", "ViTEmbeddings", "ViTLayer"]


@dataclass
class FaceRecognitionOutput(ImageClassifierOutput):
    """
    What [`FaceTransformerForRecognition`] returns: an `ImageClassifierOutput` and the embeddings.

    Args:
        embeddings (`torch.Tensor`): shape `(B, hidden_size)`: what two images are compared by, not normalised.
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
        config ([`FaceTransformerConfig`]): the configuration.
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
        config ([`FaceTransformerConfig`]): the configuration; `num_labels` or `id2label` say who is known.

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
            pixel_values (`torch.Tensor`): shape `(B, 3, image_size, image_size)`.
            labels (`torch.Tensor`, *optional*): ids of people, int64, shape `(B,)`, for `loss` and the margin.
            interpolate_pos_encoding (`bool`, *optional*): as for `ViTModel`, for images of other sizes.
            num_items_in_batch (`int`, *optional*):
                what the sum of the losses is divided by, where a batch is accumulated over several calls; by default
                the number of images.
            kwargs (*optional*): as for `ViTModel`, e.g. `output_hidden_states`.

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
            logits (`torch.Tensor`): shape `(B, C)`, what the model returned without labels.
            labels (`torch.Tensor`): ids of people, int64, shape `(B,)`.

        Returns:
            `torch.Tensor`: shape `(B, C)`: the logits, that of each sample's own class made harder by the margin.
        """
        if self.training:
            return self.classifier.margin_logits(logits, labels)
        if self.config.margin_at_eval:
            return self.classifier.margin_logits(logits, labels, self.config.evaluation_margin)
        return logits
