"""Configuration of the Face Transformer."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from transformers import ViTConfig

HEAD_TYPES = ("cosface", "arcface", "sface", "softmax")
_DERIVED_SIZES = ("patch_stride", "head_dim")
_SIZES = (
    "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    *_DERIVED_SIZES,
)  # fmt: skip
_DEFAULT_MARGINS = {"cosface": 0.35, "arcface": 0.5}


class FaceTransformerConfig(ViTConfig):
    """
    Configuration of a [`FaceTransformerForRecognition`]. The defaults are the model of the GS-LoRA papers: a ViT of
    depth 6 on aligned faces of 112×112 pixels in patches of 8×8, with a CosFace head.

    Args:
        image_size (`int`, *optional*, defaults to 112): height and width of the input, in pixels.
        patch_size (`int`, *optional*, defaults to 8): height and width of a patch, in pixels.
        patch_stride (`int`, *optional*, defaults to `patch_size`):
            Pixels from one patch to the next. Patches overlap where it is smaller than `patch_size`; the papers' P12S8
            is `patch_size=12, patch_stride=8`.
        patch_padding (`int`, *optional*, defaults to `patch_size - patch_stride`):
            Pixels of zeros around the image. There must be as many patches a side as strides fit into the image.
        hidden_size (`int`, *optional*, defaults to 512): width of the Transformer and of the embedding.
        num_hidden_layers (`int`, *optional*, defaults to 6): number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 8): number of attention heads.
        head_dim (`int`, *optional*, defaults to `hidden_size // num_attention_heads`): width of an attention head.
        intermediate_size (`int`, *optional*, defaults to 2048): width of the feed-forward.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout after the embeddings, after attention and after the feed-forward. Attention itself has none.
        intermediate_dropout_prob (`float`, *optional*, defaults to `hidden_dropout_prob`):
            Dropout between the two layers of the feed-forward, which `ViTModel` does not have and the papers' code
            does.
        head_type (`str`, *optional*, defaults to `"cosface"`):
            `"cosface"` (https://arxiv.org/abs/1801.09414), `"arcface"` (https://arxiv.org/abs/1801.07698), `"sface"`
            (https://arxiv.org/abs/2205.12010) or `"softmax"`, a linear layer with bias.
        scale (`float`, *optional*, defaults to 64.0): s, by which cosines are multiplied; `"softmax"` has none.
        margin (`float`, *optional*, defaults to 0.35 for `"cosface"`, 0.5 for `"arcface"`, else 0.0):
            m, which CosFace takes from the cosine of a sample's own class and ArcFace adds to its angle, in radians.
            Applies in training only. The other heads have none.
        margin_at_eval (`bool` or `float`, *optional*, defaults to `False`):
            Whether the margin applies in evaluation too; a number is a margin of evaluation's own. The papers'
            accuracies are measured with a margin, which counts a sample as right only if its class wins by it.
        sface_slope (`float`, *optional*, defaults to 80.0): k of SFace, in 1/radian.
        sface_intra_angle (`float`, *optional*, defaults to 0.8): a of SFace, in radians: own classes farther off pull.
        sface_inter_angle (`float`, *optional*, defaults to 1.22): b of SFace, in radians: other classes nearer push.
        kwargs: as for [`transformers.ViTConfig`], with `qkv_bias=False` and `layer_norm_eps=1e-5` as defaults.

    Raises:
        ValueError: if a value is not one of those expected, or patches do not fit the image.

    Example:

        ```py
        >>> config = FaceTransformerConfig(patch_size=12, patch_stride=8, num_labels=100)   # P12S8
        >>> model = FaceTransformerForRecognition(config)
        ```
    """

    model_type = "face_transformer"
    # The Trainer would gather them in evaluation, for metrics that ask for logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["embeddings"]

    image_size: int = 112
    patch_size: int = 8
    # None stands for a default that follows from other fields; `__post_init__` fills it in.
    patch_stride: int = None  # type: ignore[assignment]
    patch_padding: int = None  # type: ignore[assignment]
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    head_dim: int = None  # type: ignore[assignment]
    intermediate_size: int = 2048
    hidden_dropout_prob: float | int = 0.1
    intermediate_dropout_prob: float | int = None  # type: ignore[assignment]
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = False
    head_type: str = "cosface"
    scale: float = 64.0
    margin: float = None  # type: ignore[assignment]
    margin_at_eval: bool | float = False
    sface_slope: float = 80.0
    sface_intra_angle: float = 0.8
    sface_inter_angle: float = 1.22

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_numbers()
        if self.patch_stride is None:
            self.patch_stride = self.patch_size
        if self.patch_padding is None:
            self.patch_padding = self.patch_size - self.patch_stride
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.margin is None:
            self.margin = _DEFAULT_MARGINS.get(self.head_type, 0.0)
        if self.intermediate_dropout_prob is None:
            self.intermediate_dropout_prob = self.hidden_dropout_prob
        self._check_patches()
        self._check_dropout()
        self._check_head()
        super().__post_init__(**kwargs)

    def _check_numbers(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            # Sizes that follow from others may be None still.
            if value is None and name in _DERIVED_SIZES:
                continue
            if type(value) is not int or value < 1:
                unit = " of pixels" if name.startswith(("image", "patch")) else ""
                raise ValueError(f"`{name}` must be a whole number{unit}, 1 or more, got {value!r}.")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size`={self.hidden_size} is not a multiple of `num_attention_heads`="
                f"{self.num_attention_heads}. Change one of them, or give `head_dim`."
            )
        for name in ("scale", "margin"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise ValueError(f"`{name}` must be a number, got {value!r}.")
        if not isinstance(self.margin_at_eval, bool | int | float):
            raise ValueError(f"`margin_at_eval` must be True, False or a number, got {self.margin_at_eval!r}.")

    def _check_patches(self) -> None:
        size, patch, stride, padding = self.image_size, self.patch_size, self.patch_stride, self.patch_padding
        if type(padding) is not int or padding < 0:
            raise ValueError(f"`patch_padding` must be a whole number of pixels, got {padding!r}.")
        fitting = size // stride
        patches = (size + 2 * padding - patch) // stride + 1
        if patches != fitting or fitting < 1:
            raise ValueError(
                f"`patch_size`={patch}, `patch_stride`={stride} and `patch_padding`={padding} give {max(patches, 0)} "
                f"patches a side on images of {size} pixels; expected {fitting}, as many as strides fit. Leave "
                "`patch_padding` out or change it."
            )

    def _check_dropout(self) -> None:
        for name in ("hidden_dropout_prob", "intermediate_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a probability from 0 to below 1, got {getattr(self, name)!r}.")

    def _check_head(self) -> None:
        if self.head_type not in HEAD_TYPES:
            raise ValueError(f"`head_type` must be one of {', '.join(HEAD_TYPES)}, got {self.head_type!r}.")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"`scale` must be a positive number, got {self.scale!r}.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"`margin` must be 0 or a positive number, got {self.margin!r}.")
        if not (math.isfinite(self.margin_at_eval) and self.margin_at_eval >= 0):
            raise ValueError(f"`margin_at_eval` must be 0 or a positive number, got {self.margin_at_eval!r}.")
        for name in ("margin", "margin_at_eval"):
            value = getattr(self, name)
            if self.head_type not in _DEFAULT_MARGINS and not isinstance(value, bool) and value > 0:
                raise ValueError(
                    f"a head of type {self.head_type!r} has no margin, got `{name}`={value}. Leave it out."
                )

    @property
    def evaluation_margin(self) -> float:
        """The margin by which accuracy "with the margin" is measured: `margin_at_eval` where that is one."""
        has_own = not isinstance(self.margin_at_eval, bool) and self.margin_at_eval > 0
        return self.margin_at_eval if has_own else self.margin
