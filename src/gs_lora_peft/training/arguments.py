"""The arguments of a training that forgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from transformers import TrainingArguments

from ..checking import BelowOne, NotNegative, NotNegativeWhole, Number, auto_or, check_fields, checked
from ..data import EpochCovers
from ..errors import InvalidInputError
from ..io import as_path
from ..objectives import Background, DepthTarget, ForgetLoss, PrototypeDistance
from .inherited import check_by_arguments, check_processes, smaller_is_better
from .option_types import KINDS
from .recipes import RecipeName, apply_recipe, check_needed

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
    r"""Arguments of [`transformers.TrainingArguments`], and those of forgetting.

    The loss is L_retain + `forget_weight` · ReLU(`forget_bound` − L_forget) + sparsity (GS-LoRA,
    https://arxiv.org/abs/2403.11530), with prototype terms if their weights are set. These defaults differ from
    `TrainingArguments`: `learning_rate=1e-2`, `lr_scheduler_type="cosine"`, `weight_decay=0.05`,
    `num_train_epochs=15`, `per_device_train_batch_size=48` (48 samples to keep and 48 to forget in each joint batch,
    as in the paper), `per_device_eval_batch_size=64`, `logging_strategy="epoch"`, `logging_nan_inf_filter=False` (a
    NaN stops the run), `save_strategy="no"`, `report_to="none"`, `remove_unused_columns=False` (the collator reads
    image columns), and `metric_for_best_model="h_mean"` if a best checkpoint is asked for (the Trainer's own default,
    the loss over all classes, is best before anything is forgotten).

    Args:
        recipe (`"fast"` or `"deep"`, *optional*, defaults to `"fast"`):
            `"fast"`: the defaults here. The head no longer answers with the classes; few images bring them back.
            `"deep"`: `depth_weight=5`, `depth_retain_weight=5`, `sparsity="none"` and `num_train_epochs=6`, each
            unless it is set; and where a [`ContinualForgetter`] or a script makes the adapter, `r=32` and
            `lora_alpha=32`. On digits, most attacks then get no more back than from a retrained model. Faces need
            other settings, detectors `block_pattern="decoder"` (docs/audit.md).
        forget_weight (`float`, *optional*, defaults to 0.1):
            β, weight of the forgetting term. Not negative.
        forget_loss (`"log_odds"` or `"cross_entropy"`, *optional*, defaults to `"log_odds"`):
            The bounded loss, see [`ClassificationObjective`] and [`DetectionObjective`]. `"log_odds"`: mean of
            ReLU(BND − log((1 − p) / p)), which pushes each sample until it is forgotten, and no further.
            `"cross_entropy"`: ReLU(BND − mean CE), as published. It does not forget classes of which the head is
            sure, and costs the kept classes more (docs/experiments/faces.md).
        forget_bound (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            BND in nats. `"auto"` is 1.5 · ln C for a head of C classes (5 · ln C with `"cross_entropy"`), see
            [`auto_forget_bound`]. For a detector `"auto"` is 15 with both losses, as published. That is far below the
            background: a detector finds a category as long as its objects rank above it, however small their
            probability.
        background (`"matched"` or `"others"`, *optional*, defaults to `"matched"`):
            Detectors only, for images with objects of both halves. `"matched"` ignores objects of the other half in
            the loss of a half; `"others"` counts them as background, as published. See [`DetectionObjective`].
        sparsity (`"proximal"`, `"penalty"`, `"select"` or `"none"`, *optional*, by default what the recipe says):
            `"proximal"`: after each optimizer step, g ← max(0, 1 − lr · α · √n_g / ‖g‖) · g for every group g of n_g
            entries. Dropped groups are exactly zero; the last group is never dropped. `"penalty"`: α · Σ_g ‖g‖ is
            added to the loss as in the paper, and groups do not become exactly zero. `"select"`: only the groups that
            gain most for their cost at the start train (`select_groups`); the others are zero. `"none"`: dense LoRA.
        select_groups (`float`, *optional*, defaults to 0.5):
            With `"select"`, how many groups train: a share below 1, or a whole number.
        sparsity_weight (`float`, *optional*, defaults to 0.6):
            α. Not negative. With `"proximal"` it competes with the distance that an entry moves in an optimizer step
            (Adam: about 1), so that useful values lie in (0, 1) for models of every size. With `"penalty"` it is the
            paper's α: set it, usually from 1e-4 to 1e-2.
        sparsity_warmup_epochs (`float`, *optional*, defaults to 0):
            K: α is 0 for the first K epochs. Less than the number of epochs.
        sparsity_ramp_epochs (`float`, *optional*, defaults to 2):
            With `"proximal"`, number of epochs in which α then rises linearly. At full strength from the first step it
            may drop all groups but one before the adapter has learned anything (docs/experiments/sparsity.md).
        sparsity_until_epoch (`float`, *optional*, defaults to 5):
            From this epoch on α is 0 again: the surviving groups train without shrinkage, and dropped groups stay
            dropped. The default, a third of the default 15 epochs, kept more of the kept classes at the same number of
            zero groups than sparsity to the end (docs/experiments/sparsity.md). `None`, or at least the number of
            epochs: sparsity to the end, as published.
        prototype_forget_weight (`float`, *optional*, defaults to 0):
            w_f of GS-LoRA++ (https://arxiv.org/abs/2501.09705), weight of ReLU(BND_pro − D_f), which pushes embeddings
            of the forget half away from the prototypes of their classes. Not negative.
        prototype_retain_weight (`float`, *optional*, defaults to 0):
            w_r, weight of D_r, which holds embeddings of the retain half at the prototypes of their classes. Not
            negative. If one of both weights is positive, training starts with a pass over both training sets, which
            computes the prototypes: the mean embedding of each class in the model before the task.
        prototype_bound (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            BND_pro, in the unit of the distance. `"auto"`: the mean distance between the prototypes of two classes.
            The papers' 18 and 50 are for CosFace embeddings of width 512 and `"kl"`.
        prototype_distance (`"kl"`, `"cosine"` or `"l2"`, *optional*, defaults to `"kl"`):
            D, see [`embedding_distances`]. `"kl"` as published.
        prototype_augmentations (`int`, *optional*, defaults to 0):
            Number of augmented views of each sample that its prototype averages besides the sample; for few-shot data.
            RandAugment makes them (needs torchvision), or the trainer's `augment`. Not for detectors, whose
            prototypes are the rows of their classification heads.
        augmentation (`bool`, *optional*, defaults to `False`):
            Train on augmented views of all samples, new ones in each epoch, by the same augmentation. Not with
            annotated boxes, which have to move with the image: give the data set a transform.
        distillation_weight (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            w_d, weight of KL(p_before ‖ p_now) over all classes except those to forget, which holds classes to keep
            that have no training data, see [`DistillationObjective`]. `"auto"`: 1 if the head has such classes, else 0
            to save its second forward. It acts on both halves of the batch if there are such classes, else on the half
            to keep. Not negative, not for detectors.
        depth_weight (`float`, *optional*, by default what the recipe says):
            Forgetting in depth: weight of the distance of the states of samples to forget from those of kept samples,
            behind every block, see [`DepthObjective`]; for a detector, of the states of queries on objects to forget
            from those of queries on background, behind every layer of the decoder, see [`QueryDepthObjective`].
            Without it the head no longer answers with the class, and the states before the head still tell it apart.
            It costs one more forward in each step. Not negative, not without an adapter.
        depth_retain_weight (`float`, *optional*, by default what the recipe says, 0 without `depth_weight`):
            With it, weight of the distance of kept states from what they were before the task. Not negative.
        depth_target (`"sample"`, `"mean"` or `"transport"`, *optional*, defaults to `"sample"`):
            What the states are drawn to: one kept sample of the class that resembles the sample to forget most, or the
            mean of the kept samples of that class in the batch; or the kept sample with similar states that an optimal
            transport finds, which suits faces, whose images vary much. For a detector one query on the background of
            the same image, or the mean of all of them.
        depth_blocks (`str`, *optional*, defaults to `"auto"`):
            The blocks, as a regular expression that is searched in their paths, such as `r"layers\.(8|9|10|11)$"`.
            `"auto"`: all.
        depth_radius (`float`, *optional*, defaults to 0):
            With forgetting in depth, ρ: the term counts a second time, at the weights after one simulated step of
            relearning of this size, relative to that of each matrix, see [`DepthObjective`]. Then fine-tuning on few
            samples brings less back. Each step costs two more forwards and backwards on the samples to forget. In
            [0, 1); not with gradient checkpointing, not for detectors.
        ema_decay (`float`, *optional*, defaults to 0):
            Decay of an exponential moving average of the adapter, in [0, 1). Evaluation scores the average, and the
            model holds it at the end; checkpoints hold it beside the weights. 0: no average.
        ema_update (`"epoch"` or `"step"`, *optional*, defaults to `"epoch"`):
            Update the average at the end of every epoch, as published, or after every optimizer step (which needs a
            decay nearer to 1).
        ema_start_epoch (`float`, *optional*, defaults to 0):
            The average starts from the weights at the first update after this epoch. Less than the number of epochs.
        validation_fraction (`float`, *optional*, defaults to 0):
            Fraction of every class of both training sets to hold out for evaluation during training, in [0, 1). Used
            for `eval_strategy`, `load_best_model_at_end` and early stopping if no `eval_dataset` is given. Not with
            annotated boxes, because an image may be in both sets: hold images out before the split. Not with `shots`
            of a [`ContinualForgetter`], which set how many samples train.
        prefix_cache (`"auto"`, `"on"` or `"off"`, *optional*, defaults to `"auto"`):
            Whether outputs of the blocks below the lowest one that trains are kept, so that these blocks run once per
            sample instead of at every step, see [`FrozenPrefix`]. It changes no loss. `"auto"`: where this is exact.
            `"on"` refuses a training in which it is not, such as with dropout in these blocks.
        prefix_cache_mib (`float`, *optional*, defaults to 1024):
            Most memory for these outputs in each process, in MiB, on the device of the model. If the outputs for all
            samples need more, none are kept.
        epoch_covers (`"both"`, `"retain"` or `"forget"`, *optional*, defaults to `"both"`):
            `"both"`: an epoch runs once over the larger of the two training sets, and the other one cycles.
            `"retain"`: once over the retain set, as published, even if few classes stay; then choose the number of
            epochs for the number of steps (docs/experiments/digits.md). `"forget"`: once over the forget set, for a
            stream to keep (docs/scale.md).
        max_forget_accuracy (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            The target, in [0, 1]: a [`ContinualForgetter`] calls a request forgotten if the accuracy on its classes,
            on the evaluation data, is at most this afterwards. `"auto"`: 0.05, or the accuracy of guessing (1 / C for
            a head of C classes) if that is larger. For a detector it is the fraction of the average precision before
            the request that may be left; `"auto"` is 0.05. It does not change the training.

    Options of `TrainingArguments` that cannot be obeyed are refused with the reason (docs/training.md).

    Raises:
        InvalidInputError: If a value is of another type or out of range, two options exclude each other, an inherited
            option cannot be obeyed, or processes were launched together on a CPU without `use_cpu`. With `max_steps`,
            whether sparsity acts and the average starts is checked when training begins.
    """

    learning_rate: NotNegative = field(default=1e-2, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    weight_decay: NotNegative = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    # None in the next fields: what the recipe says, so that any value that is given wins over it.
    num_train_epochs: Number = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Passes over the larger of both sets. Default: 15, or 6 with --recipe deep."},
    )
    per_device_train_batch_size: int = field(
        default=48, metadata={"help": "Samples to keep in a joint batch, which holds as many to forget."}
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

    recipe: RecipeName = field(
        default="fast",
        metadata={"help": "'fast', or 'deep': forgets in every block, with a larger adapter (docs/audit.md)."},
    )
    forget_weight: NotNegative = field(default=0.1, metadata={"help": "Beta: weight of the forgetting term."})
    forget_loss: ForgetLoss = field(
        default="log_odds", metadata={"help": "'log_odds' of each sample, or mean 'cross_entropy' (as published)."}
    )
    forget_bound: _ForgetBound = field(
        default="auto", metadata={"help": "BND in nats, or 'auto' (1.5 ln C for a softmax head of C classes)."}
    )
    background: Background = field(
        default="matched",
        metadata={"help": "Detectors: the other half's objects are ignored, or background ('others')."},
    )
    sparsity: Literal["proximal", "penalty", "select", "none"] = field(
        default=None,  # type: ignore[arg-type]
        metadata={
            "help": "'proximal' (exact zeros), 'penalty' (as published), 'select' (at the start), or 'none'. Default: "
            "proximal, or none with --recipe deep."
        },
    )
    select_groups: _POSITIVE = field(
        default=0.5, metadata={"help": "With 'select': share (below 1) or number of the groups that train."}
    )
    sparsity_weight: NotNegative = field(default=0.6, metadata={"help": "Alpha: strength of the group sparsity."})
    sparsity_warmup_epochs: NotNegative = field(
        default=0.0, metadata={"help": "K: alpha is 0 for the first K epochs."}
    )
    sparsity_ramp_epochs: NotNegative = field(
        default=2.0, metadata={"help": "Number of epochs in which alpha then rises to its full value."}
    )
    sparsity_until_epoch: Number | None = field(
        default=5.0, metadata={"help": "From this epoch on, surviving groups train without shrinkage."}
    )
    prototype_forget_weight: NotNegative = field(
        default=0.0, metadata={"help": "w_f: pushes embeddings away from prototypes; 0: off."}
    )
    prototype_retain_weight: NotNegative = field(
        default=0.0, metadata={"help": "w_r: holds embeddings at prototypes; 0: off."}
    )
    prototype_bound: _PrototypeBound = field(
        default="auto", metadata={"help": "BND_pro, or 'auto' (mean distance between two classes' prototypes)."}
    )
    prototype_distance: PrototypeDistance = field(
        default="kl", metadata={"help": "Distance from prototypes: 'kl' (as published), 'cosine' or 'l2'."}
    )
    prototype_augmentations: NotNegativeWhole = field(
        default=0, metadata={"help": "Augmented views of each sample that prototypes average with it."}
    )
    distillation_weight: _WeightOrAuto = field(
        default="auto",
        metadata={"help": "w_d: holds the other classes; 'auto': 1 if some have no data, else 0."},
    )
    depth_weight: NotNegative = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Draws states of forgotten samples to those of kept ones, in every block. Default: 0 (off), or 5 "
            "with --recipe deep."
        },
    )
    depth_retain_weight: NotNegative = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "With it, holds the states of kept samples at what they were. Default: 0 (off), or 5 with "
            "--recipe deep."
        },
    )
    depth_target: DepthTarget = field(
        default="sample",
        metadata={"help": "Kept states to draw to: a 'sample' of the nearest class, its 'mean', or by 'transport'."},
    )
    depth_blocks: str = field(
        default="auto", metadata={"help": "Blocks of the depth term: 'auto' (all), or a regular expression on paths."}
    )
    depth_radius: BelowOne = field(
        default=0.0,
        metadata={"help": "With depth: holds it after a simulated step of relearning of this relative size; 0: off."},
    )
    augmentation: bool = field(default=False, metadata={"help": "Train on augmented views."})
    ema_decay: BelowOne = field(default=0.0, metadata={"help": "Decay of the adapter's moving average; 0: off."})
    ema_update: Literal["epoch", "step"] = field(
        default="epoch", metadata={"help": "Update the moving average once per 'epoch' or 'step'."}
    )
    ema_start_epoch: NotNegative = field(default=0.0, metadata={"help": "First epoch of the moving average."})
    validation_fraction: BelowOne = field(
        default=0.0, metadata={"help": "Fraction of each training class to hold out for evaluation."}
    )
    prefix_cache: Literal["auto", "on", "off"] = field(
        default="auto", metadata={"help": "Keep outputs of blocks below the lowest that trains: 'auto', 'on', 'off'."}
    )
    prefix_cache_mib: NotNegative = field(default=1024.0, metadata={"help": "Most memory for these outputs, in MiB."})
    epoch_covers: EpochCovers = field(
        default="both",
        metadata={"help": "An epoch covers 'both' sets, 'retain' (as published), or 'forget'."},
    )
    max_forget_accuracy: _ShareOrAuto = field(
        default="auto",
        metadata={
            "help": "Forgotten means at most this accuracy, in [0, 1] (detectors: fraction of the AP before); 'auto': "
            "0.05, or chance."
        },
    )

    def __post_init__(self) -> None:
        if self.output_dir is not None:
            self.output_dir = str(as_path(self.output_dir, "output_dir"))
        for name in _STRATEGIES:
            if getattr(self, name) is False:  # an unquoted `no` in YAML
                setattr(self, name, "no")
        apply_recipe(self, checked("recipe", self.recipe, RecipeName))
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
        """Checks every value: when the arguments are made, and after a hyperparameter search has set some.

        Raises:
            InvalidInputError: If one cannot be used.
        """
        # Releases of transformers differ in their options.
        check_fields(self, kinds={name: kind for name, kind in KINDS.items() if name in self.__dataclass_fields__})
        check_by_arguments(self)
        self._check_together()

    def _check_together(self) -> None:
        check_needed(self)
        until = self.sparsity_until_epoch
        if self._shrinks and until is not None and not until > self.sparsity_warmup_epochs:
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

    @property
    def _shrinks(self) -> bool:
        return self.sparsity in ("proximal", "penalty")

    def check_sparsity_acts(self, epochs: float) -> None:
        """Checks that the warm-up of the sparsity ends before the training does.

        Args:
            epochs (`float`):
                Length of the training.

        Raises:
            InvalidInputError: If it does not.
        """
        warmup = self.sparsity_warmup_epochs
        if self._shrinks and 0 < warmup >= epochs:
            raise InvalidInputError(
                "sparsity_warmup_epochs",
                warmup,
                f"less than the {epochs:.6g} epochs of this training, or sparsity never acts",
                "Lower it, train longer, or use sparsity='none' for dense LoRA.",
            )

    def check_average_starts(self, epochs: float) -> None:
        """Checks that the moving average starts before the training ends.

        Args:
            epochs (`float`):
                Length of the training.

        Raises:
            InvalidInputError: If it does not.
        """
        start = self.ema_start_epoch
        if self.ema_decay and 0 < start >= epochs:
            raise InvalidInputError(
                "ema_start_epoch",
                start,
                f"less than the {epochs:.6g} epochs of this training, or nothing is averaged",
                "Lower it, train longer, or set it and `ema_decay` to 0.",
            )
