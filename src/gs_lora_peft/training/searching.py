"""Searching for good arguments: each trial trains a fresh adapter."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ..errors import InvalidInputError
from ..objectives import Objective
from .arguments import GSLoraTrainingArguments
from .base import TaskTrainer
from .method import Method


class AdapterSearch(TaskTrainer):
    """The part of [`ForgettingTrainer`] that works with `model_init`."""

    method: Method

    def _take(self, model: nn.Module) -> None:
        raise NotImplementedError

    def _objective_for(self, model: nn.Module, args: GSLoraTrainingArguments) -> Objective:
        raise NotImplementedError

    def _make_callbacks(self) -> None:
        raise NotImplementedError

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A fresh model from `model_init`, which is the one that trains from now on."""
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
        self, hp_space=None, compute_objective=None, n_trials=20, direction=None, **kwargs
    ):
        """As [`transformers.Trainer.hyperparameter_search`], by default for the largest H on the evaluation data.

        Needs `model_init` in place of a model: each trial trains an adapter of its own.

        Args:
            hp_space (`Callable`, *optional*), n_trials (`int`, *optional*, defaults to 20), kwargs: as there. A search
                may set every option of [`GSLoraTrainingArguments`].
            compute_objective (`Callable`, *optional*): from the metrics of an evaluation to the number that is looked
                for; by default `eval_h_mean`.
            direction (`str` or `list[str]`, *optional*): by default `"maximize"` for H, else `"minimize"`.

        Raises:
            InvalidInputError: without `model_init` or evaluation data, or where H is to be minimised.
        """
        if self.model_init is None:
            raise InvalidInputError(
                "model_init", None, "a function that makes a fresh model with its adapter", "Give it to the trainer."
            )
        if self.eval_dataset is None:
            raise InvalidInputError("eval_dataset", None, "labelled samples to compare trials on", "Give some.")
        if compute_objective is None:
            if direction not in (None, "maximize"):
                raise InvalidInputError(
                    "direction", direction, "'maximize': the larger H is, the better", "Leave it out."
                )
            compute_objective, direction = _h_mean, "maximize"
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, "minimize" if direction is None else direction, **kwargs
        )


def _h_mean(metrics: dict[str, float]) -> float:
    return metrics["eval_h_mean"]
