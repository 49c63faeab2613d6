"""The configuration of a GS-LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from peft import LoraConfig, PeftType
from pydantic import AfterValidator, Field, Strict

from ..checking import BelowOne, Count, Number, Whole, check_fields, checked
from ..errors import InvalidInputError
from .targets import STRUCTURAL_TARGETS, compiled_pattern, keyword_of, resolved

GroupBy = Literal["block", "module", "matrix"]
_Rank = Annotated[Count, Field(description="a whole number from 1 up; the papers use 8")]
_Dropout = Annotated[BelowOne, Field(description="a number in [0, 1); the papers use no dropout, 0")]


def _not_zero(value: float) -> float:
    if value == 0:
        raise ValueError("With a scaling of 0 nothing could be forgotten.")
    return value


_Alpha = Annotated[
    Whole | Number, AfterValidator(_not_zero), Field(description="a finite number other than 0; the papers use 1")
]

_Name = Annotated[str, Strict()]

_Modules = Annotated[
    _Name | list[_Name] | set[_Name] | None,
    Field(description="text (a keyword or a regular expression) or a list of names"),
]

# Options of `LoraConfig` that cannot work with exact group sparsity or with a plain-LoRA export, and why.
_REFUSED = {
    "use_dora": "DoRA's magnitude vector changes the output of a layer even where its LoRA matrices are zero, so no "
    "group could ever be dropped",
    "use_qalora": "QALoRA pools the layer's input: its update is not plain LoRA and cannot be exported",
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
    "corda_config": "CorDA's initialisation changes the base weights",
    "lora_ga_config": "LoRA-GA's initialisation changes the base weights",
    "loftq_config": "LoftQ's initialisation changes the base weights",
    "kasa_config": "KaSA's initialisation truncates the base weights",
    "velora_config": "VeLoRA keeps a buffer in every layer that is part of no group, is saved with the adapter, and "
    "has no place in the plain LoRA form; its forward and its merge are plain LoRA's",
    "monteclora_config": "MonteCLoRA trains a sampler in every layer beside the matrices, which is part of no group, "
    "and wants a term of its own in the loss; merged, its adapter is plain LoRA's",
    "use_bdlora": "block-diagonal LoRA matrices are not part of the plain LoRA form",
}

# These leave the base weights alone. `False` starts B at random (PEFT's own way to test an adapter); "gaussian" and
# "orthogonal" only draw the matrices differently; "mica" keeps B fixed at minor singular vectors and trains A; "eva"
# is the default until the user has PEFT fill A from data (`initialize_lora_eva_weights`).
_HARMLESS_INITS = (True, False, "gaussian", "orthogonal", "mica", "eva")

# From where the class of a base model may be imported that a configuration names.
_KNOWN_LIBRARIES = ("transformers", "peft", "gs_lora_peft")

# The largest |scaling| of an adapter, α / r or α / √r. The papers have 1/8; thousands are a slip or an attack.
MAX_SCALING = 1e4

# Task types whose PeftModel adds the head to `modules_to_save`.
HEAD_TRAINING_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def check_plain_lora(values: Mapping[str, Any], what: str = "GS-LoRA") -> None:
    """Refuse options of `LoraConfig` that go beyond plain LoRA on whole matrices.

    Args:
        values (`Mapping[str, Any]`):
            Fields of a `LoraConfig`; those that are absent are at their defaults.
        what (`str`, *optional*, defaults to `"GS-LoRA"`):
            What they do not work with, for the message.

    Raises:
        InvalidInputError: Naming the first option that cannot work, its value, the reason and the fix.
    """
    for name, reason in _REFUSED.items():
        value = values.get(name)
        if value:
            raise InvalidInputError(name, value, f"its default with {what}: {reason}", "Leave it out.")
    if values.get("bias", "none") != "none":
        expected = (
            f"'none' with {what}: trained biases belong to no group and would change the model even where every group "
            "is zero"
        )
        raise InvalidInputError("bias", values["bias"], expected, "Leave it out.")
    init = values.get("init_lora_weights", True)
    if init not in _HARMLESS_INITS:
        expected = (
            f"one of {list(_HARMLESS_INITS)} with {what}: others change the base weights, or are not known to leave "
            "them alone, so that base + published adapter would not be the model that was trained"
        )
        raise InvalidInputError("init_lora_weights", init, expected)


def mapping_problem(mapping: Any) -> str | None:
    """Says why an `auto_mapping` is not followed, or `None` if it may be: PEFT imports whatever module it names."""
    if mapping is None:
        return None
    values = mapping if isinstance(mapping, dict) else {}
    library, name = values.get("parent_library"), values.get("base_model_class")
    if not isinstance(library, str) or not _is_dotted(library) or not _is_dotted(name):
        return f"`auto_mapping`={mapping!r} names no module and class. Leave it out."
    if library.split(".")[0] not in _KNOWN_LIBRARIES:
        return f"`auto_mapping` leads to {library!r}, outside of {', '.join(_KNOWN_LIBRARIES)}. Leave it out."
    return None


def _is_dotted(name: Any) -> bool:
    return isinstance(name, str) and all(map(str.isidentifier, name.split(".")))


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
        resolved_from (`"ffn"` or `"attention"`, *optional*):
            Written to `adapter_config.json` and read from it: that `target_modules` are the names that the keyword
            stands for in the model of that file. On another model the keyword is answered anew. Leave it out.

    A configuration that has been used for a model holds the full names of the modules in `target_modules`, as all of
    PEFT reads them (`convert_to_lora`, `save_as_lora`, …). It can be used again for another model: `structural_target`
    is still the keyword, and it decides.

    Raises:
        ValueError: If an option of `LoraConfig` is set that cannot work with groups that are exactly zero or with the
            plain LoRA export (DoRA, bias training, `modules_to_save` and the task types that imply it, initialisations
            that change base weights, layer replication, …), if a rank is below 1, if `lora_alpha` is 0 or not finite,
            if `lora_dropout` is outside [0, 1), if a pattern is an invalid regex, or if `layers_to_transform` is
            combined with a keyword (use `block_pattern`). The message names the value, the reason and the fix.

    A pickled configuration, or a pickled model with one, can be read by a process that has not imported this package:
    unpickling imports it. A saved `adapter_config.json` cannot, because PEFT looks the type up by name; give out
    [`export_lora`]'s form, or `import gs_lora_peft` first.

    Example:
        ```py
        >>> from peft import get_peft_model
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from gs_lora_peft import GSLoraConfig

        >>> base = ViTForImageClassification(ViTConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=2))
        >>> model = get_peft_model(base, GSLoraConfig(r=8))
        ```
    """

    r: _Rank = field(default=8, metadata={"help": "Rank of every LoRA pair."})
    lora_alpha: _Alpha = field(  # type: ignore[assignment]
        default=1, metadata={"help": "LoRA scaling is lora_alpha / r; the authors use 1 / 8."}
    )
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
    lora_dropout: _Dropout = field(default=0.0, metadata={"help": "Dropout before LoRA; the papers use none."})
    group_by: GroupBy = field(
        default="block", metadata={"help": "What is kept or dropped together: 'block', 'module' or 'matrix'."}
    )
    resolved_from: Literal["ffn", "attention"] | None = field(
        default=None, metadata={"help": "Set on saving: the keyword that `target_modules` were resolved from."}
    )

    def __post_init__(self):
        if self.target_modules is None:
            self.target_modules = "ffn"
        if self.resolved_from not in (None, *STRUCTURAL_TARGETS):
            raise InvalidInputError(
                "resolved_from", self.resolved_from, f"one of {list(STRUCTURAL_TARGETS)}", "Leave it out."
            )
        if self.resolved_from is not None and keyword_of(self.target_modules) is None:
            self.target_modules = resolved(self.target_modules, self.resolved_from)  # type: ignore[assignment]
        self.resolved_from = None  # from here on the value itself knows; `to_dict` writes it down again
        # Before PEFT's own checks, which only warn about some of these options and drop them.
        check_plain_lora(vars(self))
        if self.task_type in HEAD_TRAINING_TASKS:
            raise InvalidInputError(
                "task_type",
                self.task_type,
                "one for which PEFT does not train and save the model's head too, as if it stood in "
                "`modules_to_save`: a forgetting task trains LoRA matrices only",
                "Leave it out: the model trains, saves and loads without it.",
            )
        self._check_numbers()
        self._check_targets()
        super().__post_init__()
        self.peft_type = PeftType.GS_LORA  # type: ignore[attr-defined]
        # Full module names that a structural target stands for in one particular model. No dataclass field: it is
        # derived anew for every model and must not be written to adapter_config.json.
        self._resolved_targets: frozenset[str] | None = None

    @property
    def structural_target(self) -> str | None:
        """The keyword (`"ffn"`, `"attention"`) that `target_modules` is, or that it answers; `None` where PEFT's own
        list or regular expression was given.
        """
        return keyword_of(self.target_modules)

    @property
    def is_structural(self) -> bool:
        """Whether the structure of the model says where LoRA goes (see `structural_target`)."""
        return self.structural_target is not None

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are written to `adapter_config.json`.

        PEFT keeps lists of module names as sets, whose order changes from process to process; here they are sorted
        lists, so that the same configuration always gives the same file.
        """
        values = {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}
        values["target_modules"] = _plain(values["target_modules"])
        values["resolved_from"] = keyword_of(self.target_modules)
        if (
            values["resolved_from"] is None
        ):  # PEFT has put names in its place (EVA does), and all restrictions into them
            values["block_pattern"] = values["exclude_blocks"] = None
        return values

    def _check_targets(self) -> None:
        for name in ("block_pattern", "exclude_blocks"):
            pattern = getattr(self, name)
            if pattern is None:
                continue
            compiled_pattern(pattern, name)
            if not self.is_structural:
                raise InvalidInputError(
                    name,
                    pattern,
                    f"None with target_modules={self.target_modules!r}, as it works with 'ffn' and 'attention' only",
                    "Put the restriction into `target_modules` itself.",
                )
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str) and value not in STRUCTURAL_TARGETS:
                compiled_pattern(value, name)
        if not self.target_modules:
            fix = "Leave it at 'ffn', or list the modules to adapt."
            raise InvalidInputError("target_modules", self.target_modules, "one module at least", fix)
        for name in ("layers_to_transform", "layers_pattern"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(self.target_modules, str):
                fix = (
                    r"Choose blocks with `block_pattern` instead, e.g. block_pattern=r'layers\.(0|1|2)$'."
                    if self.is_structural
                    else "Put the restriction into the regular expression itself."
                )
                targets = f"target_modules={self.target_modules!r}"
                expected = f"None with {targets}, as it works with a list of module names only"
                raise InvalidInputError(name, value, expected, fix)
            if value == []:
                expected = "layers: PEFT reads an empty list as no restriction, and would adapt every layer"
                raise InvalidInputError(name, value, expected, "Leave it out, or name layers.")

    def _check_numbers(self) -> None:
        check_fields(self)
        for name, pattern, kind in (
            ("rank_pattern", self.rank_pattern, dict[str, _Rank]),
            ("alpha_pattern", self.alpha_pattern, dict[str, _Alpha]),
        ):
            checked(name, {} if pattern is None else pattern, kind)
        ranks = [self.r, *(self.rank_pattern or {}).values()]
        alphas = [self.lora_alpha, *(self.alpha_pattern or {}).values()]
        smallest = math.sqrt(min(ranks)) if self.use_rslora else min(ranks)
        if (largest := max(map(abs, alphas))) / smallest > MAX_SCALING:
            raise InvalidInputError(
                "lora_alpha",
                largest,
                f"one that gives a scaling of {MAX_SCALING:g} at most, which is what readers accept",
                "The papers use lora_alpha=1 and r=8.",
            )
        for name in ("target_modules", "exclude_modules"):
            checked(name, getattr(self, name), _Modules)


def _plain(targets: Any) -> Any:
    """`target_modules` without its memory of a keyword."""
    return str(targets) if isinstance(targets, str) else targets
