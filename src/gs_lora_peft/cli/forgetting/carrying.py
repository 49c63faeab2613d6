"""From options to a run: the forgetter, its requests, and its publication."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel

from ...data import resolve_classes
from ...errors import InvalidInputError
from ...hub import push_to_hub
from ...ledger import ForgetRequest
from ...runs import ContinualForgetter
from ...training import GSLoraTrainingArguments, adapter_of_recipe, repo_to_publish_in
from .options import Options, missing_classes


def make_forgetter(
    options: Options,
    model: PreTrainedModel,
    dataset: DatasetDict,
    label_column: str,
    processor: Any,
    adapter: Mapping[str, Any] | None = None,
) -> ContinualForgetter:
    """Makes a forgetter with the settings of a command line.

    Args:
        options ([`Options`]):
            The settings. `args.output_dir` is the folder of the run. [`published`] publishes it, not the trainer.
        model (`transformers.PreTrainedModel`):
            The base model.
        dataset (`datasets.DatasetDict`):
            The data, with a train and a test split.
        label_column (`str`):
            The column of the labels, or of the annotated boxes.
        processor (*optional*):
            The processor of the model.
        adapter (`Mapping`, *optional*):
            Settings of [`GSLoraConfig`] that no option names.
    """
    args = copy.copy(options.args)
    args.push_to_hub = False
    return ContinualForgetter(
        model,
        dataset,
        str(args.output_dir),
        config=adapter_of_recipe(args.recipe, **{**vars(options.adapter), **(adapter or {})}),
        args=args,
        label_column=label_column,
        processing_class=processor,
        replay_ratio=options.data.replay_ratio,
        shots=options.data.shots,
        missing_classes=missing_classes(options.data),
    )


def own_arguments(
    options: Options, requests: Sequence[ForgetRequest], args: GSLoraTrainingArguments
) -> list[GSLoraTrainingArguments] | None:
    """Returns the training of each request if `--forget_weights` are given; `None` if all have the same.

    Raises:
        InvalidInputError: If there are not as many weights as requests, or one is negative.
    """
    weights = options.run.forget_weights
    if weights is None:
        return None
    if len(weights) != len(requests) or not all(weight >= 0 for weight in weights):
        expected = f"one number of at least 0 for each of {len(requests)} requests"
        raise InvalidInputError("--forget_weights", weights, expected, "Give as many.")
    return [_with_weight(args, weight) for weight in weights]


def carry_out(
    forgetter: ContinualForgetter,
    requests: Sequence[ForgetRequest],
    options: Options,
) -> None:
    """Carries out requests, after `--redo` and with `--keep`.

    Args:
        forgetter ([`ContinualForgetter`]):
            The forgetter.
        requests (`Sequence[ForgetRequest]`):
            All requests of the run; those that are done are skipped.
        options ([`Options`]):
            The settings.

    Raises:
        LedgerError, ValueError, OSError: As [`~ContinualForgetter.redo`] and [`~ContinualForgetter.run`].
    """
    run, args = options.run, own_arguments(options, requests, forgetter.recipe.args)
    if run.redo is not None:
        if args is not None:
            forgetter.recipe.args = _args_of_last(forgetter, requests, args)
        forgetter.redo(None if run.redo == "last" else run.redo)
    forgetter.run(requests, keep=run.keep or run.redo is not None, args=args)


def published(args: GSLoraTrainingArguments) -> str | None:
    """Publishes the whole run if `--push_to_hub` is given, by default in private; returns the address."""
    if not args.push_to_hub:
        return None
    options: dict[str, Any] = {
        "private": args.hub_private_repo is not False,
        "revision": args.hub_revision,
        "token": args.hub_token,
    }
    return push_to_hub(str(args.output_dir), repo_to_publish_in(args), **options)


def _with_weight(args: GSLoraTrainingArguments, weight: float) -> GSLoraTrainingArguments:
    args = copy.copy(args)
    args.forget_weight = weight
    return args


def _args_of_last(
    forgetter: ContinualForgetter, requests: Sequence[ForgetRequest], args: Sequence[GSLoraTrainingArguments]
) -> GSLoraTrainingArguments:
    """Returns the training of the request that the last task in effect carried out, which alone can be redone."""
    tasks = forgetter.ledger.active_tasks
    classes = set(tasks[-1].classes or ()) if tasks else set()
    for request, own in zip(requests, args, strict=True):
        if set(resolve_classes(request.classes, names=forgetter.label_names)) == classes:
            return own
    return forgetter.recipe.args
