"""Checks of the model, the data and the classes, before a training starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

from datasets import Dataset
from pydantic import BeforeValidator, Field, InstanceOf
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..checking import ClassName, checked, ordered_list
from ..data import RetainStream, is_object_column
from ..errors import InvalidInputError
from ..objectives import Objective, head_size
from ..roles import ClassRoles, SharedClassesError, class_ids
from ..tuner import GSLoraConfig
from .arguments import GSLoraTrainingArguments
from .method import TaskTrainer
from .samples.batches import classes_of
from .samples.streams import classes_to_keep

_OPTIONS = "Give the same options to {}."

_MODEL = Annotated[InstanceOf[nn.Module], Field(description="a model (torch.nn.Module)")]

_FUNCTION = Annotated[Callable[..., Any], Field(description="a function, or another object that can be called")]

# The arguments that several classes take: their types, and the fix.
_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "args": (
        Annotated[InstanceOf[GSLoraTrainingArguments], Field(description="GSLoraTrainingArguments")],
        _OPTIONS.format("GSLoraTrainingArguments('out', ...)"),
    ),
    "config": (
        Annotated[InstanceOf[GSLoraConfig], Field(description="a GSLoraConfig")],
        _OPTIONS.format("GSLoraConfig(...)"),
    ),
    "model": (_MODEL, "Load it with from_pretrained."),
    "base_model": (_MODEL, "Load it with from_pretrained."),
    "label_column": (
        Annotated[ClassName, Field(description="the name of a column")],
        "Name the column of the labels.",
    ),
    "data_collator": (_FUNCTION, "Leave it out, or pass a function from a list of samples to a batch."),
    "augment": (_FUNCTION, "Leave it out, or pass a function from an image to a view of it."),
    "callbacks": (
        Annotated[
            list[InstanceOf[TrainerCallback] | type[TrainerCallback]],
            BeforeValidator(ordered_list),
            Field(description="a list of TrainerCallback"),
        ],
        "Pass a list of callbacks.",
    ),
}


def check_types(**given: Any) -> None:
    """Checks the types of arguments that several classes take.

    Args:
        given (`Any`):
            The arguments by name. `None` stands for an argument that is left out; models, `args`, `config` and
            `label_column` must not be.

    Raises:
        InvalidInputError: If one is of another type.
    """
    for name, value in given.items():
        if value is not None or name in ("model", "base_model", "args", "config", "label_column"):
            kind, fix = _ARGUMENTS[name]
            checked(name, value, kind, fix=fix)


def check_arguments(args: GSLoraTrainingArguments, eval_dataset: Any, kwargs: dict[str, Any]) -> None:
    """Checks the arguments of the trainer, before any data is read.

    Raises:
        InvalidInputError: If an argument cannot be obeyed, or evaluation during training has no data.
    """
    for name in ("train_dataset", "compute_loss_func"):
        if kwargs.get(name) is not None:
            raise InvalidInputError(
                name,
                kwargs[name],
                "None: pairs of `retain_dataset` and `forget_dataset` are trained on, with the method's loss",
                "Leave it out.",
            )
    if args.eval_on_start and eval_dataset is None and args.validation_fraction == 0:
        raise InvalidInputError(
            "eval_on_start", True, "False without anything to evaluate on", "Give `eval_dataset`, or leave it out."
        )
    if args.eval_strategy != "no" and eval_dataset is None and args.validation_fraction == 0:
        raise InvalidInputError(
            "eval_strategy",
            IntervalStrategy(args.eval_strategy).value,
            "'no' without anything to evaluate on",
            "Give `eval_dataset`, or hold a part of the training data out with `validation_fraction` (never the test "
            "data). Hold annotated boxes out with train_validation_split instead, for the trainer's `eval_dataset`; a "
            "ContinualForgetter scores detectors after each task alone.",
        )


def check_model(
    model: nn.Module | None,
    model_init: Callable[..., nn.Module] | None,
    objective: Objective | str | None,
    kwargs: dict[str, Any],
) -> None:
    """Checks that there is either a model or `model_init`, and with `model_init` nothing that belongs to one model.

    Raises:
        InvalidInputError: If not.
    """
    if (model is None) == (model_init is None):
        given = "both" if model is not None else None
        fix = "Wrap one with get_peft_model(model, GSLoraConfig(...)); `model_init` is for hyperparameter_search."
        raise InvalidInputError("model", given, "a model with its adapter, or `model_init`, which makes one", fix)
    if model_init is None:
        return
    if objective is not None:
        fix = "Leave it out; the arguments say what it should be."
        raise InvalidInputError("objective", objective, "None with `model_init`: it may belong to one model", fix)
    if any(part is not None for part in kwargs.get("optimizers") or ()):
        fix = "Choose it with `optim`, or give `optimizer_cls_and_kwargs`."
        raise InvalidInputError("optimizers", kwargs["optimizers"], "none with `model_init`: they hold one model", fix)


def classes_of_task(
    forget_dataset: Any,
    retain_dataset: Any,
    label_column: str,
    model: nn.Module,
    forget_classes: Iterable[int] | None = None,
    old_classes: Iterable[int] = (),
    missing_classes: Iterable[int] = (),
) -> tuple[list[int], list[int]]:
    """Returns the classes to forget and those to keep, sorted.

    Args:
        forget_dataset (map-style dataset):
            D_f.
        retain_dataset (map-style dataset or [`RetainStream`]):
            D_r. A stream is to keep all classes of the head but those to forget, the old and the missing ones.
        label_column (`str`):
            Column of the labels, or of annotated boxes.
        model (`torch.nn.Module`):
            The model. Its names of the classes must be those of the data.
        forget_classes (`Iterable[int]`, *optional*):
            The classes to forget; by default those of D_f. Needed with annotated boxes, because both sets may hold
            both kinds.
        old_classes (`Iterable[int]`, *optional*, defaults to none):
            Ids of classes that earlier tasks forgot; read for a stream only.
        missing_classes (`Iterable[int]`, *optional*, defaults to none):
            Ids of classes without training data; read for a stream only.

    Raises:
        InvalidInputError: If they are needed and left out, or not those of D_f.
        ValueError: If labels cannot be read, as [`classes_of`].
    """
    found = classes_of(forget_dataset, label_column, "forget", model)
    if isinstance(retain_dataset, RetainStream):
        others = class_ids("old_classes", old_classes), class_ids("missing_classes", missing_classes)
        kept = classes_to_keep(retain_dataset, model, set(found).union(*others))
    else:
        kept = classes_of(retain_dataset, label_column, "retain", model)
    if not is_object_column(forget_dataset, label_column):
        if forget_classes is not None and (asked := class_ids("forget_classes", forget_classes)) != found:
            raise InvalidInputError(
                "forget_classes",
                asked,
                f"the classes of the forget set, {found}",
                "Leave it out, or give the forget set of these classes.",
            )
        return found, kept
    if forget_classes is None:
        raise InvalidInputError(
            "forget_classes",
            None,
            f"the categories to forget: {label_column!r} holds annotated boxes, and images of either set may show "
            "objects of both kinds",
            "Give forget_classes=split.forget_classes.",
        )
    forget = class_ids("forget_classes", forget_classes)
    if absent := sorted(set(forget) - set(found)):
        raise InvalidInputError(
            "forget_classes",
            forget,
            f"categories of objects in the forget set; it has no object of {absent}",
            "Use split_dataset, and give its `forget` and `forget_classes`.",
        )
    return forget, sorted({*found, *kept} - set(forget))


# What to do about classes of an argument that have another role, too
_OTHER_ROLE = {
    "missing": (
        "Missing classes have no training data. Take them out of one, or pass them as `missing` to split_dataset."
    ),
    "forget": "Use split_dataset, which keeps the sets apart.",
    "old": "Training on them would bring back what earlier tasks forgot. Pass them as `old` to split_dataset.",
}


def roles_of_task(
    model: nn.Module,
    forget: Iterable[int],
    retain: Iterable[int],
    old: Iterable[int] = (),
    missing: Iterable[int] = (),
) -> ClassRoles:
    """The role of every class; a class of the model's head that has none is missing.

    Raises:
        ValueError: If a class has two roles, or the head does not have it.
    """
    try:
        roles = ClassRoles(forget, retain, old, missing)
    except SharedClassesError as error:
        role = next(role for role in _OTHER_ROLE if role in error.roles)
        raise InvalidInputError(f"{role}_classes", error.value, error.expected, _OTHER_ROLE[role]) from None
    _check_head(model, [class_id for ids in roles.as_dict().values() for class_id in ids])
    return roles.with_rest("missing", range(head_size(model) or 0))


def _check_head(model: nn.Module, classes: Sequence[int], where: str = "") -> None:
    num_labels = head_size(model)
    largest = max(classes)
    if num_labels is not None and largest >= num_labels:
        raise InvalidInputError(
            f"label{where}",
            largest,
            f"a class of the model's head, from 0 to {num_labels - 1}",
            "Use the label ids the model was trained with, or a model with a head of the right size.",
        )


def check_evaluation(
    trainer: TaskTrainer, model: nn.Module, eval_dataset: Any, args: GSLoraTrainingArguments, own_metrics: bool
) -> None:
    """Checks the labels of evaluation sets, and that they give the metric of the best model.

    Reads label columns and lists. Sets that would have to decode samples to know their labels are not checked.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer, with its objective and the roles of the classes.
        model (`torch.nn.Module`):
            The model to train.
        eval_dataset (map-style dataset or dict of them):
            As given to the trainer.
        args ([`GSLoraTrainingArguments`]):
            The arguments.
        own_metrics (`bool`):
            Whether the caller gives `compute_metrics`, whose names are not known.

    Raises:
        ValueError: If labels cannot be read or are outside the head, or the metric cannot be computed.
    """
    sets = eval_dataset if isinstance(eval_dataset, dict) else {None: eval_dataset}
    prefixes = {name: "eval" if name is None else f"eval_{name}" for name in sets}
    classes: dict[Any, set[int]] = {}
    for name, dataset in sets.items():
        if isinstance(dataset, (Dataset, list, tuple)) and len(dataset) > 0:
            called = "evaluation" if name is None else f"evaluation ({name!r})"
            classes[name] = set(classes_of(dataset, trainer.label_column, called, model))
            _check_head(model, list(classes[name]), f" of the {called} set")
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy == "no":
        return
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    # The longest prefix that fits: the name of a set may begin with that of another.
    fitting = [name for name, prefix in prefixes.items() if metric.startswith(f"{prefix}_")]
    if not fitting:
        offered = ", ".join(repr(f"{prefix}_h_mean") for prefix in prefixes.values())
        raise InvalidInputError(
            "metric_for_best_model",
            args.metric_for_best_model,
            f"a name that says which of the evaluation sets chooses the best model, such as {offered}",
        )
    chosen = max(fitting, key=lambda name: len(prefixes[name]))
    score = metric.removeprefix(f"{prefixes[chosen]}_")
    if score == "loss" or own_metrics:
        return
    scoring = trainer.task_objective.scoring
    names = ["loss"] if args.prediction_loss_only else [*scoring.names(), "loss"]
    if args.prediction_loss_only or (scoring.names() and score not in names):
        why = " with `prediction_loss_only`" if args.prediction_loss_only else ""
        raise InvalidInputError(
            "metric_for_best_model",
            args.metric_for_best_model,
            f"one of {names}{why}",
            f"The name may follow {prefixes[chosen] + '_'!r}. Scores of your own come from `compute_metrics`.",
        )
    roles = trainer.roles.as_dict()
    for name, found in classes.items():
        needed = {"h_mean": ("forget", "retain"), "drop": ("forget",)}.get(score, (score.rpartition("_")[2],))
        absent = [role for role in needed if role in roles and not found & set(roles[role])]
        if name == chosen and absent and not score.startswith("n_"):
            lacking = f"classes to {absent[0]}" if absent[0] in ("forget", "retain") else f"{absent[0]} classes"
            raise InvalidInputError(
                "metric_for_best_model",
                args.metric_for_best_model,
                f"a score that can be computed; the evaluation set has no samples of the {lacking}",
                "Add some, or choose another metric, e.g. 'eval_acc_retain'.",
            )
