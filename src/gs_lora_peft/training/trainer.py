"""The Trainer that forgets, with any method."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, enable_full_determinism, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput, get_last_checkpoint
from transformers.utils import logging

from ..compat import batch_norm_frozen, undo_preparation
from ..data import (
    AugmentedPairs,
    PairedDataset,
    check_given_labels,
    default_collator,
    is_object_column,
)
from ..errors import InvalidInputError
from ..io import as_path
from ..objectives import LossMeter, Objective, ObjectiveOutput, kind_of
from .arguments import GSLoraTrainingArguments
from .checkpoints import load_adapters, load_weights, read_state, whole_checkpoint, write_state
from .checks import check_arguments, check_evaluation, check_model, check_types, classes_of_task, roles_of_task
from .evaluation import AdapterSearch, ForgettingEvaluation
from .gradients import (
    GradientCallback,
    NoGradientError,
    NonFiniteCallback,
    NoStepError,
    Watching,
    check_checkpointing,
    reentrant_checkpoints,
)
from .inherited import check_by_trainer, check_distribution
from .logs import LogContinuation, TrainingLogs
from .method import Method
from .prefix.running import FrozenPrefix
from .processes.replicated import ReplicatedTraining, shard_if_asked
from .publishing import AdapterPublishing, check_publishing
from .reading import warn_not_held
from .samples.batches import (
    PairedBatches,
    PreparationCallback,
    SamplerEpochCallback,
    chosen_augmentation,
    held_out,
)
from .samples.streams import opened

logger = logging.get_logger(__name__)


class ForgettingTrainer(
    PairedBatches, ReplicatedTraining, TrainingLogs, AdapterSearch, ForgettingEvaluation, AdapterPublishing
):
    """Makes a model forget some classes and keep the rest, with a [`Method`].

    Every batch holds as many samples to keep as samples to forget and goes through the model once. An epoch runs over
    the larger of the two sets (`epoch_covers`), and the other one cycles. The objective computes the losses of a joint
    batch; the method chooses what trains and the loss to minimise. Everything else is [`transformers.Trainer`]:
    `accelerate launch`, mixed precision, gradient accumulation, trackers, checkpoints and bit-exact resume. BatchNorm
    layers stay in eval mode.

    Args:
        model (`torch.nn.Module`, *optional*, needed unless `model_init` is given):
            A `PeftModel` with one LoRA adapter that trains, or a model without adapters, as the method needs it.
        args ([`GSLoraTrainingArguments`], *optional*):
            By default `GSLoraTrainingArguments("forgetting")`.
        method ([`Method`]):
            The way to forget, see [`~methods.get_method`].
        forget_dataset (map-style dataset):
            D_f, samples of the classes to forget.
        retain_dataset (map-style or iterable dataset):
            D_r, samples of the classes to keep.
        eval_dataset (map-style dataset or dict of them, *optional*):
            Labelled samples of all classes, scored by role of the class.
        forget_classes (`Sequence[int]`, *optional*):
            Ids of the classes to forget; by default those of `forget_dataset`.
        old_classes (`Sequence[int]`, *optional*):
            Ids of the classes that earlier tasks forgot.
        missing_classes (`Sequence[int]`, *optional*):
            Ids of the classes to keep that have no training data.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the integer labels, or of the annotated boxes.
        processing_class (*optional*):
            The model's image processor, tokenizer or feature extractor.
        data_collator (`Callable`, *optional*):
            Collates a list of samples into a batch with a `labels` key.
        augment (`Callable`, *optional*):
            From an image to a random view of it.
        objective ([`Objective`] or `str`, *optional*):
            What "forget" and "retain" mean, or the kind of model (a name in `OBJECTIVES`); by default what suits the
            model.
        model_init (`Callable`, *optional*):
            Makes a fresh model at the start of every training, in place of `model`.
        kwargs:
            As for [`transformers.Trainer`].

    Raises:
        ValueError: As for [`GSLoraTrainer`].
        InvalidInputError: If the method cannot obey `args` or train `model`, or `push_to_hub` is set with a method
            that leaves no adapter.

    Example:
        ```py
        >>> from gs_lora_peft.methods import get_method
        >>> from gs_lora_peft.training import ForgettingTrainer

        >>> trainer = ForgettingTrainer(
        ...     model, args, method=get_method("ffn"), forget_dataset=split.forget, retain_dataset=split.retain
        ... )
        >>> trainer.train()
        ```
    """

    # Both losses are batch means; the Trainer must divide them by the accumulation steps.
    loss_is_scaled_for_ga = False

    method: Method

    def __init__(
        self,
        model: nn.Module | None = None,
        args: GSLoraTrainingArguments | None = None,
        *,
        method: Method,
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
        objective: Objective | str | None = None,
        model_init: Callable[..., nn.Module] | None = None,
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
        if not isinstance(method, Method):
            fix = "Get one by its name: gs_lora_peft.methods.get_method(name)."
            raise InvalidInputError("method", method, "a Method", fix)
        method.check(args)
        self._given_method, self._given_objective, self.args = method, objective, args
        retain_dataset = opened(retain_dataset, label_column, args)
        pairs = PairedDataset(retain_dataset, forget_dataset)
        if model is None:
            # As the Trainer does it: the seed decides the start of the adapter.
            enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
            self.model_init = cast(Any, model_init)
            model = super().call_model_init()
        if objective is None or isinstance(objective, str):
            kind_of(model, objective).check(model)
        self.label_column = label_column
        self.has_boxes = is_object_column(retain_dataset, label_column)
        others = old_classes, missing_classes
        classes = classes_of_task(forget_dataset, retain_dataset, label_column, model, forget_classes, *others)
        self.roles = roles_of_task(model, *classes, old_classes, missing_classes)
        warn_not_held(self.roles.missing, method.reads, method.name)
        self._take(model)
        check_publishing(args, self.method, self.trained)
        if args.validation_fraction > 0 and eval_dataset is None:
            pairs, eval_dataset = held_out(pairs, label_column, args)

        data_collator = data_collator or default_collator(
            processing_class, label_column, forget_dataset if pairs.streams else retain_dataset
        )
        check_given_labels(pairs.sets(), label_column, data_collator)
        self.augmentation = chosen_augmentation(args, augment, data_collator)
        if self.augmentation and args.augmentation:
            pairs = AugmentedPairs(pairs.retain, pairs.forget, self.augmentation)

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
        # The model does not compute the loss, so its labels need no counting (a host synchronisation a step).
        self.model_accepts_loss_kwargs = False
        check_distribution(self)
        check_by_trainer(self)
        check_checkpointing(args, model)
        if args.remove_unused_columns:
            self._filter_columns(label_column)
        self.ignore_keys_for_eval: list[str] | None = None
        self._resumed = False
        self._own_callbacks: list[TrainerCallback] = []
        self._make_callbacks()
        self._get_train_sampler()  # raises if the batch size leaves no batch

    @property
    def forget_classes(self) -> list[int]:
        return list(self.roles.forget)

    @property
    def retain_classes(self) -> list[int]:
        return list(self.roles.retain)

    @property
    def old_classes(self) -> list[int]:
        return list(self.roles.old)

    @property
    def missing_classes(self) -> list[int]:
        return list(self.roles.missing)

    def _take(self, model: nn.Module) -> None:
        self.method = self._given_method.of(self)
        self.trained = self.method.take(model)
        shard_if_asked(model, self.args, trains_weights=self.trained.adapter is None)

    def _objective_for(self, model: nn.Module, args: GSLoraTrainingArguments) -> Objective:
        given = self._given_objective
        return self.method.objective(model, args, given) if given is None or isinstance(given, str) else given

    def _make_callbacks(self) -> None:
        """Makes the callbacks for the present model and arguments, in place of earlier ones."""
        for callback in self._own_callbacks:
            self.remove_callback(callback)
        of_method = self.method.callbacks()
        self._sampler_epoch = SamplerEpochCallback()
        self._gradients = GradientCallback(self, self.method.takes_steps)
        self._continuation = LogContinuation(self)
        self.prefix = FrozenPrefix(self)
        non_finite = NonFiniteCallback(self, [callback for callback in of_method if isinstance(callback, Watching)])
        # A method may edit weights as soon as it begins: callbacks that measure or copy them come first.
        self._own_callbacks = [
            PreparationCallback(self), self._sampler_epoch, self._gradients, *of_method, non_finite, self._continuation
        ]  # fmt: skip
        for callback in self._own_callbacks:
            self.add_callback(callback)

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        if not model.training:
            loss, outputs = self.task_objective.evaluation_step(model, inputs)
            return (loss, outputs) if return_outputs else loss
        with self.prefix.of_batch(model, inputs):
            result = self._training_losses(model, inputs)
        self.meter.add(result)
        return (result.loss, {"loss": result.loss, **result.outputs}) if return_outputs else result.loss

    def _training_losses(self, model: nn.Module, inputs: dict[str, Any]) -> ObjectiveOutput:
        result = self.task_objective.training_step(model, inputs, global_mean=self.global_mean)
        if not result.loss.requires_grad and torch.is_grad_enabled():
            if any(parameter.requires_grad for parameter in self.trained.parameters):
                raise NoGradientError(self.state.global_step + 1)
            # All that trains is frozen. Training stops after this step, which still needs a backward pass.
            result.loss = result.loss.detach().requires_grad_()
        result.loss = self.method.loss(model, inputs, result)
        return result

    # Training, checkpoints, resume

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = get_last_checkpoint(str(self.args.output_dir))
            if checkpoint is None:
                raise InvalidInputError(
                    "resume_from_checkpoint",
                    True,
                    f"a checkpoint in {self.args.output_dir!r}, where there is none",
                    "Train without it, or give the path of one.",
                )
        if checkpoint is not None:
            checkpoint = str(as_path(checkpoint, "resume_from_checkpoint"))
        self._resumed = checkpoint is not None
        state = read_state(checkpoint) if checkpoint is not None else {}
        if self.model_init is not None:
            self.accuracy_forget_before.clear()  # of the model before
        self.accuracy_forget_before.update(state.get("accuracy_forget_before", {}))
        self._logs_of_checkpoint, self.ignore_keys_for_eval = state.get("logs"), ignore_keys_for_eval
        try:
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            # Also after an error, so that evaluation scores the weights of an ordinary model.
            self.method.release()
            self.is_in_train = False
        self.check_trained()
        return output

    def check_trained(self) -> None:
        """Checks that the last training changed the weights; [`~ForgettingTrainer.train`] calls it at its end.

        Raises:
            NoStepError: If it did not.
        """
        takes_steps, steps = self.method.takes_steps, self.state.global_step
        # A training that is resumed at its end changes nothing, and need not.
        if (takes_steps and steps == 0) or (not self._resumed and self._gradients.changed_nothing):
            raise NoStepError(steps, None if takes_steps else self.method.name)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self.meter = LossMeter()
        self._continuation.load(self._logs_of_checkpoint)
        self.remove_callback(self._continuation)
        self.add_callback(self._continuation)  # last: it may end an epoch, which every other callback has to begin
        # A mark of evaluation before training would keep DDP from wrapping the model.
        if self.model_wrapped is self.model:
            undo_preparation(self.model)
        pairs = self._train_batch_size // max(self.args.n_gpu, 1)
        logger.info(f"Joint batches: {pairs} samples to keep and as many to forget on each device")
        # An adapter does not save running statistics: they would be lost when it is loaded.
        with batch_norm_frozen(self.model), reentrant_checkpoints(self.model), self.trained.in_training(), self.prefix:
            return super()._inner_training_loop(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.method.takes_steps:
            self._continuation.end_epoch()
            self.control.should_training_stop = True
        elif not self._continuation.stopped:
            super()._run_epoch(*args, **kwargs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._continuation.grad_norm = norm = super()._get_grad_norm(*args, **kwargs)
        return norm

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # Nothing reads this pickle, and it must not be published by accident.
        pickled = os.path.join(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME)
        if self.args.should_save and os.path.exists(pickled):
            os.remove(pickled)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        logs = self._continuation.state()
        folder = os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        with whole_checkpoint(folder, removes=self.args.should_save):
            if self.args.should_save:
                write_state(folder, {"accuracy_forget_before": self.accuracy_forget_before, "logs": logs})
            self.method.save(folder)
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PeftModel):
            load_adapters(self.model, resume_from_checkpoint)
        elif isinstance(self.model, PreTrainedModel):
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.method.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        # The method may have frozen weights that still train in the best checkpoint.
        self.method.release()
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))
