"""The Trainer that forgets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn
from transformers import BaseImageProcessor, Trainer, TrainerCallback, default_data_collator
from transformers.trainer import TRAINING_ARGS_NAME

from ..data.pairing import ImageCollator, PairedCollator, PairedDataset, PairedSampler
from ..data.splits import train_validation_split
from ..metrics.scores import continual_forgetting_scores
from ..objectives import ClassificationObjective
from ..tuner import LoraGroups, trainable_adapters
from .arguments import GSLoraTrainingArguments
from .callbacks import EMACallback, SparsityCallback
from .checks import NonFiniteLossError, check_distribution, check_labels, classes_of
from .meter import LossMeter

STATE_FILE = "forgetting_state.json"


class GSLoraTrainer(Trainer):
    """
    Makes a classifier forget some classes and keep the rest, by training one LoRA adapter with group sparsity.

    Minimises L_retain + β · ReLU(BND − L_forget) + sparsity (GS-LoRA, https://arxiv.org/abs/2403.11530). Every batch
    holds as many samples to keep as samples to forget and goes through the model once. An epoch runs over the retain set;
    the forget set cycles. Everything else is [`transformers.Trainer`]: `accelerate launch`, mixed precision, gradient
    accumulation, trackers, checkpoints and bit-exact resume. Under gradient accumulation the bound acts on each
    joint micro-batch (averaged over processes).

    Args:
        model (`PeftModel`): a classifier with exactly one adapter that trains, from `get_peft_model(model, GSLoraConfig())`.
        args ([`GSLoraTrainingArguments`], *optional*): by default those with `output_dir="forgetting"`.
        forget_dataset (map-style dataset): D_f, samples of the classes to forget.
        retain_dataset (map-style dataset): D_r, samples of the classes to keep.
        eval_dataset (map-style dataset or dict of them, *optional*): labelled samples of all classes. Evaluation reports
            `eval_acc_forget`, `eval_acc_retain`, `eval_acc_old` and `eval_h_mean`, each in [0, 1]. Which class belongs to
            which set follows from the training sets and `old_classes`.
        old_classes (`Sequence[int]`, *optional*): classes that earlier tasks forgot, for `eval_acc_old`.
        label_column (`str`, *optional*, defaults to `"label"`): column of the integer labels.
        processing_class (*optional*): the model's image processor; with it, rows that hold images are collated by
            [`ImageCollator`] unless a `data_collator` is given.
        data_collator (`Callable`, *optional*): collates a list of samples into a batch with a `labels` key.
        kwargs: as for [`transformers.Trainer`].

    Raises:
        ValueError: before any training, if a data set is missing or empty, if the two sets share classes, if a label lies
            outside the head, if no or more than one adapter trains, or if parameters would be sharded (FSDP, ZeRO-3).
        NonFiniteLossError: during training, at a NaN or infinite loss; the weights are those before the bad step.

    Example:

        ```py
        >>> split = split_dataset(dataset, forget=["tench"], label_column="label")
        >>> trainer = GSLoraTrainer(model, args, forget_dataset=split.forget, retain_dataset=split.retain)
        >>> trainer.train()
        ```
    """

    # Both losses are batch means; the Trainer must divide them by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PeftModel,
        args: GSLoraTrainingArguments | None = None,
        *,
        forget_dataset: Any,
        retain_dataset: Any,
        eval_dataset: Any = None,
        old_classes: Sequence[int] = (),
        label_column: str = "label",
        processing_class: Any = None,
        data_collator: Any = None,
        **kwargs: Any,
    ):
        args = args or GSLoraTrainingArguments(output_dir="forgetting")
        self.label_column = label_column
        if args.validation_fraction > 0 and eval_dataset is None:
            retain_dataset, forget_dataset, eval_dataset = self._hold_out(retain_dataset, forget_dataset, args)
        if args.eval_strategy != "no" and eval_dataset is None:
            raise ValueError(
                f"`eval_strategy`={str(args.eval_strategy)!r} needs something to evaluate on: give `eval_dataset` or hold a part "
                "of the training data out with `validation_fraction` (never the test data)."
            )
        pairs = PairedDataset(retain_dataset, forget_dataset)
        self.forget_classes = classes_of(forget_dataset, label_column, "forget")
        self.retain_classes = classes_of(retain_dataset, label_column, "retain")
        self.old_classes = sorted(int(c) for c in old_classes)
        check_labels(model, self.forget_classes, self.retain_classes, self.old_classes)

        adapters = trainable_adapters(model)
        if len(adapters) != 1:
            raise ValueError(
                f"exactly one adapter must train, but {list(adapters) or 'none'} would. Wrap the model with "
                'get_peft_model(model, GSLoraConfig(...)), or choose one with model.set_adapter("name").'
            )
        self.adapter_name = adapters[0]
        self.groups = LoraGroups(model, self.adapter_name)
        self.objective = ClassificationObjective(args.forget_weight, args.forget_bound)
        self.accuracy_forget_before: float | None = None
        self._meter = LossMeter()
        if data_collator is None:
            is_image = isinstance(processing_class, BaseImageProcessor)
            data_collator = (
                ImageCollator(processing_class, label_column=label_column) if is_image else default_data_collator
            )
        kwargs.setdefault("compute_metrics", self._scores)
        super().__init__(
            model=model,
            args=args,
            train_dataset=pairs,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        # PeftModel hides the labels of the wrapped model from the Trainer's own search where the base is no transformers model.
        self.label_names = ["labels"]
        check_distribution(self)
        if args.sparsity == "proximal":
            self.add_callback(SparsityCallback(self.groups))
        self.ema = EMACallback(self.groups) if args.ema_decay > 0 else None
        if self.ema:
            self.add_callback(self.ema)
        self.add_callback(_FiniteCallback(self))

    def _hold_out(self, retain: Any, forget: Any, args: GSLoraTrainingArguments) -> tuple[Any, Any, Any]:
        from datasets import concatenate_datasets

        parts = [
            train_validation_split(dataset, self.label_column, args.validation_fraction, args.seed)
            for dataset in (retain, forget)
        ]
        return parts[0][0], parts[1][0], concatenate_datasets([held_out for _, held_out in parts])

    # Data

    def get_train_dataloader(self):
        pairs_only = self.data_collator
        self.data_collator = PairedCollator(pairs_only)
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
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        self._sampler = PairedSampler(
            len(dataset.retain),
            len(dataset.forget),
            global_batch_size=self._train_batch_size * self.args.world_size,
            seed=seed,
            drop_last=self.args.dataloader_drop_last,
        )
        return self._sampler

    # Loss

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        labels = inputs["labels"]
        # Without labels the model does not compute a loss of its own, over both halves, for nothing.
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if not model.training:
            loss = nn.functional.cross_entropy(logits.float(), labels)
            return (loss, {"logits": logits}) if return_outputs else loss
        result = self.objective(logits, labels, global_mean=self._global_mean)
        self._meter.add(result)
        loss = result.loss
        if self.args.sparsity == "penalty":
            loss = loss + self._penalty_weight() * self.groups.penalty()
        return (loss, outputs) if return_outputs else loss

    def _global_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="mean") if self.args.world_size > 1 else tensor

    def _penalty_weight(self) -> float:
        return SparsityCallback(self.groups).weight_now(self.args, self.state)

    # Logs and scores

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and (means := self._meter.means()) is not None:
            logs.update(self._training_logs(means))
        super().log(logs, *args, **kwargs)

    def _training_logs(self, means: torch.Tensor) -> dict[str, float]:
        """Both losses, both accuracies, the sparsity term, active groups and every group's norm, in one host synchronisation."""
        norms = self.groups.norms()
        values = torch.cat([means, norms]).tolist()
        names = list(LossMeter.NAMES) + [f"group_norm/{name}" for name in self.groups.names]
        norm_values = values[len(LossMeter.NAMES) :]
        return {
            **dict(zip(names, values, strict=True)),
            "sparsity_term": self._penalty_weight() * sum(norm_values) if self.args.sparsity != "none" else 0.0,
            "active_groups": float(sum(norm > 0 for norm in norm_values)),
        }

    def _scores(self, prediction: Any) -> dict[str, float]:
        scores = self._forgetting_scores(prediction, self.accuracy_forget_before)
        return {name: value for name, value in scores.items() if value is not None}

    def _forgetting_scores(self, prediction: Any, accuracy_forget_before: float | None) -> dict[str, Any]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return continual_forgetting_scores(
            np.asarray(logits).argmax(-1),
            np.asarray(prediction.label_ids),
            forget_classes=self.forget_classes,
            retain_classes=self.retain_classes,
            old_classes=self.old_classes,
            accuracy_forget_before=accuracy_forget_before,
        )

    def score(self, dataset: Any, accuracy_forget_before: float | None = None) -> dict[str, Any]:
        """Acc_r, Acc_f, Acc_o, Drop and H of the model as it is now, on any labelled data, without logging anything.

        Args:
            dataset (map-style dataset): labelled samples.
            accuracy_forget_before (`float`, *optional*): Acc_f before the task, for Drop and H.

        Returns:
            `dict`: as [`continual_forgetting_scores`] gives it.
        """
        return self._forgetting_scores(self.predict(dataset, metric_key_prefix="score"), accuracy_forget_before)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        swap = self.ema is not None and self.is_in_train
        if swap:
            self.ema.swap_in()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            if swap:
                self.ema.swap_out()

    # Training, checkpoints, resume

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        if self.eval_dataset is not None and self.args.eval_strategy != "no" and not resume_from_checkpoint:
            before = super().evaluate(metric_key_prefix="before")
            self.accuracy_forget_before = before.get("before_acc_forget")
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle: nothing reads it, and it must not be published by accident.
        pickled = os.path.join(output_dir or self.args.output_dir, TRAINING_ARGS_NAME)
        if os.path.exists(pickled):
            os.remove(pickled)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            folder = os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, STATE_FILE), "w") as file:
                json.dump({"accuracy_forget_before": self.accuracy_forget_before}, file)
            if self.ema:
                self.ema.save(folder)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._load_adapters(resume_from_checkpoint)
        state = os.path.join(resume_from_checkpoint, STATE_FILE)
        if os.path.isfile(state):
            with open(state) as file:
                self.accuracy_forget_before = json.load(file)["accuracy_forget_before"]
        if self.ema:
            self.ema.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self.groups.thaw()
        self._load_adapters(self.state.best_model_checkpoint)

    def _load_adapters(self, folder: str) -> None:
        """Load the weights of every adapter in place.

        The Trainer's own way goes through `load_adapter`, which changes what is active and what trains as soon as an adapter
        is not named "default" or two are active.
        """
        for name in self.model.peft_config:
            # PEFT writes "default" to the folder itself, every other adapter to a folder of its name.
            path = os.path.join(folder, "" if name == "default" else name, SAFETENSORS_WEIGHTS_NAME)
            if not os.path.isfile(path):
                raise ValueError(
                    f"the checkpoint {folder!r} has no weights of the adapter {name!r}. Resume with a model that holds the "
                    "same adapters as the one that was saved."
                )
            result = set_peft_model_state_dict(self.model, load_file(path), adapter_name=name)
            if result.unexpected_keys:
                raise ValueError(
                    f"the checkpoint {folder!r} belongs to another architecture: it has {len(result.unexpected_keys)} unknown "
                    f"weights, e.g. {result.unexpected_keys[0]!r}."
                )


class _FiniteCallback(TrainerCallback):
    """Stops before the optimizer's step where a loss or a gradient is not finite, so that the weights stay good."""

    def __init__(self, trainer: GSLoraTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        # After a resume the dataloader that skips the first batches does not pass the epoch on to the sampler.
        steps_per_epoch = max(round(state.max_steps / args.num_train_epochs), 1) if args.max_steps <= 0 else None
        epoch = state.global_step // steps_per_epoch if steps_per_epoch else int((state.epoch or 0.0) + 1e-6)
        self.trainer._sampler.set_epoch(epoch)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        finite = self.trainer._meter.finite()
        gradients = [p.grad for p in self.trainer.groups.parameters if p.grad is not None]
        # With a loss scaler (fp16) an infinite gradient is normal: the scaler skips the step and halves the scale.
        scaled = self.trainer.accelerator.scaler is not None
        flags = [finite] if finite is not None else []
        if gradients and not scaled:
            flags.append(torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum()).reshape(1))
        if not flags or torch.cat(flags).all():
            return
        retain, forget, *gradient = torch.cat(flags).tolist()
        parts = [
            name
            for name, good in (("retain half's loss", retain), ("forget half's loss", forget), ("gradient", all(gradient)))
            if not good
        ]
        folder = os.path.join(args.output_dir, "last-good")
        self.trainer.groups.thaw()
        self.trainer.save_model(folder, _internal_call=True)
        raise NonFiniteLossError(
            f"at step {state.global_step + 1} the {' and the '.join(parts)} is NaN or infinite. The adapter before that step is in "
            f"{folder!r} and in the model. Lower `learning_rate` (now {args.learning_rate}) or `forget_weight` (now "
            f"{args.forget_weight}), or look for broken samples in that half."
        )
