"""Chooses the groups that are worth training before the training begins."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..data import AgreeingLabels, PairedCollator, PairedDataset
from ..errors import InvalidInputError
from ..training import ForgettingTrainer, kept_generators, sampled
from ..tuner import LoraGroups

SCORED_BATCHES = 4


def number_to_keep(select_groups: float, groups: LoraGroups) -> int:
    """How many groups `select_groups` asks for.

    Args:
        select_groups (`float`):
            A share below 1 (rounded up), or a number of groups.
        groups ([`LoraGroups`]):
            The groups.

    Raises:
        InvalidInputError: If it is not a whole number, or more than there are.
    """
    if select_groups < 1:
        return math.ceil(select_groups * len(groups))
    if select_groups != int(select_groups) or select_groups > len(groups):
        expected = f"a share below 1, or a whole number of groups; the adapter has {len(groups)}"
        raise InvalidInputError("select_groups", select_groups, expected)
    return int(select_groups)


def gains(trainer: ForgettingTrainer, groups: LoraGroups) -> Tensor:
    """What each group gains in one small step, to first order: the sum of |∂ loss / ∂ entry| over its entries.

    Adam moves every entry by the same distance, so that this is proportional to what its first step takes off the
    loss. The loss is that of the training: where forgetting and retaining pull in opposite directions, their
    gradients cancel and the gain is small. It is the mean over a few joint batches, without dropout and augmentation,
    drawn with the seed of the training.

    Args:
        trainer ([`ForgettingTrainer`]):
            The trainer that is about to train.
        groups ([`LoraGroups`]):
            The groups of its adapter.

    Returns:
        `torch.Tensor`: float32, shape `(number of groups,)`, the same in every process.
    """
    args, pairs = trainer.args, trainer.train_dataset
    plain = PairedDataset(*sampled(pairs))
    collate = PairedCollator(AgreeingLabels(trainer.data_collator, trainer.label_column), trainer.roles.forget)
    size = args.per_device_train_batch_size
    draw = np.random.default_rng([args.sampling_seed, args.process_index])
    sums = [torch.zeros_like(parameter) for parameter in groups.parameters]
    with kept_generators(groups.parameters[0].device), trainer.trained.at_start():
        for _ in range(SCORED_BATCHES):
            drawn = (draw.choice(len(part), size, replace=size > len(part)) for part in (plain.retain, plain.forget))
            rows = zip(*(indices.tolist() for indices in drawn), strict=True)
            batch = trainer._prepare_inputs(collate(plain.__getitems__(list(rows))))
            with trainer.accelerator.autocast():
                loss = trainer.task_objective.training_step(trainer.model, batch).loss
            found = torch.autograd.grad(loss, groups.parameters, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total.add_(trainer.global_mean(gradient))
    scores = [torch.zeros((), device=groups.parameters[0].device) for _ in groups.names]
    for total, group in zip(sums, groups.group_of, strict=True):
        scores[group] = scores[group] + total.abs().sum().float()
    return torch.stack(scores) / SCORED_BATCHES


def gains_for_their_cost(gains: Tensor) -> Tensor:
    """What groups gain for the blocks that a step has to go through to train them: those from the group on.

    By the gain alone the lowest groups would often be chosen, and no block could be left out.

    Args:
        gains (`torch.Tensor`):
            Result of [`gains`], in the order of the model, shape `(number of groups,)`.
    """
    return gains / torch.arange(len(gains), 0, -1, device=gains.device)


@torch.no_grad()
def keep_best(groups: LoraGroups, scores: Tensor, number: int) -> list[str]:
    """Sets all groups to zero but those with the largest scores.

    Args:
        groups ([`LoraGroups`]):
            The groups.
        scores (`torch.Tensor`):
            Shape `(number of groups,)`.
        number (`int`):
            How many to keep.

    Returns:
        `list[str]`: The groups that are kept, in the order of the model.
    """
    kept = set(scores.topk(number).indices.tolist())
    for parameter, group in zip(groups.parameters, groups.group_of, strict=True):
        if group not in kept:
            parameter.zero_()
    return [name for index, name in enumerate(groups.names) if index in kept]
