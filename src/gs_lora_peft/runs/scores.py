"""Scores of a model before and after a task is carried out or revoked."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import nn

from ..adapters import updates_beside, weights_fingerprint
from ..compat import preparation_undone, quantisation_unsaid
from ..data import AgreeingLabels
from ..objectives import Scoring, objective_for
from ..roles import ClassRoles
from ..training import GSLoraTrainingArguments, ObjectiveEvaluation
from .recipe import Recipe


class Predictions(NamedTuple):
    """Predictions of a model on a data set, the labels, and how to compare them.

    Args:
        scoring ([`Scoring`]):
            How to score the predictions.
        predictions (`Any`):
            The predictions, as [`Scoring`] expects them.
        labels (`Any`):
            The labels, as [`Scoring`] expects them.
    """

    scoring: Scoring
    predictions: Any
    labels: Any

    def by_role(self, roles: ClassRoles, forget_before: float | None = None) -> dict[str, Any]:
        """Returns the scores of a task, see [`Scoring.by_role`]."""
        return self.scoring.by_role(self.predictions, self.labels, roles, forget_before)

    def by_class(self) -> dict[int, tuple[float, int]]:
        """Returns a sum and a weight for each class of the data, see [`Scoring.by_class`]."""
        return self.scoring.by_class(self.predictions, self.labels)


class Scores:
    """Scores a bare model on one data set: `acc_forget` and so on, for a detector `ap_forget`.

    Args:
        dataset (`datasets.Dataset`):
            Labelled rows.
        recipe ([`Recipe`]):
            Settings of the evaluation: batch size, device, precision and collator.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe):
        self.dataset = dataset
        self.recipe = recipe
        self._base: tuple[Scoring, dict[int, tuple[float, int]]] | None = None
        self._last: tuple[tuple[str, ...], Predictions] | None = None

    @property
    def knows_base(self) -> bool:
        """Whether [`~Scores.measure_base`] was called."""
        return self._base is not None

    def measure_base(self, model: nn.Module) -> None:
        """Scores the base model, before any task, as the reference for all tasks."""
        found = self._predict(model)
        self._base = found.scoring, found.by_class()

    def of_base(self, roles: ClassRoles) -> dict[str, float]:
        """Returns `acc_all`, `acc_retain` and `acc_missing` of the base model, for the classes that a task keeps."""
        if self._base is None:
            raise RuntimeError("the base model has no scores yet; call measure_base first")
        scoring, by_class = self._base
        sets = {"all": list(by_class), "retain": roles.retain, "missing": roles.missing}
        return scores_of_sets(scoring, by_class, sets)

    def of_task(self, model: nn.Module, roles: ClassRoles, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Scores a model by the roles of the classes, see [`Scoring.by_role`].

        Args:
            model (`torch.nn.Module`):
                The model.
            roles ([`ClassRoles`]):
                The classes by role.
            before (`Mapping[str, Any]`, *optional*):
                The same scores before the task, for `drop` and `h_mean`.
        """
        return self._by_role(self._predict(model), roles, before)

    def after_task(
        self,
        model: nn.Module,
        roles: ClassRoles,
        before: Mapping[str, Any],
        earlier: Mapping[str, Collection[int]],
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Scores a model as [`~Scores.of_task`] and, from the same predictions, on the classes of earlier tasks.

        Args:
            model (`torch.nn.Module`):
                As in [`~Scores.of_task`].
            roles ([`ClassRoles`]):
                As in [`~Scores.of_task`].
            before (`Mapping[str, Any]`):
                As in [`~Scores.of_task`].
            earlier (`Mapping[str, Collection[int]]`):
                Name of an earlier task → ids of its classes.

        Returns:
            `tuple[dict[str, Any], dict[str, float]]`: The scores by role, and the score of each earlier task that the
            data have samples of.
        """
        found = self._predict(model)
        key = found.scoring.measure.key
        scores = scores_of_sets(found.scoring, found.by_class(), earlier) if earlier else {}
        of_earlier = {name: scores[key(name)] for name in earlier if key(name) in scores}
        return self._by_role(found, roles, before), of_earlier

    def _by_role(self, found: Predictions, roles: ClassRoles, before: Mapping[str, Any] | None) -> dict[str, Any]:
        forget_before = (before or {}).get(found.scoring.measure.key("forget"))
        return found.by_role(roles, forget_before)

    def of_revocation(self, model: nn.Module, revoked: Sequence[int], others: Sequence[int]) -> dict[str, float]:
        """Returns `acc_revoked`, `acc_still_forgotten` (classes of other tasks) and `acc_retain` (other classes)."""
        found = self._predict(model)
        by_class = found.by_class()
        kept = by_class.keys() - set(revoked) - set(others)
        return scores_of_sets(found.scoring, by_class, {"revoked": revoked, "still_forgotten": others, "retain": kept})

    def _predict(self, model: nn.Module) -> Predictions:
        """Predicts the data, unless the same weights did so last: those after a task are those before the next one."""
        recipe = self.recipe
        config = getattr(model, "config", None)
        asked = (
            weights_fingerprint(model),
            weights_fingerprint(beside) if (beside := updates_beside(model)) else "",
            "" if config is None else config.to_json_string(use_diff=False),
            recipe.args.to_json_string(),
            recipe.label_column,
            str(id(recipe.data_collator)),
        )
        if self._last is None or self._last[0] != asked:
            found = predict(model, self.dataset, recipe.args, recipe.data_collator, recipe.label_column)
            self._last = asked, found
        model.eval()
        return self._last[1]


def scores_of_sets(
    scoring: Scoring, by_class: Mapping[int, tuple[float, int]], class_sets: Mapping[str, Collection[int]]
) -> dict[str, float]:
    """Returns the score of each set of classes.

    Args:
        scoring ([`Scoring`]):
            The scoring, which names the scores.
        by_class (`Mapping[int, tuple[float, int]]`):
            The result of [`Scoring.by_class`].
        class_sets (`Mapping[str, Collection[int]]`):
            Name of a set → class ids. Sets may overlap.

    Returns:
        `dict[str, float]`: Scores from 0 to 1. Sets without samples are absent.
    """
    scores = {}
    for name, classes in class_sets.items():
        if known := [by_class[class_id] for class_id in sorted(classes) if class_id in by_class]:
            scores[scoring.measure.key(name)] = sum(sum_ for sum_, _ in known) / sum(weight for _, weight in known)
    return scores


def predict(
    model: nn.Module,
    dataset: Dataset,
    args: GSLoraTrainingArguments,
    data_collator: Callable,
    label_column: str = "label",
) -> Predictions:
    """Predicts every row of a data set with a model and the objective of its kind.

    Args:
        model (`torch.nn.Module`):
            A model that [`objective_for`] supports. It is in eval mode afterwards.
        dataset (`datasets.Dataset`):
            Labelled rows.
        args ([`GSLoraTrainingArguments`]):
            Batch size, device, precision and workers of the evaluation. Not changed.
        data_collator (`Callable`):
            As in `transformers.Trainer`.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels, or of annotated boxes.

    Returns:
        [`Predictions`]: All predictions, in every process.

    Raises:
        InvalidInputError: If a row reaches the model with another label than the stored one.
    """
    args = copy.copy(args)
    args.eval_strategy, args.load_best_model_at_end = "no", False
    args.report_to, args.push_to_hub, args.label_names = [], False, ["labels"]
    # Columns are removed below, as in training: after the data set's transform. All predictions are collected.
    filtered = args.remove_unused_columns
    args.remove_unused_columns, args.prediction_loss_only, args.eval_do_concat_batches = False, False, True
    with tempfile.TemporaryDirectory() as scratch, preparation_undone(model):
        args.output_dir = scratch
        try:
            scorer = _Scorer(model, args, data_collator=data_collator)
            if filtered:
                scorer._filter_columns(label_column)
            # Last, so that it sees the rows of the data set before columns are removed.
            scorer.data_collator = AgreeingLabels(scorer.data_collator, label_column)
            prediction = scorer.predict(dataset)
        finally:
            model.eval()
    return Predictions(scorer.objective.scoring, prediction.predictions, prediction.label_ids)


class _Scorer(ObjectiveEvaluation):
    """Evaluates with the objective of the model, because not every model has its own loss."""

    def __init__(self, model: nn.Module, args: GSLoraTrainingArguments, **kwargs: Any):
        with quantisation_unsaid(model):  # the Trainer refuses it without adapters, as if it were to train
            super().__init__(model, args, **kwargs)
        self.objective = objective_for(model, args)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        loss, outputs = self.objective.evaluation_step(model, inputs)
        return (loss, outputs) if return_outputs else loss
