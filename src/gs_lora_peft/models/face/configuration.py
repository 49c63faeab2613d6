"""The configuration of the Face Transformer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from transformers import ViTConfig

from ...checking import BelowOne, Count, Flag, NotNegative, NotNegativeWhole, Number, checked
from ...errors import InvalidInputError

HEAD_TYPES = ("cosface", "arcface", "sface", "softmax")
_DERIVED_SIZES = ("patch_stride", "head_dim")

_SIZES = (
    "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    *_DERIVED_SIZES,
)  # fmt: skip

_DEFAULT_MARGINS = {"cosface": 0.35, "arcface": 0.5}
_Scale = Annotated[Number, Field(gt=0, description="a positive number")]
_MarginAtEval = Annotated[Flag | NotNegative, Field(description="True, False or a number of at least 0")]


class FaceTransformerConfig(ViTConfig):
    """Configuration of a [`FaceTransformerForRecognition`].

    The defaults are the model of the GS-LoRA papers: a ViT of depth 6 for aligned faces of 112×112 pixels in patches
    of 8×8, with a CosFace head.

    Args:
        image_size (`int`, *optional*, defaults to 112):
            Height and width of the input, in pixels.
        patch_size (`int`, *optional*, defaults to 8):
            Height and width of a patch, in pixels.
        patch_stride (`int`, *optional*, defaults to `patch_size`):
            Pixels from one patch to the next. Patches overlap if it is smaller than `patch_size`. The papers' P12S8 is
            `patch_size=12, patch_stride=8`.
        patch_padding (`int`, *optional*, defaults to `patch_size - patch_stride`):
            Pixels of zeros around the image. The number of patches a side must be `image_size // patch_stride`.
        hidden_size (`int`, *optional*, defaults to 512):
            Width of the Transformer and of the embedding.
        num_hidden_layers (`int`, *optional*, defaults to 6):
            Number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of attention heads.
        head_dim (`int`, *optional*, defaults to `hidden_size // num_attention_heads`):
            Width of an attention head.
        intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the feed-forward.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout after the embeddings, after attention and after the feed-forward. Attention itself has none.
        intermediate_dropout_prob (`float`, *optional*, defaults to `hidden_dropout_prob`):
            Dropout between the two layers of the feed-forward. The papers' code has it, `ViTModel` has not.
        head_type (`str`, *optional*, defaults to `"cosface"`):
            `"cosface"` (https://arxiv.org/abs/1801.09414), `"arcface"` (https://arxiv.org/abs/1801.07698), `"sface"`
            (https://arxiv.org/abs/2205.12010) or `"softmax"`, a linear layer with bias.
        scale (`float`, *optional*, defaults to 64.0):
            Factor s of the cosines. Not used by `"softmax"`.
        margin (`float`, *optional*, defaults to 0.35 for `"cosface"`, 0.5 for `"arcface"`, else 0.0):
            Margin m, in training only. CosFace subtracts it from the cosine of a sample's own class. ArcFace adds it
            to the angle, in radians. The other heads have no margin.
        margin_at_eval (`bool` or `float`, *optional*, defaults to `False`):
            Whether the margin applies in evaluation too. A number is another margin for evaluation. The papers measure
            accuracies with a margin: a sample counts as right only if its class wins by the margin.
        sface_slope (`float`, *optional*, defaults to 80.0):
            Slope k of SFace, in 1/radian.
        sface_intra_angle (`float`, *optional*, defaults to 0.8):
            Angle a of SFace, in radians. A sample is pulled to its own class beyond it.
        sface_inter_angle (`float`, *optional*, defaults to 1.22):
            Angle b of SFace, in radians. A sample is pushed off other classes below it.
        kwargs:
            As for [`transformers.ViTConfig`], with `qkv_bias=False` and `layer_norm_eps=1e-5` as defaults.

    Raises:
        InvalidInputError: If a value is invalid, or the patches do not fit the image.

    Example:
        ```py
        >>> config = FaceTransformerConfig(patch_size=12, patch_stride=8, num_labels=100)   # P12S8
        >>> model = FaceTransformerForRecognition(config)
        ```
    """

    model_type = "face_transformer"
    # Otherwise the Trainer gathers them in evaluation, beside the logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["embeddings"]

    image_size: int = 112
    patch_size: int = 8
    # None stands for a default that depends on other fields. `__post_init__` sets it.
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
            if value is None and name in _DERIVED_SIZES:
                continue
            setattr(self, name, checked(name, value, Count))
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            expected = f"a multiple of num_attention_heads={self.num_attention_heads}"
            fix = "Change one of them, or give `head_dim`."
            raise InvalidInputError("hidden_size", self.hidden_size, expected, fix)

    def _check_patches(self) -> None:
        size, patch, stride, padding = self.image_size, self.patch_size, self.patch_stride, self.patch_padding
        checked("patch_padding", padding, NotNegativeWhole)
        fitting = size // stride
        patches = (size + 2 * padding - patch) // stride + 1
        if patches != fitting or fitting < 1:
            raise InvalidInputError(
                "patch_padding",
                padding,
                f"a padding that gives {fitting} patches a side instead of {max(patches, 0)} (image_size={size}, "
                f"patch_size={patch}, patch_stride={stride})",
                "Leave it out or change it.",
            )

    def _check_dropout(self) -> None:
        for name in ("hidden_dropout_prob", "intermediate_dropout_prob"):
            checked(name, getattr(self, name), BelowOne)

    def _check_head(self) -> None:
        if self.head_type not in HEAD_TYPES:
            raise InvalidInputError("head_type", self.head_type, f"one of {', '.join(HEAD_TYPES)}")
        checked("scale", self.scale, _Scale)
        checked("margin", self.margin, NotNegative)
        checked("margin_at_eval", self.margin_at_eval, _MarginAtEval)
        for name in ("margin", "margin_at_eval"):
            value = getattr(self, name)
            if self.head_type not in _DEFAULT_MARGINS and not isinstance(value, bool) and value > 0:
                expected = f"0, because a head of type {self.head_type!r} has no margin"
                raise InvalidInputError(name, value, expected, "Leave it out.")

    @property
    def evaluation_margin(self) -> float:
        """Margin of accuracies with a margin: `margin_at_eval` if it is a positive number, else `margin`."""
        has_own = not isinstance(self.margin_at_eval, bool) and self.margin_at_eval > 0
        return self.margin_at_eval if has_own else self.margin
