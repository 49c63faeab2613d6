"""An adapter that is whole in every process, beside a base model that is whole or sharded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from ...compat import bare, is_sharded, quantised_part, shard, sharding_asked, shared_from_main
from ...errors import InvalidInputError
from ..arguments import GSLoraTrainingArguments
from ..method import TaskTrainer


def shard_if_asked(model: nn.Module, args: GSLoraTrainingArguments, *, trains_weights: bool) -> None:
    """Shards the base model in place if `accelerate launch` was told to use FSDP 2, see [`shard`].

    Nothing happens in a single process, and to a model that is sharded already.

    Args:
        model (`torch.nn.Module`):
            The model, with or without an adapter.
        args ([`GSLoraTrainingArguments`]):
            The arguments, for the device.
        trains_weights (`bool`):
            Whether weights of the model itself are to train, not an adapter.

    Raises:
        InvalidInputError: If weights of the model itself are to train, the model is quantised, or as [`shard`].
    """
    base = bare(model)
    asked = args.world_size > 1 and sharding_asked()
    if trains_weights and (asked or is_sharded(base)):
        raise InvalidInputError(
            "fsdp",
            True,
            "a method that trains an adapter: methods that train whole weights keep copies of them and compare them "
            "matrix by matrix",
            "Use plain DDP (`accelerate launch --multi_gpu`), or a method that trains an adapter.",
        )
    if asked and (part := quantised_part(base)):
        expected = f"false for a quantised base model ({part}), which takes a fraction of the memory as it is"
        raise InvalidInputError("fsdp", True, expected, "Use plain DDP (`accelerate launch --multi_gpu`).")
    if asked and not is_sharded(base):
        shard(base, args.device)


class ReplicatedTraining(TaskTrainer):
    """The part of [`ForgettingTrainer`] that trains an adapter in several processes.

    Every process holds the whole adapter and its optimizer, and takes the same steps. Before a step the gradients are
    averaged in one call. `DistributedDataParallel` would look for groups that take no part, at every step, and would
    keep buckets for gradients. Weights of the model itself still train in it.
    """

    @property
    def _replicates(self) -> bool:
        return self.args.world_size > 1 and self.trained.adapter is not None

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self._replicates:
            prepare: Any = self.accelerator.prepare_model
            # For evaluation alone accelerate prepares precision and compilation, and does not wrap the model.
            self.accelerator.prepare_model = functools.partial(prepare, evaluation_mode=True)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self._replicates:
            shared_from_main(self.trained.parameters)
        return super()._inner_training_loop(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self._replicates and self.accelerator.sync_gradients:
            average_gradients(self.trained.parameters, self.global_sum, self.args.world_size)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:  # what is saved is whole in every process
            super()._save(output_dir, state_dict)


@torch.no_grad()
def average_gradients(
    parameters: Sequence[nn.Parameter], global_sum: Callable[[Tensor], Tensor], processes: int
) -> None:
    """Replaces gradients by their means over all processes, in one call for all of a dtype.

    A parameter that got a gradient in no process keeps none, so that the optimizer leaves it alone. If it got one in
    some processes, it counts as zero in the others.

    Args:
        parameters (`Sequence[torch.nn.Parameter]`):
            The parameters, in the same order in every process, with the same `requires_grad` flags.
        global_sum (`Callable`):
            From a tensor to its sum over all processes.
        processes (`int`):
            Number of processes.
    """
    training = [parameter for parameter in parameters if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in training):
        own = [parameter for parameter in training if parameter.dtype == dtype]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        used = own[0].new_tensor([float(p.grad is not None) for p in own])
        summed = global_sum(torch.cat([used, *(gradient.reshape(-1) for gradient in gradients)]))
        counts, *means = summed.split([len(own), *(gradient.numel() for gradient in gradients)])
        # Only where a gradient is missing here, the others are asked, which needs a host synchronisation.
        absent = [parameter.grad is None for parameter in own]
        nowhere = (counts == 0).tolist() if any(absent) else absent
        for parameter, gradient, mean, unused in zip(own, gradients, means, nowhere, strict=True):
            parameter.grad = None if unused else gradient.copy_(mean.view_as(gradient).div_(processes))
