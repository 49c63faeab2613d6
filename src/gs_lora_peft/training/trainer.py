"""The Trainer that forgets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from ..data.augmentation import AugmentedPairs, NumberedSampler
from ..data.pairing import PairedCollator, PairedDataset, PairedSampler, default_collator
from ..data.splitting import train_validation_split
from ..objectives import Objective, objective_for
from ..storage import as_path
from ..tuner import LoraGroups
from ..tuner.batch_norm import batch_norm_frozen
from .arguments import GSLoraTrainingArguments
from .callbacks import EMACallback, SamplerEpochCallback, SparsityCallback
from .checkpoints import load_adapters, read_state, write_state
from .checks import (
    check_distribution,
    check_evaluation,
    check_hold_out,
    check_labels,
    check_types,
    class_ids,
    classes_of_task,
    training_adapter,
    without_data,
)
from .evaluation import ForgettingEvaluation
from .guard import FiniteCallback
from .meter import LossMeter
from .preparing import chosen_augmentation, prepare_objective
from .publishing import AdapterPublishing


class GSLoraTrainer(ForgettingEvaluation, AdapterPublishing):
    """
    Makes a classifier or a detector forget some classes and keep the rest, by training one LoRA adapter with group
    sparsity.

    Minimises L_retain + β · ReLU(BND − L_forget) + sparsity (GS-LoRA, https://arxiv.org/abs/2403.11530). Every batch
    holds as many samples to keep as samples to forget and goes through the model once. An epoch runs over the retain
    set; the forget set cycles. Everything else is [`transformers.Trainer`]: `accelerate launch`, mixed precision,
    gradient accumulation, trackers, checkpoints and bit-exact resume. With `forget_loss=
    "cross_entropy"` and gradient accumulation the bound acts on each joint micro-batch (averaged over processes).

    Args:
        model (`PeftModel`):
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
            Needed with annotated boxes, for images may show objects of both kinds.
        old_classes (`Sequence[int]`, *optional*): classes that earlier tasks forgot, for `eval_acc_old`.
        missing_classes (`Sequence[int]`, *optional*): classes to keep that have no training data, for
            `eval_acc_missing`. Every class of the head that is in no training set and not in `old_classes` is one,
            named or not: a classifier's losses leave them out, and `distillation_weight` holds them.
        label_column (`str`, *optional*, defaults to `"label"`): column of the integer labels, or of the annotated
            boxes, see [`prepare_boxes`].
        processing_class (*optional*): the model's image processor; with it, rows that hold images are collated by
            [`ImageCollator`] or, with boxes, [`DetectionCollator`], unless a `data_collator` is given.
        data_collator (`Callable`, *optional*): collates a list of samples into a batch with a `labels` key.
        augment (`Callable`, *optional*): from an image, as the data holds it, to a random view of it, for
            `augmentation` and `prototype_augmentations`; by default RandAugment, see [`rand_augment`].
        objective ([`Objective`], *optional*): what "forget" and "retain" mean, instead of what `args` says of losses;
            by default what suits the model, see [`objective_for`].
        kwargs: as for [`transformers.Trainer`].

    Raises:
        ValueError: before any training, if a data set is missing or empty, if the two sets share classes, if of
            annotated boxes it is not said what is to be forgotten, if a label lies outside the head, if not exactly
            one adapter and nothing else trains, if a checkpoint belongs to another model, if the metric of the best
            model cannot be computed on `eval_dataset`, or with FSDP or DeepSpeed.
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
    objective: Objective
    train_dataset: PairedDataset

    def __init__(
        self,
        model: PeftModel,
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
        **kwargs: Any,
    ):
        args = args if args is not None else GSLoraTrainingArguments(output_dir="forgetting")
        check_types(
            model=model,
            args=args,
            label_column=label_column,
            data_collator=data_collator,
            augment=augment,
            callbacks=kwargs.get("callbacks"),
        )
        _check_arguments(args, eval_dataset, kwargs)
        pairs = PairedDataset(retain_dataset, forget_dataset)
        self.label_column = label_column
        self.forget_classes, self.retain_classes = classes_of_task(
            forget_dataset, retain_dataset, label_column, model, forget_classes
        )
        self.old_classes = class_ids("old_classes", old_classes)
        named = class_ids("missing_classes", missing_classes)
        check_labels(model, self.forget_classes, self.retain_classes, self.old_classes, named)
        silent = without_data(model, self.forget_classes, self.retain_classes, self.old_classes)
        self.missing_classes = sorted({*named, *silent})
        self.adapter_name = training_adapter(model)
        if args.validation_fraction > 0 and eval_dataset is None:
            check_hold_out(retain_dataset, label_column)
            pairs, eval_dataset = self._hold_out(pairs, args)
        if eval_dataset is not None:
            check_evaluation(self, model, eval_dataset, args, own_metrics="compute_metrics" in kwargs)

        data_collator = data_collator or default_collator(processing_class, label_column, retain_dataset)
        self.augmentation = chosen_augmentation(args, augment, data_collator)
        if self.augmentation and args.augmentation:
            pairs = AugmentedPairs(pairs.retain, pairs.forget, self.augmentation)

        self.groups = LoraGroups(model, self.adapter_name)
        if objective is None:
            classes = {"forget_classes": self.forget_classes, "missing_classes": self.missing_classes}
            objective = objective_for(model, args, **classes, adapter=self.adapter_name)
        self.objective = objective
        self.meter = LossMeter()
        super().__init__(
            model=model,
            args=args,
            train_dataset=pairs,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        # The Trainer's own search looks for labels in a forward that PeftModel hides.
        self.label_names = ["labels"]
        # The model never computes the loss, so nobody has to count its labels (a host synchronisation a step).
        self.model_accepts_loss_kwargs = False
        check_distribution(self)
        self.sparsity = SparsityCallback(self.groups)
        self.ema = EMACallback(self.groups) if args.ema_decay > 0 else None
        self._epochs = SamplerEpochCallback()
        for callback in (self._epochs, self.sparsity, self.ema, FiniteCallback(self)):
            if callback is not None:
                self.add_callback(callback)

    def _hold_out(self, pairs: PairedDataset, args: GSLoraTrainingArguments) -> tuple[PairedDataset, Any]:
        from datasets import concatenate_datasets

        (retain, kept), (forget, gone) = (
            train_validation_split(dataset, self.label_column, args.validation_fraction, args.seed)
            for dataset in (pairs.retain, pairs.forget)
        )
        return PairedDataset(retain, forget), concatenate_datasets([kept, gone])

    # Data

    def get_train_dataloader(self):
        pairs_only = self.data_collator
        self.data_collator = PairedCollator(pairs_only, self.forget_classes)
        try:
            return self._get_dataloader(
                dataset=self.train_dataset,
                description="Training",
                batch_size=self._train_batch_size,
                sampler_fn=self._get_train_sampler,
                is_training=True,
            )
        finally:
            self.data_collator = pairs_only

    def _get_train_sampler(self, train_dataset: Any = None) -> PairedSampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        kind = NumberedSampler if isinstance(dataset, AugmentedPairs) else PairedSampler
        sampler = kind(
            len(dataset.retain),
            len(dataset.forget),
            global_batch_size=self._train_batch_size * self.args.world_size,
            seed=self.args.drawing_seed,
            drop_last=self.args.dataloader_drop_last,
        )
        self._epochs.sampler = sampler
        return sampler

    # Loss

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        if not model.training:
            loss, outputs = self.objective.evaluation_step(model, inputs)
            return (loss, outputs) if return_outputs else loss
        result = self.objective.training_step(model, inputs, global_mean=self._global_mean)
        self.meter.add(result)
        loss = result.loss
        if self.args.sparsity == "penalty":
            loss = loss + self.sparsity.weight_now(self.args, self.state) * self.groups.penalty()
        if not loss.requires_grad:
            # Every group is zero and frozen. Training stops after this step, which must still be able to go backward.
            loss = loss.detach().requires_grad_()
        return (loss, {}) if return_outputs else loss

    def _global_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="mean") if self.args.world_size > 1 else tensor

    # Logs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and (means := self.meter.means()) is not None:
            logs.update(self._training_logs(self._global_mean(means)))
        super().log(logs, *args, **kwargs)

    def _training_logs(self, means: torch.Tensor) -> dict[str, float]:
        """Losses, accuracies, the sparsity term, active groups and every group's norm, in one host synchronisation."""
        norms = self.groups.norms()
        values = torch.cat([means, norms.to(means.device)]).tolist()
        names = [*self.meter.names, *(f"group_norm/{name}" for name in self.groups.names)]
        norm_values = values[len(self.meter.names) :]
        return {
            **dict(zip(names, values, strict=True)),
            "sparsity_term": self._sparsity_term(norm_values),
            "active_groups": float(sum(norm > 0 for norm in norm_values)),
        }

    def _sparsity_term(self, norms: Sequence[float]) -> float:
        """α · Σ ‖g‖, with the factor √n_g that the proximal step gives each group."""
        if self.args.sparsity == "none":
            return 0.0
        scales = [size**0.5 if self.args.sparsity == "proximal" else 1.0 for size in self.groups.sizes]
        weight = self.sparsity.weight_now(self.args, self.state)
        return weight * sum(scale * norm for scale, norm in zip(scales, norms, strict=True))

    # Training, checkpoints, resume

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ):
        self.meter = LossMeter()
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
            self.accuracy_forget_before.update(read_state(checkpoint).get("accuracy_forget_before", {}))
        if self.args.eval_strategy != "no" and not self.accuracy_forget_before:
            self.measure_before()
        self._forget_preparation()
        prepare_objective(self)
        try:
            # Running statistics belong to no adapter: they would be lost wherever it is loaded.
            with batch_norm_frozen(self.model):
                return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            # Also after an error: the model is an ordinary PEFT model again, and evaluation scores its weights.
            self.groups.thaw()
            self.is_in_train = False

    def _forget_preparation(self) -> None:
        """Undo what evaluation before training did to the model.

        It marks the model as prepared, so that training would not wrap it in DDP: every process would train alone.
        """
        if self.model_wrapped is self.model:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.model.__dict__.pop("_is_accelerate_prepared", None)

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
        if self.args.should_save:
            folder = os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            write_state(folder, {"accuracy_forget_before": self.accuracy_forget_before})
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


def _check_arguments(args: Any, eval_dataset: Any, kwargs: dict[str, Any]) -> None:
    for name in ("train_dataset", "model_init", "compute_loss_func"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"GSLoraTrainer takes no `{name}`: it trains the given model's adapter on pairs of `retain_dataset` "
                "and `forget_dataset`, with the loss of GS-LoRA."
            )
    if args.eval_strategy != "no" and eval_dataset is None and args.validation_fraction == 0:
        raise ValueError(
            f"`eval_strategy`={IntervalStrategy(args.eval_strategy).value!r} needs something to evaluate on: give "
            "`eval_dataset`, or hold a part of the training data out with `validation_fraction` (never the test data)."
            " Hold annotated boxes out with train_validation_split instead, for GSLoraTrainer's `eval_dataset`; a "
            "ContinualForgetter scores detectors after each task alone, with `eval_strategy`='no'."
        )
