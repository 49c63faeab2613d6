"""The Trainer that forgets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, enable_full_determinism, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..data.agreement import check_given_labels
from ..data.augmentation import AugmentedPairs
from ..data.box_columns import is_object_column
from ..data.collation import default_collator
from ..data.pairing import PairedDataset
from ..data.splitting import train_validation_split
from ..objectives import Objective, check_class_head, objective_for
from ..storage import as_path
from ..tuner import LoraGroups
from ..tuner.batch_norm import batch_norm_frozen
from .argument_checks import check_arguments, check_model, check_types
from .arguments import GSLoraTrainingArguments
from .batches import PairedBatches
from .callbacks import EMACallback, SamplerEpochCallback, SparsityCallback
from .checkpoints import load_adapters, read_state, write_state
from .checks import (
    check_distribution,
    check_evaluation,
    check_hold_out,
    check_labels,
    class_ids,
    classes_of_task,
    training_adapter,
    without_data,
)
from .continuation import LogContinuation
from .disk import whole_checkpoint
from .evaluation import ForgettingEvaluation
from .gradients import (
    GradientCallback,
    check_checkpointing,
    no_gradient,
    no_step,
    reentrant_checkpoints,
)
from .guard import FiniteCallback
from .inherited import check_by_trainer
from .logs import TrainingLogs
from .meter import LossMeter
from .preparing import PreparationCallback, chosen_augmentation
from .publishing import AdapterPublishing
from .searching import AdapterSearch

logger = logging.get_logger(__name__)


class GSLoraTrainer(PairedBatches, TrainingLogs, AdapterSearch, ForgettingEvaluation, AdapterPublishing):
    """
    Makes a classifier or a detector forget some classes and keep the rest, by training one LoRA adapter with group
    sparsity.

    Minimises L_retain + β · ReLU(BND − L_forget) + sparsity (GS-LoRA, https://arxiv.org/abs/2403.11530). Every batch
    holds as many samples to keep as samples to forget and goes through the model once. An epoch runs over the larger
    of the two sets (`epoch_covers`), and the other one cycles. Everything else is [`transformers.Trainer`]:
    `accelerate launch`, mixed precision, gradient accumulation, trackers, checkpoints and bit-exact resume. With
    `forget_loss="cross_entropy"` and gradient accumulation the bound acts on each joint micro-batch (averaged over
    processes).

    Args:
        model (`PeftModel`, *optional*, needed unless `model_init` is given):
            A classifier or a detector with exactly one adapter that trains, from
            `get_peft_model(model, GSLoraConfig())`. BatchNorm layers of its base stay in eval mode.
        args ([`GSLoraTrainingArguments`], *optional*): by default those with `output_dir="forgetting"`.
        forget_dataset (map-style dataset): D_f, samples of the classes to forget.
        retain_dataset (map-style dataset): D_r, samples of the classes to keep.
        eval_dataset (map-style dataset or dict of them, *optional*):
            Labelled samples of all classes. Evaluation reports `eval_acc_forget`, `eval_acc_retain`, `eval_acc_old`,
            `eval_acc_missing` and `eval_h_mean`, each in [0, 1] (of a dict `eval_<name>_h_mean` and so on), and leaves
            out what has no samples; of a detector `eval_ap_forget` and so on, see [`detection_scores`]. Which class
            belongs to which set follows from the training sets, `forget_classes`, `old_classes` and
            `missing_classes`.
        forget_classes (`Sequence[int]`, *optional*): the classes to forget; by default those of `forget_dataset`.
            Needed with annotated boxes, because an image may show objects of both kinds.
        old_classes (`Sequence[int]`, *optional*): classes that earlier tasks forgot, for `eval_acc_old`.
        missing_classes (`Sequence[int]`, *optional*): classes to keep that have no training data, for
            `eval_acc_missing`. Every class of the head that is in no training set and not in `old_classes` is one,
            named or not: a classifier's losses leave them out, and `distillation_weight` holds them.
        label_column (`str`, *optional*, defaults to `"label"`): column of the integer labels, or of the annotated
            boxes, see [`prepare_boxes`].
        processing_class (*optional*): the model's image processor, tokenizer or feature extractor, or a processor of
            several of these. Unless a `data_collator` is given, what a row holds decides how it is collated, see
            [`RowCollator`]; with boxes by [`DetectionCollator`].
        data_collator (`Callable`, *optional*): collates a list of samples into a batch with a `labels` key.
        augment (`Callable`, *optional*): from an image, as the data holds it, to a random view of it, for
            `augmentation` and `prototype_augmentations`; by default RandAugment, see [`rand_augment`].
        objective ([`Objective`], *optional*): what "forget" and "retain" mean, instead of what `args` says of losses;
            by default what suits the model, see [`objective_for`].
        model_init (`Callable`, *optional*): makes a fresh model with its adapter, at the start of every training; in
            place of `model`, for [`~GSLoraTrainer.hyperparameter_search`].
        kwargs: as for [`transformers.Trainer`].

    Raises:
        ValueError: before any training, if the model has no class head ([`check_class_head`], unless an `objective` is
            given), if a data set is missing or empty, if the two sets share classes, if of annotated boxes it is not
            said what is to be forgotten, if a label lies outside the head, if not exactly one adapter and nothing else
            trains, if a checkpoint belongs to another model, if the metric of the best model cannot be computed on
            `eval_dataset`, or with FSDP or DeepSpeed.
        InvalidInputError: a ValueError, if an inherited option cannot be obeyed (docs/training.md).
        NoGradientError: at the first step, if no gradient reaches the adapter, so that nothing would be forgotten.
        NoStepError: at the end of a training in which the optimizer changed no weight.
        NonFiniteLossError: during training, at a NaN or infinite loss; the weights are those of the last step at which
            loss and gradient were finite.

    Example:

        ```py
        >>> split = split_dataset(dataset, forget=["tench"], label_column="label")
        >>> trainer = GSLoraTrainer(model, args, forget_dataset=split.forget, retain_dataset=split.retain)
        >>> trainer.train()
        ```
    """

    # Both losses are batch means; the Trainer must divide them by the accumulation steps.
    loss_is_scaled_for_ga = False

    args: GSLoraTrainingArguments
    model: PeftModel
    train_dataset: PairedDataset

    def __init__(
        self,
        model: PeftModel | None = None,
        args: GSLoraTrainingArguments | None = None,
        *,
        forget_dataset: Any,
        retain_dataset: Any,
        eval_dataset: Any = None,
        forget_classes: Sequence[int] | None = None,
        old_classes: Sequence[int] = (),
        missing_classes: Sequence[int] = (),
        label_column: str = "label",
        processing_class: Any = None,
        data_collator: Any = None,
        augment: Callable[[Any], Any] | None = None,
        objective: Objective | None = None,
        model_init: Callable[..., PeftModel] | None = None,
        **kwargs: Any,
    ):
        args = args if args is not None else GSLoraTrainingArguments(output_dir="forgetting")
        check_types(
            **({} if model is None else {"model": model}),
            args=args,
            label_column=label_column,
            data_collator=data_collator,
            augment=augment,
            callbacks=kwargs.get("callbacks"),
        )
        check_arguments(args, eval_dataset, kwargs)
        check_model(model, model_init, objective, kwargs)
        pairs = PairedDataset(retain_dataset, forget_dataset)
        if model is None:
            # As the Trainer does it; the seed decides the adapter that is made.
            enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
            self.model_init = cast(Any, model_init)
            model = super().call_model_init()
        if objective is None:
            check_class_head(model)
        self.label_column = label_column
        self.has_boxes = is_object_column(retain_dataset, label_column)
        self.forget_classes, self.retain_classes = classes_of_task(
            forget_dataset, retain_dataset, label_column, model, forget_classes
        )
        self.old_classes = class_ids("old_classes", old_classes)
        named = class_ids("missing_classes", missing_classes)
        check_labels(model, self.forget_classes, self.retain_classes, self.old_classes, named)
        silent = without_data(model, self.forget_classes, self.retain_classes, self.old_classes)
        self.missing_classes = sorted({*named, *silent})
        self._take(model)
        if args.validation_fraction > 0 and eval_dataset is None:
            check_hold_out(retain_dataset, label_column)
            pairs, eval_dataset = self._hold_out(pairs, args)

        data_collator = data_collator or default_collator(processing_class, label_column, retain_dataset)
        check_given_labels(pairs.sets(), label_column, data_collator)
        self.augmentation = chosen_augmentation(args, augment, data_collator)
        if self.augmentation and args.augmentation:
            pairs = AugmentedPairs(pairs.retain, pairs.forget, self.augmentation)

        self._given_objective = objective
        self.task_objective = self._objective_for(model, args)
        self.meter = LossMeter()
        if eval_dataset is not None:
            check_evaluation(self, model, eval_dataset, args, own_metrics=kwargs.get("compute_metrics") is not None)
        super().__init__(
            model=model,
            args=args,
            train_dataset=pairs,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        self.model_init = cast(Any, model_init)
        # The Trainer's own search looks for labels in a forward that PeftModel hides.
        self.label_names = ["labels"]
        # The model never computes the loss, so nobody has to count its labels (a host synchronisation a step).
        self.model_accepts_loss_kwargs = False
        check_distribution(self)
        check_by_trainer(self)
        check_checkpointing(args, model)
        if args.remove_unused_columns:
            self._filter_columns(label_column)
        self.ignore_keys_for_eval: list[str] | None = None
        self._own_callbacks: list[TrainerCallback] = []
        self._make_callbacks()
        self._get_train_sampler()  # refuses a batch size that leaves no batch

    def _take(self, model: PeftModel) -> None:
        self.adapter_name = training_adapter(model)
        self.groups = LoraGroups(model, self.adapter_name)

    def _objective_for(self, model: PeftModel, args: GSLoraTrainingArguments) -> Objective:
        if self._given_objective is not None:
            return self._given_objective
        classes = {"forget_classes": self.forget_classes, "missing_classes": self.missing_classes}
        return objective_for(model, args, **classes, adapter=self.adapter_name)

    def _make_callbacks(self) -> None:
        """What happens between the steps, for the model and the arguments as they are now."""
        for callback in self._own_callbacks:
            self.remove_callback(callback)
        self._epochs = SamplerEpochCallback()
        self.sparsity = SparsityCallback(self.groups)
        self.ema = EMACallback(self.groups) if self.args.ema_decay > 0 else None
        self._gradients = GradientCallback(self)
        self._continuation = LogContinuation(self)
        chosen = (
            PreparationCallback(self), self._epochs, self.sparsity, self.ema, self._gradients, FiniteCallback(self),
            self._continuation,
        )  # fmt: skip
        self._own_callbacks = [callback for callback in chosen if callback is not None]
        for callback in self._own_callbacks:
            self.add_callback(callback)

    def _hold_out(self, pairs: PairedDataset, args: GSLoraTrainingArguments) -> tuple[PairedDataset, Any]:
        from datasets import concatenate_datasets

        (retain, kept), (forget, gone) = (
            train_validation_split(dataset, self.label_column, args.validation_fraction, args.seed)
            for dataset in (pairs.retain, pairs.forget)
        )
        return PairedDataset(retain, forget), concatenate_datasets([kept, gone])

    # Loss

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        if not model.training:
            loss, outputs = self.task_objective.evaluation_step(model, inputs)
            return (loss, outputs) if return_outputs else loss
        result = self.task_objective.training_step(model, inputs, global_mean=self._global_mean)
        self.meter.add(result)
        loss = result.loss
        if not loss.requires_grad and torch.is_grad_enabled():
            if any(parameter.requires_grad for parameter in self.groups.parameters):
                raise no_gradient(self.state.global_step + 1)
            # Every group is zero and frozen. Training stops after this step, which must still be able to go backward.
            loss = loss.detach().requires_grad_()
        if self.args.sparsity == "penalty":
            loss = loss + self.sparsity.weight_now(self.args, self.state) * self.groups.penalty()
        return (loss, {"loss": loss, **result.outputs}) if return_outputs else loss

    # Training, checkpoints, resume

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ):
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = get_last_checkpoint(str(self.args.output_dir))
            if checkpoint is None:
                raise ValueError(
                    f"there is no checkpoint in {self.args.output_dir!r} to resume from. Train without "
                    "`resume_from_checkpoint`, or give the path of one."
                )
        if checkpoint is not None:
            checkpoint = str(as_path(checkpoint, "resume_from_checkpoint"))
        state = read_state(checkpoint) if checkpoint is not None else {}
        if self.model_init is not None:
            self.accuracy_forget_before.clear()  # of the model before
        self.accuracy_forget_before.update(state.get("accuracy_forget_before", {}))
        self._logs_of_checkpoint, self.ignore_keys_for_eval = state.get("logs"), ignore_keys_for_eval
        try:
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            # Also after an error: the model is an ordinary PEFT model again, and evaluation scores its weights.
            self.groups.thaw()
            self.is_in_train = False
        if output.global_step == 0 or (checkpoint is None and self._gradients.changed_nothing):
            raise no_step(output.global_step)
        return output

    def _inner_training_loop(self, *args: Any, **kwargs: Any):
        self.meter = LossMeter()
        self._continuation.load(self._logs_of_checkpoint)
        # Last, because it may end an epoch, and every other callback has to begin before that.
        self.remove_callback(self._continuation)
        self.add_callback(self._continuation)
        self._forget_preparation()
        pairs = self._train_batch_size // max(self.args.n_gpu, 1)
        logger.info(f"Joint batches: {pairs} samples to keep and as many to forget on each device")
        # Running statistics belong to no adapter: they would be lost wherever it is loaded.
        with batch_norm_frozen(self.model), reentrant_checkpoints(self.model):
            return super()._inner_training_loop(*args, **kwargs)

    def _forget_preparation(self) -> None:
        """Undo what evaluation before training did to the model.

        It marks the model as prepared, so that training would not wrap it in DDP: every process would train alone.
        """
        if self.model_wrapped is self.model:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.model.__dict__.pop("_is_accelerate_prepared", None)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self._continuation.stopped:
            super()._run_epoch(*args, **kwargs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._continuation.grad_norm = norm = super()._get_grad_norm(*args, **kwargs)
        return norm

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle: nothing reads it, and it must not be published by accident.
        pickled = os.path.join(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME)
        if self.args.should_save and os.path.exists(pickled):
            os.remove(pickled)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A run resumed from here freezes what is zero; so must the one that goes on.
        if not self.sparsity.settled:
            self.sparsity.settle(self.control)
        logs = self._continuation.state()
        folder = os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        with whole_checkpoint(folder, removes=self.args.should_save):
            if self.args.should_save:
                write_state(folder, {"accuracy_forget_before": self.accuracy_forget_before, "logs": logs})
                if self.ema:
                    self.ema.save(folder)
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_adapters(self.model, resume_from_checkpoint)
        if self.ema:
            self.ema.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        # A group that is zero now may have been alive in the best checkpoint.
        self.groups.thaw()
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))
