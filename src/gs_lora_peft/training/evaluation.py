"""Evaluates by role of the class, and searches for the hyper-parameters with the best score."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback
from transformers.trainer_pt_utils import EvalLoopContainer, nested_concat
from transformers.trainer_utils import BestRun, EvalLoopOutput, EvalPrediction

from ..compat import own_sharding
from ..data import NamedRows
from ..errors import InvalidInputError
from ..objectives import Objective
from .arguments import GSLoraTrainingArguments
from .method import TaskTrainer
from .samples.batches import ColumnFilter

_PADDING = -100  # the Trainer's, where batches differ in their second dimension


@contextmanager
def precision_error_explained(args: TrainingArguments) -> Iterator[None]:
    """Names the option at fault if a model mixes float16 and bfloat16.

    PyTorch's autocast to one of them refuses tensors of the other. Only the forward shows which models do that: many
    run well on a base in float16 with `bf16`.

    Args:
        args (`transformers.TrainingArguments`):
            The arguments.

    Raises:
        InvalidInputError: In place of PyTorch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if "autocast::prioritize" not in str(error):
            raise
        name, other = ("bf16", "float16") if args.bf16 else ("fp16", "bfloat16")
        fix = f"Load the model in float32 (dtype=torch.float32), or leave `{name}` out."
        expected = f"False for a base model in {other}: its forward puts both kinds of numbers together"
        raise InvalidInputError(name, getattr(args, name), expected, fix) from error


class ObjectiveEvaluation(Trainer):
    """A Trainer that evaluates with an [`Objective`]: its loss, its predictions and their labels.

    Attributes:
        task_objective ([`Objective`]):
            What "forget" and "retain" mean for the kind of model.
    """

    task_objective: Objective
    _searched: Any = None

    @property
    def objective(self) -> Any:
        """The [`Objective`]; during a hyperparameter search the result of a trial, which transformers keeps here."""
        return self._searched if self._in_search else self.task_objective

    @objective.setter
    def objective(self, value: Any) -> None:
        if self._in_search:
            self._searched = value
        else:
            self.task_objective = value

    @property
    def _in_search(self) -> bool:
        return getattr(self, "hp_search_backend", None) is not None

    def _filter_columns(self, label_column: str) -> None:
        """Carries out `remove_unused_columns`, see [`ColumnFilter`]."""
        self._set_signature_columns_if_needed()
        self.data_collator = ColumnFilter(self.data_collator, {*(self._signature_columns or ()), label_column})

    def create_accelerator_and_postprocess(self) -> None:
        with own_sharding():
            super().create_accelerator_and_postprocess()

    def compute_loss_context_manager(self) -> Any:
        context = ExitStack()
        context.enter_context(precision_error_explained(self.args))
        context.enter_context(super().compute_loss_context_manager())
        return context

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> DataLoader:
        stream = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
        if description != "Training" and hasattr(dataset, "__len__") and not stream:
            dataset = NamedRows(dataset, "the evaluation set")
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if outputs is not None and labels is not None:
            outputs, labels = self.task_objective.scoring.gathered(outputs, labels)
        return loss, outputs, labels

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        # Outside of training, these options cast the model in place, and the weights that are trained or saved
        # afterwards would be rounded, too.
        casts = (self.args.fp16_full_eval or self.args.bf16_full_eval) and not self.is_in_train
        with _kept_precision(self.model) if casts else nullcontext():
            return super().evaluation_loop(*args, **kwargs)


@contextmanager
def _kept_precision(model: Any) -> Iterator[None]:
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.data for tensor in tensors]
    try:
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            if tensor.dtype != data.dtype:
                tensor.data = data.to(tensor.device)


class ForgettingEvaluation(ObjectiveEvaluation, TaskTrainer):
    """The part of [`ForgettingTrainer`] that computes scores by role of the class."""

    _evaluating = "eval"  # prefix of the metrics that are being computed
    _batches: tuple[EvalLoopContainer, EvalLoopContainer]

    def __init__(self, *args: Any, **kwargs: Any):
        self.accuracy_forget_before: dict[str, float] = {}
        if kwargs.get("compute_metrics") is None:
            kwargs["compute_metrics"] = self._scores
        super().__init__(*args, **kwargs)

    def _scores(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Returns the scores; with `batch_eval_metrics` it takes one batch, and returns scores after the last one."""
        if self.args.batch_eval_metrics:
            predictions, labels = self._batches
            predictions.add(prediction.predictions)
            labels.add(prediction.label_ids)
            predictions.to_cpu_and_numpy()
            labels.to_cpu_and_numpy()
            if not compute_result:
                return {}
            prediction = EvalPrediction(predictions.get_arrays(), labels.get_arrays())
            self._batches = _empty_batches()
        scores = self._forgetting_scores(prediction, self.accuracy_forget_before.get(self._evaluating))
        return {name: value for name, value in scores.items() if value is not None}

    def _forgetting_scores(self, prediction: Any, accuracy_forget_before: float | None) -> dict[str, Any]:
        scoring = self.task_objective.scoring
        answers, labels = _joined(prediction.predictions), _joined(prediction.label_ids)
        return scoring.by_role(answers, labels, self.roles, accuracy_forget_before)

    def score(self, dataset: Any, accuracy_forget_before: float | None = None) -> dict[str, Any]:
        """Returns Acc_r, Acc_f, Acc_o, Acc_m, Drop and H of the present model on labelled data. Nothing is logged.

        Args:
            dataset (map-style dataset):
                Labelled samples.
            accuracy_forget_before (`float`, *optional*):
                Acc_f (of a detector AP_f) before the task, for Drop and H.

        Returns:
            `dict`: As from [`continual_forgetting_scores`], of a detector as from [`detection_scores`].
        """
        return self._forgetting_scores(self.predict(dataset, metric_key_prefix="score"), accuracy_forget_before)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._evaluating, self._batches = metric_key_prefix, _empty_batches()
        # Iterating over data draws a random number. The fork keeps the dropout of the training independent of
        # evaluation, so that a training resumed after an evaluation equals one that was not stopped.
        with self.method.evaluated() if self.is_in_train else nullcontext(), torch.random.fork_rng(devices=[]):
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )

    def measure_before(self) -> None:
        """Measures Acc_f before the task on each evaluation set, for Drop and H, without logs and callbacks."""
        key = f"before_{self.task_objective.scoring.measure.key('forget')}"
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {None: self.eval_dataset}
        with self._no_callbacks(), self.trained.before():
            for name in datasets:
                output = self.evaluation_loop(
                    self.get_eval_dataloader(name), description="Before training", metric_key_prefix="before"
                )
                if (accuracy := (output.metrics or {}).get(key)) is not None:
                    self.accuracy_forget_before["eval" if name is None else f"eval_{name}"] = accuracy

    @contextmanager
    def _no_callbacks(self) -> Iterator[None]:
        handler = self.callback_handler
        # The handler warns without this one callback, which does nothing during an evaluation.
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback()], self.model, self.processing_class, self.optimizer, self.lr_scheduler
        )
        try:
            yield
        finally:
            self.callback_handler = handler


def _empty_batches() -> tuple[EvalLoopContainer, EvalLoopContainer]:
    return EvalLoopContainer(padding_index=_PADDING), EvalLoopContainer(padding_index=_PADDING)


def _joined(batches: Any) -> Any:
    """Predictions as one array each; with `eval_do_concat_batches=False` they come as a list of batches."""
    if not isinstance(batches, list):
        return batches
    return functools.reduce(functools.partial(nested_concat, padding_index=_PADDING), batches)


# Hyperparameter search


class AdapterSearch(TaskTrainer):
    """The part of [`ForgettingTrainer`] that works with `model_init`."""

    def _take(self, model: nn.Module) -> None:
        raise NotImplementedError

    def _objective_for(self, model: nn.Module, args: GSLoraTrainingArguments) -> Objective:
        raise NotImplementedError

    def _make_callbacks(self) -> None:
        raise NotImplementedError

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Makes a fresh model with `model_init` and trains that one from now on."""
        model = cast(nn.Module, super().call_model_init(trial))
        self._take(model)
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self.args.check()
            self.method.check(self.args)
            self.task_objective = self._objective_for(self.model, self.args)
            self._make_callbacks()

    def hyperparameter_search(  # type: ignore[override]
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Runs [`transformers.Trainer.hyperparameter_search`], by default for the largest H on the evaluation data.

        It needs `model_init` in place of a model: each trial trains an adapter of its own.

        Args:
            hp_space (`Callable`, *optional*):
                From a trial to the options to try; by default that of transformers. It may set every option of
                [`GSLoraTrainingArguments`].
            compute_objective (`Callable`, *optional*):
                From the metrics of an evaluation to the number to optimise; by default `eval_h_mean`.
            n_trials (`int`, *optional*, defaults to 20):
                Number of trials.
            direction (`str` or `list[str]`, *optional*):
                By default `"maximize"` for H, else `"minimize"`.
            kwargs:
                As for [`transformers.Trainer.hyperparameter_search`].

        Returns:
            `transformers.trainer_utils.BestRun`: The best trial.

        Raises:
            InvalidInputError: Without `model_init` or evaluation data, or if H should be minimised.
        """
        if self.model_init is None:
            raise InvalidInputError(
                "model_init", None, "a function that makes a fresh model with its adapter", "Pass it to the trainer."
            )
        if self.eval_dataset is None:
            raise InvalidInputError(
                "eval_dataset", None, "labelled samples to compare trials on", "Pass it to the trainer."
            )
        if compute_objective is None:
            if direction not in (None, "maximize"):
                raise InvalidInputError(
                    "direction", direction, "'maximize', because a larger H is better", "Leave it out."
                )
            compute_objective, direction = _h_mean, "maximize"
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, "minimize" if direction is None else direction, **kwargs
        )


def _h_mean(metrics: dict[str, float]) -> float:
    return metrics["eval_h_mean"]
