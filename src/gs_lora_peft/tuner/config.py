"""The configuration of a GS-LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from peft import LoraConfig, PeftType
from peft.tuners.lora import LoraRuntimeConfig
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

# Options of `LoraConfig` that do not work with exact group sparsity or with the export as plain LoRA, and why.
_REFUSED = {
    "use_dora": "DoRA's magnitude vector changes the output of a layer even if its LoRA matrices are zero, so that no "
    "group could be dropped",
    "use_qalora": "QALoRA pools the layer's input: its update is not plain LoRA and cannot be exported",
    "lora_bias": "a LoRA bias is not part of any group and would stay in a group that is zero",
    "modules_to_save": "a forgetting task trains LoRA matrices only; whole trained modules would keep what was "
    "forgotten in the published file",
    "trainable_token_indices": "a forgetting task trains LoRA matrices only",
    "layer_replication": "replicated layers share one weight, so two blocks would claim the same matrices",
    "target_parameters": "groups consist of Linear modules, and LoRA on a parameter belongs to no module",
    "ensure_weight_tying": "tied adapters would belong to two groups at once",
    "megatron_config": "Megatron's parallel layers shard the LoRA matrices, and no process sees a group's whole norm",
    "alora_invocation_tokens": "an adapter that is active only for some tokens cannot be merged",
    "arrow_config": "routing between adapters cannot be merged into one model",
    "corda_config": "CorDA's initialisation changes the base weights",
    "lora_ga_config": "LoRA-GA's initialisation changes the base weights",
    "loftq_config": "LoftQ's initialisation changes the base weights",
    "kasa_config": "KaSA's initialisation truncates the base weights",
    "velora_config": "VeLoRA saves a buffer of every layer with the adapter, which is part of no group and has no "
    "place in plain LoRA",
    "monteclora_config": "MonteCLoRA trains a sampler in every layer, which is part of no group, and needs a term of "
    "its own in the loss",
    "use_bdlora": "block-diagonal LoRA matrices are not part of the plain LoRA form",
}

# Options of `LoraConfig` that act only beside another one: their default there, and what they need.
_INEFFECTIVE: dict[str, tuple[Any, str]] = {
    "qalora_group_size": (LoraConfig.qalora_group_size, "`use_qalora`, which GS-LoRA does not have"),
    "runtime_config": (LoraRuntimeConfig(), "`use_dora`, which GS-LoRA does not have"),
}

# These leave the base weights alone. `False` starts B at random, as PEFT does to test an adapter. "gaussian" and
# "orthogonal" draw the matrices from other distributions. "mica" fixes B at minor singular vectors and trains A. "eva"
# is the default until `initialize_lora_eva_weights` fills A from data.
_HARMLESS_INITS = (True, False, "gaussian", "orthogonal", "mica", "eva")

# Libraries that a configuration may name as the one with the base model's class.
_KNOWN_LIBRARIES = ("transformers", "peft", "gs_lora_peft")

# The largest |scaling| of an adapter, α / r or α / √r. The papers use 1/8; thousands are a mistake or an attack.
MAX_SCALING = 1e4

# Task types whose PeftModel adds the head to `modules_to_save`.
HEAD_TRAINING_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def check_plain_lora(values: Mapping[str, Any], what: str = "GS-LoRA") -> None:
    """Refuses options of `LoraConfig` that go beyond plain LoRA on whole matrices.

    Args:
        values (`Mapping[str, Any]`):
            Fields of a `LoraConfig`. Missing ones are at their defaults.
        what (`str`, *optional*, defaults to `"GS-LoRA"`):
            Name of what needs plain LoRA, for the error.

    Raises:
        InvalidInputError: If an option does not work. The error names the first one, the reason and the fix.
    """
    for name, reason in _REFUSED.items():
        value = values.get(name)
        if value:
            raise InvalidInputError(name, value, f"its default with {what}: {reason}", "Leave it out.")
    if values.get("bias", "none") != "none":
        expected = (
            f"'none' with {what}: trained biases belong to no group and would change the model even if every group is "
            "zero"
        )
        raise InvalidInputError("bias", values["bias"], expected, "Leave it out.")
    init = values.get("init_lora_weights", True)
    if init not in _HARMLESS_INITS:
        expected = (
            f"one of {list(_HARMLESS_INITS)} with {what}: others change the base weights, or may do so, and the base "
            "with the published adapter would not be the trained model"
        )
        raise InvalidInputError("init_lora_weights", init, expected)


def mapping_problem(mapping: Any) -> str | None:
    """Says why an `auto_mapping` is refused, or returns `None` if it is safe. PEFT imports the module in it."""
    if mapping is None:
        return None
    values = mapping if isinstance(mapping, dict) else {}
    library, name = values.get("parent_library"), values.get("base_model_class")
    if not isinstance(library, str) or not _is_dotted(library) or not _is_dotted(name):
        return f"`auto_mapping`={mapping!r} does not name a module and a class. Leave it out."
    if library.split(".")[0] not in _KNOWN_LIBRARIES:
        return f"`auto_mapping` names {library!r}, which is not part of {', '.join(_KNOWN_LIBRARIES)}. Leave it out."
    return None


def _is_dotted(name: Any) -> bool:
    return isinstance(name, str) and all(map(str.isidentifier, name.split(".")))


@dataclass
class GSLoraConfig(LoraConfig):
    r"""Configuration of a [`GSLoraModel`].

    It puts LoRA on the feed-forward Linears of every Transformer block, in groups that are kept or dropped together
    (GS-LoRA, CVPR 2024, https://arxiv.org/abs/2403.11530). All options of [`peft.LoraConfig`] are available, except
    those under *Raises*. Defaults that differ from `LoraConfig`: `target_modules="ffn"`, `lora_alpha=1`.

    Args:
        r (`int`, *optional*, defaults to 8):
            Rank of every LoRA pair.
        lora_alpha (`int`, *optional*, defaults to 1):
            The scaling of LoRA is `lora_alpha / r`. The authors use 1/8. Published learning rates and weights carry
            over only with this scaling.
        target_modules (`str` or `list[str]`, *optional*, defaults to `"ffn"`):
            `"ffn"`: the feed-forward Linears of every Transformer block, found by structure (the paper's choice).
            `"attention"`: the attention projections of the same blocks (the paper's ablation). PEFT reads anything
            else: a regular expression on full module names, or a list of name suffixes.
        block_pattern (`str`, *optional*):
            Regular expression, searched in block paths. Only blocks that match are adapted, e.g. `"vision_model"` for
            CLIP. Only with `"ffn"` and `"attention"`.
        exclude_blocks (`str`, *optional*):
            Regular expression, searched in block paths. Blocks that match are left alone. Only with `"ffn"` and
            `"attention"`.
        group_by (`"block"`, `"module"` or `"matrix"`, *optional*, defaults to `"block"`):
            The unit that is kept or dropped: all LoRA matrices of a Transformer block (the paper's choice), one LoRA
            pair, or one matrix.
        resolved_from (`"ffn"` or `"attention"`, *optional*):
            For `adapter_config.json`: the keyword that stands for the names in `target_modules` in the model of that
            file. On another model the keyword is resolved again. Leave it out.

    After a configuration has been used for a model, `target_modules` holds the full names of the modules, as all of
    PEFT reads them (`convert_to_lora`, `save_as_lora`, …). It can be used for another model, on which
    `structural_target`, still the keyword, is resolved again.

    Raises:
        InvalidInputError: If an option of `LoraConfig` is set that does not work with groups that are exactly zero or
            with the export as plain LoRA (DoRA, bias training, `modules_to_save` and the task types that imply it,
            initialisations that change base weights, layer replication, …), if a rank is below 1, if `lora_alpha` is 0
            or not finite, if `lora_dropout` is outside [0, 1), if a pattern is not a regular expression, or if
            `layers_to_transform` is combined with a keyword (use `block_pattern`), or if an option acts only beside
            another one that is not set. When a model is adapted: if `exclude_blocks` leaves nothing out.

    A process that has not imported this package can unpickle a configuration, or a model with one: unpickling imports
    the package. It cannot read a saved `adapter_config.json`, because PEFT looks up the type by name. Share the form
    that [`export_lora`] writes, or `import gs_lora_peft` first.

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
        default="block", metadata={"help": "Unit that is kept or dropped: 'block', 'module' or 'matrix'."}
    )
    resolved_from: Literal["ffn", "attention"] | None = field(
        default=None, metadata={"help": "Set on saving: the keyword that `target_modules` come from."}
    )

    def __post_init__(self) -> None:
        if self.target_modules is None:
            self.target_modules = "ffn"
        if self.resolved_from not in (None, *STRUCTURAL_TARGETS):
            raise InvalidInputError(
                "resolved_from", self.resolved_from, f"one of {list(STRUCTURAL_TARGETS)}", "Leave it out."
            )
        if self.resolved_from is not None and keyword_of(self.target_modules) is None:
            self.target_modules = resolved(self.target_modules, self.resolved_from)  # type: ignore[assignment]
        self.resolved_from = None  # the value of `target_modules` knows it; `to_dict` writes it
        # Before PEFT's own checks, which drop some of these options with a warning.
        check_plain_lora(vars(self))
        self._check_effects()
        if self.task_type in HEAD_TRAINING_TASKS:
            raise InvalidInputError(
                "task_type",
                self.task_type,
                "a task type for which PEFT does not add the model's head to `modules_to_save`: a forgetting task "
                "trains LoRA matrices only",
                "Leave it out: the model trains, saves and loads without it.",
            )
        self._check_numbers()
        self._check_targets()
        super().__post_init__()
        self.peft_type = PeftType.GS_LORA  # type: ignore[attr-defined]
        # Full names of the modules that a structural target stands for in one model. It is not a dataclass field,
        # because it differs between models and must not be written to adapter_config.json.
        self._resolved_targets: frozenset[str] | None = None

    @property
    def structural_target(self) -> str | None:
        """The keyword, `"ffn"` or `"attention"`, that `target_modules` is or comes from.

        `None` if `target_modules` is a list or a regular expression of the user's.
        """
        return keyword_of(self.target_modules)

    @property
    def is_structural(self) -> bool:
        """Whether the structure of the model decides where LoRA goes, see `structural_target`."""
        return self.structural_target is not None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as they are written to `adapter_config.json`.

        PEFT keeps lists of module names as sets, whose order differs between processes. Here they are sorted lists, so
        that the same configuration always gives the same file.
        """
        values = {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}
        values["target_modules"] = _plain(values["target_modules"])
        values["resolved_from"] = keyword_of(self.target_modules)
        if values["resolved_from"] is None:
            # PEFT has replaced the keyword by names (EVA does), to which all restrictions have been applied.
            values["block_pattern"] = values["exclude_blocks"] = None
        return values

    def _check_effects(self) -> None:
        """Refuses options that would do nothing."""
        needs = dict(_INEFFECTIVE)
        if self.init_lora_weights != "eva":
            needs["eva_config"] = (None, "`init_lora_weights='eva'`")
        for name, (default, needed) in needs.items():
            if (value := getattr(self, name)) not in (None, default):
                expected = f"{default!r}, its default: it acts only with {needed}"
                raise InvalidInputError(name, value, expected, "Leave it out.")

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
                    f"None with target_modules={self.target_modules!r}, as it works only with 'ffn' and 'attention'",
                    "Put the restriction into `target_modules` itself.",
                )
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str) and value not in STRUCTURAL_TARGETS:
                compiled_pattern(value, name)
        if not self.target_modules:
            fix = "Leave it at 'ffn', or list the modules to adapt."
            raise InvalidInputError("target_modules", self.target_modules, "at least one module", fix)
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
                expected = f"None with {targets}, because it works only with a list of module names"
                raise InvalidInputError(name, value, expected, fix)
            if value == []:
                expected = "at least one layer: PEFT adapts every layer if the list is empty"
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
                f"a value that gives a scaling of at most {MAX_SCALING:g}, which readers accept",
                "The papers use lora_alpha=1 and r=8.",
            )
        for name in ("target_modules", "exclude_modules"):
            checked(name, getattr(self, name), _Modules)


def _plain(targets: Any) -> Any:
    """Returns `target_modules` without the keyword that it comes from."""
    return str(targets) if isinstance(targets, str) else targets
