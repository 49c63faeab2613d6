"""The boundary between the trainer and a way to forget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, Self

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ..compat import unwrapped
from ..data import Augmentation, PairedDataset
from ..errors import InvalidInputError
from ..objectives import Objective, ObjectiveOutput, logits_of, objective_for
from ..roles import ClassRoles
from .arguments import GSLoraTrainingArguments
from .trained import Trained, TrainedAdapter, TrainedWeights


class LossMeter:
    """Sums the parts of the loss on the device, without a host synchronisation."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._count = 0
        self._finite: Tensor | None = None

    def add(self, output: ObjectiveOutput) -> None:
        """Add one micro-batch."""
        parts = {"retain_loss": output.retain_loss, "forget_loss": output.forget_loss, **output.metrics}
        self.names = tuple(parts)
        values = torch.stack([part.float() for part in parts.values()])
        finite = torch.isfinite(torch.cat([values[:2], output.loss.detach().float().reshape(1)]))
        self._sum = values if self._sum is None else self._sum + values
        self._finite = finite if self._finite is None else self._finite & finite
        self._count += 1

    def finite(self) -> Tensor:
        """Whether L_retain, L_forget and the loss of this process were finite since the last call: bool, `(3,)`."""
        finite, self._finite = self._finite, None
        return finite if finite is not None else torch.ones(3, dtype=torch.bool)

    def sums(self) -> tuple[tuple[str, ...], Tensor | None, int]:
        """The names, the sums since the last means and how many micro-batches they are of; nothing is fetched."""
        return self.names, self._sum, self._count

    def put_back(self, names: Sequence[str], sums: Tensor | None, count: int) -> None:
        """Go on from what [`~LossMeter.sums`] gave."""
        self.names, self._sum, self._count = tuple(names), sums, count

    def means(self) -> Tensor | None:
        """Means since the last call, in the order of `names`, on the device."""
        if self._sum is None:
            return None
        means, self._sum, self._count = self._sum / self._count, None, 0
        return means


@dataclasses.dataclass(kw_only=True)
class Method(TrainerCallback):
    """
    A way to forget. A subclass has a `name`, its hyper-parameters as dataclass fields, and the hooks that it needs.

    Every default is that of plain training: all that is there trains, on the loss of the kind of model
    ([`objective_for`]). A method is a `TrainerCallback` itself, so that `on_train_begin`, `on_epoch_begin`,
    `on_optimizer_step`, … are hooks as well. A trainer works with a copy of its own
    ([`~Method.of`]), on which hooks may keep what they need from step to step; it finds its trainer in `self.trainer`.

    How rivals look: *gradient ascent*, *NegGrad+*, *fine-tuning*, *DELETE*, *NPO* are a `loss`. *Random labels* draws
    them in `loss` with torch's global generator, which checkpoints hold. *Bad teacher*, *LoTUS*, *DER++* compare in
    `loss` with [`~Method.earlier_logits`]. *SCRUB* does too, and `on_step_begin` says whether the step is one that
    maximises. *EWC*, *L2*, *L1-sparse* add a penalty on `self.trainer.trained.parameters` (and its `start`) in `loss`;
    the Fisher information is summed up in `on_train_begin`, over [`own_batches`]. *SalUn* computes its mask there and
    puts weights outside of it back in `on_optimizer_step`, where momentum and decay have moved them, too. *SSD* edits
    the weights in `on_train_begin` and sets `takes_steps = False`. *Task arithmetic* scales what was
    learned in `on_train_end`.

    Attributes:
        name (`str`):
            Its name in the registry and in ledgers.
        trains (`"any"`, `"adapter"` or `"weights"`):
            Whether it works on the adapter of a model, on the weights of a model without one, or on both. Only what
            trains an adapter can be published or carry out a run.
        takes_steps (`bool`):
            `False` for a method that edits the weights in `on_train_begin` and trains nothing.
        title (`str`):
            What a model card calls it.
        trainer ([`TaskTrainer`]):
            The trainer that runs; set by it.

    Example:
        ```py
        >>> @dataclass(kw_only=True)
        ... class GradientAscent(Method):
        ...     name = "gradient_ascent"
        ...
        ...     def loss(self, model, inputs, output):
        ...         logits, labels = self.forget_half(inputs, output)
        ...         return -cross_entropy(logits, labels)
        ```
    """

    name: ClassVar[str]
    trains: ClassVar[Literal["any", "adapter", "weights"]] = "any"
    takes_steps: ClassVar[bool] = True
    title: ClassVar[str] = ""

    trainer: TaskTrainer = dataclasses.field(init=False, repr=False, compare=False)

    # What is trained, and by what

    def check(self, args: GSLoraTrainingArguments) -> None:
        """Refuses arguments that the method cannot obey, before any data is read; by default a moving average.

        Raises:
            InvalidInputError: If it cannot.
        """
        if args.ema_decay:
            raise InvalidInputError(
                "ema_decay", args.ema_decay, f"0: the method {self.name!r} keeps no moving average", "Leave it out."
            )

    def take(self, model: nn.Module) -> Trained:
        """Chooses what trains in a model and freezes the rest; by default its adapter, or every weight of a model
        without one. SalUn or SSD choose nothing here; fine-tuning of some layers names them.

        Raises:
            InvalidInputError: If the model is not one that the method can train.
        """
        if self.trains == "adapter" or (self.trains == "any" and isinstance(model, PeftModel)):
            return TrainedAdapter(model)
        return TrainedWeights(model)

    def objective(self, model: nn.Module, args: GSLoraTrainingArguments, kind: str | None = None) -> Objective:
        """What "forget" and "retain" mean, where the trainer is not given an objective; by default what suits the
        model. A method that needs more than another `loss` (views of samples, a prepared teacher) wraps it.

        Args:
            model (`torch.nn.Module`):
                The model.
            args ([`GSLoraTrainingArguments`]):
                Weights, bounds and kinds of the losses.
            kind (`str`, *optional*):
                The kind of model, where the caller has named it (see `OBJECTIVES`).
        """
        trainer = self.trainer
        return objective_for(model, args, roles=trainer.roles, adapter=trainer.trained.adapter, kind=kind)

    # While it trains

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What happens between the steps; by default the events of the method itself. What is [`Watching`] learns of
        flags on the device at every step, in the one host synchronisation that there is anyway.
        """
        return [self]

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        """The loss of one joint batch; by default that of the objective. Most rivals are this hook alone.

        Args:
            model (`torch.nn.Module`):
                The model as the trainer calls it, for a further forward.
            inputs (`dict`):
                The joint batch: B samples to keep, then B samples to forget.
            output ([`ObjectiveOutput`]):
                What the objective made of it, with the logits of a classifier.
        """
        return output.loss

    def logs(self) -> dict[str, Tensor]:
        """Scalars on the device for the logs, fetched with the losses; by default norms of an adapter's groups."""
        return self.trainer.trained.logs()

    def evaluated(self) -> AbstractContextManager[Any]:
        """Puts the weights that evaluation scores into the model for the time of a block: a moving average. By default
        those that train.
        """
        return nullcontext()

    def save(self, folder: str) -> None:
        """Adds the method's own state to a checkpoint; called in every process, `args.should_save` says who writes.
        The weights, the optimizer and the random generators are there already. By default nothing.
        """

    def load(self, folder: str) -> None:
        """Reads what [`~Method.save`] wrote; by default nothing."""

    def release(self) -> None:
        """Leaves an ordinary model behind: takes back what the method did to it for speed, also after an error, and
        before other weights are loaded. By default nothing is to be done.
        """

    # For hooks to use

    def of(self, trainer: TaskTrainer) -> Self:
        """A fresh copy that works for one trainer."""
        copy = dataclasses.replace(self)
        copy.trainer = trainer
        return copy

    def settings(self) -> dict[str, Any]:
        """The name and the hyper-parameters, for records."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.init}
        return {"name": self.name, **fields}

    def retain_half(self, inputs: dict[str, Any], output: ObjectiveOutput) -> tuple[Tensor, Tensor]:
        """The logits `(B, C)` and labels `(B,)` of the samples to keep."""
        half = len(inputs["labels"]) // 2
        return self._logits(output)[:half], inputs["labels"][:half]

    def forget_half(self, inputs: dict[str, Any], output: ObjectiveOutput) -> tuple[Tensor, Tensor]:
        """The logits `(B, C)` and labels `(B,)` of the samples to forget."""
        half = len(inputs["labels"]) // 2
        return self._logits(output)[half:], inputs["labels"][half:]

    def earlier_logits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The logits `(2·B, C)` of the model before the task, without gradient; costs a forward."""
        with self.trainer.trained.before():
            return logits_of(unwrapped(model), inputs)

    def _logits(self, output: ObjectiveOutput) -> Tensor:
        if output.logits is None:
            raise InvalidInputError(
                "method", self.name, "a method that works without the logits of a classifier", "Use 'gs_lora'."
            )
        return output.logits.float()


class TaskTrainer(Trainer):
    """A Trainer with the data, the classes and the weights of one task; [`ForgettingTrainer`] is made of its parts.

    Attributes:
        trained ([`Trained`]):
            What trains.
        task_objective ([`Objective`]):
            What "forget" and "retain" mean.
        roles ([`ClassRoles`]):
            The role of every class.
        accuracy_forget_before (`dict[str, float]`):
            Acc_f (of a detector AP_f) before the task by evaluation set (`"eval"`, or `"eval_<name>"` for a dict of
            sets), in [0, 1]; Drop and H follow from it.
        meter ([`LossMeter`]):
            Running means for the logs.
    """

    args: GSLoraTrainingArguments
    model: nn.Module
    train_dataset: PairedDataset
    trained: Trained
    task_objective: Objective
    roles: ClassRoles
    accuracy_forget_before: dict[str, float]
    meter: LossMeter
    label_column: str
    has_boxes: bool
    augmentation: Augmentation | None
    ignore_keys_for_eval: list[str] | None

    def measure_before(self) -> None:
        """Acc_f before the task on each evaluation set."""
        raise NotImplementedError

    def global_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="mean") if self.args.world_size > 1 else tensor

    def global_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="sum") if self.args.world_size > 1 else tensor
