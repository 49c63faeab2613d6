"""GS-LoRA with the settings of its papers, without sparsity, and in depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...errors import InvalidInputError
from ...training import GSLoraTrainingArguments, adapter_of_recipe
from ..gs_lora import GSLora

# What the arguments of a preset must be: a description, and whether a value is one.
_Needed = tuple[str, Callable[[Any], bool]]

_ZERO: _Needed = ("0", lambda value: not value)
_POSITIVE: _Needed = ("above 0", lambda value: value > 0)


def _exactly(wanted: str) -> _Needed:
    return repr(wanted), lambda value: value == wanted


class _Preset(GSLora):
    """GS-LoRA whose name promises some of its arguments.

    `published` holds them, and the other settings of the source. Nothing applies them behind a user's back: arguments
    that contradict the name are refused.
    """

    needed: ClassVar[Mapping[str, _Needed]] = {}

    def check(self, args: GSLoraTrainingArguments) -> None:
        super().check(args)
        for name, (expected, fits) in self.needed.items():
            if not fits(getattr(args, name)):
                fix = f"Start from its own: GSLoraTrainingArguments(..., **{type(self).__name__}.published)."
                raise InvalidInputError(name, getattr(args, name), f"{expected} with the method {self.name!r}", fix)


@dataclass(kw_only=True)
class Lora(_Preset):
    """Plain LoRA with the losses of GS-LoRA: no group is shrunk or dropped.

    A comparison with `gs_lora` shows what sparsity costs or brings. LoRA: https://arxiv.org/abs/2106.09685.

    Raises:
        InvalidInputError: If `sparsity` is not "none".
    """

    name = "lora"
    title = "LoRA, https://arxiv.org/abs/2106.09685, with the losses of GS-LoRA"
    published: ClassVar[Mapping[str, Any]] = {"sparsity": "none"}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"forget_weight": (0.05, 0.1, 0.3)}
    needed: ClassVar[Mapping[str, _Needed]] = {"sparsity": _exactly("none")}


# The papers' face experiments. BND = 105 belongs to CosFace logits with s = 64.
_FACES: Mapping[str, Any] = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-5},
    "weight_decay": 0.05,
    "num_train_epochs": 100,
    "per_device_train_batch_size": 48,
    "epoch_covers": "retain",
    "forget_loss": "cross_entropy",
    "forget_bound": 105.0,
    "forget_weight": 0.2,
    "sparsity": "penalty",
    "sparsity_weight": 1e-4,
    "sparsity_until_epoch": None,
    "distillation_weight": 0.0,
}


@dataclass(kw_only=True)
class GSLoraPublished(_Preset):
    """GS-LoRA as its paper trains it: a mean cross-entropy with a bound, and a penalty that drops no group exactly.

    Minimises L_retain + β · ReLU(BND − L_forget) + α · Σ_g ‖g‖ (https://arxiv.org/abs/2403.11530, eq. 4 and 7).
    `published` holds the settings of the experiments with faces in four tasks: 100 epochs over the retain set,
    learning rate 1e-2 with a cosine to 1e-5, weight decay 0.05, batches of 48, BND = 105, α = 1e-4, and for all tasks
    the first task's β = 0.2 (the others have 0.25, 0.25 and 0.2); `adapter` has rank 8 and a scaling of 1/8. The bound
    of 105 nats is for CosFace; for a plain softmax head of C classes `forget_bound="auto"` is 5 · ln C.

    Raises:
        InvalidInputError: If an argument makes the loss another one: `sparsity` is not "penalty", `forget_loss` is not
            "cross_entropy", or `depth_weight`, `ema_decay` or the weight of a prototype term is not 0.
    """

    name = "gs_lora_published"
    title = "GS-LoRA as published, https://arxiv.org/abs/2403.11530"
    published: ClassVar[Mapping[str, Any]] = _FACES
    adapter: ClassVar[Mapping[str, Any]] = {"r": 8, "lora_alpha": 1}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "forget_weight": (0.2, 0.5, 2.0),
        "sparsity_weight": (1e-4, 1e-3, 1e-2),
    }
    needed: ClassVar[Mapping[str, _Needed]] = {
        "sparsity": _exactly("penalty"),
        "forget_loss": _exactly("cross_entropy"),
        "depth_weight": _ZERO,
        "ema_decay": _ZERO,
        "prototype_forget_weight": _ZERO,
        "prototype_retain_weight": _ZERO,
    }


@dataclass(kw_only=True)
class GSLoraPPPublished(_Preset):
    """GS-LoRA++ as its paper trains it: GS-LoRA, a prototype term that forgets, and a moving average.

    Adds w_f · ReLU(BND_pro − KL_f) + w_r · KL_r to the loss of [`GSLoraPublished`]
    (https://arxiv.org/abs/2501.09705, §3.4) and averages the adapter after each epoch from the 30th of 100 on, with
    decay 0.9 (§3.5). `published` holds the settings of the experiments with faces in four tasks: w_f = 0.01, w_r = 0,
    BND_pro = 18, and those of [`GSLoraPublished`]. Lower `ema_start_epoch` where you lower `num_train_epochs`.

    Raises:
        InvalidInputError: If an argument makes the loss another one: `sparsity` is not "penalty", `forget_loss` is not
            "cross_entropy", `depth_weight` is not 0, or `prototype_forget_weight` is 0.
    """

    name = "gs_lora_pp_published"
    title = "GS-LoRA++ as published, https://arxiv.org/abs/2501.09705"
    published: ClassVar[Mapping[str, Any]] = {
        **_FACES,
        "prototype_forget_weight": 0.01,
        "prototype_retain_weight": 0.0,
        "prototype_bound": 18.0,
        "prototype_distance": "kl",
        "ema_decay": 0.9,
        "ema_update": "epoch",
        "ema_start_epoch": 30,
    }
    adapter: ClassVar[Mapping[str, Any]] = {"r": 8, "lora_alpha": 1}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "forget_weight": (0.2, 0.5, 2.0),
        "prototype_forget_weight": (0.005, 0.01, 0.05),
    }
    needed: ClassVar[Mapping[str, _Needed]] = {
        "sparsity": _exactly("penalty"),
        "forget_loss": _exactly("cross_entropy"),
        "depth_weight": _ZERO,
        "prototype_forget_weight": _POSITIVE,
    }


_DEEP = adapter_of_recipe("deep")


@dataclass(kw_only=True)
class GSLoraDeep(_Preset):
    """GS-LoRA in depth: the recipe "deep", which makes the states of every block those of kept samples.

    See [`DepthObjective`] and docs/audit.md. `published` names the recipe, which sets the arguments that are at their
    defaults; `adapter` is what the recipe asks of it: rank 32 and a scaling of 1.

    Raises:
        InvalidInputError: If `depth_weight` is 0.
    """

    name = "gs_lora_deep"
    title = "GS-LoRA in depth"
    published: ClassVar[Mapping[str, Any]] = {"recipe": "deep"}
    adapter: ClassVar[Mapping[str, Any]] = {"r": _DEEP.r, "lora_alpha": _DEEP.lora_alpha}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "depth_weight": (2.0, 5.0, 10.0),
        "depth_retain_weight": (1.0, 2.0, 5.0),
    }
    needed: ClassVar[Mapping[str, _Needed]] = {"depth_weight": _POSITIVE}
