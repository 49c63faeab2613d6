"""Learning with recoverable forgetting: the lower half of the network withdraws what it knows of some classes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import NotNegative, Number
from ...compat import base_of
from ...errors import InvalidInputError
from ...objectives import CapturedStates, ObjectiveOutput, block_paths, captured_states
from ...training import Trained, TrainedWeights
from .base import PUBLISHED, Positive, Relabelling, softened_kl

_Fraction = Annotated[Number, Field(ge=0, le=1, description="a number from 0 to 1")]

OFFICIAL_FLOOR = 0.005  # the public code sets smaller entries of an attention map to 0


@dataclass(kw_only=True)
class LIRF(Relabelling):
    """Trains the lower half of the network to see the samples to forget in another way; the upper half is frozen.

    Minimises (1 − a) · CE(relabelled forget half) − λ_a · AT(forget half) + λ_d · a · KL_T(forget half)
    + λ_r · CE(retain half, y). AT is the mean squared difference of the attention maps at the middle of the network,
    where a map is the mean square of each token's features, normalised over the tokens of a sample
    (https://arxiv.org/abs/1612.03928). KL_T is T² · KL of the softened answers over all classes but those to forget
    and those forgotten before. Both compare with the model before all requests.

    This is the loss of the target network in the baseline of the GS-LoRA papers (https://arxiv.org/abs/2403.11530).
    LIRF (https://arxiv.org/abs/2207.08224) also trains a deposit network, which keeps what is withdrawn, and recovers
    it later. There is no deposit network here: in the baseline its loss has no gradient in the target network, and an
    adapter is taken off to recover. The public code normalises the mean square of each feature over the tokens, and
    takes the ids from F on, with F classes to forget, for the classes to keep.

    Cost: one more forward of the half to forget. The upper half needs no gradients of weights.

    Args:
        alpha (`float`, *optional*, defaults to 0.1):
            a, in [0, 1].
        attention_weight (`float`, *optional*, defaults to 300):
            λ_a, at least 0.
        distillation_weight (`float`, *optional*, defaults to 10):
            λ_d, at least 0.
        retain_weight (`float`, *optional*, defaults to 5):
            λ_r, at least 0.
        temperature (`float`, *optional*, defaults to 10):
            T, above 0.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether to draw labels, form attention maps and choose classes as the public code does.

    Raises:
        InvalidInputError: If a value is out of range, or the model does not have two blocks in which something trains.
    """

    name = "lirf"
    title = "LIRF, https://arxiv.org/abs/2207.08224"
    published: ClassVar = {**PUBLISHED, "learning_rate": 1e-4}
    space: ClassVar = {"attention_weight": (0.0, 30.0, 300.0), "retain_weight": (1.0, 5.0, 20.0)}

    alpha: _Fraction = 0.1
    attention_weight: NotNegative = 300.0
    distillation_weight: NotNegative = 10.0
    retain_weight: NotNegative = 5.0
    temperature: Positive = 10.0
    _open: ExitStack = field(init=False, repr=False, compare=False, default_factory=ExitStack)
    _captured: CapturedStates = field(init=False, repr=False, compare=False)

    def take(self, model: nn.Module) -> Trained:
        _, upper = _halves(model)
        trained, is_upper = super().take(model), False
        for name, parameter in base_of(model).named_parameters():
            # Embeddings are registered before the first block, and what follows the last block after it.
            is_upper = is_upper or name.startswith(f"{upper[0]}.")
            if is_upper:
                parameter.requires_grad_(False)
        # An adapter keeps the matrices that do not train: in its upper half they are zero.
        return trained if isinstance(model, PeftModel) else TrainedWeights(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._open.close()
        lower, _ = _halves(self.trainer.model)
        self._captured = self._open.enter_context(captured_states(self.trainer.model, lower[-1:]))

    def release(self) -> None:
        self._open.close()

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        half = len(inputs["labels"]) // 2
        gone, _ = self.forget_half(inputs, output)
        seen = self._middle()[half:]  # of the forward before the teacher's
        teacher = self.original_logits(model, inputs, "forget")
        attention = (self._map(seen) - self._map(self._middle())).square().mean()
        others = self._others(gone.shape[1])
        distance = softened_kl(gone[:, others], teacher[:, others], self.temperature)
        return (
            (1 - self.alpha) * self.relabelled_loss(inputs, output)
            - self.attention_weight * attention
            + self.distillation_weight * self.alpha * distance
            + self.retain_weight * F.cross_entropy(*self.retain_half(inputs, output))
        )

    def _middle(self) -> Tensor:
        return next(iter(self._captured.outputs.values())).float()

    def _map(self, states: Tensor) -> Tensor:
        """The attention map of each sample, normalised, from the states `(B, tokens, features)`."""
        squares = states.square()
        maps = F.normalize(squares.mean(1 if self.official_compat else -1).flatten(1))
        return maps.where(maps >= OFFICIAL_FLOOR, 0.0) if self.official_compat else maps

    def _others(self, count: int) -> list[int]:
        """The classes whose answers are to stay."""
        roles = self.trainer.roles
        if self.official_compat:
            return list(range(len(roles.forget), count))
        return [index for index in range(count) if index not in {*roles.forget, *roles.old}]


def _halves(model: nn.Module) -> tuple[list[str], list[str]]:
    """The paths of the blocks in the lower and in the upper half of a network."""
    paths = block_paths(model)
    if len(paths) < 2:
        raise InvalidInputError("model", paths, "a model with two Transformer blocks or more, which has halves")
    return paths[: len(paths) // 2], paths[len(paths) // 2 :]
