"""Dampening of the weights that matter more to the samples to forget than to all samples (SSD, LFSSD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import Number, check_fields
from ...errors import InvalidInputError
from ...training import Method
from ..importance import cross_entropies, importances, squared_norms

_Positive = Annotated[Number, Field(gt=0, description="a finite number above 0")]

# Weights are selected by `alpha=None` that matter this many times more to D_f than to D_r: the sources' 10, where the
# samples to forget are hardly any of all.
_RATIO = 10.0


@dataclass(kw_only=True)
class SSD(Method):
    r"""Selective synaptic dampening: shrinks the weights that matter most to what is to be forgotten.

    With the importance I(θ) = mean over samples of (∂CE/∂θ)², the diagonal of the empirical Fisher information of the
    model before the task, over D_f and over D = D_r ∪ D_f: where I_f > α · I_D,

    $$\theta \leftarrow \min(1, \lambda\, I_D / I_f)\, \theta$$

    SSD, AAAI 2024, https://arxiv.org/abs/2308.07707. I_D is the mean over *all* training data. Here D_r often holds
    few samples of each class and D_f many, so the two are weighed by their numbers of classes, which is the same if
    every class has as many samples. As D contains D_f, I_f / I_D is at most R = classes / classes to forget: no weight
    could be selected with a larger α. `None` is 10 · R / (R + 9), which selects the weights with I_f > 10 · I_r, as
    the source's 10 does where R is large.

    Costs one backward pass for each sample and two copies of the weights.

    Args:
        alpha (`float`, *optional*):
            α, above 0 and below R; by default as above. The source uses 10 for ResNets, 5 for ViTs and 50 for faces.
        dampening (`float`, *optional*, defaults to 1.0):
            λ, above 0. The source uses 1, and 0.1 for faces.
        official_compat (`bool`, *optional*, defaults to `False`):
            Importance as in the public code: of the mean gradient of each batch (`per_device_eval_batch_size`), whose
            samples cancel each other, and with every batch of D weighed the same.

    Raises:
        InvalidInputError: If a value is out of range, or `alpha` at least R.
        NoStepError: If no weight is selected.
    """

    name = "ssd"
    title = "SSD, https://arxiv.org/abs/2308.07707"
    trains = "weights"
    takes_steps = False
    published: ClassVar[Mapping[str, Any]] = {}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (None, 1.0, 1.5), "dampening": (0.1, 0.5, 1.0)}

    alpha: _Positive | None = None
    dampening: _Positive = 1.0
    official_compat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @torch.no_grad()
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer, alpha = self.trainer, self._alpha()
        data = trainer.train_dataset
        of_forget, of_retain = self.importances(data.forget), self.importances(data.retain)
        share = self._share_of_forget()
        trained = trainer.trained
        for weight, start, forget, retain in zip(trained.parameters, trained.start, of_forget, of_retain, strict=True):
            whole = share * forget + (1 - share) * retain
            factor = (self.dampening * whole / forget.clamp(min=torch.finfo(forget.dtype).tiny)).clamp(max=1)
            # From the start, so that a training that is resumed at its end dampens nothing twice.
            weight.copy_(torch.where(forget > alpha * whole, factor * start, start))

    def importances(self, dataset: Any) -> list[Tensor]:
        """Returns I over a data set, for each tensor that trains."""
        return importances(self, dataset, cross_entropies, torch.square, by_sample=not self.official_compat)

    def _share_of_forget(self) -> float:
        """The weight of D_f in the mean over D: its share of the classes, or in the public code of the batches."""
        roles, data = self.trainer.roles, self.trainer.train_dataset
        if not self.official_compat:
            return len(roles.forget) / (len(roles.forget) + len(roles.retain))
        size = self.trainer.args.per_device_eval_batch_size
        forget, retain = (-(-len(part) // size) for part in (data.forget, data.retain))
        return forget / (forget + retain)

    def _alpha(self) -> float:
        limit = 1 / self._share_of_forget()
        if self.alpha is None:
            return _RATIO * limit / (_RATIO - 1 + limit)
        if self.alpha >= limit:
            raise InvalidInputError(
                "alpha",
                self.alpha,
                f"less than {limit:.4g}, or no weight can matter so much more to the samples to forget than to all, "
                "of which they are a part",
                "Leave it out.",
            )
        return self.alpha


@dataclass(kw_only=True)
class LFSSD(SSD):
    """SSD without labels: importance from the size of the logits, whatever the right answer is.

    As [`SSD`], with I(θ) = mean over samples of |∂‖z‖² / ∂θ| for logits z. Loss-free SSD,
    https://arxiv.org/abs/2402.19308.

    Args:
        alpha (`float`, *optional*):
            As in [`SSD`]. These importances differ less than squares do.
        dampening (`float`, *optional*, defaults to 1.0):
            As in [`SSD`].
        official_compat (`bool`, *optional*, defaults to `False`):
            As in [`SSD`].
    """

    name = "lfssd"
    title = "LFSSD, https://arxiv.org/abs/2402.19308"

    def importances(self, dataset: Any) -> list[Tensor]:
        return importances(self, dataset, squared_norms, torch.abs, by_sample=not self.official_compat)
