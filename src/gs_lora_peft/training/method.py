"""The boundary between the trainer and a method: what a method may choose, and what it may use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, Self

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ..compat import unwrapped
from ..data import Augmentation, PairedDataset
from ..errors import InvalidInputError
from ..objectives import LossMeter, Objective, ObjectiveOutput, logits_of, objective_for
from ..roles import ClassRoles
from .arguments import GSLoraTrainingArguments
from .reading import LOSS_OPTIONS, check_read
from .trained import Trained, TrainedAdapter, TrainedWeights

Half = Literal["retain", "forget"]


def rows_of(inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Returns some rows of a batch with `labels`. Values that do not belong to single samples stay as they are."""
    size = len(inputs["labels"])
    return {
        name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value
        for name, value in inputs.items()
    }


def half_of(inputs: dict[str, Any], half: Half) -> dict[str, Any]:
    """Returns the samples to keep of a joint batch, which come first, or those to forget."""
    middle = len(inputs["labels"]) // 2
    return rows_of(inputs, slice(middle) if half == "retain" else slice(middle, None))


@dataclasses.dataclass(kw_only=True)
class Method(TrainerCallback):
    """A way to forget.

    A method is a dataclass with a `name`, its hyper-parameters as fields, and the hooks that it needs. By default
    everything that can train does, on the loss of the kind of model ([`objective_for`]).

    To write one:

    1. Subclass `Method`, decorate it with `@dataclass(kw_only=True)`, give it a `name` and a field with a default for
       each hyper-parameter.
    2. Override hooks. Most methods need [`~Method.loss`] alone. It gets a joint batch of B samples to keep and B
       samples to forget, after one forward through the model; [`~Method.retain_half`] and [`~Method.forget_half`]
       return logits and labels of each half, [`~Method.earlier_logits`] the logits of the model before the task.
    3. Pass an instance to [`ForgettingTrainer`] or [`ContinualForgetter`] as `method`. To have it by name, add a line
       to `METHODS` (`"name": "module:Class"`); then `get_method("name", **hyper_parameters)` makes it.

    The trainer takes care of the rest: data, evaluation, logs, checkpoints and bit-exact resume, mixed precision,
    several processes, non-finite losses.

    Hooks can use:

    - `self.trainer`: the trainer that runs, with `args`, `state`, `model`, `train_dataset.forget`,
      `train_dataset.retain`, `global_mean` and `global_sum` (over processes).
    - `self.trainer.trained`: what trains, with `parameters`, their values before the task in `start`, and the context
      manager `before()`, in which the model is the one before the task.
    - [`own_batches`]: the batches of a data set, for what has to be computed before training.
    - All events of [`transformers.TrainerCallback`], because a method is one: `on_train_begin`, `on_epoch_begin`,
      `on_step_begin`, `on_pre_optimizer_step` (gradients are ready), `on_optimizer_step` (weights have moved),
      `on_train_end`, ...
    - `self` for what they keep from step to step: each trainer works with its own copy ([`~Method.of`]). What a
      resumed training needs goes through [`~Method.save`] and [`~Method.load`]. Draw random numbers from torch's
      global generator, which checkpoints hold.

    Where methods of the literature go:

    - `loss` alone: fine-tuning, gradient ascent, NegGrad+, random labels, DELETE, NPO, SimNPO. DER++, LoTUS and the
      competent teacher of Bad teacher compare with `earlier_logits`; MUNBa weights both halves by
      `torch.autograd.grad` of each loss; Boundary shrink computes its adversarial labels under `before()` and
      `torch.enable_grad()`.
    - `loss` with a penalty on `trained.parameters`: L1-sparse, L2 to `start`, EWC with the Fisher information from
      `on_train_begin`.
    - `loss` and an event: SCRUB chooses between its two kinds of steps in `on_epoch_begin`; UNSIR learns its noise,
      and Bad teacher makes its random network, in `on_train_begin`.
    - Masks: SalUn and SFRon compute theirs in `on_train_begin`. SFRon masks gradients in `on_pre_optimizer_step`.
      SalUn puts masked weights back in `on_optimizer_step`, because momentum and weight decay move them, too.
    - Edits: SSD and LFSSD change the weights in `on_train_begin` and set `takes_steps = False`. Task arithmetic trains
      weights on the forget half and negates the change in `on_train_end`.

    Attributes:
        name (`str`):
            Its name in the registry and in ledgers.
        trains (`"any"`, `"adapter"` or `"weights"`):
            Whether it trains the adapter of a model, the weights of a model without adapters, or either. In a run,
            `"weights"` leave the new values of the weights that changed, and all others a LoRA adapter.
        takes_steps (`bool`):
            `False` for a method that edits the weights in `on_train_begin` and does not train.
        reads (`frozenset[str]`):
            Its options among `LOSS_OPTIONS` and `GROUP_OPTIONS`; others must have their defaults. By default those of
            the loss; none if it overrides [`~Method.loss`] (one that uses `output.loss` sets it) or takes no steps.
        title (`str`):
            Its name on model cards; by default `name`.
        published (`Mapping[str, Any]`):
            Training arguments of its source, such as `{"learning_rate": 1e-4}`, for comparisons; by default none.
            No trainer applies them; the code that makes the arguments may, `{**method.published, **own}`.
        adapter (`Mapping[str, Any]`):
            Options of [`GSLoraConfig`] that go with `published`, such as `{"r": 8}`, for the code that makes the
            adapter; by default none.
        space (`Mapping[str, Sequence]`):
            Values that a search should try besides learning rates, by name: of a hyper-parameter, or else of a
            training argument; by default none.
        earlier (`Sequence[Mapping[str, torch.Tensor]]`):
            What [`~Method.leave`] returned at each earlier task in effect of a run, in order; an empty mapping for a
            task of another method. Empty outside a run. Tensors are on the CPU and read from the disk when used.
        trainer ([`TaskTrainer`]):
            The trainer that runs, which sets it.

    Example:
        ```py
        >>> from dataclasses import dataclass
        >>> from torch.nn.functional import cross_entropy
        >>> from gs_lora_peft.training import ForgettingTrainer, Method


        >>> @dataclass(kw_only=True)
        ... class NegGrad(Method):
        ...     name = "neggrad"
        ...     share: float = 0.9
        ...
        ...     def loss(self, model, inputs, output):
        ...         retain_loss = cross_entropy(*self.retain_half(inputs, output))
        ...         forget_loss = cross_entropy(*self.forget_half(inputs, output))
        ...         return self.share * retain_loss - (1 - self.share) * forget_loss


        >>> trainer = ForgettingTrainer(
        ...     model, args, method=NegGrad(share=0.8), forget_dataset=split.forget, retain_dataset=split.retain
        ... )
        >>> trainer.train()
        ```
    """

    name: ClassVar[str]
    trains: ClassVar[Literal["any", "adapter", "weights"]] = "any"
    takes_steps: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = LOSS_OPTIONS
    title: ClassVar[str] = ""
    published: ClassVar[Mapping[str, Any]] = {}
    adapter: ClassVar[Mapping[str, Any]] = {}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {}

    earlier: Sequence[Mapping[str, Tensor]] = dataclasses.field(init=False, repr=False, compare=False, default=())
    trainer: TaskTrainer = dataclasses.field(init=False, repr=False, compare=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        has_own_loss = "loss" in vars(cls) and getattr(super(cls, cls), "loss", None) is Method.loss
        if "reads" not in vars(cls) and (has_own_loss or vars(cls).get("takes_steps") is False):
            cls.reads = frozenset()

    # What trains, and on which loss

    def check(self, args: GSLoraTrainingArguments) -> None:
        """Checks that the method can obey the arguments of the trainer, before any data is read.

        Raises:
            InvalidInputError: If it cannot; by default if one is set that it does not read, see `reads`.
        """
        check_read(args, self.reads, self.name)

    def take(self, model: nn.Module) -> Trained:
        """Chooses what trains in a model and freezes the rest.

        By default the adapter of a model trains, or every weight of a model without adapters. To train some layers
        only, return [`TrainedWeights`] with their names.

        Args:
            model (`torch.nn.Module`):
                The model.

        Returns:
            [`Trained`]: What trains.

        Raises:
            InvalidInputError: If the method cannot train the model.
        """
        if self.trains == "adapter" or (self.trains == "any" and isinstance(model, PeftModel)):
            return TrainedAdapter(model)
        return TrainedWeights(model)

    def objective(self, model: nn.Module, args: GSLoraTrainingArguments, kind: str | None = None) -> Objective:
        """Makes the objective, unless the trainer is given one; by default the one that suits the model.

        Wrap it if the method needs more than another `loss`, such as views of samples.

        Args:
            model (`torch.nn.Module`):
                The model.
            args ([`GSLoraTrainingArguments`]):
                Weights, bounds and kinds of the losses.
            kind (`str`, *optional*):
                The kind of model (a name in `OBJECTIVES`), if the caller names it.

        Returns:
            [`Objective`]: The losses and scores.
        """
        trainer = self.trainer
        return objective_for(model, args, roles=trainer.roles, adapter=trainer.trained.adapter, kind=kind)

    # While it trains

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Returns the callbacks of the method; by default the method itself.

        A callback that is [`Watching`] can read flags from the device at every step, without a host synchronisation
        of its own.
        """
        return [self]

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        """Returns the loss of one joint batch; by default that of the objective.

        Args:
            model (`torch.nn.Module`):
                The model as the trainer calls it (wrapped under DDP), for a further forward.
            inputs (`dict`):
                The joint batch: B samples to keep, then B samples to forget, with their `labels` of shape `(2·B,)`.
            output ([`ObjectiveOutput`]):
                What the objective computed: `loss`, and of a classifier `logits` of shape `(2·B, C)` with gradient.

        Returns:
            `torch.Tensor`: A scalar with gradient: the mean over this process's samples. DDP averages gradients.
        """
        return output.loss

    def logs(self) -> dict[str, Tensor]:
        """Returns scalars on the device for the logs, by name; by default the norms of an adapter's groups."""
        return self.trainer.trained.logs()

    def evaluated(self) -> AbstractContextManager[Any]:
        """Returns a context in which the model holds the weights to evaluate, such as a moving average.

        By default the weights that train are evaluated.
        """
        return nullcontext()

    def save(self, folder: str) -> None:
        """Adds the method's own state to a checkpoint; by default nothing.

        Called in every process; only that with `args.should_save` may write. The Trainer saves the weights, the
        optimizer and the random generators.

        Args:
            folder (`str`):
                The checkpoint, which exists.
        """

    def load(self, folder: str) -> None:
        """Reads what [`~Method.save`] wrote; by default nothing.

        Args:
            folder (`str`):
                The checkpoint.
        """

    def leave(self) -> dict[str, Tensor]:
        """Returns what later tasks need, such as the importance of each weight; by default nothing.

        Called in every process at the end of a task, after [`~Method.release`]; also in a process that resumed at the
        end of the training, so that it must not depend on what the steps left in `self`. A run keeps it beside the
        folder of the task as `method/task_NNN/method.safetensors`, and hands it to the same method at every later task
        in `earlier`. It may hold traces of the samples to forget, and is never published: a run that is fetched from
        the Hub lacks it, and refuses a method that left some.
        """
        return {}

    def release(self) -> None:
        """Takes back what the method did to the model for speed, such as freezing; by default nothing.

        Called at the end of a training, also after an error, and before other weights are loaded.
        """

    # For hooks to use

    def of(self, trainer: TaskTrainer) -> Self:
        """Returns a copy with the same hyper-parameters that works for one trainer."""
        copy = dataclasses.replace(self) if self.trains == type(self).trains else self.on_weights()
        copy.trainer, copy.earlier = trainer, self.earlier
        return copy

    def on_weights(self) -> Self:
        """Returns a copy that trains the model's own weights also where it could train an adapter, such as in a run.

        Raises:
            InvalidInputError: If the method can train an adapter alone.
        """
        if self.trains == "adapter":
            expected = f"a method that can train weights; {self.name!r} trains an adapter"
            raise InvalidInputError("method", self.name, expected, "Use it as it is.")
        copy = dataclasses.replace(self)
        vars(copy)["trains"] = "weights"
        return copy

    def settings(self) -> dict[str, Any]:
        """Returns the name and the hyper-parameters, as ledgers record them."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.init}
        return {"name": self.name, **fields}

    def retain_half(self, inputs: dict[str, Any], output: ObjectiveOutput) -> tuple[Tensor, Tensor]:
        """Returns the logits `(B, C)` in float32 and the labels `(B,)` of the samples to keep."""
        half = len(inputs["labels"]) // 2
        return self._logits(output)[:half], inputs["labels"][:half]

    def forget_half(self, inputs: dict[str, Any], output: ObjectiveOutput) -> tuple[Tensor, Tensor]:
        """Returns the logits `(B, C)` in float32 and the labels `(B,)` of the samples to forget."""
        half = len(inputs["labels"]) // 2
        return self._logits(output)[half:], inputs["labels"][half:]

    def random_kept(self, labels: Tensor) -> Tensor:
        """Returns a random class to keep for each of `labels`, int64, drawn anew at every call."""
        classes = torch.tensor(self.trainer.roles.retain)
        # On the CPU, whose generator every checkpoint holds.
        return classes[torch.randint(len(classes), labels.shape)].to(labels.device)

    def earlier_logits(self, model: nn.Module, inputs: dict[str, Any], half: Half | None = None) -> Tensor:
        """Returns the logits of the model before the task in float32, without gradient, by one more forward.

        Args:
            model (`torch.nn.Module`):
                The model as the trainer calls it.
            inputs (`dict`):
                The joint batch.
            half (`"retain"` or `"forget"`, *optional*):
                One half alone, which costs half a forward: `(B, C)`; by default both: `(2·B, C)`.
        """
        with self.trainer.trained.before():
            return logits_of(unwrapped(model), half_of(inputs, half) if half else inputs).float()

    def original_logits(self, model: nn.Module, inputs: dict[str, Any], half: Half | None = None) -> Tensor:
        """Returns the logits of the model before all tasks, as [`~Method.earlier_logits`] does.

        Outside a run this is the model before the task.
        """
        with self.trainer.trained.original():
            return logits_of(unwrapped(model), half_of(inputs, half) if half else inputs).float()

    def _logits(self, output: ObjectiveOutput) -> Tensor:
        if output.logits is None:
            raise InvalidInputError(
                "method", self.name, "a method that works without the logits of a classifier", "Use 'gs_lora'."
            )
        return output.logits.float()


class TaskTrainer(Trainer):
    """A Trainer with the data, the classes and the weights of one task.

    The parts of [`ForgettingTrainer`] derive from it, and methods and callbacks use it.

    Attributes:
        trained ([`Trained`]):
            What trains.
        task_objective ([`Objective`]):
            What "forget" and "retain" mean.
        roles ([`ClassRoles`]):
            The role of every class.
        accuracy_forget_before (`dict[str, float]`):
            Acc_f (of a detector AP_f) before the task, in [0, 1], for Drop and H. Keys are evaluation sets: `"eval"`,
            or `"eval_<name>"` if `eval_dataset` is a dict.
        meter ([`LossMeter`]):
            Running means for the logs.
    """

    args: GSLoraTrainingArguments
    model: nn.Module
    method: Method
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
        """Measures Acc_f before the task on each evaluation set."""
        raise NotImplementedError

    def global_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the mean of a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="mean") if self.args.world_size > 1 else tensor

    def global_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="sum") if self.args.world_size > 1 else tensor
