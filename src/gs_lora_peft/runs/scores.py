"""Scores before and after a task is carried out or revoked."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from ..data import AgreeingLabels, ForgettingSplit
from ..objectives import ClassRoles, Scoring, objective_for
from ..training import ObjectiveEvaluation
from .recipe import Recipe

# What accelerate's evaluation sets on a model: autocast, and a mark that would keep training from wrapping it in DDP.
_LEFT_BEHIND = ("forward", "_original_forward", "_is_accelerate_prepared")


class Predictions(NamedTuple):
    """What a model answers on a data set, what is right, and how to compare both; see [`Scoring`]."""

    scoring: Scoring
    answers: Any
    labels: Any

    def by_role(self, roles: ClassRoles, forget_before: float | None = None) -> dict[str, Any]:
        """The scores of a task, see [`Scoring.by_role`]."""
        return self.scoring.by_role(self.answers, self.labels, roles, forget_before)

    def by_class(self) -> dict[int, tuple[float, int]]:
        """Of each class that the data have a sum and a weight, see [`Scoring.by_class`]."""
        return self.scoring.by_class(self.answers, self.labels)


class Scores:
    """Scores of a bare model on one data set. They are called `acc_forget` and so on, of a detector `ap_forget`.

    Args:
        dataset (`datasets.Dataset`):
            Labelled rows.
        recipe ([`Recipe`]):
            Batch size, device, precision and collator.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe):
        self.dataset = dataset
        self.recipe = recipe
        self._base: tuple[Scoring, dict[int, tuple[float, int]]] | None = None

    @property
    def knows_base(self) -> bool:
        """Whether [`~Scores.measure_base`] was called."""
        return self._base is not None

    def measure_base(self, model: nn.Module) -> None:
        """Keeps what the base model answers, before any task, as what forgetting is compared with."""
        found = self._predict(model)
        self._base = found.scoring, found.by_class()

    def of_base(self, split: ForgettingSplit) -> dict[str, float]:
        """`acc_all` of the base model, and its `acc_retain` and `acc_missing` on the classes that a task keeps."""
        if self._base is None:
            raise RuntimeError("the base model was not measured; call measure_base first")
        scoring, by_class = self._base
        sets = {"all": list(by_class), "retain": split.retain_classes, "missing": split.missing_classes}
        return scores_of_sets(scoring, by_class, sets)

    def of_task(
        self, model: nn.Module, split: ForgettingSplit, before: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Scores by role of the class, see [`Scoring.by_role`].

        Args:
            model (`torch.nn.Module`):
                The model.
            split ([`ForgettingSplit`]):
                Says which class has which role.
            before (`Mapping[str, Any]`, *optional*):
                The same scores before the task, for `drop` and `h_mean`.
        """
        return self._by_role(self._predict(model), split, before)

    def after_task(
        self,
        model: nn.Module,
        split: ForgettingSplit,
        before: Mapping[str, Any],
        earlier: Mapping[str, Collection[int]],
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Scores as [`~Scores.of_task`], and from the same answers one score for each of some earlier tasks.

        Args:
            model:
                As in [`~Scores.of_task`].
            split:
                As in [`~Scores.of_task`].
            before:
                As in [`~Scores.of_task`].
            earlier (`Mapping[str, Collection[int]]`):
                The classes of each earlier task, by its name.

        Returns:
            `tuple[dict[str, Any], dict[str, float]]`: Tasks that the data have nothing of are left out of the latter.
        """
        found = self._predict(model)
        key = found.scoring.measure.key
        scores = scores_of_sets(found.scoring, found.by_class(), earlier) if earlier else {}
        of_earlier = {name: scores[key(name)] for name in earlier if key(name) in scores}
        return self._by_role(found, split, before), of_earlier

    def _by_role(self, found: Predictions, split: ForgettingSplit, before: Mapping[str, Any] | None) -> dict[str, Any]:
        roles: ClassRoles = {
            "forget_classes": split.forget_classes,
            "retain_classes": split.retain_classes,
            "old_classes": split.old_classes,
            "missing_classes": split.missing_classes,
        }
        forget_before = (before or {}).get(found.scoring.measure.key("forget"))
        return found.by_role(roles, forget_before)

    def of_revocation(self, model: nn.Module, revoked: Sequence[int], others: Sequence[int]) -> dict[str, float]:
        """`acc_revoked`, `acc_still_forgotten` (classes of the other tasks) and `acc_retain` (all other classes)."""
        found = self._predict(model)
        by_class = found.by_class()
        kept = by_class.keys() - set(revoked) - set(others)
        return scores_of_sets(found.scoring, by_class, {"revoked": revoked, "still_forgotten": others, "retain": kept})

    def _predict(self, model: nn.Module) -> Predictions:
        recipe = self.recipe
        return predict(model, self.dataset, recipe.args, recipe.data_collator, recipe.label_column)


def scores_of_sets(
    scoring: Scoring, by_class: Mapping[int, tuple[float, int]], class_sets: Mapping[str, Collection[int]]
) -> dict[str, float]:
    """The score of each set of classes.

    Args:
        scoring ([`Scoring`]):
            What the scores are called after.
        by_class (`Mapping[int, tuple[float, int]]`):
            As [`Scoring.by_class`] gives it.
        class_sets (`Mapping[str, Collection[int]]`):
            Name of a set → class ids; sets may share classes.

    Returns:
        `dict[str, float]`: Fractions from 0 to 1; sets that the data have nothing of are left out.
    """
    scores = {}
    for name, classes in class_sets.items():
        if known := [by_class[class_id] for class_id in sorted(classes) if class_id in by_class]:
            scores[scoring.measure.key(name)] = sum(sum_ for sum_, _ in known) / sum(weight for _, weight in known)
    return scores


def predict(
    model: nn.Module, dataset: Dataset, args: TrainingArguments, data_collator: Any, label_column: str = "label"
) -> Predictions:
    """What a model answers on every row, as the objective of its kind has it.

    Args:
        model (`torch.nn.Module`):
            A model of a kind that [`objective_for`] knows; it is left in eval mode.
        dataset (`datasets.Dataset`):
            Labelled rows.
        args (`TrainingArguments`):
            Batch size, device, precision and workers of the evaluation; not changed.
        data_collator (`Callable`):
            As in `transformers.Trainer`.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels, or of annotated boxes.

    Returns:
        [`Predictions`], in every process.

    Raises:
        InvalidInputError: A row reaches the model with another label than the stored one.
    """
    args = copy.copy(args)
    args.eval_strategy, args.load_best_model_at_end = "no", False
    args.report_to, args.push_to_hub, args.label_names = [], False, ["labels"]
    # Columns are removed as in training, behind the data set's transform; all answers are wanted, in one piece.
    filtered = args.remove_unused_columns
    args.remove_unused_columns, args.prediction_loss_only, args.eval_do_concat_batches = False, False, True
    own = {name: vars(model)[name] for name in _LEFT_BEHIND if name in vars(model)}
    with tempfile.TemporaryDirectory() as scratch:
        args.output_dir = scratch
        try:
            scorer = _Scorer(model, args, data_collator=data_collator)
            if filtered:
                scorer._filter_columns(label_column)
            # Last, so that it gets the rows as they come from the data set.
            scorer.data_collator = AgreeingLabels(scorer.data_collator, label_column)
            prediction = scorer.predict(dataset)
        finally:
            for name in _LEFT_BEHIND:
                vars(model).pop(name, None)
            vars(model).update(own)
            model.eval()
    return Predictions(scorer.objective.scoring, prediction.predictions, prediction.label_ids)


class _Scorer(ObjectiveEvaluation):
    """Predictions as the objective of the model has them: the model's own loss, which not every one has, is not asked."""

    def __init__(self, model: nn.Module, args: TrainingArguments, **kwargs: Any):
        super().__init__(model, args, **kwargs)
        self.objective = objective_for(model, args)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = self.objective.evaluation_step(model, inputs)
        return (loss, outputs) if return_outputs else loss
