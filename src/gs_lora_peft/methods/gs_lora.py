"""GS-LoRA: one LoRA adapter whose groups are driven to exactly zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from ..objectives import Objective, ObjectiveOutput
from ..training import GROUP_OPTIONS, LOSS_OPTIONS, ForgettingTrainer, GSLoraTrainingArguments, Method, TrainedAdapter
from ..tuner import LoraGroups
from .selection import gains, gains_for_their_cost, keep_best, number_to_keep
from .sparsity import EMACallback, SparsityCallback

logger = logging.get_logger(__name__)


@dataclass(kw_only=True)
class GSLora(Method):
    """Trains one LoRA adapter with group sparsity, and optionally keeps a moving average of it.

    GS-LoRA (https://arxiv.org/abs/2403.11530) and GS-LoRA++ (https://arxiv.org/abs/2501.09705). Its hyper-parameters
    are those of [`GSLoraTrainingArguments`].
    """

    name = "gs_lora"
    trains = "adapter"
    reads = LOSS_OPTIONS | GROUP_OPTIONS
    title = "GS-LoRA, https://arxiv.org/abs/2403.11530"

    @property
    def groups(self) -> LoraGroups:
        return cast(TrainedAdapter, self.trainer.trained).groups

    def callbacks(self) -> Sequence[TrainerCallback]:
        self.sparsity = SparsityCallback(self.groups)
        selects = self.trainer.args.sparsity == "select"
        self._number = number_to_keep(self.trainer.args.select_groups, self.groups) if selects else None
        self.ema = EMACallback(self.groups) if self.trainer.args.ema_decay > 0 else None
        # Itself first: it chooses groups when the training begins, and the sparsity freezes the others.
        return [self, self.sparsity, *([self.ema] if self.ema else [])]

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._number is not None and state.global_step == 0:
            trainer = cast(ForgettingTrainer, self.trainer)
            scores = gains_for_their_cost(gains(trainer, self.groups))
            kept = keep_best(self.groups, scores, self._number)
            logger.info(f"{len(kept)} of {len(self.groups)} groups train: {', '.join(kept)}")

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        args, state = self.trainer.args, self.trainer.state
        if args.sparsity != "penalty":
            return output.loss
        return output.loss + self.sparsity.weight_now(args, state) * self.groups.penalty()

    def logs(self) -> dict[str, Tensor]:
        own = super().logs()
        norms = [own[f"group_norm/{name}"] for name in self.groups.names]
        return {**own, "sparsity_term": self._sparsity_term(norms)}

    def _sparsity_term(self, norms: Sequence[Tensor]) -> Tensor:
        """α · Σ ‖g‖, with the factor √n_g of the proximal step for each group."""
        args = self.trainer.args
        shrinks = args.sparsity in ("proximal", "penalty")
        weight = self.sparsity.weight_now(args, self.trainer.state) if shrinks else 0.0
        scales = [size**0.5 if args.sparsity == "proximal" else 1.0 for size in self.groups.sizes]
        return weight * sum((scale * norm for scale, norm in zip(scales, norms, strict=True)), norms[0].new_zeros(()))

    def evaluated(self) -> AbstractContextManager[Any]:
        return self.ema.in_place() if self.ema else nullcontext()

    def save(self, folder: str) -> None:
        # A training resumed from here freezes the zero groups, and so must this one.
        if not self.sparsity.up_to_date:
            self.sparsity.freeze_zero_groups(self.trainer.control)
        if self.ema and self.trainer.args.should_save:
            self.ema.save(folder)

    def load(self, folder: str) -> None:
        if self.ema:
            self.ema.load(folder)

    def release(self) -> None:
        self.groups.thaw()


class GSLoraTrainer(ForgettingTrainer):
    """Makes a classifier or a detector forget some classes and keep the rest, with GS-LoRA.

    Trains one LoRA adapter with group sparsity. Minimises L_retain + β · ReLU(BND − L_forget) + sparsity (GS-LoRA,
    https://arxiv.org/abs/2403.11530). Every batch holds as many samples to keep as samples to forget and goes through
    the model once. An epoch runs over the larger of the two sets (`epoch_covers`), and the other one cycles.
    Everything else is [`transformers.Trainer`]: `accelerate launch`, mixed precision, gradient accumulation, trackers,
    checkpoints and bit-exact resume. With `forget_loss="cross_entropy"` and gradient accumulation the bound acts on
    each joint micro-batch (averaged over processes).

    Args:
        model (`PeftModel`, *optional*, needed unless `model_init` is given):
            A classifier or a detector with exactly one adapter that trains, from `get_peft_model(model,
            GSLoraConfig())`. BatchNorm layers of its base stay in eval mode.
        args ([`GSLoraTrainingArguments`], *optional*):
            By default `GSLoraTrainingArguments("forgetting")`.
        forget_dataset (map-style dataset):
            D_f, samples of the classes to forget.
        retain_dataset (map-style or iterable dataset):
            D_r, samples of the classes to keep. Of a stream (an `IterableDataset` of `datasets` or torch) all rows are
            used whose classes are not to forget, old or missing (docs/scale.md).
        eval_dataset (map-style dataset or dict of them, *optional*):
            Labelled samples of all classes. Evaluation reports `eval_acc_forget`, `eval_acc_retain`, `eval_acc_old`,
            `eval_acc_missing` and `eval_h_mean`, each in [0, 1] (for a dict `eval_<name>_h_mean` ...; for a detector
            `eval_ap_forget` ..., see [`detection_scores`]), and leaves out scores without samples. Which class
            belongs to which set follows from the training sets, `forget_classes`, `old_classes` and `missing_classes`.
        forget_classes (`Sequence[int]`, *optional*):
            The classes to forget; by default those of `forget_dataset`. Needed with annotated boxes, because an image
            may show objects of both kinds.
        old_classes (`Sequence[int]`, *optional*):
            Classes that earlier tasks forgot, for `eval_acc_old`.
        missing_classes (`Sequence[int]`, *optional*):
            Classes to keep that have no training data, for `eval_acc_missing`. Every class of the head that is in no
            training set and not in `old_classes` is one, named or not: a classifier's losses leave them out, and
            `distillation_weight` holds them.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the integer labels, or of the annotated boxes, see [`prepare_boxes`].
        processing_class (*optional*):
            The model's image processor, tokenizer or feature extractor, or a processor of several of these. Without
            `data_collator`, [`RowCollator`] uses it to collate rows, or with boxes [`DetectionCollator`].
        data_collator (`Callable`, *optional*):
            Collates a list of samples into a batch with a `labels` key.
        augment (`Callable`, *optional*):
            From an image, as in the data, to a random view of it, for `augmentation` and `prototype_augmentations`;
            by default RandAugment, see [`rand_augment`].
        objective ([`Objective`] or `str`, *optional*):
            What "forget" and "retain" mean, in place of the options for losses in `args`; by default what suits the
            model, see [`objective_for`]. A `str` names the kind of model, see `OBJECTIVES`.
        model_init (`Callable`, *optional*):
            Makes a fresh model with its adapter, at the start of every training; in place of `model`, for
            [`~GSLoraTrainer.hyperparameter_search`].
        kwargs:
            As for [`transformers.Trainer`].

    Raises:
        ValueError: Before any training, if the model has no class head ([`check_class_head`], unless an `objective` is
            given), a data set is missing or empty, the two sets share classes, `forget_classes` is missing with
            annotated boxes, a label lies outside the head, not exactly one adapter and nothing else trains, a
            checkpoint belongs to another model, the metric of the best model cannot be computed on `eval_dataset`, or
            with FSDP 1 or DeepSpeed (docs/scale.md).
        InvalidInputError: If an inherited option cannot be obeyed (docs/training.md).
        NoGradientError: At the first step, if no gradient reaches the adapter.
        NoStepError: At the end of a training, if the optimizer changed no weight.
        NonFiniteLossError: During training, if a loss or a gradient is NaN or infinite. The model then holds the
            weights of the last step at which both were finite.

    Example:
        ```py
        >>> split = split_dataset(dataset, forget=["tench"], label_column="label")
        >>> trainer = GSLoraTrainer(model, args, forget_dataset=split.forget, retain_dataset=split.retain)
        >>> trainer.train()
        ```
    """

    model: PeftModel
    method: GSLora

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
        objective: Objective | str | None = None,
        model_init: Callable[..., PeftModel] | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            model,
            args,
            method=GSLora(),
            forget_dataset=forget_dataset,
            retain_dataset=retain_dataset,
            eval_dataset=eval_dataset,
            forget_classes=forget_classes,
            old_classes=old_classes,
            missing_classes=missing_classes,
            label_column=label_column,
            processing_class=processing_class,
            data_collator=data_collator,
            augment=augment,
            objective=objective,
            model_init=model_init,
            **kwargs,
        )

    @property
    def groups(self) -> LoraGroups:
        """Groups of the adapter that trains."""
        return self.method.groups

    @property
    def adapter_name(self) -> str:
        """Name of the adapter that trains."""
        return cast(TrainedAdapter, self.trained).adapter

    @property
    def sparsity(self) -> SparsityCallback:
        """The callback that takes the proximal steps."""
        return self.method.sparsity

    @property
    def ema(self) -> EMACallback | None:
        """The callback that keeps the moving average, or `None` without one."""
        return self.method.ema
