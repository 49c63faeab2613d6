"""The configuration of a GS-LoRA adapter."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from peft import LoraConfig, PeftType

GroupBy = Literal["block", "module", "matrix"]

# `target_modules` keywords that are resolved by the structure of the model rather than by module names.
STRUCTURAL_TARGETS = ("ffn", "attention")

# Options of `LoraConfig` that cannot work with exact group sparsity or with a plain-LoRA export, and why.
_REFUSED = {
    "use_dora": "DoRA's magnitude vector changes the output of a layer even where its LoRA matrices are zero, so no "
    "group could ever be dropped",
    "use_qalora": "QALoRA pools the layer's input, so that its update is no plain LoRA and cannot be exported",
    "lora_bias": "a LoRA bias is not part of any group and would stay in a group that is zero",
    "modules_to_save": "a forgetting task trains LoRA matrices only; whole trained modules would keep what was "
    "forgotten in the published file",
    "trainable_token_indices": "a forgetting task trains LoRA matrices only",
    "layer_replication": "replicated layers share one weight, so two blocks would claim the same matrices",
    "target_parameters": "groups are formed over Linear modules; LoRA on bare parameters has no module to belong to",
    "ensure_weight_tying": "tied adapters would belong to two groups at once",
    "megatron_config": "Megatron's parallel layers shard the LoRA matrices, so that a group's norm would be local",
    "alora_invocation_tokens": "an adapter that is active for some tokens only cannot be merged",
    "arrow_config": "routing between adapters cannot be merged into one model that has forgotten",
    "eva_config": "EVA redistributes ranks by data of the base task",
    "corda_config": "CorDA's initialisation changes the base weights",
    "lora_ga_config": "LoRA-GA's initialisation changes the base weights",
    "loftq_config": "LoftQ's initialisation changes the base weights",
    "kasa_config": "KaSA's initialisation truncates the base weights",
    "velora_config": "VeLoRA compresses activations in a way that is not part of the plain LoRA form",
    "monteclora_config": "MonteCLoRA samples its weights, so that no group is exactly zero",
    "use_bdlora": "block-diagonal LoRA matrices are not part of the plain LoRA form",
}


def _compiled(pattern: str, field_name: str) -> None:
    """Fail early on a pattern that is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{field_name}` must be a regular expression, got {pattern!r}: {error}. Escape special characters, e.g. "
            rf"r'encoder\.layers\.[0-5]$'."
        ) from error


@dataclass
class GSLoraConfig(LoraConfig):
    r"""
    Configuration of a [`GSLoraModel`]: LoRA on the feed-forward Linears of every Transformer block, in groups that are
    kept or dropped together (GS-LoRA, CVPR 2024, https://arxiv.org/abs/2403.11530).

    Everything that [`peft.LoraConfig`] offers and that is not named under *Raises* stays available. Defaults that
    differ from `LoraConfig`: `target_modules="ffn"`, `lora_alpha=1`.

    Args:
        r (`int`, *optional*, defaults to 8):
            Rank of every LoRA pair.
        lora_alpha (`int`, *optional*, defaults to 1):
            LoRA scaling is `lora_alpha / r`. The authors use 1/8; published learning rates and weights carry over only
            with this scaling.
        target_modules (`str` or `list[str]`, *optional*, defaults to `"ffn"`):
            `"ffn"`: the feed-forward Linears of every Transformer block, found by structure (the paper's choice).
            `"attention"`: the attention projections of the same blocks (the paper's ablation). Anything else is read
            as PEFT does: a regular expression over full module names, or a list of name suffixes.
        block_pattern (`str`, *optional*):
            Regular expression searched in block paths; only blocks that match are adapted. For models with several
            stacks, e.g. `"vision_model"` for CLIP. Only with `"ffn"` and `"attention"`.
        exclude_blocks (`str`, *optional*):
            Regular expression searched in block paths; blocks that match are left alone. Only with `"ffn"` and
            `"attention"`.
        group_by (`"block"`, `"module"` or `"matrix"`, *optional*, defaults to `"block"`):
            What is kept or dropped together: all LoRA matrices of a Transformer block (the paper's choice), one LoRA
            pair, or one matrix.

    Raises:
        ValueError: if an option of `LoraConfig` is set that cannot work with groups that are exactly zero or with the
            plain LoRA export (DoRA, bias training, `modules_to_save`, initialisations that change base weights, layer
            replication, …), if `r` < 1, if `lora_alpha` is 0 or not finite, if `lora_dropout` is outside [0, 1), or if
            a pattern is no regular expression. The message names the value, the reason and the mend.

    Example:

        ```py
        >>> from peft import get_peft_model
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from gs_lora_peft import GSLoraConfig

        >>> base = ViTForImageClassification(ViTConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=2))
        >>> model = get_peft_model(base, GSLoraConfig(r=8))
        ```
    """

    lora_alpha: int = field(default=1, metadata={"help": "LoRA scaling is lora_alpha / r; the authors use 1 / 8."})
    target_modules: list[str] | str | None = field(
        default="ffn",
        metadata={"help": "'ffn', 'attention', or PEFT's own list of name suffixes or regular expression."},
    )
    block_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression on block paths: only these blocks are adapted."}
    )
    exclude_blocks: str | None = field(
        default=None, metadata={"help": "Regular expression on block paths: these blocks are left alone."}
    )
    group_by: GroupBy = field(
        default="block", metadata={"help": "What is kept or dropped together: 'block', 'module' or 'matrix'."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.GS_LORA  # type: ignore[attr-defined]
        if self.target_modules is None:
            self.target_modules = "ffn"
        self._check_values()
        self._check_refused_options()
        # Full module names that a structural target stands for in one particular model. No dataclass field: it is
        # derived anew for every model and must not be written to adapter_config.json.
        self._resolved_targets: frozenset[str] | None = None

    @property
    def is_structural(self) -> bool:
        """Whether `target_modules` is a keyword (`"ffn"`, `"attention"`) that the model's structure answers."""
        return isinstance(self.target_modules, str) and self.target_modules in STRUCTURAL_TARGETS

    def _check_values(self) -> None:
        if not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1:
            raise ValueError(f"`r` must be an integer of at least 1, got {self.r!r}. The papers use r=8.")
        if not math.isfinite(self.lora_alpha) or self.lora_alpha == 0:
            raise ValueError(
                f"`lora_alpha` must be a finite number other than 0, got {self.lora_alpha!r}: with a scaling of 0 "
                "nothing could be forgotten. The papers use lora_alpha=1."
            )
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"`lora_dropout` must be in [0, 1), got {self.lora_dropout!r}.")
        if self.group_by not in get_args(GroupBy):
            raise ValueError(f"`group_by` must be one of {list(get_args(GroupBy))}, got {self.group_by!r}.")
        for name in ("block_pattern", "exclude_blocks"):
            pattern = getattr(self, name)
            if pattern is None:
                continue
            _compiled(pattern, name)
            if not self.is_structural:
                raise ValueError(
                    f"`{name}`={pattern!r} works with target_modules='ffn' or 'attention' only, got "
                    f"target_modules={self.target_modules!r}. Put the restriction into `target_modules` itself."
                )
        if isinstance(self.target_modules, str) and not self.is_structural:
            _compiled(self.target_modules, "target_modules")

    def _check_refused_options(self) -> None:
        for name, reason in _REFUSED.items():
            value = getattr(self, name, None)
            if value:
                raise ValueError(
                    f"`{name}`={value!r} does not work with GS-LoRA: {reason}. Leave `{name}` at its default."
                )
        if self.bias != "none":
            raise ValueError(
                f"`bias`={self.bias!r} does not work with GS-LoRA: trained biases belong to no group and would change "
                "the model even where every group is zero. Leave `bias` at 'none'."
            )
        # `False` starts B at random (PEFT's own way to test an adapter); "gaussian" and "orthogonal" only draw A
        # differently. All other initialisations rewrite the base weights or need data of the base task.
        if self.init_lora_weights not in (True, False, "gaussian", "orthogonal"):
            raise ValueError(
                f"`init_lora_weights`={self.init_lora_weights!r} does not work with GS-LoRA: it changes the base weights "
                "or needs data of the base task, so that base + published adapter would not be the model that was "
                "trained. Use True (default), False, 'gaussian' or 'orthogonal'."
            )
