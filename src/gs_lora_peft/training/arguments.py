"""The arguments of a forgetting run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from transformers import TrainingArguments

from ..checking import BelowOne, NotNegative, NotNegativeWhole, Number, auto_or, check_fields
from ..data import EpochCovers
from ..errors import InvalidInputError
from ..io import as_path
from ..objectives import Background, ForgetLoss, PrototypeDistance
from .inherited import check_by_arguments, check_processes, smaller_is_better
from .option_types import KINDS

_POSITIVE = Annotated[Number, Field(gt=0)]


_ForgetBound = Annotated[str, auto_or(_POSITIVE), Field(description="a positive, finite number in nats or 'auto'")]


_PrototypeBound = Annotated[
    str,
    auto_or(_POSITIVE),
    Field(description="a positive, finite number in the unit of `prototype_distance` or 'auto'"),
]


_ShareOrAuto = Annotated[
    str, auto_or(Annotated[Number, Field(ge=0, le=1)]), Field(description="a fraction from 0 to 1 or 'auto'")
]


_WeightOrAuto = Annotated[str, auto_or(NotNegative), Field(description="a finite number of at least 0 or 'auto'")]


_STRATEGIES = ("eval_strategy", "logging_strategy", "save_strategy")  # each may be "no"


@dataclass
class GSLoraTrainingArguments(TrainingArguments):
    r"""
    Everything of [`transformers.TrainingArguments`], and what forgetting adds.

    The loss is L_retain + `forget_weight` · ReLU(`forget_bound` − L_forget) + sparsity (GS-LoRA,
    https://arxiv.org/abs/2403.11530), and prototype terms on request. Defaults of `TrainingArguments` that differ
    here: `learning_rate=1e-2`, `lr_scheduler_type="cosine"`, `weight_decay=0.05`, `num_train_epochs=15`,
    `per_device_train_batch_size=48` (48 samples to keep and 48 to forget in each joint batch, as in the paper),
    `per_device_eval_batch_size=64`, `logging_strategy="epoch"`, `logging_nan_inf_filter=False` (a NaN stops the run),
    `save_strategy="no"`, `report_to="none"`, `remove_unused_columns=False` (image columns are read by the collator),
    and, where a best checkpoint is asked for without saying by what, `metric_for_best_model="h_mean"` (the Trainer's
    own choice, the loss over all classes, is best where nothing has been forgotten).

    Args:
        forget_weight (`float`, *optional*, defaults to 0.1):
            β, weight of the forgetting term. Not negative.
        forget_loss (`"log_odds"` or `"cross_entropy"`, *optional*, defaults to `"log_odds"`):
            What is bounded, see [`ClassificationObjective`] and [`DetectionObjective`]. `"log_odds"`: mean of ReLU(BND
            − log((1 − p) / p)); each sample is pushed until it is forgotten, and no further. `"cross_entropy"`:
            ReLU(BND − mean CE), as published; it leaves classes known of which the head is sure, and costs the kept
            ones more (docs/benchmarks.md).
        forget_bound (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            BND in nats. `"auto"` is 1.5 · ln C for a head of C classes (5 · ln C with `"cross_entropy"`), derived in
            [`auto_forget_bound`]. For a detector `"auto"` is 15 with both, as published: far below the background, for
            a category is found as long as its objects are ranked above it, however small their probability.
        background (`"matched"` or `"others"`, *optional*, defaults to `"matched"`):
            Detectors only: whether in images with objects of both kinds those of the other half are left out of its
            loss, or count as background, as published. See [`DetectionObjective`].
        sparsity (`"proximal"`, `"penalty"` or `"none"`, *optional*, defaults to `"proximal"`):
            `"proximal"`: after each optimizer step, g ← max(0, 1 − lr · α · √n_g / ‖g‖) · g for every group g of n_g
            entries, so that dropped groups are exactly zero; the last one is never dropped. `"penalty"`: α · Σ_g ‖g‖
            is added to the loss as in the paper (no group ever becomes exactly zero). `"none"`: dense LoRA.
        sparsity_weight (`float`, *optional*, defaults to 0.6):
            α. With `"proximal"` it is compared with how far one entry moves in an optimizer step (Adam: about 1), so
            that useful values lie in (0, 1) for models of every size. With `"penalty"` it is the paper's α, where 1e-4
            to 1e-2 is usual: set it. Not negative.
        sparsity_warmup_epochs (`float`, *optional*, defaults to 0):
            K: α is 0 for the first K epochs, of which there must be more than K.
        sparsity_ramp_epochs (`float`, *optional*, defaults to 2):
            With `"proximal"` α then rises linearly over so many epochs. At full strength from the first step on it may
            drop all groups but one before the adapter has learnt anything (docs/benchmarks.md).
        sparsity_until_epoch (`float`, *optional*, defaults to 5):
            From this epoch on α is 0 again, so that the groups that survived are trained without shrinkage; dropped
            groups stay dropped. A third of the default 15 epochs: it kept more of the kept classes at the same number
            of zero groups than sparsity to the end (docs/benchmarks.md). `None`, or no less than the number of epochs:
            to the end, as published.
        prototype_forget_weight (`float`, *optional*, defaults to 0):
            w_f of GS-LoRA++ (https://arxiv.org/abs/2501.09705), weight of ReLU(BND_pro − D_f), which pushes embeddings
            of the forget half away from the prototypes of their classes. Not negative.
        prototype_retain_weight (`float`, *optional*, defaults to 0):
            w_r, weight of D_r, which holds embeddings of the retain half at theirs. Not negative. Prototypes (the mean
            embedding of each class in the model before the task) are computed when training starts and one of both
            weights is positive, in one pass over the two training sets.
        prototype_bound (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            BND_pro, in the unit of the distance. `"auto"`: the mean distance between prototypes of two different
            classes. The papers' 18 and 50 belong to CosFace embeddings of width 512 and `"kl"`.
        prototype_distance (`"kl"`, `"cosine"` or `"l2"`, *optional*, defaults to `"kl"`):
            D, see [`embedding_distances`]. `"kl"` as published.
        prototype_augmentations (`int`, *optional*, defaults to 0):
            Augmented views of every sample that prototypes average besides the sample itself; for few-shot data. By
            RandAugment (needs torchvision), or what the trainer is given as `augment`. Not for detectors, whose
            prototypes are the rows of their classification heads.
        augmentation (`bool`, *optional*, defaults to `False`):
            Train on augmented views of all samples, a new one each time, by the same augmentation. Not with annotated
            boxes, which have to move with the image: give the data set a transform.
        distillation_weight (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            w_d, weight of KL(p_before ‖ p_now) over all classes but those to forget, see [`DistillationObjective`]:
            holds classes to keep that have no training data. `"auto"`: 1 where the head has such classes, else 0, for
            it costs a second forward. On both halves of the batch then, else on the half to keep. Not negative, not
            for detectors.
        ema_decay (`float`, *optional*, defaults to 0):
            Decay of an exponential moving average of the adapter, in [0, 1). The average is what is evaluated, and
            what is left in the model at the end; checkpoints hold it next to the weights. 0: none.
        ema_update (`"epoch"` or `"step"`, *optional*, defaults to `"epoch"`):
            When the average takes the weights in: at the end of every epoch, as published, or after every optimizer
            step (choose a decay nearer to 1 then).
        ema_start_epoch (`float`, *optional*, defaults to 0):
            The average starts from the weights at its first update after so many epochs. Less than the number of
            epochs.
        validation_fraction (`float`, *optional*, defaults to 0):
            Fraction of every class of both training sets that is held out for evaluation during training, in [0, 1).
            Used for `eval_strategy`, `load_best_model_at_end` and early stopping where no `eval_dataset` is given. Not
            with annotated boxes, because an image may be in both sets: hold images out before the split. Not with
            `shots` of a [`ContinualForgetter`] either: they say how many samples train.
        epoch_covers (`"both"` or `"retain"`, *optional*, defaults to `"both"`):
            `"both"`: an epoch runs once over the larger of the two training sets, and the other one cycles.
            `"retain"`: once over the retain set, as published, however few classes stay; then set the number of epochs
            by the number of steps (docs/benchmarks.md).
        max_forget_accuracy (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            The target, in [0, 1]: a [`ContinualForgetter`] calls a request forgotten if the accuracy on its classes is
            this at most afterwards, on the evaluation data. `"auto"`: 0.05, or the accuracy of guessing (1 / C for a
            head of C classes) where that is more. Of a detector it is the share of the average precision before the
            request that may be left; `"auto"` is 0.05. It does not influence the training.

    What of `TrainingArguments` cannot be obeyed is refused, with the reason (docs/training.md).

    Raises:
        InvalidInputError: A ValueError, if a value is of another type or outside its range, an inherited option cannot
            be obeyed, or two of them do not go together; the error names one and tells of the other. Where `max_steps`
            is given, whether sparsity acts and the average starts is known and checked when training begins.
    """

    learning_rate: NotNegative = field(default=1e-2, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    weight_decay: NotNegative = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    num_train_epochs: Number = field(default=15.0, metadata={"help": "Passes over the larger of both sets."})
    per_device_train_batch_size: int = field(
        default=48, metadata={"help": "Samples to keep in a joint batch; as many to forget come on top."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Batch size of evaluation."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: 'epoch', 'steps' or 'no'."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses (off: they stop the run)."})
    save_strategy: str = field(
        default="no", metadata={"help": "When to save checkpoints: 'no', 'epoch', 'steps', 'best'."}
    )
    # `None` first, as in TrainingArguments: HfArgumentParser cannot take a list in that place.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Experiment trackers: 'tensorboard', 'wandb', 'trackio', … or 'none'."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Remove columns the model does not take."})

    forget_weight: NotNegative = field(default=0.1, metadata={"help": "Beta: weight of the forgetting term."})
    forget_loss: ForgetLoss = field(
        default="log_odds", metadata={"help": "'log_odds' of each sample, or mean 'cross_entropy' (the paper's)."}
    )
    forget_bound: _ForgetBound = field(
        default="auto", metadata={"help": "BND in nats, or 'auto' (1.5 ln C for a softmax head of C classes)."}
    )
    background: Background = field(
        default="matched", metadata={"help": "Detectors: other half's objects left out, or background ('others')."}
    )
    sparsity: Literal["proximal", "penalty", "none"] = field(
        default="proximal", metadata={"help": "'proximal' (exact zeros), 'penalty' (the paper's), or 'none'."}
    )
    sparsity_weight: NotNegative = field(default=0.6, metadata={"help": "Alpha: strength of the group sparsity."})
    sparsity_warmup_epochs: NotNegative = field(
        default=0.0, metadata={"help": "K: alpha is 0 for the first K epochs."}
    )
    sparsity_ramp_epochs: NotNegative = field(
        default=2.0, metadata={"help": "Then alpha rises to its full value over so many epochs."}
    )
    sparsity_until_epoch: Number | None = field(
        default=5.0, metadata={"help": "From this epoch on, surviving groups are trained without shrinkage."}
    )
    prototype_forget_weight: NotNegative = field(
        default=0.0, metadata={"help": "w_f: pushes from prototypes; 0 for none."}
    )
    prototype_retain_weight: NotNegative = field(
        default=0.0, metadata={"help": "w_r: holds to prototypes; 0 for none."}
    )
    prototype_bound: _PrototypeBound = field(
        default="auto", metadata={"help": "BND_pro, or 'auto' (mean distance between two classes' prototypes)."}
    )
    prototype_distance: PrototypeDistance = field(
        default="kl", metadata={"help": "'kl' (the paper's), 'cosine' or 'l2' distance from prototypes."}
    )
    prototype_augmentations: NotNegativeWhole = field(
        default=0, metadata={"help": "Augmented views of each sample that prototypes average besides it."}
    )
    distillation_weight: _WeightOrAuto = field(
        default="auto",
        metadata={"help": "w_d: holds other classes; 'auto': 1 where some have no data, else 0."},
    )
    augmentation: bool = field(default=False, metadata={"help": "Train on augmented views."})
    ema_decay: BelowOne = field(default=0.0, metadata={"help": "Decay of the adapter's moving average; 0 for none."})
    ema_update: Literal["epoch", "step"] = field(
        default="epoch", metadata={"help": "Update the moving average once per 'epoch' or 'step'."}
    )
    ema_start_epoch: NotNegative = field(default=0.0, metadata={"help": "First epoch of the moving average."})
    validation_fraction: BelowOne = field(
        default=0.0, metadata={"help": "Fraction of each training class held out to evaluate on during training."}
    )
    epoch_covers: EpochCovers = field(
        default="both", metadata={"help": "An epoch covers 'both' training sets, or 'retain' alone (the paper's)."}
    )
    max_forget_accuracy: _ShareOrAuto = field(
        default="auto",
        metadata={
            "help": "Forgotten means: this accuracy at most, in [0, 1] (detectors: share of the AP before); 'auto': "
            "0.05, or chance."
        },
    )

    def __post_init__(self) -> None:
        if self.output_dir is not None:
            self.output_dir = str(as_path(self.output_dir, "output_dir"))
        for name in _STRATEGIES:
            if getattr(self, name) is False:  # what YAML makes of an unquoted `no`
                setattr(self, name, "no")
        self.check()
        # `save_strategy` is a string or an enum that equals it.
        best_is_asked_for = self.load_best_model_at_end or self.save_strategy == "best"
        if best_is_asked_for and self.metric_for_best_model is None:
            self.metric_for_best_model = "h_mean"
        if self.greater_is_better is None and smaller_is_better(self.metric_for_best_model or ""):
            self.greater_is_better = False
        # Pinned memory speeds up copies to an accelerator; without one, PyTorch warns at every data loader.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        super().__post_init__()
        check_processes(self)

    def check(self) -> None:
        """Looks at every value; called when the arguments are made, and by a hyperparameter search that has set some.

        Raises:
            ValueError: As above.
        """
        check_fields(self, kinds=KINDS)
        check_by_arguments(self)
        self._check_together()

    def _check_together(self) -> None:
        views = self.prototype_augmentations
        if views and not self.prototype_forget_weight and not self.prototype_retain_weight:
            raise InvalidInputError(
                "prototype_augmentations",
                views,
                "0 without prototypes: it would have nothing to act on",
                "Set `prototype_forget_weight` or `prototype_retain_weight`, or leave it out.",
            )
        if self.ema_start_epoch and not self.ema_decay:
            raise InvalidInputError(
                "ema_start_epoch",
                self.ema_start_epoch,
                "0 without an average to start",
                "Set `ema_decay`, e.g. to 0.9, or leave it out.",
            )
        until = self.sparsity_until_epoch
        if self.sparsity != "none" and until is not None and not until > self.sparsity_warmup_epochs:
            raise InvalidInputError(
                "sparsity_until_epoch",
                until,
                f"more than `sparsity_warmup_epochs`, {self.sparsity_warmup_epochs!r}, or sparsity never acts",
                "Raise it (None: to the end), or use sparsity='none' for dense LoRA.",
            )
        if self.max_steps <= 0:
            self.check_sparsity_acts(self.num_train_epochs)
            self.check_average_starts(self.num_train_epochs)

    @property
    def sampling_seed(self) -> int:
        """Seed for splits and batch order: `data_seed`, or `seed` where that is `None`."""
        return self.data_seed if self.data_seed is not None else self.seed

    def check_sparsity_acts(self, epochs: float) -> None:
        """Refuses a warm-up of the sparsity that is as long as the training.

        Args:
            epochs (`float`):
                For how many epochs is trained.

        Raises:
            InvalidInputError: If it is.
        """
        warmup = self.sparsity_warmup_epochs
        if self.sparsity != "none" and 0 < warmup >= epochs:
            raise InvalidInputError(
                "sparsity_warmup_epochs",
                warmup,
                f"less than the {epochs:.6g} epochs of this training, or sparsity never acts",
                "Lower it, train longer, or use sparsity='none' for dense LoRA.",
            )

    def check_average_starts(self, epochs: float) -> None:
        """Refuses an average that would start at the end of the training or behind it.

        Args:
            epochs (`float`):
                For how many epochs is trained.

        Raises:
            InvalidInputError: If it would.
        """
        start = self.ema_start_epoch
        if self.ema_decay and 0 < start >= epochs:
            raise InvalidInputError(
                "ema_start_epoch",
                start,
                f"less than the {epochs:.6g} epochs of this training, or nothing is averaged",
                "Lower it, train longer, or set it and `ema_decay` to 0.",
            )
