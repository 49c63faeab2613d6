"""FG-OrIU: states of samples to forget leave the subspace of their classes; updates leave that of the kept ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import NotNegative, Share, check_fields
from ...compat import bare
from ...errors import InvalidInputError
from ...objectives import (
    ClassificationObjective,
    GlobalMean,
    Objective,
    ObjectiveOutput,
    Pooling,
    block_paths,
    captured_states,
    identity,
    is_detector,
    logits_of,
)
from ...training import GSLoraTrainingArguments, Method, TrainedAdapter, own_batches
from ...tuner import LoraGroups


class StatesObjective(Objective):
    """The cross-entropy of a classifier, which keeps the states behind every block of its last training step.

    Args:
        missing_classes (`Sequence[int]`):
            Classes to keep without training data, which the loss leaves out.
        reading (`"token"` or `"mean"`):
            How a state is read: one token, or the mean over all of them, see [`CapturedStates.pooled`].

    Attributes:
        states (`dict[str, torch.Tensor]`):
            By path of the block, float32, shape `(2·B, width)`, with gradient.
    """

    def __init__(self, missing_classes: Sequence[int], reading: Pooling):
        self.objective = ClassificationObjective(0.0, "auto", missing_classes=missing_classes)
        self.reading: Pooling = reading
        self.states: dict[str, Tensor] = {}

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        with captured_states(model) as captured:
            output = self.objective.training_step(model, inputs, global_mean)
        self.states = captured.pooled(self.reading, inputs.get("attention_mask"))
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.objective.evaluation_step(model, inputs)


@dataclass(kw_only=True)
class FGOrIU(Method):
    r"""Moves the states of samples to forget out of the subspace of their classes, behind every block.

    Before the task, an orthonormal basis P_f of each block's states of D_f and a basis P_r of those of D_r are found:
    the fewest directions with the share `energy` of Σ‖state‖². A state is one token (the class token of a ViT).
    With S_f and S_r the states of both halves of the batch, each of length 1, minimises

    $$w\,\mathrm{CE}(\text{retain half}) + w_f \sum_l \lVert S_f P_f\rVert_*
      + w_r \sum_l \lVert S_r - S_r P_r P_r^\top\rVert_F$$

    and keeps the change of the LoRA factors that read or write states orthogonal to P_r. In a run P_f also holds the
    subspaces that earlier tasks forgot, and P_r belongs to the classes that are left.

    FG-OrIU, ICCV 2025, https://arxiv.org/abs/2601.13578; details are from its public code. That reshapes lora_B where
    it means to transpose it, here as a projection from the left, and has no sound projection for the factors of the
    hidden width, which train freely here.

    Costs one pass over both sets before training, and in every step one singular value decomposition a block of a
    `(B, rank of P_f)` matrix, for which a GPU waits. With several processes the norms are those of each one's samples.

    Args:
        forget_weight (`float`, *optional*, defaults to 0.1):
            w_f. The source uses 0.05 for ImageNet.
        retain_weight (`float`, *optional*, defaults to 0.01):
            w_r. The source uses 0.1 for ImageNet.
        cross_entropy_weight (`float`, *optional*, defaults to 1.0):
            w. The source uses 0.1 for ImageNet.
        energy (`float`, *optional*, defaults to 0.99):
            Share of the energy of the states that a basis holds, in (0, 1].
        blocks (`"all"` or `"last"`, *optional*, defaults to `"all"`):
            The blocks of the two norms. The source uses the last one for ImageNet. Projections act in all.
        reading (`"token"` or `"mean"`, *optional*, defaults to `"token"`):
            How a state is read; `"mean"` for models without a class token.
        official_compat (`bool`, *optional*, defaults to `False`):
            As in the public code: energy of the squared eigenvalues, which gives fewer directions; no subspaces of
            earlier tasks; and gradients alone are projected, so that momentum and weight decay leave the subspace.

    Raises:
        InvalidInputError: If a value is out of range, or the model is a detector.
        NoFFNFoundError: If no block is found.
    """

    name = "fg_oriu"
    trains = "adapter"
    title = "FG-OrIU, https://arxiv.org/abs/2601.13578"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-5},
        "weight_decay": 0.05,
        "num_train_epochs": 100,
        "per_device_train_batch_size": 48,
        "epoch_covers": "retain",
        "max_grad_norm": 1.0,
    }
    adapter: ClassVar[Mapping[str, Any]] = {"r": 8, "lora_alpha": 1}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "forget_weight": (0.05, 0.1, 0.5),
        "retain_weight": (0.01, 0.1, 1.0),
    }

    forget_weight: NotNegative = 0.1
    retain_weight: NotNegative = 0.01
    cross_entropy_weight: NotNegative = 1.0
    energy: Share = 0.99
    blocks: Literal["all", "last"] = "all"
    reading: Pooling = "token"
    official_compat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        self.gone: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}

    def objective(self, model: nn.Module, args: GSLoraTrainingArguments, kind: str | None = None) -> Objective:
        if is_detector(bare(model)):
            expected = "a classifier: its states behind a block are those of one sample"
            raise InvalidInputError("model", type(bare(model)).__name__, expected, "Use 'gs_lora'.")
        return StatesObjective(self.trainer.roles.missing, self.reading)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        data, groups = self.trainer.train_dataset, self.trainer.trained
        assert isinstance(groups, TrainedAdapter)
        paths = block_paths(self.trainer.model)
        # Tasks of other methods have left nothing; the last of this one has all directions.
        left = [] if self.official_compat else [found for found in self.earlier if found]
        earlier = left[-1] if left else {}
        options: dict[str, Any] = {"energy": self.energy, "squared": self.official_compat}
        of_forget, of_retain = self._grams(data.forget, paths), self._grams(data.retain, paths)
        self.gone = {path: basis(of_forget[path], known=earlier.get(path), **options) for path in paths}
        self.kept = {path: basis(of_retain[path], **options) for path in paths}
        by_block = LoraGroups(self.trainer.model, groups.adapter, "block")
        self._block_of = [by_block.names[group] for group in by_block.group_of]

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        objective = self.trainer.task_objective
        if not isinstance(objective, StatesObjective):
            raise InvalidInputError("objective", type(objective).__name__, "None with this method, which has its own")
        half = len(inputs["labels"]) // 2
        paths = list(objective.states)[-1:] if self.blocks == "last" else list(objective.states)
        # Norms stay in float32, also under autocast.
        with torch.autocast(inputs["labels"].device.type, enabled=False):
            states = {path: F.normalize(objective.states[path], dim=1) for path in paths}
            forget = torch.stack([nuclear_norm(states[path][half:] @ self.gone[path]) for path in paths]).sum()
            off = [without(states[path][:half], self.kept[path]) for path in paths]
            retain = torch.stack([torch.linalg.vector_norm(one) for one in off]).sum()
        output.metrics |= {"forget_projection": forget.detach(), "retain_residual": retain.detach()}
        return self.cross_entropy_weight * output.loss + self.forget_weight * forget + self.retain_weight * retain

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for index, parameter in enumerate(self.trainer.trained.parameters):
            if parameter.grad is not None:
                parameter.grad.copy_(self._projected(index, parameter.grad))

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.official_compat:
            return
        # The optimizer divides a gradient by its entries' sizes, which leaves the subspace, and so does weight decay.
        trained = self.trainer.trained
        for index, (parameter, start) in enumerate(zip(trained.parameters, trained.start, strict=True)):
            parameter.copy_(start + self._projected(index, parameter - start))

    def leave(self) -> dict[str, Tensor]:
        return {path: directions.cpu().contiguous() for path, directions in self.gone.items()}

    def _projected(self, index: int, change: Tensor) -> Tensor:
        """The part of a change of a factor that neither reads nor writes kept states.

        `lora_A` of shape `(r, width)` reads them and `lora_B` of shape `(width, r)` writes them, if the width is that
        of the states. The two factors of a pair are neighbours.
        """
        kept = self.kept.get(self._block_of[index])
        read = index % 2 == 0
        if kept is None or change.shape[1 if read else 0] != len(kept):
            return change
        own = change.float()
        return (without(own, kept) if read else without(own.T, kept).T).to(change.dtype)

    @torch.no_grad()
    def _grams(self, dataset: Any, paths: Sequence[str]) -> dict[str, Tensor]:
        """Σ s sᵀ of the states s of a data set before the task, by block, `(width, width)`; over all processes."""
        trainer, grams = self.trainer, dict[str, Tensor]()
        with trainer.trained.before(), trainer.accelerator.autocast():
            for batch in own_batches(trainer, [dataset]):
                with captured_states(trainer.model, paths) as captured:
                    logits_of(trainer.model, batch)
                for path, states in captured.pooled(self.reading, batch.get("attention_mask")).items():
                    # In float64 the result hardly depends on the order and the size of the batches.
                    own = states.to(torch.float32 if states.device.type == "mps" else torch.float64)
                    grams[path] = grams.get(path, 0) + own.T @ own
        return {path: trainer.global_sum(gram) for path, gram in grams.items()}


def basis(gram: Tensor, energy: float, known: Tensor | None = None, squared: bool = False) -> Tensor:
    """Returns an orthonormal basis of the fewest directions that hold a share of the energy of vectors.

    Args:
        gram (`torch.Tensor`):
            Σ s sᵀ of the vectors s, shape `(width, width)`.
        energy (`float`):
            The share of Σ‖s‖², in (0, 1].
        known (`torch.Tensor`, *optional*):
            An orthonormal basis, `(width, k)`, which comes first. What it holds counts.
        squared (`bool`, *optional*, defaults to `False`):
            Whether the energy of a direction is the square of Σ(direction · s)², as in the public code.

    Returns:
        `torch.Tensor`: float32, shape `(width, number of directions)`.
    """
    known = gram.new_zeros(len(gram), 0) if known is None else known.to(gram)
    rest = without(without(gram, known).T, known)
    values, vectors = torch.linalg.eigh((rest + rest.T) / 2)
    values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
    values, total = (values.square(), values.square().sum()) if squared else (values, gram.trace())
    held = (1 - values.sum() / total) + values.cumsum(0) / total
    before = held - values / total  # held by the directions in front of each one
    return torch.cat([known, vectors[:, before < energy]], dim=1).float()


def without(rows: Tensor, directions: Tensor) -> Tensor:
    """Returns the rows, `(n, width)`, without their parts along orthonormal directions, `(width, k)`."""
    return rows - (rows @ directions) @ directions.T


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Returns the sum of the singular values."""
    return torch.linalg.svdvals(matrix).sum()
