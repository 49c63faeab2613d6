"""Bad teacher: a network that knows nothing teaches what to answer to the samples to forget."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from ...checking import Number, check_fields
from ...compat import bare
from ...objectives import ObjectiveOutput, logits_of
from ...training import Method, half_of


@dataclass(kw_only=True)
class BadTeacher(Method):
    r"""Learns from the earlier model about the samples to keep, and from a random network about those to forget.

    Minimises T²·mean over both halves of KL(p_teacher ‖ p), probabilities at temperature T. The teacher of D_r is the
    model before the task; that of D_f has the same architecture and random weights (https://arxiv.org/abs/2205.08096).
    The factor T² keeps the size of the gradient. Without labels, it keeps mistakes of the earlier model, too. The
    source takes 30 % of D_r. Costs one forward over each half more, and the memory of a second network, which is drawn
    from the seed of the arguments.

    Args:
        temperature (`float`, *optional*, defaults to 1.0):
            T, above 0.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether the loss is divided by the number of classes and has no factor T², as in the public code.

    Raises:
        InvalidInputError: If `temperature` is out of range; at the first step, if the model is not a classifier.
    """

    name = "bad_teacher"
    title = "Bad teacher, https://arxiv.org/abs/2205.08096"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-4,
        "num_train_epochs": 1,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
    }
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"temperature": (1.0, 2.0, 4.0)}

    temperature: Annotated[Number, Field(gt=0, description="a finite number above 0")] = 1.0
    official_compat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.incompetent = random_network(self.trainer.model, args.seed).to(args.device)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del self.incompetent

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        (kept, _), (gone, _) = self.retain_half(inputs, output), self.forget_half(inputs, output)
        competent = self.earlier_logits(model, inputs, "retain")
        with torch.no_grad():
            incompetent = logits_of(self.incompetent, half_of(inputs, "forget")).float()
        now = (torch.cat([kept, gone]) / self.temperature).log_softmax(1)
        taught = (torch.cat([competent, incompetent]) / self.temperature).softmax(1)
        divergence = F.kl_div(now, taught, reduction="batchmean")
        return divergence / now.shape[1] if self.official_compat else self.temperature**2 * divergence


def random_network(model: nn.Module, seed: int) -> nn.Module:
    """Returns a network of the same architecture with random weights, on the CPU, in eval mode and frozen.

    The global random generators stay as they are.

    Args:
        model (`torch.nn.Module`):
            The model, a `PeftModel` or a bare one.
        seed (`int`):
            Decides the weights.
    """
    own = bare(model)
    dtype = next(weight.dtype for weight in own.parameters() if weight.is_floating_point())
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators, too
        if isinstance(own, PreTrainedModel):
            network: nn.Module = type(own)(copy.deepcopy(own.config))
        else:
            network = copy.deepcopy(own).cpu()
            for module in network.modules():
                _randomise(module)
    return network.to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Draws the parameters of one module as it would itself, and otherwise as small Gaussian noise."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is not None:
        reset()
        return
    for weight in module.parameters(recurse=False):
        if weight.is_floating_point():
            nn.init.normal_(weight, std=0.02)
