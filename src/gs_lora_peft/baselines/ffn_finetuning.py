"""Plain fine-tuning of the feed-forward Linears, with the losses of GS-LoRA and without LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from transformers import Trainer

from ..data.agreement import AgreeingLabels, check_given_labels
from ..data.collation import default_collator
from ..data.pairing import PairedCollator, PairedDataset, PairedSampler
from ..objectives import ClassificationObjective, Objective, check_class_head
from ..training import GSLoraTrainingArguments
from ..training.argument_checks import check_types
from ..training.checks import check_labels, class_ids, classes_of, without_data
from ..tuner import find_ffn_blocks
from ..tuner.batch_norm import batch_norm_frozen


class FFNFineTuner(Trainer):
    """
    Makes a classifier forget by training the feed-forward Linears of every Transformer block themselves.

    The same layers, batches and losses as with [`GSLoraTrainer`], so that a comparison shows what low rank and
    sparsity are worth; classes without data take no part in the losses here either, but nothing holds them. The model
    changes in place: there is no adapter to take off, store or share. The options of `args` for sparsity and moving
    averages have no effect. It runs in one process, without prototypes, distillation, augmentation or a part held out.
    BatchNorm layers stay in eval mode.

    Args:
        model (`transformers.PreTrainedModel`): a classifier without adapters; its other parameters are frozen.
        args ([`GSLoraTrainingArguments`]): learning rate, epochs, forgetting term. Weights themselves want a smaller
            learning rate than LoRA factors do.
        forget_dataset (map-style dataset): D_f, samples of the classes to forget.
        retain_dataset (map-style dataset): D_r, samples of the classes to keep.
        old_classes (`Sequence[int]`, *optional*): classes that earlier tasks forgot.
        label_column (`str`, *optional*, defaults to `"label"`): column of the integer labels.
        processing_class (*optional*), data_collator (`Callable`, *optional*): as in [`GSLoraTrainer`].
        objective ([`Objective`], *optional*): by default [`ClassificationObjective`].

    Raises:
        NoFFNFoundError: if the model has no feed-forward that can be found.
        ValueError: if the model has no class head, a data set is empty, the two share classes, a label lies outside
            the head, `args` asks for what there is not here, or several processes run.

    Example:

        ```py
        >>> args = GSLoraTrainingArguments("out", learning_rate=1e-4)
        >>> FFNFineTuner(model, args, forget_dataset=split.forget, retain_dataset=split.retain).train()
        ```
    """

    # Both losses are batch means; the Trainer must divide them by the accumulation steps.
    loss_is_scaled_for_ga = False

    args: GSLoraTrainingArguments
    model: nn.Module
    objective: Objective

    def __init__(
        self,
        model: nn.Module,
        args: GSLoraTrainingArguments,
        *,
        forget_dataset: Any,
        retain_dataset: Any,
        old_classes: Sequence[int] = (),
        label_column: str = "label",
        processing_class: Any = None,
        data_collator: Any = None,
        objective: Objective | None = None,
    ):
        check_types(model=model, args=args, label_column=label_column, data_collator=data_collator)
        _check_arguments(args)
        if objective is None:
            check_class_head(model)
        pairs = PairedDataset(retain_dataset, forget_dataset)
        forget = classes_of(forget_dataset, label_column, "forget", model)
        retain = classes_of(retain_dataset, label_column, "retain", model)
        old = class_ids("old_classes", old_classes)
        check_labels(model, forget, retain, old)
        trained = {path for paths in find_ffn_blocks(model).values() for path in paths}
        model.requires_grad_(False)
        for path in trained:
            model.get_submodule(path).requires_grad_(True)
        if objective is None:
            silent = without_data(model, forget, retain, old)
            objective = ClassificationObjective(args.forget_weight, args.forget_bound, args.forget_loss, silent)
        self.objective = objective
        collate = data_collator or default_collator(processing_class, label_column, retain_dataset)
        check_given_labels(pairs.sets(), label_column, collate)
        collate = PairedCollator(AgreeingLabels(collate, label_column))
        super().__init__(model, args, train_dataset=pairs, data_collator=collate)
        self.label_names = ["labels"]
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> PairedSampler:
        pairs, args = cast(PairedDataset, self.train_dataset), self.args
        return PairedSampler(
            len(pairs.retain),
            len(pairs.forget),
            self._train_batch_size,
            args.drawing_seed,
            drop_last=args.dataloader_drop_last,
            covers=args.epoch_covers,
        )

    def train(self, *args: Any, **kwargs: Any):
        with batch_norm_frozen(self.model):
            return super().train(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        loss = self.objective.training_step(model, inputs).loss
        return (loss, {}) if return_outputs else loss


def _check_arguments(args: GSLoraTrainingArguments) -> None:
    if args.world_size > 1:
        raise ValueError(f"FFNFineTuner runs in one process, not in {args.world_size}. Start it without `launch`.")
    if args.prototype_forget_weight or args.prototype_retain_weight:
        raise ValueError("FFNFineTuner has no prototypes. Leave both prototype weights at 0.")
    if args.distillation_weight not in ("auto", 0):
        raise ValueError(
            f"`distillation_weight`={args.distillation_weight}: FFNFineTuner has no adapter to take off for the "
            "earlier model. Leave it at 'auto'."
        )
    if args.augmentation:
        raise ValueError(
            "`augmentation`=True: FFNFineTuner trains on samples as they are. Leave it at False, and give the data "
            "sets a transform: dataset.with_transform(...)."
        )
    if args.validation_fraction:
        raise ValueError(
            f"`validation_fraction`={args.validation_fraction}: FFNFineTuner holds nothing out and does not evaluate. "
            "Leave it at 0, and take samples out before with train_validation_split."
        )
